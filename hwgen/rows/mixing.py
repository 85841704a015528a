"""Constant mixtures of tokens, the same for every channel: resampling of maps along an axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph
from ..resampling import SAME, Axis, Resampling
from ..tensor import Node
from .lower import Rows
from .moves import gathered, stacked, value
from .operands import kept
from .views import Array, Place, View

MOST_WEIGHTS = 16  # different rows of weights
MOST_TAPS = 16  # tokens that one is mixed of
MOST_PRODUCTS = 3  # tokens that one is mixed of, where each is of its own weights
MOST_PHASES = 64  # of a map made larger by a whole number
EQUAL = 1e-6  # of the largest weight: sums of weights that an edge has in one


@dataclass(eq=False)
class Mixed:
    """A linear layer of which each row reads one channel of several tokens.

    view    [tokens of the result without the mixed axis, mixed axis, channels] of what is read
    place   of the layer's value [rows, outputs]
    outputs_first   tokens of the value run over the outputs first, then over the others
    phases  of a map that is made larger by a whole number, with its edges repeated; None for others
    """

    view: View
    place: Place
    outputs_first: bool
    phases: Axis | None


def mixed(b: Rows, node: Node) -> Mixed | None:
    """None where a linear layer reads channels of one token, or several channels of several, or mixes so many tokens that it
    is a product with the transposed value."""
    return b.once("mixed", node, lambda: _mixed(b, node))


def _mixed(b: Rows, node: Node) -> Mixed | None:
    view = b.view(node.operands[0])
    count, taps = view.shape
    if taps < 2 or view.columns.shape[0] == 1 or b.lost(view) or (view.columns != view.columns[:, :1]).any():
        return None
    columns = view.columns[:, 0]
    width = int(columns.max()) + 1
    if count % width or width == 1:
        return None
    each = count // width
    if np.array_equal(columns, np.tile(np.arange(width), each)):
        own = View(view.sources, (each, width, taps), *_split(view, (each, width, taps))).group([0], [2], [1])
        inner = True
    elif np.array_equal(columns, np.repeat(np.arange(width), each)):
        own = View(view.sources, (width, each, taps), *_split(view, (width, each, taps))).group([1], [2], [0])
        inner = False
    else:
        return None
    rows = np.broadcast_to(own.rows, own.shape)
    if (rows != rows[:, :, :1]).any():
        return None
    weight = b.array(node.operands[1], "its weight")
    phases = _phases(weight)
    if phases is None and not _in_windows(weight) and (weight != 0).sum(axis=1).max() > MOST_PRODUCTS:
        return None
    outputs = node.shape[1]
    first = each > 1 and abs(int(rows[0, 1, 0] - rows[0, 0, 0])) > abs(int(rows[1, 0, 0] - rows[0, 0, 0]))
    j, o, c = np.meshgrid(np.arange(each), np.arange(outputs), np.arange(width), indexing="ij")
    token = o * each + j if first else j * outputs + o
    order = (0, 2, 1) if inner else (2, 0, 1)
    at = token.transpose(order).reshape(-1), c.transpose(order).reshape(-1)
    return Mixed(own, Place(each * outputs, width, at=at), first, phases)


def _spans(weight: Array) -> list[tuple[int, int]]:
    """First and end of what has weight, of each output."""
    used = [np.flatnonzero(row) for row in weight]
    return [(int(u[0]), int(u[-1]) + 1) if len(u) else (0, 1) for u in used]


def _in_windows(weight: Array) -> bool:
    """Whether a few windows make every output."""
    spans = _spans(weight)
    forms = {weight[o, first:end].tobytes() for o, (first, end) in enumerate(spans)}
    return max(end - first for first, end in spans) <= MOST_TAPS and len(forms) <= MOST_WEIGHTS


def resamples(b: Rows, node: Node) -> bool:
    """Whether tokens are mixed of few others each, such as the rows of a map that is resized."""
    weight, found = node.operands[1], mixed(b, node)
    if found is None or weight.constant is None:
        return False
    if found.phases is not None:
        return True
    numbers = b.array(weight)
    return bool((numbers != 0).sum(axis=1).max(initial=0) <= min(MOST_TAPS, numbers.shape[1] // 2))


def _split(view: View, shape: tuple[int, ...]) -> tuple[Array, Array, Array | None]:
    rows, columns = (np.broadcast_to(a, view.shape).reshape(shape) for a in (view.rows, view.columns))
    return rows, columns, None if view.which is None else np.broadcast_to(view.which, view.shape).reshape(shape)


def mix(b: Rows, node: Node, start: int, stop: int) -> str:
    return b.rows_of(node, start, stop, lambda: _mix(b, node))


def _mix(b: Rows, node: Node) -> str:
    """One window for each form that the weights of an output have, over the map: resampling by a whole number has few."""
    found = mixed(b, node)
    assert found is not None
    weight = b.array(node.operands[1], "its weight")
    each, tokens, width = found.view.shape
    if found.phases is not None and found.phases.weights.shape[1] > 1:  # of one token each they are moved
        return _plus(b, node, found, _larger(b, node, found, found.phases))
    if not _in_windows(weight):
        return _weighted(b, node, found, weight)
    spans = _spans(weight)
    forms: dict[bytes, list[int]] = {}
    for o, (first, end) in enumerate(spans):
        forms.setdefault(weight[o, first:end].tobytes(), []).append(o)

    def table(positions: int) -> Array:
        """Row of each [position along the mixed axis, place beside it] in a map that runs as the layer's value does."""
        rows = np.arange(positions * each)
        return rows.reshape(positions, each) if found.outputs_first else rows.reshape(each, positions).T

    def tall(positions: int) -> tuple[int, int]:
        return (positions, each) if found.outputs_first else (each, positions)

    names: list[str] = []
    order, total = np.zeros((len(weight), each), np.int64), 0

    def windowed(outputs: list[int] | slice, starts: Array, numbers: Array, tokens: Array) -> None:
        """Outputs of the same weights, from the first token of each among those `tokens` of the mixed axis."""
        nonlocal total
        count = len(numbers)
        step = int(np.gcd.reduce(np.diff(starts), initial=0)) or 1
        if begin := int(starts.min()) % step if count > 1 else 0:  # a map that need not be cut is read where it is
            tokens, starts = tokens[begin : int(starts.max()) + count], starts - begin
        part = found.view.map(lambda a: a[:, tokens])
        x = value(b, node, kept(part.group([1, 0] if found.outputs_first else [0, 1], [2])))
        positions = len(tokens)
        if count > 1 or numbers[0] != 1:
            kernel, stride = ((n, 1) if found.outputs_first else (1, n) for n in (count, step))
            taps = b.intern(np.broadcast_to(numbers.reshape(*kernel, 1), (*kernel, width)))
            fields = {"size": tall(positions), "kernel": kernel, "stride": stride, "weight": taps}
            x = b.add(graph.Window, node, "", "mix", x=x, form="weighted", **fields)
            starts, positions = starts // step, (positions - count) // step + 1
        names.append(x)
        order[outputs] = total + table(positions)[starts]
        total += positions * each

    for own in forms.values():
        first, end = spans[own[0]]
        windowed(own, np.array([spans[o][0] for o in own]), weight[own[0], first:end], np.arange(tokens))
    rows = (order if found.outputs_first else order.T).reshape(-1)
    return _plus(b, node, found, gathered(b, node, stacked(b, node, names), rows, total))


def _larger(b: Rows, node: Node, found: Mixed, axis: Axis) -> str:
    """A map made larger along one axis."""
    each, tokens, _ = found.view.shape
    x = value(b, node, kept(found.view.group([1, 0] if found.outputs_first else [0, 1], [2])))
    larger = Resampling((tokens, each), axis, SAME) if found.outputs_first else Resampling((each, tokens), SAME, axis)
    return b.add(graph.Resample, node, "", "larger", x=x, resampling=larger)


def _phases(weight: Array) -> Axis | None:
    """A map made larger by a whole number, with its edges repeated; None where it is none."""
    outputs, tokens = weight.shape
    count = outputs // tokens
    if outputs % tokens or count < 2 or count > MOST_PHASES:
        return None
    spans = _spans(weight)
    own = [range(p, outputs, count) for p in range(count)]  # of each phase the output farthest from edges
    inner = [max(of, key=lambda o: (spans[o][1] - spans[o][0], -abs(2 * o - outputs))) for of in own]
    taps = max(spans[o][1] - spans[o][0] for o in inner)
    if taps > MOST_TAPS:
        return None
    weights = np.zeros((count, taps), np.float32)
    for p, o in enumerate(inner):
        first, end = spans[o]
        weights[p, : end - first] = weight[o, first:end]
    axis = Axis(weights, tuple(spans[o][0] - o // count for o in inner))
    return axis if np.abs(axis.matrix(tokens) - weight).max() <= EQUAL * np.abs(weight).max() else None


def _weighted(b: Rows, node: Node, found: Mixed, weight: Array) -> str:
    """A sum of tokens times constants, where few are mixed: resampling by any step."""
    used = [np.flatnonzero(row) for row in weight]
    count = max(len(u) for u in used)
    each, _, width = found.view.shape
    total = ""
    for i in range(count):
        taps = np.array([u[min(i, len(u) - 1)] if len(u) else 0 for u in used])
        gains = np.array([weight[o, u[i]] if i < len(u) else 0 for o, u in enumerate(used)], np.float32)
        part = found.view.map(lambda a, taps=taps: a[:, taps])  # type: ignore[misc]
        part = part.group([1, 0], [2]) if found.outputs_first else part.group([0, 1], [2])
        table = np.repeat(gains, each) if found.outputs_first else np.tile(gains, each)
        x = b.times(node, value(b, node, kept(part)), np.repeat(table[:, None], width, axis=1))
        total = b.add(graph.Add, node, "", "add", a=total, b=x) if total else x
    return _plus(b, node, found, total)


def _plus(b: Rows, node: Node, found: Mixed, y: str) -> str:
    """The bias of each output."""
    each, _, width = found.view.shape
    if len(node.operands) == 2:
        return y
    bias = b.array(node.operands[2])
    terms = np.repeat(bias, each) if found.outputs_first else np.tile(bias, each)
    return b.plus(node, y, np.repeat(terms[:, None], width, axis=1))
