import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.config import Config
from hwgen.rtl.ports import READ_LATENCY, WRITE_LATENCY
from hwgen.rtl.scales import ScaleMemory


@pytest.mark.parametrize("entries", [2, 16])
def test_traffic(entries):
    config = Config(scale_entries=entries)
    dut = ScaleMemory(config)
    rng = np.random.default_rng(entries)
    contents: dict[int, int] = {}
    writes, due, checked = [], {}, 0

    async def bench(ctx):
        nonlocal checked
        pending = {"y": None, "vector": None, "load": None}
        for cycle in range(600):
            busy = False
            for name in pending:
                if pending[name] is None and rng.random() < 0.3:
                    pending[name] = int(rng.integers(entries)), int(rng.integers(1 << 16))
                port = getattr(dut, f"wr_{name}")
                ctx.set(port.valid, pending[name] is not None)
                addr, value = pending[name] or (0, 0)
                ctx.set(port.addr, addr)
                ctx.set(port.data, value)
            for landed in [w for w in writes if w[0] <= cycle - WRITE_LATENCY]:
                contents[landed[1]] = landed[2]
                writes.remove(landed)
            unsure = {addr for _, addr, _ in writes}
            for name, expected in due.pop(cycle, []):
                if expected is not None:
                    assert ctx.get(getattr(dut, f"rd_{name}").data) == expected, (name, cycle)
                    checked += 1
            for name in pending:
                assert ctx.get(getattr(dut, f"wr_{name}").ready) == (not busy)
                if pending[name] is not None and not busy:
                    writes.append((cycle, *pending[name]))
                    pending[name], busy = None, True
            unsure |= {addr for _, addr, _ in writes}
            for name in ("x", "w"):
                addr = int(rng.integers(entries))
                ctx.set(getattr(dut, f"rd_{name}").addr, addr)
                expected = None if addr in unsure else contents.get(addr)
                due.setdefault(cycle + READ_LATENCY, []).append((name, expected))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert checked > 100
