"""Rows picked by the indices of a top-k, or of a sort, of computed scores."""

from __future__ import annotations

from ..layers import Select
from ..tensor import FLOAT, Builder, Gather, Node, Ref, TopK
from .match import group, regroup
from .names import label
from .rewrite import relabel


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
    scores = scores if best.op.largest else t.map("neg", scores)
    y = t.node(Select(index.layout.offset, count), group(x, [axis], rest), scores)
    relabel(y, label(t.source))
    return t.reshape(regroup(t, y, [*x.shape[:axis], count, *x.shape[axis + 1 :]], [axis, *rest]), node.shape)
