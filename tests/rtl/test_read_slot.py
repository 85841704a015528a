# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.sim import Simulator

from hwgen.config import Config
from hwgen.rtl.ports import READ_LATENCY
from hwgen.rtl.read_slot import ReadSlot

CONFIG = Config(array_outputs=8, array_inputs=8)


@pytest.mark.parametrize("refused", [0.0, 0.3, 0.9])
def test_order_and_latency(refused):
    """Random requests and grants: a request is at the scratchpad a cycle later and as early as those before it allow,
    nothing between `rd.ready` and `ready`, data and tags in order, told SOON cycles before; without one its address is zero."""
    dut, rng = ReadSlot(CONFIG, 8, chunks=2), random.Random(int(refused * 10))
    waiting, grants, found, soon = [], [], [], []  # requests; (cycle, addr, tag) granted; (cycle, data, tag) arrived

    async def bench(ctx):
        request, arriving = None, [None] * READ_LATENCY
        for cycle in range(600):
            if request is None and rng.random() < 0.7:
                request = (rng.randrange(1 << 16), rng.randrange(256))
            ready = rng.random() >= refused
            ctx.set(dut.valid, request is not None)
            if request is not None:
                ctx.set(dut.addr, request[0])
                ctx.set(dut.tag, request[1])
            ctx.set(dut.rd.ready, ready)
            ctx.set(dut.rd.data[CONFIG.chunk], arriving.pop(0) or 0)  # the second chunk's first element
            assert ctx.get(dut.ready) == (len(waiting) < 2)
            assert ctx.get(dut.rd.valid) == bool(waiting)
            granted = None
            assert waiting or not ctx.get(dut.rd.addr)
            if waiting:
                assert (ctx.get(dut.rd.addr), ctx.get(dut.asked)) == waiting[0]
                if ready:
                    granted, tag = waiting.pop(0)
                    grants.append((cycle + READ_LATENCY, granted, tag))
            if request is not None and ctx.get(dut.ready):
                waiting.append(request)
                request = None
            # Data: the low bits of the address.
            arriving.append(None if granted is None else granted & 0x7FFF)
            if ctx.get(dut.soon):
                soon.append((cycle + dut.SOON, ctx.get(dut.soon_tag)))
            if ctx.get(dut.arrived):
                found.append((cycle, ctx.get(dut.o_data[CONFIG.chunk]), ctx.get(dut.o_tag)))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    expected = [(cycle, addr & 0x7FFF, tag) for cycle, addr, tag in grants if cycle < 600]
    assert len(found) > 30 and found == expected
    assert [told for told in soon if told[0] < 600] == [(cycle, tag) for cycle, _, tag in found]
