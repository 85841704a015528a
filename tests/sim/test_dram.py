"""The simulated DRAM has the limits of the board."""

import pytest

from hwgen import boards
from hwgen.config import Config
from sim.dram import DramModel, of_board


def test_zcu104_at_its_clock():
    """17.07 GB/s, 75 % usable; a refresh of 350 ns every 7.8 us."""
    model = of_board(boards.load("zcu104"), Config(clock_mhz=300.0))
    assert model.bytes_per_cycle == pytest.approx(42.675)
    assert (model.refresh_period, model.refresh_cycles) == (2340, 105)
    slower = of_board(boards.load("zcu104"), Config(clock_mhz=150.0), stall=9)
    assert slower.bytes_per_cycle == pytest.approx(2 * 42.675)
    assert (slower.refresh_period, slower.stall) == (1170, 9)


def test_settings_of_the_simulation():
    assert "+rate=0" in DramModel().plusargs() and "+refresh_period=0" in DramModel().plusargs()
    assert DramModel(latency=7, bytes_per_cycle=2.5, stall=3, seed=4).plusargs() == (
        "+latency=7", "+rate=40", "+refresh_period=0", "+refresh_clocks=0", "+stall=3", "+seed=4",
    )  # fmt: skip
