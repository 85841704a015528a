"""Weights gathered per token: W[expert of the slot] @ x.

What exporters compute on gathered tensors is run here for every expert at once, on tensors with one more axis in front
(`Picked.inner`); which expert's result a slot takes comes in at the end, when gate scores weight it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import einsum, gate
from .emit import Context
from .gathering import Picked, Sized
from .layers import single_stack
from .layout import MOVES, move
from .mixture import placed
from .op import Op, Unsupported
from .ragged import ELEMENTWISE
from .symbols import Array, Lin, Mixture, TopIndices
from .views import Const, View, same_elements

Apply = Callable[[Context, Op, list], Any]
PRODUCTS = ("Mul", "MatMul", "Einsum")


def picks(op: Op, values: list) -> bool:
    """True for a Gather of constants, one for each expert, by expert index."""
    if op.type not in ("Gather", "GatherND") or not isinstance(values[0], Const):
        return False
    index = values[1]
    return isinstance(index, View) and isinstance(index.sym, TopIndices)


def run(ctx: Context, op: Op, values: list, apply: Apply) -> Any:
    """Results of a node with gathered inputs; `apply` runs a node on full tensors."""
    if not any(isinstance(v, Picked) for v in values):
        return _gather(op, *values)
    if op.type == "Shape":
        shape = np.asarray(next(v for v in values if isinstance(v, Picked)).shape, np.int64)
        return Const(shape[op.attribute("start", 0) : op.attribute("end", len(shape))])
    weighting = any(isinstance(v, View) and isinstance(v.sym, gate.PARTS) for v in values)
    if weighting and op.type in PRODUCTS:
        return apply(ctx, op, [_chosen(ctx, v) if isinstance(v, Picked) else v for v in values])
    if op.type in MOVES and isinstance(values[0], Picked):
        return _moved(op, values)
    if op.type == "ReduceSum" or any(isinstance(v, Sized) for v in values):
        raise Unsupported("the outputs of experts are not weighted by a gate")
    if op.type == "Einsum":
        return _einsum(ctx, op, values, apply)
    if op.type != "MatMul" and op.type not in ELEMENTWISE:
        raise Unsupported("is not understood on weights that are gathered by expert")
    return _lifted(ctx, op, values, apply, 2 if op.type == "MatMul" else 0)


def _gather(op: Op, data: Const, index: View) -> Picked:
    slots = index.shape
    if op.type == "GatherND":
        slots = slots[:-1]
        if index.shape[-1] != 1 or op.attribute("batch_dims", 0):
            raise Unsupported("gathers by more than the expert index")
        index = replace(index, shape=slots, index=index.positions.reshape(slots))
    elif op.attribute("axis", 0) % len(data.shape):
        raise Unsupported("gathers by expert index along another axis than the first")
    count = index.sym.logits.shape[-1]
    if data.shape[0] != count:
        raise Unsupported(f"gathers from {data.shape[0]} entries for a gate of {count} experts")
    inner = data.array.reshape(count, *[1] * len(slots), *data.shape[1:])
    return Picked(index, Const(inner, data.name))


# --- the same node for all experts -------------------------------------------------------------------------------


def _lifted(ctx: Context, op: Op, values: list, apply: Apply, matrix: int) -> Picked:
    """An elementwise node, or a product of the last two axes (`matrix` 2), for all experts."""
    rank = max(len(v.shape) for v in values if v is not None)
    aligned = [_aligned(v, rank) if isinstance(v, Picked) else v for v in values]
    picked = [v for v in aligned if isinstance(v, Picked)]
    if any(len(p.index.shape) > rank - matrix for p in picked):
        raise Unsupported("multiplies along the axis of the chosen experts")
    result = apply(ctx, op, [v.inner if isinstance(v, Picked) else v for v in aligned])
    result = result[0] if isinstance(result, list) else result
    full = np.broadcast_shapes(*(v.shape[: rank - matrix] for v in aligned if v is not None and len(v.shape) == rank))
    indices = [_spread(p.index, full) for p in picked]
    if not all(i.sym is indices[0].sym and same_elements(i, indices[0]) for i in indices):
        raise Unsupported("combines what was gathered by different expert indices")
    return _shortened(indices[0], result)


def _aligned(p: Picked, rank: int) -> Picked:
    """With axes of one element in front, so that it has `rank` axes."""
    more = rank - len(p.shape)
    if not more:
        return p
    index = replace(p.index, shape=(1,) * more + p.index.shape, index=p.index.positions[(None,) * more])
    shape = (p.inner.shape[0], *[1] * more, *p.inner.shape[1:])
    if isinstance(p.inner, Const):
        return Picked(index, Const(p.inner.array.reshape(shape), p.inner.name))
    return Picked(index, replace(p.inner, shape=shape, index=p.inner.positions.reshape(shape)))


def _spread(index: View, shape: tuple[int, ...]) -> View:
    """The index with axes behind it, repeated to `shape`."""
    places = index.positions.reshape(index.shape + (1,) * (len(shape) - len(index.shape)))
    return replace(index, shape=shape, index=np.broadcast_to(places, shape))


def _shortened(index: View, inner: View | Const) -> Picked:
    """Without the trailing axes along which the index does not change; their lengths in `inner` are full."""
    places, axes = index.positions, len(index.shape)
    while axes and (places == places[..., :1]).all() and (places.shape[-1] == inner.shape[axes] or places.shape[-1] == 1):
        places, axes = places[..., 0], axes - 1
    return Picked(replace(index, shape=places.shape, index=places), inner)


def _moved(op: Op, values: list) -> list[Picked]:
    """Reshape, Transpose, ...: the same for every expert, and for the index."""
    p = values[0]
    index = _spread(p.index, p.shape)
    moved = move(op, index.positions, values)
    full = (p.inner.shape[0], *p.shape)
    if isinstance(p.inner, Const):
        small = _moved_weight(op, p, values)
        if small is not None:
            slots = len(p.index.shape) if op.type != "Reshape" else small.ndim - 1 - (len(p.shape) - len(p.index.shape))
            places = moved[0]
            places = places[(Ellipsis, *[0] * (places.ndim - slots))]
            return [Picked(replace(p.index, shape=places.shape, index=places), Const(small, p.inner.name))]
        arrays = [move(op, part, values) for part in np.broadcast_to(p.inner.array, full)]
        inner = [Const(np.stack(parts), p.inner.name) for parts in zip(*arrays, strict=True)]
    else:
        parts = [move(op, part, values) for part in np.broadcast_to(p.inner.positions, full)]
        stacks = [np.stack(part) for part in zip(*parts, strict=True)]
        inner = [replace(p.inner, shape=stack.shape, index=stack) for stack in stacks]
    return [_shortened(replace(index, shape=m.shape, index=m), i) for m, i in zip(moved, inner, strict=True)]


def _moved_weight(op: Op, p: Picked, values: list) -> Array | None:
    """The constant [E, 1.., ...] after a move that keeps the slots in front, without repeating it for every slot."""
    array, slots = p.inner.array, len(p.index.shape)
    rest = array.shape[1 + slots :]
    if array.shape[1 : 1 + slots] != (1,) * slots:
        return None
    if op.type == "Identity":
        return array
    if op.type == "Transpose":
        perm = op.attribute("perm") or list(range(len(p.shape)))[::-1]
        return array.transpose(0, *(i + 1 for i in perm)) if list(perm[:slots]) == list(range(slots)) else None
    if op.type in ("Reshape", "Unsqueeze", "Squeeze"):
        target = move(op, np.broadcast_to(np.int8(0), p.shape), values)[0].shape
        if op.type == "Reshape" and target[len(target) - len(rest) :] == rest:
            return array.reshape(array.shape[0], *[1] * (len(target) - len(rest)), *rest)
        if op.type != "Reshape" and target[:slots] == p.index.shape:
            return array.reshape(array.shape[0], *[1] * slots, *target[slots:])
    return None


def _einsum(ctx: Context, op: Op, values: list, apply: Apply) -> Picked:
    """An Einsum with gathered weights as a product of matrices, the slots in front."""
    terms = einsum.terms_of(op, values)
    pairs = list(zip(values, (terms.a, terms.b), strict=True))
    pairs.sort(key=lambda pair: not isinstance(pair[0], Picked) or not isinstance(pair[0].inner, Const))
    (weight, own), (x, other) = pairs
    if not isinstance(weight, Picked):
        raise Unsupported("is not understood on weights that are gathered by expert")
    slots = own[: len(weight.index.shape)]
    summed = [c for c in own if c in other and c not in terms.out]
    columns = [c for c in own if c not in slots and c not in summed]
    rows = [c for c in other if c not in own]
    if any(c in slots for c in summed) or any(c in other for c in columns) or any(c not in terms.out for c in columns + rows):
        raise Unsupported("is not understood on weights that are gathered by expert")
    sizes = dict(zip(own, weight.shape, strict=True)) | dict(zip(other, x.shape, strict=True))

    def size(letters: list[str]) -> int:
        return int(np.prod([sizes[c] for c in letters], dtype=np.int64))

    x = _with_axes(op, x, other, [*(c if c in other else None for c in slots), *rows, *summed])
    x = _step(op, "Reshape", x, [*x.shape[: len(slots)], size(rows), size(summed)])
    weight = _step(op, "Transpose", weight, perm=[own.index(c) for c in [*slots, *summed, *columns]])
    weight = _step(op, "Reshape", weight, [*weight.shape[: len(slots)], size(summed), size(columns)], whole=False)
    product = _lifted(ctx, replace(op, type="MatMul", attributes={}), [x, weight], apply, 2)
    order = [*slots, *rows, *columns]
    product = _step(op, "Reshape", product, [sizes[c] for c in order])
    return _step(op, "Transpose", product, perm=[order.index(c) for c in terms.out])


def _step(op: Op, kind: str, value: Any, argument: list | None = None, whole: bool = True, **attributes) -> Any:
    """The value after a Reshape or Transpose."""
    step = replace(op, type=kind, attributes=attributes)
    values = [value] if argument is None else [value, Const(np.asarray(argument, np.int64))]
    if isinstance(value, Picked):
        if kind == "Reshape" and value.shape == tuple(argument):
            return value
        return _moved(step, values)[0]
    if isinstance(value, Const):
        return Const(move(step, value.array, values)[0], value.name)
    index = move(step, value.positions, values)[0]
    return replace(value, shape=index.shape, index=index)


def _with_axes(op: Op, value: Any, letters: str, order: list[str | None]) -> Any:
    """The value with its axes in `order`, of one element where a letter is None."""
    value = _step(op, "Transpose", value, perm=[letters.index(c) for c in order if c is not None])
    sizes = iter(value.shape)
    return _step(op, "Reshape", value, [1 if c is None else next(sizes) for c in order])


# --- the end -----------------------------------------------------------------------------------------------------


def _chosen(ctx: Context, p: Picked) -> View:
    """The outputs of the chosen experts, as a part of a mixture that waits for its gate scores."""
    if not isinstance(p.inner, View):
        raise Unsupported("weights something that is no expert's output")
    inner = single_stack(ctx, ctx.plain(p.inner), p.inner.shape[0])
    sym, top = inner.sym, p.index.sym
    if not isinstance(sym, Lin) or len(sym.shape) != 3:
        raise Unsupported("weights something that is no expert's output")
    experts, tokens, width = sym.shape
    shape = p.shape
    index = np.broadcast_to(_spread(p.index, shape).positions, shape)
    slots = top.shape[1]
    places = np.broadcast_to(inner.positions, (experts, *shape))
    token, channel = places[0] // width, places[0] % width
    wanted = np.arange(experts).reshape(-1, *[1] * len(shape)) * (tokens * width) + places[0]
    if not np.array_equal(places, wanted) or not np.array_equal(token, index // slots):
        raise Unsupported("does not pick each token's own experts")
    chosen = Mixture(
        logits=top.logits, mask=True, ordered=top.ordered, stacked=sym, summed=True, shape=(tokens, slots, 1, width)
    )
    return placed(chosen, [token, index % slots, np.zeros_like(token), channel], shape)
