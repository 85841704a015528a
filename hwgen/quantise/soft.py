"""Rows weighted and added up: means, and soft mixtures of experts, which weight like attention with constant queries or keys."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..isa import Convert
from ..numerics import ACC_MAX, COL_SHIFT, INT8_MAX, INT16_MAX, SCORE_STEPS, STATIC_SHIFT
from ..qgraph import UNIT_ROW, Matrix, Ref
from .attention import INT16_PER_INT8, PROBABILITY_ONE, smallest_transposed_step, transposed
from .builder import ROOM, ROW_UNIT, TINY, WIDE_MARGIN, Builder, Held, folded, own_scale
from .hidden import activated, form_of, second_biases
from .plan import describe
from .scales import LARGEST_FACTOR, multipliers, quantise_weights, smallest_out_scale

Array = np.ndarray
MOST_SUMMED = ACC_MAX // INT8_MAX**2  # products of int8 in one sum
MOST_TURNED = 1 << 18  # elements that are brought to channels by tokens in one piece, for a mean
SCORES = float(np.log2(np.e)) * SCORE_STEPS  # score steps in a logit of 1


def dispatch(b: Builder, node: fg.Dispatch) -> None:
    """Scores [slots, tokens]: rows of the weight against the stationary tokens; then the softmax of each row times x."""
    keys = b.held[node.keys]
    weight, _ = folded(keys, node.weight * SCORES, None)  # what is the same for all tokens changes nothing
    step = np.full(len(weight), float(INT16_PER_INT8))
    _check(node, float((smallest_transposed_step(weight) / step).max()))
    scores = transposed(b, f"{node.name}.scores", keys, weight, step, node.source)
    _weighted(b, node, scores, node.x)


def combine(b: Builder, node: fg.Combine) -> None:
    """Scores [tokens, slots]; then the softmax of each row times the outputs of the experts."""
    x = b.held[node.x]
    weight, bias = folded(x, node.weight * SCORES, None if node.bias is None else node.bias * SCORES)
    _check(node, float(smallest_out_scale(weight, ROW_UNIT, bias).max()))
    weights = quantise_weights(weight, ROW_UNIT, 1.0, bias)
    scores = q.Product(b.name(f"{node.name}.scores"), x.ref, weights, source=node.source)
    _weighted(b, node, b.emit(scores, x.ref.rows, len(weight)), node.y)


def _check(node: fg.Node, need: float) -> None:
    if need > 1:
        raise UserError(f"{describe(node)}: logits {need:g} times beyond what scores can hold")


def _weighted(b: Builder, node: fg.Node, scores: Ref, value: str) -> None:
    """Emit softmax(scores) @ value; value is brought to channels by rows, as values of attention are."""
    x = b.held[value]
    columns = b.cols(x)
    offset = np.zeros(columns) if x.offset is None else np.broadcast_to(np.float64(x.offset), columns)
    weight = np.eye(columns) * x.scale
    step = np.maximum(b.stats.values[value].magnitude(offset), TINY) * ROOM / INT8_MAX
    step = np.maximum(np.maximum(step, smallest_transposed_step(weight)), step.max() * 2.0**-12)
    need = max(float(step.max()) / (PROBABILITY_ONE * LARGEST_FACTOR), float(np.abs(offset).max()) / INT16_MAX)
    scale = own_scale(b, node, need)
    col_mult, shift = multipliers(step / (PROBABILITY_ONE * scale))
    step = np.ldexp(col_mult * (PROBABILITY_ONE * scale), -(COL_SHIFT + shift))  # exactly what the multiplier means
    across = transposed(b, f"{node.name}.transposed", x, weight, step, node.source)
    matrix = Matrix(across, col_mult, shift, np.rint(offset / scale).astype(np.int16))
    made = q.Product(b.name(node.name), scores, matrix, Convert.PROBABILITY, source=node.source)
    b.held[node.name] = Held(b.emit(made, scores.rows, columns, scale, value=node.name), scale)


def slot_experts(b: Builder, node: fg.SlotExperts) -> None:
    """Every expert on its rows."""
    x = b.held[node.x]
    count = len(node.w1)
    first = [folded(x, node.w1[e], None if node.b1 is None else node.b1[e]) for e in range(count)]
    need = max(float(smallest_out_scale(weight, ROW_UNIT, bias).max()) for weight, bias in first)
    form = form_of(node.form, node.slope, b.stats.hidden[node.name] * WIDE_MARGIN, need)
    constants = second_biases(node, form)
    biases = [None] * count if constants is None else constants
    second = [(w * form.scale, bias) for w, bias in zip(node.w2, biases, strict=True)]
    scale = own_scale(b, node, max(float(smallest_out_scale(w, ROW_UNIT, bias).max()) for w, bias in second))
    made = q.Experts(
        b.name(node.name),
        x.ref,
        None,
        None,
        tuple(activated(weight, bias, form) for weight, bias in first),
        tuple(quantise_weights(w, ROW_UNIT, scale, bias) for w, bias in second),
        (form.table, form.shift),
        form.scale,
        layer=node.name,
        source=node.source,
    )
    b.held[node.name] = Held(b.emit(made, x.ref.rows, node.w2.shape[1], scale, value=node.name), scale)


def mean(b: Builder, node: fg.Mean) -> None:
    """x is brought to channels by tokens, as values of attention are, and multiplied by a row of ones; of more tokens than
    the accumulators hold, or of more elements than are well in one piece, part by part."""
    x = b.held[node.x]
    rows, columns = node.stop - node.start, b.shapes[node.name][1]
    offset = np.zeros(columns) if x.offset is None else np.broadcast_to(np.float64(x.offset), columns)
    peak = np.maximum(b.stats.values[node.x].magnitude(offset), TINY)
    weight = np.eye(columns) * x.scale
    step = np.maximum(peak * ROOM / INT8_MAX, smallest_transposed_step(weight))
    step = np.maximum(step, step.max() * 2.0**-12)
    parts = np.array_split(np.arange(rows), max(-(-rows // MOST_SUMMED), -(-rows * columns // MOST_TURNED)))
    factor = step / (INT8_MAX * rows)  # a sum of products of int8 ones and int8 steps
    need = max(float(factor.max()) / (LARGEST_FACTOR * UNIT_ROW), float(np.abs(offset).max()) / INT16_MAX)
    if len(parts) > 1:
        need = max(need, float(peak.max()) * ROOM / INT16_MAX)  # a part may be larger than the whole
    scale = own_scale(b, node, need)
    col_mult, shift = multipliers(factor / (scale * UNIT_ROW))
    total: Ref | None = None
    for i, part in enumerate(parts):
        end = "" if len(parts) == 1 else f".{i}"
        held = Held(x.ref.part(node.start + int(part[0]) - x.first_row, len(part)), x.scale, x.offset)
        across = transposed(b, f"{node.name}.transposed{end}", held, weight, step, node.source)
        ones = b.table(f"{node.name}.ones{end}", np.full((1, len(part)), INT8_MAX << STATIC_SHIFT), source=node.source)
        bias = np.rint(offset / scale).astype(np.int16) if total is None else None
        last = i == len(parts) - 1
        matrix = Matrix(across, col_mult, shift, bias, UNIT_ROW)
        name = b.name(node.name if last else f"{node.name}.part{end}")
        made = q.Product(name, ones, matrix, Convert.STATIC, add=total, source=node.source)
        total = b.emit(made, 1, columns, scale, value=node.name if last else None)
    b.held[node.name] = Held(total, scale)
