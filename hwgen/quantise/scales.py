"""Real factors as the machine's integers: multipliers, shifts, int8 weights, biases.

A multiplier is rounded up first and the weights are quantised with exactly the scale that it stands for, so the only
error of a matrix is the rounding of its weights.
"""

from __future__ import annotations

import math

import numpy as np

from .. import numerics as num
from ..qgraph import UNIT_ROW, Matrix

Array = np.ndarray

# Largest factor of a column multiplier and its shift, a little less so that rounding up stays in range.
LARGEST_FACTOR = (1 - 2.0**-15) * 2.0**-num.SHIFT_MIN
# A row of float weights lies on a grid of 128 levels by chance with probability 128 * (2 * GRID_TOLERANCE)^columns.
GRID_FIRST = 4  # columns: all rows but those of a grid fail here
FEW_LEVELS = 8
NOTHING = 2.0**-20  # of a weight: what its multiplier is off by
GRID_TOLERANCE = 1e-3


class OutOfRange(ValueError):
    """A number that no multiplier or bias holds."""


def multipliers(factor: Array, fraction_bits: int = num.COL_SHIFT) -> tuple[Array, int]:
    """Smallest u16 m [N] and one shift with m / 2^(fraction_bits + shift) >= factor [N] (a factor of 0 gives 0).

    The largest m is in [32768, 65535] unless the shift is at its limit. Raises OutOfRange for a factor that
    is too large, negative or no number.
    """
    factor = np.asarray(factor, np.float64)
    if not np.all(factor >= 0):
        raise OutOfRange(f"factor {float(factor.min()):g} is no multiplier")
    largest = float(factor.max(initial=0.0))
    if largest == 0.0:
        return np.zeros(factor.shape, np.int64), num.SHIFT_MIN
    shift = 16 - fraction_bits - math.frexp(largest)[1]
    if math.ceil(math.ldexp(largest, fraction_bits + shift)) > num.U16_MAX:
        shift -= 1
    if shift < num.SHIFT_MIN:
        raise OutOfRange(f"factor {largest:g} is too large for a multiplier")
    shift = min(shift, num.SHIFT_MAX)
    return np.ceil(np.ldexp(factor, fraction_bits + shift)).astype(np.int64), shift


def single(factor: float) -> tuple[int, int]:
    """(column multiplier, shift) nearest to `factor` together with the row multiplier `UNIT_ROW`."""
    col, shift = multipliers(np.array([factor / UNIT_ROW]))
    return min(int(round(math.ldexp(factor / UNIT_ROW, num.COL_SHIFT + shift))), num.U16_MAX) if col[0] else 0, shift


def weight_steps(weight: Array) -> Array:
    """Step [N] of int8 weights [N, K]: that of a model quantised before, else the smallest without a weight beyond 127.

    In either case no sum is beyond the accumulator. A row of a few levels (an identity) has as fine a step as it can,
    halved again and again: its sums are then large enough that the first rounding of `numerics.requantise` costs nothing.
    """
    grid = whole_steps(weight)
    magnitude = np.abs(weight)
    levels = magnitude.max(axis=1, initial=0.0) / np.where(grid > 0, grid, np.inf)
    few = (levels > 0) & (levels <= FEW_LEVELS)
    grid[few] /= 2.0 ** np.floor(np.log2(num.INT8_MAX / levels[few]))
    sums = num.ACC_MAX / num.INT8_MAX - weight.shape[1] / 2  # each weight may round up by half
    fits = magnitude.sum(axis=1) / sums
    return np.where((grid > 0) & (grid >= fits), grid, np.maximum(magnitude.max(axis=1) / num.INT8_MAX, fits))


def whole_steps(weight: Array) -> Array:
    """For each row [N] of a matrix [N, K] the largest step that all its weights are whole multiples of, else 0.

    Only multiples up to 128 count: such a row holds the int8 weights of a model that was quantised before, and with that
    step they are kept as they are (-128, which packed products cannot hold, becomes -127).
    """
    weight = np.asarray(weight, np.float64)
    largest = np.abs(weight).max(axis=1, initial=0.0)
    step = np.zeros(len(weight))
    share = weight[:, :GRID_FIRST] / np.where(largest > 0, largest, np.inf)[:, None]
    on_grid = _whole(share[:, :, None] * np.arange(1, (1 << 7) + 1)).all(axis=1) & (largest > 0)[:, None]
    for row in np.flatnonzero(on_grid.any(axis=1)):
        for multiple in np.flatnonzero(on_grid[row]) + 1:
            if _whole(weight[row] / (largest[row] / multiple)).all():
                step[row] = largest[row] / multiple
                break
    return step


def _whole(x: Array) -> Array:
    """Whether numbers are whole, nearly."""
    return np.abs(x - np.rint(x)) < GRID_TOLERANCE


def int8_weights(weight: Array, step: Array) -> Array:
    """round(weight / step) int8 [N, K]; rows with step 0 are zero."""
    step = np.where(step > 0, step, np.inf)[:, None]
    return np.clip(np.rint(weight / step), -num.INT8_MAX, num.INT8_MAX).astype(np.int8)


def smallest_out_scale(weight: Array, step_in: float, bias: Array | None, row: int = 1) -> Array:
    """Smallest output scale [N] for which multipliers and bias fit; arguments as in `quantise_weights`."""
    need = weight_steps(weight) * step_in / (LARGEST_FACTOR * row)
    return need if bias is None else np.maximum(need, np.abs(bias) / num.INT16_MAX)


def quantise_weights(
    weight: Array, step_in: float, step_out: Array | float, bias: Array | None, row: int = 1
) -> Matrix:
    """Parameters of out = sum * column multiplier * row multiplier + bias.

    `weight` [N, K] real; a sum of int8 products (times the row multiplier, if that is not the immediate `row`) counts
    in units of `step_in` times the weight's step; `step_out` is the real value of an output step ([N] or one); `bias`
    [N] real or None. The output scale must be at least `smallest_out_scale`.
    """
    weight = np.asarray(weight, np.float64)
    step_out = np.broadcast_to(np.asarray(step_out, np.float64), weight.shape[:1])
    col, shift, step = _scaled(weight, step_in, step_out, row)
    integer_bias = np.zeros(weight.shape[0]) if bias is None else np.rint(np.asarray(bias, np.float64) / step_out)
    if np.abs(integer_bias).max(initial=0) > num.INT16_MAX:
        raise OutOfRange(f"a bias of {np.abs(integer_bias).max():g} steps, beyond int16")
    return Matrix(int8_weights(weight, step), col, shift, integer_bias.astype(np.int16), row if row > 1 else None)


def rounding(weight: Array, step_in: float, step_out: Array | float, row: int = 1) -> Array:
    """What the int8 weights of `quantise_weights` leave of `weight`: by it another product adds 8 bits."""
    weight = np.asarray(weight, np.float64)
    step = _scaled(weight, step_in, np.broadcast_to(np.asarray(step_out, np.float64), weight.shape[:1]), row)[2]
    rest = weight - int8_weights(weight, step) * step[:, None]
    return np.where(np.abs(rest) > NOTHING * np.abs(weight).max(axis=1, keepdims=True), rest, 0.0)


def _scaled(weight: Array, step_in: float, step_out: Array, row: int) -> tuple[Array, int, Array]:
    """(column multipliers, shift, the weights' step for which these are exact)."""
    col, shift = multipliers(weight_steps(weight) * step_in / (step_out * row))
    return col, shift, np.ldexp(col * step_out * row / step_in, -(num.COL_SHIFT + shift))
