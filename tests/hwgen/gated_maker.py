"""graph_maker's network with gated MLPs, rotary positions and norms of queries and keys."""

from dataclasses import replace

import numpy as np

import graph_maker as maker
from hwgen import graph as fg

WIDTH, HEADS, HIDDEN = 32, 2, 64


def angles(tokens, pairs, rng, prefix=1):
    """Cosines and sines [tokens, pairs]; the first tokens have no position."""
    turn = rng.uniform(-3, 3, (tokens, pairs))
    turn[:prefix] = 0
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


def vit(act=None, norm_inside=False, rotate=False, norm_heads=None, own=False, seed=3, epsilon=1e-6):
    """graph_maker's network with a gated MLP (`act` makes its activation), rotary positions, norms of q and k (of each head
    with its `own` scales)."""
    graph = maker.vit(seed, columns=WIDTH, heads=HEADS, hidden=HIDDEN)
    rng = np.random.default_rng(seed)
    tokens, depth = fg.shapes(graph)["0.q"][0], WIDTH // HEADS
    nodes = []
    for node in graph.nodes:
        if isinstance(node, fg.Activation) and act is not None:
            fc1 = graph.node(node.x)
            value = (rng.standard_normal((HIDDEN, WIDTH)) / WIDTH**0.5).astype(np.float32)
            nodes += [fg.Linear(f"{node.name}.value", fc1.x, value, None), act(f"{node.name}.act", node.x)]
            product = f"{node.name}.product" if norm_inside else node.name
            nodes.append(fg.Multiply(product, f"{node.name}.act", f"{node.name}.value"))
            if norm_inside:
                gamma, beta = rng.normal(1, 0.2, (2, HIDDEN)).astype(np.float32)
                nodes.append(fg.LayerNorm(node.name, product, gamma, beta - 1, 1e-6))
            continue
        if isinstance(node, fg.Attention) and (rotate or norm_heads is not None):
            for part in "qk":
                name = getattr(node, part)
                if norm_heads is not None:
                    gamma, beta = rng.normal(1, 0.2, (2, WIDTH if own else depth)).astype(np.float32)
                    nodes.append(fg.LayerNorm(f"{name}.norm", name, gamma, beta - 1, epsilon, norm_heads, HEADS))
                    name = f"{name}.norm"
                if rotate:
                    nodes.append(fg.Rotate(f"{name}.turned", name, *angles(tokens, depth // 2, np.random.default_rng(9)), HEADS))
                    name = f"{name}.turned"
                node = replace(node, **{part: name})
        nodes.append(node)
    return fg.Graph(graph.inputs, nodes, graph.outputs)


FORMS = {
    "swiglu": dict(act=lambda n, x: fg.Activation(n, x, "silu", 1.0)),
    "geglu": dict(act=lambda n, x: fg.Activation(n, x, "gelu")),
    "glu": dict(act=lambda n, x: fg.Activation(n, x, "sigmoid")),
    "reglu": dict(act=lambda n, x: fg.Activation(n, x, "relu")),
    "norm inside": dict(act=lambda n, x: fg.Activation(n, x, "silu", 1.0), norm_inside=True),
    "rotary": dict(rotate=True),
    "norm of heads": dict(norm_heads=True),
    "rms norm of heads": dict(norm_heads=False),
    "norm of heads of their own": dict(norm_heads=True, own=True),
    "all": dict(act=lambda n, x: fg.Activation(n, x, "silu", 1.0), norm_inside=True, rotate=True, norm_heads=False),
}
