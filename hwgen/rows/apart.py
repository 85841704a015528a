"""L -> L before rows: products of two values head by head, attention over channels by its definition, and divisions whose
divisor is known or made beside what it divides."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..layers import Activation, Attention, Clip, Softmax
from ..recognise import rewrite
from ..recognise.match import factor_of, group, is_map, scalar_of
from ..recognise.outer import MOST_HEADS
from ..tensor import Builder, Concat, Const, Contract, Layer, Node, Pad, Program, Reduce, Ref
from .views import Array


@dataclass(frozen=True)
class Scaled(Layer):
    """`scale` times a Contract of this `spec`."""

    spec: str
    scale: float

    def define(self, t: Builder, *operands: Ref) -> Ref:
        return t.map("mul", t.contract(self.spec, *operands), self.scale)


@dataclass(frozen=True)
class Ratio(Layer):
    """Rows divided by their last column: x [R, C + 1] -> x[:, :C] / (x[:, C] + epsilon)."""

    epsilon: float

    def define(self, t: Builder, *operands: Ref) -> Ref:
        (x,) = operands
        count = x.shape[1] - 1
        total = t.map("add", t.slice(x, 1, count, 1), self.epsilon)
        return t.map("div", t.slice(x, 1, 0, count), total)


def split(program: Program) -> Program:
    """The same outputs with attention over channels by its definition, and with products of two values head by head."""
    divisions = _over_channels, _normalised, _ratio, _by_total, _padded
    for patterns in ((_features,), divisions, (_scaled,), (_by_heads,)):
        program = rewrite(program, patterns, past=False)
    return program


def _over_channels(t: Builder, node: Node) -> Ref | None:
    if not isinstance(node.op, Attention) or not any(_across(r) for r in node.operands[:3]):
        return None
    q, k, v, *bias = node.operands
    scores = t.contract("whid,whjd->whij", q, k)
    scores = scores if node.op.scale == 1 else t.map("mul", scores, node.op.scale)
    scores = t.map("add", scores, bias[0]) if bias else scores
    y = t.contract("whij,whje->wihe", t.node(Softmax(), scores), v)
    return t.reshape(y, node.shape)


def _across(r: Ref) -> bool:
    """Whether the tokens of an operand [W, H, I, D] of attention are columns of a value, and its channels rows of it."""
    if len(r.node.shape) != 2 or isinstance(r.op, Const):
        return False
    width = r.node.shape[1]
    tokens, channels = (tuple(s for n, s in r.layout.axes[i] if n > 1) for i in (2, 3))
    return bool(tokens and channels) and all(abs(s) < width for s in tokens) and all(abs(s) >= width for s in channels)


def _normalised(t: Builder, node: Node) -> Ref | None:
    """Rows divided by their sums, where these are known: of softmax, constants and what adds them up."""
    if not is_map(node, "div"):
        return None
    x, total = node.operands
    inner = total.node
    if not isinstance(inner.op, Reduce) or inner.op.function != "sum" or inner.op.axes != (len(x.shape) - 1,):
        return None
    if inner.operands[0] != x or not x.whole or total.shape != x.shape or (sums := _row_sums(x)) is None:
        return None
    return t.map("mul", x, t.const(np.broadcast_to(1 / sums, (*x.shape[:-1], 1)).astype(np.float32)))


def _row_sums(r: Ref) -> Array | None:
    """The sums along the last axis where they are the same for every image, [.., 1]."""
    if r.constant is not None:
        return np.asarray(np.asarray(r.constant, np.float64).sum(axis=-1, keepdims=True))
    if not r.whole:
        return None
    if isinstance(r.op, Softmax):
        return np.ones((*r.shape[:-1], 1))
    if is_map(r, "add", "mul"):
        one, other = r.node.operands
        if is_map(r, "add"):
            sums = [_row_sums(part) for part in (one, other)]
            return None if sums[0] is None or sums[1] is None else np.asarray(sums[0] + sums[1])
        one, other = (one, other) if other.constant is not None else (other, one)
        own, factor = _row_sums(one), other.constant
        if own is not None and factor is not None and (np.asarray(factor) == np.asarray(factor)[..., :1]).all():
            return np.asarray(own * np.asarray(factor, np.float64)[..., :1])
    return None


def _ratio(t: Builder, node: Node) -> Ref | None:
    """Weighted values divided by the sums of the weights, which the same product makes as its last column."""
    if not is_map(node, "div"):
        return None
    x, total = node.operands
    epsilon = 0.0
    if (found := scalar_of(total, "add")) is not None:
        total, epsilon = found
    if not isinstance(x.op, Contract) or total.node is not x.node or x.shape != total.shape or epsilon < 0:
        return None
    columns = x.node.shape[-1]
    rows = x.node.size // columns
    places = np.arange(x.node.size).reshape(rows, columns)
    if not np.array_equal(x.layout.positions().reshape(-1), places[:, :-1].reshape(-1)):
        return None
    if not np.array_equal(total.layout.positions().reshape(-1), np.repeat(places[:, -1], columns - 1)):
        return None
    heads = x.node.shape[0] if len(x.node.shape) > 2 and x.node.shape[0] <= MOST_HEADS else 1
    whole = t.reshape(x.node.ref, (heads, rows // heads, columns))
    parts = [t.reshape(t.slice(whole, 0, h, 1), (rows // heads, columns)) for h in range(heads)]
    return t.reshape(t.concat([t.node(Ratio(epsilon), part) for part in parts], 0), node.shape)


def _divided(t: Builder, node: Node) -> tuple[Ref, Ref, float] | None:
    """(x, total, epsilon) of a computed x / (total + epsilon), also of x times the reciprocal."""
    if not is_map(node, "mul", "div"):
        return None
    x, total = node.operands
    if is_map(node, "mul"):
        x, total = (total, x) if is_map(x, "div") and x.node.operands[0].scalar == 1 else (x, total)
        if not is_map(total, "div") or total.node.operands[0].scalar != 1 or not total.node.operands[1].whole:
            return None
        total = t.through(total.layout, total.node.operands[1])
    if x.constant is not None or total.constant is not None or node.dtype != "f" or len(node.shape) < 2:
        return None
    total, epsilon = scalar_of(total, "add") or (total, 0.0)
    return (x, total, epsilon) if x.shape == node.shape and epsilon >= 0 else None


def _features(t: Builder, node: Node) -> Ref | None:
    """Of exponentials whose rows' sizes a division takes away, their softmax: no row of it is lost beside larger ones (Performer,
    Choromanski et al. 2021)."""
    found = _divided(t, node)
    if found is None or found[2]:
        return None
    x, total, _ = found
    if not (isinstance(x.op, Contract) and isinstance(total.op, Contract)):
        return None
    for one in x.node.operands:
        bare, _ = factor_of(t, one)
        if not isinstance(bare.op, Activation) or bare.op.form != "exp" or one not in total.node.operands:
            continue
        made = []
        for r in (x, total):
            side = r.node.operands.index(one)
            own, result = r.node.op.letters[side], r.node.op.letters[2]
            summed = [c for c in own if c not in result]
            if len(summed) != 1 or r.node.operands[1 - side] == one:
                return None
            axis = own.index(summed[0])
            order = [i for i in range(len(own)) if i != axis] + [axis]
            weights = t.node(Softmax(), _relative(t, t.transpose(t.through(bare.layout, bare.node.operands[0]), order)))
            weights = t.transpose(weights, [order.index(i) for i in range(len(own))])
            operands = [weights if i == side else other for i, other in enumerate(r.node.operands)]
            made.append(t.through(r.layout, t.contract(r.node.op.spec, *operands)))
        return t.map("div", *made)
    return None


def _relative(t: Builder, r: Ref) -> Ref:
    """What softmax reads of r: without terms that are one number for a row."""
    while is_map(r, "add", "sub"):
        one, other = (t.through(r.layout, part) for part in r.node.operands)
        if not any(step for _, step in other.layout.axes[-1]):
            r = one
        elif is_map(r, "add") and not any(step for _, step in one.layout.axes[-1]):
            r = other
        else:
            break
    return r


def _by_total(t: Builder, node: Node) -> Ref | None:
    """Rows divided by a number for each, which another product or sum makes."""
    found = _divided(t, node)
    if found is None:
        return None
    x, total, epsilon = found
    rank = len(node.shape)
    alike = [i for i, axis in enumerate(total.layout.axes) if node.shape[i] > 1 and not any(s for _, s in axis)]
    if not alike and node.shape[-1] == 1:  # a number by a number
        alike = [rank - 1]
    if not alike:
        return None
    order = [i for i in range(rank) if i not in alike] + alike  # channels last, of maps too
    x, total = (t.transpose(r, order) for r in (x, total))
    columns = prod(node.shape[i] for i in alike)
    heads = prod(x.shape[:-2]) if alike == [rank - 1] else 1
    count = node.size // columns // heads
    if heads > MOST_HEADS:
        return None
    one = t.slice(t.reshape(total, (heads, count, columns)), 2, 0, 1)
    whole = t.concat([t.reshape(x, (heads, count, columns)), one], 2)
    parts = [t.reshape(t.slice(whole, 0, h, 1), (count, columns + 1)) for h in range(heads)]
    y = t.reshape(t.concat([t.node(Ratio(epsilon), part) for part in parts], 0), x.shape)
    return t.transpose(y, [order.index(i) for i in range(rank)])


def _padded(t: Builder, node: Node) -> Ref | None:
    """A border of a number behind one axis, as a constant side by side with the value."""
    if (
        not isinstance(node.op, Pad)
        or node.op.value != 1
        or any(node.op.before)
        or sum(n > 0 for n in node.op.after) != 1
    ):
        return None
    axis = int(np.argmax(node.op.after))
    (x,) = node.operands
    border = (*x.shape[:axis], node.op.after[axis], *x.shape[axis + 1 :])
    return t.concat([x, t.const(np.ones(border, np.float32))], axis)


def _scaled(t: Builder, node: Node) -> Ref | None:
    """A product times a number: a step of it for the machine."""
    found = scalar_of(node.ref, "mul") or scalar_of(node.ref, "div")
    if found is None:
        return None
    x, factor = found
    factor = factor if is_map(node, "mul") else 1 / factor if factor else 0.0
    if not isinstance(x.op, Contract | Scaled) or any(r.constant is not None for r in x.node.operands) or factor <= 0:
        return None
    factor *= x.op.scale if isinstance(x.op, Scaled) else 1.0
    return t.through(x.layout, t.node(Scaled(x.op.spec, factor), *x.node.operands))


def _by_heads(t: Builder, node: Node) -> Ref | None:
    """One product [M, N] for every position along the axes that both operands and the result have."""
    if not isinstance(node.op, Contract | Scaled) or any(r.constant is not None for r in node.operands):
        return None
    first, second, result = Contract(node.op.spec).letters
    batch = [c for c in result if c in first and c in second]
    sides = [[c for c in letters if c not in batch and c in result] for letters in (first, second)]
    summed = [c for c in first if c in second and c not in result]
    if not summed:
        return None
    if set(first) - {*batch, *sides[0], *summed} or set(second) - {*batch, *sides[1], *summed}:
        return None
    scale = node.op.scale if isinstance(node.op, Scaled) else 1.0
    operands = []
    for r, letters, own in zip(node.operands, (first, second), sides, strict=True):
        bare, factor = factor_of(t, r)
        if factor > 0:
            r, scale = bare, scale * factor
        operands.append(group(r, *[[letters.index(c) for c in part] for part in (*([c] for c in batch), own, summed)]))
    a, b = operands
    heads = int(np.prod([a.shape[i] for i in range(len(batch))]))
    if heads > MOST_HEADS:
        return None
    lengths = dict(zip(result, node.shape, strict=True))
    sizes = [a.shape[-2], b.shape[-2]]
    parts = []
    for index in np.ndindex(*a.shape[: len(batch)]):
        one, other = (_picked(t, r, index, n) for r, n in zip((a, b), sizes, strict=True))
        if _nothing(one) or _nothing(other):
            parts.append(t.full((1, *sizes), np.float32(0)))
            continue
        parts.append(t.reshape(t.node(Scaled("ab,cb->ac", scale), one, other), (1, *sizes)))
    y = t.reshape(t.concat(parts, 0), [lengths[c] for c in (*batch, *sides[0], *sides[1])])
    order = [*batch, *sides[0], *sides[1]]
    return t.transpose(y, [order.index(c) for c in result])


def _picked(t: Builder, r: Ref, index: tuple[int, ...], rows: int) -> Ref:
    for axis, i in enumerate(index):
        r = t.slice(r, axis, i, 1)
    return t.reshape(r, (rows, -1))


def _nothing(r: Ref) -> bool:
    """Whether r shows zeros alone, such as the first of states that are joined."""
    return _some(r) and bool(_zeros(r).all())


def _some(r: Ref) -> bool:
    """Whether zeros are among what r may show."""
    if isinstance(r.op, Concat):
        return any(map(_some, r.node.operands))
    return _some(r.node.operands[0]) if _limits(r) else r.scalar == 0


def _limits(r: Ref) -> bool:
    """Whether r is a range that leaves zeros as they are, as a quantised file has it behind every value."""
    return isinstance(r.op, Clip) and r.op.low <= 0 <= r.op.high


def _zeros(r: Ref) -> Array:
    """Which elements of r are zeros that the file has."""
    if r.constant is not None or not _some(r):
        return np.full(r.shape, r.scalar == 0)
    parts = [_zeros(part) for part in r.node.operands]
    joined = np.concatenate(parts, axis=r.op.axis) if isinstance(r.op, Concat) else parts[0]
    shown: Array = joined.reshape(-1)[r.layout.positions()]
    return shown
