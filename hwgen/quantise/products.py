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
from .builder import ROW_UNIT, TINY, WIDE_MARGIN, Builder, Held, folded, own_scale, piece, plain
from .scales import OutOfRange, quantise_weights, smallest_out_scale

Array = np.ndarray
# What columns that are divided have room for at least, of the largest of them: less of one is noise of the others' size. (Of
# int8, where what is beyond makes a row smaller: an EfficientViT's column of 26 beside some of 500 read 77, and its row a half.)
LEAST_INT16, LEAST_INT8 = 2.0**-5, 2.0**-3
UNIT_SHIFT = UNIT_ROW.bit_length() - 1
COARSE = 16  # score steps in a step of logits, 0.7: beyond it probabilities would be noise
RATIO_ROOM = 1.2  # of what rows divided by their sums were seen to reach
SCORE = float(np.log(2)) / SCORE_STEPS  # what a score step is


def product(b: Builder, node: fg.Product) -> None:
    """x streamed against the stationary rows of the other value.

    Rows of what is divided by its last column may have any size: rows of x are made equally large, so that those of small
    sums keep their bits.
    """
    one, other, steps = _operands(b, node)
    alike = _divided(b, node)
    if alike:  # a row counts in int8 steps of x, its own scale is left away
        unit = steps * 2.0 ** (COL_SHIFT - ROW_STEP_BITS - UNIT_SHIFT)
        shift = _shift(_bound(b, node) * (INT8_MAX * node.scale / INT16_MAX) / unit)
        scale = unit * 2.0**shift
    else:
        scale, shift = _sums(b, node, node, steps * float(one.scale))
    matrix = Matrix(other.ref, None, shift, row=UNIT_ROW if alike else None)
    made = q.Product(b.name(node.name), one.ref, matrix, source=node.source)
    held = scale if np.ndim(other.scale) == 2 else float(scale[0])
    ref = b.emit(made, one.ref.rows, other.ref.rows, held, value=None if alike else node.name)
    b.held[node.name] = Held(ref, held)


def _operands(b: Builder, node: fg.Product) -> tuple[Held, Held, Array]:
    """(what is streamed, the stationary rows, the steps of these: one, or those of each row; times the product's own factor)."""
    one, other = plain(b, node.a), b.held[node.b]
    other = other if np.ndim(other.scale) == 2 else plain(b, node.b)
    return one, other, np.asarray(other.scale, np.float64).reshape(-1) * node.scale


def _sums(b: Builder, node: fg.Node, source: fg.Product, steps: Array) -> tuple[Array, int]:
    """(steps of `node`, the product or its transpose, of rows whose operands' steps are `steps` together; the shift to them)."""
    unit = steps * 2.0 ** (COL_SHIFT - 2 * ROW_STEP_BITS)
    by_row = np.ndim(b.held[source.b].scale) == 2
    shift = _shift((_column_steps(b, source.name) if by_row else np.array([own_scale(b, node, 0.0)])) / unit)
    return unit * 2.0**shift, shift


def _shift(larger: Array) -> int:
    """Of a product whose steps are to be so many times those of its sums."""
    shift = max(int(np.ceil(np.log2(larger.max()))), SHIFT_MIN)
    if shift > SHIFT_MAX:
        raise OutOfRange(f"a product {float(larger.max()):g} times beyond its operands' steps")
    return shift


def _turned(b: Builder, node: fg.Transpose, source: fg.Product) -> None:
    """The transpose of a product: its operands change places. Steps of the rows of what is streamed are those of its rows."""
    one, other, steps = _operands(b, source)
    scale, shift = _sums(b, node, source, steps * float(one.scale))
    made = q.Product(b.name(node.name), other.ref, Matrix(one.ref, None, shift), source=source.source)
    held = scale[:, None] if np.ndim(other.scale) == 2 else float(scale[0])
    b.held[node.name] = Held(b.emit(made, other.ref.rows, one.ref.rows, held, value=node.name), held)


def _divided(b: Builder, node: fg.Product) -> bool:
    """Whether all that becomes of a product is divided by its last column, where no epsilon matters beside the sums."""
    readers = b.plan.users.get(node.name, [])
    if node.name in b.plan.outputs or not readers or not all(isinstance(r, fg.Ratio) for r in readers):
        return False
    last = float(b.stats.values[node.name].magnitude()[-1]) * WIDE_MARGIN
    return all(r.epsilon < last / INT16_MAX / 2 for r in readers if isinstance(r, fg.Ratio))


def _bound(b: Builder, node: fg.Product) -> Array:
    """What each column of a product [N] can reach of rows up to 1."""
    other, part = b.plan.nodes[node.b], slice(None)
    if isinstance(other, fg.Rows):
        other, part = b.plan.nodes[other.x], slice(other.start, other.stop)
    if isinstance(other, fg.Transpose):
        seen = b.stats.values[other.x]
        return np.maximum(seen.magnitude()[part] * (seen.room * b.shapes[other.x][0]), TINY)
    seen = b.stats.values[node.b]
    return np.full(b.shapes[node.name][1], max(float(seen.magnitude().sum()) * seen.room, TINY))


def _column_steps(b: Builder, name: str, part: slice = slice(None)) -> Array:
    """int16 steps of the columns of a value [cols], the last of which, that of the sums, is a number of another kind."""
    seen = b.stats.values[name]
    reach = np.maximum(seen.magnitude()[part], TINY)
    reach[:-1] = np.maximum(reach[:-1], reach[:-1].max(initial=0.0) * LEAST_INT16)
    return reach * (seen.room * WIDE_MARGIN / INT16_MAX)


def _parts(b: Builder, name: str) -> list[fg.Rows]:
    return [user for user in b.plan.users.get(name, []) if isinstance(user, fg.Rows)]


def _apart(b: Builder, name: str) -> bool:
    """Whether rows of a transposed value may have steps of their own: products, whose columns they become, go into a division or
    are transposed again; or so do those of each part of the rows."""
    products, parts = b.plan.users.get(name, []), _parts(b, name)
    if name not in b.plan.outputs and parts and len(parts) == len(products):
        return all(_apart(b, part.name) for part in parts)
    if name in b.plan.outputs or not all(isinstance(p, fg.Product) and p.a != name for p in products):
        return False
    readers = [r for p in products for r in b.plan.users.get(p.name, [])]
    free = all(isinstance(r, fg.Ratio) or (isinstance(r, fg.Transpose) and _apart(b, r.name)) for r in readers)
    return bool(readers) and free and not any(p.name in b.plan.outputs for p in products)


def _row_steps(b: Builder, node: fg.Transpose) -> Array:
    """int16 steps of the rows of a transposed value [rows], each part of them by itself."""
    steps = _column_steps(b, node.x)
    for part in _parts(b, node.name):
        steps[part.start : part.stop] = _column_steps(b, node.x, slice(part.start, part.stop))
    return steps


def transpose(b: Builder, node: fg.Transpose) -> None:
    """Rows of weights, those of a linear layer or the identity, streamed against the stationary tokens; of a product, the other
    way round."""
    source, rows = b.plan.nodes[node.x], b.shapes[node.x][0]
    if isinstance(source, fg.Product):
        return _turned(b, node, source)
    if isinstance(source, fg.Linear) and source.x in b.held:
        x = b.held[source.x]
        weight, bias = folded(x, source.weight, source.bias)
    else:
        x = b.held[node.x]
        weight, bias = folded(x, np.eye(b.cols(x)), None)
    need = smallest_transposed_step(weight) / INT16_PER_INT8
    need = need if bias is None else np.maximum(need, np.abs(bias) / INT16_MAX)
    apart = _apart(b, node.name)
    scale = np.maximum(_row_steps(b, node), need) if apart else np.full(len(weight), own_scale(b, node, float(need.max())))
    held = scale[:, None] if apart else float(scale[0])
    add = None
    if bias is not None and bias.any():
        table = np.broadcast_to(np.rint(bias / scale)[:, None], (len(weight), rows))
        add = b.table(f"{node.name}.bias", table, scale[:, None], node.source)
    ref = transposed(b, b.name(node.name), x, weight, scale * INT16_PER_INT8, node.source, add=add)
    b.made.values[ref.value] = replace(b.made.values[ref.value], scale=held)
    if add is not None:
        b.made.values[add.value] = replace(b.made.values[add.value], scale=held)
    b.made.trace[node.name] = ref
    b.held[node.name] = Held(ref, held)


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
    x, columns = b.held[node.x], b.shapes[node.name][1]
    x = x if x.offset is None else plain(b, node.x)
    ref, rows, units = x.ref, x.ref.rows, np.broadcast_to(np.float64(x.scale), columns + 1)
    divided = isinstance(b.plan.nodes[node.x], fg.Product) and _divided(b, b.plan.nodes[node.x])
    if not divided and (steps := round(node.epsilon / float(units[-1]))):
        bias = np.append(np.zeros(columns), min(steps, INT16_MAX)).astype(np.int16)
        ref = b.emit(q.Shift(b.name(f"{node.name}.sum"), ref, bias, source=node.source), rows, columns + 1, x.scale)
    seen, units = b.stats.values[node.name], units[:-1] / units[-1]
    reach = np.maximum(seen.magnitude() * RATIO_ROOM * seen.room, TINY)
    reach = np.maximum(reach, reach.max() * LEAST_INT8) / units
    reach = np.maximum(reach, reach.max() * 2.0**-12)
    parts = np.append(1 / reach, 1.0)
    step = max((columns + 1) ** 0.5, float(parts.max())) / INT16_MAX
    gamma = np.minimum(np.rint(parts / step), INT16_MAX).astype(np.int16)
    normed = q.Norm(b.name(f"{node.name}.norm"), ref, gamma, np.zeros_like(gamma), 1, centred=False, source=node.source)
    ref = b.emit(normed, rows, columns + 1, step)
    weight = np.eye(columns, columns + 1) * (units * gamma[-1] / np.maximum(gamma[:-1], 1))[:, None]
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
