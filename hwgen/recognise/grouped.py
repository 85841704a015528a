"""Products with a constant of their own for each place along an axis: groups of channels, or rows of a map."""

from __future__ import annotations

from math import prod

import numpy as np

from ..layers import Linear
from ..tensor import Builder, Node, Ref
from .linear import linear
from .match import group, of_part, regroup, weighted
from .names import label
from .rewrite import relabel

Weighted = tuple[Ref, Ref, str, str, str]  # what `weighted` finds
MOST_PARTS = 64  # layers that one product becomes
MOST_WEIGHTS = 1 << 22  # elements of the matrix that holds all groups


def grouped(t: Builder, node: Node) -> Ref | None:
    """One matrix with zeros between the groups where these are channels of a value; else a layer for each place."""
    if (found := weighted(node)) is None or node.dtype != "f":
        return None
    x, w, first, second, result = found
    shared = [c for c in result if c in first and c in second]
    if not shared or set(second) - set(result) - set(first):
        return None
    if len(x.node.shape) != 2:  # such as values one beside the other, each with a matrix of its own
        few = set(first) - set(result) and x.shape[first.index(shared[0])] <= MOST_PARTS
        return _by_place(t, node, found, shared[0]) if few else None
    width = x.node.shape[1]
    steps = {c: [abs(s) for _, s in x.layout.axes[first.index(c)] if s] for c in shared}
    wide = [c for c in shared if steps[c] and max(steps[c]) < width]
    rest = [c for c in shared if c not in wide]
    sizes = dict(zip(first + second, x.shape + w.shape, strict=True))
    if prod(sizes[c] for c in rest) > MOST_PARTS:
        return None
    return _blocks(t, node, found, wide) if not rest else _by_place(t, node, found, rest[0])


def _by_place(t: Builder, node: Node, found: Weighted, letter: str) -> Ref | None:
    x, w, first, second, result = found
    parts = []
    spec = f"{first.replace(letter, '')},{second.replace(letter, '')}->{result.replace(letter, '')}"
    for i in range(x.shape[first.index(letter)]):
        sides = []
        for r, letters in ((x, first), (w, second)):
            axis = letters.index(letter)
            one = of_part(t.slice(r, axis, i, 1))
            sides.append(t.reshape(one, one.shape[:axis] + one.shape[axis + 1 :]))
        part = t.contract(spec, *sides).node
        y = linear(t, part) or grouped(t, part)
        if y is None:
            return None
        axis = result.index(letter)
        parts.append(t.reshape(y, (*y.shape[:axis], 1, *y.shape[axis:])))
    return t.concat(parts, result.index(letter))


def _blocks(t: Builder, node: Node, found: Weighted, wide: list[str]) -> Ref | None:
    x, w, first, second, result = found
    sizes = dict(zip(first + second, x.shape + w.shape, strict=True))
    rows = [c for c in first if c in result and c not in wide]
    summed = [c for c in first if c not in result]
    columns = [c for c in result if c in second and c not in wide]
    groups, each, out = (prod(sizes[c] for c in part) for part in (wide, summed, columns))
    if groups**2 * each * out > MOST_WEIGHTS or set(rows + wide + columns) != set(result):
        return None
    own = np.asarray(group(w, *[[second.index(c) for c in part] for part in (wide, columns, summed)]).constant)
    matrix = np.zeros((groups, out, groups, each), np.float32)
    matrix[np.arange(groups), :, np.arange(groups)] = own
    x = group(x, [first.index(c) for c in rows], [first.index(c) for c in (*wide, *summed)])
    y = relabel(t.node(Linear(), x, t.const(matrix.reshape(groups * out, -1))), label(t.source, w))
    return regroup(t, y, [sizes[c] for c in result], [result.index(c) for c in (*rows, *wide, *columns)])
