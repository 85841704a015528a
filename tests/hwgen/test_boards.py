"""Boards: every TOML file makes a valid Config, faults are named."""

import json
from importlib import resources

import numpy as np
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


@pytest.mark.parametrize(
    "line, other, said",
    [
        ("family = ", "family = 3", "family: 3 is no text"),
        ("lut = ", "lut = '9'", "resources.lut = '9': must be a whole number, at least 0"),
        ("lut = ", "luts = 9", r"\[resources\]: unknown key 'luts'; known are lut, ff"),
        ("bram_kbit = ", "bram_kbit = 0", "fabric.bram_kbit = 0: must be a whole number from 1 to"),
        ("clock_mhz = ", "clock_mhz = nan", "fabric.clock_mhz = nan: must be a number from 1 to 100000"),
        ("peak_gb_per_s = ", "peak_gb_per_s = [1]", r"dram.peak_gb_per_s.* = \[1\]: must be a number"),
        ("usable = ", "usable = 75", "dram.usable = 75: must be a number from 0.01 to 1"),
        ("count = ", "count = true", "ports.count = True: must be a whole number"),
        ("bits = ", "bits = 48", "ports.bits = 48: must be 32, 64, 128, 256, 512"),
        ("rails = ", "rails = '12V'", "power.rails = '12V': must be a list of texts"),
        ("idle_w = ", "idle = 1", "unknown key 'idle'"),
        ("[config]", "[Config]", "unknown key 'Config'"),
        ("[dram]", "dram = 3\n[other]", "dram"),
    ],
)
def test_every_value_of_a_board_file_is_judged(tmp_path, line, other, said):
    text = (resources.files("hwgen.board_files") / "zcu104.toml").read_text(encoding="utf-8")
    lines = [other if held.startswith(line) else held for held in text.splitlines()]
    assert lines != text.splitlines()
    (file := tmp_path / "mine.toml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"board file {file}: .*{said}"):
        boards.load(str(file))


def test_table_has_every_board():
    table = boards.table()
    assert len(table.splitlines()) == 1 + len(boards.names())


def test_a_new_board_is_a_file(hwgen, tmp_path):
    """A copy with a new part and Config builds like the boards that come with hwgen."""
    text = (resources.files("hwgen.board_files") / "ulx3s-85f.toml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("LFE5U-85F-6BG381C", "LFE5U-45F"), encoding="utf-8")
    board = boards.load(str(mine))
    assert (board.name, board.part) == ("mine", "LFE5U-45F")
    model = tmp_path / "micro.onnx"
    assert hwgen("example", "m3vit-micro", "-o", model)[0] == 0
    assert hwgen("build", model, "--board", mine, "-o", tmp_path / "b")[0] == 0
    mine.unlink()  # the bundle knows its board
    images, outputs = model.with_name("micro_test.npz"), []
    for engine in ("golden", "machine"):
        answer = tmp_path / f"{engine}.npz"
        assert hwgen("run", tmp_path / "b", "--engine", engine, "--input", images, "--output", answer)[0] == 0
        outputs.append(np.load(answer))
    assert all(np.array_equal(outputs[0][name], outputs[1][name]) for name in outputs[0].files)
    assert boards.from_json(boards.to_json(board)) == board
    code, _, err = hwgen("build", model, "--board", tmp_path / "other.toml")
    assert code == 2 and "other.toml: No such file" in err


def test_boards_as_json(hwgen):
    code, out, _ = hwgen("boards", "--json")
    found = json.loads(out)
    assert code == 0 and sorted(found) == boards.names() and found["kv260"]["resources"]["uram"] == 64
