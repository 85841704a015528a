"""Values side by side that are better made as one, or one by one.

Constant columns beside those of a linear layer, such as the ones that linear attention sums its weights by, are outputs of it
with a bias and no weights. What acts on every element of several products side by side acts on each of them as it is made. A
layer that has weights for one of several values side by side alone, as one that picks a head out of many does, reads that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..graph import Activation, Conv, Embed, Graph, Join, Linear, Node, Window, shapes

MADE = Conv | Linear | Window  # what an activation is a step of


def beside(graph: Graph) -> Graph:
    """The graph with such values made in another way."""
    made: dict[str, Node] = {}
    known = shapes(graph)
    for node in graph.nodes:
        found = [node]
        if isinstance(node, Join):
            found = [_with_constants(node, made, graph) or node]
        elif isinstance(node, Activation):
            found = _each(node, made, graph) or [node]
        elif isinstance(node, Linear):
            found = [_of_one(node, made, known)]
        made |= {n.name: n for n in found}
        known |= {n.name: known[n.x] for n in found if isinstance(n, Activation)}
    return replace(graph, nodes=list(made.values()))


def _with_constants(node: Join, made: Mapping[str, Node], graph: Graph) -> Linear | None:
    """A linear layer that makes constant columns too; None where one of a Join's operands is neither."""
    columns = [_columns(made.get(name)) for name in node.xs]
    layers = [layer for name in node.xs if isinstance(layer := made.get(name), Linear)]
    if len(layers) != 1 or sum(c is not None for c in columns) != len(node.xs) - 1 or node.name in graph.ranges:
        return None
    (layer,) = layers
    if layer.name in graph.ranges or any(o.value == layer.name for o in graph.outputs):
        return None
    weights, biases = [], []
    for column in columns:
        if column is None:
            weights.append(layer.weight)
            biases.append(np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias)
        else:
            weights.append(np.zeros((len(column), layer.weight.shape[1]), np.float32))
            biases.append(column)
    return Linear(node.name, layer.x, np.concatenate(weights), np.concatenate(biases), source=node.source)


def _columns(node: Node | None) -> np.ndarray | None:
    """The numbers of a value that is the same constant row for all tokens."""
    if not isinstance(node, Embed) or len(node.prefix) or not len(node.position) or np.ptp(node.position, axis=0).any():
        return None
    return np.ascontiguousarray(node.position[0], np.float32)


def _each(node: Activation, made: Mapping[str, Node], graph: Graph) -> list[Node] | None:
    """The activation of each of the products that a Join holds, and a Join of these; None where it holds something else."""
    parts: list[str] = []
    todo = [node.x]
    while todo:
        part = made.get(name := todo.pop(0))
        if name in graph.ranges:
            return None
        if isinstance(part, Join):
            todo[:0] = part.xs
        elif isinstance(part, MADE):
            parts.append(name)
        else:
            return None
    if len(parts) < 2 or node.name in graph.ranges:
        return None
    acts: list[Node] = [replace(node, name=f"{node.name}.{i}", x=name) for i, name in enumerate(parts)]
    return [*acts, Join(node.name, tuple(act.name for act in acts), source=node.source)]


def _of_one(node: Linear, made: Mapping[str, Node], known: dict[str, tuple[int, ...]]) -> Linear:
    """The layer on the one of the values that a Join holds for which it has weights; as it is where these are several."""
    join = made.get(node.x)
    if not isinstance(join, Join):
        return node
    ends = np.cumsum([known[name][1] for name in join.xs])
    used = np.flatnonzero(node.weight.any(axis=0))
    which = np.unique(np.searchsorted(ends, used, side="right"))
    if len(which) != 1:
        return node
    k = int(which[0])
    weight = np.ascontiguousarray(node.weight[:, ends[k - 1] if k else 0 : ends[k]])
    return _of_one(replace(node, x=join.xs[k], weight=weight), made, known)
