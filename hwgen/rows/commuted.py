"""Linear layers in front of maps that are made larger, joined with the one behind: resampling mixes tokens of one channel, a
linear layer channels of one token, so that either may come first.

A decoder projects several maps to one width, makes them equally large, and fuses them side by side. The projections go behind,
into the layer that fuses: narrower maps are made larger, and what is as large as the largest is multiplied once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import walks
from ..graph import Gather, Graph, Join, Linear, Node, Resample, Rows, Stack, Window, shapes

Array = np.ndarray
WHOLE = 16  # columns of values side by side lie without a gap where all have a multiple of so many
EQUAL = 1e-5  # what a sum of weights may differ from one


@dataclass(eq=False)
class _Side:
    """One of the values that are joined: `chain` of nodes that mix tokens alike in every channel, behind the layer `first`."""

    name: str
    chain: list[Node]
    first: Linear | None


def commuted(graph: Graph) -> Graph:
    """The graph with such projections in the layers behind, where that saves multiplications."""
    made = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        join = made.get(node.x) if isinstance(node, Linear) else None
        if isinstance(node, Linear) and isinstance(join, Join) and (found := _behind(graph, made, join, node)) is not None:
            graph = found
            made = {node.name: node for node in graph.nodes}
    return graph


def _behind(graph: Graph, made: dict[str, Node], join: Join, last: Linear) -> Graph | None:
    if len(graph.users(join.name)) > 1 or _held(graph, join.name):
        return None
    sides = [_side(graph, made, name, join) for name in join.xs]
    known = shapes(graph)
    widths = [known[name][1] for name in join.xs]
    moved = [s.first is not None and s.first.weight.shape[1] <= width for s, width in zip(sides, widths, strict=True)]
    if not any(m and s.chain for m, s in zip(moved, sides, strict=True)) or last.name in graph.ranges:
        return None
    narrow = [s.first.weight.shape[1] if m and s.first else width for m, s, width in zip(moved, sides, widths, strict=True)]
    if np.gcd.reduce(narrow) % WHOLE and np.gcd.reduce(narrow) < np.gcd.reduce(widths):
        return None
    bias = np.zeros(len(last.weight), np.float64) if last.bias is None else last.bias.astype(np.float64)
    parts = np.split(np.asarray(last.weight, np.float64), np.cumsum(widths)[:-1], axis=1)
    changed: dict[str, Node | None] = {}
    names: list[str] = []
    for k, (s, here) in enumerate(zip(sides, moved, strict=True)):
        names.append(s.name)
        if not here or s.first is None:
            continue
        if s.first.bias is not None:
            if not _keeps_sums(s, known):
                return None
            bias = bias + parts[k] @ s.first.bias
        parts[k] = parts[k] @ s.first.weight
        changed[s.first.name] = None
        names[k] = s.name if s.chain else s.first.x
        for node in s.chain:
            changed[node.name] = _narrowed(node, s.first, narrow[k])
    weight = np.concatenate(parts, axis=1).astype(np.float32)
    term = bias.astype(np.float32) if bias.any() or last.bias is not None else None
    changed |= {join.name: replace(join, xs=tuple(names)), last.name: replace(last, weight=weight, bias=term)}
    nodes = [changed.get(node.name, node) for node in graph.nodes]
    return replace(graph, nodes=[node for node in nodes if node is not None])


def _held(graph: Graph, name: str) -> bool:
    """Whether a value must stay as it is: it is an output, or a file limits it."""
    return name in graph.ranges or any(o.value == name for o in graph.outputs)


def _side(graph: Graph, made: dict[str, Node], name: str, join: Join) -> _Side:
    """What one of the values is made of, as far as nothing else reads it."""
    none = _Side(name, [], None)
    inside: dict[str, Node] = {}
    leaves: dict[str, Node] = {}
    todo = [name]
    while todo:
        at = todo.pop()
        node = made.get(at)
        if node is None or _held(graph, at):
            return none
        mixes = isinstance(node, Gather | Resample | Rows | Stack) or (isinstance(node, Window) and _alike(node))
        (inside if mixes else leaves)[at] = node
        todo += [x for x in node.inputs if x not in inside and x not in leaves] if mixes else []
    (first, *more) = leaves.values()
    if more or not isinstance(first, Linear):
        return none
    readers = {join.name, *inside}
    if any(user.name not in readers for at in (*inside, first.name) for user in graph.users(at)) or join.xs.count(name) > 1:
        return none
    return _Side(name, [node for node in graph.nodes if node.name in inside], first)


def _alike(node: Window) -> bool:
    """Whether a window mixes tokens alike in every channel."""
    return node.form == "weighted" and node.bias is None and node.weight is not None and not np.ptp(node.weight, axis=2).any()


def _keeps_sums(s: _Side, known: dict[str, tuple[int, ...]]) -> bool:
    """Whether a number that is in all tokens of what a chain reads is in all that it makes."""
    assert s.first is not None
    values: dict[str, Array] = {s.first.name: np.ones((known[s.first.name][0], 1))}
    for node in s.chain:
        x = [values[name] for name in node.inputs]
        if isinstance(node, Stack):
            values[node.name] = np.concatenate(x)
        elif isinstance(node, Gather):
            values[node.name] = walks.taken(x[0], node.rows)
        elif isinstance(node, Rows):
            values[node.name] = x[0][node.start : node.stop]
        elif isinstance(node, Resample):
            values[node.name] = node.resampling.evaluate(x[0])
        else:
            assert isinstance(node, Window) and node.weight is not None
            rows = walks.window(node.size, node.kernel, node.stride, node.pads, node.dilation).x_rows()
            values[node.name] = np.tensordot(node.weight.reshape(len(rows), -1)[:, 0], walks.taken(x[0], rows), 1)
    return bool(np.abs(values[s.name] - 1).max() < EQUAL)


def _narrowed(node: Node, first: Linear, width: int) -> Node:
    """A node of a chain on what the first layer reads."""
    if isinstance(node, Stack):
        return replace(node, xs=tuple(first.x if x == first.name else x for x in node.xs))
    assert isinstance(node, Gather | Resample | Rows | Window)
    moved = replace(node, x=first.x if node.x == first.name else node.x)
    if isinstance(moved, Window) and moved.weight is not None:
        return replace(moved, weight=np.ascontiguousarray(np.broadcast_to(moved.weight[..., :1], (*moved.kernel, width))))
    return moved
