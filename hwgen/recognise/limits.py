"""Ranges of a quantised file: what a QuantizeLinear/DequantizeLinear pair lets the readers of a value see.

A pair on a layer's result, a sum or an input becomes a `Clip` with a step. A pair between the steps of what is to become one
layer (the variance of a LayerNorm, the erf of a GELU, scores) is no limit of any value that is left, so patterns look past it.
"""

from __future__ import annotations

import numpy as np

from ..importer.quantised import read_grid
from ..layers import Clip
from ..tensor import Builder, Concat, Input, Layer, Node, Ref
from .match import constant, is_map


def limit(t: Builder, node: Node) -> Ref | None:
    """A grid of one step and range for the whole value, as a `Clip`."""
    if not is_map(node, "mul", "min") or (found := read_grid(node.ref)) is None:
        return None
    x, *numbers = found
    scale, low, high = (np.unique(n) for n in numbers)
    if constant(x) or len(scale) != 1 or len(low) != 1 or len(high) != 1:
        return None
    step = float(scale[0])
    y = t.node(Clip(float(low[0]) * step, float(high[0]) * step, step), x.node.ref)
    return t.through(x.layout, y)


def is_limit(r: Ref | Node) -> bool:
    return isinstance(r.op, Clip) and r.op.step > 0


def beneath(t: Builder, r: Ref) -> Ref:
    """What r shows, behind the limits on it."""
    while is_limit(r):
        r = t.through(r.layout, r.node.operands[0])
    return r


def stands(node: Node) -> bool:
    """Whether a value is one by itself, whatever reads it."""
    if isinstance(node.op, Layer | Input | Concat):
        return True
    return is_map(node, "add") and all(r.scalar is None for r in node.operands) and node.operands[0] != node.operands[1]


def joined(t: Builder, node: Node) -> Ref | None:
    """A limit on a limit."""
    if not is_limit(node) or not is_limit(node.operands[0]):
        return None
    one, other = node.op, node.operands[0].op
    low, high = (min(max(n, one.low), one.high) for n in (other.low, other.high))
    y = t.node(Clip(low, high, max(one.step, other.step)), node.operands[0].node.operands[0])
    return t.through(node.operands[0].layout, y)
