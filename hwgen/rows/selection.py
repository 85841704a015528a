"""Rows chosen by computed scores: the scores become a column or a row of one value."""

from __future__ import annotations

import numpy as np

from .. import graph
from ..layers import Received, Select
from ..tensor import Node, Ref
from .dense import whole_place
from .lower import GONE, Rows
from .moves import value
from .products import plain_place, standing
from .standing import Standing
from .views import Unsupported


def select(b: Rows, node: Node, start: int, stop: int) -> str:
    """Some rows are a shorter run of the order."""
    op, (x, scores) = node.op, node.operands
    assert isinstance(op, Select)
    if x.constant is not None or scores.constant is not None:
        raise Unsupported("chooses among constant rows, or by constant scores", "fold constants")
    view, given = b.view(_upright(b, x)), b.view(scores)
    if b.lost(view) or b.lost(given):
        return GONE
    column = not np.ptp(given.columns)
    if not column and np.ptp(given.rows):
        raise Unsupported("chooses rows by scores that are spread over tokens and channels", "score each token by one number")
    operand = b.kept(given.group([0], []) if column else given.group([], [0]))
    names = value(b, node, b.kept(view)), value(b, node, operand)
    if GONE in names:
        return GONE
    fields = {"x": names[0], "scores": names[1], "first": op.first + start, "count": stop - start}
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


KINDS = {Select: (whole_place, select), Received: (plain_place, received)}
