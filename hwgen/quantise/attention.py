"""Attention: Q and K in one product, V transposed, and for every head scores, softmax and P.V in one pass.

Two exact savings: softmax does not see a constant added to all keys, so K has no bias and is centred (m3vit_edge_task0,
12 images: 20.2 dB instead of 10.6); rows of softmax sum to one, so the bias of V goes past it into the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph as fg
from ..intgraph import ColScale, Constant, Convert, MatMul, Multiply, Norm, RowMax, RowScale, View
from ..numerics import COL_SHIFT, INT8_MAX, INT16_MAX, ROW_STEP_BITS, SCORE_STEPS, STATIC_SHIFT, TURN_ONE, U16_MAX
from .builder import EPSILON_MAX, ROW_UNIT, TINY, Builder, Held, folded, product, row_operand, wide_scale
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
_TURN_GAIN = 2.0
PROBABILITY_ONE = INT8_MAX * U16_MAX  # probability times reciprocal of a row: this is 1


def attention(b: Builder, node: fg.Attention) -> None:
    q, k, v = _side(b, node.q, node), _side(b, node.k, node), b.plan.linear(node.v, node)
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
    b.held[node.name] = Held(out, scale, v_constant if fold else None, True, b.held[q.linear.x].first_row)


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


@dataclass(frozen=True)
class _Side:
    """Queries or keys on their way into the scores: a linear layer, perhaps a norm of each head, perhaps rotary positions."""

    name: str  # of the value that goes into the scores
    linear: fg.Linear
    norm: fg.LayerNorm | None
    rotate: fg.Rotate | None


def _side(b: Builder, name: str, node: fg.Attention) -> _Side:
    """Raises UserError where something else stands between the linear layer and the scores."""
    at, rotate, norm = name, b.plan.nodes.get(name), None
    if isinstance(rotate, fg.Rotate) and rotate.heads == node.heads:
        at = rotate.x
    else:
        rotate = None
    found = b.plan.nodes.get(at)
    if isinstance(found, fg.LayerNorm) and found.heads == node.heads:
        norm, at = found, found.x
    return _Side(name, b.plan.linear(at, node), norm, rotate)


def _queries_and_keys(b: Builder, node: fg.Attention, q: _Side, k: _Side) -> tuple[View, View, Array]:
    """Emit Q and K; their views [rows, columns] and each head's factor from an int8 sum to score steps."""
    k_range = b.stats.values[k.name]
    # A constant that is added to all keys would turn with their positions.
    centre = 0.0 if k.rotate else (k_range.low + k_range.high) / 2
    q_steps, k_steps = (_int8_steps(b, node, side, middle) for side, middle in ((q, 0.0), (k, centre)))
    factors = q_steps * k_steps * node.scale * np.log2(np.e) * SCORE_STEPS
    angles: dict[bytes, View] = {}
    # One product each: where Q is streamed and K stationary they can lie in different banks of the scratchpad.
    q_view = _project(b, node, q, f"{node.name}.q", q_steps, 0.0, angles)
    b.trace[q.name] = q_view, b.ops[-1].name
    k_view = _project(b, node, k, f"{node.name}.k", k_steps, centre, angles)
    if k.rotate:
        b.trace[k.name] = k_view, b.ops[-1].name
    return q_view, k_view, factors


def _parameters(b: Builder, side: _Side, centre: Array | float) -> tuple[Array, Array | None]:
    """(factor, term) whose sizes an int16 step must leave room for: of the norm by column, else of the linear layer."""
    if side.norm is not None:
        gamma, beta = (np.tile(np.asarray(a, np.float64), side.norm.heads) for a in (side.norm.gamma, side.norm.beta))
        return gamma, beta - centre
    weight, bias = folded(row_operand(b, side.linear.x), side.linear.weight, side.linear.bias)
    bias = np.zeros(len(weight)) if bias is None else bias
    return weight, bias - centre


def _int8_steps(b: Builder, node: fg.Attention, side: _Side, centre: Array | float) -> Array:
    """Real value of an int8 step of every head [heads]."""
    peak = np.maximum(b.stats.values[side.name].magnitude(centre), TINY).reshape(node.heads, -1)
    factor, term = _parameters(b, side, centre)
    if side.norm is not None:
        need = np.maximum(np.abs(factor), np.abs(term)) / INT16_MAX
    else:
        need = smallest_out_scale(factor, ROW_UNIT, term)
    need = need.reshape(node.heads, -1).max(axis=1) * INT16_PER_INT8 / _turn_gain(side)
    return np.maximum((peak / INT8_MAX).max(axis=1) * b.stats.part(side.name), need)


def _turn_gain(side: _Side) -> float:
    """Int16 steps before positions are turned in, by those behind: a number may be longer than the parts it turns into."""
    return _TURN_GAIN if side.rotate else 1.0


def _project(
    b: Builder, node: fg.Attention, side: _Side, name: str, steps: Array, centre: Array | float, angles: dict[bytes, View]
) -> View:
    """Emit one side in int8 steps of `steps` [heads], less `centre`; `angles`: the tables of positions so far."""
    linear = side.linear
    x = row_operand(b, linear.x)
    width = len(linear.weight) // node.heads
    steps = np.repeat(steps / INT16_PER_INT8, width)
    out = b.buffer(name, x.view.rows, len(linear.weight), node.heads, steps[None, :])
    before = steps * _turn_gain(side)
    factor, term = _parameters(b, side, centre)
    if side.norm is None:
        product(b, name, out, x, quantise_weights(factor, ROW_UNIT, before, term), source=linear.source)
    else:
        weight, bias = folded(x, linear.weight, linear.bias)
        scale = wide_scale(b.stats.values[linear.name].magnitude())
        scale = max(scale, float(smallest_out_scale(weight, ROW_UNIT, bias).max()))
        scale = max(scale, width * (side.norm.epsilon / EPSILON_MAX) ** 0.5 * 1.001)
        product(b, name, out, x, quantise_weights(weight, ROW_UNIT, scale, bias), source=linear.source)
        epsilon = round(side.norm.epsilon * width**2 / scale**2)
        for h in range(node.heads):
            columns = slice(h * width, (h + 1) * width)
            view = _columns(out, h * width, width)
            gamma, beta = (np.rint(a[columns] / before[columns]).astype(np.int16) for a in (factor, term))
            b.emit(
                Norm(
                    b.op_name(f"{name}.norm.{h}"),
                    view,
                    view,
                    gamma,
                    beta,
                    max(epsilon, 1),
                    side.norm.source,
                    side.norm.centred,
                    RowMax.NONE,
                )
            )
    if side.rotate is not None:
        table = _angles(b, node, side.rotate, angles)
        b.emit(Multiply(b.op_name(f"{name}.rotate"), out, out, table, pairs=True, source=side.rotate.source))
    return out


def _angles(b: Builder, node: fg.Attention, rotate: fg.Rotate, known: dict[bytes, View]) -> View:
    """Emit the cosines and sines of all tokens, as `numerics.turn` takes them."""
    table = np.stack([rotate.cos, rotate.sin], axis=-1).astype(np.float64).reshape(len(rotate.cos), -1)
    data = np.clip(np.rint(table * (TURN_ONE * _TURN_GAIN)), -INT16_MAX, INT16_MAX).astype(np.int16)
    key = data.tobytes()
    if key not in known:
        known[key] = b.buffer(f"{node.name}.angles", *data.shape, scale=1 / (TURN_ONE * _TURN_GAIN))
        b.emit(Constant(b.op_name(f"{node.name}.angles"), known[key], data, rotate.source))
    return known[key]


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
