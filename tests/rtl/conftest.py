import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from hwgen.isa import encode
from hwgen.rtl.ports import READ_LATENCY, WRITE_LATENCY
from hwgen.sim.machine import Machine


class Simulation:
    """A component in Amaranth's simulator. Most of a short run is making it, so that it is kept: every run starts at reset."""

    def __init__(self, dut, period: float):
        self.dut, self.simulator, self.benches = dut, Simulator(dut), ()
        self.simulator.add_clock(period)

    def run(self, *benches) -> None:
        """Simulate until the last testbench that is not in the background ends; benches: (function, in the background), which
        act in this order. Their number and which are in the background are those of the first run."""
        known, self.benches = [background for _, background in self.benches], benches
        if known:
            assert known == [background for _, background in benches]
            self.simulator.reset()
        else:
            for place, (_, background) in enumerate(benches):
                self.simulator.add_testbench(self._bench(place), background=background)
        try:
            self.simulator.run()
        except BaseException:
            elaborated.cache_clear()  # it stands where the testbench has failed
            raise

    def _bench(self, place: int):
        async def bench(ctx):
            await self.benches[place][0](ctx)

        return bench


@lru_cache(maxsize=8)
def elaborated(unit, config, period: float = 1e-6) -> Simulation:
    """unit(config) in the simulator, the same for all that ask for it."""
    return Simulation(unit(config), period)


def pytest_collection_modifyitems(items) -> None:
    """Tests of a file that run the same components go to one worker."""
    for item in items:
        if item.path.parent == Path(__file__).parent and {"vector_memory", "elaborated_unit"} & {*item.fixturenames}:
            item.add_marker(pytest.mark.xdist_group(f"rtl {item.path.stem}"))


class VectorMemory:
    """Scratchpad `data` int16 [chunks, chunk] and `scales` behind the ports of a vector unit, stalling at random.

    `due` cycles pass until a write shows to a reader; `cycle` counts the cycles of the simulation, `started` is
    that of the last start.
    """

    def __init__(self, unit, config, chunks: int, stall: float, seed: int):
        self.simulation = elaborated(unit, config)
        dut = self.dut = self.simulation.dut
        self.stall, self.rng = stall, np.random.default_rng(seed)
        self.chunk = dut.config.chunk
        self.wide = len(dut.rd.data.as_value()) // (16 * self.chunk)  # chunks of a read
        self.data = self.rng.integers(-32767, 32768, (chunks, self.chunk))
        self.scales = self.rng.integers(0, 1 << 16, 4096)
        self.arriving = [None] * READ_LATENCY
        self.cycle = self.started = 0
        self.visible_at = 0  # the last write shows to reads of this cycle
        self.accepted = {"rd": 0, "wr": 0, "scale": 0}
        self.addresses: set[int] = set()  # that were read

    def put_rows(self, base: int, pitch: int, rows) -> None:
        """Rows of any width, from chunk `base`, each in whole chunks; what is behind the row's end stays as it is."""
        for r, row in enumerate(rows):
            flat = self.data[base + r * pitch :].reshape(-1)
            flat[: len(row)] = row

    def rows(self, base: int, pitch: int, rows: int, chunks: int):
        return np.array([self.data[base + r * pitch :][:chunks].reshape(-1) for r in range(rows)])

    async def serve(self, ctx):
        dut, rng = self.dut, self.rng
        rd, wr, scale = dut.rd, dut.wr, getattr(dut, "scale", None)
        sampled = [rd.valid, rd.addr, wr.valid, wr.addr, wr.mask, wr.data.as_value()]
        if scale is not None:
            sampled += [scale.valid, scale.addr, scale.data]
        held = [None, None]
        while True:
            read_ready, write_ready, scale_ready = (int(x) for x in rng.random(3) >= self.stall)
            ctx.set(rd.ready, read_ready)
            ctx.set(wr.ready, write_ready)
            if scale is not None:
                ctx.set(scale.ready, scale_ready)
            now = self.arriving.pop(0)
            value = rng.integers(-32768, 32768, self.wide * self.chunk) if now is None else now
            ctx.set(rd.data.as_value(), sum((int(v) & 0xFFFF) << 16 * i for i, v in enumerate(value)))
            _, _, *seen = await ctx.tick().sample(*sampled)
            valid, addr, write, write_addr, mask, word = seen[:6]
            # A request stays until it is accepted.
            for i, request in enumerate(((valid, addr), (write, write_addr, mask, word))):
                assert held[i] is None or held[i] == request
                held[i] = request if request[0] and not (read_ready, write_ready)[i] else None
            taken = valid and read_ready
            self.addresses |= {addr} if taken else set()
            self.arriving.append(self.data.take(range(addr, addr + self.wide), 0, mode="wrap").reshape(-1) if taken else None)
            if write and write_ready:
                assert mask == 1
                elements = np.array([word >> 16 * i & 0xFFFF for i in range(self.chunk)])
                self.data[write_addr] = elements - (elements >> 15 << 16)
                self.visible_at = self.cycle + WRITE_LATENCY
            if scale is not None and seen[6] and scale_ready:
                self.scales[seen[7]] = seen[8]
                self.visible_at = self.cycle + WRITE_LATENCY
            self.accepted["rd"] += valid & read_ready
            self.accepted["wr"] += write & write_ready
            self.cycle += 1
            assert self.cycle < self.started + 20000, "the unit hangs"

    async def execute(self, ctx, **words) -> int:
        """One instruction from start to done, its words by the ports that take them; its cycles."""
        for name, word in words.items():
            port = Value.cast(getattr(self.dut, name))
            ctx.set(port, word & (1 << len(port)) - 1)
        ctx.set(self.dut.start, 1)
        await ctx.tick()
        self.started = self.cycle
        ctx.set(self.dut.start, 0)
        await ctx.tick().until(self.dut.done)
        assert self.cycle - 1 >= self.visible_at
        return self.cycle - self.started

    async def execute_as(self, ctx, writes, insn, **walk) -> int:
        """`execute` leaves what writes(machine, insn, walk), one of `sim.vector`, says; its cycles."""
        machine = Machine(self.dut.config)
        scales = min(len(self.scales), len(machine.scale))
        machine.scratch[:], machine.scale[:scales] = self.data.reshape(-1), self.scales[:scales]
        for target, index, values in writes(machine, insn, *walk.values()):
            target[index] = values
        cycles = await self.execute(ctx, **{name: encode(word) for name, word in ({"insn": insn} | walk).items()})
        np.testing.assert_array_equal(self.data.reshape(-1), machine.scratch)
        np.testing.assert_array_equal(self.scales[:scales], machine.scale[:scales])
        return cycles

    def run(self, bench) -> None:
        """Simulate until the testbench `bench` returns."""
        self.simulation.run((self.serve, True), (bench, False))


@pytest.fixture
def vector_memory():
    return VectorMemory


@pytest.fixture
def elaborated_unit():
    return elaborated


@pytest.fixture(scope="session")
def axi_model():
    """The module axi_model.py; `tests` is no package, so it is loaded from its file."""
    spec = importlib.util.spec_from_file_location("axi_model", Path(__file__).with_name("axi_model.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
