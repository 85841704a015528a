"""Multipliers of a family that the design takes: the products its units make, cut as Yosys' mul2dsp cuts them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..config import Config
from ..latency import PACKED_BITS, PIECE, columns_bits, square_bits, sum_bits
from ..numerics import ACC_BITS, RSQRT_BITS, SCAN_DECAY_BITS, SCAN_STATE_BITS, XHAT_MAX

LEAST_WIDTH, LEAST_PRODUCT = 2, 9  # bits below which Yosys takes LUTs


@dataclass(frozen=True)
class Multiplier:
    """A family's multiplier. partial: bits of the wider operand in a piece of a product that needs several."""

    a: int
    b: int
    partial: int
    signed_only: bool


MULTIPLIERS = {
    "ultrascale+": Multiplier(27, 18, 18, True),
    "7-series": Multiplier(25, 18, 18, True),
    "ecp5": Multiplier(18, 18, 18, False),
}


def pieces(kind: Multiplier, a: int, b: int, signed: bool = False) -> int:
    """Multipliers of one product of a x b bits."""
    if kind.signed_only and not signed:
        return pieces(kind, a + 1, b + 1, True)
    a, b = max(a, b), min(a, b)
    if b < LEAST_WIDTH or a + b < LEAST_PRODUCT:
        return 0
    for width, most in ((a, kind.a), (b, kind.b)):
        if width > most:
            step = kind.partial - kind.signed_only
            cuts = -(-(width - most) // step)
            other = b if width == a else a
            return cuts * pieces(kind, kind.partial, other, True) + pieces(kind, width - cuts * step, other, True)
    return 1


def _by_constant(kind: Multiplier, bits: int, factor: int) -> int:
    """Multipliers of a product of `bits` by a constant: none for a power of two."""
    return 0 if factor & (factor - 1) == 0 else pieces(kind, bits, factor.bit_length())


def multipliers(config: Config, family: str) -> dict[str, int]:
    """Multipliers of every unit that has some."""
    c, kind = config, MULTIPLIERS[family]

    def count(a: int, b: int, signed: bool = False) -> int:
        return pieces(kind, a, b, signed)

    columns, total, squares = columns_bits(c), sum_bits(c), square_bits(c)
    # Wide products are cut by the unit itself, see norm_pipeline.multiply.
    row = 0
    for a_bits, b_bits in ((total, total), (squares, columns)):
        widths = [[min(most, bits - i) for i in range(0, bits, most)] for bits, most in zip((a_bits, b_bits), PIECE, strict=True)]
        row += sum(count(a, b) for a, b in itertools.product(*widths))
    row += count(18, RSQRT_BITS) + count(RSQRT_BITS, RSQRT_BITS + 2)
    lane = count(16, 16, True) + count(16, columns + 1, True) + count(total + 1, RSQRT_BITS + 1, True)
    lane += count(XHAT_MAX.bit_length() + 1, 16, True)
    scan = count(16, 16) + count(SCAN_DECAY_BITS + 2, SCAN_STATE_BITS, True) + 2 * count(16, 16, True)  # of a lane
    packed = kind.a >= PACKED_BITS
    found = {
        "array": c.macs_per_cycle // 2 * (1 if packed else count(PACKED_BITS, 8, True)),
        "post": c.array_outputs * 2 * count(ACC_BITS - 1, 16),
        "norm": c.chunk * lane + row,
        "window": bool(c.window_chunks) * 2 * count(16, 16),
        "scan": c.chunk * bool(c.scan_states) * (count(17, 16, True) + count(16, 16, True)) + c.chunk * c.scan_states * scan,
        "issuer": 3 * count(12, 16),
        "reader": count(16, 16),
        "load": count(16, 16) + _by_constant(kind, 32, c.chunk_beats) + _by_constant(kind, 32, c.narrow_chunk_beats),
        "store": count(16, 16) + _by_constant(kind, 32, c.chunk_beats),
        "weights": c.weight_ports * _by_constant(kind, 32, c.slice_beats),
    }
    return {unit: n for unit, n in found.items() if n}
