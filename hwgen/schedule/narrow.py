"""Weight words in fewer bits: lossless, for int8 weights that lie on coarser grids in groups along the inputs.

A group is what a port delivers of a weight word in a beat: `axi_bytes` weights. Where each of them is a code of few bits
times one of numerics.NARROW_FACTORS, the codes and the factor's number are stored, see isa.Stream. Nothing here decides what
a weight is: the quantiser makes weights that fit, this finds them, and words that do not fit stay as they are among the others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache

import numpy as np

from ..config import Config
from ..isa import NARROW_GRANULES as GRANULES
from ..isa import NARROW_NUMBER_BITS
from ..numerics import INT8_MAX, NARROW_BITS, NARROW_FACTORS

Array = np.ndarray
FIRST = 4  # weights of a group that tell most groups without a common factor
MOST = max(NARROW_FACTORS)


@cache
def _numbers() -> Array:
    """[greatest common divisor, least factor] -> number of the smallest factor that will do, 0 for none."""
    found = np.zeros((INT8_MAX + 2, INT8_MAX + 2), np.uint8)
    for divisor in range(INT8_MAX + 2):
        for least in range(MOST + 1):
            good = [i for i, f in enumerate(NARROW_FACTORS) if f >= max(least, 1) and divisor % f == 0]
            found[divisor, least] = min(good, default=0)
    return found


def factors(groups: Array, bits: int) -> Array:
    """Number of the factor of each group of int8 weights [n, G] in codes of `bits` bits, uint8 [n]; 0 where there is none."""
    groups, most = np.asarray(groups, np.int16), (1 << bits - 1) - 1
    least = np.maximum(-(-groups.max(axis=1) // most), -(groups.min(axis=1) // (most + 1)))
    least = np.maximum(least, 1)
    magnitude = np.abs(groups)
    found = _numbers()[np.gcd.reduce(magnitude[:, :FIRST], axis=1), least]
    maybe = np.flatnonzero(found)  # a factor of all is one of the first few
    found[maybe] = _numbers()[np.gcd.reduce(magnitude[maybe], axis=1), least[maybe]]
    return found


def units(config: Config, words: Array) -> Array:
    """Words [n, array_inputs] as what the ports deliver of them, beat by beat: [n, ports, slice_beats, axi_bytes]."""
    padded = np.zeros((len(words), config.weight_ports * config.slice_bytes), words.dtype)
    padded[:, : words.shape[1]] = words
    return padded.reshape(len(words), config.weight_ports, config.slice_beats, config.axi_bytes)


def beats(config: Config, words: int, fitting: int, bits: int) -> int:
    """Beats of each port for so many words, of which `fitting` are stored in `bits` bits."""
    headers = -(-words * config.slice_beats // config.narrow_block)
    granules = config.slice_beats * (GRANULES * (words - fitting) + bits * fitting)
    return -(-(GRANULES * headers + granules) // GRANULES)


def fitting(config: Config, weights: Array) -> dict[int, int]:
    """Of int8 weights [N, K], K whole words, how many words fit codes of each number of bits."""
    groups = units(config, weights.reshape(-1, config.array_inputs))
    flat = groups.reshape(-1, config.axi_bytes)
    return {bits: int(factors(flat, bits).reshape(len(groups), -1).all(axis=1).sum()) for bits in NARROW_BITS}


_known: dict[tuple[object, ...], tuple[weakref.ref[Array], dict[int, int]]] = {}


def fitting_once(config: Config, source: Array, key: tuple[object, ...], arranged: Callable[[], Array]) -> dict[int, int]:
    """`fitting` of `arranged`, the arrangement of `source` that `key` names; kept as long as `source` lives."""
    whole = id(source), config.array_inputs, config.weight_ports, config.axi_bytes, *key
    kept = _known.get(whole)
    if kept is None or kept[0]() is not source:
        kept = weakref.ref(source, lambda _: _known.pop(whole, None)), fitting(config, arranged())
        _known[whole] = kept
    return kept[1]


def choose(config: Config, words: int, found: dict[int, int]) -> tuple[int, int]:
    """(bits of a code, beats of each port): the fewest beats; no bits where plain words take no more."""
    plain = words * config.slice_beats
    best = min(NARROW_BITS, key=lambda bits: beats(config, words, found[bits], bits))
    least = beats(config, words, found[best], best)
    return (best, least) if least < plain else (0, plain)


def stripe(config: Config, words: Array) -> Array:
    """Plain words as beats of the ports: uint8 [words * slice_beats, ports, axi_bytes]."""
    return units(config, words).transpose(0, 2, 1, 3).reshape(-1, config.weight_ports, config.axi_bytes)


def pack(config: Config, words: Array, weights: Array, bits: int) -> Array:
    """Words uint8 [n, array_inputs] in codes of `bits` bits, as isa.Stream says: uint8 [beats, ports, axi_bytes].

    weights: which words are weights, bool [n]; the others are parameters and stay as they are.
    """
    lanes, ports, block = config.axi_bytes, config.weight_ports, config.narrow_block
    every = units(config, words.view(np.int8))
    number: Array = factors(every.reshape(-1, lanes), bits).reshape(every.shape[:-1])
    number[~(weights & number.all(axis=(1, 2)))] = 0
    # By port: units in the order in which they come.
    every = every.transpose(1, 0, 2, 3).reshape(ports, -1, lanes)
    number = number.transpose(1, 0, 2).reshape(ports, -1)
    count = number.shape[1]
    narrow = number[0] > 0
    sizes = np.where(narrow, bits, GRANULES)
    at = np.cumsum(sizes) - sizes + GRANULES * (np.arange(count) // block + 1)
    starts = np.arange(0, count, block)
    total = beats(config, len(words), int(narrow.sum()) // config.slice_beats, bits)
    stream = np.zeros((ports, total * GRANULES * lanes), np.uint8)
    headers = np.zeros((ports, len(starts) * block), np.uint8)
    headers[:, :count] = number
    pieces: tuple[tuple[Array, Array, int], ...] = (
        (headers.reshape(ports, len(starts), block), at[starts] - GRANULES, NARROW_NUMBER_BITS),
        (every[:, ~narrow].view(np.uint8), at[~narrow], 8),
        (_codes(every[:, narrow], number[:, narrow]), at[narrow], bits),
    )
    for part, where, width in pieces:
        digits = (part[..., None] >> np.arange(width, dtype=np.uint8)) & 1
        places = where[:, None] * lanes + np.arange(part.shape[2] * width)
        stream[:, places.reshape(-1)] = digits.reshape(ports, -1)
    return np.packbits(stream, axis=1, bitorder="little").reshape(ports, total, lanes).transpose(1, 0, 2)


def _codes(groups: Array, number: Array) -> Array:
    """Weights divided by their factors, two's complement in uint8."""
    return (groups // np.array(NARROW_FACTORS, np.int8)[number][..., None].clip(1)).view(np.uint8)
