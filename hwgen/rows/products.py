"""Products of two computed values, softmax as a value, and heads mixed with each other: attention that is not plain softmax
attention of tokens to tokens.

A head is a value of its own. `split` takes products apart head by head, and attention over channels, which no node of the
row graph is, to its definition; what is left is a product of two values [R, K] and [N, K].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph
from ..layers import Attention, Embed, Linear, Norm, Softmax
from ..recognise import rewrite
from ..recognise.match import factor_of, is_map, scalar_of
from ..tensor import Builder, Const, Contract, Layer, Node, Pad, Program, Reduce, Ref
from . import dense
from .lower import GONE, Make, Rows, Where
from .mixing import mixed
from .moves import value
from .views import Array, Place, View, shown

MOST_HEADS = 64  # products that one is taken apart to


@dataclass(frozen=True)
class Standing(Layer):
    """x [R, C] as it is, as a value of these rows: its operand shows the columns of another."""

    def define(self, t: Builder, *operands: Ref) -> Ref:
        return t.copy(operands[0])


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


# --- L -> L ---


def split(program: Program) -> Program:
    """The same outputs with attention over channels by its definition, and with products of two values head by head."""
    for patterns in ((_over_channels, _normalised, _ratio, _padded), (_scaled,), (_by_heads,)):
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
    if any(c not in first + second or len(s) > 1 for s in sides for c in s) or len(summed) != 1:
        return None
    if set(first) - {*batch, *sides[0], *summed} or set(second) - {*batch, *sides[1], *summed}:
        return None
    scale = node.op.scale if isinstance(node.op, Scaled) else 1.0
    operands = []
    for r, letters, own in zip(node.operands, (first, second), sides, strict=True):
        bare, factor = factor_of(t, r)
        if factor > 0:
            r, scale = bare, scale * factor
        operands.append(t.transpose(r, [letters.index(c) for c in (*batch, *own, *summed)]))
    a, b = operands
    heads = int(np.prod([a.shape[i] for i in range(len(batch))]))
    if heads > MOST_HEADS:
        return None
    sizes = [a.shape[len(batch)] if sides[0] else 1, b.shape[len(batch)] if sides[1] else 1]
    parts = []
    for index in np.ndindex(*a.shape[: len(batch)]):
        one, other = (_picked(t, r, index, n) for r, n in zip((a, b), sizes, strict=True))
        parts.append(t.reshape(t.node(Scaled("ab,cb->ac", scale), one, other), (1, *sizes)))
    y = t.reshape(t.concat(parts, 0), (*a.shape[: len(batch)], *(n for n, s in zip(sizes, sides, strict=True) if s)))
    order = [*batch, *sides[0], *sides[1]]
    return t.transpose(y, [order.index(c) for c in result])


def _picked(t: Builder, r: Ref, index: tuple[int, ...], rows: int) -> Ref:
    for axis, i in enumerate(index):
        r = t.slice(r, axis, i, 1)
    return t.reshape(r, (rows, -1))


# --- operands ---


def turned(view: View) -> bool:
    """Whether rows of a view [R, C] are columns of values and its columns rows of them."""
    if min(view.shape) < 2:
        return False
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    which = np.zeros((1, 1)) if view.which is None else np.broadcast_to(view.which, view.shape)
    if which.min() < 0 or (columns != columns[:, :1]).any():
        return False
    down, across = ((which != which[part]).any() for part in ((slice(None), slice(1)), slice(1)))
    return bool(((rows != rows[:, :1]).any() or down) and ((columns != columns[:1]).any() or across))


def standing(b: Rows, r: Ref) -> Ref:
    """The operand, or where it shows columns of a value as rows the same in a value of its own."""
    key = r, "standing"
    if key not in b._derived:
        view = b.view(r)
        if not b.lost(view) and turned(view):
            b.t.name, b.t.source = "", r.node.source
            b._derived[key] = b.t.node(Standing(), r)
        else:
            b._derived[key] = r
    found: Ref = b._derived[key]
    return found


def standing_make(b: Rows, node: Node, start: int, stop: int) -> str:
    view = b.view(node.operands[0]).group([1], [0])
    name = value(b, node, b.kept(view))
    if name == GONE:
        return GONE
    return b.rows_of(node, start, stop, lambda: b.add(graph.Transpose, node, "", "transpose", x=name))


def plain_place(b: Rows, node: Node) -> Place:
    width = node.shape[-1]
    return Place(node.size // width, width)


# --- products ---


def product_place(b: Rows, node: Node) -> Place:
    rows, columns = node.shape
    if not _swapped(b, node):
        return Place(rows, columns)
    r, c = np.indices(node.shape)
    return Place(columns, rows, at=(c.reshape(-1), r.reshape(-1)))


def _swapped(b: Rows, node: Node) -> bool:
    """Whether the value is the transpose: weights [channels, channels] come first, and rows of the other are tokens."""
    one, other = node.operands
    view = b.view(other)
    return not b.lost(view) and _is_weights(one) and not _is_weights(other) and not turned(view)


def _is_weights(r: Ref) -> bool:
    """Whether what a product or a softmax makes is the value, past functions of its elements."""
    node = r.node
    while is_map(node) and len(computed := [o for o in node.operands if o.constant is None]) == 1:
        node = computed[0].node
    inner = [o.node for o in node.operands] if node.op.kind == "concat" else [node]
    return all(isinstance(n.op, Scaled | Softmax) for n in inner)


def product(b: Rows, node: Node, start: int, stop: int) -> str:
    swapped = _swapped(b, node)
    names = [value(b, node, b.kept(b.view(standing(b, r)))) for r in node.operands]
    if GONE in names:
        return GONE
    one, other = names[::-1] if swapped else names
    fields = {"a": one, "b": other, "scale": float(node.op.scale)}
    return b.rows_of(node, start, stop, lambda: b.add(graph.Product, node, node.name, "product", **fields))


def softmax(b: Rows, node: Node, start: int, stop: int) -> str:
    axes = list(range(len(node.shape)))
    x = node.operands[0]
    view = b.view(x).group(axes[:-1], axes[-1:])
    if not b.lost(view) and turned(view):
        b.t.name, b.t.source = "", node.source
        view = b.view(standing(b, b.t.reshape(x, view.shape)))
    name = value(b, node, b.kept(view), start, stop)
    return GONE if name == GONE else b.add(graph.Softmax, node, node.name, "softmax", x=name)


def ratio(b: Rows, node: Node, start: int, stop: int) -> str:
    name = value(b, node, b.kept(b.view(standing(b, node.operands[0]))), start, stop)
    return (
        GONE if name == GONE else b.add(graph.Ratio, node, node.name, "ratio", x=name, epsilon=float(node.op.epsilon))
    )


# --- heads mixed with each other ---


@dataclass(eq=False)
class Heads:
    """A linear layer whose channels are heads and whose tokens are the elements of each: `views` [R, C] of every head, and
    (row, column) of each token of the layer in them."""

    views: list[View]
    at: tuple[Array, Array]


def heads_of(b: Rows, node: Node) -> Heads | None:
    key = node, "heads"
    if key not in b._derived:
        b._derived[key] = _heads(b, node)
    found: Heads | None = b._derived[key]
    return found


def _heads(b: Rows, node: Node) -> Heads | None:
    x = node.operands[0]
    if x.constant is not None or dense.reads_image(b, node):
        return None
    view = b.view(x)
    if b.lost(view) or len(view.shape) != 2 or view.shape[1] < 2 or (view.which is not None and (view.which < 0).any()):
        return None
    count, heads = view.shape
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    which = np.zeros(view.shape, np.int64) if view.which is None else np.broadcast_to(view.which, view.shape)
    place = np.stack([np.arange(count)] * heads, 1)
    first = [int(a.min()) for a in (rows[:, 0], columns[:, 0])]
    r, c = rows[:, 0] - first[0], columns[:, 0] - first[1]
    height, width = int(r.max()) + 1, int(c.max()) + 1
    if min(height, width) < 2 or height * width != count or len(np.unique(r * width + c)) != count:
        return None
    order = np.argsort(r * width + c)
    views = []
    for h in range(heads):
        own = rows[:, h] - rows[:, h].min(), columns[:, h] - columns[:, h].min()
        if not np.array_equal(own[0], r) or not np.array_equal(own[1], c) or (which[:, h] != which[0, h]).any():
            return None
        source = view.sources[int(which[0, h])]
        table = [a[place[order, h], h].reshape(height, width) for a in (rows, columns)]
        views.append(View((source,), (height, width), *table))
    same = {(id(v.node), int(v.rows[0, 0]), int(v.columns[0, 0])) for v in views}
    return Heads(views, (r, c)) if len(same) == heads else None


def linear_place(b: Rows, node: Node) -> Place:
    found = heads_of(b, node)
    if found is None:
        inner = _of_channels(b, node)
        return dense.linear_place(b, node) if inner is None else b.place(inner)
    height, width = found.views[0].shape
    r, c = found.at
    outputs = node.shape[1]
    rows = np.arange(outputs)[None] * height + r[:, None]
    return Place(outputs * height, width, at=(rows.reshape(-1), np.repeat(c, outputs)))


def linear(b: Rows, node: Node, start: int, stop: int) -> str:
    """Heads below each other are a map of so many rows, and each output a window over all of them."""
    found = heads_of(b, node)
    if found is None:
        inner = _of_channels(b, node)
        return dense.linear(b, node, start, stop) if inner is None else b.value(inner, start, stop)
    _, w, *bias = node.operands
    weight, constant = b.array(w, "its weight"), b.array(bias[0], "its bias") if bias else None
    names = [value(b, node, b.kept(v)) for v in found.views]
    if GONE in names:
        return GONE
    height, width = found.views[0].shape
    x = names[0] if len(names) == 1 else b.add(graph.Stack, node, "", "heads", xs=tuple(names))

    def make() -> str:
        outputs = []
        for g, row in enumerate(weight):
            taps = b.intern(np.broadcast_to(row[:, None, None], (len(row), 1, width)))
            term = None if constant is None else b.intern(np.full(width, constant[g]))
            fields = {"size": (len(row), height), "kernel": (len(row), 1), "weight": taps, "bias": term}
            name = f"{node.name}.{g}" if node.name else ""
            outputs.append(b.add(graph.Window, node, name, "mixed", x=x, form="weighted", **fields))
        return b.add(graph.Stack, node, node.name, "mixed", xs=tuple(outputs)) if len(outputs) > 1 else outputs[0]

    return b.rows_of(node, start, stop, make)


def embed_place(b: Rows, node: Node) -> Place:
    inner = _of_heads(b, node)
    if inner is None:
        return dense.embed_place(b, node)
    place = b.place(inner)
    count, heads = node.shape
    at = np.arange(heads) * count + np.arange(count)[:, None]
    rows, columns = (np.broadcast_to(a, at.shape).reshape(-1) for a in shown(at, inner, place))
    return Place(place.rows, place.width, at=(rows, columns))


def embed(b: Rows, node: Node, start: int, stop: int) -> str:
    inner = _of_heads(b, node)
    return dense.embed(b, node, start, stop) if inner is None else b.value(inner, start, stop)


def _of_heads(b: Rows, node: Node) -> Node | None:
    """The sum with constants of scores whose heads are channels, as a sum of heads; None where channels are channels."""
    x, prefix, position = node.operands
    found = None if prefix.shape[0] or x.shape != node.shape else heads_of(b, node)
    if found is None:
        return None
    (height, width), (r, c), heads = found.views[0].shape, found.at, node.shape[1]
    if not np.array_equal(r * width + c, np.arange(height * width)):
        return None
    key = node, "heads apart"
    if key not in b._derived:
        b.t.name, b.t.source = node.name, node.source
        parts = (b.t.reshape(b.t.transpose(a, (1, 0)), (heads, height, width)) for a in (x, position))
        b._derived[key] = b.t.map("add", *parts).node
    made: Node = b._derived[key]
    return made


# --- layers of channels ---


def norm_place(b: Rows, node: Node) -> Place:
    inner = _of_channels(b, node)
    return dense.norm_place(b, node) if inner is None else b.place(inner)


def norm(b: Rows, node: Node, start: int, stop: int) -> str:
    inner = _of_channels(b, node)
    return dense.norm(b, node, start, stop) if inner is None else b.value(inner, start, stop)


def _of_channels(b: Rows, node: Node) -> Node | None:
    """The same layer of a value whose rows are channels, each with all tokens as its columns; None where rows are tokens."""
    x, *tables = node.operands
    if x.constant is not None or dense.reads_image(b, node):
        return None
    view = b.view(x)
    if b.lost(view) or not turned(view) or (isinstance(node.op, Linear) and mixed(b, node) is not None):
        return None
    key = node, "standing"
    if key not in b._derived:
        r = standing(b, x)
        b.t.name, b.t.source = node.name, node.source
        b._derived[key] = b.t.node(node.op, r, *tables).node
    found: Node = b._derived[key]
    return found


KINDS: dict[type, tuple[Where, Make]] = {
    Scaled: (product_place, product),
    Softmax: (plain_place, softmax),
    Ratio: (plain_place, ratio),
    Standing: (plain_place, standing_make),
    Linear: (linear_place, linear),
    Norm: (norm_place, norm),
    Embed: (embed_place, embed),
}
