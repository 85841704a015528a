"""Constant mixtures of tokens, the same for every channel: resampling of maps along an axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph
from ..resampling import Axis, Resampling, axis_of, same
from ..tensor import Node
from .lower import Rows
from .moves import gathered, value
from .operands import kept
from .views import Array, Place, View

MOST_WEIGHTS = 16  # different rows of weights
MOST_TAPS = 16  # tokens from the first to the last that one is mixed of
FEW_TAPS, MOST_ROWS = 4, 6144  # the same, and rows of the scratchpad for parameters, where weights are as many as outputs
MOST_FULL = 0.75  # part of the weights that are not zero: two tokens made four have so many
MOST_PRODUCTS = 3  # tokens that one is mixed of by sums of products


@dataclass(eq=False)
class Mixed:
    """A linear layer of which each row reads one channel of several tokens.

    view    [tokens of the result without the mixed axis, mixed axis, channels] of what is read
    place   of the layer's value [rows, outputs]
    outputs_first   tokens of the value run over the outputs first, then over the others
    axis    the resampling that it is; None where it is none of few kinds of weights
    """

    view: View
    place: Place
    outputs_first: bool
    axis: Axis | None


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
    axis = _axis(weight)
    if axis is None and (weight != 0).sum(axis=1).max() > MOST_PRODUCTS:
        return None
    outputs = node.shape[1]
    first = each > 1 and abs(int(rows[0, 1, 0] - rows[0, 0, 0])) > abs(int(rows[1, 0, 0] - rows[0, 0, 0]))
    j, o, c = np.meshgrid(np.arange(each), np.arange(outputs), np.arange(width), indexing="ij")
    token = o * each + j if first else j * outputs + o
    order = (0, 2, 1) if inner else (2, 0, 1)
    at = token.transpose(order).reshape(-1), c.transpose(order).reshape(-1)
    return Mixed(own, Place(each * outputs, width, at=at), first, axis)


def resamples(b: Rows, node: Node) -> bool:
    """Whether tokens are mixed of few others each, such as the rows of a map that is resized: not heads of all heads."""
    found = mixed(b, node)
    return found is not None and found.axis is not None and bool((found.axis.matrix != 0).mean() <= MOST_FULL)


def _split(view: View, shape: tuple[int, ...]) -> tuple[Array, Array, Array | None]:
    rows, columns = (np.broadcast_to(a, view.shape).reshape(shape) for a in (view.rows, view.columns))
    return rows, columns, None if view.which is None else np.broadcast_to(view.which, view.shape).reshape(shape)


def mix(b: Rows, node: Node, start: int, stop: int) -> str:
    return b.rows_of(node, start, stop, lambda: _mix(b, node))


def _mix(b: Rows, node: Node) -> str:
    """Tokens moved, a resampling, or sums of products."""
    found = mixed(b, node)
    assert found is not None
    weight = b.array(node.operands[1], "its weight")
    if found.axis is None:
        return _weighted(b, node, found, weight)
    if found.axis.weights.shape[1] > 1 or not (found.axis.weights == 1).all():
        return _plus(b, node, found, _resampled(b, node, found, found.axis))
    each, tokens, _ = found.view.shape
    rows = np.arange(tokens * each)
    table = (rows.reshape(tokens, each) if found.outputs_first else rows.reshape(each, tokens).T)[found.axis.first]
    rows = (table if found.outputs_first else table.T).reshape(-1)
    return _plus(b, node, found, gathered(b, node, _read(b, node, found), rows, tokens * each))


def _read(b: Rows, node: Node, found: Mixed) -> str:
    """The map that is read, row-major as what is made of it."""
    return value(b, node, kept(found.view.group([1, 0] if found.outputs_first else [0, 1], [2])))


def _resampled(b: Rows, node: Node, found: Mixed, axis: Axis) -> str:
    each = found.view.shape[0]
    made = Resampling(axis, same(each)) if found.outputs_first else Resampling(same(each), axis)
    return b.add(graph.Resample, node, "", "resampled", x=_read(b, node, found), resampling=made)


def _axis(weight: Array) -> Axis | None:
    """The resampling that a matrix is, where its outputs are of few tokens and few kinds; None for others."""
    axis = axis_of(weight)
    taps = axis.weights.shape[1]
    if taps > MOST_TAPS:
        return None
    kinds = len(axis.spans)
    few = len({span.weights for span in axis.spans}) <= MOST_WEIGHTS
    return axis if few or (taps <= FEW_TAPS and kinds * (2 + taps) <= MOST_ROWS) else None


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
