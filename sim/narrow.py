"""What the weight stream makes of narrow weights: the executable definition of isa.Stream's codes."""

from __future__ import annotations

import numpy as np

from hwgen.config import Config
from hwgen.isa import NARROW_GRANULES as GRANULES
from hwgen.isa import NARROW_NUMBER_BITS
from hwgen.numerics import NARROW_FACTORS, widen

from .walked import MachineFault

Array = np.ndarray


def expand(config: Config, beats: Array, units: int, bits: int) -> Array:
    """Units of one port, uint8 [units, lanes], from its beats uint8 [n, lanes] with codes of `bits` bits."""
    lanes, block = config.axi_bytes, config.narrow_block
    stream = np.unpackbits(beats.reshape(-1), bitorder="little")
    found, at = np.empty((units, lanes), np.uint8), 0

    def take(places: Array, count: int, width: int) -> Array:
        """`count` numbers of `width` bits at each place, counted in granules."""
        index = places[:, None] * lanes + np.arange(count * width)
        if index.size and index.max() >= stream.size:
            raise MachineFault(f"narrow weights end after {len(beats)} beats, of {units} units")
        digits = stream[index].reshape(len(places), count, width)
        return (digits << np.arange(width, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)

    for first in range(0, units, block):
        count = min(block, units - first)
        number = take(np.array([at]), block, NARROW_NUMBER_BITS)[0, :count]
        sizes = np.where(number > 0, bits, GRANULES)
        places = at + GRANULES + np.cumsum(sizes) - sizes
        made, narrow = found[first : first + count], number > 0
        made[~narrow] = take(places[~narrow], lanes, 8)
        codes = take(places[narrow], lanes, bits).astype(np.int16)
        codes -= (codes >> bits - 1) << bits
        made[narrow] = widen(codes, np.array(NARROW_FACTORS)[number[narrow]][:, None]).view(np.uint8)
        at += GRANULES + int(sizes.sum())
    if -(-at // GRANULES) != len(beats):
        raise MachineFault(f"{units} units of narrow weights take {-(-at // GRANULES)} beats, not {len(beats)}")
    return found
