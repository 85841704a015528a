"""Random float graphs for tests: small ViTs, dense or with experts, with every oddity a test asks for."""

import numpy as np

from hwgen import graph as fg


def vit(
    seed=0,
    depth=2,
    columns=32,
    heads=2,
    hidden=64,
    experts=0,
    top_k=2,
    renormalise=False,
    image=(3, 8, 12),
    patch=4,
    prefix=1,
    bias=True,
    classes=5,
    form="gelu",
    spread=1.0,
):
    """A ViT with random weights, experts in every second layer if `experts` > 0; with `classes` = 0 tokens come out."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=None):
        scale = spread / np.sqrt(shape[-1]) if scale is None else scale
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def maybe(*shape):
        return normal(*shape, scale=0.2) if bias else None

    tokens = prefix + (image[1] // patch) * (image[2] // patch)
    nodes = [
        fg.PatchEmbed("patches", "image", normal(columns, image[0], patch, patch, scale=0.2), maybe(columns)),
        fg.Embed("embed", "patches", normal(prefix, columns, scale=0.5), normal(tokens, columns, scale=0.5)),
    ]

    def norm(name, x):
        nodes.append(fg.LayerNorm(name, x, 1 + normal(columns, scale=0.2), normal(columns, scale=0.2), 1e-6))
        return name

    x = "embed"
    for i in range(depth):
        n = norm(f"{i}.norm1", x)
        for part in "qkv":
            nodes.append(fg.Linear(f"{i}.{part}", n, normal(columns, columns), maybe(columns)))
        nodes.append(fg.Attention(f"{i}.attn", f"{i}.q", f"{i}.k", f"{i}.v", heads, (columns / heads) ** -0.5))
        nodes.append(fg.Linear(f"{i}.proj", f"{i}.attn", normal(columns, columns), maybe(columns)))
        nodes.append(fg.Add(f"{i}.add1", x, f"{i}.proj"))
        n = norm(f"{i}.norm2", f"{i}.add1")
        if experts and i % 2:
            nodes.append(fg.Linear(f"{i}.gate", n, normal(experts, columns), None))
            nodes.append(fg.Route(f"{i}.route", f"{i}.gate", top_k, renormalise))
            w1, w2 = normal(experts, hidden, columns), normal(experts, columns, hidden)
            b1, b2 = maybe(experts, hidden), maybe(experts, columns)
            nodes.append(fg.Experts(f"{i}.experts", n, f"{i}.route", w1, b1, w2, b2, form))
            nodes.append(fg.Add(f"{i}.add2", f"{i}.add1", f"{i}.experts"))
        else:
            nodes.append(fg.Linear(f"{i}.fc1", n, normal(hidden, columns), maybe(hidden)))
            nodes.append(fg.Activation(f"{i}.gelu", f"{i}.fc1", form))
            nodes.append(fg.Linear(f"{i}.fc2", f"{i}.gelu", normal(columns, hidden), maybe(columns)))
            nodes.append(fg.Add(f"{i}.add2", f"{i}.fc2", f"{i}.add1"))
        x = f"{i}.add2"
    if classes:
        nodes.append(fg.Rows("class_token", norm("norm", x), 0, 1))
        nodes.append(fg.Linear("head", "class_token", normal(classes, columns), maybe(classes)))
        outputs = [fg.Output("logits", "head", (classes,))]
    else:
        outputs = [fg.Output("tokens", x, (1, tokens, columns))]
    graph = fg.Graph({"image": image}, nodes, outputs)
    fg.verify(graph)
    return graph


def images(graph, count=4, seed=1):
    """Smooth random images [count, C, H, W] for every input."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(-1, 1, (count, *shape)).astype(np.float32)
        + rng.uniform(-0.5, 0.5, (count, 1, 1, 1)).astype(np.float32)
        for name, shape in graph.inputs.items()
    }


def change(graph, name, **fields):
    """The graph with fields of one node replaced."""
    from dataclasses import replace

    nodes = [replace(n, **fields) if n.name == name else n for n in graph.nodes]
    return fg.Graph(graph.inputs, nodes, graph.outputs)
