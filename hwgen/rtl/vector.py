"""Vector unit: LayerNorm, products of rows, windows, selection, scans and routing, one instruction after another."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from . import ports
from .common import WIDE
from .norm import Norm
from .router import Router
from .scan import Scan
from .select import Select
from .window import Window


class VectorUnit(Component):
    """Executes NORM, MULTIPLY, REDUCE_WINDOW, SELECT, SCAN and ROUTE in order, on one scratchpad port each for reads and writes.

    A WINDOW_WALK is kept for the next instruction and is not `done`. Without window_chunks there are no windows, without
    select_rows no selection, without scan_states no scans.

    Parameters: config.
    Ports: insn (stream of instruction words); rd (scratchpad, window_chunks chunks a cycle, at least one), wr (a chunk a
    cycle), scale (row maxima); done (strobe: an instruction has finished, everything it wrote is visible); busy; the expert
    queues: lookup (combinational), queue (entry READ_LATENCY cycles after its address), nonempty (per expert). The queues
    change only while a ROUTE runs; experts that the last ROUTE did not have are empty, and `start` counts only where
    `count` is not zero.
    Cycles from an instruction's acceptance to the next: 2 and `latency.norm_cycles`, `multiply_cycles`, `window_cycles`,
    `select_cycles`, `scan_cycles` or `route_cycles`.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "insn": In(ports.insn_stream()),
                "rd": Out(ports.read_port(config, max(config.window_chunks, 1))),
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
        units: list = [(norm, (isa.Op.NORM, isa.Op.MULTIPLY)), (router, (isa.Op.ROUTE,))]
        word = Signal(isa.WORD_BITS, reset_less=True, attrs=WIDE)  # near every unit
        op = self.insn.payload[: isa.OP_BITS]
        walks: Value | int = 0  # what is offered is a walk
        if self.config.window_chunks:
            m.submodules.window = window = Window(self.config)
            units.append((window, (isa.Op.REDUCE_WINDOW,)))
            walks = op == isa.Op.WINDOW_WALK
            # Without one in front every row is its own window.
            walk = Signal(len(window.walk), init=isa.encode(isa.WindowWalk(x3=1, y3=1)))
            m.d.comb += window.walk.eq(walk)
            with m.If(window.done):
                m.d.sync += walk.eq(walk.init)
            with m.Elif(self.insn.valid & self.insn.ready & walks):
                m.d.sync += walk.eq(self.insn.payload)
        writers = [unit for unit, _ in units if unit is not router]  # of row maxima: the others ask for none meanwhile
        if self.config.select_rows:
            m.submodules.select = select = Select(self.config)
            units.append((select, (isa.Op.SELECT,)))
        if self.config.scan_states:
            m.submodules.scan = scan = Scan(self.config)
            units.append((scan, (isa.Op.SCAN,)))
        chosen = Signal(len(units), attrs=WIDE)
        idle = Signal(init=1, attrs=WIDE)  # the state of that name, near all bits of `word`
        start = Signal()
        connect(m, flipped(self.lookup), router.lookup)
        connect(m, flipped(self.queue), router.queue)

        def of(value) -> Value:
            """That of the unit whose turn it is."""
            values = [chosen[k].replicate(len(found)) & found for k, found in enumerate(map(value, units))]
            return reduce(or_, values)

        m.d.comb += [
            self.nonempty.eq(router.nonempty),
            # The others ask for nothing meanwhile, and an address is zero where nothing is asked (`ReadSlot`).
            self.rd.valid.eq(Cat(unit.rd.valid for unit, _ in units).any()),
            self.rd.addr.eq(reduce(or_, (unit.rd.addr for unit, _ in units))),
            self.wr.valid.eq(Cat(unit.wr.valid for unit, _ in units).any()),
            self.wr.addr.eq(of(lambda unit: unit[0].wr.addr)),
            self.wr.mask.eq(1),
            self.wr.data.eq(of(lambda unit: unit[0].wr.data.as_value())),
        ]
        for unit in writers:
            with m.If(unit.scale.valid):
                m.d.comb += [self.scale.addr.eq(unit.scale.addr), self.scale.data.eq(unit.scale.data), self.scale.valid.eq(1)]
            m.d.comb += unit.scale.ready.eq(self.scale.ready)
        for k, (unit, _) in enumerate(units):
            m.d.comb += [
                unit.insn.eq(word[: len(Value.cast(unit.insn))]),
                unit.start.eq(start & chosen[k]),
                unit.rd.ready.eq(self.rd.ready),
                unit.rd.data.eq(self.rd.data.as_value()[: len(unit.rd.data.as_value())]),
                unit.wr.ready.eq(self.wr.ready),
            ]
        with m.If(idle):
            m.d.sync += [
                word.eq(self.insn.payload),
                chosen.eq(Cat(Cat(op == kind for kind in kinds).any() for _, kinds in units)),
            ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.insn.ready.eq(1)
                with m.If(self.insn.valid & ~Value.cast(walks)[0]):
                    m.d.sync += idle.eq(0)
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [start.eq(1), self.busy.eq(1)]
                m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [self.busy.eq(1), self.done.eq(Cat(unit.done for unit, _ in units).any())]
                with m.If(self.done):
                    m.d.sync += idle.eq(1)
                    m.next = "IDLE"
        return m
