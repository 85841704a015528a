"""Choices as numbers: ones and zeros, exact whatever the steps of what they compare.

A number times INT16_MAX saturates unless it is zero, so that a comparison of integers is a product and a shift. The vector
engine's windows do it, each operation at one chunk of columns a cycle. All go over [R, C] once but the repeated largest ones and
what two are weighed against each other, which go over it two or three times: 12 passes for each place of a `Hard`.
"""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..isa import Reduce
from ..numerics import INT8_MAX, INT16_MAX, STATIC_SHIFT
from ..qgraph import Piece, Ref
from ..walks import block, window
from .builder import Builder, Held, fitting, plain
from .scales import OutOfRange

Array = np.ndarray
TOP = INT8_MAX << STATIC_SHIFT  # a one: the largest int8 number, whether converted by a fixed step or row by row
ONE = 1 / TOP  # step of what is 0 or 1
TO_TOP, TO_TOP_SHIFT = round(TOP / INT16_MAX * 2**16), 16  # multiplier that makes TOP of INT16_MAX
KEEP, SATURATE = 1, INT16_MAX  # multipliers with a shift of 0


def step(b: Builder, node: fg.Step) -> None:
    """Where a number is above zero: INT16_MAX times it, with what is not above cut off."""
    x = plain(b, node.x)
    cols = b.cols(x)
    sign = q.Stack(b.name(f"{node.name}.sign"), (_piece(x.ref, cols, SATURATE),), source=node.source)
    ref = b.emit(sign, x.ref.rows, cols, groups=_groups(b, x.ref))
    ref = _shifted(b, node, ref, cols, INT16_MAX if node.at_zero else -INT16_MAX)  # the lower of two: 0, or -INT16_MAX
    ref = _made(b, node, ref, cols, 0 if node.at_zero else TOP)
    b.made.trace[node.name] = ref
    b.held[node.name] = Held(ref, ONE, None, x.first_row)


def hard(b: Builder, node: fg.Hard) -> None:
    """Of each column's rows those that equal the largest, and of these the first; then the same without it, `place` times."""
    x = plain(b, node.x)
    rows, cols = x.ref.rows, b.cols(x)
    size = block(rows)
    if size is None:
        raise OutOfRange(f"chooses among {rows} rows, which no window holds")
    ref, taken = x.ref, list[Ref]()
    for place in range(node.place + 1):
        chosen = _first(b, node, ref, rows, cols, size, taken)
        taken.append(chosen)
        if place < node.place:  # not above any other
            ref = _weighed(b, node, [ref, chosen], rows, cols, (1, -3), KEEP, 0)
    b.made.trace[node.name] = chosen
    b.held[node.name] = Held(chosen, ONE)


def _first(b: Builder, node: fg.Hard, x: Ref, rows: int, cols: int, size: tuple[int, int], taken: list[Ref]) -> Ref:
    """TOP at the first of the largest elements of each column that are not `taken`, else 0."""
    most = _window(b, node, x, window(size, size), 1, cols, Reduce.MAX)
    equal = _weighed(b, node, [x, most], rows, cols, (1, -1), SATURATE, 0)  # 0 where so, else saturated
    equal = _shifted(b, node, equal, cols, INT16_MAX)
    if taken:
        weights = (1, *(-2 for _ in taken))
        equal = _shifted(b, node, _weighed(b, node, [equal, *taken], rows, cols, weights, KEEP, -INT16_MAX), cols, INT16_MAX)
    height, width = size
    sums = _window(b, node, equal, window(size, (1, width), pads=(0, width, 0, 0)), rows + height, cols)
    at = np.arange(rows + height).reshape(height, width + 1)  # of what stands before each, and behind them the whole row's
    before, terms = [_picked(b, node, sums, cols, at[:, :width].reshape(-1))], [1, -1]
    if height > 1:
        sums = _picked(b, node, sums, cols, at[:, width])
        above = _window(b, node, sums, window((height, 1), (height, 1), pads=(height, 0, 0, 0)), height + 1, cols)
        before.append(_picked(b, node, above, cols, np.repeat(np.arange(height), width)))
        terms.append(-1)
    first = _weighed(b, node, [equal, *before], rows, cols, tuple(terms), KEEP, -INT16_MAX)
    return _made(b, node, first, cols, TOP)


def _groups(b: Builder, x: Ref) -> int:
    return b.made.values[x.value].groups


def _made(b: Builder, node: fg.Node, x: Ref, cols: int, top: int) -> Ref:
    """`top` + TOP times what is 0 or INT16_MAX, of either sign."""
    piece = Piece(x, np.full(cols, TO_TOP), np.full(cols, top, np.int16), TO_TOP_SHIFT)
    made = q.Stack(b.name(f"{node.name}.ones"), (piece,), source=node.source)
    return b.emit(made, x.rows, cols, ONE, groups=_groups(b, x))


def _piece(x: Ref, cols: int, mult: int, rows: Array | None = None) -> Piece:
    return Piece(x, np.full(cols, mult), np.zeros(cols, np.int16), 0, rows)


def _picked(b: Builder, node: fg.Node, x: Ref, cols: int, rows: Array) -> Ref:
    made = q.Stack(b.name(f"{node.name}.rows"), (_piece(x, cols, KEEP, rows),), source=node.source)
    return b.emit(made, len(rows), cols, groups=_groups(b, x))


def _shifted(b: Builder, node: fg.Node, x: Ref, cols: int, by: int) -> Ref:
    made = q.Shift(b.name(f"{node.name}.shift"), x, np.full(cols, by, np.int16), source=node.source)
    return b.emit(made, x.rows, cols, groups=_groups(b, x))


def _window(b: Builder, node: fg.Node, x: Ref, walk, rows: int, cols: int, reduce: Reduce = Reduce.SUM) -> Ref:
    fields = {"shift": 0, "layer": node.name, "source": node.source}
    mults = (np.full(cols, KEEP),)
    made = q.Window(b.name(f"{node.name}.window"), x, (fitting(node, walk),), mults, np.zeros(cols, np.int16), reduce, **fields)
    return b.emit(made, rows, cols, groups=_groups(b, x))


def _weighed(
    b: Builder, node: fg.Node, terms: list[Ref], rows: int, cols: int, weights: tuple[int, ...], mult: int, bias: int
) -> Ref:
    """Sum of values [rows, cols], or of rows the same for all, times small integers; times `mult`, plus `bias`, saturated."""
    groups = _groups(b, terms[0])
    pieces = tuple(_piece(x, cols, KEEP, None if x.rows == rows else np.zeros(rows, np.int64)) for x in terms)
    stacked = b.emit(q.Stack(b.name(f"{node.name}.terms"), pieces, source=node.source), rows * len(terms), cols, groups=groups)
    count = len(terms)
    made = q.Window(
        b.name(f"{node.name}.weighed"),
        stacked,
        (fitting(node, window((count, rows), (count, 1))),),
        (np.full(cols, mult),),
        np.full(cols, bias, np.int16),
        Reduce.WEIGHTED,
        np.repeat(np.array(weights, np.int8)[:, None], cols, axis=1),
        0,
        0,
        layer=node.name,
        source=node.source,
    )
    return b.emit(made, rows, cols, groups=groups)
