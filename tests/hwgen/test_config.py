"""Config: derived shapes by hand, and every bound with the offending value in the message."""

from dataclasses import replace

import pytest

from hwgen.config import Config
from hwgen.errors import UserError


def test_derived_shapes():
    odd = Config(array_outputs=12, array_inputs=20, weight_ports=3, axi_bytes=8, banks=2, bank_words=64)
    assert (odd.chunk, odd.input_chunks, odd.output_chunks, odd.word_chunks) == (4, 5, 3, 8)
    assert (odd.bank_chunks, odd.scratch_chunks) == (512, 1024)
    assert odd.chunk_beats == 1  # 4 elements of 2 bytes
    assert (odd.slice_bytes, odd.slice_beats) == (8, 1)  # 7 bytes of 20, in whole beats
    assert (odd.params_per_word, odd.param_words(12), odd.param_words(1)) == (5, 3, 1)
    assert odd.macs_per_cycle == 240


@pytest.mark.parametrize("name, value, message", [
    ("array_outputs", 15, "must be even"),
    ("array_outputs", 6, "at least 8"),
    ("array_outputs", 4098, "at most 4096"),
    ("array_inputs", 7, "at least 8"),
    ("array_inputs", 4162, "at most 4160: a sum would not fit 27 bits"),
    ("banks", 3, "power of two"),
    ("banks", 1, "at least 2"),
    ("bank_words", 1000, "power of two"),
    ("acc_rows", 8192, "at most 4096"),
    ("scale_entries", 1 << 17, "at most 65536"),
    ("queue_entries", 1 << 17, "at most 65536"),
    ("max_experts", 65, "at most 64"),
    ("norm_columns", 1 << 16, "at most 32768"),
    ("window_chunks", -1, "must not be negative"),
    ("window_chunks", 2, "more than the 1 of array_inputs"),
    ("window_rows", 0, "must be positive"),
    ("window_rows", 5, "at most 4"),
    ("weight_words", 32, "holds no two tiles"),
    ("weight_words", 1 << 30, "at most 262144"),
    ("weight_ports", 5, "at most 4"),
    ("axi_bytes", 12, "must be 4, 8, 16, 32 or 64"),
    ("burst_beats", 32, "must be 1, 2, 4, 8 or 16"),
    ("outstanding", 0, "must be positive"),
    ("outstanding", 1 << 20, "at most 256"),
    ("outstanding", True, "not a whole number"),
    ("banks", 2.0, "not a whole number"),
    ("clock_mhz", float("nan"), "not a finite number"),
    ("clock_mhz", -1.0, "must be positive"),
    ("clock_mhz", "fast", "not a finite number"),
])  # fmt: skip
def test_bad_value_is_named(name, value, message):
    with pytest.raises(UserError, match=f"Config {name}={value!r}.*{message}"):
        replace(Config(), **{name: value})


def test_the_largest_values_are_accepted():
    Config(acc_rows=4096, scale_entries=1 << 16, queue_entries=1 << 16, max_experts=64, norm_columns=1 << 15)
    Config(array_inputs=4160)
    Config(banks=16, bank_words=1 << 20)


def test_array_beyond_any_part():
    with pytest.raises(UserError, match="array_outputs=2048, array_inputs=2048: 4194304 multipliers, at most 131072"):
        Config(array_outputs=2048, array_inputs=2048, weight_words=1 << 13)


def test_scratchpad_beyond_an_address():
    with pytest.raises(UserError, match="banks=16, bank_words=2097152: 33554432 chunks .* reaches 16777216"):
        Config(banks=16, bank_words=1 << 21)


def test_settings():
    config = Config().replace({"array_outputs": "48", "clock_mhz": "250"})
    assert (config.array_outputs, config.clock_mhz) == (48, 250.0)
    assert Config.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="--set banks=four: not a whole number"):
        Config().replace({"banks": "four"})
    with pytest.raises(UserError, match="--set bank: Config has no such field; it has acc_rows"):
        Config().replace({"bank": "4"})
    with pytest.raises(UserError, match="Config has no field 'bank'"):
        Config.from_dict({"bank": 4})
