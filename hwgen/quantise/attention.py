"""Attention: Q and K in one product, V transposed, and for every head scores, softmax and P.V in one pass.

Two exact savings: softmax does not see a constant added to all keys, so K has no bias and is centred (m3vit_edge_task0,
12 images: 20.2 dB instead of 10.6); rows of softmax sum to one, so the bias of V goes past it into the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..isa import Convert
from ..numerics import COL_SHIFT, INT8_MAX, INT16_MAX, ROW_STEP_BITS, SCORE_STEPS, STATIC_SHIFT, TURN_ONE, U16_MAX
from ..qgraph import UNIT_ROW, Matrix, Ref
from .builder import (
    EPSILON_MAX,
    LOW_STEPS,
    ROW_UNIT,
    TINY,
    Builder,
    Held,
    folded,
    limited,
    low_part,
    own_scale,
    rest,
    wide_scale,
)
from .calibrate import SCORES_MAX, centre
from .plan import describe
from .scales import (
    LARGEST_FACTOR,
    int8_weights,
    multipliers,
    quantise_weights,
    rounding,
    single,
    smallest_out_scale,
    weight_steps,
)

Array = np.ndarray
INT16_PER_INT8 = 1 << STATIC_SHIFT
SCORE_LOWEST = -INT16_MAX // 2  # with any score added, still far below those that have a probability
SCORES_ROOM = 1.25  # beyond the largest score that was seen
TURN_GAIN = 2.0
MOST_BALANCE = 2.0**10  # by which a column of queries is made larger or smaller
# Of V: round(sum * row scale / 2^16) counts in so many weight steps times int16 steps of x.
_TABLE_UNIT = 2.0 ** (COL_SHIFT - ROW_STEP_BITS)
PROBABILITY_ONE = INT8_MAX * U16_MAX  # probability times reciprocal of a row: this is 1


def attention(b: Builder, node: fg.Attention) -> None:
    q_side, k_side, v = side_of(b, node.q, node), side_of(b, node.k, node), b.plan.linear(node.v)
    queries, keys, factors, shares = _queries_and_keys(b, node, q_side, k_side)

    rows, columns = b.shapes[node.name]
    x = b.held[v.x]
    v_weight, v_constant = folded(x, v.weight, v.bias)
    v_constant = np.zeros(columns) if v_constant is None else np.asarray(v_constant, np.float64)
    limit = limited(b, node)
    fold = limit is None and b.plan.only_multiplied(node.name)
    held = b.stats.values[node.name]
    v_step = np.maximum(b.stats.values[v.name].magnitude(v_constant) * b.stats.reach(v.name) / INT8_MAX, TINY)
    v_step = np.maximum(np.maximum(v_step, smallest_transposed_step(v_weight)), v_step.max() * 2.0**-12)
    offset = v_constant if fold else np.full(columns, 0.0 if limit is None else limit[1])
    need = max(
        float(v_step.max()) / (PROBABILITY_ONE * LARGEST_FACTOR), float(np.abs(v_constant - offset).max()) / INT16_MAX
    )
    if limit is not None and need <= limit[0]:
        scale = limit[0]
    elif b.plan.roots[node.name] in b.plan.logits or not fold:
        limit, offset = None, np.zeros(columns)
        scale = own_scale(b, node, max(need, float(np.abs(v_constant).max()) / INT16_MAX))
    else:
        scale = max(wide_scale(held.magnitude(offset), held.room), need)
    col_mult, shift = multipliers(v_step / (PROBABILITY_ONE * scale))
    v_step = np.ldexp(col_mult * (PROBABILITY_ONE * scale), -(COL_SHIFT + shift))  # exactly what the multiplier means
    across = transposed(b, v.name, x, v_weight, v_step, v.source, node.windows)
    matrix = Matrix(across, col_mult, shift, np.rint((v_constant - offset) / scale).astype(np.int16))
    biases = _biases(b, node, shares)
    low, finer = (), ()
    if node.name in b.wide:
        low = tuple(low_part(b, node, Held(side, b.made.values[side.value].scale)).ref for side in (queries, keys))
        finer = tuple(single(factor / LOW_STEPS) for factor in factors)
    coarse = tuple(single(factor) for factor in factors)
    made = q.Attention(
        b.name(node.name), queries, keys, matrix, coarse, biases, node.windows, low, finer, source=node.source
    )
    less = offset if fold else limit and limit[1] or None
    ref = b.emit(made, rows, columns, scale, less, node.heads, node.name)
    b.held[node.name] = Held(ref, scale, less, b.held[q_side.linear.x].first_row)


def _biases(b: Builder, node: fg.Attention, shares: Array) -> tuple[Ref, ...]:
    """Emit the bias of each head (of each window), times its share, in score steps; equal ones are shared."""
    if node.bias is None:
        return ()
    steps = np.rint(node.bias.astype(np.float64) * (shares[:, None, None] * np.log2(np.e) * SCORE_STEPS))
    steps = np.maximum(steps, SCORE_LOWEST).astype(np.int16).reshape(-1, *steps.shape[-2:])
    heads = [(data.tobytes(), data) for data in steps]
    made: dict[bytes, Ref] = {}
    for h, (key, data) in enumerate(heads):
        made[key] = made.get(key) or b.table(f"{node.name}.bias.{h}", data, source=node.source)
    return tuple(made[key] for key, _ in heads)


@dataclass(frozen=True)
class Side:
    """Queries or keys on their way into the scores: a linear layer, perhaps a norm of each head, perhaps rotary positions."""

    name: str  # of the value that goes into the scores
    linear: fg.Linear
    norm: fg.LayerNorm | None
    rotate: fg.Rotate | None


def side_of(b: Builder, name: str, node: fg.Attention | fg.Rotate) -> Side:
    at = b.plan.nodes[name]
    rotate = at if isinstance(at, fg.Rotate) and at.heads == node.heads else None
    at = b.plan.nodes[rotate.x] if rotate else at
    norm = at if isinstance(at, fg.LayerNorm) and at.heads == node.heads > 1 else None
    return Side(name, b.plan.linear(norm.x if norm else at.name), norm, rotate)


def _queries_and_keys(
    b: Builder, node: fg.Attention, q_side: Side, k_side: Side
) -> tuple[Ref, Ref, list[float], Array]:
    """Emit Q and K; their rows, and each head's factor from an int8 sum to score steps.

    Last the share of the file's scores [heads] that this is: less than 1 where they would leave the range of scores. The
    sign of a negative scale goes into Q.
    """
    middle = centre(b.stats.values[k_side.name], k_side.rotate is not None)
    gains = _balance(b, node, q_side, k_side, middle)
    q_steps, k_steps = (
        _int8_steps(b, node, side, less, gain) for side, less, gain in ((q_side, 0.0, gains), (k_side, middle, 1 / gains))
    )
    wanted = q_steps * k_steps * abs(node.scale) * np.log2(np.e) * SCORE_STEPS
    wanted = wanted if node.factors is None else wanted * node.factors.astype(np.float64)
    # The largest score must not saturate, or all keys near it would count alike; and a sum one larger than all others takes
    # all of the probability from 2^7 score steps on. What scores lose by that, the biases lose too: a softer softmax.
    largest = np.maximum(b.stats.scores.get(node.name, np.zeros(node.heads)) * SCORES_ROOM, SCORES_MAX)
    factors = np.minimum(wanted * (SCORES_MAX / largest), LARGEST_FACTOR * UNIT_ROW)
    shares = factors / wanted
    if (softest := float(shares.min())) < 1:
        times = f"{1 / softest:.3g} times softer than the file says"
        b.made.warnings.append(f"{describe(node)}: scores are too large for int16, so its softmax is {times}")
    angles: dict[bytes, Ref] = {}
    # One product each: where Q is streamed and K stationary they can lie in different banks of the scratchpad.
    sign = -1.0 if node.scale < 0 else 1.0
    queries = b.made.trace[q_side.name] = project(b, node, q_side, f"{node.name}.q", q_steps, 0.0, angles, sign * gains)
    keys = project(b, node, k_side, f"{node.name}.k", k_steps, middle, angles, 1 / gains)
    if k_side.rotate:
        b.made.trace[k_side.name] = keys
    return queries, keys, [float(factor) for factor in factors], shares


def _balance(b: Builder, node: fg.Attention, q_side: Side, k_side: Side, middle: Array) -> Array:
    """By what each column of the queries is multiplied, and that of the keys divided, [columns]: where a head's columns are
    numbers of different kinds, so that one step fits them all. No column needs a larger step for that than the largest does,
    as one of which nearly nothing was seen would."""
    peaks = [np.maximum(b.stats.values[s.name].magnitude(less), TINY) for s, less in ((q_side, 0.0), (k_side, middle))]
    if not node.balanced or q_side.rotate or k_side.rotate:
        return np.ones(len(peaks[0]))
    gains = np.clip(np.sqrt(peaks[1] / peaks[0]), 1 / MOST_BALANCE, MOST_BALANCE)
    most, least = (
        np.repeat((peak * gain).reshape(node.heads, -1).max(axis=1) / INT8_MAX, len(peak) // node.heads)
        / _least(parameters(b, side, less), side)
        for peak, gain, side, less in ((peaks[0], gains, q_side, 0.0), (peaks[1], 1 / gains, k_side, middle))
    )
    return np.where(most * least < 1, gains, np.clip(gains, 1 / least, most))


def parameters(b: Builder, side: Side, less: Array | float) -> tuple[Array, Array]:
    """(factor, term) whose sizes an int16 step must leave room for: of the norm by column, else of the linear layer."""
    if side.norm is not None:
        gamma, beta = (np.resize(np.asarray(a, np.float64), len(side.linear.weight)) for a in (side.norm.gamma, side.norm.beta))
        return gamma, beta - less
    weight, bias = folded(b.held[side.linear.x], side.linear.weight, side.linear.bias)
    return weight, (np.zeros(len(weight)) if bias is None else bias) - less


def _int8_steps(b: Builder, node: fg.Attention, side: Side, less: Array | float, gain: Array) -> Array:
    """Real value of an int8 step of every head [heads], of columns times `gain`."""
    peak = (np.maximum(b.stats.values[side.name].magnitude(less), TINY) * gain).reshape(node.heads, -1)
    need = _least(_times(parameters(b, side, less), gain), side).reshape(node.heads, -1).max(axis=1)
    return np.maximum((peak / INT8_MAX).max(axis=1) * b.stats.reach(side.name), need)


def _least(parts: tuple[Array, Array], side: Side) -> Array:
    """Smallest int8 step [columns] of one side, by its factor and term."""
    factor, term = parts
    if side.norm is not None:
        need = np.maximum(np.abs(factor), np.abs(term)) / INT16_MAX
    else:
        need = smallest_out_scale(factor, ROW_UNIT, term)
    return np.maximum(need, TINY) * INT16_PER_INT8 / _turn_gain(side)


def _times(parts: tuple[Array, Array], gain: Array | float) -> tuple[Array, Array]:
    """Factor and term times `gain`, a number or one for each column of the value."""
    factor, term = parts
    return factor * (gain[:, None] if np.ndim(gain) and factor.ndim == 2 else gain), term * gain


def _turn_gain(side: Side) -> float:
    """Int16 steps before positions are turned in, by those behind: a number may be longer than the parts it turns into."""
    return TURN_GAIN if side.rotate else 1.0


def project(
    b: Builder, node: fg.Attention | fg.Rotate, side: Side, name: str, steps: Array, less, angles, gain: Array | float = 1.0
) -> Ref:
    """Emit `gain` times one side in int8 steps of `steps` [heads], less `less`; `angles`: tables of positions so far."""
    layer = side.linear
    x = b.held[layer.x]
    columns = len(layer.weight)
    width = columns // node.heads
    steps = np.repeat(steps / INT16_PER_INT8, width)
    before, (factor, term) = steps * _turn_gain(side), _times(parameters(b, side, less), gain)
    if side.norm is None:
        ref = _projected(b, node, layer, name, factor, before, term, before / gain)
    else:
        weight, bias = folded(x, layer.weight, layer.bias)
        scale = wide_scale(b.stats.values[layer.name].magnitude())
        scale = max(scale, float(smallest_out_scale(weight, ROW_UNIT, bias).max()))
        scale = max(scale, width * (side.norm.epsilon / EPSILON_MAX) ** 0.5 * 1.001)
        ref = _projected(b, node, layer, name, weight, scale, bias, scale)
        epsilon = max(round(side.norm.epsilon * width**2 / scale**2), 1)
        gamma, beta = (np.rint(a / before).astype(np.int16) for a in (factor, term))
        fields = {"centred": side.norm.centred, "heads": node.heads, "source": side.norm.source}
        normed = q.Norm(b.name(f"{name}.norm"), ref, gamma, beta, epsilon, **fields)
        ref = b.emit(normed, ref.rows, columns, before / gain, None, node.heads)
    if side.rotate is not None:
        table = _angles(b, node, side.rotate, angles)
        turned = q.Multiply(b.name(f"{name}.rotate"), ref, table, pairs=True, source=side.rotate.source)
        ref = b.emit(turned, ref.rows, columns, steps / gain, None, node.heads)
    return ref


def _projected(
    b: Builder,
    node: fg.Attention | fg.Rotate,
    layer: fg.Linear,
    name: str,
    weight: Array,
    step: Array | float,
    term: Array | None,
    scale: Array | float,
) -> Ref:
    """Emit one side's linear layer in steps of `step`, as a value of `scale`: of a wide attention with 16-bit operands."""
    x, add = b.held[layer.x], None
    parts = [(name, x.ref, weight, ROW_UNIT, term, Convert.ROW)]
    if node.name in b.wide:
        ref, low = rest(b, node, x)
        left = rounding(weight, INT16_PER_INT8, step, UNIT_ROW)
        high = [(weight, term), *([(left, None)] if left.any() else [])]
        parts = [(f"{name}.high", ref, w, INT16_PER_INT8, t, Convert.STATIC) for w, t in high]
        parts.append((name, low.ref, weight, ROW_UNIT, None, Convert.ROW))
    for called, ref, w, unit, t, convert in parts:
        matrix = quantise_weights(w, unit, step, t, UNIT_ROW if convert == Convert.STATIC else 1)
        made = q.Product(b.name(called), ref, matrix, convert, add=add, source=layer.source)
        add = b.emit(made, ref.rows, len(weight), scale, None, node.heads)
    assert add is not None
    return add


def _angles(b: Builder, node: fg.Attention | fg.Rotate, rotate: fg.Rotate, known: dict[bytes, Ref]) -> Ref:
    """Emit the cosines and sines of all tokens, as `numerics.turn` takes them."""
    table = np.stack([rotate.cos, rotate.sin], axis=-1).astype(np.float64).reshape(len(rotate.cos), -1)
    data = np.clip(np.rint(table * (TURN_ONE * TURN_GAIN)), -INT16_MAX, INT16_MAX).astype(np.int16)
    if data.tobytes() not in known:
        scale = 1 / (TURN_ONE * TURN_GAIN)
        known[data.tobytes()] = b.table(f"{node.name}.angles", data, scale, rotate.source)
    return known[data.tobytes()]


def smallest_transposed_step(weight: Array) -> Array:
    """Smallest int8 step [N] of `transposed`: its row multiplier is a u16 / 2^SHIFT_MIN."""
    return weight_steps(weight) * _TABLE_UNIT / (LARGEST_FACTOR * (1 << COL_SHIFT)) * INT16_PER_INT8


def transposed(
    b: Builder, name: str, x: Held, weight: Array, step: Array, source: str, windows: int = 1, add: Ref | None = None
) -> Ref:
    """Emit (x @ weight.T).T [N, tokens]: rows of `weight` [N, K] streamed against the stationary tokens, without bias.

    The tokens of each of several `windows` are a group of columns. `add`: what is added, in the steps of the result.

    `step` [N]: real value of an int8 step of the result, which is stored as 2^STATIC_SHIFT int16 steps.
    """
    step16 = step / INT16_PER_INT8
    row_mult, shift = multipliers(weight_steps(weight) * _TABLE_UNIT / step16, fraction_bits=0)
    exact = np.ldexp(row_mult * step16 / _TABLE_UNIT, -shift)
    data = int8_weights(weight, exact).astype(np.int16) * INT16_PER_INT8
    # Its columns lie as those of the tokens do.
    w = b.table(f"{name}.weight", data, exact[:, None] / INT16_PER_INT8, source, b.groups_of(x))
    made = q.Product(
        b.name(name), w, Matrix(x.ref, None, shift, None, row_mult), Convert.STATIC, add=add, source=source
    )
    return b.emit(made, len(weight), x.ref.rows, step16[:, None], None, windows)
