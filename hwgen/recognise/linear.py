"""Products with constants: linear layers, and what is multiplied or added before and after them."""

from __future__ import annotations

from math import prod

import numpy as np

from ..layers import Clip, Conv, Embed, Linear, Norm, Scale
from ..tensor import Builder, Concat, Layout, Node, Ref
from .limits import beneath, is_limit
from .match import at_columns, by_element, constant, factor_of, group, is_map, layer, loops, regroup, weighted
from .names import label
from .rewrite import relabel


def linear(t: Builder, node: Node) -> Ref | None:
    """A product of what is computed with a constant, no index running over both and the result: rows times a matrix."""
    if (found := weighted(node)) is None:
        return None
    x, w, first, second, result = found
    if (number := w.scalar) is not None:
        w = t.full(w.shape, number)
        summed = [c for c in first + second if c not in result]
        if all(n == 1 for c, n in zip(first + second, x.shape + w.shape, strict=True) if c in summed):
            return _times(t, x, first, number, result, node)
    for c in [c for c in result if c in first and c in second]:  # the same rows for all of c: columns of one matrix
        if not any(s for _, s in w.layout.axes[second.index(c)]):  # the same matrix for all of c: rows of x
            w, second = _dropped(w, second, c), second.replace(c, "")
        elif not any(s for _, s in x.layout.axes[first.index(c)]):
            x, first = _dropped(x, first, c), first.replace(c, "")
        else:
            return None
    rows = [c for c in result if c in first]
    columns = [c for c in second if c in result]
    summed = [c for c in first if c not in result]
    if set(summed) - set(second) or set(second) - set(columns) - set(summed):
        return None
    x = group(x, [first.index(c) for c in rows], [first.index(c) for c in summed])
    w = group(w, [second.index(c) for c in columns], [second.index(c) for c in summed])
    y = relabel(t.node(Linear(), x, w), label(t.source, w))
    sizes = dict(zip(result, node.shape, strict=True))
    return regroup(t, y, [sizes[c] for c in result], [result.index(c) for c in rows + columns])


def _times(t: Builder, x: Ref, letters: str, number: float, result: str, node: Node) -> Ref:
    """A product with one number, over nothing."""
    axes = dict(zip(letters, x.layout.axes, strict=True))
    wide = tuple(axes.get(c, ((n, 0),)) for c, n in zip(result, node.shape, strict=True))
    return t.map("mul", x.move(Layout(wide, x.layout.offset)), number)


def _dropped(r: Ref, letters: str, letter: str) -> Ref:
    return r.move(Layout(tuple(a for a, c in zip(r.layout.axes, letters, strict=True) if c != letter), r.layout.offset))


def absorbed(t: Builder, node: Node) -> Ref | None:
    """Factors and terms of the columns of a linear layer's input, in its weight and bias."""
    if not layer(node, Linear) or _columns_factor(t, node.operands[0]) is None:
        return None
    return relabel(_product(t, *node.operands), node.name)


def _product(t: Builder, x: Ref, w: Ref, b: Ref | None = None) -> Ref:
    """x [R, K] by w [N, K], with factors and terms of the columns of x in the weight and bias."""
    for _ in range(8):
        found = _columns_factor(t, x)
        if found is None:
            break
        inner, function, c = found
        if function == "add":
            more = t.reduce("sum", t.map("mul", w, c), [1], keep=False)
            b = more if b is None else t.map("add", b, more)
        else:
            w = t.map(function, w, c)
        x = inner
    return t.node(Linear(), x, w, *([] if b is None else [b]))


def _columns_factor(t: Builder, x: Ref) -> tuple[Ref, str, Ref] | None:
    """(y, function, c) where x [R, K] is `function` of y and a constant c [1, K], the same in all rows."""
    if not is_map(x, "add", "sub", "mul", "div"):
        return None
    a, b = x.node.operands
    function = x.node.op.function
    if constant(a) and function in ("add", "mul"):
        a, b = b, a
    if not constant(b) or constant(a):
        return None
    y, c = t.through(x.layout, a), t.through(x.layout, b)
    cut = loops(c.layout)
    if cut is None or any(s for _, (s,) in cut[0]):
        return None
    c = c.move(Layout(((), c.layout.axes[1]), c.layout.offset))
    if function == "sub":
        function, c = "add", t.map("neg", c)
    return y, function, c


def bias(t: Builder, node: Node) -> Ref | None:
    """A constant added to every row of a layer that has a bias. A single number stays apart, it may be part of a function, and
    so does one that differs from row to row, part of a rotation."""
    return None if _uniform(node) else _term(t, node, False)


def gain(t: Builder, node: Node) -> Ref | None:
    """The columns of a layer times constants."""
    return None if _uniform(node) else _factor(t, node, False)


def _uniform(node: Node) -> bool:
    return any(r.scalar is not None for r in node.operands)


def with_constant(t: Builder, node: Node, *functions: str) -> tuple[Ref, Ref, str] | None:
    if not is_map(node, *functions):
        return None
    a, b = node.operands
    function = node.op.function
    if constant(a) and function in ("add", "mul"):
        a, b = b, a
    if constant(b) and not constant(a):
        if function == "sub":
            return a, t.map("neg", b), "add"
        return a, b, function
    return None


def _term(t: Builder, node: Node, by_row: bool = True) -> Ref | None:
    found = with_constant(t, node, "add", "sub")
    if found is not None and is_limit(found[0]):
        return _past_limit(t, node, *found, by_row)
    if found is not None and is_map(found[0], "add"):
        return _sum_term(t, *found[:2])
    if found is None or not layer(found[0], Linear, Norm, Conv, Scale, Embed):
        return None
    if _stays(t, found[0].node):
        return None
    x, b = _part(t, found[0]), found[1]
    c = by_element(b, x)
    if c is None or (c.shape[0] != 1 and not (by_row and layer(x, Norm, Scale, Embed))):
        return None
    return _replaced(t, x, _added(t, x.node, c), b)


def _stays(t: Builder, node: Node) -> bool:
    """Whether a layer had better stay as it is, as others read it, too: a convolution by several taps would be computed twice."""
    return isinstance(node.op, Conv) and prod(node.operands[1].shape[2:]) > 1 and t.readers.get(node, 1) > 1


def _part(t: Builder, x: Ref) -> Ref:
    """Where x shows columns of a linear layer that lie side by side and not all: a layer of those alone, which an optimiser
    made one with others. x itself otherwise."""
    whole = x.node.shape[-1]
    split = at_columns(x.layout, whole) if layer(x, Linear) else None
    if split is None:
        return x
    count, walk = 1, [f for axis in split.axes for f in axis if f[1]]
    for n, stride in sorted((f for f in walk if abs(f[1]) < whole), key=lambda f: f[1]):
        if stride != count:
            return x
        count *= n
    first, rows = x.layout.offset % whole, x.layout.offset // whole
    if count == whole or any(s < 0 for _, s in walk) or rows or prod(n for n, _ in walk) != x.node.shape[0] * count:
        return x
    t.source, t.name = x.node.source, x.node.name
    made = t.node(Linear(), x.node.operands[0], *(t.slice(r, 0, first, count) for r in x.node.operands[1:]))
    axes = tuple(tuple((n, s if s < whole else s // whole * count) for n, s in axis) for axis in split.axes)
    return made.move(Layout(axes, 0))


def _added(t: Builder, y: Node, c: Ref) -> Ref:
    op, operands = y.op, y.operands
    if isinstance(op, Embed):
        return t.node(op, *operands[:2], t.map("add", operands[2], c))
    if isinstance(op, Norm | Scale):
        return t.node(op, *operands[:2], t.map("add", operands[2], c))
    c = t.reshape(t.expand(c, (1, y.shape[1])), (y.shape[1],))
    return t.node(op, *operands[:2], c if len(operands) == 2 else t.map("add", operands[2], c))


def _factor(t: Builder, node: Node, by_row: bool = True) -> Ref | None:
    found = with_constant(t, node, "mul", "div")
    if found is not None and is_limit(found[0]):
        return _past_limit(t, node, *found, by_row)
    if found is not None and is_map(found[0], "add") and found[1].scalar is not None:
        return _sum_factor(t, *found)
    if found is None or not layer(found[0], Linear, Norm, Conv, Scale, Embed):
        return None
    if _stays(t, found[0].node):
        return None
    x, b, function = _part(t, found[0]), *found[1:]
    c = by_element(b, x)
    if c is None or (c.shape[0] != 1 and not (by_row and layer(x, Norm, Scale))) or (layer(x, Embed) and c.scalar is None):
        return None
    op, operands = x.node.op, list(x.node.operands)
    if isinstance(op, Norm | Scale):
        made = [operands[0], t.map(function, operands[1], c), t.map(function, operands[2], c)]
    elif isinstance(op, Embed):
        inner = t.map(function, operands[0], c)
        scaled = _factor(t, inner.node) if inner.whole else None
        made = [inner if scaled is None else scaled, *(t.map(function, r, c) for r in operands[1:])]
    else:
        c = t.reshape(t.expand(c, (1, x.node.shape[1])), (x.node.shape[1],))
        wide = t.reshape(c, (-1, *[1] * (len(operands[1].shape) - 1)))
        made = [operands[0], t.map(function, operands[1], wide), *(t.map(function, r, c) for r in operands[2:])]
    return _replaced(t, x, t.node(op, *made), b)


def _past_limit(t: Builder, node: Node, x: Ref, b: Ref, function: str, by_row: bool) -> Ref | None:
    """A factor or term of a limited layer, in the layer; the limits move with it, as far as the widest column's."""
    inner = t.map(function, beneath(t, x), b)
    fold = _term if function == "add" else _factor
    folded = fold(t, inner.node, by_row) if is_map(inner, function) and inner.whole else None
    if folded is None or b.constant is None:
        return None
    limits, numbers = np.array([[x.op.low], [x.op.high]]), np.asarray(b.constant).reshape(1, -1)
    moved = {"add": np.add, "mul": np.multiply, "div": np.divide}[function](limits, [[numbers.min(), numbers.max()]])
    y = t.node(Clip(float(moved.min()), float(moved.max()), x.op.step), folded.node.ref)
    return t.through(folded.layout, y)


def _sum_term(t: Builder, x: Ref, b: Ref) -> Ref | None:
    """A constant added to a sum, in the bias of a linear layer among the addends."""
    for i in (1, 0):
        part = t.through(x.layout, x.node.operands[i])
        if layer(part, Linear, Conv) and (folded := _term(t, t.map("add", part, b).node)) is not None:
            other = t.through(x.layout, x.node.operands[1 - i])
            return t.map("add", *((other, folded) if i else (folded, other)))
    return None


def _sum_factor(t: Builder, x: Ref, b: Ref, function: str) -> Ref | None:
    """A number times a sum of layers, in each of them."""
    parts = []
    for r in x.node.operands:
        part = t.map(function, r, b.scalar)
        folded = _factor(t, part.node) if part.whole and is_map(part, function) else None
        if folded is None:
            return None
        parts.append(folded)
    return t.through(x.layout, t.map("add", *parts))


def _replaced(t: Builder, x: Ref, y: Ref, parameter: Ref) -> Ref:
    """y in place of the layer that x shows, under the name that a parameter of dotted name gives, else the layer's own."""
    old = x.node
    relabel(y, label(t.source, parameter) or old.name, old.source or t.source)
    return t.through(x.layout, y)


def bias_at_last(t: Builder, node: Node) -> Ref | None:
    """As `bias`, of single numbers too."""
    return _term(t, node)


def gain_at_last(t: Builder, node: Node) -> Ref | None:
    """As `gain`, of single numbers too; chains of factors first become one."""
    if not is_map(node, "mul", "div"):
        return None
    if is_map(node, "mul") and not any(constant(r) for r in node.operands):
        return _product_factor(t, node)
    x, factor = factor_of(t, node.ref)
    if x.node is node:
        return _factor(t, node)
    if abs(factor - 1) < 1e-6:
        return x
    product = t.map("mul", x, factor)
    folded = _factor(t, product.node) if product.whole and is_map(product, "mul") else None
    return folded or (product if product.node is not node else None)


def _product_factor(t: Builder, node: Node) -> Ref | None:
    """Numbers by which the factors of a product are multiplied, in a layer that makes one of them, else behind it."""
    (a, f), (b, g) = (factor_of(t, r) for r in node.operands)
    if f * g == 1:
        return None if (a, b) == node.operands else t.map("mul", a, b)
    for x, y in ((a, b), (b, a)):
        scaled = t.map("mul", x, f * g)
        folded = _factor(t, scaled.node) if scaled.whole else None
        if folded is not None:
            return t.map("mul", folded, y)
    return t.map("mul", t.map("mul", a, b), f * g)


def wide_input(t: Builder, node: Node) -> Ref | None:
    """A linear layer of values side by side: the sum of one for each; constants among them go into the bias."""
    if not layer(node, Linear) or not isinstance(node.operands[0].op, Concat):
        return None
    x, w, *b = node.operands
    inner = x.node
    if x.layout != Layout.dense(x.shape) or not x.whole or inner.op.axis != len(inner.shape) - 1 or x.shape[1] != inner.shape[-1]:
        return None
    total: Ref | None = None
    fixed, at = b[0] if b else None, 0
    for part in inner.operands:
        part = t.reshape(part, (prod(part.shape[:-1]), part.shape[-1]))
        columns = t.slice(w, 1, at, part.shape[1])
        at += part.shape[1]
        if constant(part):
            if any(s for _, s in part.layout.axes[0]):
                return None
            one = t.slice(part, 0, 0, 1)
            more = t.reduce("sum", t.map("mul", columns, one), [1], keep=False)
            fixed = more if fixed is None else t.map("add", fixed, more)
        else:
            y = relabel(_product(t, part, columns), node.name)
            total = y if total is None else t.map("add", total, y)
    if total is None or fixed is None:
        return total
    return _term(t, t.map("add", total, fixed).node) or t.map("add", total, fixed)


def sorted_walks(t: Builder, node: Node) -> Ref | None:
    """Rows and summed columns of a linear layer in the order in which x stands; rows that are the same once; pixels that
    are the same summed in the weight."""
    if not layer(node, Linear):
        return None
    x, w, *b = node.operands
    rows, columns = x.layout.axes
    cut = loops(Layout((columns,)), Layout((w.layout.axes[1],)))
    if cut is None:
        return None
    order = sorted(range(len(rows)), key=lambda i: -abs(rows[i][1]))
    kept = [i for i in order if rows[i][1]]
    same = [loop for loop in cut[0] if not loop[1][0]]
    walk = sorted((loop for loop in cut[0] if loop[1][0]), key=lambda loop: -abs(loop[1][0]))
    if kept == list(range(len(rows))) and walk == cut[0]:
        return None
    if same:
        w = w.move(
            Layout((w.layout.axes[0], *(((n, s),) for n, (_, s) in walk), tuple((n, s) for n, (_, s) in same)), w.layout.offset)
        )
        w = t.reduce("sum", w, [len(w.shape) - 1], keep=False)
        w = t.reshape(w, (w.shape[0], -1))
    else:
        w = w.move(Layout((w.layout.axes[0], tuple((n, s) for n, (_, s) in walk)), w.layout.offset))
    x = x.move(Layout((tuple(rows[i] for i in kept), tuple((n, s) for n, (s, _) in walk)), x.layout.offset))
    y = t.node(Linear(), x, w, *b)
    sizes = [n for n, _ in rows]
    y = t.reshape(y, (*(sizes[i] for i in kept), y.shape[1]))
    y = t.transpose(y, [*sorted(range(len(kept)), key=lambda k: kept[k]), len(kept)])
    y = t.reshape(y, [*(sizes[i] if i in kept else 1 for i in range(len(sizes))), y.shape[-1]])
    return t.reshape(t.expand(y, (*sizes, y.shape[-1])), node.shape)


def scale(t: Builder, node: Node) -> Ref | None:
    """What no neighbour takes: each channel, or each element, times a constant or plus one."""
    found = with_constant(t, node, "mul", "div", "add", "sub")
    if found is None or node.dtype != "f":
        return None
    x, b, function = found
    if (c := by_element(b, x)) is None:
        return None
    one, zero = t.full((1, x.node.shape[1]), 1.0), t.full((1, x.node.shape[1]), 0.0)
    c = t.expand(c, (c.shape[0], x.node.shape[1]))
    gain, term = (one, c) if function == "add" else (c if function == "mul" else t.map("div", one, c), zero)
    y = relabel(t.node(Scale(), x.node.ref, gain, term), label(t.source, b), t.source)
    return t.through(x.layout, y)
