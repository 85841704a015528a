"""Which Config a build takes: what is set, else what the board stores, else what explore chooses, and that it says so."""

import re
import shlex
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from hwgen import boards, explore, steps
from hwgen.example import write

TEXT = (resources.files("hwgen.board_files") / "ulx3s-85f.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> Path:
    return write("m3vit-micro", tmp_path_factory.mktemp("micro") / "micro.onnx")[0]


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A board that stores no Config."""
    path = tmp_path_factory.mktemp("boards") / "bare.toml"
    path.write_text(TEXT.partition("[config]")[0], encoding="utf-8")
    return path


def built(bundle: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bundle)): p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()}


def test_a_board_without_a_config_gets_one_for_every_network(hwgen, micro, bare, tmp_path):
    """The line that tells the choice reproduces it, to the byte; so does the same build again."""
    code, _, err = hwgen("build", micro, "--board", bare, "-o", tmp_path / "a")
    assert code == 0, err
    line = next(line for line in err.splitlines() if line.startswith("configure"))
    assert "bare stores no Config" in line and re.search(r"array \d+ x \d+, .*limited by", line)
    settings = shlex.split(line[line.index("--set") :])
    code, _, err = hwgen("build", micro, "--board", bare, "-o", tmp_path / "b", *settings)
    assert code == 0 and "as it was set" in err
    assert hwgen("build", micro, "--board", bare, "-o", tmp_path / "c")[0] == 0
    assert built(tmp_path / "a") == built(tmp_path / "b") == built(tmp_path / "c")


def test_one_set_field_turns_the_choice_off(micro, bare, monkeypatch):
    monkeypatch.setattr(explore, "explore", None)
    for board in (bare, "ulx3s-85f"):
        state = steps.build({"": micro}, Path("x"), board=str(board), settings={"acc_rows": "32"}, stop_after="configure")
        assert state.config == boards.load(str(board)).make_config({"acc_rows": "32"})
    state = steps.build({"": micro}, Path("x"), board="ulx3s-85f", settings={"calibration": "max"}, stop_after="configure")
    assert state.config == boards.load("ulx3s-85f").make_config()  # a field of Quantisation chooses no Config


def test_a_stored_config_that_does_not_fit(hwgen, micro, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    board = tmp_path / "narrow.toml"
    board.write_text(TEXT.replace("bank_words = 8192", "bank_words = 16"), encoding="utf-8")
    code, _, err = hwgen("build", micro, "--board", board, "--stop-after", "configure")
    assert code == 0
    assert "does not fit the Config stored with narrow (" in err and "raise bank_words" in err and "--set bank_words=" in err


def test_explore_can_be_asked_for(hwgen, micro):
    code, _, err = hwgen("build", micro, "--board", "ulx3s-85f", "--explore", "--stop-after", "configure")
    assert code == 0 and "--explore asks for it" in err and "--set array_outputs=" in err
    code, _, err = hwgen("build", micro, "--board", "ulx3s-85f", "--stop-after", "configure")
    assert code == 0 and "the Config stored with ulx3s-85f" in err
    code, _, err = hwgen("build", micro, "--explore", "--set", "array_outputs=8")
    assert code == 2 and "--explore chooses the Config, and --set array_outputs fixes it" in err


def test_ports_of_a_board_without_a_config(bare):
    board = boards.load(str(bare))
    config = board.make_config()
    assert (config.axi_bytes, config.outstanding, config.weight_ports, config.clock_mhz) == (4, 2, 1, board.clock_mhz)
    assert explore.settings(config, board) == ["--set", "array_outputs=16", "--set", "array_inputs=16"]
    assert "--set banks=2" in " ".join(explore.settings(replace(config, banks=2), board))
    assert "explored" not in boards.table()
