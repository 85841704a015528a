"""The integer arithmetic of the machine, written once.

Golden and machine call these functions; the RTL fills its ROMs from these tables and its tests compare with them.
Everything is exact integer arithmetic; nothing here depends on the shape of the hardware.

Formats: weights int8 in [-127, 127]; stored activations int16 in [-32767, 32767], as int16 arrays; operands of the array
int8, as whole numbers in float32 arrays (OPERAND), which BLAS multiplies. One rounding rule everywhere: round half away
from zero (`round_shift`). Where the arrays are large it is done in float64, whose 53 bits hold every number that occurs
(`_away`); everything else is int64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

Array = np.ndarray

REVISION = 5  # of this arithmetic: a bundle whose Verilog computes by another one is not run
INT8_MAX = 127
INT16_MAX = 32767
U16_MAX = 65535
ACC_BITS = 27  # signed accumulator; the builder proves that no sum can leave it
ACC_MAX = (1 << (ACC_BITS - 1)) - 1
COL_SHIFT = 16  # column multipliers are u16 fractions of 2^16
SHIFT_MIN, SHIFT_MAX = 8, 39  # of the shift after the row multiply
STATIC_SHIFT = 8  # int16 -> int8 with a fixed scale: one int8 step is 2^8 int16 steps


OPERAND = np.float32
AWAY = 1.0 + 2.0**-44


def round_shift(x: Array, shift: Array | int) -> Array:
    """x / 2^shift rounded half away from zero; shift >= 0 (per element or scalar)."""
    x = np.asarray(x, np.int64)
    shift = np.asarray(shift, np.int64)
    half = np.left_shift(1, shift) >> 1  # 0 without a shift, where nothing rounds
    y = (x >> 63) & -(half > 0).astype(np.int64)
    return (y + x + half) >> shift


def _away(x: Array, factor: Array | float, shift: Array | int) -> Array:
    """round_shift(x * factor, shift) as float64, |x * factor| < 2^43, by rounding half to even.

    A factor larger by AWAY moves each quotient away from zero by less than the distance to the next multiple of
    2^-shift, and by more than float64's roundings: off a half, and never onto one or past it.
    """
    y = np.multiply(x, np.ldexp(np.multiply(factor, AWAY), np.negative(shift)), dtype=np.float64)
    return np.rint(y, out=y)


def saturate(x: Array, limit: int) -> Array:
    """Clip to [-limit, limit]: symmetric, so that a magnitude always fits."""
    return np.clip(x, -limit, limit)


# --- int16 rows to int8 operands ---------------------------------------------------------------------------------

# Row quantiser: for a row maximum with leading bits m = 128 + i, factor ROW_FACTOR[i] / 2^(8+e) maps the row into
# [-127, 127]; ROW_STEP[i] is the inverse, one int8 step in units of 2^-14 int16 steps at e = 0.
ROW_FACTOR = (INT8_MAX * 256) // (np.arange(128, 256) + 1)  # u8, 127..252
ROW_STEP = np.round(2.0**22 / ROW_FACTOR).astype(np.int64)  # u16
ROW_STEP_BITS = 7  # a row scale `rs` is one int8 step in units of 2^-7 int16 steps


def row_quantiser(row_max: Array) -> tuple[Array, Array, Array]:
    """(factor u8, exponent 0..7, row scale u16) for the largest magnitude of a row, 0 <= row_max <= 32767.

    int8 = round_shift(int16 * factor, 8 + exponent); int16 ~= int8 * row_scale / 2^7.
    """
    row_max = np.maximum(row_max, 128)
    return _FACTORS[row_max], _EXPONENTS[row_max], _ROW_SCALES[row_max]


def _row_tables() -> tuple[Array, Array, Array]:
    """`row_quantiser` of every row maximum."""
    row_max = np.maximum(np.arange(INT16_MAX + 1), 128)
    exponent = np.zeros_like(row_max)
    for bit in range(8, 15):
        exponent += row_max >= 1 << bit
    index = (row_max >> exponent) - 128
    return ROW_FACTOR[index], exponent, round_shift(ROW_STEP[index], 7 - exponent)


_FACTORS, _EXPONENTS, _ROW_SCALES = _row_tables()


def quantise_image(pixels: Array, step: float, offset: float, fine: bool = False) -> Array:
    """Pixels in float64 as int16: 2^STATIC_SHIFT times their int8 value, or `fine` in whole int16 steps of the same reach."""
    one = 1 << STATIC_SHIFT
    y = np.round((pixels - offset) / step * one) if fine else np.round((pixels - offset) / step) * one
    return np.clip(y, -INT8_MAX * one, INT8_MAX * one).astype(np.int16)


def quantise_static(x: Array) -> Array:
    """int16 -> int8 with the fixed step 2^8."""
    return saturate(_away(x, 1.0, STATIC_SHIFT), INT8_MAX).astype(OPERAND)


def quantise_rows(x: Array, row_max: Array) -> tuple[Array, Array]:
    """int16 [R, C] with its row maxima [R] -> (int8 [R, C], row scales u16 [R])."""
    factor, exponent, scale = row_quantiser(row_max)
    y = _away(x, factor[:, None], 8 + exponent[:, None])
    return np.clip(y, -INT8_MAX, INT8_MAX, out=y).astype(OPERAND), scale


def row_max_abs(x: Array) -> Array:
    """Largest magnitude of each row: int64 [R] of [R, C]."""
    x = np.asarray(x)
    return np.maximum(x.max(axis=1).astype(np.int64), -x.min(axis=1).astype(np.int64))


# --- softmax in one pass -----------------------------------------------------------------------------------------

SCORE_STEPS = 16  # score grid: 2^(1/16) per step
PROBABILITY = np.round(INT8_MAX * 2.0 ** (-np.arange(128) / SCORE_STEPS)).astype(np.int64)  # last entry 1, then 0
_PROBABILITY = np.append(PROBABILITY, 0).astype(OPERAND)  # and 0 for all that is further away
RECIPROCAL_NUMERATOR = INT8_MAX * U16_MAX
RECIPROCAL_EXPONENT_MAX = 12  # for rows of up to 2^13 tokens


def probabilities(scores: Array, row_max: Array) -> Array:
    """round(127 * 2^((score - max) / 16)) for scores [R, C] and signed row maxima [R]; 0 beyond 127 steps."""
    distance = np.subtract(np.asarray(row_max, np.int64)[:, None], scores, dtype=np.int64)
    return _PROBABILITY[np.clip(distance, 0, 128)]


def reciprocal(total: Array) -> tuple[Array, Array]:
    """(row multiplier u16, exponent e) for a sum of probabilities, 127 <= total < 127 * 2^13 (smaller ones count as 127).

    127 * 65535 / total ~= multiplier / 2^e, where 127 * 2^e <= total < 127 * 2^(e + 1): so the multiplier has all its 16
    bits however many tokens share a row. Largest relative error 2^-15.
    """
    total = np.maximum(np.asarray(total, np.int64), INT8_MAX)
    exponent = np.sum([total >= INT8_MAX << e for e in range(1, RECIPROCAL_EXPONENT_MAX + 1)], axis=0, dtype=np.int64)
    return (RECIPROCAL_NUMERATOR << exponent) // total, np.asarray(exponent)


# --- narrow weights ----------------------------------------------------------------------------------------------

NARROW_BITS = (4, 5, 6)  # of a weight's code, two's complement
# By what a group of weights along the inputs is multiplied to become int8: its number has 4 bits, number 0 says that the
# group's weights are bytes as they are. The largest: 7 codes of 4 bits reach 126. Each is -2..2 and 0, 4, 8 or 16: two shifts and
# one sum make a product.
NARROW_FACTORS = (0, *range(1, 11), *range(14, 19))


def widen(codes: Array, factors: Array | int) -> Array:
    """int8 weights of codes and their groups' factors; what makes them keeps the product in [-127, 127]."""
    return np.multiply(codes, factors, dtype=np.int16).astype(np.int8)


# --- array -------------------------------------------------------------------------------------------------------


EXACT_INPUTS = (1 << 24) // INT8_MAX**2  # so many products add up exactly in OPERAND


def product(x: Array, w: Array) -> Array:
    """Exact sums x @ w.T [R, N], as whole numbers in float64, of int8 operands [R, K] and [N, K], by floating-point BLAS.

    In pieces of EXACT_INPUTS columns every partial sum is a whole number that OPERAND holds exactly.
    """
    x, w = x.astype(OPERAND, copy=False), w.astype(OPERAND, copy=False)
    pieces = -(-x.shape[1] // EXACT_INPUTS)
    size = -(-x.shape[1] // pieces)
    total = (x[:, :size] @ w[:, :size].T).astype(np.float64)
    for first in range(size, x.shape[1], size):
        total += x[:, first : first + size] @ w[:, first : first + size].T
    return total


# --- post-processor ----------------------------------------------------------------------------------------------


def requantise(acc: Array, col: Array | int, row: Array | int, shift: Array | int, bias: Array | int) -> Array:
    """int16 [R, N] from exact sums [R, N]: column multiplier u16 [N], row multiplier u16 [R, 1], bias int16 [N].

    `shift`: SHIFT_MIN..SHIFT_MAX, or [R, 1] with the exponents of `reciprocal` added to that.

    v = round(acc * col / 2^16); y = saturate(round(v * row / 2^shift) + bias).
    """
    y = _away(_away(acc, col, COL_SHIFT), row, shift)
    y += bias
    return np.clip(y, -INT16_MAX, INT16_MAX, out=y).astype(np.int16)


def gated_scale(row_scale: Array, gate: Array) -> Array:
    """Row multiplier of an expert's output: row scale times gate score (u16, 2^15 = 1)."""
    return round_shift(np.asarray(row_scale, np.int64) * gate, GATE_BITS)


def add_residual(x: Array, y: Array) -> Array:
    """x + y, saturated to int16."""
    return saturate(np.add(x, y, dtype=np.int32), INT16_MAX).astype(np.int16)


# --- GELU, SiLU = ReLU - delta; softplus, exp, tanh ------------------------------------------------------------------

GELU_ENTRIES = 512  # over |x| in [0, 4)
GELU_INDEX_BITS = 7  # table step 2^-7
GELU_DELTA_BITS = 16  # table unit 2^-16
GELU_SHIFT_MAX = 6  # x has the scale 2^-(7 + gelu_shift): ranges +-256 down to +-4
# The largest error of a table against the function: half a step times the largest slope of delta (1/2).
GELU_MAX_ERROR = 0.5 * 2.0 ** -(GELU_INDEX_BITS + 1) + 2.0**-GELU_DELTA_BITS
# By form: c, where the table is that of f(c * x) / c. SiLU bends over a wider range than GELU, so its table's argument is
# SiLU's divided by c: its largest error is that of GELU's, in SiLU's own units c times as much (and 2.7e-3 beyond |x| = 8).
GELU_SPANS = {"gelu": 1.0, "softplus": 4.0, "silu": 2.0, "hardswish": 2.0, "tanh": 1.25, "exp": 4.0}
GELU_FORMS = (*GELU_SPANS, "relu")  # which has no table: GELU's would be off by 22 steps around 0
# tanh is sign(x) * (1 - delta(|x|)). Hard swish is ReLU from TANH_FIRST on: the rest of its table's room is that of tanh,
# which is 1 from |x| = 3.125 on. In units of 1, whatever gelu_shift: half a step, the table's rounding.
TANH_ONE = 1 << 14
TANH_FIRST = 192
# Softplus is ReLU + delta, exp(min(x, 0)) is delta alone, in units of 1 as tanh: e^-8 is the last that a half of a table's room
# holds, and behind it stands the other.
EXP_ONE = 1 << 14
EXP_FIRST = 256
EXP_MAX_ERROR = 0.5 * GELU_SPANS["exp"] * 2.0**-GELU_INDEX_BITS + 0.5 / EXP_ONE
TANH_MAX_ERROR = 0.5 * GELU_SPANS["tanh"] * 2.0**-GELU_INDEX_BITS + 0.5 / TANH_ONE


def gelu_delta(form: str) -> Array:
    """delta(|x|) = ReLU(x) - f(c * x) / c at the table's points, u16 [512] in units of 2^-16. In each case delta is even.

    Of softplus f(-c * |x|) / c, half as many; of exp that in units of 1 / EXP_ONE. Of tanh: 1 - tanh(c * x), in units of
    1 / TANH_ONE, as many as hard swish leaves room for.
    """
    from scipy.special import erf, expit

    x = np.arange(GELU_ENTRIES) / 2.0**GELU_INDEX_BITS
    y = GELU_SPANS[form] * x
    if form == "tanh":
        return np.round((1 - np.tanh(y[: GELU_ENTRIES - TANH_FIRST])) * TANH_ONE).astype(np.int64)
    if form == "exp":
        return np.round(np.exp(-y[:EXP_FIRST]) * EXP_ONE).astype(np.int64)
    if form == "softplus":
        return np.round(np.log1p(np.exp(-y[:EXP_FIRST])) / GELU_SPANS[form] * 2.0**GELU_DELTA_BITS).astype(np.int64)
    shares: dict[str, Callable[[], Array]] = {
        "gelu": lambda: 0.5 * (1 + erf(y / np.sqrt(2))),
        "silu": lambda: expit(y),
        "hardswish": lambda: np.minimum(y / 6 + 0.5, 1.0),
    }
    share = shares[form]()
    return np.round((x - x * share) * 2.0**GELU_DELTA_BITS).astype(np.int64)


GELU_TABLE = {form: gelu_delta(form) for form in GELU_SPANS}


def gelu(x: Array, form: str, gelu_shift: int) -> Array:
    """int16 -> int16, both with the scale 2^-(7 + gelu_shift). Largest error: GELU_MAX_ERROR and one rounding.

    "tanh" gives tanh(c * x) in steps of 1 / TANH_ONE instead. Largest error: TANH_MAX_ERROR; of x that saturates at +-4
    (gelu_shift 6) as much, so steps need not be larger for larger numbers. "exp" gives exp(min(c * x, 0)) in steps of
    1 / EXP_ONE, with EXP_MAX_ERROR. "relu" gives max(x, 0) in steps of any size.
    """
    return _gelu_of_int16(form, gelu_shift)[np.asarray(x).astype(np.int16, copy=False).view(np.uint16)]


@lru_cache
def _gelu_of_int16(form: str, gelu_shift: int) -> Array:
    """Its value for each int16, by the bits of the argument."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int64)
    if form == "relu":
        return np.maximum(x, 0).astype(np.int16)
    index, table = round_shift(np.abs(x), gelu_shift), GELU_TABLE[form]
    delta = np.where(index < len(table), table[np.minimum(index, len(table) - 1)], 0)
    if form == "tanh":
        return (np.where(x < 0, -1, 1) * (TANH_ONE - delta)).astype(np.int16)
    if form == "exp":
        return np.where(x > 0, EXP_ONE, delta).astype(np.int16)
    delta = round_shift(delta, GELU_DELTA_BITS - GELU_INDEX_BITS - gelu_shift)
    return (np.maximum(x, 0) + (delta if form == "softplus" else -delta)).astype(np.int16)


# --- LayerNorm ---------------------------------------------------------------------------------------------------

RSQRT_BITS = 17  # 1/sqrt as a fraction of 2^17
RSQRT_FIRST = 64  # the table's first index: radicands are normalised to [1, 4) with 6 fraction bits
RSQRT_TABLE = np.minimum(
    np.round(2.0**RSQRT_BITS / np.sqrt((np.arange(64, 256) + 0.5) / 64)), (1 << RSQRT_BITS) - 1
).astype(np.int64)
XHAT_BITS = 12  # fraction bits of the normalised value
XHAT_MAX = (1 << 17) - 1
GAMMA_SHIFT = 12


def rsqrt(n: Array) -> tuple[Array, Array]:
    """(r u17, e) with 1/sqrt(n) ~= r / 2^(17 + e), 1 <= n < 2^62: table and one Newton step (relative error < 4e-5)."""
    n = np.asarray(n, np.int64)
    e = np.zeros_like(n)
    for bit in range(2, 64, 2):
        e += n >= np.int64(1) << np.int64(bit) if bit < 63 else 0
    # Q16 of n / 4^e in [1, 4): shift left or right by a known amount, truncating.
    m = np.where(2 * e <= 16, n << np.maximum(16 - 2 * e, 0), n >> np.maximum(2 * e - 16, 0))
    y = RSQRT_TABLE[(m >> 10) - RSQRT_FIRST]
    t = (m * ((y * y) >> RSQRT_BITS)) >> 16
    return np.minimum((y * ((3 << RSQRT_BITS) - t)) >> (RSQRT_BITS + 1), (1 << RSQRT_BITS) - 1), e


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: int, centred: bool = True) -> Array:
    """int16 [R, D] -> int16 [R, D]. With S = sum(x), Q = sum(x^2): (D*x - S) / sqrt(D*Q - S^2 + epsilon) * gamma + beta.

    `gamma`, `beta` int16 [D] in output steps (gamma carries the output scale); `epsilon` = eps * D^2 / scale_x^2, >= 1.
    Without `centred` it is RMSNorm: S counts as zero.
    """
    x = np.asarray(x, np.int64)
    d = x.shape[1]
    total = x.sum(axis=1) if centred else np.zeros(len(x), np.int64)
    n = d * (x * x).sum(axis=1) - total * total + epsilon
    r, e = rsqrt(n)
    xhat = round_shift((d * x - total[:, None]) * r[:, None], RSQRT_BITS - XHAT_BITS + e[:, None])
    return saturate(round_shift(saturate(xhat, XHAT_MAX) * gamma, GAMMA_SHIFT) + beta, INT16_MAX).astype(np.int16)


# --- products of rows --------------------------------------------------------------------------------------------

PRODUCT_SHIFT_MIN = 8
PRODUCT_SHIFT_MAX = 31
TURN_ONE = 1 << GAMMA_SHIFT  # cosine and sine of `turn` are fractions of it, if lengths are to stay


def multiply(x: Array, factor: Array, shift: int) -> Array:
    """saturate(round(x * factor / 2^shift)), element by element: int16 [R, C], factor int16 [R, P].

    A row of `factor` is used again for every P columns of x. `shift`: PRODUCT_SHIFT_MIN..PRODUCT_SHIFT_MAX.
    """
    factor = np.tile(np.asarray(factor, np.int64), (1, x.shape[1] // factor.shape[1]))
    return saturate(round_shift(np.asarray(x, np.int64) * factor, shift), INT16_MAX).astype(np.int16)


def turn(x: Array, factor: Array) -> Array:
    """Pairs of neighbouring columns times pairs of `factor`, both taken for complex numbers: int16 [R, C], [R, P], P even.

    (a, b) * (c, s) = (a*c - b*s, b*c + a*s) / TURN_ONE, each product rounded and then saturated (that with s to XHAT_MAX,
    the result to int16). A row of `factor` is used again for every P columns of x.
    """
    x = np.asarray(x, np.int64)
    factor = np.tile(np.asarray(factor, np.int64), (1, x.shape[1] // factor.shape[1]))
    c, s = (np.repeat(part, 2, axis=1) for part in (factor[:, ::2], factor[:, 1::2]))
    other = x.reshape(len(x), -1, 2)[:, :, ::-1].reshape(x.shape)
    crossed = saturate(round_shift(other * s, GAMMA_SHIFT), XHAT_MAX)
    crossed[:, ::2] *= -1
    return saturate(round_shift(x * c, GAMMA_SHIFT) + crossed, INT16_MAX).astype(np.int16)


# --- windows -----------------------------------------------------------------------------------------------------

WINDOW_SUM_BITS = 29  # signed: of an int16 times an int8, over 64 taps; the builder proves that no sum can leave it
WINDOW_VALUE_BITS = 18  # signed: of that behind the first shift
WINDOW_SHIFT_MAX = 31
WINDOW_ONE = 1 << 14  # multiplier that with WINDOW_ONE_SHIFT keeps a number as it is
WINDOW_ONE_SHIFT = 14


def reduce_window(x: Array, weights: Array | None, inside: Array | None) -> Array:
    """Taps joined, column by column: int16 [taps, R, C] -> int64 [R, C].

    weights int8 [taps, C]: their sum times the weights; `inside` bool [taps, R]: the largest of those that are; else the sum.
    """
    x = np.asarray(x, np.int64)
    if weights is not None:
        return np.einsum("trc,tc->rc", x, np.asarray(weights, np.int64))
    if inside is None:
        return x.sum(axis=0)
    return np.where(inside[:, :, None], x, -INT16_MAX).max(axis=0)


def window_post(acc: Array, mult: Array, before: int, shift: int, bias: Array) -> Array:
    """v = saturate(round(acc / 2^before)) to WINDOW_VALUE_BITS; y = saturate(round(v * mult / 2^shift) + bias).

    acc [R, C], mult u16 [C], bias int16 [C] -> int16 [R, C]; before 0..15, shift 0..WINDOW_SHIFT_MAX.
    """
    v = saturate(round_shift(acc, before), (1 << (WINDOW_VALUE_BITS - 1)) - 1)
    return saturate(round_shift(v * np.asarray(mult, np.int64), shift) + bias, INT16_MAX).astype(np.int16)


# --- router ------------------------------------------------------------------------------------------------------

MAX_EXPERTS, MAX_TOP_K = 64, 4
LOGIT_STEPS = 512  # logit grid: 2^(1/512) per step
EXP2_TABLE = np.round(U16_MAX * 2.0 ** (-np.arange(LOGIT_STEPS) / LOGIT_STEPS)).astype(np.int64)
GATE_BITS = 15


def gate_exponent(distance: Array) -> Array:
    """round-down(65535 * 2^(-distance / 512)) for distance >= 0 (u16)."""
    distance = np.asarray(distance, np.int64)
    return EXP2_TABLE[distance % LOGIT_STEPS] >> np.minimum(distance // LOGIT_STEPS, 16)


def route(logits: Array, top_k: int, renormalise: bool) -> tuple[Array, Array]:
    """Logits int16 [T, E] -> (experts [T, k] best first, ties to the lower index; gate scores u16 [T, k], 2^15 = 1)."""
    logits = np.asarray(logits, np.int64)
    experts = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    weights = gate_exponent(logits.max(axis=1, keepdims=True) - logits)
    chosen = np.take_along_axis(weights, experts, axis=1)
    total = (chosen if renormalise else weights).sum(axis=1, keepdims=True)
    return experts, (chosen << GATE_BITS) // total


def ranked(scores: Array) -> Array:
    """Indices [N] of int16 scores [N], the largest first, ties to the lower index."""
    return np.argsort(-np.asarray(scores, np.int64), kind="stable")


# --- selective scan ----------------------------------------------------------------------------------------------

SCAN_STATES_MAX = 16
SCAN_STATE_BITS = 24  # signed: of a state, of which the result reads the upper 16
SCAN_STATE_MAX = (1 << SCAN_STATE_BITS - 1) - 1
SCAN_FED_BITS = 8  # a state has so many bits less behind the point than step * x times b
SCAN_DECAY_BITS = 16  # a decay is a fraction of 2^16, which is 1
SCAN_EXPONENT_BITS = 14  # fraction of the power of 2 that a decay is; the upper half indexes a table, the lower interpolates
SCAN_SKIP_BITS = 16
SOFTPLUS_ENTRIES = 1024  # over |s| in [0, 8), in steps of 2^-7
SOFTPLUS_BITS = 18  # fraction bits
STEPS_SHIFT_MAX = GELU_SHIFT_MAX  # steps come in units of 2^-(7 + steps_shift)
STEP_SHIFT_MAX = 10  # a step has 18 - step_shift fraction bits
DECAY_SHIFTS = (4, 8, 12, 16)  # by ScanShifts.decay
SCAN_SHIFT_MAX = 47
DECAY_TABLE_BITS = SCAN_EXPONENT_BITS // 2

SOFTPLUS_TABLE = np.round(np.log1p(np.exp(-np.arange(SOFTPLUS_ENTRIES) / 128)) * 2.0**SOFTPLUS_BITS).astype(np.int64)
DECAY_TABLE = np.round(2.0 ** (SCAN_DECAY_BITS - np.arange(2**DECAY_TABLE_BITS + 1) / 2**DECAY_TABLE_BITS)).astype(np.int64)
DECAY_SLOPE = DECAY_TABLE[:-1] - DECAY_TABLE[1:]  # down to the next entry


@dataclass(frozen=True)
class ScanShifts:
    """What a scan shifts by: see `scan`."""

    steps: int  # 0..STEPS_SHIFT_MAX
    step: int  # 0..STEP_SHIFT_MAX
    fed: int  # 0..31
    decay: int  # index in DECAY_SHIFTS
    skip: int  # 0..31
    out: int  # 0..SCAN_SHIFT_MAX

    @property
    def fit(self) -> bool:
        """Whether each is one that the machine has."""
        most = (STEPS_SHIFT_MAX, STEP_SHIFT_MAX, 31, len(DECAY_SHIFTS) - 1, 31, SCAN_SHIFT_MAX)
        return all(0 <= shift <= limit for shift, limit in zip(astuple(self), most, strict=True))


def _half_up(x: Array, shift: int) -> Array:
    """x / 2^shift to the nearest, a half up. The scan's rounding: the half is a constant of its adders, whatever the sign."""
    return (np.asarray(x, np.int64) + ((1 << shift) >> 1)) >> shift


def softplus_step(s: Array, shifts: ScanShifts) -> Array:
    """log(1 + exp(s)) of int16 s in units of 2^-(7 + shifts.steps): u16 with SOFTPLUS_BITS - shifts.step fraction bits.

    ReLU and a table of what is missing, 0 beyond it. Largest relative error of small results: half a table step, 0.4 %.
    """
    s = np.asarray(s, np.int64)
    index = _half_up(np.abs(s), shifts.steps)
    rest = np.where(index < SOFTPLUS_ENTRIES, SOFTPLUS_TABLE[np.minimum(index, SOFTPLUS_ENTRIES - 1)], 0)
    whole = (np.maximum(s, 0) << (SOFTPLUS_BITS - 7 - shifts.steps)) + rest
    return np.minimum(_half_up(whole, shifts.step), U16_MAX)


def scan_decay(step: Array, rate: Array, shift: int) -> Array:
    """2^-(step * rate / 2^(14 + shift)) in units of 2^-16, 0..65536, of two u16. Largest error: 2^-13."""
    exponent = (np.asarray(step, np.int64) * rate) >> shift
    whole, part = exponent >> SCAN_EXPONENT_BITS, exponent & ((1 << SCAN_EXPONENT_BITS) - 1)
    index, rest = part >> DECAY_TABLE_BITS, part & ((1 << DECAY_TABLE_BITS) - 1)
    value = DECAY_TABLE[index] - _half_up(DECAY_SLOPE[index] * rest, DECAY_TABLE_BITS)
    return np.where(whole > SCAN_DECAY_BITS, 0, value >> np.minimum(whole, SCAN_DECAY_BITS))


def scan(x: Array, steps: Array, mix: Array, params: Array, shifts: ScanShifts, backwards: bool = False) -> Array:
    """A selective scan over the rows, from states of zero: int16 [T, C] of x and steps [T, C], mix [T, 2 N], params [1 + N, C].

    The first row of params is the skip of each channel (int16), the others the rates of its states (u16 as int16); mix holds
    b and g. `backwards`: from the last row to the first. With d = softplus_step and f = saturate(d * x / 2^shifts.fed) a state
    of SCAN_STATE_BITS becomes saturate((decay * state + f * b * 2^8) / 2^16), and the result is
    saturate((sum over states of g * (state >> 8) + (skip * x << 16 >> shifts.skip)) / 2^shifts.out). All roundings but the two
    plain shifts are to the nearest, halves up.
    """
    if backwards:
        return scan(x[::-1], steps[::-1], mix[::-1], params, shifts)[::-1]
    x, mix = np.asarray(x, np.int64), np.asarray(mix, np.int64)
    skip, rates = np.asarray(params[0], np.int64), np.asarray(params[1:]).astype(np.int16).view(np.uint16).astype(np.int64)
    count = len(rates)
    step = softplus_step(steps, shifts)
    fed = saturate(_half_up(step * x, shifts.fed), INT16_MAX)
    skipped = (skip * x << SCAN_SKIP_BITS) >> shifts.skip
    state, y = np.zeros(rates.shape, np.int64), np.empty(x.shape, np.int64)
    for i, (b, g) in enumerate(zip(mix[:, :count, None], mix[:, count:, None], strict=True)):
        kept = scan_decay(step[i], rates, DECAY_SHIFTS[shifts.decay]) * state
        state = saturate(_half_up(kept + (fed[i] * b << SCAN_FED_BITS), SCAN_DECAY_BITS), SCAN_STATE_MAX)
        y[i] = (g * (state >> SCAN_FED_BITS)).sum(axis=0) + skipped[i]
    return saturate(_half_up(y, shifts.out), INT16_MAX).astype(np.int16)
