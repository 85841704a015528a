"""Columns of a value as rows, for several readers, made at once.

Heads of linear attention each take a few columns of all tokens as rows. The array holds tokens still and streams the weights
of those columns past them: few weights pass in less time than tokens take to be loaded, so heads next to each other share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..graph import Graph, Linear, Node, Rows, Transpose

MOST_ROWS = 64  # that are made at once: more hide the load of tokens no better, and more values would live at one time
LANES, CHUNK = 64, 16  # columns that the array takes at a time, of which it leaves out whole chunks without weights


def turned_at_once(graph: Graph) -> Graph:
    """The graph with transposes of layers of one value together, where these take no more columns together than alone."""
    layers = {node.name: node for node in graph.nodes if isinstance(node, Linear)}
    groups: list[list[Transpose]] = []
    last: dict[str, list[Transpose]] = {}  # by the value that the layers read
    for node in graph.nodes:
        if not isinstance(node, Transpose) or not _alone(graph, layers, node):
            continue
        x = layers[node.x].x
        if x in last and _fits(layers, last[x], node):
            last[x].append(node)
        else:
            last[x] = [node]
            groups.append(last[x])
    changed: dict[str, list[Node]] = {}
    for group in groups:
        if len(group) > 1:
            changed |= _together(layers, group)
    return replace(graph, nodes=[made for node in graph.nodes for made in changed.get(node.name, [node])])


def _alone(graph: Graph, layers: Mapping[str, Linear], node: Transpose) -> bool:
    """Whether nothing but the transpose reads the layer, whose values no file limits, and it is of few rows."""
    layer = layers.get(node.x)
    if layer is None or len(layer.weight) >= MOST_ROWS or len(graph.users(layer.name)) > 1:
        return False
    return not any(name in graph.ranges or any(o.value == name for o in graph.outputs) for name in (node.name, layer.name))


def _fits(layers: Mapping[str, Linear], group: list[Transpose], node: Transpose) -> bool:
    weights = [layers[n.x].weight for n in (*group, node)]
    if sum(map(len, weights)) > MOST_ROWS:
        return False
    return _steps(np.concatenate(weights)) <= max(_steps(w) for w in weights)


def _steps(weight: np.ndarray) -> int:
    """Steps of the array for the columns that have weights."""
    used = np.flatnonzero(weight.any(axis=0)) // CHUNK
    return -(-int(used[-1] - used[0] + 1) * CHUNK // LANES) if used.size else 1


def _together(layers: Mapping[str, Linear], group: list[Transpose]) -> dict[str, list[Node]]:
    """What takes the place of the layers and transposes of a group, by their names."""
    parts = [layers[n.x] for n in group]
    weight = np.concatenate([p.weight for p in parts])
    bias = None
    if any(p.bias is not None for p in parts):
        bias = np.concatenate([np.zeros(len(p.weight), np.float32) if p.bias is None else p.bias for p in parts])
    first = replace(parts[0], name=f"{parts[0].name}.together", weight=weight, bias=bias)
    whole = replace(group[0], name=f"{group[0].name}.together", x=first.name)
    ends = np.cumsum([len(p.weight) for p in parts]).tolist()
    made: dict[str, list[Node]] = {p.name: [] for p in parts[1:]} | {parts[0].name: [first]}
    for node, start, stop in zip(group, [0, *ends], ends, strict=False):
        made[node.name] = [Rows(node.name, whole.name, start, stop, source=node.source)]
    made[group[0].name].insert(0, whole)
    return made
