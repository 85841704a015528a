# amaranth: UnusedElaboratable=no
"""MacArray against NumPy: packed corners, tile switches at the earliest cycle, gaps between rows."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.config import Config
from hwgen.errors import UserError
from hwgen.rtl.array import MacArray


def pack(values, bits=8):
    """Integers as the value of an array layout."""
    return sum((int(v) & ((1 << bits) - 1)) << (bits * k) for k, v in enumerate(values))


def run(config, events, cycles):
    """Drive {cycle: {port: value}} and return [(cycle, y row)]."""
    dut = MacArray(config)
    ports = {name: getattr(dut, name) for name in ("w_valid", "w_pair", "w_data", "x_valid", "x_swap", "x_data")}
    raw = {name: port.as_value() if hasattr(port, "as_value") else port for name, port in ports.items()}
    got = []

    async def bench(ctx):
        for cycle in range(cycles):
            event = events.get(cycle, {})
            for name, port in raw.items():
                ctx.set(port, event.get(name, 0))
            if ctx.get(dut.y_valid):
                got.append((cycle, [ctx.get(dut.y_data[o]) for o in range(config.array_outputs)]))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return got


def schedule(rng, config, tiles, rows, gaps, extreme=False):
    """Tiles whose weights are written as early as allowed, rows as early as allowed (or with random gaps)."""
    outputs, inputs = config.array_outputs, config.array_inputs
    events, expected = {}, []
    written = 0  # first cycle in which the shadow may be written
    entered = 0
    for _ in range(tiles):
        draw = (lambda n: rng.choice([-127, 127], n)) if extreme else (lambda n: rng.integers(-127, 128, n))
        weights = draw((outputs, inputs))
        for pair in rng.permutation(outputs // 2).tolist():
            both = weights[2 * pair : 2 * pair + 2].ravel()  # sometimes one by one, beside noise
            for valid in ((1, 2), (2, 1), (3,))[rng.integers(3) if gaps else 2]:
                written += int(rng.integers(0, 3)) if gaps else 0
                used = np.repeat([valid & 1, valid >> 1], inputs)
                noisy = np.where(used, both, rng.integers(-127, 128, 2 * inputs))
                events.setdefault(written, {}).update(w_valid=valid, w_pair=pair, w_data=pack(noisy))
                written += 1
        ready = written - 1 + MacArray.SHADOW_READY
        entered = max(entered, ready)
        for r in range(rows):
            entered += int(rng.integers(0, 3)) if gaps else 0
            x = draw(inputs)
            events.setdefault(entered, {}).update(x_valid=1, x_swap=int(r == 0), x_data=pack(x))
            if r == 0:
                written = max(written, entered + MacArray.SHADOW_HOLD)
            expected.append((entered + MacArray.latency_of(config), (weights @ x).tolist()))
            entered += 1
    return events, expected, entered + MacArray.latency_of(config) + 2


@pytest.mark.parametrize("outputs, inputs", [(8, 8), (12, 20), (8, 33)])
@pytest.mark.parametrize(
    "rows, gaps, extreme", [(1, False, False), (11, False, True), (30, False, False), (5, True, False)]
)
def test_sums(outputs, inputs, rows, gaps, extreme):
    rng = np.random.default_rng(outputs + rows)
    config = Config(array_outputs=outputs, array_inputs=inputs)
    events, expected, cycles = schedule(rng, config, 4, rows, gaps, extreme)
    if not gaps:  # noise between valid strobes must not matter
        for cycle in range(cycles):
            event = events.setdefault(cycle, {})
            event.setdefault("x_data", pack(rng.integers(-127, 128, inputs)))
            event.setdefault("x_swap", int("x_valid" not in event))
            event.setdefault("w_data", pack(rng.integers(-127, 128, 2 * inputs)))
    assert run(config, events, cycles) == expected


def test_weights_follow_without_a_bubble():
    rng = np.random.default_rng(0)
    config = Config(array_outputs=8, array_inputs=8)
    events, _, _ = schedule(rng, config, 5, 3, False)
    writes = [cycle for cycle, event in sorted(events.items()) if "w_valid" in event]
    assert writes == list(range(5 * 8 // 2))


def test_too_many_inputs():
    with pytest.raises(UserError, match="array_inputs=8192"):
        MacArray(Config(array_inputs=8192))
