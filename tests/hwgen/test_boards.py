"""Boards: every TOML file makes a valid Config, faults are named."""

import pytest

from hwgen import boards
from hwgen.config import Config
from hwgen.errors import UserError


def test_known_boards():
    assert {"zcu104", "zcu102", "kv260", "ultra96v2", "pynq-z2", "ulx3s-85f"} <= set(boards.names())


@pytest.mark.parametrize("name", boards.names())
def test_board_is_complete_and_its_array_fits_its_multipliers(name):
    board = boards.load(name)
    config = board.make_config()
    assert isinstance(config, Config)
    assert config.macs_per_cycle <= board.resources["dsp"] * board.macs_per_dsp
    assert config.weight_ports + 1 <= board.port_count
    assert config.clock_mhz == board.clock_mhz
    assert config.outstanding <= board.port_outstanding


def test_zcu104_numbers():
    board = boards.load("zcu104")
    assert board.part == "xczu7ev-ffvc1156-2-e"
    assert board.resources == {"lut": 230400, "ff": 460800, "dsp": 1728, "bram": 312, "uram": 96}
    assert board.make_config().macs_per_cycle == 3072
    assert board.dram_bytes_per_second / 300e6 == pytest.approx(43, abs=0.5)


def test_unknown_board_lists_the_known():
    with pytest.raises(UserError, match="unknown board 'zcu1O4'; known are kv260, .*zcu104"):
        boards.load("zcu1O4")


def test_settings_are_applied_and_checked():
    board = boards.load("zcu104")
    assert board.make_config({"array_outputs": "16", "clock_mhz": "250"}).array_outputs == 16
    with pytest.raises(UserError, match="array_outputs=7"):
        board.make_config({"array_outputs": "7"})
    with pytest.raises(UserError, match="no such field"):
        board.make_config({"array_rows": "8"})
    with pytest.raises(UserError, match="axi_bytes=64.*zcu104.*128 bits"):
        board.make_config({"axi_bytes": "64"})
    with pytest.raises(UserError, match="weight_ports=4: .* the 4 of pynq-z2"):
        boards.load("pynq-z2").make_config({"weight_ports": "4"})


def test_bad_description_is_named():
    with pytest.raises(UserError, match="board x: .*'fabric'"):
        boards.parse("x", "part = 'y'")
    with pytest.raises(UserError, match="board x: "):
        boards.parse("x", "part = ")


def test_table_has_every_board():
    table = boards.table()
    assert len(table.splitlines()) == 1 + len(boards.names())
