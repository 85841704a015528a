"""What the window engine does instead of the array, where a graph has windows anyhow.

Means of maps are windows over all of them: the engine sums rows of 16 bits as they stand, where the array first turns tokens into
columns by a product with the identity of all channels. Gains of channels are windows of one tap: the array would multiply by all
zeros around them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Conv, Gather, Graph, Join, Linear, Mean, Multiply, Node, Rows, Stack, Window, shapes

MOST_AT_ONCE = 256  # rows that one window sums; of more, windows side by side first, whose means are those of a smaller map
MOST_SIDE = 16
LEAST_CHANNELS = 64  # of which the array takes no fewer at a time
TAKES = Conv | Gather | Join | Linear | Multiply | Rows | Stack | Window  # what reads a window's rows as those of a product


def by_windows(graph: Graph) -> Graph:
    """The graph with means of rows that make a map as means of windows, and gains as windows, if it has windows of its own."""
    if not any(isinstance(node, Window) for node in graph.nodes):
        return graph
    nodes: list[Node] = []
    rows = shapes(graph)
    for node in graph.nodes:
        if isinstance(node, Mean):
            nodes += _windows(node, rows[node.x][0]) or [node]
        elif isinstance(node, Linear) and (gain := _gain(graph, node, rows[node.x][0])) is not None:
            nodes.append(gain)
        else:
            nodes.append(node)
    return replace(graph, nodes=nodes)


def _gain(graph: Graph, node: Linear, rows: int) -> Window | None:
    """A layer that multiplies each channel of a map by a number, as a window; None of others, and of those that a sum takes."""
    gain = np.diagonal(node.weight)
    if rows == 1 or len(gain) < LEAST_CHANNELS or len(node.weight) != node.weight.shape[1]:
        return None
    if np.count_nonzero(node.weight) != np.count_nonzero(gain) or ((gain == 1).all() and node.bias is None):
        return None
    if any(o.value == node.name for o in graph.outputs) or not all(isinstance(n, TAKES) for n in graph.users(node.name)):
        return None
    weight = np.ascontiguousarray(gain[None, None])
    return Window(node.name, node.x, "weighted", (rows, 1), (1, 1), weight=weight, bias=node.bias, source=node.source)


def _windows(node: Mean, total: int) -> list[Node] | None:
    """None where the rows make no map of sides that windows cover."""
    count, name, x = node.stop - node.start, node.name, node.x
    steps: list[tuple[int, int]] = []
    height = next((n for n in range(int(count**0.5), 0, -1) if count % n == 0), 1)
    side = height, count // height
    while side[0] * side[1] > MOST_AT_ONCE or max(side) > MOST_SIDE:
        step = _most(side[0]), _most(side[1])
        if step == (1, 1):
            return None
        steps.append(step)
        side = side[0] // step[0], side[1] // step[1]
    if side == (1, 1) and not steps:
        return None
    steps += [side] if side != (1, 1) else []
    made: list[Node] = []
    if (node.start, count) != (0, total):
        made.append(Rows(f"{name}.rows", x, node.start, node.stop, source=node.source))
        x = made[-1].name
    size = height, count // height
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        made.append(Window(name if last else f"{name}.part{i}", x, "mean", size, step, step, source=node.source))
        x, size = made[-1].name, (size[0] // step[0], size[1] // step[1])
    return made


def _most(side: int) -> int:
    """The largest part of a side that a window takes at once."""
    return max(n for n in range(1, MOST_SIDE + 1) if side % n == 0)
