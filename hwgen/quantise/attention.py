"""Attention: Q and K in one product, V transposed, and for every head scores, softmax and P.V in one pass.

Two exact savings: softmax does not see a constant added to all keys, so K has no bias and is centred (m3vit_edge_task0,
12 images: 20.2 dB instead of 10.6); rows of softmax sum to one, so the bias of V goes past it into the output projection.
"""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from ..intgraph import ColScale, Constant, Convert, MatMul, RowMax, RowScale, View
from ..numerics import COL_SHIFT, INT8_MAX, INT16_MAX, ROW_STEP_BITS, SCORE_STEPS, STATIC_SHIFT, U16_MAX
from .builder import ROW_UNIT, TINY, Builder, Held, folded, product, row_operand, wide_scale
from .scales import (
    LARGEST_FACTOR,
    UNIT_ROW,
    int8_weights,
    multipliers,
    quantise_weights,
    single,
    smallest_out_scale,
    weight_steps,
)

Array = np.ndarray
INT16_PER_INT8 = 1 << STATIC_SHIFT
SCORE_LOWEST = -INT16_MAX // 2  # with any score added, still far below those that have a probability
PROBABILITY_ONE = INT8_MAX * U16_MAX  # probability times reciprocal of a row: this is 1


def attention(b: Builder, node: fg.Attention) -> None:
    q, k, v = (b.plan.linear(name, node) for name in (node.q, node.k, node.v))
    q_view, k_view, factors = _queries_and_keys(b, node, q, k)

    columns = b.shapes[node.name][1]
    width, depth = columns // node.heads, q_view.cols // node.heads
    x = row_operand(b, v.x)
    v_weight, v_constant = folded(x, v.weight, v.bias)
    v_constant = np.zeros(columns) if v_constant is None else np.asarray(v_constant, np.float64)
    fold = b.plan.only_multiplied(node.name)
    held = b.stats.values[node.name]
    v_step = np.maximum(b.stats.values[v.name].magnitude(v_constant) / INT8_MAX * b.stats.part(v.name), TINY)
    v_step = np.maximum(np.maximum(v_step, smallest_transposed_step(v_weight)), v_step.max() * 2.0**-12)
    scale = wide_scale(held.magnitude(v_constant if fold else 0.0))
    scale = max(scale, float(v_step.max()) / (PROBABILITY_ONE * LARGEST_FACTOR))
    if not fold:
        scale = max(scale, float(np.abs(v_constant).max()) / INT16_MAX)
    col_mult, shift = multipliers(v_step / (PROBABILITY_ONE * scale))
    v_step = np.ldexp(col_mult * (PROBABILITY_ONE * scale), -(COL_SHIFT + shift))  # exactly what the multiplier means
    across = transposed(b, v.name, x, v_weight, v_step, v.source)

    bias = None if fold else np.rint(v_constant / scale).astype(np.int16)
    out = b.buffer(node.name, q_view.rows, columns, node.heads, scale)
    scores = [b.buffer(f"{node.name}.scores{i}", q_view.rows, k_view.rows) for i in range(min(2, node.heads))]
    biases = _biases(b, node)
    for h in range(node.heads):
        col, score_shift = single(factors[h])
        s = scores[h % 2]
        b.emit(
            MatMul(
                b.op_name(f"{node.name}.scores.{h}"),
                s,
                _columns(q_view, h * depth, depth),
                _columns(k_view, h * depth, depth),
                col_scale=ColScale.IMMEDIATE,
                col_mult=col,
                row_mult=UNIT_ROW,
                shift=score_shift,
                residual=None if biases is None else biases[h],
                row_max=RowMax.SIGNED,
                source=node.source,
            )
        )
        head = slice(h * width, (h + 1) * width)
        b.emit(
            MatMul(
                b.op_name(f"{node.name}.values.{h}"),
                _columns(out, h * width, width),
                s,
                View(across.buffer, h * width, width, 0, across.cols),
                x_convert=Convert.PROBABILITY,
                col_mult=col_mult[head],
                bias=np.zeros(width, np.int16) if bias is None else bias[head],
                row_scale=RowScale.CONVERTED,
                shift=shift,
                row_max=RowMax.ABS,
                continue_max=h > 0,
                source=node.source,
            ),
            node.name,
            out,
        )
    if fold:
        b.offsets[node.name] = v_constant
    b.held[node.name] = Held(out, scale, v_constant if fold else None, True, b.held[q.x].first_row)


def _columns(view: View, start: int, count: int) -> View:
    return View(view.buffer, view.row, view.rows, view.col + start, count)


def _biases(b: Builder, node: fg.Attention) -> list[View] | None:
    """Emit the bias of each head, in score steps, to be added to the scores; heads with the same one share it."""
    if node.bias is None:
        return None
    steps = np.rint(node.bias.astype(np.float64) * np.log2(np.e) * SCORE_STEPS)
    made: dict[bytes, View] = {}
    views = []
    for h, data in enumerate(np.maximum(steps, SCORE_LOWEST).astype(np.int16)):
        key = data.tobytes()
        if key not in made:
            made[key] = b.buffer(f"{node.name}.bias.{h}", *data.shape)
            b.emit(Constant(b.op_name(f"{node.name}.bias.{h}"), made[key], data, node.source))
        views.append(made[key])
    return views


def _table_unit() -> float:
    """Of V: round(sum * row scale / 2^16) counts in 2^(16 - ROW_STEP_BITS) weight steps times int16 steps of x."""
    return 2.0 ** (COL_SHIFT - ROW_STEP_BITS)


def _queries_and_keys(b: Builder, node: fg.Attention, q: fg.Linear, k: fg.Linear) -> tuple[View, View, Array]:
    """Emit Q and K; their views [rows, columns] and each head's factor from an int8 sum to score steps."""
    qx, kx = row_operand(b, q.x), row_operand(b, k.x)
    q_weight, q_bias = folded(qx, q.weight, q.bias)
    k_weight, k_constant = folded(kx, k.weight, k.bias)
    k_range = b.stats.values[k.name]
    centre = (k_range.low + k_range.high) / 2
    k_bias = -centre if k_constant is None else k_constant - centre
    q_peak = np.maximum(b.stats.values[q.name].magnitude(), TINY).reshape(node.heads, -1)
    k_peak = np.maximum(k_range.magnitude(centre), TINY).reshape(node.heads, -1)
    q_need = smallest_out_scale(q_weight, ROW_UNIT, q_bias).reshape(node.heads, -1)
    k_need = smallest_out_scale(k_weight, ROW_UNIT, k_bias).reshape(node.heads, -1)
    q_step, k_step = (
        np.maximum((peak / INT8_MAX).max(axis=1) * b.stats.part(linear.name), (need * INT16_PER_INT8).max(axis=1))
        for peak, need, linear in ((q_peak, q_need, q), (k_peak, k_need, k))
    )
    q_steps, k_steps = (np.repeat(step, q_peak.shape[1]) for step in (q_step, k_step))
    factors = q_step * k_step * node.scale * np.log2(np.e) * SCORE_STEPS

    def project(linear: fg.Linear, what: str, x: Held, weight, bias, steps) -> View:
        """One product each: where Q is streamed and K stationary they can lie in different banks of the scratchpad."""
        steps = steps / INT16_PER_INT8
        out = b.buffer(f"{node.name}.{what}", x.view.rows, len(weight), node.heads, steps[None, :])
        product(b, f"{node.name}.{what}", out, x, quantise_weights(weight, ROW_UNIT, steps, bias), source=linear.source)
        return out

    q_view = project(q, "q", qx, q_weight, q_bias, q_steps)
    b.trace[q.name] = q_view, b.ops[-1].name
    k_view = project(k, "k", kx, k_weight, k_bias, k_steps)
    return q_view, k_view, factors


def smallest_transposed_step(weight: Array) -> Array:
    """Smallest int8 step [N] of `transposed`: its row multiplier is a u16 / 2^SHIFT_MIN."""
    return weight_steps(weight) * _table_unit() / (LARGEST_FACTOR * (1 << COL_SHIFT)) * INT16_PER_INT8


def transposed(
    b: Builder, name: str, x: Held, weight: Array, step: Array, source: str, row_max: RowMax = RowMax.NONE
) -> View:
    """Emit (x @ weight.T).T [N, tokens]: rows of `weight` [N, K] streamed against the stationary tokens, without bias.

    `step` [N]: real value of an int8 step of the result, which is stored as 2^STATIC_SHIFT int16 steps.
    """
    step16 = step / INT16_PER_INT8
    row_mult, shift = multipliers(weight_steps(weight) * _table_unit() / step16, fraction_bits=0)
    exact = np.ldexp(row_mult * step16 / _table_unit(), -shift)
    w = b.buffer(f"{name}.weight", *weight.shape, scale=exact[:, None] / INT16_PER_INT8)
    data = int8_weights(weight, exact).astype(np.int16) * INT16_PER_INT8
    b.emit(Constant(b.op_name(f"{name}.weight"), w, data, source))
    out = b.buffer(name, len(weight), x.view.rows, scale=step16[:, None])
    b.emit(
        MatMul(
            b.op_name(name),
            out,
            w,
            x.view,
            w_convert=Convert.ROW,
            col_scale=ColScale.ROW_SCALES,
            row_scale=RowScale.TABLE,
            row_mult=row_mult,
            shift=shift,
            row_max=row_max,
            source=source,
        )
    )
    return out
