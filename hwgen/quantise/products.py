"""Products of two values outside attention, transposed values, and softmax as a value of its own.

Both operands of a product are converted row by row, each row with a scale of its own: what stands in 16 bits loses no more
than an int8 row does. The product's step is then that of the operands times a power of two.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..isa import Convert
from ..numerics import COL_SHIFT, INT8_MAX, INT16_MAX, ROW_STEP_BITS, SCORE_STEPS, SHIFT_MAX, SHIFT_MIN
from ..qgraph import UNIT_ROW, Matrix, Ref
from .attention import (
    INT16_PER_INT8,
    PROBABILITY_ONE,
    parameters,
    project,
    side_of,
    smallest_transposed_step,
    transposed,
)
from .builder import ROW_UNIT, TINY, Builder, Held, folded, own_scale, piece, plain
from .scales import OutOfRange, quantise_weights, smallest_out_scale

COARSE = 16  # score steps in a step of logits, 0.7: beyond it probabilities would be noise
RATIO_ROOM = 1.2  # of what rows divided by their sums were seen to reach
SCORE = float(np.log(2)) / SCORE_STEPS  # what a score step is


def product(b: Builder, node: fg.Product) -> None:
    """x streamed against the stationary rows of the other value."""
    one, other = plain(b, node.a), plain(b, node.b)
    steps = float(one.scale) * float(other.scale) * node.scale
    unit = steps * 2.0 ** (COL_SHIFT - 2 * ROW_STEP_BITS)  # what a step is with a shift of 0
    wanted = own_scale(b, node, unit * 2.0**SHIFT_MIN)
    shift = int(np.ceil(np.log2(wanted / unit)))
    if shift > SHIFT_MAX:
        raise OutOfRange(f"a product {wanted / unit:g} times beyond its operands' steps")
    shift = max(shift, SHIFT_MIN)
    made = q.Product(b.name(node.name), one.ref, Matrix(other.ref, None, shift), source=node.source)
    scale = unit * 2.0**shift
    b.held[node.name] = Held(b.emit(made, one.ref.rows, other.ref.rows, scale, value=node.name), scale)


def transpose(b: Builder, node: fg.Transpose) -> None:
    """Rows of weights, those of a linear layer or the identity, streamed against the stationary tokens."""
    source, rows = b.plan.nodes[node.x], b.shapes[node.x][0]
    if isinstance(source, fg.Linear) and source.x in b.held:
        x = b.held[source.x]
        weight, bias = folded(x, source.weight, source.bias)
    else:
        x = b.held[node.x]
        weight, bias = folded(x, np.eye(b.cols(x)), None)
    need = float(smallest_transposed_step(weight).max()) / INT16_PER_INT8
    need = need if bias is None else max(need, float(np.abs(bias).max()) / INT16_MAX)
    scale = own_scale(b, node, need)
    add = None
    if bias is not None and bias.any():
        table = np.broadcast_to(np.rint(bias / scale)[:, None], (len(weight), rows))
        add = b.table(f"{node.name}.bias", table, np.full((len(weight), 1), scale), node.source)
    step = np.full(len(weight), scale * INT16_PER_INT8)
    ref = transposed(b, b.name(node.name), x, weight, step, node.source, add=add)
    b.made.values[ref.value] = replace(b.made.values[ref.value], scale=scale)
    if add is not None:
        b.made.values[add.value] = replace(b.made.values[add.value], scale=scale)
    b.made.trace[node.name] = ref
    b.held[node.name] = Held(ref, scale)


def rotate(b: Builder, node: fg.Rotate) -> None:
    """Positions turned in where no attention does it."""
    side = side_of(b, node.name, node)
    factor, term = parameters(b, side, 0.0)
    if side.norm is None:
        need = float(smallest_out_scale(factor, ROW_UNIT, term).max())
    else:
        need = float(max(np.abs(factor).max(), np.abs(term).max())) / INT16_MAX
    scale = own_scale(b, node, need)
    ref = project(b, node, side, node.name, np.full(node.heads, scale * INT16_PER_INT8), 0.0, {})
    b.made.values[ref.value] = replace(b.made.values[ref.value], scale=scale)
    b.made.trace[node.name] = ref
    b.held[node.name] = Held(ref, scale, None, b.held[side.linear.x].first_row)


def ratio(b: Builder, node: fg.Ratio) -> None:
    """A conversion row by row divides by the largest of a row: the last column, with the others in parts of their reach.

    RMSNorm before it, which leaves ratios as they are, makes rows of any size use 16 bits; its gamma brings the others into
    parts of their reach. What the result reaches beyond calibration makes its row smaller by as much.
    """
    if float(b.stats.values[node.x].low[-1]) < 0:
        raise OutOfRange("divides by sums of weights of which some are below zero")
    x, columns = plain(b, node.x), b.shapes[node.name][1]
    ref, rows = x.ref, x.ref.rows
    if steps := round(node.epsilon / float(x.scale)):
        bias = np.append(np.zeros(columns), min(steps, INT16_MAX)).astype(np.int16)
        ref = b.emit(q.Shift(b.name(f"{node.name}.sum"), ref, bias, source=node.source), rows, columns + 1, x.scale)
    seen = b.stats.values[node.name]
    reach = np.maximum(seen.magnitude() * RATIO_ROOM * seen.room, TINY)
    reach = np.maximum(reach, reach.max() * 2.0**-12)
    parts = np.append(1 / reach, 1.0)
    step = max((columns + 1) ** 0.5, float(parts.max())) / INT16_MAX
    gamma = np.minimum(np.rint(parts / step), INT16_MAX).astype(np.int16)
    normed = q.Norm(b.name(f"{node.name}.norm"), ref, gamma, np.zeros_like(gamma), 1, centred=False, source=node.source)
    ref = b.emit(normed, rows, columns + 1, step)
    weight = np.eye(columns, columns + 1) * (gamma[-1] / np.maximum(gamma[:-1], 1))[:, None]
    scale = own_scale(b, node, float(smallest_out_scale(weight, 1 / INT8_MAX, None, UNIT_ROW).max()))
    weights = quantise_weights(weight, 1 / INT8_MAX, scale, None, UNIT_ROW)
    made = q.Product(b.name(node.name), ref, weights, Convert.ROW, source=node.source)
    b.held[node.name] = Held(b.emit(made, rows, columns, scale, value=node.name), scale)


def check_logits(b: Builder, node: fg.Softmax | fg.Received, x: Held) -> None:
    """Raise OutOfRange unless the steps of x tell logits apart."""
    if float(np.max(x.scale)) > COARSE * SCORE:
        reach = float(b.stats.values[node.x].magnitude().max())
        raise OutOfRange(f"logits up to {reach:g} leave no bits for differences of 1")


def softmax(b: Builder, node: fg.Softmax) -> None:
    """Probabilities of score steps, times the identity."""
    x = b.held[node.x]
    columns = b.cols(x)
    check_logits(b, node, x)
    identity = np.eye(columns)
    scale = own_scale(b, node, float(smallest_out_scale(identity, 1 / PROBABILITY_ONE, None).max()))
    weights = quantise_weights(identity, 1 / PROBABILITY_ONE, scale, None)
    made = q.Product(b.name(node.name), scores(b, node, x), weights, Convert.PROBABILITY, source=node.source)
    b.held[node.name] = Held(b.emit(made, x.ref.rows, columns, scale, value=node.name), scale)


def scores(b: Builder, node: fg.Softmax, x: Held) -> Ref:
    """The value in score steps."""
    made = q.Stack(b.name(f"{node.name}.scores"), (piece(b, x, SCORE),), source=node.source)
    return b.emit(made, x.ref.rows, b.cols(x), SCORE)
