"""The energy estimate: counted events times coefficients that name their sources."""

import pytest

from hwgen.config import Config
from hwgen.energy import COEFFICIENTS, Activity, activity, estimate, table


def test_estimate_by_hand():
    config = Config(array_outputs=8, array_inputs=16)
    events = activity(config, cycles=1000, array_active=100, weight_bytes=640, data_bytes=160)
    assert events == Activity(macs=12800, ram_bytes=100 * (32 + 2 * 27) + 1280 + 160, dram_bytes=800, lane_cycles=128000)
    joules = estimate(events, seconds=1e-3)
    assert joules["mac"] == 12800 * COEFFICIENTS["mac"].value
    assert joules["dram"] == 800 * COEFFICIENTS["dram"].value
    assert joules["static"] == COEFFICIENTS["static"].value * 1e-3
    assert joules["total"] == pytest.approx(sum(v for name, v in joules.items() if name != "total"))
    assert events + events - events == events


def test_every_coefficient_has_a_source():
    assert set(COEFFICIENTS) == set(estimate(Activity(), 0.0)) - {"total"}
    for name, coefficient in COEFFICIENTS.items():
        assert coefficient.value > 0 and coefficient.unit and coefficient.source
        assert coefficient.source in table() and name in table()
