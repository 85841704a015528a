"""Ranges of a quantised file: what a QuantizeLinear/DequantizeLinear pair lets the readers of a value see.

A pair on a layer's result, a sum or an input becomes a `Clip` with a step. A pair between the steps of what is to become one
layer (the variance of a LayerNorm, the erf of a GELU, scores) is no limit of any value that is left, so patterns look past it.
"""

from __future__ import annotations

import numpy as np

from ..importer.quantised import read_dynamic, read_grid
from ..layers import Clip
from ..tensor import Builder, Concat, Const, Contract, Input, Layer, Node, Pad, Program, Ref
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
    return t.through(x.layout, _limited(t, x.node, Clip(float(low[0]) * step, float(high[0]) * step, step)))


def _limited(t: Builder, node: Node, clip: Clip) -> Ref:
    """A limit on a value, or on all that a join of several computed values has: their readers see past the join."""
    if not isinstance(node.op, Concat) or sum(not constant(r) for r in node.operands) < 2:
        return t.node(clip, node.ref)
    parts = []
    for r in node.operands:
        if r.constant is None:
            parts.append(t.through(r.layout, _limited(t, r.node, clip)))
        else:
            rounded = np.rint(r.constant / np.float32(clip.step)) * np.float32(clip.step)
            parts.append(t.const(np.clip(rounded, clip.low, clip.high).astype(np.float32)))
    return t.node(node.op, *parts)


def of_inputs(program: Program) -> dict[str, tuple[float, float]]:
    """(low, high) of the inputs that nothing reads but limits: an input has one format for all its readers, the widest."""
    readers: dict[Node, list[Node | None]] = {n: [] for n in program.nodes() if isinstance(n.op, Input)}
    for node in program.nodes():
        for r in node.operands:
            readers.get(r.node, []).append(node if is_limit(node) else None)
    for r in program.outputs.values():
        readers.get(r.node, []).append(None)
    ranges = {}
    for node, limits in readers.items():
        clips = [n.op for n in limits if n is not None]
        if clips and len(clips) == len(limits):
            ranges[node.op.name] = min(c.low for c in clips), max(c.high for c in clips)
    return ranges


def of_input(t: Builder, node: Node) -> Ref | None:
    """A limit on an input, which `of_inputs` knows."""
    return node.operands[0] if is_limit(node) and isinstance(node.operands[0].op, Input) else None


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


def unlimited(program: Program) -> tuple[Program, dict[Node, Node], dict[Node, Node]]:
    """(the program without limits, its nodes -> those of `program`, -> those with the last limit on them)."""
    t = Builder()
    made: dict[Node, Ref] = {}
    under: dict[Node, Node] = {}
    over: dict[Node, Node] = {}
    for node in program.nodes():
        operands = [t.through(r.layout, made[r.node]) for r in node.operands]
        if is_limit(node):
            made[node] = operands[0]
            over[made[node].node] = node if node.operands[0] == node.operands[0].node.ref else over[made[node].node]
            continue
        t.name, t.source = node.name, node.source
        made[node] = node.ref if isinstance(node.op, Const) else t.node(node.op, *operands)
        under[made[node].node] = over[made[node].node] = node
    return Program({name: t.through(r.layout, made[r.node]) for name, r in program.outputs.items()}, program.notes), under, over


def dynamic(t: Builder, node: Node) -> Ref | None:
    """Integers with a step from the image (DynamicQuantizeLinear), or a product of them, times that step: without both."""
    if not is_map(node, "mul"):
        return None
    for product, factor in (node.operands, node.operands[::-1]):
        whole = _steps(t, product)
        if whole and whole[1] is factor.node:
            return whole[0]
        for i, r in enumerate(product.node.operands) if isinstance(product.op, Contract) else ():
            found = _steps(t, r) if constant(product.node.operands[1 - i]) else None
            rest = found and _without(t, factor, found[1])
            if found and rest is not None:
                y = t.node(product.op, *(found[0] if j == i else o for j, o in enumerate(product.node.operands)))
                return t.map("mul", t.through(product.layout, y), rest)
    return None


def _steps(t: Builder, r: Ref) -> tuple[Ref, Node] | None:
    """(x, step) of integers with a step from the image, also behind a border of zeros."""
    if isinstance(r.op, Pad) and r.op.value == 0:
        inner = _steps(t, r.node.operands[0])
        return inner and (t.through(r.layout, t.node(r.op, inner[0])), inner[1])
    found = read_dynamic(r)
    return (found[0], found[1].node) if found and found[1].layout.uniform() else None


def _without(t: Builder, factor: Ref, step: Node) -> Ref | None:
    """The constant by which the one number `step` is multiplied in `factor`."""
    if factor.node is step:
        return t.full(factor.shape, 1.0)
    if is_map(factor, "mul"):
        parts = [t.through(factor.layout, r) for r in factor.node.operands]
        for one, other in (parts, parts[::-1]):
            if one.node is step and constant(other):
                return other
    return None
