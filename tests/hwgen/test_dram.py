"""The one description of DRAM: a board's limits, and none."""

import pytest

from hwgen import boards
from hwgen.config import Config
from hwgen.dram import UNLIMITED, of_board, setting
from hwgen.errors import UserError


def test_zcu104_at_its_clock():
    """17.07 GB/s, 75 % usable; a refresh of 350 ns every 7.8 us."""
    dram = of_board(boards.load("zcu104"), Config(clock_mhz=300.0))
    assert dram.bytes_per_cycle == 42.6875  # 42.675, in steps of a sixteenth
    assert (dram.refresh_period, dram.refresh_cycles) == (2340, 105)
    assert dram.beats_per_cycle(Config()) == pytest.approx(42.6875 / 16 * (1 - 105 / 2340))
    slower = of_board(boards.load("zcu104"), Config(clock_mhz=150.0), stall=9)
    assert slower.bytes_per_cycle == pytest.approx(2 * 42.675, abs=1 / 32)
    assert (slower.refresh_period, slower.stall) == (1170, 9)


def test_settings_by_name():
    board, config = boards.load("zcu104"), Config()
    assert setting("board", board, config) == of_board(board, config)
    assert setting("unlimited", board, config) == UNLIMITED
    assert UNLIMITED.beats_per_cycle(config) == float("inf")
    with pytest.raises(UserError, match="'fast'; there are board, unlimited"):
        setting("fast", board, config)
