"""Convolutions of many values side by side, whose rows no memory of a board holds together: a convolution of each of them, and
the sum of these.

A decoder fuses the maps of a pyramid, all made as large as the largest, by one convolution (UperNet: Xiao et al. 2018). Its
smallest band reads as many rows of pixels as its kernel is high, of all values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Add, Conv, Graph, Join, Node, shapes
from ..naming import claimed

BAND = 1 << 18  # numbers that one band may read: half a bank of the largest board's scratchpad


def one_by_one(graph: Graph) -> Graph:
    """The graph with a convolution of each of such values."""
    made = {node.name: node for node in graph.nodes}
    known = shapes(graph)
    names = {*made, *graph.inputs}
    nodes: list[Node] = []
    for node in graph.nodes:
        join = made.get(node.x) if isinstance(node, Conv) else None
        limited = not graph.ranges.keys().isdisjoint((node.name, *node.inputs))
        if isinstance(node, Conv) and isinstance(join, Join) and _band(node) > BAND and not limited:
            nodes += _of_each(node, join, [known[name][1] for name in join.xs], names)
        else:
            nodes.append(node)
    read = {name for node in nodes for name in node.inputs} | {output.value for output in graph.outputs}
    return replace(graph, nodes=[n for n in nodes if n.name in read or not isinstance(n, Join)])


def _band(node: Conv) -> int:
    """Numbers that one row of results is made of."""
    _, height, _, columns = node.weight.shape
    return int(height * node.size[1] * columns)


def _of_each(node: Conv, join: Join, widths: list[int], names: set[str]) -> list[Node]:
    """The convolutions of the values and their sums, the last of which has the name of the whole."""
    ends = np.cumsum(widths)[:-1]
    parts = [np.ascontiguousarray(part) for part in np.split(node.weight, ends, axis=3)]
    found: list[Node] = []
    total = ""
    for k, (x, weight) in enumerate(zip(join.xs, parts, strict=True)):
        part = replace(node, name=claimed(f"{node.name}.of{k}", names), x=x, weight=weight, bias=None if k else node.bias)
        found.append(part)
        last = k == len(parts) - 1
        if k:
            name = node.name if last else claimed(f"{node.name}.to{k}", names)
            found.append(Add(name, total, part.name, source=node.source))
        total = found[-1].name
    return found
