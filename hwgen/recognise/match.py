"""What patterns share: walking along layouts, constants in the terms of a value, elementwise functions of one value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ..tensor import Builder, Concat, Const, Contract, Layer, Layout, Map, Node, Reduce, Ref
from ..tensor.evaluate import FUNCTION, apply

Array = np.ndarray
Loop = tuple[int, tuple[int, ...]]  # size, stride in each of several layouts


def is_map(r: Ref | Node, *functions: str) -> bool:
    op = r.op
    return isinstance(op, Map) and (not functions or op.function in functions)


def layer(r: Ref | Node, *kinds: type[Layer]) -> bool:
    return isinstance(r.op, kinds)


def constant(r: Ref) -> bool:
    return isinstance(r.node.op, Const)


def weighted(node: Node) -> tuple[Ref, Ref, str, str, str] | None:
    """(computed operand, constant one, letters of each, of the result) of a product of the two; None for other nodes."""
    if not isinstance(node.op, Contract):
        return None
    (x, w), (first, second, result) = node.operands, node.op.letters
    if constant(x) == constant(w):
        return None
    return (w, x, second, first, result) if constant(x) else (x, w, first, second, result)


def scalar_of(r: Ref, function: str) -> tuple[Ref, float] | None:
    """(x, c) where r shows all of `function` (x, c), c one number; for sub and div the number comes second."""
    if not is_map(r, function):
        return None
    a, b = r.node.operands
    if a.scalar is not None and b.scalar is None and function in ("add", "mul", "max", "min"):
        a, b = b, a
    if b.scalar is None or a.scalar is not None:
        return None
    return Ref(a.node, _shown(r, a)), b.scalar


def _shown(r: Ref, operand: Ref) -> Layout:
    moved = r.layout.through(operand.layout)
    return moved if moved is not None else r.layout  # only maps of whole operands come here otherwise


def factor_of(t: Builder, r: Ref) -> tuple[Ref, float]:
    """r as a number times what is left when all multiplications by one number are taken away."""
    factor = 1.0
    while is_map(r, "mul", "div", "neg"):
        x = r.node.operands
        if is_map(r, "neg"):
            inner, number = x[0], -1.0
        elif x[1].scalar is not None:
            inner, number = x[0], x[1].scalar if is_map(r, "mul") else 1 / x[1].scalar
        elif x[0].scalar is not None and is_map(r, "mul"):
            inner, number = x[1], x[0].scalar
        else:
            break
        r, factor = t.through(r.layout, inner), factor * number
    return r, factor


# --- layouts -------------------------------------------------------------------------------------------------------


def group(r: Ref, *groups: Sequence[int]) -> Ref:
    """The axes of each group made one, in the given order."""
    axes = r.layout.axes
    return r.move(Layout(tuple(tuple(f for i in g for f in axes[i]) for g in groups), r.layout.offset))


def regroup(t: Builder, y: Ref, sizes: Sequence[int], order: Sequence[int]) -> Ref:
    """y, whose elements run over axes `order` (each of length sizes[axis]), in the order of the axes."""
    y = t.reshape(y, [sizes[i] for i in order])
    return t.transpose(y, [list(order).index(i) for i in range(len(order))])


def part_of(r: Ref) -> tuple[Layout, Ref] | None:
    """(layout, part) where r shows `layout` of the elements of one part of a concatenation; None where it shows several."""
    inner = prod(r.node.shape[r.op.axis + 1 :])
    row, start = inner * r.node.shape[r.op.axis], 0
    first = r.layout.offset % row
    within = [(n - 1) * s for axis in r.layout.axes for n, s in axis if s % row]
    low, high = (first + sum(reach for reach in within if (reach > 0) == up) for up in (False, True))
    for part in r.node.operands:
        own = inner * part.shape[r.op.axis]
        if start <= low and high < start + own:
            axes = tuple(tuple((n, s if s % row else s // row * own) for n, s in axis) for axis in r.layout.axes)
            return Layout(axes, r.layout.offset // row * own + first - start), part
        start += own
    return None


def of_part(r: Ref) -> Ref:
    """The operand as one of the part of a concatenation that holds all of it; itself where several do."""
    while isinstance(r.op, Concat) and (found := part_of(r)) is not None:
        layout, part = found
        moved = layout.through(part.layout)
        if moved is None:
            return r
        r = part.move(moved)
    return r


def parted(t: Builder, node: Node) -> Ref | None:
    """A node that reads parts of concatenations, as one of those parts."""
    operands = [of_part(r) for r in node.operands]
    return None if operands == [*node.operands] else t.node(node.op, *operands)


def loops(*layouts: Layout) -> list[list[Loop]] | None:
    """By axis, the loops of layouts of one shape cut so that all have the same sizes; None where they have no such cut."""
    result = []
    for axes in zip(*(layout.axes for layout in layouts), strict=True):
        left = [list(axis) for axis in axes]
        size = max((prod(n for n, _ in axis) for axis in axes), default=1)
        cut: list[Loop] = []
        while size > 1:
            heads = [axis[0] for axis in left]
            n = min(n for n, _ in heads)
            if any(have % n for have, _ in heads):
                return None
            cut.append((n, tuple(s * (have // n) for have, s in heads)))
            for axis, (have, s) in zip(left, heads, strict=True):
                axis[:1] = [(have // n, s)] if have > n else []
            size //= n
        result.append(cut)
    return result


def at_columns(layout: Layout, columns: int) -> Layout | None:
    """The same walk over a value [rows, columns] with every loop either along rows or along columns; None where loops cross
    from row to row."""
    axes = []
    for axis in layout.axes:
        factors: list[tuple[int, int]] = []
        for n, s in axis:
            a = abs(s)
            if a and a < columns and (n - 1) * a >= columns:
                if columns % a or n % (columns // a):
                    return None
                inner = columns // a
                factors += [(n // inner, s * inner), (inner, s)]
            elif a > columns and a % columns:
                return None
            else:
                factors.append((n, s))
        axes.append(tuple(factors))
    result = Layout.__new__(Layout)  # not joined again
    object.__setattr__(result, "axes", tuple(axes))
    object.__setattr__(result, "offset", layout.offset)
    reach = [sum((n - 1) * s for axis in axes for n, s in axis if 0 < abs(s) < columns and (s > 0) == up) for up in (True, False)]
    start = layout.offset % columns
    return result if 0 <= start + reach[1] and start + reach[0] < columns else None


def by_element(c: Ref, x: Ref) -> Ref | None:
    """The constant c, which meets x element by element, as [R or 1, C or 1] for the elements of x's value [R, C]: None where
    x does not show all of it or c differs where x does not."""
    if len(x.node.shape) != 2:
        return None
    rows, columns = x.node.shape
    split = at_columns(x.layout, columns)
    cut = loops(split, c.layout) if split is not None else None
    if (
        cut is None
        or x.layout.offset
        or (flat := [loop for axis in cut for loop in axis])
        and min(strides[0] for _, strides in flat) < 0
    ):
        return None
    if any(s == 0 and sc for _, (s, sc) in flat):
        return None
    walk = sorted((loop for loop in flat if loop[1][0]), key=lambda loop: -loop[1][0])
    after = 1
    for n, (s, _) in reversed(walk):
        if s != after:
            return None
        after *= n
    if after != rows * columns:
        return None
    axes = [tuple((n, sc) for n, (s, sc) in walk if (s >= columns) == down) for down in (True, False)]
    sizes = rows, columns
    axes = [() if not any(sc for _, sc in axis) else axis for axis in axes]
    found = c.move(Layout(tuple(axes), c.layout.offset))
    return found if all(n in (1, size) for n, size in zip(found.shape, sizes, strict=True)) else None


# --- reductions ----------------------------------------------------------------------------------------------------


def spread(r: Ref) -> Node | None:
    """The node whose value, with axes of length 1, r shows along the axes where r is longer; None where r shows it otherwise."""
    try:
        natural = Layout.dense(r.node.shape).expand(r.shape)
    except ValueError:
        return None
    return r.node if natural == r.layout else None


def reduction(r: Ref | Node | None, function: str) -> tuple[Ref, tuple[int, ...], float] | None:
    """(x, axes, factor) where the value is factor * `function` of x over axes."""
    node, factor = (r.node if isinstance(r, Ref) else r), 1.0
    while node is not None and is_map(node, "mul", "div"):
        a, b = node.operands
        if a.scalar is not None and is_map(node, "mul"):
            a, b = b, a
        if b.scalar is None or not a.whole:
            return None
        factor *= b.scalar if is_map(node, "mul") else 1 / b.scalar
        node = a.node
    if node is None or not isinstance(node.op, Reduce) or node.op.function != function:
        return None
    return node.operands[0], node.op.axes, factor


# --- elementwise functions of one value ------------------------------------------------------------------------------

MOST = 40  # nodes of an elementwise function


def pointwise(node: Node) -> bool:
    from ..layers import Activation, Clip

    return isinstance(node.op, Map | Activation | Clip)


def sources(node: Node) -> list[Ref]:
    """Values of which `node` may be an elementwise function, the farthest first: every way from it leads through one."""
    cone: dict[Node, None] = {}
    stack = [node]
    while stack:
        n = stack.pop()
        if n in cone:
            continue
        cone[n] = None
        if len(cone) > MOST:
            break
        stack += [r.node for r in n.operands if pointwise(r.node)]
    candidates: dict[Ref, None] = {}
    frontier = {r for r in node.operands if r.scalar is None}
    for _ in range(MOST):  # go on behind the value that lies farthest from the sources
        if len(frontier) == 1:
            candidates[next(iter(frontier))] = None
        inner = [r for r in frontier if r.node in cone and pointwise(r.node) and r.whole and r.shape == r.node.shape]
        inner = [r for r in inner if not any(o is not r and _reaches(o.node, r.node) for o in frontier)]
        if not inner:
            break
        r = inner[0]
        frontier.remove(r)
        frontier |= {o for o in r.node.operands if o.scalar is None}
    return list(reversed(candidates))


def _reaches(a: Node, b: Node, depth: int = 12) -> bool:
    return a is b or (depth > 0 and pointwise(a) and any(_reaches(r.node, b, depth - 1) for r in a.operands))


def elementwise(node: Node, source: Ref, at: Array) -> Array | None:
    """The values of `node` where `source` has the values `at`; None where it is no function of that and of single numbers."""
    known: dict[Node, Array] = {}

    def value(r: Ref) -> Array | None:
        if r == source:
            return at
        if (number := r.scalar) is not None:
            return np.asarray(number)
        if not pointwise(r.node) or not (r.whole and r.shape == r.node.shape):
            return None
        return of(r.node)

    def of(n: Node) -> Array | None:
        if n not in known:
            operands: list[Any] = [value(r) for r in n.operands]
            if any(x is None for x in operands):
                return None
            with np.errstate(all="ignore"):
                if isinstance(n.op, Map):
                    known[n] = FUNCTION[n.op.function](*operands)
                else:  # a quantised file's limit between steps is none of the function
                    known[n] = operands[0] if getattr(n.op, "step", 0) else _layer_at(n.op, operands[0])
        return known[n]

    return of(node)


def _layer_at(op: Any, x: Any) -> Array:
    return (
        _layer_on(op, x.tobytes(), x.size) if isinstance(x, np.ndarray) and x.ndim else apply(op, [np.atleast_1d(x)], np.float64)
    )


@lru_cache(256)
def _layer_on(op: Any, data: bytes, size: int) -> Array:
    return apply(op, [np.frombuffer(data, np.float64)], np.float64)
