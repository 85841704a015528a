"""Vector unit: LayerNorm, products of rows and routing, one instruction after another."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from . import ports
from .norm import Norm
from .router import Router


class VectorUnit(Component):
    """Executes NORM, MULTIPLY and ROUTE instructions in order, on one scratchpad port each for reads and writes.

    Parameters: config.
    Ports: insn (stream of instruction words); rd, wr (scratchpad, a chunk a cycle), scale (row maxima); done (strobe: an
    instruction has finished, everything it wrote is visible); busy; the expert queues: lookup (combinational), queue (entry
    READ_LATENCY cycles after its address), nonempty (per expert). The queues change only while a ROUTE runs; experts that the
    last ROUTE did not have are empty, and `start` counts only where `count` is not zero.
    Cycles from an instruction's acceptance to the next: 2 and `norm.norm_cycles`, `norm.multiply_cycles` or
    `router.route_cycles`.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "insn": In(ports.insn_stream()),
                "rd": Out(ports.read_port(config, 1)),
                "wr": Out(ports.write_port(config, 1)),
                "scale": Out(ports.SCALE_WRITE),
                "lookup": In(ports.QUEUE_LOOKUP),
                "queue": In(ports.QUEUE_READ),
                "nonempty": Out(config.max_experts),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.norm = norm = Norm(self.config)
        m.submodules.router = router = Router(self.config)
        word = Signal(isa.WORD_BITS, reset_less=True)
        routing, start = Signal(), Signal()
        connect(m, norm.scale, flipped(self.scale))
        connect(m, flipped(self.lookup), router.lookup)
        connect(m, flipped(self.queue), router.queue)
        m.d.comb += [
            norm.insn.eq(word[: len(norm.insn)]),
            router.insn.eq(word[: router.insn.shape().size]),
            norm.start.eq(start & ~routing),
            router.start.eq(start & routing),
            self.nonempty.eq(router.nonempty),
            self.rd.valid.eq(Mux(routing, router.rd.valid, norm.rd.valid)),
            self.rd.addr.eq(Mux(routing, router.rd.addr, norm.rd.addr)),
            self.wr.valid.eq(Mux(routing, router.wr.valid, norm.wr.valid)),
            self.wr.addr.eq(Mux(routing, router.wr.addr, norm.wr.addr)),
            self.wr.mask.eq(1),
            self.wr.data.eq(Mux(routing, router.wr.data.as_value(), norm.wr.data.as_value())),
        ]
        for unit in (norm, router):
            m.d.comb += [
                unit.rd.ready.eq(self.rd.ready),
                unit.rd.data.eq(self.rd.data),
                unit.wr.ready.eq(self.wr.ready),
            ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.insn.ready.eq(1)
                m.d.sync += [
                    word.eq(self.insn.payload),
                    routing.eq(self.insn.payload[: isa.OP_BITS] == isa.Op.ROUTE),
                ]
                with m.If(self.insn.valid):
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [start.eq(1), self.busy.eq(1)]
                m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [self.busy.eq(1), self.done.eq(norm.done | router.done)]
                with m.If(self.done):
                    m.next = "IDLE"
        return m
