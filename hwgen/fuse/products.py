"""Rules for matrix products: linear layers, and which product is attention or the weighting of experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import gate, mixture
from .attention import attended, scores_of
from .elementwise import add
from .emit import Context
from .op import Op, Unsupported
from .params import label_of
from .symbols import (
    Array,
    Const,
    Image,
    Joined,
    Lin,
    Mixture,
    Patches,
    Probabilities,
    View,
    broadcast,
    need_tensor,
    positions,
    token_layout,
    whole,
)


def matmul(ctx: Context, op: Op, values: list) -> View:
    """MatMul: a linear layer, attention scores, attention output or the weighting of experts."""
    a, b = values
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise Unsupported("multiplies a vector")
    if a.shape[-1] != b.shape[-2]:
        raise Unsupported(f"shapes {a.shape} and {b.shape} do not match")
    if isinstance(b, Const):
        return linear(ctx, op, a, b)
    if isinstance(a, Const):
        return scores_of(op, a, b)
    if isinstance(a.sym, Probabilities):
        return attended(op, a, b)
    if gate.is_part(a, b):
        return mixture.contract(ctx, a, b)
    return scores_of(op, a, b)


def fused_matmul(ctx: Context, op: Op, values: list) -> View:
    """com.microsoft.FusedMatMul: alpha * A' @ B', each with its last two axes swapped, or its first moved before the
    last two (transBatch), or both."""
    a, b = (
        _swapped(x, op.attribute(f"transBatch{n}", 0), op.attribute(f"trans{n}", 0))
        for x, n in zip(values, "AB", strict=True)
    )
    y = matmul(ctx, op, [a, b])
    return replace(y, scale=y.scale * op.attribute("alpha", 1.0))


def _swapped(x: View | Const, batch: int, last: int) -> View | Const:
    axes = list(range(len(x.shape)))
    if batch:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if last:
        axes[-2:] = axes[:-3:-1]
    if axes == sorted(axes):
        return x
    if isinstance(x, Const):
        return Const(x.array.transpose(axes), x.name)
    index = x.positions.transpose(axes)
    return replace(x, shape=index.shape, index=index)


def gemm(ctx: Context, op: Op, values: list) -> View:
    """Gemm: alpha * A' @ B' + beta * C."""
    a, b, c = (list(values) + [None])[:3]
    if op.attribute("transA", 0) or not isinstance(b, Const) or len(b.shape) != 2:
        raise Unsupported("is not tokens times a constant matrix")
    if op.attribute("transB", 0):
        b = Const(b.array.T, b.name)
    if a.shape[-1] != b.shape[0]:
        raise Unsupported(f"shapes {a.shape} and {b.shape} do not match")
    y = linear(ctx, op, replace(a, scale=a.scale * op.attribute("alpha", 1.0)), b)
    if c is None:
        return y
    if isinstance(c, Const):
        c = Const(c.array * np.float32(op.attribute("beta", 1.0)), c.name)
    return add(ctx, op, y, c)


def linear(ctx: Context, op: Op, x: View, w: Const) -> View:
    """x @ w, w [K, N], or [E, K, N] for a stack of experts."""
    x = ctx.settle(x)
    if isinstance(x.sym, Mixture):
        raise Unsupported(f"the mixture of experts is matched only in part: {mixture.missing(x.sym)}")
    weight = w.array.astype(np.float32)
    label = label_of(op, w)
    if isinstance(x.sym, Joined):
        return _joined_linear(ctx, op, x, w)
    if isinstance(x.sym, Image):
        x = ctx.plain(x)
    need_tensor(x)
    if int(np.prod(weight.shape[:-2])) != 1:
        return _expert_linear(op, x, weight, label)
    shape = (*np.broadcast_shapes(x.shape[:-2], weight.shape[:-2]), x.shape[-2], weight.shape[-1])
    layout = token_layout(x)
    if layout is None:
        raise Unsupported("multiplies a tensor that is not tokens by channels")
    rows, columns = layout
    n = shape[-1]
    spread = _spread(weight.reshape(weight.shape[-2:]).T, columns, x.sym.shape[-1], x.scale)
    if len(x.sym.shape) == 3:
        spread = np.broadcast_to(spread, (x.sym.shape[0], *spread.shape))
    if isinstance(x.sym, Patches) and x.sym.shape[1] == x.shape[-1]:  # two matrices in a row, the first a permutation
        sym = _patches_linear(x.sym, spread, label, op)
    else:
        sym = Lin(x=x.sym, weight=spread, shape=(*x.sym.shape[:-1], n), label=label, source=op.name)
    if x.index is None:
        return whole(sym, shape)
    return View(sym, shape, (rows.reshape(-1, 1) * n + positions((n,))).reshape(shape))


def _patches_linear(x: Patches, weight: Array, label: str, op: Op) -> Patches | Lin:
    """A linear layer of pixels, which patches times an identity matrix are, is the patch embedding itself."""
    first = x.weight.reshape(x.shape[1], -1)
    if first.shape[0] != first.shape[1] or (np.count_nonzero(first, axis=0) > 1).any():
        return Lin(x=x, weight=weight, shape=(x.shape[0], len(weight)), label=label, source=op.name)
    bias = None if x.bias is None else weight @ x.bias
    weight = (weight @ first).reshape(-1, *x.weight.shape[1:])
    return Patches(image=x.image, weight=weight, bias=bias, shape=(x.shape[0], len(weight)), label=label, source=op.name)


def _joined_linear(ctx: Context, op: Op, x: View, w: Const) -> View:
    """A linear layer of channels side by side is the sum of one linear layer of each."""
    if x.index is not None or int(np.prod(w.shape[:-2])) != 1:
        raise Unsupported("multiplies joined channels that were rearranged")
    total, at = None, 0
    for part in x.sym.parts:
        n = part.shape[-1]
        y = linear(ctx, op, replace(part, scale=part.scale * x.scale), Const(w.array[..., at : at + n, :], w.name))
        y = broadcast(y, (*x.shape[:-1], w.shape[-1]))
        total, at = y if total is None else add(ctx, op, total, y), at + n
    return total


def _spread(weight: Array, columns: Array, width: int, scale: float) -> Array:
    """weight [.., N, K] for a tensor of `width` channels of which the K `columns` are multiplied."""
    weight = weight if scale == 1 else (weight * np.float32(scale))
    if np.array_equal(columns, np.arange(width)):
        return weight
    if len(np.unique(columns)) != len(columns):
        raise Unsupported("multiplies a channel twice")
    full = np.zeros((*weight.shape[:-1], width), np.float32)
    full[..., columns] = weight
    return full


def _expert_linear(op: Op, x: View, weight: Array, label: str) -> View:
    """All experts at once: x [.., E, T, K] @ weight [.., E, K, N]."""
    batch = np.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
    experts = int(np.prod(weight.shape[:-2]))
    if int(np.prod(batch)) != experts:
        raise Unsupported(f"multiplies {x.shape} by one matrix for each of {experts} experts")
    tokens, k, n = x.shape[-2], x.shape[-1], weight.shape[-1]
    layout = token_layout(broadcast(x, (*batch, tokens, k)))
    if layout is None:
        raise Unsupported("multiplies a tensor that is not tokens by channels")
    rows, own = layout[0].reshape(experts, tokens), x.sym.shape[-2]
    if len(x.sym.shape) == 3:
        rows = rows - np.arange(experts)[:, None] * own
    stacked = len(x.sym.shape) == 2 or x.sym.shape[0] == experts
    if not stacked or rows.min() < 0 or rows.max() >= own or (rows != rows[0]).any():
        raise Unsupported("the experts do not read the same tokens")
    spread = _spread(np.swapaxes(weight.reshape(experts, k, n), 1, 2), layout[1], x.sym.shape[-1], x.scale)
    sym = Lin(x=x.sym, weight=spread, shape=(experts, own, n), label=label, source=op.name)
    index = (np.arange(experts)[:, None, None] * own + rows[..., None]) * n + np.arange(n)
    return View(sym, (*batch, tokens, n), index.astype(np.int32).reshape(*batch, tokens, n))
