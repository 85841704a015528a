"""Operators that choose elements by indices, constant or computed, and masks made of positions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ...tensor import BOOL, INT, Ref, TopK
from ...tensor.build import wrapped
from ...tensor.layout import check_size
from ..rules import Array, Context, Op, Unsupported, rule

PIECES = 16  # runs of constant positions that become a concatenation instead of a gather


def positive(c: Context, index: Ref, length: int) -> Ref:
    """Indices with those from behind counted from the front."""
    known = index.constant
    if known is not None:
        return c.t.const(np.where(known < 0, known + length, known).astype(np.int64))
    if isinstance(index.op, TopK):  # never negative
        return index
    return c.t.map("where", c.t.map("lt", index, 0), c.t.map("add", index, length), index)


@rule("Gather")
def gather(c: Context, op: Op, x: Ref, index: Ref) -> Ref:
    axis = op.axis(len(x.shape))
    return c.t.gather(x, positive(c, index, x.shape[axis]), axis)


@rule("GatherElements")
def gather_elements(c: Context, op: Op, x: Ref, index: Ref) -> Ref:
    axis = op.axis(len(x.shape))
    for i, n in enumerate(index.shape):
        x = c.t.slice(x, i, 0, n) if i != axis else x
    return c.t.gather(x, positive(c, index, x.shape[axis]), axis, elements=True)


def flat_index(c: Context, index: Ref, lengths: tuple[int, ...]) -> Ref:
    """Indices [.., k] into axes of `lengths` as positions in those axes made one."""
    flat = None
    for i, n in enumerate(lengths):
        one = positive(c, c.t.reshape(c.t.slice(index, -1, i, 1), index.shape[:-1]), n)
        flat = one if flat is None else c.t.map("add", c.t.map("mul", flat, n), one)
    return flat if flat is not None else c.t.full(index.shape[:-1], np.int64(0))


@rule("GatherND")
def gather_nd(c: Context, op: Op, x: Ref, index: Ref) -> Ref:
    lead, deep = op.attribute("batch_dims", 0), index.shape[-1]
    batch, lengths, rest = x.shape[:lead], x.shape[lead : lead + deep], x.shape[lead + deep :]
    if index.shape[:lead] != batch:
        raise ValueError(f"indices {list(index.shape)} into {list(x.shape)}")
    flat = flat_index(c, index, lengths)
    if prod(batch) > 1:
        first = np.arange(prod(batch)).reshape(*batch, *[1] * (len(flat.shape) - lead)) * prod(lengths)
        flat = c.t.map("add", flat, c.t.const(first))
    return c.t.gather(c.t.reshape(x, (prod(batch) * prod(lengths), *rest)), flat, 0)


@rule("ScatterND")
def scatter_nd(c: Context, op: Op, x: Ref, index: Ref, updates: Ref) -> Ref:
    deep = index.shape[-1]
    rows, width = prod(x.shape[:deep]), prod(x.shape[deep:])
    flat = c.t.reshape(flat_index(c, index, x.shape[:deep]), (prod(index.shape[:-1]),))
    if flat.constant is not None and op.attribute("reduction", "none") == "none":
        whole = _replaced(c, x, deep, flat.constant, updates)
        if whole is not None:
            return whole
    y = _scatter(c, op, c.t.reshape(x, (rows, width)), flat, c.t.reshape(updates, (flat.shape[0], width)))
    return c.t.reshape(y, x.shape)


@rule("ScatterElements", "Scatter")
def scatter_elements(c: Context, op: Op, x: Ref, index: Ref, updates: Ref) -> Ref:
    axis = op.axis(len(x.shape))
    index = positive(c, index, x.shape[axis])
    known = index.constant
    if known is not None and op.attribute("reduction", "none") == "none":
        place: list[Array] = list(np.indices(known.shape, sparse=True))
        place[axis] = known
        flat = c.t.const(np.ravel_multi_index(tuple(np.broadcast_arrays(*place)), x.shape).reshape(-1))
        if (whole := _replaced(c, x, len(x.shape), flat.numbers, updates)) is not None:
            return whole
        y = _scatter(c, op, c.t.reshape(x, (prod(x.shape), 1)), flat, c.t.reshape(updates, (known.size, 1)))
        return c.t.reshape(y, x.shape)
    return c.t.scatter(x, index, updates, axis, op.attribute("reduction", "none"))


def _replaced(c: Context, x: Ref, deep: int, flat: Array, updates: Ref) -> Ref | None:
    """x, of which whole slices along one of the first `deep` axes are replaced by the updates in their order, such as channels
    that are assigned in place; None where it is not so."""
    lead = x.shape[:deep]
    places = np.full(prod(lead), -1)
    places[flat] = np.arange(len(flat))
    origin = places.reshape(lead)
    for axis, count in enumerate(lead):
        new = np.moveaxis(origin >= 0, axis, 0).reshape(count, -1)
        if (new != new[:, :1]).any():
            continue
        taken = np.compress(new[:, 0], origin, axis)
        if not np.array_equal(taken.reshape(-1), np.arange(len(flat))):
            continue
        inner, used, parts = c.t.reshape(updates, (*taken.shape, *x.shape[deep:])), 0, []
        for run in np.split(np.arange(count), np.flatnonzero(np.diff(new[:, 0])) + 1):
            own = bool(new[run[0], 0])
            parts.append(c.t.slice(inner if own else x, axis, used if own else int(run[0]), len(run)))
            used += len(run) if own else 0
        return c.t.concat(parts, axis)
    return None


def _scatter(c: Context, op: Op, x: Ref, flat: Ref, updates: Ref) -> Ref:
    """Rows of x [rows, width] overwritten at `flat` by `updates`, the last one winning; constant indices choose among both."""
    reduction = op.attribute("reduction", "none")
    known = flat.constant
    groups = evenly(c, flat, x.shape[0]) if reduction == "add" else None
    if groups is not None:
        return c.t.map("add", x, c.t.reduce("sum", groups(updates), [1], keep=False))
    if known is None or reduction != "none":
        index = c.t.expand(c.t.reshape(flat, (*flat.shape, 1)), updates.shape)
        return c.t.scatter(x, index, updates, 0, reduction)
    origin = np.arange(x.shape[0])
    origin[known] = x.shape[0] + np.arange(len(known))
    return chosen(c, [x, updates], origin)


def evenly(c: Context, places: Ref, m: int) -> Callable[[Ref], Ref] | None:
    """What arranges updates [n, ..] by the row that each is for, [m, n / m, ..] in their order; None unless the places [n] are
    constants that name every one of m rows equally often."""
    known = places.constant
    if known is None or not known.size:
        return None
    n, t, hits = len(known), c.t, np.bincount(known, minlength=m)
    if len(hits) > m:
        raise ValueError(f"index {int(known.max())} of {m}")
    if not hits.all() or hits.min() != hits.max():
        return None
    each = n // m
    if np.array_equal(known, np.arange(n) // each):
        return lambda x: t.reshape(x, (m, each, *x.shape[1:]))
    if np.array_equal(known, np.arange(n) % m):
        return lambda x: t.transpose(t.reshape(x, (each, m, *x.shape[1:])), (1, 0, *range(2, len(x.shape) + 1)))
    order = np.argsort(known, kind="stable").reshape(m, each)
    return lambda x: t.gather(x, t.const(order), 0)


def chosen(c: Context, parts: list[Ref], origin: Array) -> Ref:
    """Rows `origin` of the parts behind each other: whole runs of them, where they are few."""
    ends = np.cumsum([0, *(p.shape[0] for p in parts)])
    breaks = np.flatnonzero((np.diff(origin) != 1) | np.isin(origin[1:], ends)) + 1
    if len(breaks) >= PIECES:
        return c.t.gather(c.t.concat(parts, 0), c.t.const(origin), 0)
    runs = []
    for run in np.split(origin, breaks):
        part = int(np.searchsorted(ends, run[0], "right")) - 1
        runs.append(c.t.slice(parts[part], 0, int(run[0] - ends[part]), len(run)))
    return c.t.concat(runs, 0)


@rule("TopK")
def top_k(c: Context, op: Op, x: Ref, count: Ref | None = None) -> list[Ref]:
    """Sorted, whether asked for or not; ties go to the lower index."""
    op.ignore("sorted")
    (k,) = [op.attribute("k")] if count is None else c.ints(count, "K")
    axis = op.axis(len(x.shape), -1)
    index = c.t.topk(x, k, axis, op.flag("largest", True))
    return [c.t.gather(x, index, axis, elements=True), index]


@rule("ArgMax", "ArgMin")
def arg_max(c: Context, op: Op, x: Ref) -> Ref:
    axis, largest = op.axis(len(x.shape)), op.type == "ArgMax"
    if op.flag("select_last_index"):
        n = x.shape[axis]
        y = c.t.map("sub", n - 1, c.t.topk(c.t.slice(x, axis, n - 1, n, -1), 1, axis, largest))
    else:
        y = c.t.topk(x, 1, axis, largest)
    return y if op.flag("keepdims", True) else c.t.reshape(y, (*x.shape[:axis], *x.shape[axis + 1 :]))


def along(c: Context, rank: int, axis: int, length: int) -> Ref:
    """0 .. length - 1 along an axis of `rank` axes."""
    check_size((length,))
    return c.t.reshape(c.t.const(np.arange(length)), [length if i == axis else 1 for i in range(rank)])


@rule("Hardmax")
def hardmax(c: Context, op: Op, x: Ref) -> Ref:
    """Before opset 13 over all axes from `axis` on as one."""
    axis = op.axis(len(x.shape), -1 if op.opset >= 13 else 1)
    y = x if op.opset >= 13 else c.t.reshape(x, (*x.shape[:axis], prod(x.shape[axis:])))
    y = c.t.map("eq", c.t.topk(y, 1, axis), along(c, len(y.shape), axis, y.shape[axis]))
    return c.t.reshape(c.t.map("float", y), x.shape)


@rule("OneHot")
def one_hot(c: Context, op: Op, index: Ref, depth: Ref, values: Ref) -> Ref:
    """Indices out of range give rows without a one."""
    (n,) = c.ints(depth, "depth")
    rank = len(index.shape) + 1
    axis = op.axis(rank, -1)
    index = positive(c, c.t.map("int", index), n)
    hit = c.t.map("eq", c.t.reshape(index, (*index.shape[:axis], 1, *index.shape[axis:])), along(c, rank, axis, n))
    off, on = (c.t.reshape(c.t.slice(values, 0, i, 1), ()) for i in (0, 1))
    return c.t.map("where", hit, on, off)


@rule("CumSum")
def cumsum(c: Context, op: Op, x: Ref, axis_of: Ref) -> Ref:
    """A product with a constant triangle of ones."""
    (axis,) = c.ints(axis_of, "axis")
    axis = wrapped(axis, len(x.shape))
    matrix = np.tril(np.ones((x.shape[axis], x.shape[axis])), -1 if op.flag("exclusive") else 0)
    matrix = matrix[::-1, ::-1] if op.flag("reverse") else matrix
    letters = "abcdefgh"[: len(x.shape)]
    triangle = c.t.const(matrix.astype(np.int64 if x.dtype == INT else np.float32))
    return c.t.contract(f"{letters},z{letters[axis]}->{letters.replace(letters[axis], 'z')}", x, triangle)


@rule("Trilu")
def trilu(c: Context, op: Op, x: Ref, k: Ref | None = None) -> Ref:
    diagonal = 0 if k is None else c.ints(k, "k")[0]
    ones = np.ones(x.shape[-2:], bool)
    mask = c.t.const(np.triu(ones, diagonal) if op.flag("upper", True) else np.tril(ones, diagonal))
    return c.t.map("and", mask, x) if x.dtype == BOOL else c.t.map("where", mask, x, 0)


@rule("EyeLike")
def eye(c: Context, op: Op, x: Ref) -> Ref:
    kind = {1: np.float32, 6: np.int64, 7: np.int64, 9: np.bool_}.get(op.attribute("dtype", {"f": 1, "i": 7, "b": 9}[x.dtype]))
    if kind is None:
        raise Unsupported(f"dtype is {op.attribute('dtype')}")
    return c.t.const(np.eye(x.shape[0], x.shape[1], op.attribute("k", 0)).astype(kind))
