"""What steers many lanes comes from a register that the vendor's tool may copy, never from logic; resets pass registers."""

import re

import pytest
from amaranth.back import verilog

from hwgen import boards, latency
from hwgen.config import Config
from hwgen.rtl import accumulator, array, norm, post, reader, tiles, vector, window
from hwgen.rtl import top as shell
from hwgen.synth.partition import split

CONFIG = Config(array_outputs=8, array_inputs=32, window_chunks=2, window_rows=2)
STEERING = {
    accumulator.Accumulator: ["first_near", "store", "write_row"],
    array.MacArray: ["swap_near_0", "swap_near_7", "x_near_0", "w0_near_7", "w1_near_3"],
    norm.Norm: ["is_product", "is_turning", "of_centred"],
    post.PostProcessor: ["coarse_0", "coarse_1", "fine_0", "fine_1", "row_mult_near", "bias_bank", "residual_near", "signed_max"]
    + [f"gelu_{name}" for name in ("exp_0", "shift_1", "first_2", "table_3", "entries_3", "used_3", "shift_5")]
    + [f"gelu_{name}_6" for name in ("tanh", "alone", "rectified", "added")],
    reader.RowReader: ["factor_4", "lanes_1", "shift_6"],
    tiles.TileLoader: ["params_popped", "odd_first", "w_quantised", "take_0", "take_1"],
    vector.VectorUnit: ["word", "chosen"],
    window.Window: ["came_tap", "came_weight", "came", "chunk_near", "row_near"]
    + ["mult_near", "bias_near", "mult_came", "total_0"],
}


@pytest.mark.parametrize("unit", STEERING, ids=lambda unit: unit.__name__)
def test_registers_may_be_copied(unit):
    text = verilog.convert(unit(CONFIG), platform=shell.VerilogPlatform(), emit_src=False, strip_internal_attrs=True)
    declared = r"\(\* max_fanout = 32'd\d+ \*\)\s+\(\* shreg_extract = \"no\" \*\)\s+(?:reg|wire|output) (?:\[\d+:0\] )?\\?(\w+)"
    wide = set(re.findall(declared, text))
    assert set(STEERING[unit]) <= wide, set(STEERING[unit]) - wide


def test_one_register_resets_every_unit():
    modules = split(shell.emit(Config(array_outputs=8, array_inputs=8))["hwgen_top.v"])
    assert re.search(r"max_fanout = 32'd64 \*\)\s+\(\* shreg_extract.*\s+reg machine_reset ", modules["hwgen_top"])
    direct = {name for name, text in modules.items() if re.search(r"^ +input rst;", text, re.M)}
    assert all(name == "hwgen_top" or name.startswith("hwgen_top.control") for name in direct), direct
    assert sum("machine_reset" in text for text in modules.values()) > 20


@pytest.mark.parametrize("name", boards.names())
def test_strobes_without_reset_are_gone_when_it_ends(name):
    assert latency.array(boards.load(name).make_config({})) + 2 < latency.RESET
