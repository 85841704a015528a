"""Window engine: executes `isa.ReduceWindow`, window_chunks chunks of columns of a tap of window_rows rows a cycle."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from ..latency import NORM_SETTLE, WINDOW_ROWS
from . import ports
from .common import counter, delay, delay_valid, settled
from .insn import insn_view
from .read_slot import ReadSlot
from .window_finish import WindowFinish
from .window_lanes import WindowLanes
from .window_reads import TAP, WindowReads, read_tag, ring_slot_bits


class Window(Component):
    """y row y(r) = numerics.gelu(window_post(reduce_window(x rows x(r, taps)))); row maxima into the scale memory.

    Block of columns by block, group of rows by group, tap by tap (`window_reads`); sums (`window_lanes`) are held while the
    next group's grow, and finished a chunk a cycle (`window_finish`), so that a group takes as many cycles as it reads, or as
    its rows have chunks. Rows and their results are counted before they are read, so nothing stalls between a read and a FIFO
    with room.

    Parameters: config, with window_chunks. Ports: start (strobe), insn, walk (words of ReduceWindow and WindowWalk, held
    until done), done (strobe: all writes visible); rd (window_chunks chunks), wr, scale.
    Precondition: columns >= 1, rows <= acc_rows.
    Cycles: `latency.window_cycles`. Cost: see `window_lanes` and `window_post`; a RAM of acc_rows row maxima.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "insn": In(ports.insn_layout(isa.ReduceWindow).size),
                "walk": In(ports.insn_layout(isa.WindowWalk).size),
                "done": Out(1),
                "rd": Out(ports.read_port(config, config.window_chunks)),
                "wr": Out(ports.write_port(config, 1)),
                "scale": Out(ports.SCALE_WRITE),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.reads = reads = WindowReads(config)
        m.submodules.lanes = lanes = WindowLanes(config)
        m.submodules.finish = finish = WindowFinish(config)
        slot = self._read(m, reads)
        connect(m, finish.wr, flipped(self.wr))
        connect(m, finish.scale, flipped(self.scale))
        m.d.comb += [
            reads.insn.eq(self.insn),
            reads.walk.eq(self.walk),
            reads.start.eq(self.start),
            lanes.reduce.eq(insn_view(isa.ReduceWindow, self.insn).reduce),
            lanes.i_valid.eq(slot.arrived),
            lanes.i_tap.eq(delay_valid(m, slot.soon & (slot.soon_tag.kind == TAP), slot.SOON, "tap_arrived")),
            lanes.i_tag.eq(slot.o_tag),
            lanes.i_data.eq(slot.o_data),
            lanes.row.eq(finish.group_row),
            lanes.chunk.eq(finish.chunk),
            finish.insn.eq(self.insn),
            finish.start.eq(self.start),
            finish.tail.eq(reads.tail),
            finish.param_valid.eq(slot.arrived),
            finish.param_tag.eq(slot.o_tag),
            finish.param_data.eq(slot.o_data.as_value()[: 16 * config.chunk]),
            finish.target_valid.eq(reads.target_valid),
            finish.target.eq(reads.target),
            finish.i_valid.eq(lanes.o_valid),
            finish.i_tag.eq(delay(m, slot.o_tag, lanes.TOTAL_LATENCY, "row_tag")),
            finish.i_data.eq(lanes.o_data),
        ]

        # --- room -----------------------------------------------------------------------------------------------------
        slots = 1 << ring_slot_bits(config)
        _, rows, no_rows = counter(m, finish.stored, reads.begins, WINDOW_ROWS, "rows_credit", init=WINDOW_ROWS)
        _, blocks, _ = counter(m, finish.block_done, reads.block_begins, slots, "block_credit", init=slots)
        free, room, empty = Signal(range(WINDOW_ROWS + 1), init=WINDOW_ROWS), Signal(init=1), Signal(init=1)
        left = (free - Mux(reads.begins, reads.chunks, 0) + finish.written)[: len(free)]
        m.d.sync += [free.eq(left), room.eq(left >= config.window_chunks), empty.eq(left == WINDOW_ROWS)]
        m.d.comb += [reads.row_free.eq(rows & room), reads.block_free.eq(blocks)]

        settle = Signal(range(NORM_SETTLE + 1))
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += settle.eq(NORM_SETTLE)
                with m.If(self.start):
                    m.next = "START"
            with m.State("START"):
                m.next = "RUN"
            with m.State("RUN"):
                with m.If(reads.finished & no_rows & empty):
                    m.next = "SETTLE"
            settled(m, settle, self.done, "IDLE")
        return m

    def _read(self, m: Module, reads: WindowReads) -> ReadSlot:
        """Reads to the scratchpad. The last tap of a group's first row waits until the group before it is finished, or will
        be when that tap has come through."""
        m.submodules.slot = slot = ReadSlot(self.config, read_tag(self.config), self.config.window_chunks)
        connect(m, slot.rd, flipped(self.rd))
        tag, asked = reads.payload.tag, slot.asked
        several = (tag.more != 0) | (tag.rows != 0)
        granted = slot.rd.valid & slot.rd.ready & asked.last & ((asked.more != 0) | (asked.rows != 0))
        # Since a group of several chunks has asked: until its last tap is granted, then until its sums are through.
        held, apart = Signal(), Signal(range(max(self.config.window_chunks * self.config.window_rows, 2)))
        allowed = ~(held & tag.row_last & (tag.kind == TAP))
        chunks = (asked.more + 1) * Array(range(1, self.config.window_rows + 1))[asked.rows]
        with m.If(granted):
            m.d.sync += [held.eq(chunks != 2), apart.eq(chunks - 2)]
        with m.Elif(apart != 0):
            m.d.sync += [held.eq(apart != 1), apart.eq(apart - 1)]
        m.d.comb += [
            slot.valid.eq(reads.valid & allowed),
            slot.addr.eq(reads.payload.addr),
            slot.tag.eq(reads.payload.tag),
            reads.ready.eq(slot.ready & allowed),
        ]
        with m.If(slot.valid & slot.ready & tag.last & several):
            m.d.sync += held.eq(1)
        return slot
