"""A memory behind AXI4 for Amaranth's simulator, with random latency and back-pressure, and ends for streams."""

from __future__ import annotations

import random
from collections import deque
from types import SimpleNamespace

from amaranth.lib import data
from amaranth.sim import Simulator

OKAY, SLVERR = 0, 2
READ_ADDRESS = ("arvalid", "araddr", "arlen", "arsize", "arburst")
WRITE_ADDRESS = ("awvalid", "awaddr", "awlen", "awsize", "awburst")


def deadline(cycles=20_000):
    """A testbench that fails after so many cycles."""

    async def wait(ctx):
        for _ in range(cycles):
            await ctx.tick()
        raise TimeoutError(f"not finished after {cycles} cycles")

    return wait


def simulate(dut, *testbenches, background=(), cycles=20_000, vcd=None):
    """Run `testbenches` to their end; fail after `cycles`."""
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    for process in testbenches:
        simulator.add_testbench(process)
    for process in (*background, deadline(cycles)):
        simulator.add_testbench(process, background=True)
    if vcd is None:
        simulator.run()
    else:
        with simulator.write_vcd(vcd):
            simulator.run()


def flat_bus(top, prefix: str) -> SimpleNamespace:
    """The flat ports `prefix`_* of a component as a bus."""
    return SimpleNamespace(
        **{name[len(prefix) + 1 :]: getattr(top, name) for name in dir(top) if name.startswith(prefix + "_")}
    )


def raw(value) -> int:
    return value.as_bits() if isinstance(value, data.Const) else value


async def send(ctx, port, items, rng: random.Random, stall: float = 0.3):
    """Offer `items` on a stream; each stays until it is taken."""
    for item in items:
        while rng.random() < stall:
            await ctx.tick()
        ctx.set(port.payload, item)
        ctx.set(port.valid, 1)
        while True:
            _, _, ready = await ctx.tick().sample(port.ready)
            if ready:
                break
        ctx.set(port.valid, 0)


async def receive(ctx, port, count: int, rng: random.Random, stall: float = 0.3) -> list[int]:
    """Take `count` items from a stream, as plain bits; a valid item must not change or go."""
    items, kept = [], None
    while len(items) < count:
        ready = rng.random() >= stall
        ctx.set(port.ready, ready)
        _, _, valid, payload = await ctx.tick().sample(port.valid, port.payload)
        assert kept is None or (valid and raw(payload) == kept), "a stream item changed before it was taken"
        kept = raw(payload) if valid and not ready else None
        if valid and ready:
            items.append(raw(payload))
    ctx.set(port.ready, 0)
    return items


class AxiMemory:
    """`size` bytes; `read` and `write` are background testbenches that serve one master each.

    stall: chance that a channel pauses in a cycle; latency: range of cycles from address to answer. Addresses in
    `bad` (a range) answer SLVERR. `reads`, `writes`: the bursts seen, (address, beats); `most_in_flight`: of reads.
    """

    def __init__(self, size: int, seed: int = 0, stall: float = 0.3, latency=(1, 30), most_beats: int = 16):
        self.rng = random.Random(seed)
        self.data = bytearray(self.rng.randbytes(size))
        self.stall, self.latency, self.most_beats = stall, latency, most_beats
        self.bad = range(0)
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.most_in_flight = 0

    def _pauses(self) -> bool:
        return self.rng.random() < self.stall

    def _burst(self, addr: int, length: int, size: int, burst: int, width: int) -> int:
        """Check a burst against the protocol; its beats."""
        beats = length + 1
        assert burst == 1, "not an incrementing burst"
        assert 8 << size == width, "a narrow burst"
        assert addr % (width // 8) == 0, "an unaligned burst"
        assert beats <= self.most_beats
        end = addr + beats * width // 8
        assert addr // 4096 == (end - 1) // 4096, f"burst {addr:#x}..{end:#x} crosses 4 KiB"
        assert end <= len(self.data), f"burst {addr:#x}..{end:#x} is outside the memory"
        return beats

    def _response(self, addr: int) -> int:
        return SLVERR if addr in self.bad else OKAY

    def read(self, bus):
        async def process(ctx):
            width = len(bus.rdata)
            queue, beats, kept = deque(), deque(), None
            now = 0
            while True:
                ready = not self._pauses()
                ctx.set(bus.arready, ready)
                if not beats and queue and queue[0][0] <= now:
                    _, addr, count = queue.popleft()
                    beats.extend((addr + i * width // 8, i == count - 1) for i in range(count))
                    shown = False
                    self.most_in_flight = max(self.most_in_flight, len(queue) + 1)
                shown = bool(beats) and (shown or not self._pauses())
                ctx.set(bus.rvalid, shown)
                if shown:
                    addr, last = beats[0]
                    ctx.set(bus.rdata, int.from_bytes(self.data[addr : addr + width // 8], "little"))
                    ctx.set(bus.rlast, last)
                    ctx.set(bus.rresp, self._response(addr))
                taken = ctx.tick().sample(*(getattr(bus, n) for n in READ_ADDRESS), bus.rready)
                _, _, valid, addr, length, size, burst, rready = await taken
                now += 1
                assert kept is None or (valid, addr, length) == kept, "AR changed before it was taken"
                kept = (valid, addr, length) if valid and not ready else None
                if valid and ready:
                    count = self._burst(addr, length, size, burst, width)
                    self.reads.append((addr, count))
                    queue.append((now + self.rng.randint(*self.latency), addr, count))
                if shown and rready:
                    beats.popleft()
                    shown = False

        return process

    def write(self, bus):
        async def process(ctx):
            width = len(bus.wdata)
            bursts, answers = deque(), deque()  # (address, beats left), (time, response)
            now, kept, answering, response = 0, None, False, OKAY
            while True:
                ready, wready = not self._pauses(), bool(bursts) and not self._pauses()
                ctx.set(bus.awready, ready)
                ctx.set(bus.wready, wready)
                answering = bool(answers) and answers[0][0] <= now and (answering or not self._pauses())
                ctx.set(bus.bvalid, answering)
                if answering:
                    ctx.set(bus.bresp, answers[0][1])
                names = (*WRITE_ADDRESS, "wvalid", "wdata", "wstrb", "wlast", "bready")
                taken = ctx.tick().sample(*(getattr(bus, n) for n in names))
                _, _, valid, addr, length, size, burst, wvalid, wdata, strobe, last, bready = await taken
                now += 1
                assert kept is None or (valid, addr, length) == kept, "AW changed before it was taken"
                kept = (valid, addr, length) if valid and not ready else None
                if wvalid and wready:
                    at, left = bursts.popleft()
                    assert last == (left == 1), "wlast is wrong"
                    for i in range(width // 8):
                        if strobe >> i & 1:
                            self.data[at + i] = wdata >> (8 * i) & 0xFF
                    response |= self._response(at)
                    if left > 1:
                        bursts.appendleft((at + width // 8, left - 1))
                    else:
                        answers.append((now + self.rng.randint(*self.latency), response))
                        response = OKAY
                if valid and ready:
                    count = self._burst(addr, length, size, burst, width)
                    self.writes.append((addr, count))
                    bursts.append((addr, count))
                if answering and bready:
                    answers.popleft()
                    answering = False

        return process


class Lite:
    """Reads and writes of an AXI4-Lite slave."""

    def __init__(self, bus, rng: random.Random, stall: float = 0.3):
        self.bus, self.rng, self.stall = bus, rng, stall

    async def _pause(self, ctx):
        while self.rng.random() < self.stall:
            await ctx.tick()

    async def write(self, ctx, address: int, value: int, strobe: int = 0xF):
        bus = self.bus
        waiting = {"aw", "w"}
        late = self.rng.choice(["aw", "w", None])  # the channel that starts later
        ctx.set(bus.awaddr, address)
        ctx.set(bus.wdata, value)
        ctx.set(bus.wstrb, strobe)
        ctx.set(bus.awvalid, late != "aw")
        ctx.set(bus.wvalid, late != "w")
        while waiting:
            _, _, awready, wready = await ctx.tick().sample(bus.awready, bus.wready)
            if awready and ctx.get(bus.awvalid):
                waiting.discard("aw")
            if wready and ctx.get(bus.wvalid):
                waiting.discard("w")
            ctx.set(bus.awvalid, "aw" in waiting)
            ctx.set(bus.wvalid, "w" in waiting)
        await self._pause(ctx)
        ctx.set(bus.bready, 1)
        (response,) = await ctx.tick().sample(bus.bresp).until(bus.bvalid)
        ctx.set(bus.bready, 0)
        assert response == OKAY

    async def read(self, ctx, address: int) -> int:
        bus = self.bus
        ctx.set(bus.araddr, address)
        ctx.set(bus.arvalid, 1)
        await ctx.tick().until(bus.arready)
        ctx.set(bus.arvalid, 0)
        await self._pause(ctx)
        ctx.set(bus.rready, 1)
        sampled = await ctx.tick().sample(bus.rdata, bus.rresp).until(bus.rvalid)
        ctx.set(bus.rready, 0)
        assert sampled[-1] == OKAY
        return sampled[-2]
