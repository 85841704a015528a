"""Products of two computed values, softmax as a value, and heads mixed with each other: attention that is not plain softmax
attention of tokens to tokens.

A head is a value of its own: `apart` has made products of heads of them, of two values [R, K] and [N, K] each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph
from ..layers import Embed, Linear, Norm, Softmax
from ..recognise.match import is_map
from ..tensor import Node, Ref
from . import dense
from .apart import Ratio, Scaled
from .depthwise import MOST_KERNEL
from .lower import GONE, Make, Rows, Where
from .mixing import mixed, resamples
from .moves import value
from .standing import Standing
from .views import Array, Place, View, shown

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
    return b.once("standing", r, lambda: _standing(b, r))


def _standing(b: Rows, r: Ref) -> Ref:
    view = b.view(r)
    if b.lost(view) or not turned(view):
        return r
    b.t.name, b.t.source = "", r.node.source
    return b.t.node(Standing(), r)


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
    return not b.lost(view) and other.shape[0] > 1 and _is_weights(one) and not _is_weights(other) and not turned(view)


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
    return b.once("heads", node, lambda: _heads(b, node))


def _heads(b: Rows, node: Node) -> Heads | None:
    x = node.operands[0]
    if x.constant is not None or dense.reads_image(b, node):
        return None
    if isinstance(node.op, Linear) and resamples(b, node):
        return None
    view = b.view(x)
    if b.lost(view) or len(view.shape) != 2 or (view.which is not None and (view.which < 0).any()):
        return None
    count, heads = view.shape
    if not 2 <= heads <= MOST_KERNEL:  # a head is a tap of the window
        return None
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    which = np.zeros(view.shape, np.int64) if view.which is None else np.broadcast_to(view.which, view.shape)
    place = np.stack([np.arange(count)] * heads, 1)
    first = [int(a.min()) for a in (rows[:, 0], columns[:, 0])]
    r, c = rows[:, 0] - first[0], columns[:, 0] - first[1]
    height, width = int(r.max()) + 1, int(c.max()) + 1
    if min(height, width) < 2 or height * width != count or len(np.unique(r * width + c)) != count:
        return None
    if width < heads:  # channels of pixels that were shuffled out of few columns, which are rows of their own
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

    def made() -> Node:
        b.t.name, b.t.source = node.name, node.source
        parts = (b.t.reshape(b.t.transpose(a, (1, 0)), (heads, height, width)) for a in (x, position))
        return b.t.map("add", *parts).node

    return b.once("heads apart", node, made)


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

    def made() -> Node:
        r = standing(b, x)
        b.t.name, b.t.source = node.name, node.source
        return b.t.node(node.op, r, *tables).node

    return b.once("of channels", node, made)


KINDS: dict[type, tuple[Where, Make]] = {
    Scaled: (product_place, product),
    Softmax: (plain_place, softmax),
    Ratio: (plain_place, ratio),
    Standing: (plain_place, standing_make),
    Linear: (linear_place, linear),
    Norm: (norm_place, norm),
    Embed: (embed_place, embed),
}
