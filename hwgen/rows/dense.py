"""Layers that treat rows alike, sums and products of two values, constant tokens, means of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import graph
from ..layers import Activation, Clip, Embed, Linear, Norm, Pool, Scale
from ..recognise.limits import beneath, is_limit
from ..recognise.names import label, parent
from ..tensor import Const, Input, Map, Node, Pad
from .lower import Rows
from .patches import patch_embedding
from .reasons import CONVOLVES, ROTARY, STEM, reason
from .views import Array, Place, Unsupported

# --- where values stand ---


def like_input(b: Rows, node: Node) -> Place:
    """The rows of the first operand, in their order."""
    x, _, order = b.tokens(node.operands[0])
    width = node.shape[-1]
    return Place(node.shape[0], width, order)


def linear_place(b: Rows, node: Node) -> Place:
    if _reads_image(b, node):
        return Place(node.shape[0], node.shape[1], patch_embedding(b, node)[1])
    try:
        return like_input(b, node)
    except Unsupported as no:
        raise no if b.kinds.get(node.source) != "Conv" else Unsupported(CONVOLVES, STEM) from None


def _reads_image(b: Rows, node: Node) -> bool:
    source = beneath(b.t, node.operands[0]).node
    return (isinstance(source.op, Input) and not b.missing(source)) or isinstance(source.op, Pad)


def norm_place(b: Rows, node: Node) -> Place:
    """Rows are tokens, or the heads of each."""
    view = b.view(node.operands[0])
    if b.missing(view.node):
        return Place(node.shape[0], node.shape[1])
    width = b.place(view.node).width
    view = view.map(lambda a: a) if node.shape[1] < width else view
    if node.shape[1] >= width or (view.rows[:, :1] != view.rows).any():
        return like_input(b, node)
    heads = _heads(view.columns)
    which = np.argmax((view.columns[:, None, :] == heads[None]).all(axis=2), axis=1)
    tokens = view.rows[:, 0]
    first, depth = int(tokens.min()), node.shape[1]
    count = len(node.shape and tokens) // len(heads)
    if len(np.unique(tokens * len(heads) + which)) != len(tokens) or int(tokens.max()) - first + 1 != count:
        raise Unsupported("normalises some heads of a token and not others", "normalise all heads of queries and keys")
    return Place(count, depth * len(heads), tokens - first, which * depth)


def _heads(columns: Array) -> Array:
    heads = np.unique(columns, axis=0)
    if len(np.unique(heads)) != heads.size:
        raise Unsupported("normalises some channels of a token", "normalise all channels of a token, or those of each head")
    return heads


def both_place(b: Rows, node: Node) -> Place:
    """Two operands whose tokens are in one order."""
    sides = [b.tokens(r) for r in node.operands]
    if any(b.missing(n) for n, _, _ in sides):
        return Place(node.shape[0], node.shape[1])
    (_, _, order), (_, _, other) = sides
    if (order is None) != (other is None) or (order is not None and other is not None and not np.array_equal(order, other)):
        what = "multiplies a token by another one" if node.op.function == "mul" else "needs tokens of one value in another order"
        raise Unsupported(what, "keep the tokens in order outside the windows of attention")
    return Place(node.shape[0], node.shape[1], order)


def embed_place(b: Rows, node: Node) -> Place:
    x, prefix, _ = node.operands
    _, _, order = b.tokens(x)
    if order is None:
        return Place(node.shape[0], node.shape[1])
    rows = np.arange(node.shape[0])
    rows[prefix.shape[0] : prefix.shape[0] + len(order)] = prefix.shape[0] + order
    return Place(node.shape[0], node.shape[1], rows)


def whole_place(b: Rows, node: Node) -> Place:
    return Place(node.shape[0], node.shape[1])


# --- nodes ---


def linear(b: Rows, node: Node, start: int, stop: int) -> str:
    x, w, *bias = node.operands
    if _reads_image(b, node):
        fields, _ = patch_embedding(b, node)
        return b.rows_of(node, start, stop, lambda: b.add(graph.PatchEmbed, node, node.name, "patch_embed", **fields))
    inner, first, _ = b.tokens(x)
    weight, constant = b.array(w, "its weight"), b.array(bias[0], "its bias") if bias else None
    name = b.value(inner, first + start, first + stop)
    return b.add(graph.Linear, node, node.name, "linear", x=name, weight=weight, bias=constant)


def norm(b: Rows, node: Node, start: int, stop: int) -> str:
    x, gamma, beta = node.operands
    place, view = b.place(node), b.view(x)
    if place.column is None:
        inner, first, _ = b.tokens(x)
        heads = 1
    else:
        columns = _heads(view.map(lambda a: a).columns).reshape(-1)
        inner, first, heads = b.columns(view.node, columns), int(view.rows.min()), place.width // node.shape[1]
    if heads == 1 and beta.shape[0] != 1 and beta.constant is not None:  # positions that were added to it
        bare = b.t.node(node.op, x, gamma, b.t.full((1, node.shape[1]), np.float32(0)))
        none = b.t.const(np.zeros((0, node.shape[1]), np.float32))
        return b.value(b.t.node(Embed(), bare, none, b.t.expand(beta, node.shape)).node, start, stop)
    tables = []
    for r in (gamma, beta):
        if r.constant is None:
            raise Unsupported("its scale or bias is not constant")
        table = np.broadcast_to(r.constant, node.shape)
        if r.shape[0] != 1 and (table != table[:1]).any():
            what = "normalises the heads with a scale or bias of their own" if heads > 1 else "has a scale for each token"
            raise Unsupported(what, "share them between the heads" if heads > 1 else "")
        tables.append(b.intern(table[0]))
    name = b.value(inner, first + start, first + stop)
    fields = {
        "gamma": tables[0],
        "beta": tables[1],
        "epsilon": float(node.op.epsilon),
        "centred": node.op.centred,
        "heads": heads,
    }
    return b.add(graph.LayerNorm, node, node.name, "layernorm", x=name, **fields)


def form_of(act: Activation, what: str = "is") -> dict[str, Any]:
    """Form and slope as the row graph's nodes have them."""
    slope = act.slope if act.form in ("silu", "relu") else 1.0
    if act.form not in graph.FORMS or slope < 0 or (slope == 0) != (act.form == "relu"):
        named = "LeakyReLU" if act.form == "relu" else act.form
        raise Unsupported(f"{what} {named}, which the machine has no table for", "use GELU, SiLU or ReLU as activation")
    return {"form": act.form, "slope": slope or 1.0}


def activation(b: Rows, node: Node, start: int, stop: int) -> str:
    assert isinstance(node.op, Activation)
    form = form_of(node.op)
    inner, first, _ = b.tokens(node.operands[0])
    x = b.value(inner if b.missing(inner) or is_limit(inner) else b.identity(inner), first + start, first + stop)
    return b.add(graph.Activation, node, node.name, node.op.form, x=x, **form)


def scale(b: Rows, node: Node, start: int, stop: int) -> str:
    """Gain and offset of each channel: a product with a diagonal matrix."""
    x, gain, offset = node.operands
    inner, first, _ = b.tokens(x)
    width = node.shape[1]
    if any(r.shape[0] != 1 for r in (gain, offset)):
        raise Unsupported("multiplies by a constant that differs from token to token", ROTARY)
    weight, bias = (np.broadcast_to(b.array(r), (1, width))[0] for r in (gain, offset))
    name = b.value(inner, first + start, first + stop)
    return b.add(
        graph.Linear,
        node,
        node.name,
        "scale",
        x=name,
        weight=b.intern(np.diag(weight)),
        bias=b.intern(bias) if bias.any() else None,
    )


def both(b: Rows, node: Node, start: int, stop: int) -> str:
    if node.op.function not in ("add", "mul"):
        raise Unsupported(f"is {node.op.function} of two computed values", "")
    sides = [b.tokens(r) for r in node.operands]
    if node.op.function == "add" and (start, stop) != (0, node.shape[0]):
        return b.rows_of(node, start, stop, str)
    one, other = (b.value(n, first + start, first + stop) for n, first, _ in sides)
    if node.op.function == "add":
        name = label(node.source)
        return b.add(graph.Add, node, f"{name}.add" if name else "", "add", a=one, b=other)
    acted = next((parent(n.name) for n, _, _ in sides if isinstance(n.op, Activation)), "")
    name = label(node.source) or acted
    return b.add(graph.Multiply, node, f"{name}.gated" if name else "", "multiply", a=one, b=other)


def embed(b: Rows, node: Node, start: int, stop: int) -> str:
    x, prefix, position = node.operands
    table = np.array(position.constant, np.float32)
    place = b.place(node)
    if place.row is not None:
        table[place.row] = table.copy()
    inner, first, _ = b.tokens(x)

    def make() -> str:
        name = b.value(inner, first, first + x.shape[0])
        return b.add(graph.Embed, node, "", "embed", x=name, prefix=b.array(prefix), position=b.intern(table))

    return b.rows_of(node, start, stop, make)


def pool(b: Rows, node: Node, start: int, stop: int) -> str:
    """The mean of a range of tokens."""
    (x,) = node.operands
    if node.op.form != "mean":
        raise Unsupported("takes the largest of tokens", "use the class token or the mean of the tokens")
    if x.shape[0] != 1:
        raise Unsupported("averages over windows of tokens", "average all tokens or a range of them")
    view = b.view(x)
    inner, first, _ = b.of_columns(view.map(lambda a: a[0]))
    name = b.value(inner)
    return b.add(graph.Mean, node, node.name, "mean", x=name, start=first, stop=first + x.shape[1])


def map_place(b: Rows, node: Node) -> Place:
    if (
        node.op.function in ("add", "mul")
        and not any(isinstance(r.node.op, Const) for r in node.operands)
        and len(node.shape) == 2
    ):
        return both_place(b, node)
    raise Unsupported(*reason(node))


def limited_place(b: Rows, node: Node) -> Place:
    """That of its input, also of a norm of each head."""
    x = node.operands[0]
    return b.place(x.node) if x.whole and b.place(x.node).column is not None else like_input(b, node)


def limited(b: Rows, node: Node, start: int, stop: int) -> str:
    """A range, of a quantised file's value for its readers too: what is known of the value itself if nothing has more."""
    heads = b.place(node).column is not None
    inner, first, _ = (node.operands[0].node, 0, None) if heads else b.tokens(node.operands[0])
    name = b.value(inner, first + start, first + stop)
    clip = b.add(graph.Clip, node, node.name, "clip", x=name, low=node.op.low, high=node.op.high)
    if node.op.step:
        whole = next((n.x for n in b.nodes if n.name == name and isinstance(n, graph.Rows)), name)
        for value in (clip, whole):
            b.limit(value, node.op.low, node.op.high, b.place(node).width)
    return clip


KINDS = {
    Linear: (linear_place, linear),
    Norm: (norm_place, norm),
    Activation: (like_input, activation),
    Scale: (like_input, scale),
    Clip: (limited_place, limited),
    Embed: (embed_place, embed),
    Pool: (whole_place, pool),
    Map: (map_place, both),
}
