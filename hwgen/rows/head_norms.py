"""Norms of each head that something reads beside the scores of attention.

The machine normalises the heads of queries and keys on their way into the scores. What else reads normalised heads, such as
keys that several groups of queries share, or values, reads a norm of each head by itself, side by side.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Attention, Clip, Gather, Graph, Join, LayerNorm, Linear, Node, Rotate, shapes


def heads_apart(graph: Graph) -> Graph:
    """The graph with such norms made head by head; with a layer in front of them cut into the heads' too."""
    apart = [n for n in graph.nodes if isinstance(n, LayerNorm) and n.heads > 1 and not _held(graph, n, n.name)]
    if not apart:
        return graph
    made, widths, nodes = {n.name: n for n in graph.nodes}, shapes(graph), []
    for node in graph.nodes:
        nodes += _apart(graph, node, made.get(node.x), widths[node.x][1]) if node in apart else [node]
    read = {name for n in nodes for name in n.inputs} | {o.value for o in graph.outputs}
    return replace(graph, nodes=[n for n in nodes if n.name in read or n.name not in {a.x for a in apart}])


def _held(graph: Graph, norm: LayerNorm, name: str) -> bool:
    """Whether only scores of attention of as many heads read a norm."""
    for user in graph.users(name):
        passed = isinstance(user, Gather | Clip) or (isinstance(user, Rotate) and user.heads == norm.heads)
        scores = isinstance(user, Attention) and user.heads == norm.heads and name != user.v
        if not scores and not (passed and _held(graph, norm, user.name)):
            return False
    return all(o.value != name for o in graph.outputs)


def _apart(graph: Graph, node: LayerNorm, source: Node | None, width: int) -> list[Node]:
    alone = len(graph.users(node.x)) == 1 and node.x not in graph.ranges and all(o.value != node.x for o in graph.outputs)
    layer = source if alone and isinstance(source, Linear) else None
    depth = width // node.heads
    gamma, beta = (np.resize(table, width) for table in (node.gamma, node.beta))
    eye = np.eye(width, dtype=np.float32)
    nodes: list[Node] = []
    for h in range(node.heads):
        own = slice(h * depth, (h + 1) * depth)
        weight = np.ascontiguousarray(eye[own] if layer is None else layer.weight[own])
        bias = None if layer is None or layer.bias is None else np.ascontiguousarray(layer.bias[own])
        x = node.x if layer is None else layer.x
        nodes.append(Linear(f"{node.name}.head{h}", x, weight, bias, source=node.source if layer is None else layer.source))
        own_gamma, own_beta = np.ascontiguousarray(gamma[own]), np.ascontiguousarray(beta[own])
        nodes.append(replace(node, name=f"{node.name}.{h}", x=nodes[-1].name, gamma=own_gamma, beta=own_beta, heads=1))
    return [*nodes, Join(node.name, tuple(n.name for n in nodes[1::2]), source=node.source)]
