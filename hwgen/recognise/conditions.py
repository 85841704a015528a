"""Conditions on what is computed, as numbers: 1 where they hold, else 0. Comparisons of floating point numbers become steps, of
indices with their places rows of ones and zeros, counts of conditions sums."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ..layers import Activation, Hard
from ..tensor import BOOL, FLOAT, INT, Builder, Concat, Gather, Node, Reduce, Ref, Scatter, TopK
from .lists import in_lists, listed, plain
from .match import constant, group, is_map, layer, regroup

Array = np.ndarray
MOST_COUNTED = 128  # conditions of which a sum of int8 numbers tells one more or less
FEW_LISTS = 16  # that are sorted one by one, rather than compared all at once
MOST_PLACES = 4  # of one list that are each a choice of its own
INVERSE: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda y: float(np.log(y / (1 - y))),
    "tanh": np.arctanh,
    "exp": np.log,
}
REACH = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "exp": (0.0, np.inf)}  # between which they have an inverse


def stepped(t: Builder, node: Node) -> Ref | None:
    """A condition as a number, or a choice by one between numbers."""
    if node.dtype != FLOAT or not is_map(node, "float", "where") or constant(node.operands[0]):
        return None
    if is_map(node, "float"):
        return number(t, node.operands[0])
    condition, one, other = node.operands
    if any(r.constant is not None and not np.isfinite(r.numbers).all() for r in (one, other)):
        return None
    if any(r.scalar is not None and abs(r.scalar) >= 1e3 for r in (one, other)):
        return None  # a mask
    holds = number(t, condition)
    return None if holds is None else chosen(t, holds, one, other)


def chosen(t: Builder, holds: Ref, one: Ref, other: Ref) -> Ref:
    """One number where `holds` is 1, another where it is 0."""
    if other.scalar is not None:
        y = t.map("mul", t.map("sub", one, other.scalar) if other.scalar else one, holds)
        return t.map("add", y, other.scalar) if other.scalar else y
    if one.scalar is not None:
        y = t.map("mul", t.map("sub", other, one.scalar) if one.scalar else other, opposite(t, holds))
        return t.map("add", y, one.scalar) if one.scalar else y
    return t.map("add", t.map("mul", one, holds), t.map("mul", other, opposite(t, holds)))


def opposite(t: Builder, r: Ref) -> Ref:
    return t.map("sub", 1.0, r)


def number(t: Builder, r: Ref) -> Ref | None:
    """A condition, or whole numbers counted from conditions, as floating point numbers; None where it is neither."""
    if r.dtype == FLOAT:
        return r
    if (known := r.constant) is not None:
        return t.const(np.asarray(known, np.float32))
    made = _number(t, r.node)
    return None if made is None else t.through(r.layout, made)


def _number(t: Builder, node: Node) -> Ref | None:
    if isinstance(node.op, Reduce) and node.op.function in ("sum", "max", "min") and node.dtype == INT:
        inner = number(t, node.operands[0])
        if inner is None or node.op.function != "min":
            return None if inner is None else t.reduce(node.op.function, inner, node.op.axes)
        return opposite(t, t.reduce("max", opposite(t, inner), node.op.axes))
    if isinstance(node.op, Concat | Gather) and node.dtype in (BOOL, INT):
        count = 1 if isinstance(node.op, Gather) else len(node.operands)  # a gather's second operand says where
        parts = [number(t, r) for r in node.operands[:count]]
        fixed = count == len(node.operands) or constant(node.operands[1])
        return t.node(node.op, *(r for r in parts if r), *node.operands[count:]) if fixed and all(parts) else None
    if not is_map(node):
        return None
    f, operands = node.op.function, node.operands
    if f in ("int", "bool", "float") and operands[0].dtype in (BOOL, INT):
        inner = number(t, operands[0])
        return inner if f != "bool" or operands[0].dtype == BOOL or (inner is not None and is_number(inner)) else None
    if f == "where":
        holds, on, off = (number(t, r) for r in operands)
        return None if holds is None or on is None or off is None else chosen(t, holds, on, off)
    if f == "not":
        inner = number(t, operands[0])
        return None if inner is None else opposite(t, inner)
    if f in ("and", "or") and node.dtype == BOOL:
        one, other = (number(t, r) for r in operands)
        if one is None or other is None:
            return None
        both = t.map("mul", one, other)
        return both if f == "and" else t.map("sub", t.map("add", one, other), both)
    if f in ("lt", "le"):
        return _compared(t, f, *operands)
    if f == "eq":
        return _placed(t, node) or _counted(t, *operands)
    return None


def _compared(t: Builder, f: str, low: Ref, high: Ref) -> Ref | None:
    low, high = _bare(t, low, high)
    form = "positive" if f == "lt" else "nonnegative"
    small, large = number(t, low), number(t, high)
    if small is None or large is None or BOOL in (low.dtype, high.dtype):
        return None
    difference = t.map("sub", large, small) if small.scalar != 0 else large
    if low.dtype == INT:  # half way between whole numbers
        form, difference = "positive", t.map("add", difference, -0.5 if f == "lt" else 0.5)
    return t.through(difference.layout, t.node(Activation(form), difference.node.ref))


def _bare(t: Builder, low: Ref, high: Ref) -> tuple[Ref, Ref]:
    """Both sides of a comparison with a number, without a function that rises."""
    while True:
        for one, limit in ((low, high), (high, low)):
            y = limit.scalar
            if y is None or not is_map(one, *INVERSE):
                continue
            f = one.op.function
            if not REACH[f][0] < y < REACH[f][1]:
                continue
            inner = t.through(one.layout, one.node.operands[0])
            moved = t.full(inner.shape, np.float32(INVERSE[f](y)))
            low, high = (inner, moved) if one is low else (moved, inner)
            break
        else:
            return low, high


def _counted(t: Builder, one: Ref, other: Ref) -> Ref | None:
    """Whether a count is a given one: of the most there are, whether it is not less."""
    one, other = (other, one) if constant(one) else (one, other)
    count, made = other.scalar, number(t, one) if one.dtype == INT else None
    if count is None or made is None:
        return None
    inner = one.node
    most = prod(inner.operands[0].shape[a] for a in inner.op.axes) if isinstance(inner.op, Reduce) else 0
    reached = t.node(Activation("positive"), t.map("sub", made, count - 0.5))
    if most == count <= MOST_COUNTED:
        return reached
    if most == count:
        each = number(t, inner.operands[0])  # all hold, where the least does
        return each and t.through(one.layout, opposite(t, t.reduce("max", opposite(t, each), inner.op.axes)))
    if most > MOST_COUNTED:
        return None
    return t.map("mul", reached, t.node(Activation("positive"), t.map("sub", count + 0.5, made)))


def _placed(t: Builder, node: Node) -> Ref | None:
    """Where indices equal the places along an axis: rows of ones and zeros."""
    index, ramp = node.operands[::-1] if constant(node.operands[0]) else node.operands
    if ramp.constant is None or index.dtype != INT:
        return None
    moving = [i for i, loops in enumerate(ramp.layout.axes) if any(s for _, s in loops)]
    if len(moving) != 1 or any(s for _, s in index.layout.axes[moving[0]]):
        return None
    axis, count = moving[0], node.shape[moving[0]]
    if not np.array_equal(np.moveaxis(ramp.numbers, axis, 0).reshape(count, -1)[:, 0], np.arange(count)):
        return None
    return ones(t, t.slice(index, axis, 0, 1), count, axis)


def ones(t: Builder, index: Ref, count: int, axis: int) -> Ref | None:
    """1 at the place along `axis`, of so many, that an index of length 1 there names: else 0."""
    index = plain(t, index)
    rest = [i for i in range(len(index.shape)) if i != axis]
    sizes = [count if i == axis else n for i, n in enumerate(index.shape)]
    flat = t.reshape(index, (index.layout.size,))
    made = _best(t, flat, count) if flat.layout.size > FEW_LISTS else None
    if made is None:
        rows = listed(t, t.const(np.eye(count, dtype=np.float32)), flat)
        if rows is not None:
            return regroup(t, rows, sizes, [*rest, axis])
        made = _best(t, flat, count)
    return None if made is None else regroup(t, made, sizes, [axis, *rest])


def _best(t: Builder, index: Ref, count: int) -> Ref | None:
    """The first, second, .. best of each of many lists, [count, L]."""
    best = index.node
    if not isinstance(best.op, TopK):
        return None
    (scores,), axis = best.operands, best.op.axis
    places, _, lines = in_lists(index)
    place = int(places[0])
    if np.ptp(places) or place >= MOST_PLACES or scores.shape[axis] != count or scores.dtype != FLOAT:
        return None
    rest = [i for i in range(len(scores.shape)) if i != axis]
    scores = group(scores if best.op.largest else t.map("neg", scores), [axis], rest)
    return t.gather(t.node(Hard(place), scores), t.const(lines), 1)


def placed(t: Builder, node: Node) -> Ref | None:
    """Numbers written over or added to a constant at the places of lists: each place's ones times its number."""
    if not isinstance(node.op, Scatter) or node.dtype != FLOAT or node.op.reduction not in ("none", "add"):
        return None
    (x, index, updates), axis = node.operands, node.op.axis
    count, length = node.shape[axis], index.shape[axis]
    index = plain(t, index)
    whole = all(index.shape[i] == n for i, n in enumerate(node.shape) if i != axis)
    if not whole or constant(index) or length > MOST_PLACES or (length > 1 and not _distinct(index, axis)):
        return None
    base = x.scalar if node.op.reduction == "none" else 0.0
    if base is None:
        return None
    total: Ref | None = None
    for i in range(length):
        one = ones(t, t.slice(index, axis, i, 1), count, axis)
        if one is None:
            return None
        own = t.slice(updates, axis, i, 1)
        term = t.map("mul", one, t.map("sub", own, base) if base else own)
        total = term if total is None else t.map("add", total, term)
    y = t.map("add", total, x if node.op.reduction == "add" else base)
    return t.reshape(y, node.shape)


def _distinct(index: Ref, axis: int) -> bool:
    """Whether indices along an axis are places of one list, each another."""
    best = index.node
    if not isinstance(best.op, TopK):
        return False
    at = np.stack(np.unravel_index(index.layout.positions(), best.shape))
    at = np.moveaxis(at, axis + 1, 1)
    same = all((a == a[:1]).all() for i, a in enumerate(at) if i != best.op.axis)
    places = np.sort(at[best.op.axis], axis=0)
    return same and bool((np.diff(places, axis=0) > 0).all())


def is_number(r: Ref) -> bool:
    """Whether it is 0 or 1 by its making."""
    if layer(r, Hard) or (layer(r, Activation) and r.op.form in ("positive", "nonnegative")):
        return True
    if is_map(r, "sub"):
        return r.node.operands[0].scalar == 1 and is_number(r.node.operands[1])
    if isinstance(r.op, Reduce) and r.op.function == "max":
        return is_number(r.node.operands[0])
    return is_map(r, "mul") and all(is_number(o) for o in r.node.operands)
