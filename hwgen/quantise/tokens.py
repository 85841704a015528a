"""Operations on tokens as a whole: mean pooling."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..isa import Convert
from ..numerics import INT8_MAX, INT16_MAX, STATIC_SHIFT
from ..qgraph import UNIT_ROW, Matrix
from .attention import smallest_transposed_step, transposed
from .builder import ROOM, TINY, Builder, Held, own_scale
from .scales import LARGEST_FACTOR, multipliers


def mean(b: Builder, node: fg.Mean) -> None:
    """x is brought to channels by tokens, as values of attention are, and multiplied by a row of ones."""
    x = b.held[node.x]
    rows, columns = node.stop - node.start, b.shapes[node.name][1]
    part = Held(x.ref.part(node.start - x.first_row, rows), x.scale, x.offset)
    offset = np.zeros(columns) if x.offset is None else np.broadcast_to(np.float64(x.offset), columns)
    peak = np.maximum(b.stats.values[node.x].magnitude(offset), TINY)
    weight = np.eye(columns) * x.scale
    step = np.maximum(peak * ROOM / INT8_MAX, smallest_transposed_step(weight))
    step = np.maximum(step, step.max() * 2.0**-12)
    across = transposed(b, f"{node.name}.transposed", part, weight, step, node.source)
    ones = b.table(f"{node.name}.ones", np.full((1, rows), INT8_MAX << STATIC_SHIFT), source=node.source)
    factor = step / (INT8_MAX * rows)  # a sum of products of int8 ones and int8 steps
    need = max(float(factor.max()) / (LARGEST_FACTOR * UNIT_ROW), float(np.abs(offset).max()) / INT16_MAX)
    scale = own_scale(b, node, need)
    col_mult, shift = multipliers(factor / (scale * UNIT_ROW))
    matrix = Matrix(across, col_mult, shift, np.rint(offset / scale).astype(np.int16), UNIT_ROW)
    made = q.Product(b.name(node.name), ones, matrix, Convert.STATIC, source=node.source)
    b.held[node.name] = Held(b.emit(made, 1, columns, scale, value=node.name), scale)
