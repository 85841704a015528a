"""Rows chosen by computed scores: the scores become a column or a row of one value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph
from ..layers import Hard, Received, Select
from ..tensor import Node, Ref
from ..walks import block
from .dense import whole_place
from .lower import GONE, Rows
from .moves import value
from .products import plain_place, standing
from .standing import Standing
from .views import Array, Place, Unsupported, View


@dataclass(eq=False)
class Chosen:
    """What a Select chooses among: rows [N, C] of `x`, of which each that is chosen by one score is `each` rows, one after
    another. `at`: (row, column) of every element of one choice in such rows."""

    x: View
    each: int
    at: tuple[Array, Array]


def chosen(b: Rows, node: Node) -> Chosen | None:
    """None where x is a constant or missing."""
    return b.once("chosen", node, lambda: _chosen(b, node))


def _chosen(b: Rows, node: Node) -> Chosen | None:
    """Rows as they are, or sets of rows of a value side by side, such as the tokens of a window, as so many rows each."""
    x = node.operands[0]
    if x.constant is not None:
        return None
    view = b.view(_upright(b, x))
    if b.lost(view):
        return None
    width = view.shape[1]
    plain = Chosen(view, 1, (np.zeros(width, np.int64), np.arange(width)))
    if view.which is not None:
        return plain
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    tokens, token = np.unique(rows[0], return_inverse=True)
    channels, channel = np.unique(columns[0], return_inverse=True)
    each = len(tokens)
    token, channel = token.reshape(-1), channel.reshape(-1)
    if each == 1 or each * len(channels) != width or len(np.unique(token * len(channels) + channel)) != width:
        return plain
    first = np.array([np.flatnonzero(token == i)[0] for i in range(each)])
    if (columns != columns[:1]).any() or (rows != rows[:, first][:, token]).any():
        return plain
    at = rows[:, first].reshape(-1, 1), channels[None]
    return Chosen(View(view.sources, (len(at[0]), len(channels)), *at), each, (token, channel))


def select_place(b: Rows, node: Node) -> Place:
    found = chosen(b, node)
    count, width = node.shape
    if found is None or found.each == 1:
        return whole_place(b, node)
    token, channel = found.at
    rows = np.arange(count)[:, None] * found.each + token[None]
    at = rows.reshape(-1), np.broadcast_to(channel[None], rows.shape).reshape(-1)
    return Place(count * found.each, width // found.each, at=at)


def select(b: Rows, node: Node, start: int, stop: int) -> str:
    """Some rows are a shorter run of the order. Of a set of rows, all have the same score, so that they stay together."""
    op, (x, scores) = node.op, node.operands
    assert isinstance(op, Select)
    if scores.constant is not None:
        raise Unsupported("chooses rows by constant scores", "fold constants")
    found = chosen(b, node)
    given = b.view(scores)
    if b.lost(given) or (found is None and x.constant is None):
        return GONE
    each = 1 if found is None else found.each
    column = not np.ptp(given.columns)
    if not column and np.ptp(given.rows):
        raise Unsupported("chooses rows by scores that are spread over tokens and channels", "score each token by one number")
    if each > 1:
        given = given.map(lambda a: np.repeat(a, each, axis=0))
    operand = b.kept(given.group([0], []) if column else given.group([], [0]))
    names = [value(b, node, operand)]  # before a constant, which needs something of the image
    names.append(b.table(node, b.array(x)) if found is None else value(b, node, b.kept(found.x)))
    if GONE in names:
        return GONE
    fields = {"x": names[1], "scores": names[0], "first": op.first * each + start, "count": stop - start}
    return b.add(graph.Select, node, node.name, "select", **fields)


def _upright(b: Rows, x: Ref) -> Ref:
    """What is chosen among, as rows of a value: numbers side by side, such as the scores themselves, are turned."""
    view = b.view(x)
    if b.lost(view) or x.shape[1] > 1 or np.ptp(view.rows) or not np.ptp(view.columns):
        return standing(b, x)

    def made() -> Ref:
        b.t.name, b.t.source = "", x.node.source
        return b.t.node(Standing(), x)

    return b.once("standing", x, made)


def received(b: Rows, node: Node, start: int, stop: int) -> str:
    """One row of as many columns as there are keys. The scores of all heads are one product: the query once for each head, with
    zeros in the columns of the others."""
    q, k = node.operands
    heads, depth = q.shape
    views = [b.view(r) for r in (q, k)]
    if any(map(b.lost, views)):
        return GONE
    row, keys = (value(b, node, b.kept(v.group(*axes))) for v, axes in zip(views, (([], [0, 1]), ([1], [0, 2])), strict=True))
    if GONE in (row, keys):
        return GONE
    once = b.add(graph.Gather, node, "", "query", x=row, rows=np.zeros(heads, np.int64))
    mask = b.intern(np.kron(np.eye(heads), np.ones((1, depth))))
    if heads > 1:  # a constant as a value: of the query, times zero
        zeros = b.intern(np.zeros((heads * depth, heads * depth)))
        nothing = b.add(graph.Linear, node, "", "zeros", x=once, weight=zeros, bias=None)
        once = b.add(graph.Multiply, node, "", "own", a=once, b=b.plus(node, nothing, mask))
    scores = b.add(graph.Product, node, "", "scores", a=once, b=keys, scale=float(node.op.scale))
    return b.add(graph.Received, node, node.name, "received", x=scores)


def hard(b: Rows, node: Node, start: int, stop: int) -> str:
    if (count := node.shape[0]) < 2 or block(count) is None:
        why = f"chooses one of {count} for each, and no window holds so many"
        raise Unsupported(why, "choose among 2 to 63, or a product of two such numbers")
    name = value(b, node, b.kept(b.view(standing(b, node.operands[0]))))
    if name == GONE:
        return GONE
    return b.rows_of(node, start, stop, lambda: b.add(graph.Hard, node, node.name, "hard", x=name, place=node.op.place))


KINDS = {Hard: (plain_place, hard), Select: (select_place, select), Received: (plain_place, received)}
