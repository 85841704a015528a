"""Sigmoid of one row, as gates of channels have it: the softmax of each number and 0, channels standing as rows meanwhile."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..isa import Convert
from ..numerics import INT8_MAX, INT16_MAX, SCORE_STEPS, STATIC_SHIFT
from ..qgraph import UNIT_ROW, Matrix
from .attention import INT16_PER_INT8, PROBABILITY_ONE, smallest_transposed_step, transposed
from .builder import Builder, Held, folded, piece
from .plan import describe
from .scales import multipliers

SCORES = float(np.log2(np.e)) * SCORE_STEPS  # score steps in a number of 1
SCALE = 1 / (INT8_MAX << STATIC_SHIFT)  # of the result: 1 is the largest int8


def sigmoid(b: Builder, node: fg.Activation) -> None:
    """Emit the linear layer in front together with it."""
    source = b.plan.linear(node.x)
    x, columns = b.held[source.x], len(source.weight)
    if x.ref.rows != 1:
        raise UserError(f"{describe(node)}: sigmoid of {x.ref.rows} tokens, the machine has it for one row")
    weight, bias = folded(x, source.weight * SCORES, None if source.bias is None else source.bias * SCORES)
    step = np.full(columns, float(INT16_PER_INT8))
    if (need := float((smallest_transposed_step(weight) / step).max())) > 1:
        raise UserError(f"{describe(node)}: numbers {need:g} times beyond what scores can hold")
    pieces = piece(b, x, x.scale, x.offset), piece(b, x, x.scale, x.offset, np.array([-1]))
    both = q.Stack(b.name(f"{node.name}.and_zero"), pieces, source=node.source)
    two = Held(b.emit(both, 2, b.cols(x), x.scale), x.scale)
    constants = np.zeros((columns, 2))
    constants[:, 0] = 0.0 if bias is None else np.clip(np.rint(bias), -INT16_MAX, INT16_MAX)
    table = b.table(f"{node.name}.bias", constants, np.ones((columns, 1)), node.source)
    scores = transposed(b, f"{node.name}.scores", two, weight, step, node.source, add=table)
    mult, shift = multipliers(np.array([1 / (INT8_MAX * PROBABILITY_ONE * SCALE)]))
    first = Matrix(np.array([[INT8_MAX, 0]], np.int8), mult, shift, np.zeros(1, np.int16))
    column = q.Product(b.name(f"{node.name}.column"), scores, first, Convert.PROBABILITY, source=node.source)
    held = b.emit(column, columns, 1, SCALE)
    one = b.table(f"{node.name}.one", np.full((1, 1), INT8_MAX << STATIC_SHIFT), source=node.source)
    mult, shift = multipliers(np.full(columns, 1 / (INT8_MAX**2 * SCALE * UNIT_ROW)))
    across = Matrix(held, mult, shift, np.zeros(columns, np.int16), UNIT_ROW)
    row = q.Product(b.name(node.name), one, across, Convert.STATIC, source=node.source)
    b.held[node.name] = Held(b.emit(row, 1, columns, SCALE, value=node.name), SCALE)
