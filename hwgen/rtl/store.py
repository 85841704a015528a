"""Scratchpad -> DRAM."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from .axi import COMMAND, beat_stream
from .block import Block
from .fifo import RamFifo
from .insn import insn_view
from .ports import ELEMENT, insn_stream, read_port
from .read_slot import ReadSlot

QUEUE = 16  # chunks read ahead: hides the scratchpad's and the queue's latency


class StoreUnit(Component):
    """isa.Store, one after the other.

    Ports: insn (stream in), rd (scratchpad read of a chunk), command (stream of COMMAND) and beats (stream out) of the
    AxiWriter, writing (its `busy`), done (strobe: the last write is answered), busy.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "insn": In(insn_stream()),
                "rd": Out(read_port(config, 1)),
                "command": Out(stream.Signature(COMMAND)),
                "beats": Out(beat_stream(config)),
                "writing": In(1),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        store = insn_view(isa.Store, self.insn.payload)
        m.submodules.block = block = Block()
        m.submodules.queue = queue = RamFifo(config.chunk * ELEMENT.width, QUEUE, style="distributed")
        m.submodules.reads = reads = ReadSlot(config, 1)
        connect(m, reads.rd, flipped(self.rd))
        space = Signal(range(QUEUE + 1), init=QUEUE)  # chunks that the queue takes beyond those being read
        read, beat_at, sent = Signal(), Signal(range(max(config.chunk_beats, 2))), Signal()
        dram = Signal(32, reset_less=True)
        m.d.comb += [
            block.first.eq(store.src),
            block.rows.eq(store.rows),
            block.chunks.eq(store.chunks),
            block.pitch.eq(store.pitch),
            reads.valid.eq(block.more & (space != 0)),
            reads.addr.eq(block.addr),
            read.eq(reads.valid & reads.ready),
            block.step.eq(read),
            queue.i.valid.eq(reads.arrived),
            queue.i.payload.eq(reads.o_data.as_value()),
            self.beats.valid.eq(queue.o.valid),
            self.beats.payload.eq(queue.o.payload.word_select(beat_at, 8 * config.axi_bytes)),
            sent.eq(self.beats.valid & self.beats.ready),
            queue.o.ready.eq(sent & (beat_at == config.chunk_beats - 1)),
            self.command.payload.offset.eq(dram),
            self.command.payload.beats.eq(block.total * config.chunk_beats),
        ]
        m.d.sync += space.eq(space - read + queue.o.ready)
        with m.If(sent):
            m.d.sync += beat_at.eq(Mux(queue.o.ready, 0, beat_at + 1))

        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += self.insn.ready.eq(1)
                m.d.sync += dram.eq(store.dram)
                with m.If(self.insn.valid):
                    m.d.comb += block.start.eq(1)
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                with m.If(block.loaded):
                    m.next = "COMMAND"
            with m.State("COMMAND"):
                m.d.comb += self.command.valid.eq(1)
                with m.If(self.command.ready):
                    m.next = "WRITE"
            with m.State("WRITE"):
                with m.If(~self.writing):
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"
        m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
        return m
