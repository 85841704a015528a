"""Soft mixtures of experts: two weightings like attention, with constant queries or keys, and experts on slots between."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from ..errors import UserError
from ..intgraph import Convert, MatMul, RowMax, RowScale, View
from ..numerics import COL_SHIFT, INT8_MAX, INT16_MAX, SCORE_STEPS
from .attention import INT16_PER_INT8, PROBABILITY_ONE, smallest_transposed_step, transposed
from .builder import ROW_UNIT, TINY, WIDE_MARGIN, Builder, Held, folded, own_scale, product, row_operand
from .hidden import activated, form_of
from .plan import describe
from .scales import LARGEST_FACTOR, multipliers, quantise_weights, smallest_out_scale

Array = np.ndarray
SCORES = float(np.log2(np.e)) * SCORE_STEPS  # score steps in a logit of 1


def dispatch(b: Builder, node: fg.Dispatch) -> None:
    """Scores [slots, tokens]: rows of the weight against the stationary tokens; then the softmax of each row times x."""
    keys = row_operand(b, node.keys)
    weight, _ = folded(keys, node.weight * SCORES, None)  # what is the same for all tokens changes nothing
    step = np.full(len(weight), float(INT16_PER_INT8))
    _check(node, float((smallest_transposed_step(weight) / step).max()))
    scores = transposed(b, f"{node.name}.scores", keys, weight, step, node.source, RowMax.SIGNED)
    _weighted(b, node, scores, node.x)


def combine(b: Builder, node: fg.Combine) -> None:
    """Scores [tokens, slots]; then the softmax of each row times the outputs of the experts."""
    x = row_operand(b, node.x)
    weight, bias = folded(x, node.weight * SCORES, None if node.bias is None else node.bias * SCORES)
    _check(node, float(smallest_out_scale(weight, ROW_UNIT, bias).max()))
    scores = b.buffer(f"{node.name}.scores", x.view.rows, len(weight))
    weights = quantise_weights(weight, ROW_UNIT, 1.0, bias)
    product(b, f"{node.name}.scores", scores, x, weights, row_max=RowMax.SIGNED, source=node.source)
    _weighted(b, node, scores, node.y)


def _check(node: fg.Node, need: float) -> None:
    if need > 1:
        raise UserError(f"{describe(node)}: logits {need:g} times beyond what scores can hold")


def _weighted(b: Builder, node: fg.Node, scores: View, value: str) -> None:
    """Emit softmax(scores) @ value; value is brought to channels by rows, as values of attention are."""
    x = row_operand(b, value)
    columns = x.view.cols
    offset = np.zeros(columns) if x.offset is None else np.asarray(x.offset, np.float64)
    weight = np.eye(columns) * x.scale
    step = np.maximum(b.stats.values[value].magnitude(offset), TINY) / INT8_MAX
    step = np.maximum(np.maximum(step, smallest_transposed_step(weight)), step.max() * 2.0**-12)
    need = max(float(step.max()) / (PROBABILITY_ONE * LARGEST_FACTOR), float(np.abs(offset).max()) / INT16_MAX)
    scale = own_scale(b, node, need)
    col_mult, shift = multipliers(step / (PROBABILITY_ONE * scale))
    step = np.ldexp(col_mult * (PROBABILITY_ONE * scale), -(COL_SHIFT + shift))  # exactly what the multiplier means
    across = transposed(b, f"{node.name}.transposed", x, weight, step, node.source)
    out = b.buffer(node.name, scores.rows, columns, scale=scale)
    b.emit(
        MatMul(
            b.op_name(node.name),
            out,
            scores,
            across,
            x_convert=Convert.PROBABILITY,
            col_mult=col_mult,
            bias=np.rint(offset / scale).astype(np.int16),
            row_scale=RowScale.CONVERTED,
            shift=shift,
            row_max=RowMax.ABS,
            source=node.source,
        ),
        node.name,
    )
    b.held[node.name] = Held(out, scale, row_max=True)


def slot_experts(b: Builder, node: fg.SlotExperts) -> None:
    """Every expert on its rows, one after another."""
    x = row_operand(b, node.x)
    count, hidden_columns, _ = node.w1.shape
    slots = x.view.rows // count
    first = [folded(x, node.w1[e], None if node.b1 is None else node.b1[e]) for e in range(count)]
    need = max(float(smallest_out_scale(weight, ROW_UNIT, bias).max()) for weight, bias in first)
    form = form_of(node, node.form, node.slope, b.stats.hidden[node.name] * WIDE_MARGIN, need)
    step = form.scale
    biases = [None] * count if node.b2 is None else node.b2
    need = max(
        float(smallest_out_scale(w * step, ROW_UNIT, bias).max()) for w, bias in zip(node.w2, biases, strict=True)
    )
    scale = own_scale(b, node, need)
    out = b.buffer(node.name, x.view.rows, node.w2.shape[1], scale=scale)
    hidden = [
        Held(b.buffer(f"{node.name}.hidden{i}", slots, hidden_columns, scale=step), step, row_max=True)
        for i in range(min(2, count))
    ]
    for e, (weight, bias) in enumerate(first):
        rows = Held(_rows(x.view, e * slots, slots), x.scale, x.offset, True)
        between = hidden[e % 2]
        activated(b, f"{node.name}.{e}.w1", between.view, rows, weight, bias, form, source=node.source)
        second = quantise_weights(node.w2[e] * step, ROW_UNIT, scale, biases[e])
        name, place = f"{node.name}.{e}.w2", _rows(out, e * slots, slots)
        product(b, name, place, between, second, row_max=RowMax.ABS, source=node.source)
    b.trace[node.name] = out, b.ops[-1].name
    b.held[node.name] = Held(out, scale, row_max=True)


def _rows(view: View, start: int, count: int) -> View:
    return View(view.buffer, view.row + start, count, view.col, view.cols)
