"""Sums and largest elements that no layer is made of: over rows, over columns, over both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .. import graph
from ..layers import Pool
from ..recognise.match import is_map
from ..tensor import Layout, Node, Reduce
from ..tensor.layout import Axis
from .lower import GONE, Rows
from .maps import Pooled, pooled_of, window_of, windows_of
from .moves import value
from .operands import Operand
from .views import Array, Place, Unsupported, as_tokens


@dataclass(eq=False)
class Reduced:
    """A sum or a largest over rows, or a sum over all columns, of a value of any axes."""

    place: Place
    pooled: Pooled | None  # None: over columns
    operand: Operand | None


def in_turns(b: Rows, node: Node) -> Node | None:
    """The same over channels first and then over tokens, where it is over both; None where it is over one kind of them."""

    def made() -> Node | None:
        (x,), op = node.operands, node.op
        if op.function not in ("sum", "max") or node.dtype != "f":
            return None
        axes: list[Axis] = []
        over: list[int] = []
        for i, loops in enumerate(x.layout.axes):  # each loop an axis of its own
            parts = [loops] if i not in op.axes or len(loops) < 2 else [(loop,) for loop in loops]
            over += range(len(axes), len(axes) + len(parts)) if i in op.axes else []
            axes += parts
        x = x.move(Layout(tuple(axes), x.layout.offset))
        view = b.view(x)
        if b.lost(view):
            return None
        _, order, split = as_tokens(view)
        over = [i for i in over if x.shape[i] > 1]
        first = [i for i in over if i in order[split:]]
        if not first or (len(first) == len(over) and len(axes) == len(node.shape)):
            return None
        b.t.name, b.t.source = node.name, node.source
        y = b.t.reduce(op.function, x, first)
        rest = [i for i in over if i not in first]
        y = b.t.reduce(op.function, y, rest) if rest else y
        return b.t.reshape(y, node.shape).node

    return b.once("in turns", node, made)


def reduced(b: Rows, node: Node) -> Reduced:
    return b.once("reduced", node, lambda: _reduced(b, node))


def _reduced(b: Rows, node: Node) -> Reduced:
    (x,), op = node.operands, node.op
    if op.function not in ("sum", "max") or node.dtype != "f":
        raise Unsupported(f"takes the {op.function} over elements", "only sums and the largest are taken")
    view = b.view(x)
    if b.lost(view):
        return Reduced(Place(node.size // node.shape[-1], node.shape[-1]), None, None)
    _, order, split = as_tokens(view)
    down, across = order[:split], order[split:]
    over = [i for i in op.axes if x.shape[i] > 1]
    sums = op.function == "sum" and set(across) == set(over) | {i for i in across if x.shape[i] == 1}
    if over and not sums and all(i in across for i in over):  # rows are channels: of the transposed value
        down, across = across, down
    rows_left = [i for i in down if i not in over]
    where: list[Array]
    if all(i in down for i in over):
        standing = b.upright(view.group(rows_left, [i for i in down if i in over], across), 2)
        pooled = pooled_of(standing, "max" if op.function == "max" else "sum")
        count, width = pooled.view.shape[0], pooled.view.shape[2]
        operand, axes = None, rows_left + across
    elif sums:
        pooled, operand = None, b.kept(view.group(down, across))
        count, width, axes = operand.rows, 1, down
    else:
        what = "averages over channels" if op.function == "sum" else "takes the largest of channels"
        raise Unsupported(f"{what} of which others stay", "only tokens, or all channels of each, can be averaged")
    shape = [x.shape[i] for i in axes]
    where = [np.broadcast_to(a, (count, width)).reshape(shape) for a in (np.arange(count)[:, None], np.arange(width)[None])]
    left = [i for i in range(len(x.shape)) if i in axes]
    turned = [a.transpose([axes.index(i) for i in left]).reshape(-1) for a in where]
    return Reduced(Place(count, width, at=(turned[0], turned[1])), pooled, operand)


def reduce_place(b: Rows, node: Node) -> Place:
    if (inner := in_turns(b, node)) is not None:
        return b.place(inner)
    return reduced(b, node).place


def reduction(b: Rows, node: Node, start: int, stop: int) -> str:
    if (inner := in_turns(b, node)) is not None:
        return b.value(inner, start, stop)
    found = reduced(b, node)
    if found.pooled is not None:
        return windows_of(b, node, found.pooled, "max" if node.op.function == "max" else "weighted", start, stop)
    if found.operand is None:
        return GONE
    x, ones = value(b, node, found.operand, start, stop), np.ones((1, found.operand.width), np.float32)
    return b.add(graph.Linear, node, node.name, "sum", x=x, weight=b.intern(ones), bias=None)


def mean_of(b: Rows, node: Node, operand: Operand, table: Array) -> Callable[[], str] | None:
    """A sum or mean over windows times constants [rows or 1, 1]: the mean over what of them lies in the map, or over all."""
    source = operand.plain
    if source is None or table.shape[1] != 1:
        return None
    inner, columns, first = source
    if is_map(inner, "mul") and (number := next((r.scalar for r in inner.operands if r.scalar is not None), None)) is not None:
        b.place(inner)
        (below,) = b.arranged[inner].operands
        same = below.rows == operand.rows and not first and np.array_equal(columns, np.arange(below.width))
        return mean_of(b, node, below, table * number) if same else None
    place = b.place(inner)
    if first or operand.rows != place.rows or not np.array_equal(columns, np.arange(place.width)):
        return None
    if isinstance(inner.op, Pool) and inner.op.form == "mean":
        pooled: Pooled | None = pooled_of(b.view(inner.operands[0]), "mean")
        table = table / inner.operands[0].shape[1]
    elif isinstance(inner.op, Reduce) and inner.op.function == "sum" and in_turns(b, inner) is None:
        pooled = reduced(b, inner).pooled
    else:
        return None
    if pooled is None:
        return None
    for count_pads in (True, False):
        counts = pooled.rows.shape[1] if count_pads else (pooled.rows >= 0).sum(axis=1, keepdims=True)
        if np.allclose(table * counts, 1, rtol=1e-5):
            return partial(window_of, b, node, pooled, "mean", count_pads)
    return None


KINDS = {Reduce: (reduce_place, reduction)}
