"""Rules for the gate of a mixture of experts: softmax, top-k, and the masks made of the chosen experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .emit import Context
from .op import Op, Unsupported, constant_argument
from .symbols import (
    Array,
    Const,
    Gate,
    Mixture,
    Renormalised,
    TopIndices,
    TopValues,
    View,
    broadcast,
    need_rows,
    need_tensor,
    positions,
)

PARTS = (Mixture, Gate, TopValues, Renormalised)


def is_part(a: View, b: View) -> bool:
    """True where a product of the two can only belong to a mixture."""
    return isinstance(a.sym, PARTS) or isinstance(b.sym, PARTS)


def top_k(ctx: Context, op: Op, values: list) -> list[View]:
    """TopK over the experts: values and indices."""
    x = values[0]
    k = int(np.ravel(constant_argument(op, values, 1, "k"))[0])
    if op.attribute("axis", -1) % len(x.shape) != len(x.shape) - 1 or not op.attribute("largest", 1):
        raise Unsupported("does not choose the largest along the last axis")
    return _top(ctx, x, k, bool(op.attribute("sorted", 1)))


def arg_max(ctx: Context, op: Op, values: list) -> View:
    """ArgMax over the experts: the index of a top-1 gate."""
    x = values[0]
    if op.attribute("axis", 0) % len(x.shape) != len(x.shape) - 1 or op.attribute("select_last_index", 0):
        raise Unsupported("does not choose the first largest along the last axis")
    index = _top(ctx, x, 1, True)[1]
    return index if op.attribute("keepdims", 1) else replace(index, shape=index.shape[:-1])


def reduce_max(ctx: Context, op: Op, values: list) -> View:
    """ReduceMax over the experts: the score of a top-1 gate."""
    x, axes = values[0], constant_argument(op, values, 1, "axes")
    if axes is None or [int(n) % len(x.shape) for n in np.atleast_1d(axes)] != [len(x.shape) - 1]:
        raise Unsupported("is not the largest along the last axis")
    top = _top(ctx, x, 1, True)[0]
    return top if op.attribute("keepdims", 1) else replace(top, shape=top.shape[:-1])


def _top(ctx: Context, x: View, k: int, ordered: bool) -> list[View]:
    gated = isinstance(x.sym, Gate)
    if not gated:
        x = ctx.plain(x)
        need_tensor(x)
    rows = need_rows(x)
    tokens = x.sym.shape[0]
    if len(x.sym.shape) != 2 or not np.array_equal(rows.reshape(-1), np.arange(tokens)):
        raise Unsupported("does not choose experts for each token")
    logits = x.sym.logits if gated else x.sym
    shape = (*x.shape[:-1], k)
    values = TopValues(logits=logits, gated=gated, ordered=ordered, shape=(tokens, k))
    indices = TopIndices(logits=logits, ordered=ordered, shape=(tokens, k))
    return [View(values, shape), View(indices, shape)]


def soft_gate(ctx: Context, x: View) -> View:
    """Softmax over tokens by experts, or over the chosen logits."""
    if isinstance(x.sym, TopValues):
        top = x.sym
        slots = x.shape[-1]
        wanted = (positions((top.shape[0], 1)) * top.shape[1] + np.arange(slots)).reshape(x.shape)
        if top.gated or x.scale != 1 or not np.array_equal(x.positions, wanted):
            raise Unsupported("is a softmax of something else than the chosen logits")
        if not (top.ordered or slots == top.shape[1]):
            raise Unsupported("uses the first of unsorted scores")
        return View(Renormalised(logits=top.logits, ordered=top.ordered, shape=(top.shape[0], slots)), x.shape)
    x = ctx.plain(x)
    need_tensor(x)
    if len(x.sym.shape) != 2 or not np.array_equal(need_rows(x).reshape(-1), np.arange(x.sym.shape[0])):
        raise Unsupported("is neither the softmax of attention nor that of a gate")
    return View(Gate(logits=x.sym, shape=x.sym.shape), x.shape)


def equal(ctx: Context, op: Op, values: list) -> View:
    """Expert indices compared with expert numbers: a mask."""
    a, b = values if isinstance(values[0], View) else values[::-1]
    if not isinstance(a.sym, TopIndices) or not isinstance(b, Const):
        raise Unsupported("compares something else than expert indices with expert numbers")
    shape = np.broadcast_shapes(a.shape, b.shape)
    return mask_of(a.sym, broadcast(a, shape).positions, np.broadcast_to(b.array, shape))


def one_hot(ctx: Context, op: Op, values: list) -> View:
    indices, depth, off_on = values
    if not isinstance(indices.sym, TopIndices) or not np.array_equal(off_on.array, [0, 1]):
        raise Unsupported("is not the one-hot form of expert indices")
    n = int(np.ravel(depth.array)[0])
    axis = op.attribute("axis", -1) % (len(indices.shape) + 1)
    experts = np.arange(n).reshape(-1, *[1] * (len(indices.shape) - axis))
    where = np.expand_dims(indices.positions, axis)
    shape = np.broadcast_shapes(where.shape, experts.shape)
    return mask_of(indices.sym, np.broadcast_to(where, shape), np.broadcast_to(experts, shape))


def mask_of(top: TopIndices, where: Array, expert: Array) -> View:
    """1 where the slots at positions `where` of `top` hold expert number `expert`."""
    tokens, k = top.shape
    count = top.logits.shape[-1]
    if not np.all((expert >= 0) & (expert < count) & (expert == np.round(expert))):
        raise Unsupported(f"compares with an expert number outside 0..{count - 1}")
    sym = Mixture(logits=top.logits, mask=True, ordered=top.ordered, shape=(tokens, k, count, 1))
    return View(sym, where.shape, where * count + expert.astype(np.int32))
