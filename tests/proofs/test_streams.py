# amaranth: UnusedElaboratable=no
"""Streams keep every word, in order, in runs of any length."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import Component, In, Out

from hwgen.rtl.claims import claim, claim_counter, claim_stable
from hwgen.rtl.common import counter
from hwgen.rtl.fifo import RamFifo
from hwgen.rtl.register_slice import RegisterSlice


def through(prover, dut):
    """The component between a stream that stalls and words that stay until they are taken."""
    bench = prover.Bench(dut)
    bench.give(dut.i)
    bench.drive(dut.o.ready)
    claim_stable(bench.m, bench.platform, dut.o)
    return bench


class Counted(Component):
    """`counter` as a component."""

    def __init__(self, limit):
        self.limit = limit
        super().__init__({"up": In(1), "down": In(1), "some": Out(1), "full": Out(1)})

    def elaborate(self, platform):
        m = Module()
        count, some, full = counter(m, self.up, self.down, self.limit, "count")
        m.d.comb += [self.some.eq(some), self.full.eq(full)]
        claim_counter(m, platform, (count, some, full), self.limit)
        return m


@pytest.mark.parametrize("limit", [1, 2, 5, 16])
def test_counter(prover, tmp_path, limit):
    dut = Counted(limit)
    bench = prover.Bench(dut)
    bench.drive(dut.up, dut.down)
    bench.assume(~(dut.up & dut.full), ~(dut.down & ~dut.some))
    bench.prove(tmp_path)


def test_register_slice(prover, tmp_path):
    through(prover, RegisterSlice(3)).prove(tmp_path)


@pytest.mark.parametrize("lookahead", [1, 2, 4])
@pytest.mark.parametrize("depth", [2, 4])
def test_queue(prover, tmp_path, depth, lookahead):
    through(prover, RamFifo(2, depth, lookahead=lookahead)).prove(tmp_path)


def test_a_claim_that_does_not_hold_is_found(prover, tmp_path):
    """From the start, and by induction where it takes longer to break."""

    class Late(Component):
        def __init__(self, at):
            self.at = at
            super().__init__({"o": Out(4)})

        def elaborate(self, platform):
            m = Module()
            at = Signal(4)
            m.d.sync += at.eq(at + 1)
            m.d.comb += self.o.eq(at)
            claim(m, platform, at != self.at)
            return m

    for at, how in ((1, "from the start"), (9, "induction")):
        (folder := tmp_path / str(at)).mkdir()
        with pytest.raises(prover.Wrong, match=how):
            prover.Bench(Late(at)).prove(folder, 2)
