"""Attention: probabilities, the softmax of a product, times values, whatever the axes are."""

from __future__ import annotations

from math import prod

import numpy as np

from ..layers import Attention, Linear, Softmax
from ..tensor import Builder, Concat, Contract, Copy, Layout, Node, Pad, Ref
from ..tensor.layout import Axis
from .limits import beneath, is_limit
from .match import constant, factor_of, is_map, layer, loops
from .names import label, parent
from .rewrite import relabel
from .rotary import rotated

MOST_KEYS = 512  # columns that a computed bias makes queries wider by


def attention(t: Builder, node: Node) -> Ref | None:
    """softmax(scale * q k + bias) v. The letters of the second product say what is batch, query, key and channel."""
    if not isinstance(node.op, Contract):
        return None
    first, second, result = node.op.letters
    a, b = node.operands
    return _attention(t, node, a, first, b, second, result) or _attention(t, node, b, second, a, first, result)


def _attention(t: Builder, node: Node, p: Ref, lp: str, v: Ref, lv: str, result: str) -> Ref | None:
    p, gain = factor_of(t, p)
    p = beneath(t, p)
    if not layer(p, Softmax):
        return None
    batch = [c for c in lp if c in lv and c in result]
    queries = [c for c in lp if c not in lv and c in result]
    keys = [c for c in lp if c in lv and c not in result]
    wide = [c for c in lv if c not in lp and c in result]
    if len(batch + queries + keys) < len(lp) or len(batch + keys + wide) < len(lv) or not keys:
        return None
    if not _summed_to_one(p, [lp.index(c) for c in keys]):
        return None
    places = (tuple(lp.index(c) for c in part) for part in (queries, keys))
    found = product_of(t, t.through(p.layout, p.node.operands[0]), *places)
    if found is None:
        return None
    q, k, scale, gains, terms = found
    bias = next((r for r in terms if r.constant is not None), None)
    computed = [r for r in terms if r.constant is None]
    (q, q_scale), (k, k_scale), (v, v_scale) = factor_of(t, q), factor_of(t, k), factor_of(t, v)
    gain *= v_scale
    shared = [c for c in queries if len(queries) > 1 and _along_columns(q, lp.index(c))]  # heads with the same keys and values
    batch, queries = [c for c in lp if c in batch or c in shared], [c for c in queries if c not in shared]
    nothing = {c: tuple((n, 0) for n, _ in p.layout.axes[i]) for i, c in enumerate(lp)}
    values = nothing | dict(zip(lv, v.layout.axes, strict=True))
    sides = [dict(zip(lp, r.layout.axes, strict=False)) for r in (q, k, *gains, *terms)]
    sides.insert(2, values)
    cut = loops(*(Layout(tuple(side[c] for c in batch)) for side in sides))
    if cut is None:
        return None
    flat = [(c, n, strides) for c, loop in zip(batch, cut, strict=True) for n, strides in loop]
    # Values are nearly always columns of a linear layer, while queries and keys may be normalised or turned.
    head = [_column(*next(((r, x) for r, x in ((v, s[2]), (q, s[0]), (k, s[1])) if x), (v, 0))) for _, _, s in flat]

    def shown(r: Ref, i: int, *tails: Axis) -> Ref:
        across = [tuple((n, s[i]) for (_, n, s), h in zip(flat, head, strict=True) if h == heads) for heads in (False, True)]
        return r.move(Layout((*across, *tails), r.layout.offset))

    def joined(i: int, letters: list[str]) -> Axis:
        return tuple(f for c in letters for f in sides[i][c])

    q4 = shown(q, 0, joined(0, queries), q.layout.axes[len(lp)])
    k4 = shown(k, 1, joined(1, keys), k.layout.axes[len(lp)])
    v4 = shown(v, 2, joined(2, keys), joined(2, wide))
    for i, c in enumerate(gains, 3):
        q4 = t.map("mul", q4, shown(c, i, joined(i, queries), ()))
    if computed and (scale == 0 or any(_keys_of(r, [lp.index(c) for c in keys]) > MOST_KEYS for r in computed)):
        return None
    q4, first_scale = factor_of(t, rotated(t, q4))
    k4, second_scale = factor_of(t, rotated(t, k4))
    scale *= q_scale * k_scale * first_scale * second_scale
    tables = [shown(r, i, joined(i, queries), joined(i, keys)) for i, r in enumerate(terms, 3 + len(gains))]
    extra = [r for r, term in zip(tables, terms, strict=True) if term is bias]
    for r in (r for r, term in zip(tables, terms, strict=True) if term is not bias):
        q4, k4 = _wider(t, q4, k4, r, scale)
    y = t.node(Attention(scale), q4, k4, v4, *extra)
    same = parent(q4.node.name) if parent(q4.node.name) == parent(v4.node.name) else ""
    relabel(y, label(t.source) or same)
    y = y if gain == 1 else t.map("mul", y, gain)
    size = dict(zip(result, node.shape, strict=True))
    order = [i for i, h in enumerate(head) if not h], [i for i, h in enumerate(head) if h]
    parts: list[int | str] = [*order[0], *queries, *order[1], *wide]  # loops of batch axes by number, other axes by letter
    y = t.reshape(y, [flat[p][1] if isinstance(p, int) else size[p] for p in parts])
    place: list[int] = []
    for letter in result:
        own: list[int | str] = [i for i, loop in enumerate(flat) if loop[0] == letter] if letter in batch else [letter]
        place += map(parts.index, own)
    return t.reshape(t.transpose(y, place), node.shape)


def _summed_to_one(p: Ref, keys: list[int]) -> bool:
    """Whether axes of what a softmax gives run through all that sums to one, and no other axis does."""
    width = p.node.shape[-1]
    within = [[(n, s) for n, s in axis if n > 1 and 0 < abs(s) < width] for axis in p.layout.axes]
    own = [f for i in keys for f in within[i]]
    whole = prod(n for n, _ in own) == width and all(f in own for i in keys for f in p.layout.axes[i] if f[0] > 1 and f[1])
    return whole and not any(part for i, part in enumerate(within) if i not in keys)


def _keys_of(r: Ref, axes: list[int]) -> int:
    """By how many keys a bias tells them apart."""
    return prod(n for i in axes for n, s in r.layout.axes[i] if s)


def _wider(t: Builder, q: Ref, k: Ref, bias: Ref, scale: float) -> tuple[Ref, Ref]:
    """Queries and keys whose product is also a computed bias [W, H, I, J]: the bias, by the keys that it tells apart, beside
    the queries, and beside each key a one for its own (decomposed relative positions: Li et al. 2022, ViTDet)."""
    windows, heads, queries, keys = bias.layout.axes
    told = tuple((n, s) for n, s in keys if s)
    numbers = np.zeros(1, np.int64)
    for n, s in keys:
        own = np.arange(n) if s else np.zeros(n, np.int64)
        numbers = (numbers[:, None] * (n if s else 1) + own).reshape(-1)
    one = np.eye(prod(n for n, _ in told), dtype=np.float32)[numbers]
    beside = bias.move(Layout((windows, heads, queries, told), bias.layout.offset))
    beside = beside if scale == 1 else _times(t, beside, 1 / scale)
    own_key = t.expand(t.const(one[None, None]), (*k.shape[:2], *one.shape))
    return t.concat([q, beside], 3), t.concat([k, own_key], 3)


def _times(t: Builder, r: Ref, number: float) -> Ref:
    """What r shows times a number, before anything moves it."""
    if isinstance(r.op, Copy | Concat) or (isinstance(r.op, Pad) and not r.op.value):
        return t.through(r.layout, t.node(r.op, *(_times(t, o, number) for o in r.node.operands)))
    return t.through(r.layout, t.map("mul", r.node.ref, number))


def _column(r: Ref, stride: int) -> bool:
    return bool(r.node.shape) and 0 < abs(stride) < r.node.shape[-1]


def _along_columns(r: Ref, axis: int) -> bool:
    return any(_column(r, s) for _, s in r.layout.axes[axis])


def product_of(
    t: Builder, r: Ref, queries: tuple[int, ...], keys: tuple[int, ...]
) -> tuple[Ref, Ref, float, list[Ref], list[Ref]] | None:
    """What scores r are: (q, k, scale, factors of q, biases, of which one at most is constant), all over the axes of r, q and
    k with one more for the depth."""
    scale, gains, terms = 1.0, list[Ref](), list[Ref]()
    for _ in range(24):
        r, factor = factor_of(t, beneath(t, r))
        scale *= factor
        op = r.op
        if isinstance(op, Copy) or is_limit(r):
            r = t.through(r.layout, r.node.operands[0])
            continue
        if isinstance(op, Contract) or layer(r, Linear):
            ends = _operands(r)
            for q, k in (ends, ends[::-1]) if ends else ():
                if not any(_moves(q, i) for i in keys) and not any(_moves(k, i) for i in queries):
                    return q, k, scale, gains, terms
            return None
        if not is_map(r, "add", "sub", "mul", "div", "where"):
            return None
        parts = [t.through(r.layout, o) for o in r.node.operands]
        fixed = [constant(o) for o in parts]
        if is_map(r, "mul", "div"):
            if is_map(r, "mul") and fixed[0]:
                parts, fixed = parts[::-1], fixed[::-1]
            c = parts[1]
            if fixed != [False, True] or any(_moves(c, i) for i in keys):
                return None
            gains.append(c if is_map(r, "mul") else t.map("div", 1.0, c))
            r = parts[0]
            continue
        if is_map(r, "where"):
            if not fixed[0] or fixed[1] == fixed[2]:
                return None
            inner, low = (parts[2], parts[1]) if fixed[1] else (parts[1], parts[2])
            number = low.scalar
            if number is None or number * scale > -1e3:
                return None
            zero = t.const(0.0)
            term = t.map("where", parts[0], *((low, zero) if fixed[1] else (zero, low)))
        elif fixed[0] != fixed[1]:
            inner, term = (parts[1], parts[0]) if fixed[0] else parts
            if is_map(r, "sub"):
                if fixed[0]:
                    return None
                term = t.map("neg", term)
        elif is_map(r, "add"):
            inner, term = parts if _leads(parts[0].node) else parts[::-1]
        else:
            return None
        for part in _addends(t, term):
            for c in gains:
                part = t.map("mul", part, c)
            part = t.map("mul", part, scale)
            fixed_so_far = next((i for i, other in enumerate(terms) if constant(other)), None)
            if constant(part) and fixed_so_far is not None:
                terms[fixed_so_far] = t.map("add", terms[fixed_so_far], part)
            else:
                terms.append(part)
        r = inner
    return None


def _addends(t: Builder, r: Ref, most: int = 4) -> list[Ref]:
    """What a computed bias is a sum of."""
    if not is_map(r, "add") or most < 2:
        return [r]
    parts = [t.through(r.layout, o) for o in r.node.operands]
    return [a for part in parts for a in _addends(t, part, most // 2)]


def _leads(node: Node, depth: int = 12) -> bool:
    """Whether a node is a product of two computed values, or a number of steps from one."""
    if isinstance(node.op, Contract):
        return not any(constant(r) for r in node.operands)
    return depth > 0 and (is_map(node) or isinstance(node.op, Copy)) and any(_leads(r.node, depth - 1) for r in node.operands)


def _moves(r: Ref, axis: int) -> bool:
    return any(s for _, s in r.layout.axes[axis])


def _operands(r: Ref) -> tuple[Ref, Ref] | None:
    """The two factors of scores, over the axes of r and one more for the summed letters."""
    if isinstance(r.op, Contract):
        a, b, result = r.op.letters
    else:
        a, b, result = "rk", "nk", "rn"
        if len(r.node.operands) > 2:
            return None
    x, y = r.node.operands[:2]
    depth = [c for c in a if c not in result]
    if set(depth) != {c for c in b if c not in result}:
        return None
    found = []
    for side, letters in ((x, a), (y, b)):
        axes = dict(zip(letters, side.layout.axes, strict=True))
        none = {c: ((n, 0),) for c, n in zip(result, r.node.shape, strict=True)}
        over = r.layout.through(Layout(tuple((none | axes)[c] for c in result), side.layout.offset))
        if over is None:
            return None
        found.append(side.move(Layout((*over.axes, tuple(f for c in depth for f in axes[c])), over.offset)))
    return found[0], found[1]
