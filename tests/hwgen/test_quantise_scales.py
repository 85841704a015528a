"""Multipliers, int8 weights and biases."""

import numpy as np
import pytest

from hwgen import numerics as num
from hwgen.qgraph import UNIT_ROW
from hwgen.quantise import scales


def test_multipliers_round_up_and_use_sixteen_bits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        factor = np.exp(rng.uniform(-12, 0)) * rng.uniform(0.01, 1, 7) * scales.LARGEST_FACTOR
        mult, shift = scales.multipliers(factor)
        assert num.SHIFT_MIN <= shift <= num.SHIFT_MAX
        assert 32768 <= mult.max() <= num.U16_MAX
        exact = np.ldexp(factor, num.COL_SHIFT + shift)
        assert np.all(mult >= exact) and np.all(mult < exact + 1)


@pytest.mark.parametrize("bits", (0, num.COL_SHIFT))
def test_multipliers_at_their_limits(bits):
    top = num.U16_MAX / 2.0 ** (bits + num.SHIFT_MIN)
    mult, shift = scales.multipliers(np.array([top]), bits)
    assert (mult[0], shift) == (num.U16_MAX, num.SHIFT_MIN)
    with pytest.raises(ValueError, match="too large"):
        scales.multipliers(np.array([top * 1.01]), bits)
    mult, shift = scales.multipliers(np.array([1e-30, 0.0]), bits)
    assert shift == num.SHIFT_MAX and list(mult) == [1, 0]
    mult, shift = scales.multipliers(np.zeros(3), bits)
    assert not mult.any() and num.SHIFT_MIN <= shift <= num.SHIFT_MAX


def test_single_is_the_nearest_factor():
    for factor in (0.0, 1e-4, 0.3, 7.0, 100.0):
        col, shift = scales.single(factor)
        found = col * scales.UNIT_ROW / 2.0 ** (num.COL_SHIFT + shift)
        assert abs(found - factor) <= factor * 2.0**-15


@pytest.mark.parametrize("row", (1, scales.UNIT_ROW))
def test_quantised_product_is_the_real_product(row):
    """Against floating point: only the rounding of the weights and one rounding of each output remain."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((24, 40)) * np.exp(rng.uniform(-4, 0, (24, 1)))
    weight[3] = 0.0
    bias = rng.standard_normal(24)
    x = rng.integers(-127, 128, (9, 40))
    row_mult = row if row > 1 else 20000
    step_in = 0.01 / (1 if row > 1 else row_mult)
    real = x @ weight.T * 0.01 + bias
    step_out = np.abs(real).max() / 30000
    q = scales.quantise_weights(weight, step_in, step_out, bias, row)
    assert q.w.dtype == np.int8 and np.abs(q.w.astype(int)).max() == num.INT8_MAX and not q.w[3].any()
    found = num.requantise(x @ q.w.astype(np.int64).T, q.col_mult, row_mult, q.shift, q.bias) * step_out
    weight_error = np.abs(x).sum(axis=1)[:, None] * 0.01 * np.abs(weight).max(axis=1) / 127 / 2
    assert np.all(np.abs(found - real) <= weight_error * 1.01 + 3 * step_out)


def test_weights_never_overflow_the_accumulator():
    weight = np.ones((2, 6000))
    weight[:, 0] = 0.31416  # else these are whole multiples of one step
    q = scales.quantise_weights(weight, 1e-3, 1.0, None)
    assert np.abs(q.w.astype(np.int64)).sum(axis=1).max() * num.INT8_MAX <= num.ACC_MAX
    assert 80 < q.w.max() < 127


def test_smallest_out_scale_is_enough_and_needed():
    rng = np.random.default_rng(2)
    weight, bias = rng.standard_normal((8, 16)), rng.standard_normal(8) * 100
    need = scales.smallest_out_scale(weight, 5.0, bias)
    scales.quantise_weights(weight, 5.0, need.max() * 1.001, bias)
    with pytest.raises(ValueError):
        scales.quantise_weights(weight, 5.0, need.max() * 0.99, bias)
    need = scales.smallest_out_scale(weight * 1e-9, 5.0, bias)
    with pytest.raises(ValueError, match="bias"):
        scales.quantise_weights(weight * 1e-9, 5.0, need.max() * 0.99, bias)


def test_scores_of_the_largest_factor_give_all_to_the_largest_sum():
    col, shift = scales.single(scales.LARGEST_FACTOR * UNIT_ROW)
    sums = np.random.default_rng(5).integers(-255, 256, (200, 9))
    steps = num.requantise(sums, col, UNIT_ROW, shift, 0)
    expected = num.INT8_MAX * (sums == sums.max(axis=1, keepdims=True))
    np.testing.assert_array_equal(num.probabilities(steps, steps.max(axis=1)), expected)
