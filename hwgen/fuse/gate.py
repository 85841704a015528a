"""Rules for the gate of a mixture of experts: softmax, top-k, and the masks made of the chosen experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..numerics import MAX_EXPERTS
from . import mixture
from .activation import ROUTER
from .emit import Context
from .op import Op, Unsupported, constant_argument
from .symbols import (
    Array,
    ChosenLogits,
    Gate,
    Mixture,
    Phi,
    Renormalised,
    SlotSum,
    Sym,
    TopIndices,
    TopValues,
    Unmasked,
)
from .views import Const, View, broadcast, need_rows, need_tensor, positions, reshaped, same_elements, uniform

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
    """ReduceMax over the experts: the score of a top-1 gate; of a mask: whether any of the slots holds the expert."""
    x, axes = values[0], constant_argument(op, values, 1, "axes")
    if is_mask(x) and axes is not None and np.size(axes) == 1:
        axis = int(np.ravel(axes)[0]) % len(x.shape)
        held = mixture.total(ctx, x, axis)  # one expert fills at most one slot, so that the largest is the sum
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        return reshaped(held, shape) if op.attribute("keepdims", 1) else held
    if axes is None or [int(n) % len(x.shape) for n in np.atleast_1d(axes)] != [len(x.shape) - 1]:
        hint = "pool by the class token or the mean of the tokens"
        raise Unsupported("is not the largest along the last axis", hint)
    top = _top(ctx, x, 1, True)[0]
    return top if op.attribute("keepdims", 1) else replace(top, shape=top.shape[:-1])


def _top(ctx: Context, x: View, k: int, ordered: bool) -> list[View]:
    gated = isinstance(x.sym, Gate)
    if isinstance(x.sym, Phi) and x.sym.form == "sigmoid":
        raise Unsupported("chooses experts by the sigmoid of their logits", ROUTER)
    if not gated:
        x = ctx.plain(x)
        need_tensor(x)
    rows = need_rows(x)
    tokens = x.sym.shape[0]
    if len(x.sym.shape) != 2 or not np.array_equal(rows.reshape(-1), np.arange(tokens)):
        raise Unsupported("does not choose experts for each token")
    logits = x.sym.logits if gated else x.sym
    shape = (*x.shape[:-1], k)
    if not 1 <= k <= x.sym.shape[-1]:
        raise Unsupported(f"chooses {k} of {x.sym.shape[-1]} experts")
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
    if isinstance(x.sym, ChosenLogits):
        top = x.sym
        if need_rows(x).size != top.shape[0] or x.scale != 1:
            raise Unsupported("is a softmax of something else than the chosen logits")
        gate = replace(member(top.logits, top.slots), score="renormalised")
        return View(gate, x.shape, None if x.index is None else x.positions)
    x = ctx.plain(x)
    need_tensor(x)
    if len(x.sym.shape) != 2 or not np.array_equal(need_rows(x).reshape(-1), np.arange(x.sym.shape[0])):
        raise Unsupported("is neither the softmax of attention nor that of a gate")
    return View(Gate(logits=x.sym, shape=x.sym.shape), x.shape)


# The chosen scores sum up to at least the mean score of as many experts as there may be.
LEAST_SUM = 1 / MAX_EXPERTS


def bounded(ctx: Context, op: Op, values: list) -> View:
    """Clip or Max of the sum of the chosen scores, which is never near zero, or of scores, which lie in 0..1."""
    if op.type == "Clip":
        low, high = (constant_argument(op, values, i, name) for i, name in ((1, "min"), (2, "max")))
    else:
        low, high = (next((v.array for v in values if isinstance(v, Const)), None), None)
    x = next(v for v in values if isinstance(v, View))
    least = LEAST_SUM if isinstance(x.sym, SlotSum) else 0.0
    known = isinstance(x.sym, SlotSum | Gate | Renormalised) or isinstance(x.sym, TopValues) and x.sym.gated
    fits = (low is None or np.all(low <= least * x.scale)) and (high is None or np.all(high >= x.scale))
    if not known or x.scale <= 0 or not fits or sum(isinstance(v, View) for v in values) != 1:
        raise Unsupported("limits the range of a computed tensor")
    return x


def renormalised(a: View, b: View) -> View:
    """Gate scores divided by the sum of the chosen ones; `b` is a SlotSum."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = broadcast(a, shape), broadcast(b, shape)
    part, slots = a.sym, b.sym.slots
    own, factor = part.logits is b.sym.logits, a.scale / b.scale
    if isinstance(part, Mixture):
        rows = a.positions // int(np.prod(part.shape[1:]))
        if not (own and part.score == "gate" and part.mask and part.slots == slots and np.array_equal(rows, b.positions)):
            raise Unsupported("divides gate scores by something else than their sum")
        return a.of(replace(part, score="renormalised"), factor)
    width = part.shape[-1]
    rows, slot = a.positions // width, a.positions % width
    if not (part.gated and own and np.array_equal(rows, b.positions)):
        raise Unsupported("divides gate scores by something else than their sum")
    if not (np.all(slot < slots) and (part.ordered or slots == width)):
        raise Unsupported("divides gate scores by the sum of other slots")
    sym = Renormalised(logits=part.logits, ordered=part.ordered, shape=(part.shape[0], slots))
    return View(sym, shape, rows * slots + slot, factor, tainted=a.tainted)


def by_itself(a: View, b: View) -> View | None:
    """Gate scores divided by their sum over one slot or one expert, which is they themselves; None where it is not."""
    part, shape = a.sym, np.broadcast_shapes(a.shape, b.shape)
    if part is not b.sym or a.scale != b.scale or not same_elements(broadcast(a, shape), broadcast(b, shape)):
        return None
    if isinstance(part, TopValues) and part.gated and part.shape[1] == 1:
        return broadcast(a, shape).of(Renormalised(logits=part.logits, ordered=part.ordered, shape=part.shape), 1.0)
    if isinstance(part, Mixture) and part.mask and part.score == "gate" and part.slots and part.logits.shape[-1] == 1:
        return broadcast(a, shape).of(replace(part, score="renormalised"), 1.0)
    return None


def is_mask(value: object) -> bool:
    """True for a view of a mask without scores and experts, slots summed or not."""
    if not isinstance(value, View) or not isinstance(value.sym, Mixture):
        return False
    return value.sym.mask and value.sym.score is None and not mixture.has_outputs(value.sym)


def compare(ctx: Context, op: Op, values: list) -> View:
    """Comparisons: of expert indices with expert numbers, of masks with 0 or 1, of scores with the least chosen one."""
    kind, (a, b) = op.type, values
    if isinstance(a, Const):
        kind, a, b = _MIRRORED[kind], b, a
    if isinstance(b, View):
        return _at_least_chosen(kind, a, b)
    bound = uniform(b.array)
    if is_mask(a) or isinstance(a.sym, Unmasked):
        a = broadcast(a, np.broadcast_shapes(a.shape, b.shape))
        one = a.scale  # the mask's value where it holds
        truth = [_HOLDS[kind](x, bound) if bound is not None else None for x in (0.0, one)]
        if truth == [False, True]:
            return a.of(a.sym, 1.0)
        if truth == [True, False]:
            return a.of(_complement(a.sym), 1.0)
    if kind == "Equal":
        return equal(a, b)
    raise Unsupported("compares something else than expert indices with expert numbers")


_MIRRORED = {"Equal": "Equal", "Greater": "Less", "Less": "Greater"}
_MIRRORED |= {"GreaterOrEqual": "LessOrEqual", "LessOrEqual": "GreaterOrEqual"}
_HOLDS = {
    "Equal": lambda x, y: x == y,
    "Greater": lambda x, y: x > y,
    "Less": lambda x, y: x < y,
    "GreaterOrEqual": lambda x, y: x >= y,
    "LessOrEqual": lambda x, y: x <= y,
}


def _complement(sym: Mixture | Unmasked) -> Mixture | Unmasked:
    return sym.mask if isinstance(sym, Unmasked) else Unmasked(mask=sym, shape=sym.shape)


def negation(ctx: Context, op: Op, values: list) -> View:
    """Not of a mask."""
    x = values[0]
    if not (is_mask(x) or isinstance(x.sym, Unmasked)):
        raise Unsupported("is not applied to a mask of expert indices")
    return x.of(_complement(x.sym), 1.0)


def _at_least_chosen(kind: str, a: View, b: View) -> View:
    """scores >= the k-th best of them: whether an expert is chosen. (Equal scores would choose more than k.)"""
    if kind in ("Less", "LessOrEqual"):  # b > a, b >= a
        kind, a, b = _MIRRORED[kind], b, a
    top = b.sym
    if kind != "GreaterOrEqual" or not isinstance(top, TopValues) or not top.ordered or a.scale != b.scale:
        raise Unsupported("compares two computed tensors")
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = broadcast(a, shape), broadcast(b, shape)
    own = a.sym.logits if isinstance(a.sym, Gate) and top.gated else a.sym if not top.gated else None
    rows, slot = b.positions // top.shape[1], uniform(b.positions % top.shape[1])
    if own is not top.logits or slot is None or not np.array_equal(a.positions // a.sym.shape[-1], rows):
        raise Unsupported("compares scores with those of other tokens or gates")
    return View(member(top.logits, int(slot) + 1), shape, a.positions)


def member(logits: Sym, slots: int) -> Mixture:
    """1 where a token goes to an expert with one of its best `slots` choices."""
    tokens, experts = logits.shape
    return Mixture(logits=logits, mask=True, slots=slots, shape=(tokens, 1, experts, 1))


def choose_logits(mask: View, logits: View) -> View:
    """Where(expert is chosen, logit, minus infinity)."""
    sym = mask.sym
    same = logits.sym is sym.logits and logits.scale == 1 and np.array_equal(mask.positions, logits.positions)
    if sym.slots is None or sym.shape[2] != sym.logits.shape[-1] or not same:
        raise Unsupported("keeps other logits than those of the chosen experts")
    return logits.of(ChosenLogits(logits=sym.logits, slots=sym.slots, shape=sym.logits.shape))


def equal(a: View, b: Const) -> View:
    """Expert indices compared with expert numbers: a mask."""
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
