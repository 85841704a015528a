"""The integer arithmetic against real arithmetic, with the stated errors, and its corner values."""

import numpy as np
import pytest
from scipy.special import erf

from hwgen import numerics as num

RNG_ROWS = 200


def rounded(x):
    """Half away from zero."""
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


@pytest.mark.parametrize("shift", [0, 1, 2, 7, 16, 39])
def test_round_shift_is_half_away_from_zero(shift):
    rng = np.random.default_rng(shift)
    half = 1 << shift >> 1
    x = np.concatenate([rng.integers(-(1 << 44), 1 << 44, 500), np.arange(-9, 10) * half, [0, half - 1, -half + 1]])
    assert np.array_equal(num.round_shift(x, shift), rounded(x / 2.0**shift))
    assert np.array_equal(num.round_shift(x, np.full(x.shape, shift)), num.round_shift(x, shift))


def test_every_row_maximum_fits_int8_and_comes_back():
    """All 32,768 of them: the maximum stays within int8, uses at least half of it, and the scale undoes the factor."""
    peak = np.arange(32768)
    q, scale = num.quantise_rows(np.stack([peak, -peak, peak // 3], axis=1), peak)
    assert np.abs(q).max() <= 127 and np.array_equal(q[:, 1], -q[:, 0])
    assert q[128:, 0].min() >= 126
    assert scale.max() < 1 << 16
    step = np.maximum(peak, 128) / 127
    assert np.abs(q * scale[:, None] / 128 - np.stack([peak, -peak, peak // 3], axis=1)).max(axis=1).max() < 1.02 * step.max()
    assert (np.abs(q[:, 2] * scale / 128 - peak // 3) <= 0.52 * step * 1.02 + 1).all()


def test_static_conversion():
    x = np.array([0, 127, 128, -128, -127, 32767, -32767, 383, 384])
    assert np.array_equal(num.quantise_static(x), [0, 0, 1, -1, 0, 127, -127, 1, 2])


def test_probabilities_follow_softmax():
    rng = np.random.default_rng(1)
    scores = rng.integers(-32767, 32768, (RNG_ROWS, 1)) // 2 - rng.integers(0, 150, (RNG_ROWS, 60))
    peak = scores.max(axis=1)
    p = num.probabilities(scores, peak)
    real = 2.0 ** ((scores - peak[:, None]) / num.SCORE_STEPS)
    assert p.max() == 127 and p.min() == 0
    assert np.abs(p / 127 - real).max() <= 0.5 / 127
    multiplier, exponent = num.reciprocal(p.sum(axis=1))
    weights = p * multiplier[:, None] / 2.0 ** exponent[:, None] / (127 * 65535)
    assert np.abs(weights - real / real.sum(axis=1, keepdims=True)).max() < 0.012


def test_reciprocals_keep_their_bits_in_long_rows():
    """A row of thousands of equal scores: its sum is large, the multiplier as exact as that of a short row."""
    totals = np.concatenate([np.arange(1, 20000), 127 * 2 ** np.arange(13), 127 * 2 ** np.arange(1, 13) - 1, [127 * 8191]])
    multiplier, exponent = num.reciprocal(totals)
    real = 127 * 65535 / np.maximum(totals, 127)
    assert np.abs(multiplier / 2.0**exponent / real - 1).max() < 2.0**-15
    assert multiplier.min() >= num.U16_MAX // 2 and multiplier.max() == num.U16_MAX
    assert exponent.min() == 0 and exponent.max() == num.RECIPROCAL_EXPONENT_MAX
    assert [int(a[0]) for a in num.reciprocal(np.array([127 * 4160]))] == [64526, 12]


def test_requantise_bounds():
    """The largest sum, multipliers and shift stay inside int64 and saturate; a saturated result is symmetric."""
    acc = np.array([[num.ACC_MAX, -num.ACC_MAX, 1, -1, 0]])
    y = num.requantise(acc, np.full(5, 65535), np.array([[65535]]), num.SHIFT_MIN, np.array([32767, -32767, 0, 0, 7]))
    assert y.tolist() == [[32767, -32767, 256, -256, 7]]
    assert num.requantise(acc, 65535, np.array([[65535]]), num.SHIFT_MAX, 0).tolist() == [[8, -8, 0, 0, 0]]


@pytest.mark.parametrize("columns", (64, 1040, 1041, 4160))
def test_product_is_exact(columns):
    rng = np.random.default_rng(4)
    x, w = rng.integers(-127, 128, (3, columns)), rng.integers(-127, 128, (5, columns))
    x[0], w[0] = 127, 127
    x[1], w[1] = 127, -127
    assert np.array_equal(num.product(x, w.astype(np.int8)), x @ w.T)


@pytest.mark.parametrize("shift", range(num.GELU_SHIFT_MAX + 1))
@pytest.mark.parametrize("form", sorted(set(num.GELU_SPANS) - {"tanh", "exp"}))
def test_gelu_error_is_as_stated(form, shift):
    """Over every int16: within GELU_MAX_ERROR and half a step of the function."""
    x = np.arange(-32767, 32768)
    step = 2.0 ** -(7 + shift)
    real = x * step
    if form == "softplus":
        error = np.abs(num.gelu(x, form, shift) * step - np.logaddexp(num.GELU_SPANS[form] * real, 0) / num.GELU_SPANS[form])
        assert error.max() <= num.GELU_MAX_ERROR + 0.5 * step
        return
    inner = {
        "gelu": erf(real / np.sqrt(2)),
        "hardswish": np.clip(num.GELU_SPANS["hardswish"] * real / 3, -1, 1),
        "silu": np.tanh(num.GELU_SPANS["silu"] * real / 2),  # sigmoid(x) = (1 + tanh(x / 2)) / 2
    }[form]
    error = np.abs(num.gelu(x, form, shift) * step - 0.5 * real * (1 + inner))
    assert error.max() <= num.GELU_MAX_ERROR + 0.5 * step
    assert np.abs(num.gelu(x, form, shift)).max() <= 32767


def test_relu_is_exact():
    """Over every int16, whatever the steps: a table's would be off by some, which is much where all numbers are small."""
    x = np.arange(-32767, 32768)
    for shift in range(num.GELU_SHIFT_MAX + 1):
        assert np.array_equal(num.gelu(x, "relu", shift), np.maximum(x, 0))


@pytest.mark.parametrize("shift", range(num.GELU_SHIFT_MAX + 1))
def test_exp_error_is_as_stated(shift):
    """Over every int16: of numbers above 0 it stays 1, and it never falls."""
    x = np.arange(-32767, 32768)
    y = num.gelu(x, "exp", shift).astype(int)
    error = np.abs(y / num.EXP_ONE - np.exp(np.minimum(num.GELU_SPANS["exp"] * x * 2.0 ** -(7 + shift), 0)))
    assert error.max() <= num.EXP_MAX_ERROR and (np.diff(y) >= 0).all()
    assert (y[32767:] == num.EXP_ONE).all() and y[0] == 0


@pytest.mark.parametrize("shift", range(num.GELU_SHIFT_MAX + 1))
def test_tanh_error_is_as_stated(shift):
    """Over every int16, as good as reached, and odd."""
    x = np.arange(-32767, 32768)
    y = num.gelu(x, "tanh", shift).astype(int)
    error = np.abs(y / num.TANH_ONE - np.tanh(num.GELU_SPANS["tanh"] * x * 2.0 ** -(7 + shift)))
    assert error.max() <= num.TANH_MAX_ERROR
    assert np.array_equal(y, -y[::-1]) and (np.diff(y) >= 0).all()
    assert shift == 0 or error.max() > 0.9 * num.TANH_MAX_ERROR
    assert y[-1] == num.TANH_ONE


def test_rsqrt_error():
    rng = np.random.default_rng(2)
    n = np.concatenate([np.arange(1, 5000), (2.0 ** rng.uniform(0, 62, 20000)).astype(np.int64), [(1 << 62) - 1]])
    r, e = num.rsqrt(n)
    assert r.max() < 1 << num.RSQRT_BITS
    relative = np.abs(r / 2.0 ** (num.RSQRT_BITS + e) * np.sqrt(n) - 1)
    assert relative.max() < 4e-5


def test_layer_norm_follows_the_definition():
    rng = np.random.default_rng(3)
    columns, gamma_scale = 192, 900
    x = rng.integers(-30000, 30000, (RNG_ROWS, columns)) >> rng.integers(0, 12, (RNG_ROWS, 1))
    gamma = rng.integers(-2 * gamma_scale, 2 * gamma_scale, columns)
    beta = rng.integers(-5000, 5000, columns)
    epsilon = 1 << 20
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon / columns**2)
    real = np.clip(centred / deviation * gamma + beta, -32767, 32767)
    assert np.abs(num.layer_norm(x, gamma, beta, epsilon) - real).max() < 2


@pytest.mark.parametrize("row", [np.full(8, 32767), np.full(8, -32767), np.array([32767] + [-32767] * 7), np.zeros(8)])
def test_layer_norm_corners(row):
    """Constant rows have no variance: beta remains. One spike reaches sqrt(D - 1)."""
    gamma, beta = np.full(8, 4096), np.arange(8)
    y = num.layer_norm(row[None].astype(int), gamma, beta, 1)[0]
    if np.ptp(row) == 0:
        assert np.array_equal(y, beta)
    else:
        assert np.abs(y - beta - 4096 * np.array([np.sqrt(7)] + [-1 / np.sqrt(7)] * 7)).max() <= 2


@pytest.mark.parametrize("renormalise", [False, True])
def test_route_follows_softmax_and_breaks_ties_downwards(renormalise):
    rng = np.random.default_rng(5)
    logits = rng.integers(-3000, 3000, (RNG_ROWS, 16))
    logits[0] = 7
    logits[1, 3:6] = 32767
    experts, gates = num.route(logits, 4, renormalise)
    assert experts[0].tolist() == [0, 1, 2, 3] and experts[1, :3].tolist() == [3, 4, 5]
    real = 2.0 ** ((logits - logits.max(axis=1, keepdims=True)) / num.LOGIT_STEPS)
    chosen = np.take_along_axis(real, experts, axis=1)
    total = (chosen if renormalise else real).sum(axis=1, keepdims=True)
    assert np.abs(gates / 2.0**num.GATE_BITS - chosen / total).max() < 2e-4
    assert (np.diff(np.take_along_axis(logits, experts, axis=1), axis=1) <= 0).all()
    assert num.route(np.full((1, 1), -32767), 1, renormalise)[1].tolist() == [[1 << num.GATE_BITS]]


def test_products_of_rows_round_half_away_and_saturate():
    x, factor = np.array([[3, -3, 32767, -32767, 100, 0]]), np.array([[128, 128, 32767, 32767, -7, 5]])
    np.testing.assert_array_equal(num.multiply(x, factor, 8), [[2, -2, 32767, -32767, -3, 0]])
    np.testing.assert_array_equal(num.multiply(x, factor, 15), [[0, 0, 32766, -32766, 0, 0]])
    np.testing.assert_array_equal(num.multiply(x, np.array([[256, -256]]), 8), [[3, 3, 32767, 32767, 100, 0]])


def test_turn_is_a_complex_product():
    rng = np.random.default_rng(4)
    x, angle = rng.integers(-20000, 20001, (50, 24)), rng.uniform(-np.pi, np.pi, (50, 4))
    factor = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(50, 8)
    y = num.turn(x, np.rint(factor * num.TURN_ONE).astype(np.int16)).astype(np.int64)
    wanted = (x[:, ::2] + 1j * x[:, 1::2]) * np.tile(np.exp(1j * angle), (1, 3))
    assert np.abs(y[:, ::2] + 1j * y[:, 1::2] - wanted).max() <= 1.5 + 20000 * 2**0.5 * 2.0**-num.GAMMA_SHIFT


def test_rms_norm():
    rng = np.random.default_rng(5)
    x = rng.integers(-9000, 9001, (20, 48)) + 3000
    gamma, beta = rng.integers(-4000, 4000, (2, 48))
    wanted = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True)) * gamma + beta
    y = num.layer_norm(x, gamma, beta, 1, centred=False)
    assert np.abs(y - wanted).max() <= 1 + 2e-4 * np.abs(wanted).max()
