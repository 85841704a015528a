"""Narrow weights: what is packed comes out again, bit for bit, in as many beats as are counted."""

import numpy as np
import pytest

from hwgen.config import Config
from hwgen.numerics import INT8_MAX, NARROW_BITS, NARROW_FACTORS
from hwgen.schedule import narrow
from hwgen.sim.narrow import expand

SHAPES = {
    "one port": {"array_inputs": 16, "weight_ports": 1, "axi_bytes": 16},
    "several": {"array_inputs": 64, "weight_ports": 4, "axi_bytes": 16},
    "three beats a word": {"array_inputs": 24, "weight_ports": 1, "axi_bytes": 8},
    "padded": {"array_outputs": 12, "array_inputs": 20, "weight_ports": 3, "axi_bytes": 4},
}


def config_of(shape):
    return Config(narrow_weights=1, **({"array_outputs": 16} | SHAPES[shape]))


def weights_of(config, words, bits, rng, share=1.0):
    """int8 words [words, array_inputs]: `share` of them, about, in codes of `bits` bits."""
    size = 1, config.weight_ports, config.slice_beats, config.axi_bytes
    factors = rng.choice(NARROW_FACTORS[1:], (words, *size[1:3], 1))
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    least, most = np.maximum(-(INT8_MAX // factors), low), np.minimum(INT8_MAX // factors, high)
    units = rng.integers(least, most + 1, (words, *size[1:])) * factors
    flat = units.reshape(words, -1)[:, : config.array_inputs].astype(np.int8)
    plain = rng.random(words) >= share
    flat[plain] = rng.integers(-INT8_MAX, INT8_MAX + 1, (int(plain.sum()), config.array_inputs))
    return flat


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", NARROW_BITS)
@pytest.mark.parametrize("words, share", [(1, 1.0), (70, 1.0), (70, 0.6), (33, 0.0)])
def test_packed_words_come_out_as_they_were(shape, bits, words, share):
    config, rng = config_of(shape), np.random.default_rng(words)
    flat = weights_of(config, words, bits, rng, share)
    weights = rng.random(words) < 0.8
    packed = narrow.pack(config, flat.view(np.uint8), weights, bits)
    numbers = narrow.factors(narrow.units(config, flat).reshape(-1, config.axi_bytes), bits)
    fits = weights & (numbers.reshape(words, -1) > 0).all(axis=1)
    assert packed.shape == (narrow.beats(config, words, int(fits.sum()), bits), config.weight_ports, config.axi_bytes)
    units = words * config.slice_beats
    found = np.stack([expand(config, packed[:, p], units, bits) for p in range(config.weight_ports)], axis=1)
    found = found.reshape(words, config.slice_beats, config.weight_ports, -1).transpose(0, 2, 1, 3).reshape(words, -1)
    np.testing.assert_array_equal(found[:, : config.array_inputs].view(np.int8), flat)


@pytest.mark.parametrize("bits", NARROW_BITS)
def test_factors_are_those_that_some_code_times_them_makes(bits):
    rng = np.random.default_rng(bits)
    groups = [rng.integers(-20, 21, (4000, 8)) * rng.integers(1, 7, (4000, 1)), np.zeros((1, 8)), np.full((1, 8), -127)]
    groups = np.concatenate(groups).astype(np.int8)
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    for group, number in zip(groups.astype(int), narrow.factors(groups, bits), strict=True):
        whole = [i for i, f in enumerate(NARROW_FACTORS) if f and not (group % f).any()]
        codes = {i: group // NARROW_FACTORS[i] for i in whole}
        assert number == min((i for i in whole if low <= codes[i].min() and codes[i].max() <= high), default=0)


def test_the_fewest_beats_are_chosen_and_plain_words_where_none_are_saved():
    config, rng = config_of("several"), np.random.default_rng(0)
    for bits in NARROW_BITS:
        flat = weights_of(config, 200, bits, rng)
        found = narrow.choose(config, 203, narrow.fitting(config, flat))
        assert found == (bits, narrow.beats(config, 203, 200, bits)), bits
    plain = rng.integers(-INT8_MAX, INT8_MAX + 1, (200, 64)).astype(np.int8)
    assert narrow.choose(config, 203, narrow.fitting(config, plain)) == (0, 203)
