"""Lengths of rows: the machine has no root of a number, but it divides rows by their length.

x . (x / |x|) is |x|, zero for a row of zeros by the norm's epsilon. Of a long row first its pieces, and then the length
of their lengths.
"""

from __future__ import annotations

import numpy as np

from .. import graph
from ..layers import Length
from ..tensor import Node
from .lower import GONE, Make, Rows, Where
from .map_norms import rows_normalised
from .moves import value
from .products import plain_place

PIECE = 256  # columns of a row that are one norm


def length(b: Rows, node: Node, start: int, stop: int) -> str:
    return b.rows_of(node, start, stop, lambda: _whole(b, node))


def _whole(b: Rows, node: Node) -> str:
    view, down = b.view(node.operands[0]), node.op.axis == 0
    if b.lost(view):
        return GONE
    parts = []
    for i in range(0, view.shape[node.op.axis], PIECE):
        part = view.map(lambda a, i=i: a[i : i + PIECE] if down else a[:, i : i + PIECE])  # type: ignore[misc]
        x = value(b, node, b.kept(part))
        if down:
            x = b.add(graph.Transpose, node, "", "transpose", x=x)
        parts.append(_of_rows(b, node, x, part.shape[node.op.axis]))
    y = parts[0]
    if len(parts) > 1:
        y = _of_rows(b, node, b.add(graph.Join, node, "", "join", xs=tuple(parts)), len(parts))
    return b.add(graph.Transpose, node, node.name, "length", x=y) if down else y


def _of_rows(b: Rows, node: Node, x: str, width: int) -> str:
    y = b.add(graph.Multiply, node, "", "multiply", a=x, b=rows_normalised(b, node, x, width))
    weight = b.intern(np.full((1, width), width**-0.5))
    return b.add(graph.Linear, node, "", "length", x=y, weight=weight, bias=None)


KINDS: dict[type, tuple[Where, Make]] = {Length: (plain_place, length)}
