"""Rows picked by the indices of a top-k, or of a sort, of computed scores."""

from __future__ import annotations

import numpy as np

from ..layers import Received, Select, Softmax
from ..tensor import FLOAT, Builder, Gather, Node, Reduce, Ref, TopK
from .attention import product_of
from .match import factor_of, group, layer, regroup
from .names import label
from .rewrite import relabel

Array = np.ndarray


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
    """A run of one list of indices, the same one for all channels."""
    if not isinstance(node.op, Gather) or node.dtype != FLOAT or not isinstance(node.operands[1].op, TopK):
        return None
    (x, index), axis = node.operands, node.op.axis
    best = index.node
    if best.size != best.shape[best.op.axis] or x.shape[axis] != best.operands[0].shape[best.op.axis]:
        return None  # several lists, or of other rows
    walked = [(i, n, s) for i, loops in enumerate(index.layout.axes) for n, s in loops if s]
    along = [axis] if node.op.elements else [i for i, _, _ in walked]
    if any(s != 1 or i not in along for i, _, s in walked) or len(walked) > 1:
        return None
    count = walked[0][1] if walked else 1
    if (index.shape[axis] if node.op.elements else index.layout.size) != count:
        return None  # one row several times
    scores = group(best.operands[0], range(len(best.shape)))
    rest = [i for i in range(len(x.shape)) if i != axis]
    scores, factor = factor_of(t, scores)
    scores = scores if (factor > 0) == best.op.largest else t.map("neg", scores)
    y = t.node(Select(index.layout.offset, count), group(x, [axis], rest), scores)
    relabel(y, label(t.source))
    return t.reshape(regroup(t, y, [*x.shape[:axis], count, *x.shape[axis + 1 :]], [axis, *rest]), node.shape)
