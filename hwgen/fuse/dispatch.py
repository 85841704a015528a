"""The ways exporters bring tokens to experts and back: masks, gathering by expert index, gather and scatter of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .emit import Context
from .gate import PARTS, choose_logits, is_mask, mask_of, member
from .gathering import Packed, Sized
from .layers import single_stack
from .mixture import add, as_mixture, has_outputs, multiply, placed, total
from .op import Op, Unsupported, constant_argument
from .symbols import Array, ChosenLogits, Gate, Mixture, TopIndices, TopValues, Unmasked, Updated
from .views import Const, View, broadcast, same_elements, uniform


def where(ctx: Context, mask: View, chosen: View | Const, other: View | Const) -> View:
    """Where(token goes to expert e, f_e, other): mask * f_e + other, as `other` holds other experts or zero.

    Also the scores or logits of the chosen experts, with zero or minus infinity for the others.
    """
    if isinstance(mask.sym, Unmasked):
        return where(ctx, mask.of(mask.sym.mask), other, chosen)
    shape = np.broadcast_shapes(mask.shape, chosen.shape, other.shape)
    if isinstance(other, Const) and isinstance(chosen, Const):
        if np.all(chosen.array == 1) and not np.any(other.array):
            return broadcast(mask, shape)
    if isinstance(chosen, View) and isinstance(other, Const) and uniform(other.array) == -np.inf:
        return choose_logits(broadcast(mask, shape), broadcast(chosen, shape))
    if isinstance(chosen, Const) or mask.sym.score or has_outputs(mask.sym):
        raise Unsupported("masks something that is no expert's output")
    part = multiply(ctx, broadcast(mask, shape), broadcast(chosen, shape))
    if isinstance(other, Const):
        if np.any(other.array):
            raise Unsupported("gives tokens of other experts a value that is not zero")
        return part
    if not isinstance(other.sym, Mixture) or other.sym.slots is not None:
        raise Unsupported("masks something that is no expert's output")
    return add(broadcast(other, shape), part)


def gather_elements(ctx: Context, op: Op, values: list) -> View:
    """Pick each token's experts out of all experts' outputs by expert index: sum over e of mask * f."""
    data, index = values
    axis = op.attribute("axis", 0) % len(data.shape)
    if isinstance(index, Const):
        taken = np.take_along_axis(data.positions, index.array.astype(np.int64), axis)
        return replace(data, shape=taken.shape, index=taken)
    if not isinstance(data, View) or not isinstance(index.sym, TopIndices):
        raise Unsupported("its indices are not expert indices")
    if isinstance(data.sym, Gate):  # the score of the expert chosen: what TopK gives as value
        if data.index is None and data.sym.logits is index.sym.logits and axis == len(data.shape) - 1:
            top = TopValues(logits=index.sym.logits, gated=True, ordered=index.sym.ordered, shape=index.sym.shape)
            return index.of(top)
        raise Unsupported("gathers the scores of another gate")
    cut = tuple(slice(0, n) if i != axis else slice(None) for i, n in enumerate(index.shape))
    data = as_mixture(ctx, single_stack(ctx, data, index.sym.logits.shape[-1]))
    tokens, _, count, width = data.sym.shape
    if data.sym.stacked is None or data.sym.mask:
        raise Unsupported("picks from something that is not all experts' outputs")
    stack = np.moveaxis(data.positions[cut], axis, -1)
    t, d = np.expand_dims(stack[..., 0] // (count * width), axis), np.expand_dims(stack[..., 0] % width, axis)
    by_expert = (t * count * width + d).reshape(*stack.shape[:-1], 1) + np.arange(count) * width
    slots = index.sym.shape[1]
    owner, slot = index.positions // slots, index.positions % slots
    if not (np.array_equal(stack, by_expert) and (owner == t).all() and index.sym.logits.shape[-1] == count):
        raise Unsupported("does not pick each token's own experts")
    chosen = Mixture(
        logits=index.sym.logits,
        mask=True,
        ordered=index.sym.ordered,
        stacked=data.sym.stacked,
        summed=True,
        shape=(tokens, slots, 1, width),
    )
    coordinates = [np.broadcast_to(c, index.shape) for c in (owner, slot, np.zeros_like(owner), d)]
    return replace(placed(chosen, coordinates, index.shape), scale=data.scale)


def scatter_elements(ctx: Context, op: Op, values: list) -> View:
    """Scores scattered into zeros by expert index: dense gate weights. Also ones into zeros: a mask; and the chosen
    logits into minus infinity."""
    data, index, scores = values
    if isinstance(index, Const):
        return scatter(ctx, op, values)
    axis = op.attribute("axis", 0) % len(data.shape)
    last = axis == len(data.shape) - 1
    gate = isinstance(index, View) and isinstance(index.sym, TopIndices) and data.shape[-1] == index.sym.logits.shape[-1]
    if gate and last and isinstance(data, Const) and uniform(data.array) in (0, -np.inf):
        chosen = _scattered_choice(data, index, scores)
        if chosen is not None:
            return chosen
    gate = gate and isinstance(scores, View)
    if not (gate and isinstance(data, Const) and not np.any(data.array) and axis == len(data.shape) - 1):
        raise Unsupported("is no scattering of gate scores into zeros")
    picks, weights = index.positions[..., None, :], scores.positions[..., None, :]
    experts = np.arange(data.shape[-1])[:, None]
    shape = np.broadcast_shapes(picks.shape, experts.shape)
    mask = mask_of(index.sym, np.broadcast_to(picks, shape), np.broadcast_to(experts, shape))
    product = multiply(ctx, mask, broadcast(replace(scores, shape=weights.shape, index=weights), shape))
    return total(ctx, product, len(shape) - 1)


def _scattered_choice(data: Const, index: View, scores: View | Const) -> View | None:
    """A mask of the chosen experts, or their logits, scattered along the last axis; None where it is neither."""
    top = index.sym
    tokens, slots = top.shape
    used = index.shape[-1]
    own = np.arange(tokens)[:, None] * slots + np.arange(used)
    if data.array.size != tokens * top.logits.shape[-1] or not (top.ordered or used == slots):
        return None
    if index.positions.size != own.size or not np.array_equal(index.positions.reshape(own.shape), own):
        return None
    mask = data.array.flat[0] == 0
    if isinstance(scores, Const) and mask and uniform(scores.array) == 1:
        return View(member(top.logits, used), data.shape)
    if isinstance(scores, View) and isinstance(scores.sym, TopValues) and not mask and scores.scale == 1:
        values = scores.sym
        if not values.gated and values.logits is top.logits and values.shape == top.shape:
            if np.array_equal(scores.positions.reshape(-1), own.reshape(-1)):
                return View(ChosenLogits(logits=top.logits, slots=used, shape=top.logits.shape), data.shape)
    return None


def non_zero(ctx: Context, op: Op, values: list) -> Packed:
    """The places where a mask holds, as a ragged tensor of all places."""
    mask = values[0]
    if not isinstance(mask.sym, Mixture) or mask.sym.score or has_outputs(mask.sym):
        raise Unsupported("is not applied to a mask of expert indices")
    n = int(np.prod(mask.shape))
    places = np.stack(np.unravel_index(np.arange(n), mask.shape))
    return Packed(replace(mask, shape=(n,), index=mask.positions.reshape(-1)), Const(places), -1)


def same_mask(a: View, b: View) -> bool:
    """True where two views show the same mask."""
    p, q = a.sym, b.sym
    slots = {m.slots or 1 for m in (p, q)} if p.shape[1] == 1 else {p.slots, q.slots}
    return p.logits is q.logits and p.shape == q.shape and len(slots) == 1 and same_elements(a, b)


def same_tokens(a: Packed, b: Packed) -> bool:
    """True where two ragged tensors hold the same entries of their axis."""
    return same_mask(a.mask, b.mask)


def scatter(ctx: Context, op: Op, values: list) -> View:
    """ScatterND or ScatterElements of the rows of one expert: target + mask * rows, summed over slots."""
    target, places, rows = values
    if isinstance(places, Const) and isinstance(rows, View):
        return _permuted(op, target, places.array, rows)
    ragged = isinstance(places, Packed) and isinstance(rows, Packed) and same_tokens(places, rows)
    if not (ragged and isinstance(places.inner, Const) and isinstance(rows.inner, View)):
        raise Unsupported("is no scattering of the rows of one expert")
    index, inner = _places(op, target, places, rows)
    n, depth = index.shape
    adds = op.attribute("reduction", "none") == "add"
    mask = replace(rows.mask, shape=(n, *[1] * (len(inner.shape) - 1)))
    mask = broadcast(replace(mask, index=rows.mask.positions.reshape(mask.shape)), inner.shape)
    flat = np.ravel_multi_index(tuple(index.T), target.shape[:depth])
    count = int(np.prod(target.shape[:depth]))
    if n % count or not np.array_equal(np.sort(flat), np.repeat(np.arange(count), n // count)):
        raise Unsupported("does not scatter to every place once")
    updates = isinstance(inner.sym, Updated)
    if updates:  # target[places] = target[places] + part
        base, inner = _update(inner)
        there = target.positions.reshape(count, -1)[flat].reshape(inner.shape)
        if adds or not isinstance(target, View) or target.sym is not base.sym or not np.array_equal(there, base.positions):
            raise Unsupported("adds the output of an expert to something else than what it replaces")
    part = multiply(ctx, mask, inner)
    order = np.argsort(flat, kind="stable").reshape(count, n // count)
    grouped = part.positions[order]
    part = replace(part, shape=grouped.shape, index=grouped)
    if n > count:
        # No token goes to an expert twice: where all places are of one expert, none is written twice.
        if not adds and uniform(mask.positions % mask.sym.shape[2]) is None:
            raise Unsupported("overwrites the output of one slot by that of another")
        part = total(ctx, part, 1)
    part = replace(part, shape=target.shape, index=part.positions.reshape(target.shape))
    if isinstance(target, Const):
        if np.any(target.array):
            raise Unsupported("scatters into something that is not zero")
        return part
    if not adds and not updates and (target.sym.slots is not None or n > count):
        raise Unsupported("overwrites the output of other experts")
    return add(target, part)


def _permuted(op: Op, target: View | Const, index: Array, rows: View) -> View:
    """Rows scattered to known places, each of which is written once: moved rows."""
    adds = op.attribute("reduction", "none") == "add"
    if op.attribute("reduction", "none") not in ("none", "add"):
        raise Unsupported(f"reduction {op.attribute('reduction')!r} is not supported")
    if adds and not (isinstance(target, Const) and not np.any(target.array)):
        raise Unsupported("adds to some places of a tensor")
    shape = target.shape
    flat = np.arange(int(np.prod(shape))).reshape(shape)
    if op.type == "ScatterElements":
        axis = op.attribute("axis", 0)
        written = np.take_along_axis(flat, index.astype(np.int64), axis) if index.shape == rows.shape else flat[:0]
    else:
        written = flat[tuple(np.moveaxis(index, -1, 0))]
    if not np.array_equal(np.sort(written, axis=None), flat.reshape(-1)):
        raise Unsupported("writes only some places of a tensor, or some twice")
    moved = np.empty(flat.size, np.int32)
    moved[written.reshape(-1)] = rows.positions.reshape(-1)
    return replace(rows, shape=shape, index=moved.reshape(shape))


def _places(op: Op, target: View | Const, places: Packed, rows: Packed) -> tuple[Array, View]:
    """(places [n, depth] in the target, rows [n, ...]): what ScatterND takes, the ragged axis first."""
    index, inner, rank = places.inner.array, rows.inner, len(rows.inner.shape)
    if op.type == "ScatterElements":
        axis = op.attribute("axis", 0) % rank
        line = np.moveaxis(index, axis, 0).reshape(index.shape[axis], -1)
        if {rows.axis % rank, places.axis % index.ndim} != {axis} or index.shape != inner.shape:
            raise Unsupported("is no scattering of the rows of one expert")
        whole = int(np.prod(inner.shape[:axis])) == 1 and inner.shape[axis + 1 :] == target.shape[axis + 1 :]
        if (line != line[:, :1]).any() or not whole:
            raise Unsupported("does not scatter whole rows")
        index = np.concatenate([np.zeros((len(line), axis), index.dtype), line[:, :1]], axis=1)
        return index, replace(inner, shape=inner.shape[axis:], index=inner.positions.reshape(inner.shape[axis:]))
    if index.ndim != 2 or places.axis != -2 or rows.axis != -rank:
        raise Unsupported("is no scattering of the rows of one expert")
    return index, inner


def _update(view: View) -> tuple[View, View]:
    """The base and the part of a view of an Updated."""
    sym = view.sym
    if view.scale != 1:
        raise Unsupported("scales what other experts gave")
    return tuple(replace(v, shape=view.shape, index=v.positions.reshape(-1)[view.positions]) for v in (sym.base, sym.part))


def updated(mask: View, a: View, b: View) -> View | None:
    """Sum of what `mask`'s places hold already and one expert's contribution, or None where it is no such sum."""
    if mask.sym.shape[2] == 1 or a.shape != b.shape:
        return None
    expert = uniform(np.unravel_index(mask.positions, mask.sym.shape)[2])
    for base, part in ((a, b), (b, a)):
        p, q = base.sym, part.sym
        if isinstance(p, Mixture) and isinstance(q, Mixture) and p.branches and q.branches and p.summed:
            if None not in p.branches and expert not in p.branches and set(q.branches) <= {None, expert}:
                return View(Updated(base=base, part=part, shape=base.shape), base.shape)
    return None


def _count(op: Op, mask: View) -> Sized:
    """How many entries of a mask hold: the length of what is gathered by it."""
    n = int(np.prod(mask.shape))
    flat = replace(mask, shape=(n,), index=mask.positions.reshape(-1))
    return Sized(np.full((1,) * len(mask.shape) if op.attribute("keepdims", 1) else (), n, np.int64), mask=flat)


def reduce_sum(ctx: Context, op: Op, values: list) -> View:
    x, axes = values[0], constant_argument(op, values, 1, "axes")
    axes = [] if axes is None else [int(n) % len(x.shape) for n in np.atleast_1d(axes)]
    if is_mask(x) and len(axes) in (0, len(x.shape)):
        return _count(op, x)
    if len(axes) != 1 or not isinstance(x.sym, PARTS):
        raise Unsupported("sums over something that is neither the chosen nor all experts")
    y = total(ctx, x, axes[0])
    if not op.attribute("keepdims", 1):
        return y
    shape = (*x.shape[: axes[0]], 1, *x.shape[axes[0] + 1 :])
    return replace(y, shape=shape, index=None if y.index is None else y.index.reshape(shape))
