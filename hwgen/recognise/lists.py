"""Lists of rows that a network computes: what an index holds, down to the top-k lists that it is made of.

A list is one line of a TopK: its scores tell which rows of anything it picks, so that an index is never a number on the
machine. Indices of indices are rows of rows; where an index is a score itself, as where kept tokens are put back in their
order, its numbers are rows of 0, 1, 2, ..; what is left where a list is taken away is the rest of its order.
"""

from __future__ import annotations

import numpy as np

from ..layers import Linear, Select
from ..tensor import INT, Builder, Concat, Const, Copy, Gather, Layout, Reduce, Ref, Scatter, TopK
from .match import factor_of, is_map

Array = np.ndarray
MOST_LISTS = 64  # of one gather, each a selection of its own
RISING = ("exp", "log", "sigmoid", "tanh", "sqrt", "atan", "erf", "softplus")
MOST_ROWS = 1 << 12  # of which one list may choose: their numbers are int16


def plain(t: Builder, index: Ref) -> Ref:
    """An index without what changes none of its numbers: casts, and a case for indices from behind where there are none."""
    while True:
        op, operands = index.op, index.node.operands
        if isinstance(op, Copy) or (is_map(index, "int", "float") and operands[0].dtype == INT):
            index = t.through(index.layout, operands[0])
            continue
        if is_map(index, "where"):
            condition, _, kept = operands
            negative = is_map(condition, "lt") and condition.node.operands[1].scalar == 0
            if negative and t.through(condition.layout, condition.node.operands[0]) == kept and lowest(kept) >= 0:
                index = t.through(index.layout, kept)
                continue
        return index


def listed(t: Builder, x: Ref, index: Ref) -> Ref | None:
    """x[index], x [N, C], index [L] of computed integers: [L, C]. None where the index is not made of lists."""
    if isinstance(index.op, Const):
        return t.gather(x, index, 0)
    index = plain(t, index)
    op, operands = index.op, index.node.operands
    if isinstance(op, TopK):
        return _of_lists(t, x, index)
    if isinstance(op, Concat):
        return _of_parts(t, x, index)
    if isinstance(op, Gather):
        return _of_gathered(t, x, index)
    if is_map(index, "add", "sub") and (step := operands[1].scalar) is not None and operands[0].dtype == INT:
        first = round(step) if is_map(index, "add") else -round(step)
        if 0 <= first < x.shape[0] and lowest(operands[0]) >= 0:
            return listed(t, t.slice(x, 0, first, x.shape[0] - first), t.through(index.layout, operands[0]))
    return None


def numbers(t: Builder, index: Ref, count: int) -> Ref | None:
    """The indices [L], below `count`, as floating point numbers [L]."""
    if not 0 < count <= MOST_ROWS:
        return None
    y = listed(t, t.const(np.arange(count, dtype=np.float32)[:, None]), index)
    return None if y is None else t.reshape(y, index.shape)


def ordered_as(t: Builder, scores: Ref) -> tuple[Ref, bool]:
    """Simpler scores [N] of the same order, or of the other one: (they, whether the same)."""
    sign = 1.0
    while True:
        scores, factor = factor_of(t, scores)
        sign *= factor
        if is_map(scores, *RISING):
            scores = t.through(scores.layout, scores.node.operands[0])
        elif (found := _of_two(t, scores)) is not None:
            return found, sign > 0
        else:
            return scores, sign > 0


def _of_two(t: Builder, scores: Ref) -> Ref | None:
    """Of one of two classes' softmax, or its logarithm, the difference of their logits."""
    node = scores.node
    if not is_map(node, "sub", "div") or node.shape[-1:] != (2,):
        return None
    one, total = node.operands
    if is_map(node, "sub"):
        if not is_map(total, "log"):
            return None
        total = t.through(total.layout, total.node.operands[0])
    power = total.node.operands[0] if isinstance(total.op, Reduce) and total.op.function == "sum" else total
    if not is_map(power, "exp") or not power.whole or not one.whole or total.op.axes != (len(node.shape) - 1,):
        return None
    if (one.node is not power.node) if is_map(node, "div") else (power.node.operands[0] != one):
        return None
    centred = power.node.operands[0]
    if not centred.whole or not is_map(centred, "sub"):
        return None
    z, most = centred.node.operands
    places = scores.layout.positions().reshape(-1)
    if not isinstance(most.op, Reduce) or most.op.function != "max" or most.op.axes != total.op.axes or np.ptp(places % 2):
        return None
    of_one = 1.0 if places[0] % 2 == 0 else -1.0
    rows = t.gather(t.reshape(z, (node.size // 2, 2)), t.const(places // 2), 0)
    weight = t.const(np.array([[of_one, -of_one]], np.float32))
    return t.reshape(t.node(Linear(), rows, weight), scores.shape)


def lowest(index: Ref) -> float:
    """A bound from below of integers; minus infinity where none is known."""
    op, operands = index.op, index.node.operands
    if isinstance(op, TopK):
        return 0
    if (known := index.constant) is not None:
        return float(known.min()) if known.size else 0
    if isinstance(op, Concat):
        return min(map(lowest, operands))
    if isinstance(op, Gather | Copy):
        return lowest(operands[0])
    if isinstance(op, Scatter) and op.reduction == "none":
        return min(lowest(operands[0]), lowest(operands[2]))
    if is_map(index, "add"):
        return sum(map(lowest, operands))
    if is_map(index, "where"):
        return min(map(lowest, operands[1:]))
    return -np.inf


def beyond(index: Ref) -> int | None:
    """A number that is above all indices of an index, where one is known."""
    op, operands = index.op, index.node.operands
    if isinstance(op, TopK):
        return int(operands[0].shape[op.axis])
    if (known := index.constant) is not None:
        return int(known.max()) + 1 if known.size else 1
    if isinstance(op, Gather | Copy):
        return beyond(operands[0])
    if isinstance(op, Concat | Scatter):
        found = [beyond(r) for r in (operands if isinstance(op, Concat) else operands[::2])]
        return None if None in found else max(f for f in found if f is not None)
    if is_map(index, "add"):
        found = [beyond(r) for r in operands]
        return None if None in found else sum(f for f in found if f is not None) - 1
    if is_map(index, "where") and lowest(operands[2]) >= 0:
        return beyond(operands[2])
    return None


def _runs(lines: Array) -> list[Array]:
    """Places of one line after another, line by line."""
    return np.split(np.arange(len(lines)), np.flatnonzero(np.diff(lines)) + 1)


def _joined(t: Builder, parts: list[Ref | None]) -> Ref | None:
    known = [p for p in parts if p is not None]
    return t.concat(known, 0) if len(known) == len(parts) else None


def _of_lists(t: Builder, x: Ref, index: Ref) -> Ref | None:
    """Elements of several top-k lists, one list after another."""
    places, lines, which = in_lists(index)
    runs = _runs(which)
    if len(runs) > MOST_LISTS:
        return None
    return _joined(t, [_of_list(t, x, index, places[run], lines[:, run[0]]) for run in runs])


def in_lists(index: Ref) -> tuple[Array, Array, Array]:
    """(place in its list, place along the other axes, number of the list) of each number of an index that top-k makes."""
    axis, shape = index.op.axis, index.node.shape
    at = np.stack(np.unravel_index(index.layout.positions().reshape(-1), shape))
    lines, others = np.delete(at, axis, 0), (*shape[:axis], *shape[axis + 1 :])
    return at[axis], lines, np.ravel_multi_index(tuple(lines), others) if others else np.zeros(len(at[axis]), np.int64)


def _of_list(t: Builder, x: Ref, index: Ref, places: Array, line: Array) -> Ref | None:
    op, (scores,) = index.op, index.node.operands
    line = np.insert(line, op.axis, 0)
    for i, at in enumerate(line):
        scores = t.slice(scores, i, int(at), 1) if i != op.axis else scores
    scores = t.reshape(scores, (scores.layout.size,))
    count = scores.shape[0]
    if count > x.shape[0]:
        return None
    if scores.dtype == INT:
        high = beyond(scores)
        made = numbers(t, scores, high) if high is not None and lowest(scores) >= 0 else None
        if made is None:
            return None
        scores = made
    if scores.dtype != "f" or scores.constant is not None:
        return None
    scores, rises = ordered_as(t, scores)
    scores = scores if rises == op.largest else t.map("neg", scores)
    first, last = int(places.min()), int(places.max())
    y = t.node(Select(first, last - first + 1), t.slice(x, 0, 0, count), scores)
    return t.gather(y, t.const(places - first), 0)


def _rest(t: Builder, x: Ref, values: Ref, places: Array) -> Ref | None:
    """Rows that a list does not name, in their order: of 0, 1, 2, .. with zeros in its places, sorted, those behind as many."""
    ramp, named, zero = values.node.operands
    count, width = values.node.size, named.layout.size
    known, flat = ramp.constant, t.reshape(named, (width,))
    if known is None or zero.scalar != 0 or not np.array_equal(known.reshape(-1), np.arange(count)):
        return None
    best = flat.node
    whole = isinstance(best.op, TopK) and best.size == best.shape[best.op.axis] and flat.layout == Layout.dense((width,))
    if not whole or best.operands[0].layout.size != count or places.min() < width:
        return None
    order = t.topk(t.reshape(best.operands[0], (count,)), count, 0, best.op.largest)
    rest = t.slice(order, 0, width, count - width)
    back = t.topk(rest, count - width, 0, False)
    return listed(t, x, t.gather(rest, t.gather(back, t.const(places - width), 0), 0, elements=True))


def _of_parts(t: Builder, x: Ref, index: Ref) -> Ref | None:
    """Elements of indices behind each other."""
    op, operands = index.op, index.node.operands
    at = list(np.unravel_index(index.layout.positions().reshape(-1), index.node.shape))
    ends = np.cumsum([r.shape[op.axis] for r in operands])
    which = np.searchsorted(ends, at[op.axis], "right")
    runs = _runs(which)
    if len(runs) > MOST_LISTS:
        return None
    parts = []
    for run in runs:
        r = operands[int(which[run[0]])]
        place = [a[run] for a in at]
        place[op.axis] = place[op.axis] - (ends[which[run[0]]] - r.shape[op.axis])
        parts.append(listed(t, x, _picked(t, r, np.ravel_multi_index(tuple(place), r.shape))))
    return _joined(t, parts)


def _picked(t: Builder, r: Ref, flat: Array) -> Ref:
    """Elements of an operand [L] by their places in it."""
    return t.gather(t.reshape(r, (r.layout.size,)), t.const(flat), 0)


def _of_gathered(t: Builder, x: Ref, index: Ref) -> Ref | None:
    """Indices picked by indices: rows of the rows that the inner index names."""
    op, (data, chosen) = index.op, index.node.operands
    if isinstance(data.op, Scatter):
        sort = chosen.op
        sorts = isinstance(sort, TopK) and not sort.largest and chosen.node.operands[0] == data and data.whole
        one = sorts and data.node.size == data.shape[sort.axis] and data.op.reduction == "none" and op.axis == sort.axis
        return _rest(t, x, data, _through(index, chosen)) if one and op.elements else None
    a, rank = op.axis, 1 if op.elements else len(chosen.shape)
    at = np.unravel_index(index.layout.positions().reshape(-1), index.node.shape)
    inner = np.ravel_multi_index(at if op.elements else at[a : a + rank], chosen.shape)
    others = [*at[:a], *at[a + rank :]]
    sizes = [n for i, n in enumerate(data.shape) if i != a]
    which = np.ravel_multi_index(tuple(others), sizes) if others else np.zeros(len(inner), np.int64)
    runs = _runs(which)
    if len(runs) > MOST_LISTS:
        return None
    parts = []
    for run in runs:
        line, place = data, iter([int(o[run[0]]) for o in others])
        if isinstance(data.op, TopK) and data.whole and data.op.axis != a and data.shape == data.node.shape:
            parts.append(_of_chosen_lists(t, x, data, a, list(place), _picked(t, chosen, inner[run])))
            continue
        for i in range(len(data.shape)):
            line = line if i == a else t.slice(line, i, next(place), 1)
        rows = listed(t, x, t.reshape(line, (line.layout.size,)))
        parts.append(None if rows is None else listed(t, rows, _picked(t, chosen, inner[run])))
    return _joined(t, parts)


def _through(index: Ref, chosen: Ref) -> Array:
    """Which elements of the node of `chosen` those of an index that is gathered by it, element by element, are picked by."""
    found: Array = chosen.layout.positions().reshape(-1)[index.layout.positions().reshape(-1)]
    return found


def _of_chosen_lists(t: Builder, x: Ref, data: Ref, axis: int, place: list[int], chosen: Ref) -> Ref | None:
    """One element each of lists that are chosen by a list: of the scores of those alone."""
    place.insert(axis, 0)
    at, (scores,) = data.op.axis, data.node.operands
    if scores.dtype != "f":
        return None
    for i in range(len(scores.shape)):
        scores = scores if i in (axis, at) else t.slice(scores, i, place[i], 1)
    order = (axis, at, *(i for i in range(len(scores.shape)) if i not in (axis, at)))
    scores = t.reshape(t.transpose(scores, order), (data.shape[axis], data.node.operands[0].shape[at]))
    rows = listed(t, scores, chosen)
    if rows is None:
        return None
    best = t.topk(rows, place[at] + 1, 1, data.op.largest)
    return listed(t, x, t.reshape(t.slice(best, 1, place[at], 1), (chosen.shape[0],)))

