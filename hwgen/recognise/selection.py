"""Rows picked by the indices of a top-k, or of a sort, of computed scores."""

from __future__ import annotations

from math import prod

import numpy as np

from ..layers import Received, Select, Softmax
from ..tensor import FLOAT, Builder, Gather, Node, Reduce, Ref, Scatter, TopK
from .attention import product_of
from .conditions import FEW_LISTS, MOST_PLACES, ones
from .lists import MOST_LISTS, listed, plain
from .match import constant, group, layer, regroup
from .names import label
from .rewrite import relabel

Array = np.ndarray
MOST_ONES = 1 << 20  # places times rows that are added at them: numbers of a matrix


def received(t: Builder, node: Node) -> Ref | None:
    """A sum over heads of what one query gives its keys."""
    if not isinstance(node.op, Reduce) or node.op.function != "sum" or not layer(node.operands[0], Softmax):
        return None
    (r,) = node.operands
    if len(r.node.shape) < 3 or (size := np.prod(r.node.shape[:-2], dtype=int)) != np.prod([r.shape[i] for i in node.op.axes]):
        return None
    queries, keys = r.node.shape[-2:]
    first = range(len(node.op.axes))
    spread: Array = np.moveaxis(r.layout.positions().reshape(r.shape), node.op.axes, first).reshape(size, -1)
    heads, query, at = spread // (keys * queries), spread // keys % queries, spread % keys
    run = at[0, 0] + np.arange(at.shape[1])
    if (query != query[0, 0]).any() or (at != run).any() or (np.sort(heads, axis=0) != np.arange(size)[:, None]).any():
        return None
    axis = len(r.node.shape) - 2
    found = product_of(t, r.node.operands[0], (axis,), (axis + 1,))
    if found is None or found[3] or found[4]:
        return None
    q, k, scale, _, _ = found
    q = t.slice(t.slice(q, axis, int(query[0, 0]), 1), axis + 1, 0, 1)
    depth = q.shape[-1]
    k = t.reshape(t.slice(k, axis, 0, 1), (size, keys, depth))
    y = relabel(t.node(Received(scale), t.reshape(q, (size, depth)), k), label(t.source))
    return t.reshape(t.slice(y, 0, int(run[0]), len(run)), node.shape)


def selected(t: Builder, node: Node) -> Ref | None:
    """Rows by an index that is made of lists, the same for all channels; or lists of their own for few lines."""
    if not isinstance(node.op, Gather) or node.dtype != FLOAT or constant(node.operands[1]):
        return None
    (x, index), axis = node.operands, node.op.axis
    index = plain(t, index)
    if not node.op.elements:
        rest = [i for i in range(len(x.shape)) if i != axis]
        y = listed(t, group(x, [axis], rest), t.reshape(index, (index.layout.size,)))
        if y is None:
            return None
        _named(t, y)
        sizes = [*x.shape[:axis], index.layout.size, *x.shape[axis + 1 :]]
        return t.reshape(regroup(t, y, sizes, [axis, *rest]), node.shape)
    lines = [i for i, loops in enumerate(index.layout.axes) if i != axis and any(s for _, s in loops)]
    shared = [i for i in range(len(x.shape)) if i != axis and i not in lines]
    most = FEW_LISTS if any(x.shape[i] > 1 for i in shared) else 1
    if prod(x.shape[i] for i in lines) > most and (many := _by_ones(t, x, index, axis)) is not None:
        return many
    if prod(x.shape[i] for i in lines) > MOST_LISTS:
        return None
    parts = []
    for at in np.ndindex(*(x.shape[i] for i in lines)):
        own, picks = x, index
        for i, place in zip(lines, at, strict=True):
            own, picks = (t.slice(r, i, place, 1) for r in (own, picks))
        for i in shared:
            picks = t.slice(picks, i, 0, 1)
        y = listed(t, group(own, [axis], [*lines, *shared]), t.reshape(picks, (index.shape[axis],)))
        if y is None:
            return None
        parts.append(_named(t, y))
    return regroup(t, t.concat(parts, 0), node.shape, [*lines, axis, *shared])


def _by_ones(t: Builder, x: Ref, index: Ref, axis: int) -> Ref | None:
    """The best few of many lines: of each place the sum of a line times its ones."""
    if index.shape[axis] > MOST_PLACES or not isinstance(index.op, TopK):
        return None
    places = []
    for i in range(index.shape[axis]):
        one = ones(t, t.slice(index, axis, i, 1), x.shape[axis], axis)
        if one is None:
            return None
        places.append(t.reduce("sum", t.map("mul", one, x), [axis]))
    return t.concat(places, axis)


def _named(t: Builder, y: Ref) -> Ref:
    return relabel(y, label(t.source)) if layer(y, Select) and y.node.name == "" else y


def scattered(t: Builder, node: Node) -> Ref | None:
    """Rows added at places that a list names, by the transpose of rows of ones and zeros, each with its one at the place.

    A product of [N, L] with what is added, so that a row may be named several times: its additions are summed."""
    if not isinstance(node.op, Scatter) or node.dtype != FLOAT or node.op.reduction != "add":
        return None
    (x, index, updates), axis = node.operands, node.op.axis
    rest = [i for i in range(len(x.shape)) if i != axis]
    if constant(index) or any(index.shape[i] != x.shape[i] for i in rest):
        return None
    index = plain(t, index)
    if any(s for i in rest for _, s in index.layout.axes[i]):
        return None
    for i in rest:
        index = t.slice(index, i, 0, 1)
    count, length = x.shape[axis], updates.shape[axis]
    if count * length > MOST_ONES:
        return None
    ones = listed(t, t.const(np.eye(count, dtype=np.float32)), t.reshape(index, (length,)))
    if ones is None:
        return None
    added = t.contract("ln,lc->nc", ones, group(updates, [axis], rest))
    return regroup(t, t.map("add", group(x, [axis], rest), added), x.shape, [axis, *rest])
