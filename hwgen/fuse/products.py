"""Rules for matrix products: linear layers, and which product is attention or the weighting of experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import gate, mixture, soft
from .attention import attended, scores_of
from .elementwise import add
from .emit import Context
from .layers import split
from .op import Op, Unsupported
from .params import label_of
from .symbols import Array, Image, Joined, Lin, Mixture, Patches, Probabilities, Scores, Sym
from .views import Const, View, broadcast, need_tensor, positions, token_layout, whole


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
        if a.shape[-2] == 1 and b.shape[-1] > 1:
            return scores_of(op, a, b)
        # A B = (B' A')'
        return _transposed(linear(ctx, op, _transposed(b), Const(np.swapaxes(a.array, -1, -2), a.name)))
    if isinstance(a.sym, Probabilities):
        return attended(op, a, b)
    weighted = soft.contract(ctx, a, b)
    if weighted is not None:
        return weighted
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


def _transposed(view: View) -> View:
    index = np.swapaxes(view.positions, -1, -2)
    return replace(view, shape=index.shape, index=index)


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
    if isinstance(x.sym, Scores | Probabilities):
        hint = "let every head take the softmax of its own scores"
        raise Unsupported("mixes the attention scores or probabilities of the heads (talking heads)", hint)
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
        return _expert_linear(ctx, op, x, weight, label)
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
    return replace(x, weight=weight, bias=bias, shape=(x.shape[0], len(weight)), label=label, source=op.name)


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


def _expert_linear(ctx: Context, op: Op, x: View, weight: Array, label: str) -> View:
    """All experts at once: x [..., M, K] @ weight [..., K, N], whose leading axes are experts (or have one element)."""
    rank = max(len(x.shape), weight.ndim)
    weight = weight.reshape((1,) * (rank - weight.ndim) + weight.shape)
    own = [i for i in range(rank - 2) if weight.shape[i] > 1]
    rest = [i for i in range(rank - 1) if i not in own]
    sizes = tuple(weight.shape[i] for i in own)
    experts, k, n = int(np.prod(sizes)), *weight.shape[-2:]
    places = x.positions.reshape((1,) * (rank - len(x.shape)) + x.shape)
    target = tuple(weight.shape[i] if i in own else m for i, m in enumerate(places.shape))
    places = np.broadcast_to(places, target).transpose([*own, *rest, rank - 1])
    shape = places.shape[:-1]
    places = places.reshape(experts, -1, k)
    sym, rows, columns = _by_expert(ctx, x.sym, places)
    spread = _spread(np.swapaxes(weight.reshape(experts, k, n), 1, 2), columns, sym.shape[-1], x.scale)
    tokens = sym.shape[-2]
    result = Lin(x=sym, weight=spread, shape=(experts, tokens, n), label=label, source=op.name)
    index = (np.arange(experts)[:, None, None] * tokens + rows[..., None]) * n + np.arange(n)
    index = index.astype(np.int32).reshape(*shape, n)
    order = [*own, *rest, rank - 1]
    index = index.transpose([order.index(i) for i in range(rank)])
    return View(result, index.shape, index)


def _by_expert(ctx: Context, sym: Sym, places: Array) -> tuple[Sym, Array, Array]:
    """(tensor, rows [E, R], columns [K]) that every expert e reads at `places` [E, R, K] of `sym`.

    Where each expert reads columns of its own of a common linear layer, that becomes a stack of layers.
    """
    width, experts = sym.shape[-1], len(places)
    rows, columns = places[:, :, 0] // width, places[:, 0, :] % width
    if not np.array_equal(places, rows[..., None] * width + columns[:, None, :]):
        raise Unsupported("multiplies a tensor that is not tokens by channels")
    if len(sym.shape) == 3:
        rows = rows - np.arange(experts)[:, None] * sym.shape[-2]
    fits = len(sym.shape) == 2 or sym.shape[0] == experts
    if not fits or rows.min() < 0 or rows.max() >= sym.shape[-2]:
        raise Unsupported("the experts do not read the same tokens")
    if (columns != columns[0]).any():
        if len(sym.shape) != 2:
            raise Unsupported("the experts do not read the same channels")
        sym = split(ctx, sym, columns)
        columns = np.arange(columns.shape[1])[None]
    return sym, rows, columns[0]
