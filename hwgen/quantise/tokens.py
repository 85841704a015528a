"""Operations on tokens as a whole: constant tokens and positions, mean pooling."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from ..intgraph import ColScale, Constant, MatMul, RowMax, View
from ..numerics import COL_SHIFT, INT8_MAX, INT16_MAX, SHIFT_MIN, STATIC_SHIFT
from .attention import smallest_transposed_step, transposed
from .builder import TINY, Builder, Held, copy, linear, linear_need, own_scale, read_by_array, row_operand
from .scales import LARGEST_FACTOR, UNIT_ROW, ScaleTooSmall, multipliers

Array = np.ndarray
ONE = 64  # the 1 of an identity matrix in int8: a power of two


def embed(b: Builder, node: fg.Embed) -> None:
    """Positions and constant tokens go into a buffer as a table, to which x is added: exact in 16 bit."""
    x = b.plan.nodes[node.x]
    table = np.asarray(node.position, np.float64).copy()
    table[: len(node.prefix)] += node.prefix
    rows = slice(len(node.prefix), len(node.prefix) + b.shapes[node.x][0])
    need = float(np.abs(table).max()) / INT16_MAX
    if isinstance(x, fg.Linear):
        need = max(need, linear_need(b, x))
    if need > b.stream_scale:
        raise ScaleTooSmall(need)
    out = b.buffer(node.name, *table.shape, scale=b.stream_scale)
    steps = np.rint(table / b.stream_scale).astype(np.int64)
    place = View(out.buffer, rows.start, rows.stop - rows.start, 0, out.cols)
    row_max = RowMax.ABS if read_by_array(b, node.name) and place.rows == out.rows else RowMax.NONE
    if isinstance(x, fg.Linear):
        b.emit(Constant(b.op_name(f"{node.name}.table"), out, steps.astype(np.int16), node.source))
        linear(b, x, place, b.stream_scale, node.name, residual=place, row_max=row_max)
    else:
        fixed = steps.copy()
        fixed[rows] = 0
        b.emit(Constant(b.op_name(f"{node.name}.tokens"), out, fixed.astype(np.int16), node.source))
        row_max = RowMax.NONE
        copy(b, f"{node.name}.copy", b.held[node.x].view, place)
        _add_table(b, node, place, steps[rows])
    b.trace[node.name] = out, b.ops[-1].name
    b.held[node.name] = Held(out, b.stream_scale, row_max=row_max == RowMax.ABS)


def _add_table(b: Builder, node: fg.Embed, place: View, steps: Array) -> None:
    """place += steps, as two products of int8 digits with an identity matrix, which keep all 16 bits."""
    high = np.rint(steps / 256).astype(np.int64)
    low = np.clip(steps - 256 * high, -INT8_MAX, INT8_MAX)
    for name, digits, unit in (("high", high, 256), ("low", low, 1)):
        if not np.any(digits):
            continue
        x = b.buffer(f"{node.name}.{name}", *digits.shape, scale=b.stream_scale * unit / (1 << STATIC_SHIFT))
        data = (digits << STATIC_SHIFT).astype(np.int16)
        b.emit(Constant(b.op_name(f"{node.name}.{name}"), x, data, node.source))
        # digit * ONE * 2^15 / 2^16 = digit * ONE / 2; times the row multiplier / 2^SHIFT_MIN this is digit * unit.
        row_mult = unit * (1 << SHIFT_MIN) * 2 // ONE
        b.emit(
            MatMul(
                b.op_name(f"{node.name}.add_{name}"),
                place,
                x,
                np.eye(place.cols, dtype=np.int8) * np.int8(ONE),
                col_scale=ColScale.IMMEDIATE,
                col_mult=1 << (COL_SHIFT - 1),
                row_mult=row_mult,
                shift=SHIFT_MIN,
                residual=place,
                source=node.source,
            )
        )


def mean(b: Builder, node: fg.Mean) -> None:
    """x is brought to channels by tokens, as values of attention are, and multiplied by a row of ones."""
    x = row_operand(b, node.x)
    rows, columns = node.stop - node.start, b.shapes[node.name][1]
    view = View(x.view.buffer, x.view.row + node.start - x.first_row, rows, x.view.col, x.view.cols)
    part = Held(view, x.scale, x.offset, True)
    offset = np.zeros(columns) if x.offset is None else np.asarray(x.offset, np.float64)
    peak = np.maximum(b.stats.values[node.x].magnitude(offset), TINY)
    weight = np.eye(columns) * x.scale
    step = np.maximum(peak / INT8_MAX, smallest_transposed_step(weight))
    across = transposed(b, f"{node.name}.transposed", part, weight, step, node.source)

    ones = b.buffer(f"{node.name}.ones", 1, rows)
    data = np.full((1, rows), INT8_MAX << STATIC_SHIFT, np.int16)
    b.emit(Constant(b.op_name(f"{node.name}.ones"), ones, data, node.source))
    factor = step / (INT8_MAX * rows)  # a sum of products of int8 ones and int8 steps
    need = max(float(factor.max()) / (LARGEST_FACTOR * UNIT_ROW), float(np.abs(offset).max()) / INT16_MAX)
    scale = own_scale(b, node, need)
    col_mult, shift = multipliers(factor / (scale * UNIT_ROW))
    out = b.buffer(node.name, 1, columns, scale=scale)
    b.emit(
        MatMul(
            b.op_name(node.name),
            out,
            ones,
            across,
            col_mult=col_mult,
            bias=np.rint(offset / scale).astype(np.int16),
            row_mult=UNIT_ROW,
            shift=shift,
            row_max=RowMax.ABS,
            source=node.source,
        ),
        node.name,
    )
    b.held[node.name] = Held(out, scale, row_max=True)
