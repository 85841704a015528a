"""A norm of all tokens and of channels of a map together, GroupNorm, by norms of rows.

The machine normalises a row of up to norm_columns. x / sqrt(mean of squares of all) is u times v / sqrt(mean of squares of v),
where u are the rows of x normalised and v the numbers that they were divided by: fewer of them, which are made rows of a
smaller map, and so on until one row is left. Nothing is left out on the way, so it is the same in exact numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import graph
from ..tensor import Node
from .views import Array, Place

if TYPE_CHECKING:
    from .lower import Rows

MOST_GROUPS = 64
GROUP = 16  # most rows that become one: a window is that high, and the numbers of so many rows are one chunk
LEAST = 1e-12  # epsilon of the rows of x: far below that of the norm, of which nothing is taken; less of numbers made of them


@dataclass(eq=False)
class MapNorm:
    """Groups of channels of a range of tokens, `columns` of `source` each, side by side in the value of a norm."""

    source: Node
    columns: list[Array]
    first: int
    place: Place


def map_groups(b: Rows, node: Node) -> MapNorm | None:
    """None of a norm of which rows are no whole groups of channels, of several tokens each."""
    view = b.view(node.operands[0])
    if not view.single or node.shape[0] > MOST_GROUPS:
        return None
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    first, count = int(rows.min()), int(np.ptp(rows)) + 1
    found = [np.unique(line, return_inverse=True) for line in columns]
    width = len(found[0][0])
    whole = all(
        len(of) == width and len(np.unique(r * width + at)) == count * width
        for r, (of, at) in zip(rows, found, strict=True)
    )
    if not whole or min(count, width) == 1 or rows.shape[1] != count * width:
        return None
    at = np.concatenate([g * width + at for g, (_, at) in enumerate(found)])
    return MapNorm(
        view.node, [of for of, _ in found], first, Place(count, len(found) * width, at=((rows - first).reshape(-1), at))
    )


def map_norm(b: Rows, node: Node, found: MapNorm, tables: tuple[Array, Array]) -> str:
    """The value of the norm; `tables`: gain and offset of its elements."""
    parts = [
        _group(
            b, node, b.part(found.source, of, found.first, found.first + found.place.rows), (found.place.rows, len(of))
        )
        for of in found.columns
    ]
    y = parts[0] if len(parts) == 1 else b.add(graph.Join, node, "", "join", xs=tuple(parts))
    gain, offset = (np.zeros((found.place.rows, found.place.width), np.float32) for _ in range(2))
    gain[found.place.at], offset[found.place.at] = (np.broadcast_to(t, node.shape).reshape(-1) for t in tables)
    if (gain == gain[0]).all() and (offset == offset[0]).all():
        plain = (gain[0] == 1).all() and not offset.any()
        return y if plain else b.diagonal(node, y, gain[0], offset[0])
    return b.plus(node, b.times(node, y, gain), offset)


def _group(b: Rows, node: Node, x: str, size: tuple[int, int]) -> str:
    """x [R, C] less its mean where the norm is centred, over the root of the mean of its squares."""
    rows, width = size
    if node.op.centred:
        mean = b.add(graph.Mean, node, "", "mean", x=x, start=0, stop=rows)
        mean = b.add(graph.Linear, node, "", "mean", x=mean, weight=b.intern(np.full((1, width), -1 / width)), bias=None)
        mean = b.add(graph.Gather, node, "", "mean", x=mean, rows=np.zeros(rows, np.int64))
        mean = b.add(graph.Linear, node, "", "mean", x=mean, weight=b.intern(np.ones((width, 1))), bias=None)
        x = b.add(graph.Add, node, "", "centred", a=x, b=mean)
    return _normalised(b, node, x, size, rows * width, float(node.op.epsilon))


def rows_normalised(b: Rows, node: Node, x: str, width: int, gain: float = 1.0, epsilon: float = LEAST) -> str:
    """Each row of x [R, width] / sqrt(its mean square + epsilon), times the gain."""
    tables = {"gamma": b.intern(np.full(width, gain)), "beta": b.intern(np.zeros(width))}
    return b.add(graph.LayerNorm, node, "", "layernorm", x=x, **tables, epsilon=epsilon, centred=False, heads=1)


def _normalised(
    b: Rows, node: Node, x: str, size: tuple[int, int], count: float, epsilon: float, least: float = LEAST
) -> str:
    """x [R, C] / sqrt(sum of squares / count + epsilon). least: the epsilon of its rows, where it has several."""
    rows, width = size
    if rows == 1:
        return rows_normalised(b, node, x, width, (count / width) ** 0.5, epsilon * count / width)
    group = min(GROUP, rows)
    many = -(-rows // group)
    mask = np.eye(group, dtype=np.float32)[np.arange(rows) % group]
    unit = rows_normalised(b, node, x, width, epsilon=least)
    length = b.add(graph.Multiply, node, "", "multiply", a=x, b=unit)
    length = b.add(graph.Linear, node, "", "length", x=length, weight=b.intern(np.full((group, width), 1 / width)), bias=None)
    slide = {"size": (rows, 1), "kernel": (group, 1), "stride": (group, 1), "pads": (0, 0, many * group - rows, 0)}
    v = b.add(graph.Window, node, "", "lengths", x=b.times(node, length, mask), form="mean", count_pads=True, **slide)
    # v is a part of the lengths, and so are its rows' squares: with them the epsilon gets smaller, or it would count.
    v = _normalised(b, node, v, (many, group), count / width, epsilon / group**2, least / (group * width))
    v = b.add(graph.Gather, node, "", "lengths", x=v, rows=np.arange(rows) // group)
    wide = GROUP if group == GROUP and width % GROUP == 0 else width  # a chunk is used again for all columns
    weight = b.intern(np.ones((wide, group)))
    v = b.add(graph.Linear, node, "", "length", x=b.times(node, v, mask), weight=weight, bias=None)
    return b.add(graph.Multiply, node, "", "multiply", a=unit, b=v)
