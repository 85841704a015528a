"""Products and choices that are functions of single elements: outer products, many small products, constant conditions."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from ..layers import Scale
from ..tensor import Builder, Concat, Contract, Layout, Node, Reduce, Ref
from .match import constant, is_map, layer, of_part

MOST_HEADS = 64  # products of two values that `rows.apart` takes apart to as many products of matrices
LARGE = 1e4  # what is filled in beyond it is a mask
MOST_TERMS = 16  # elements that each of more of them sums


def outer(t: Builder, node: Node) -> Ref | None:
    """A product of two computed values that sums nothing, or little in more matrices than heads: a sum of elementwise
    products (hyper-connections: Zhu et al. 2024; lambda layers: Bello 2021)."""
    if not isinstance(node.op, Contract) or any(constant(r) for r in node.operands):
        return None
    first, second, result = node.op.letters
    sizes = dict(zip(first + second, (n for r in node.operands for n in r.shape), strict=True))
    summed = [c for c in sizes if c not in result]
    shared = prod(sizes[c] for c in result if c in first and c in second)
    if summed and (shared <= MOST_HEADS or prod(sizes[c] for c in summed) > MOST_TERMS):
        return None
    if set(summed) - (set(first) & set(second)):
        return None
    total: Ref | None = None
    for index in product(*(range(sizes[c]) for c in summed)):
        sides = []
        for r, letters in zip(node.operands, (first, second), strict=True):
            for c, i in zip(summed, index, strict=True):
                r = t.slice(r, letters.index(c), i, 1)
            axes = dict(zip(letters, r.layout.axes, strict=True))
            sides.append(r.move(Layout(tuple(axes.get(c, ((sizes[c], 0),)) for c in result), r.layout.offset)))
        term = t.map("mul", *sides)
        total = term if total is None else t.map("add", total, term)
    return total


def weighed(t: Builder, node: Node) -> Ref | None:
    """A sum over few values side by side, each times weights of its own, term by term: what several points or levels of
    deformable attention give (Zhu et al. 2021)."""
    if not isinstance(node.op, Reduce) or node.op.function != "sum" or len(node.op.axes) != 1 or node.dtype != "f":
        return None
    (r,), (axis,) = node.operands, node.op.axes
    gain = layer(r, Scale) and r.node.operands[2].scalar == 0
    if not 1 < (count := r.shape[axis]) <= MOST_HEADS or not (gain or is_map(r, "mul")):
        return None
    sides = [t.through(r.layout, t.expand(o, r.node.shape)) for o in r.node.operands[:2]]
    if not any(_concatenated(side) for side in sides):
        return None
    total: Ref | None = None
    for i in range(count):
        parts = [t.slice(side, axis, i, 1) for side in sides]
        found = [of_part(part) for part in parts]
        if all(f is part for f, part in zip(found, parts, strict=True)):
            return None
        term = t.map("mul", *found)
        total = term if total is None else t.map("add", total, term)
    return t.reshape(total, node.shape) if total is not None else None


def _concatenated(r: Ref) -> bool:
    return isinstance(r.op, Concat) or (r.op.kind == "copy" and _concatenated(r.node.operands[0]))


def chosen(t: Builder, node: Node) -> Ref | None:
    """One of two values by a constant condition: interpolation by constants (torch.lerp), places filled with a number."""
    if not is_map(node, "where") or node.dtype != "f" or not constant(node.operands[0]):
        return None
    condition, one, other = node.operands
    if any(constant(r) and not (np.abs(np.asarray(r.constant)) < LARGE).all() for r in (one, other)):
        return None
    numbers = np.asarray(condition.constant, np.float32)
    if numbers.min() == numbers.max():
        return one if numbers.max() else other
    mask = t.through(condition.layout, t.const(np.asarray(condition.op.array, np.float32)))
    return t.map("add", t.map("mul", one, mask), t.map("mul", other, t.map("sub", 1.0, mask)))
