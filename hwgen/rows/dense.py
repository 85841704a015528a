"""Layers of each row by itself: linear layers, norms, positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import graph
from ..layers import Embed, Linear, Norm
from ..tensor import Input, Node, Pad
from .depthwise import MOST_DILATION
from .lower import GONE, Rows
from .map_norms import map_groups, map_norm
from .maps import sliding, taps_of
from .mixing import mix, mixed
from .moves import MOST_NARROW, below, gathered, value
from .operands import Operand
from .patches import ELSEWHERE, patch_embedding
from .views import Array, Place, Unsupported

# --- where values stand ---


def like_input(b: Rows, node: Node) -> Place:
    """The rows of the first operand, in their order."""
    x = b.tokens(node.operands[0])
    return Place(x.rows, node.shape[-1], x.order)


def linear_place(b: Rows, node: Node) -> Place:
    if reads_image(b, node):
        return Place(node.shape[0], node.shape[1], patch_embedding(b, node)[1])
    if (found := mixed(b, node)) is not None:
        return found.place
    x, _ = _sorted(b, node)
    return Place(x.rows, node.shape[1], x.order)


def _sorted(b: Rows, node: Node) -> tuple[Operand, Array | None]:
    """(what a linear layer reads, with the channels of a token side by side; the columns in that order, None: as they are)."""

    def made() -> tuple[Operand, Array | None]:
        view, order = b.view(node.operands[0]), None
        if view.rows.shape[1] > 1 and not b.lost(view):
            view = view.map(lambda a: a)
            known = np.ones(view.shape, np.bool_) if view.which is None else view.which >= 0
            at = int(known.sum(axis=1).argmax())
            which = np.zeros(view.shape[1]) if view.which is None else view.which[at]
            order = np.lexsort((view.columns[at], view.rows[at], which))
            if not known[at].all() or np.array_equal(order, np.arange(len(order))):
                order = None
        if order is None:
            return b.tokens(node.operands[0]), None
        return b.settled([view.map(lambda a: a[:, order])])[0], order

    return b.once("sorted", node, made)


def reads_image(b: Rows, node: Node) -> bool:
    """Whether a linear layer makes tokens of patches of the image."""
    source, x = node.operands[0].node, node.operands[0]
    border = isinstance(source.op, Pad)
    if border:
        source = source.operands[0].node
    if not isinstance(source.op, Input) or b.missing(source) or len(x.shape) != 2:
        return False
    try:
        patch_embedding(b, node)
    except Unsupported as no:
        return not (border and no.reason == ELSEWHERE)
    return True


def norm_place(b: Rows, node: Node) -> Place:
    """Rows are tokens, or the heads of each."""
    view = b.view(node.operands[0])
    if b.lost(view):
        return Place(node.shape[0], node.shape[1])
    if (found := _head_rows(b, node)) is None:
        several = min(view.rows.ndim, view.columns.ndim) == 2 and np.ptp(view.rows[0]) and np.ptp(view.columns[0])
        if several and (groups := map_groups(b, node)) is not None:
            return groups.place
        if several and node.shape[0] == 1:
            raise Unsupported("normalises parts of tokens together", "use LayerNorm or GroupNorm")
        if (turned := _scattered(b, node)) is not None:
            operand, columns = turned
            rows = np.arange(node.shape[0]) if operand.order is None else operand.order
            at = np.repeat(rows, node.shape[1]), np.tile(np.argsort(columns), node.shape[0])
            return Place(operand.rows, node.shape[1], at=at)
        return like_input(b, node)
    tokens, which, heads = found
    return Place(int(np.ptp(tokens)) + 1, heads.size, tokens - tokens.min(), which * node.shape[1])


def _scattered(b: Rows, node: Node) -> tuple[Operand, Array] | None:
    """As `_sorted` what a norm reads whose row mixes single channels of tokens, as patches merged channel by channel do; None
    where it is made of few pieces as it stands."""
    blocks = b.tokens(node.operands[0]).blocks
    if len(blocks) <= MOST_NARROW or any(block.width > 1 for block in blocks):
        return None
    operand, columns = _sorted(b, node)
    return None if columns is None else (operand, columns)


def _head_rows(b: Rows, node: Node) -> tuple[Array, Array, Array] | None:
    """(token, head) of each row and the columns of each head, where rows are all heads of a range of tokens."""
    view = b.view(node.operands[0])
    if not view.single or node.shape[1] >= b.place(view.node).width:
        return None
    view = view.map(lambda a: a)
    heads = np.unique(view.columns, axis=0)
    if len(heads) == 1 or (view.rows[:, :1] != view.rows).any() or len(np.unique(heads)) != heads.size:
        return None
    which = np.argmax((view.columns[:, None, :] == heads[None]).all(axis=2), axis=1)
    tokens = view.rows[:, 0]
    each = len(np.unique(tokens * len(heads) + which)) == len(tokens) == (int(np.ptp(tokens)) + 1) * len(heads)
    return (tokens, which, heads) if each else None


def embed_place(b: Rows, node: Node) -> Place:
    x, prefix, _ = node.operands
    order = _embedded(b, node).order
    if order is None:
        return Place(node.shape[0], node.shape[1])
    rows = np.arange(node.shape[0])
    rows[prefix.shape[0] : prefix.shape[0] + len(order)] = prefix.shape[0] + order
    return Place(node.shape[0], node.shape[1], rows)


def _embedded(b: Rows, node: Node) -> Operand:
    x = node.operands[0]
    found = b.tokens(x)
    return found if found.rows == x.shape[0] else b.kept(b.view(x))


def whole_place(b: Rows, node: Node) -> Place:
    return Place(node.shape[0], node.shape[1])


# --- nodes ---


def linear(b: Rows, node: Node, start: int, stop: int) -> str:
    x, w, *bias = node.operands
    if reads_image(b, node):
        fields, _ = patch_embedding(b, node)
        return b.rows_of(node, start, stop, lambda: b.add(graph.PatchEmbed, node, node.name, "patch_embed", **fields))
    if mixed(b, node) is not None:
        return mix(b, node, start, stop)
    operand, columns = _sorted(b, node)
    weight, constant = b.array(w, "its weight"), b.array(bias[0], "its bias") if bias else None
    weight = weight if columns is None else b.intern(weight[:, columns])
    if len(operand.blocks) > 1 and (found := taps_of(b, operand)) is not None:
        source, first, fields = found
        kernel = fields.pop("kernel")
        taps = b.intern(weight.reshape(len(weight), *kernel, -1))

        def make() -> str:
            name = b.part(*source, first, first + fields["size"][0] * fields["size"][1])
            return b.add(graph.Conv, node, node.name, "conv", x=name, weight=taps, bias=constant, **fields)

        return b.rows_of(node, start, stop, make)
    if (across := _patches_across(b, node, operand)) is not None:
        name, order, fields = across
        taps = b.intern(weight.reshape(len(weight), *fields.pop("kernel"), -1))
        fields |= {"weight": taps, "bias": constant}

        def convolved() -> str:
            y = b.add(graph.Conv, node, node.name, "conv", x=name, **fields)
            return gathered(b, node, y, order, operand.rows)

        return b.rows_of(node, start, stop, convolved)
    name = value(b, node, operand, start, stop)
    return b.add(graph.Linear, node, node.name, "linear", x=name, weight=weight, bias=constant)


def _patches_across(b: Rows, node: Node, operand: Operand) -> tuple[str, Array, dict[str, Any]] | None:
    """(value, position of a Conv over it that is each row, fields of the Conv) of patches that lie across the columns of a
    value, so that the columns of each row of patches are rows below each other."""
    if operand.gone or (shared := below(b, node, operand)) is None:
        return None
    name, rows, total = shared
    stands = np.argsort(rows[:, 0], kind="stable")  # patches one below the other first
    if name == GONE or (found := sliding(rows[stands], total)) is None or max(found[1].get("dilation", (1, 1))) > MOST_DILATION:
        return None
    first, fields = found
    end = first + fields["size"][0] * fields["size"][1]
    if (first, end) != (0, total):
        name = b.add(graph.Rows, node, "", "rows", x=name, start=first, stop=end)
    return name, np.argsort(stands), fields


def norm(b: Rows, node: Node, start: int, stop: int) -> str:
    x, gamma, beta = node.operands
    place, view, heads = b.place(node), b.view(x), 1
    columns: Array | slice = slice(None)
    if place.at is not None and (groups := map_groups(b, node)) is not None:
        constants = b.array(gamma, "its scale"), b.array(beta, "its bias")
        return b.rows_of(node, start, stop, lambda: map_norm(b, node, groups, constants))
    if place.at is not None:
        turned = _scattered(b, node)
        assert turned is not None
        name, columns = value(b, node, turned[0], start, stop), turned[1]
    elif place.column is None:
        name = value(b, node, b.tokens(x), start, stop)
    else:
        found = _head_rows(b, node)
        assert found is not None
        heads, first = len(found[2]), int(found[0].min())
        name = b.part(view.node, found[2].reshape(-1), first + start, first + stop)
    tables = []
    for r in (gamma, beta):
        if r.constant is None:
            raise Unsupported("its scale or bias is not constant")
        table = np.broadcast_to(r.constant, node.shape)[:, columns]
        tables.append(table[_first(b.tokens(x))[start:stop]] if heads == 1 else _of_heads(table, place, heads))
    if heads > 1 and all((t == t[:1]).all() for t in tables):  # the same for all heads
        tables = [t[:1] for t in tables]
    tables = [t.reshape(1, -1) for t in tables] if heads > 1 else tables
    own = [(t == t[:1]).all() for t in tables]
    if not all(own) and b.tokens(x).rows != node.shape[0]:
        raise Unsupported("has a scale or bias for each token, of which several are the same")
    fields = {
        "gamma": b.intern(tables[0][0] if own[0] else np.ones(node.shape[1])),
        "beta": b.intern((tables[1][0] if own[1] else tables[1].mean(axis=0)) if own[0] else np.zeros(node.shape[1])),
        "epsilon": float(node.op.epsilon),
        "centred": node.op.centred,
        "heads": heads,
    }
    y = b.add(graph.LayerNorm, node, node.name, "layernorm", x=name, **fields)
    return y if all(own) else b.plus(node, b.times(node, y, tables[0] / fields["gamma"]), tables[1] - fields["beta"])


def _of_heads(table: Array, place: Place, heads: int) -> Array:
    """A scale or bias [heads, width] from one for each row of a norm of heads."""
    assert place.column is not None
    which = place.column // table.shape[1]
    first = np.array([int(np.flatnonzero(which == h)[0]) for h in range(heads)])
    if (table != table[first][which]).any():
        raise Unsupported("normalises the heads with a scale or bias of each token", "give all tokens the same")
    return np.asarray(table[first])


def _first(operand: Operand) -> Array:
    """A row of the operand that is row i of its value."""
    return np.arange(operand.rows) if operand.order is None else np.unique(operand.order, return_index=True)[1]


def embed(b: Rows, node: Node, start: int, stop: int) -> str:
    _, prefix, position = node.operands
    table = np.array(position.constant, np.float32)
    place = b.place(node)
    if place.row is not None:
        table[place.row] = table.copy()
    operand = _embedded(b, node)

    def make() -> str:
        name = value(b, node, operand)
        return b.add(graph.Embed, node, "", "embed", x=name, prefix=b.array(prefix), position=b.intern(table))

    return b.rows_of(node, start, stop, make)


KINDS = {
    Linear: (linear_place, linear),
    Norm: (norm_place, norm),
    Embed: (embed_place, embed),
}
