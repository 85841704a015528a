"""Attention to keys that have weights of their own: sizes of merged tokens, masks that the network computes.

softmax(s + log w) v = (p (w v)) / (p w) with p = softmax(s): the weights go into the values, and their sum is one more column
of these. Where each query has weights of its own they multiply the probabilities.
"""

from __future__ import annotations

import numpy as np

from ..layers import Softmax
from ..tensor import Builder, Contract, Node, Ref
from .attention import attention
from .conditions import is_number, number, opposite
from .limits import beneath
from .match import constant, factor_of, is_map, layer

FAR = -1e3  # a score below it is a mask
SAME = -1e6  # beyond it a masked score loses digits that tell it from others
ALIKE = -1e8  # beyond it it loses all of them in float32, so that attention to masked keys alone is their mean


def kept_keys(t: Builder, node: Node) -> Ref | None:
    """The product of such probabilities with values."""
    if not isinstance(node.op, Contract) or node.dtype != "f":
        return None
    first, second, result = node.op.letters
    a, b = node.operands
    return _kept(t, node, a, first, b, second, result) or _kept(t, node, b, second, a, first, result)


def _kept(t: Builder, node: Node, p: Ref, lp: str, v: Ref, lv: str, result: str) -> Ref | None:
    p = beneath(t, p)
    if not layer(p, Softmax):
        return None
    keys = [c for c in lp if c in lv and c not in result]
    queries = [c for c in lp if c not in lv]
    wide = [c for c in lv if c not in lp]
    if len(keys) != 1 or len(wide) != 1:
        return None
    found = _weights(t, beneath(t, p.node.operands[0]))
    if found is None:
        return None
    scores, weights, none_kept = found
    p = t.through(p.layout, t.node(Softmax(), scores))
    weights = _once(t, t.through(p.layout, t.expand(weights, p.node.shape)))
    none = opposite(t, t.reduce("max", weights, [lp.index(keys[0])])) if none_kept else None
    if none is not None and none_kept == "scores":
        weights = t.map("add", weights, none)
    axis = lv.index(wide[0])
    own = none_kept == "mean" or any(weights.shape[lp.index(c)] > 1 for c in queries)
    if own:
        p = t.map("mul", p, weights)
        p = t.map("add", p, none) if none is not None and none_kept == "mean" else p
        one = t.full(tuple(1 if i == axis else n for i, n in enumerate(v.shape)), np.float32(1))
    else:
        order = [c for c in lp if c not in queries]
        shown = t.reshape(weights, [n for c, n in zip(lp, weights.shape, strict=True) if c not in queries])
        shown = t.transpose(t.reshape(shown, (*shown.shape, 1)), [[*order, wide[0]].index(c) for c in lv])
        one = t.expand(shown, [1 if i == axis else n for i, n in enumerate(v.shape)])
        v = t.map("mul", v, one)
    y = t.contract(f"{lp},{lv}->{result}", p, t.concat([v, one], axis))
    y = y if own else attention(t, y.node) or y
    at = result.index(wide[0])
    count = node.shape[at]
    total = t.slice(y, at, count, 1)
    return t.map("div", t.slice(y, at, 0, count), t.expand(total, node.shape))


def _weights(t: Builder, x: Ref) -> tuple[Ref, Ref, str] | None:
    """(scores, weights, what takes part where all of these are zero) of scores to which the logarithm of weights is added:
    "scores" as without weights, the "mean" of all, or "" where that does not come up or is no number."""
    operands = [t.through(x.layout, o) for o in x.node.operands] if is_map(x, "add", "where") else []
    if is_map(x, "where"):
        condition, one, other = operands
        for low, scores, turned in ((one, other, True), (other, one, False)):
            if low.scalar is None or constant(condition) or constant(scores):
                continue
            if low.scalar == -np.inf or low.scalar <= ALIKE:  # in the place of the scores: masked ones are alike
                made = number(t, condition)
                none_kept = "" if low.scalar == -np.inf else "mean"
                return None if made is None else (scores, opposite(t, made) if turned else made, none_kept)
        return None
    for term, scores in (operands, operands[::-1]) if operands else ():
        if (found := _exponential(t, _once(t, beneath(t, term)))) is not None:
            return scores, *found
    return None


def _once(t: Builder, r: Ref) -> Ref:
    """With length 1 along axes that change nothing."""
    for i, loops in enumerate(r.layout.axes):
        r = r if any(s for _, s in loops) else t.slice(r, i, 0, 1)
    return r


def _exponential(t: Builder, term: Ref) -> tuple[Ref, str] | None:
    """(exp(term), what takes part where all of it is zero) where that is a number that needs no function."""
    if is_map(term, "log"):
        return t.through(term.layout, term.node.operands[0]), ""
    if is_map(term, "where") and not constant(term.node.operands[0]):
        condition, one, other = (t.through(term.layout, o) for o in term.node.operands)
        for low, zero, turned in ((one, other, True), (other, one, False)):
            if low.scalar is None or not _steady(t, condition, zero):
                continue
            if low.scalar <= ALIKE or SAME < low.scalar < FAR:
                made = number(t, condition)
                none_kept = "" if low.scalar == -np.inf else "mean" if low.scalar <= ALIKE else "scores"
                return None if made is None else (opposite(t, made) if turned else made, none_kept)
        return None
    bare, factor = factor_of(t, term)
    return (opposite(t, bare), "scores") if SAME < factor < FAR and is_number(bare) else None


def _steady(t: Builder, condition: Ref, kept: Ref) -> bool:
    """Whether what is added to the scores of the keys that a condition keeps is one number, which softmax does not see: itself
    one, or the condition as a number, which is the same for all that are kept."""
    if kept.scalar is not None:
        return abs(kept.scalar) < -FAR
    while is_map(condition, "not", "bool"):
        condition = t.through(condition.layout, condition.node.operands[0])
    made = number(t, condition)
    return made is not None and made in (kept, opposite(t, kept))
