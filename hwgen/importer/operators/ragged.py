"""Rules of ragged tensors: what makes them, shapes and ranges of them, rows taken and put back (see `..ragged`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tensor import BOOL, FLOAT, Ref
from ..ragged import (
    FROZEN,
    MIXES,
    Count,
    Place,
    Plain,
    Ragged,
    Sizes,
    along,
    count,
    lifted,
    listed,
    number,
    one_mask,
    plain,
    product,
    run,
    sizes,
    special,
)
from ..rules import Context, Op, Unsupported, rule
from .indexing import evenly, flat_index, positive

PLACES = "computes with the place of a token among those of its expert"


@rule("NonZero")
def nonzero(c: Context, op: Op, x: Ref) -> Any:
    known = x.constant
    if known is not None:
        return c.t.const(np.array(np.nonzero(known)))
    n = x.layout.size
    if not x.shape or not n:
        raise Unsupported("of a tensor without axes or elements")
    mask, places = c.t.reshape(c.t.map("bool", x), (n,)), np.arange(n)
    if mask.layout.uniform():  # an axis of one element is invisible to layouts: a second one that never holds, both n times
        pair = c.t.concat([c.t.slice(mask, 0, 0, 1), c.t.const(np.array([False]))], 0)
        mask, places = c.t.reshape(c.t.expand(c.t.reshape(pair, (2, 1)), (2, n)), (2 * n,)), np.tile(places, 2)
    return Ragged(c.t.const(np.array(np.unravel_index(places, x.shape))), mask, 1)


@special("NonZero")
def nonzero_of_ragged(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    (v,) = x
    if not isinstance(v, Ragged) or len(v.x.shape) != 1:
        raise Unsupported("of a tensor with a ragged axis among others")
    places = c.t.const(np.arange(v.x.layout.size)[None])
    return Place(Ragged(places, c.t.map("and", v.mask, c.t.map("bool", v.x)), 1), v.mask)


@rule("Compress")
def compress(c: Context, op: Op, x: Ref, condition: Ref) -> Any:
    axis, known = op.attribute("axis"), condition.constant
    x = c.t.reshape(x, (-1,)) if axis is None else x
    axis = (axis or 0) % len(x.shape)
    if known is not None:
        return c.t.gather(x, c.t.const(np.flatnonzero(known)), axis)
    return Ragged(c.t.slice(x, axis, 0, condition.shape[0]), c.t.map("bool", condition), axis)


# --- shapes and ranges ------------------------------------------------------------------------------------------------


@special("Shape", "Size")
def shape(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    whole = x[0].shape if isinstance(x[0], Ragged) else list(plain(c, x[0]).shape)
    return sizes(c, product(*whole) if op.type == "Size" else whole[op.attribute("start", 0) : op.attribute("end")])


@special("Reshape", "Expand")
def reshape(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """To a shape with a Count, of a tensor with its ragged axis; Expand also of one without."""
    data, target = x
    counted = isinstance(target, Sizes)
    if not isinstance(data, Ragged):
        return made_ragged(c, op, [data], target, full) if op.type == "Expand" and counted and isinstance(data, Ref) else None
    known = target.items if counted else c.array(target, "shape")
    said = f"{FROZEN[0]}: the shape {target.full.tolist() if counted else known.tolist()} does not fit other numbers"
    frozen = Unsupported(said, FROZEN[1])
    try:
        (made,) = listed(lifted(c, op, [data, c.t.const(target.full if counted else known)], full))
    except (ValueError, Unsupported):
        if counted:
            raise
        raise frozen from None
    behind = len(made.x.shape) - made.axis
    given = known[-behind] if len(known) >= behind else 1
    if isinstance(given, Count) and given != count(made.mask):
        raise Unsupported("gives a ragged axis the number of other tokens")
    if not isinstance(given, Count) and given not in (-1, 0) and (op.type == "Reshape" or given != 1):
        raise frozen
    return made


@special("ConstantOfShape")
def constant_of_shape(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    return made_ragged(c, op, [], x[0], full)


def made_ragged(c: Context, op: Op, x: list[Any], target: Sizes, full: Plain) -> Ragged:
    """What a plain node makes in a shape that has one Count."""
    (made,) = listed(full(c, op, [*x, c.t.const(target.full)]))
    counts = [(i, n) for i, n in enumerate(target.items) if isinstance(n, Count)]
    if len(counts) != 1:
        raise Unsupported("makes a tensor with two ragged axes")
    ((axis, held),) = counts
    mask = c.t.reshape(c.t.expand(c.t.reshape(held.mask, (-1, 1)), (held.mask.layout.size, held.times)), (-1,))
    return Ragged(made, mask, axis + len(made.shape) - len(target.items))


@special("Range")
def steps(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """0 .. count: the places of an expert's tokens among themselves."""
    start, limit, step = x
    held = limit.items.reshape(-1)[0] if isinstance(limit, Sizes) else None
    by_one = all(isinstance(v, Ref) and v.scalar == n for v, n in ((start, 0), (step, 1)))
    if held is None or held.times != 1 or not by_one:
        raise Unsupported("counts by the number of tokens of an expert other than from 0 by 1")
    return Place(Ragged(c.t.const(np.arange(held.full)), held.mask, 0), held.mask)


@special("Slice")
def slice_(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Along the ragged axis only the whole of it; between computed places of another one: a mask."""
    data = x[0]
    if not isinstance(data, Ragged):
        return computed_slice(c, op, x)
    if op.opset < 10:
        return None
    given: list[Any] = [None if v is None else v.items if isinstance(v, Sizes) else c.array(v, "the range") for v in x[1:]]
    starts, ends, axes, strides = [*given, None, None][:4]
    axes = np.arange(len(starts)) if axes is None else axes % len(data.x.shape)
    strides = np.ones_like(axes) if strides is None else strides
    for start, end, axis, step in zip(starts, ends, axes, strides, strict=True):
        whole = end == count(data.mask) if isinstance(end, Count) else end >= data.x.shape[data.axis]
        if axis == data.axis and (not whole or start != 0 or step != 1):
            raise Unsupported("drops tokens of one expert") if isinstance(end, Count) else Unsupported(*FROZEN)
    rest = axes != data.axis
    return lifted(c, op, [data, *(sizes(c, v[rest]) for v in (starts, ends, axes, strides))], full) if rest.any() else data


def computed_slice(c: Context, op: Op, x: Sequence[Any]) -> Any:
    """A Slice or Split of a plain tensor by computed numbers, along one axis; None where they are constants."""
    data, numbers = x[0], [plain(c, v) for v in x[1:]]
    if not isinstance(data, Ref) or all(v is None or isinstance(v, Ref) and v.constant is not None for v in numbers):
        return None
    if not all(v is None or isinstance(v, Ref) for v in numbers):
        raise Unsupported(PLACES)
    if op.type == "Split":
        ends = [c.t.const(np.int64(0))]
        for i in range(len(op.outputs)):
            ends.append(c.t.map("add", ends[-1], c.t.reshape(c.t.slice(numbers[0], 0, i, 1), ())))
        return [_between(c, data, op.attribute("axis", 0), a, b) for a, b in zip(ends, ends[1:], strict=False)]
    starts, ends_of, axes, strides = [*numbers, None, None][:4]
    if starts.shape != (1,) or strides is not None and strides.scalar != 1:
        raise Unsupported("slices several axes, or by steps, at computed places")
    axis = 0 if axes is None else c.ints(axes, "axes")[0]
    return _between(c, data, axis, c.t.reshape(starts, ()), c.t.reshape(ends_of, ()))


def _between(c: Context, x: Ref, axis: int, start: Ref, end: Ref) -> Ragged:
    """The entries start .. end of an axis."""
    axis %= len(x.shape)
    place = c.t.const(np.arange(x.shape[axis]))
    low, high = (positive(c, v, x.shape[axis]) for v in (start, end))
    return Ragged(x, c.t.map("and", c.t.map("le", low, place), c.t.map("lt", place, high)), axis)


@special("Concat")
def concat(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Behind each other along the ragged axis: the masks too."""
    ragged = [v for v in x if isinstance(v, Ragged)]
    axis = op.attribute("axis") % len(ragged[0].x.shape) if ragged else 0
    if not ragged or any(isinstance(v, Sizes | Place) for v in x) or any(v.axis != axis for v in ragged):
        return None
    masks = [v.mask if isinstance(v, Ragged) else c.t.full((v.shape[axis],), np.bool_(True)) for v in x]
    return Ragged(c.t.concat([v.x if isinstance(v, Ragged) else v for v in x], axis), c.t.concat(masks, 0), axis)


NEUTRAL = {"Sum": 0, "SumSquare": 0, "L1": 0, "L2": 0, "Mean": 0, "Prod": 1, "Max": -np.inf, "Min": np.inf}


@special(*(f"Reduce{kind}" for kind in NEUTRAL))
def reduce(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Over the tokens of an expert: those of others made neutral. The mean of none is 0, as onnxruntime has it."""
    data, kind = x[0], op.type[6:]
    if not isinstance(data, Ragged):
        return None
    given = c.argument(op, x, 1, "axes")
    axes = range(len(data.x.shape)) if given is None or not given.size else given.reshape(-1) % len(data.x.shape)
    if data.axis not in axes:
        return None
    if data.dtype != FLOAT and kind in ("Max", "Min"):
        raise Unsupported("is the largest or smallest integer of an expert's tokens")
    neutral = c.t.const(np.asarray(NEUTRAL[kind], np.float32 if data.dtype == FLOAT else np.int64))
    (made,) = listed(full(c, op, [c.t.map("where", along(c, data.mask, data.x, data.axis), data.x, neutral), *x[1:]]))
    held = c.t.map("max", c.t.map("float", number(c, count(data.mask))), 1.0)
    share = c.t.map("div", float(data.x.shape[data.axis]), held)
    return c.t.map("mul", made, share) if kind == "Mean" else made


# --- there and back ---------------------------------------------------------------------------------------------------


@special("Gather", "GatherND", "GatherElements")
def gather(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Entries of a computed index that do not count are 0, so that all are in range."""
    data, index = x
    if isinstance(index, Place):
        axis = op.attribute("axis", 0) if op.type != "GatherND" else 0
        if not isinstance(data, Ragged) or data.mask != index.mask or data.axis != axis % len(data.x.shape):
            raise Unsupported(PLACES)
        return run(c, op, [data.x, index.x], full) if isinstance(index.x, Ragged) else full(c, op, [data.x, index.x])
    if not isinstance(index, Ragged) or index.x.constant is not None:
        return None
    held = c.t.map("where", along(c, index.mask, index.x, index.axis), index.x, 0)
    return lifted(c, op, [data, Ragged(held, index.mask, index.axis)], full)


@special("ScatterND", "ScatterElements", "Scatter")
def scatter(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Rows of one expert put to, or added to, their places in a full tensor."""
    data, index, updates = x
    if isinstance(data, Ragged | Place) or not isinstance(index, Ragged):
        return None
    if not isinstance(updates, Ragged):
        raise Unsupported("puts other rows to the places of an expert's tokens")
    one_mask([index, updates])
    t, reduction, places = c.t, op.attribute("reduction", "none"), index.x
    if op.type == "ScatterND":
        places = _whole_rows(c, data, places) if index.axis == 0 else places
        if len(places.shape) != 2 or index.axis != 0 or updates.axis != 0:
            raise Unsupported("puts rows to places that are no list")
        depth = places.shape[1]
        rows = t.reshape(data, (-1, *data.shape[depth:]))
        return t.reshape(put(c, rows, flat_index(c, places, data.shape[:depth]), updates.x, index.mask, reduction), data.shape)
    axis = op.attribute("axis", 0) % len(data.shape)
    if index.axis != axis or updates.axis != axis:
        raise Unsupported(MIXES)
    order = [axis, *(i for i in range(len(data.shape)) if i != axis)]
    rows, wide, updated = (t.transpose(v, order) for v in (data, positive(c, places, data.shape[axis]), updates.x))
    if wide.shape[1:] == rows.shape[1:] and _of_rows(wide):
        for i in range(1, len(wide.shape)):
            wide = t.slice(wide, i, 0, 1)
        made = put(c, rows, t.reshape(wide, (-1,)), updated, index.mask, reduction)
    else:
        made = _put_aside(c, rows, wide, updated, index.mask, reduction)
    return t.transpose(made, [order.index(i) for i in range(len(order))])


def _whole_rows(c: Context, data: Ref, places: Ref) -> Ref:
    """Constant indices [n, .., k] that name every element of whole rows, as x[i, :] = y has them, as those of the rows [n, j]."""
    known, within = places.constant, places.shape[1:-1]
    depth = places.shape[-1] - len(within)
    if known is None or not within or depth < 1 or data.shape[depth : places.shape[-1]] != within:
        return places
    at = (slice(None), *[slice(0, 1)] * len(within), slice(0, depth))
    first = known[at]
    whole = (known[..., :depth] == first).all() and (known[..., depth:] == np.moveaxis(np.indices(within), 0, -1)).all()
    return c.t.const(first.reshape(len(known), depth)) if whole else places


def _of_rows(index: Ref) -> bool:
    """Whether all elements of a row have one index."""
    known = index.constant
    if known is None:
        return not any(any(index.layout.strides(i)) for i in range(1, len(index.shape)))
    flat = known.reshape(len(known), -1)
    return bool((flat == flat[:, :1]).all())


def put(c: Context, rows: Ref, places: Ref, updates: Ref, mask: Ref, reduction: str) -> Ref:
    """rows [m, ..] with updates [n, ..] at `places` [n] where `mask` [n] holds; equally many for each row where constant."""
    t, ones = c.t, [1] * (len(rows.shape) - 1)
    groups = evenly(c, places, rows.shape[0]) if reduction in ("none", "add") else None
    if groups is None:
        wide = t.expand(t.reshape(places, (-1, *ones)), updates.shape)
        return _put_aside(c, rows, wide, updates, mask, reduction)
    masks, updates = groups(t.expand(t.reshape(mask, (-1, *ones)), updates.shape)), groups(updates)
    if reduction == "add":
        zero = False if updates.dtype == BOOL else 0
        return t.map("add", rows, t.reduce("sum", t.map("where", masks, updates, zero), [1], keep=False))
    for i in range(masks.shape[1]):
        held, new = (t.reshape(t.slice(v, 1, i, 1), rows.shape) for v in (masks, updates))
        rows = t.map("where", held, new, rows)
    return rows


def _put_aside(c: Context, rows: Ref, index: Ref, updates: Ref, mask: Ref, reduction: str) -> Ref:
    """By a scatter along axis 0 whose updates that do not count go to one more row."""
    t, m, rank = c.t, rows.shape[0], len(rows.shape)
    padded = t.pad(rows, [0] * rank, [1] + [0] * (rank - 1))
    index = t.map("where", along(c, mask, index, 0), index, m)
    return t.slice(t.scatter(padded, index, updates, 0, reduction), 0, 0, m)
