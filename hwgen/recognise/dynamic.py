"""Dynamic quantisation: a scale for each tensor, taken from the image. The machine has scales of its own, finer ones, so only
the weights are kept: the rounding of what they multiply goes, and its scale with it."""

from __future__ import annotations

from ..importer.quantised import read_dynamic
from ..tensor import Builder, Const, Contract, Node, Pad, Ref
from .match import is_map


def dynamic(t: Builder, node: Node) -> Ref | None:
    """q * s is x, and (q @ w) * (s * c) is (x @ w) * c, where q = x / s in integers and c is constant."""
    for value, factor in (node.operands, node.operands[::-1]) if is_map(node, "mul") else ():
        found = _plain(t, value)
        if found is not None and found[1] == factor.node:
            return found[0]
        if not isinstance(value.op, Contract):
            continue
        for i, operand in enumerate(value.node.operands):
            found = _plain(t, operand)
            rest = _without(t, factor, found[1]) if found else None
            if found is None or rest is None:
                continue
            operands = [found[0] if j == i else r for j, r in enumerate(value.node.operands)]
            return t.map("mul", t.through(value.layout, t.node(value.op, *operands)), rest)
    return None


def _plain(t: Builder, r: Ref) -> tuple[Ref, Node] | None:
    """(x, its scale) of dynamic integers, also behind a border of zeros."""
    if isinstance(r.op, Pad) and r.op.value == 0:
        inner = _plain(t, r.node.operands[0])
        return None if inner is None else (t.through(r.layout, t.node(r.op, inner[0])), inner[1])
    found = read_dynamic(r)
    return (found[0], found[1].node) if found is not None and found[1].layout.uniform() else None


def _without(t: Builder, factor: Ref, scale: Node) -> Ref | None:
    """A factor divided by the scale that it is a product of."""
    if factor.node == scale:
        return t.full(factor.shape, 1.0)
    if not is_map(factor.node, "mul"):
        return None
    for one, other in (factor.node.operands, factor.node.operands[::-1]):
        if one.node == scale and isinstance(other.op, Const):
            return t.through(factor.layout, other)
    return None
