"""Norms and softmax as exporters write them out."""

from __future__ import annotations

from itertools import permutations
from math import prod

from ..layers import Length, Norm, Softmax
from ..tensor import Builder, Node, Reduce, Ref
from .limits import is_limit
from .match import constant, factor_of, group, is_map, reduction, regroup, scalar_of, spread
from .names import label
from .rewrite import relabel

GUARD = 1e-4  # a least length or number that keeps a division from zero, and that no real image comes near


STEPS = "sqrt", "max", "add", "mul", "div", "pow"  # from a sum of squares to what divides
MOST_AXES = 4  # in whose orders roots are looked for


def norm(t: Builder, node: Node) -> Ref | None:
    """x or x minus its mean, by the root of the mean of its squares: x / root, x * (1 / root), x * square ** -0.5.

    Root and x may be those of a value before its axes changed places: optimisers move transposes through what they can.
    """
    if not is_map(node, "mul", "div"):
        return None
    if (made := _normalised(t, node)) is not None:
        return made
    if any(constant(r) for r in node.operands) or len(node.shape) > MOST_AXES:
        return None
    for order in list(permutations(range(len(node.shape))))[1:]:
        operands = [t.transpose(r, order) for r in node.operands]
        if all(spread(r) is None for r in operands):
            continue
        if (made := _normalised(t, t.map(node.op.function, *operands).node)) is not None:
            return t.transpose(made, [order.index(i) for i in range(len(order))])
    return None


def before_turns(t: Builder, node: Node) -> Ref | None:
    """A step of a root, with a number, of a sum whose axes changed places before it: the step first, a limit as well."""
    if not is_map(node, *STEPS) and not is_limit(node):
        return None
    computed = [r for r in node.operands if r.scalar is None]
    if len(computed) != 1 or computed[0].whole or not _of_sum(r := computed[0]):
        return None
    if r.shape != node.shape or r.layout.size != r.node.size or len({*r.layout.positions().reshape(-1).tolist()}) != r.node.size:
        return None
    operands = [r.node.ref if o is r else t.full(r.node.shape, o.scalar) for o in node.operands]
    return t.through(r.layout, t.node(node.op, *operands))


def _of_sum(r: Ref, depth: int = 6) -> bool:
    if isinstance(r.op, Reduce):
        return True
    computed = [o for o in r.node.operands if o.scalar is None] if is_map(r, *STEPS) or is_limit(r) else []
    return depth > 0 and len(computed) == 1 and _of_sum(computed[0], depth - 1)


def _normalised(t: Builder, node: Node) -> Ref | None:
    a, b = node.operands
    for x, d in ((a, b),) if is_map(node, "div") else ((a, b), (b, a)):
        found = _root(t, d, is_map(node, "mul"))
        if found is None:
            continue
        y, axes, over, gain, epsilon = found
        x, factor = factor_of(t, x) if x != y else (x, 1.0)
        if is_map(x, "mul") and x.whole and any(constant(r) for r in x.node.operands):  # the gain stands before the division
            inner, given = x.node.operands[::-1] if constant(x.node.operands[0]) else x.node.operands
            made = _norm(t, node, y, axes, over, gain * factor, epsilon) if inner == y else None
            if made is not None:
                return t.reshape(t.map("mul", t.reshape(made, x.node.shape), given), node.shape)
        if x == y and (made := _norm(t, node, y, axes, over, gain * factor, epsilon)) is not None:
            return made
    return None


def _root(t: Builder, d: Ref, inverse: bool) -> tuple[Ref, tuple[int, ...], int, float, float] | None:
    """(x, axes, elements, gain, epsilon) where 1 / d (d where `inverse`) is gain / sqrt(mean of x * x over axes + epsilon)."""
    node = spread(d)
    gain = 1.0
    if inverse:
        if node is not None and is_map(node, "pow") and node.operands[1].scalar == -0.5:
            return _square(node.operands[0], gain, 0.0)
        if node is None or not is_map(node, "div") or (over := node.operands[0].scalar) is None:
            return None
        gain, node = over, spread(node.operands[1])
    least = 0.0
    while node is not None and not is_map(node, "sqrt"):
        if is_map(node, "where") and node.operands[1].scalar == 1 and is_map(node.operands[0], "eq") and node.operands[2].whole:
            node = node.operands[2].node  # 1 where the length is zero
            continue
        for function in ("mul", "div", "add", "max"):
            if (found := scalar_of(node.ref, function)) is None or not found[0].whole:
                continue
            number = found[1]
            if function in ("mul", "div"):
                gain = gain / number if function == "mul" else gain * number
            elif 0 <= number * abs(gain) <= GUARD:
                least = max(least, number * abs(gain))
            else:
                return None
            node = found[0].node
            break
        else:
            return None
    return _square(node.operands[0], gain, least) if node is not None else None


def _square(r: Ref, gain: float, least: float) -> tuple[Ref, tuple[int, ...], int, float, float] | None:
    """`_root` from what stands under the root."""
    epsilon, node = 0.0, spread(r)
    while node is not None:
        for function in ("add", "max"):
            if (found := scalar_of(node.ref, function)) is not None and found[0].whole and found[1] >= 0:
                epsilon, node = epsilon + found[1], found[0].node
                break
        else:
            break
    total = reduction(node, "sum")
    if total is None:
        return None
    square, axes, factor = total
    if not is_map(square, "mul") or square.node.operands[0] != square.node.operands[1] or factor <= 0 or not square.whole:
        return None
    count = prod(square.shape[i] for i in axes)
    x = square.node.operands[0]
    if x.shape != square.shape:
        return None
    # gain / sqrt(factor * count * mean + epsilon) = gain / sqrt(factor * count) / sqrt(mean + epsilon / (factor * count))
    k = factor * count if abs(factor * count - 1) > 1e-6 else 1.0
    return x, axes, count, gain / k**0.5, epsilon / k + least * least / k


def _norm(t: Builder, node: Node, x: Ref, axes: tuple[int, ...], count: int, gain: float, epsilon: float) -> Ref | None:
    source, centred = x, False
    if is_map(x, "sub") and x.whole and x.shape == x.node.shape:
        inner, mean = x.node.operands
        found = reduction(spread(mean), "sum")
        if found is not None and found[:2] == (inner, axes) and abs(found[2] * count - 1) < 1e-6:
            source, centred = inner, True
    kept = [i for i in range(len(node.shape)) if i not in axes]
    rows = group(source, kept, axes)
    one, zero = t.full((1, rows.shape[1]), gain if abs(gain - 1) > 1e-6 else 1.0), t.full((1, rows.shape[1]), 0.0)
    y = relabel(t.node(Norm(epsilon, centred), rows, one, zero), label(t.source))
    return regroup(t, y, node.shape, [*kept, *axes])


def softmax(t: Builder, node: Node) -> Ref | None:
    """Exponentials by their sum, of numbers from which the largest may be subtracted before."""
    if not is_map(node, "div", "mul"):
        return None
    e, total = node.operands
    if is_map(node, "mul"):  # by a reciprocal
        inverse = spread(total)
        if inverse is None or not is_map(inverse, "div") or inverse.operands[0].scalar != 1:
            return None
        total = inverse.operands[1] if inverse.operands[1].whole else total
    found = reduction(spread(total), "sum")
    if found is None or found[0] != e or found[2] != 1 or not is_map(e, "exp") or not e.whole:
        return None
    axes = found[1]
    x = e.node.operands[0]
    if is_map(x, "sub") and x.whole:
        inner, most = x.node.operands
        top = reduction(spread(most), "max")
        if top is not None and top[:2] == (inner, axes):
            x = inner
    kept = [i for i in range(len(node.shape)) if i not in axes]
    y = t.node(Softmax(), group(x, *[[i] for i in kept], axes))
    y = t.reshape(y, [*(node.shape[i] for i in kept), *(node.shape[i] for i in axes)])
    order = [*kept, *axes]
    return t.transpose(y, [order.index(i) for i in range(len(order))])


def length(t: Builder, node: Node) -> Ref | None:
    """The root of a sum of squares that no norm took (GRN: Woo et al. 2023)."""
    if not is_map(node, "sqrt") or node.dtype != "f" or (found := _square(node.ref.node.operands[0], 1.0, 0.0)) is None:
        return None
    x, axes, count, gain, epsilon = found
    if epsilon > GUARD / count:
        return None
    kept = [i for i in range(len(x.shape)) if i not in axes]
    width = x.node.shape[-1] if x.node.shape else 1
    down = all(abs(s) >= width for i in axes for _, s in x.layout.axes[i])  # over tokens, of each channel
    y = t.node(Length(0), group(x, axes, kept)) if down else t.node(Length(1), group(x, kept, axes))
    y = regroup(t, y, [1 if i in axes else n for i, n in enumerate(x.shape)], [*kept, *axes])
    y = y if abs(gain * count**0.5 - 1) < 1e-6 else t.map("mul", y, 1 / (gain * count**0.5))
    return t.reshape(y, node.shape) if y.layout.size == node.size else None
