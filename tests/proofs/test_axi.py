# amaranth: UnusedElaboratable=no
"""Bursts, the engines on the bus, the arbiter between them and the counts that instructions wait for, in runs of any length."""

import pytest

from hwgen.config import Config
from hwgen.rtl.arbiter import ReadArbiter
from hwgen.rtl.axi import AxiReader, AxiWriter, _Bursts
from hwgen.rtl.sequencer import Sequencer

SMALL = Config(axi_bytes=4, burst_beats=2, outstanding=2)


@pytest.mark.parametrize("axi_bytes, burst_beats", [(16, 16), (4, 2), (8, 1)])
def test_bursts(prover, tmp_path, axi_bytes, burst_beats):
    dut = _Bursts(Config(axi_bytes=axi_bytes, burst_beats=burst_beats))
    bench = prover.Bench(dut)
    bench.fix(dut.base)
    bench.give(dut.command)
    bench.drive(dut.step)
    bench.prove(tmp_path)


def test_arbiter(prover, tmp_path):
    dut = ReadArbiter(Config(axi_bytes=4))
    bench = prover.Bench(dut)
    for command, beats in zip(dut.commands, dut.beats, strict=True):
        bench.give(command)
        bench.drive(beats.ready)
    bench.drive(dut.command.ready, dut.read.valid, dut.read.payload)
    bench.prove(tmp_path)


def test_writer(prover, tmp_path):
    dut = AxiWriter(SMALL)
    bench = prover.Bench(dut)
    bench.fix(dut.base)
    bench.give(dut.command)
    bench.give(dut.beats)
    bench.drive(dut.bus.awready, dut.bus.wready, dut.bus.bvalid, dut.bus.bresp, dut.drain)
    bench.prove(tmp_path)


def test_reader(prover, tmp_path):
    """Also its credits: a beat that comes always finds room in the queue, however long the consumer waits."""
    dut = AxiReader(SMALL)
    bench = prover.Bench(dut, contents=False)
    bench.fix(dut.base)
    bench.give(dut.command)
    bench.drive(dut.bus.arready, dut.bus.rvalid, dut.bus.rdata, dut.bus.rresp, dut.bus.rlast, dut.beats.ready, dut.drain)
    bench.prove(tmp_path)


def test_wait_counts(prover, tmp_path):
    dut = Sequencer(Config(axi_bytes=4))
    bench = prover.Bench(dut, contents=False)
    bench.give(dut.beats)
    bench.drive(dut.start, dut.program, dut.length, dut.command.ready, dut.done, dut.fault, *(i.ready for i in dut.insn))
    bench.prove(tmp_path)
