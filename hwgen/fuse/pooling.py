"""Rules for what averages or sums: over tokens, over branches, over channels as a step of LayerNorm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import dispatch
from .elementwise import add
from .emit import Context
from .op import Op, Unsupported, constant_argument
from .params import label_of
from .symbols import TENSORS, Branches, Mean, Poly, Pooled, Square, Variance
from .views import View, need_rows, need_tensor, reshaped, token_layout


def reduced_axes(op: Op, values: list) -> list[int]:
    """Axes over which a Reduce operator goes, rising; all where none are given."""
    rank = len(values[0].shape)
    axes = constant_argument(op, values, 1, "axes")
    if axes is None or np.size(axes) == 0:
        return [] if op.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(n) % rank for n in np.atleast_1d(axes))


def mean(ctx: Context, op: Op, values: list) -> View:
    """ReduceMean over channels: a step of LayerNorm or RMSNorm; over tokens: mean pooling."""
    x = values[0]
    axes = reduced_axes(op, values)
    keep = op.attribute("keepdims", 1)
    if isinstance(x.sym, Poly) and x.sym.terms.keys() == {2} and axes == [len(x.shape) - 1]:
        shape = x.shape[:-1] + ((1,) if keep else ())
        sym = Variance(x=x.sym.x, epsilon=0.0, power=1, centred=False, shape=(*x.sym.shape[:-1], 1))
        return View(sym, shape, need_rows(x).reshape(shape), x.scale * x.sym.terms[2])
    if not isinstance(x.sym, Square):
        x = ctx.plain(x)
        need_tensor(x)
    layout = token_layout(x)
    if axes != [len(x.shape) - 1] or layout is None or len(layout[1]) < 2:
        return pooled(op, x, axes, keep)
    shape = x.shape[:-1] + ((1,) if keep else ())
    rows = need_rows(x).reshape(shape)
    if isinstance(x.sym, Square):
        return View(Variance(x=x.sym.x, epsilon=0.0, power=1, shape=(*x.sym.shape[:-1], 1)), shape, rows, x.scale)
    return View(Mean(x=x.sym, shape=(*x.sym.shape[:-1], 1)), shape, rows)


def pooled(op: Op, x: View, axes: list[int], keepdims: int) -> View:
    """Mean over `axes` of a plain view, which must be some tokens in a row, the same ones for every channel."""
    need_tensor(x)
    shape = tuple(1 if n in axes else x.shape[n] for n in range(len(x.shape)) if n not in axes or keepdims)
    if int(np.prod(shape)) == int(np.prod(x.shape)):
        return reshaped(x, shape)
    if len(x.sym.shape) != 2:
        raise Unsupported("averages over experts")
    width = x.sym.shape[1]
    kept = [n for n in range(len(x.shape)) if n not in axes]
    moved = x.positions.transpose(*kept, *axes).reshape(*(x.shape[n] for n in kept), -1)
    rows, columns = moved // width, moved % width
    tokens = np.sort(rows.reshape(-1, rows.shape[-1]), axis=1)
    start, stop = int(tokens[0, 0]), int(tokens[0, 0]) + tokens.shape[1]
    if (columns != columns[..., :1]).any():
        raise Unsupported("averages over channels", "only tokens can be averaged")
    if not (tokens == np.arange(start, stop)).all():
        raise Unsupported("averages over some tokens here and others there", "average all tokens or a range of them")
    sym = Pooled(x=x.sym, start=start, stop=stop, shape=(1, width), label=label_of(op), source=op.name)
    return View(sym, shape, columns[..., 0].reshape(shape))


def global_average(ctx: Context, op: Op, values: list) -> View:
    """GlobalAveragePool of [1, D, ...]."""
    x = ctx.plain(values[0])
    return pooled(op, x, list(range(2, len(x.shape))), 1)


def average(ctx: Context, op: Op, values: list) -> View:
    """AveragePool of [1, D, ...] whose window is the whole tensor."""
    x = values[0]
    if tuple(op.attribute("kernel_shape", ())) != x.shape[2:] or any(op.attribute("pads", ())):
        raise Unsupported("averages over windows", "average all tokens or a range of them")
    return global_average(ctx, op, values)


def reduce_sum(ctx: Context, op: Op, values: list) -> View:
    """ReduceSum: over tokens it is their number times their mean; over experts it belongs to a mixture."""
    x = ctx.settle(values[0])
    axes = reduced_axes(op, values)
    if isinstance(x.sym, Branches) and x.index is None and axes == [x.sym.axis]:
        total = x.sym.parts[0]
        for part in x.sym.parts[1:]:
            total = add(ctx, op, total, part)
        shape = x.shape if op.attribute("keepdims", 1) else x.shape[: axes[0]] + x.shape[axes[0] + 1 :]
        shape = shape if len(shape) < len(x.shape) else (*x.shape[: axes[0]], 1, *x.shape[axes[0] + 1 :])
        return replace(reshaped(total, shape), scale=total.scale * x.scale)
    if not isinstance(x.sym, TENSORS) or len(x.sym.shape) != 2:
        return dispatch.reduce_sum(ctx, op, values)
    y = pooled(op, ctx.plain(x), axes, op.attribute("keepdims", 1))
    return replace(y, scale=y.scale * float(np.prod([x.shape[n] for n in axes])))
