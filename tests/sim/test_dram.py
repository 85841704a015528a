"""The settings that the simulated DRAM takes."""

from hwgen.dram import UNLIMITED, Dram
from hwgen.sim.dram import plusargs


def test_settings_of_the_simulation():
    assert "+rate=0" in plusargs(UNLIMITED) and "+refresh_period=0" in plusargs(UNLIMITED)
    assert plusargs(Dram(latency=7, bytes_per_cycle=2.5, stall=3, seed=4)) == (
        "+latency=7", "+rate=40", "+credit=4", "+refresh_period=0", "+refresh_clocks=0", "+stall=3", "+seed=4",
    )  # fmt: skip
