"""Selection: executes `isa.Select`: ranks rows by their scores, then copies a run of them."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from ..latency import NORM_SETTLE, RAM, SELECT_QUEUE
from ..memories import selected_bits
from . import ports
from .common import counter, settled
from .ranking import Ranking
from .read_slot import ReadSlot
from .small_memory import SmallFifo


class Select(Component):
    """y row r = x row order[first + r], order = numerics.ranked(scores): best first, ties to the lower row.

    The scores go one by one into `Ranking`, each with the address of its row, a sum of pitches, so that no row number is ever
    multiplied; its list is then that of the rows to read. Scores and rows come through one queue of chunks, counted before
    they are read.

    Parameters: config, with select_rows. Ports: start (strobe), insn (held until done), done (strobe: all writes visible);
    rd, wr (scratchpad, a chunk a cycle). Preconditions: at least one score, at most select_rows; first + rows at most as many.
    Cycles: `latency.select_cycles`. Cost: `Ranking`, LUT RAM of SELECT_QUEUE chunks; no multiplier.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "insn": In(ports.insn_layout(isa.Select)),
                "done": Out(1),
                "rd": Out(ports.read_port(config, 1)),
                "wr": Out(ports.write_port(config, 1)),
            }
        )
        # Of a chunk: elements in it, up to its own size; whether it is its row's last one; whether the last of all.
        self.about = data.StructLayout({"elements": range(config.chunk + 1), "last": 1, "final": 1})
        self.chunk = data.StructLayout({"data": 16 * config.chunk, "about": self.about})

    def elaborate(self, platform):
        m = Module()
        insn = self.insn
        m.submodules.ranking = ranking = Ranking(self.config)
        m.submodules.queue = queue = SmallFifo(SELECT_QUEUE, self.chunk.size)
        copying, settle = Signal(), Signal(range(NORM_SETTLE + 1))
        chunk = data.View(self.chunk, queue.o.payload)
        used_up = self.scores(m, ranking, queue.o.valid, chunk)
        m.d.comb += [ranking.start.eq(self.start), queue.o.ready.eq(Mux(copying, self.wr.ready, used_up))]

        # --- rows to read: those of the scores, then those of the list ------------------------------------------------
        score_row, taken = Signal(ports.ADDRESS_BITS), Signal()
        stale = Signal(RAM)  # the list's item is not that of `index`
        row = Mux(copying, ranking.o_item, score_row)
        self.read_rows(m, queue, ranking.done, copying, row, ~copying | ~stale[0], taken)
        with m.If(self.start):
            m.d.sync += score_row.eq(insn.scores)
        with m.Elif(taken):
            m.d.sync += score_row.eq(score_row + insn.scores_pitch)
        m.d.sync += stale.eq(Mux(taken | ranking.done, (1 << RAM) - 1, stale >> 1))
        with m.If(ranking.done):
            m.d.sync += ranking.index.eq(insn.first)
        with m.Elif(taken):
            m.d.sync += ranking.index.eq(ranking.index + 1)

        written = self.write_rows(m, queue.o, chunk, copying)
        with m.FSM():
            with m.State("RANK"):
                m.d.sync += settle.eq(NORM_SETTLE)
                with m.If(ranking.done):
                    m.next = "COPY"
            with m.State("COPY"):
                m.d.comb += copying.eq(1)
                with m.If(written | (insn.rows == 0)):
                    m.next = "SETTLE"
            settled(m, settle, self.done, "RANK")
        return m

    def scores(self, m: Module, ranking: Ranking, valid: Value, chunk: data.View) -> Value:
        """A score a cycle to the ranking; returns whether that was the last one of `chunk`."""
        insn = self.insn
        index = Signal(range(self.config.chunk))
        row = Signal(selected_bits(self.config))  # of x, to which the score belongs
        last, given = Signal(), Signal()
        m.d.comb += [
            last.eq(index + 1 == chunk.about.elements),
            given.eq(valid & ranking.i_ready),
            ranking.i_valid.eq(valid),
            ranking.i_score.eq(chunk.data.word_select(index, 16)),
            ranking.i_item.eq(row),
            ranking.i_last.eq(last & chunk.about.final),
        ]
        with m.If(self.start):
            m.d.sync += [index.eq(0), row.eq(insn.x)]
        with m.Elif(given):
            m.d.sync += [index.eq(Mux(last, 0, index + 1)), row.eq(row + insn.x_pitch)]
        return given & last

    def read_rows(self, m: Module, queue: SmallFifo, copy: Value, copying: Value, row: Value, known: Value, taken: Value) -> None:
        """Chunks of the rows into the queue. `row`: address of the next one, where `known`; `taken`: it has been."""
        insn, chunk = self.insn, self.config.chunk
        m.submodules.reads = reads = ReadSlot(self.config, self.about)
        connect(m, reads.rd, flipped(self.rd))
        rows, left = Signal(16), Signal(16)  # rows that have not begun; columns of the one that has, from `addr` on
        addr, asking = Signal(ports.ADDRESS_BITS), Signal()
        accepted, last = Signal(), Signal()
        _, room, _ = counter(m, queue.o.valid & queue.o.ready, accepted, SELECT_QUEUE, "room", init=SELECT_QUEUE)
        m.d.comb += [
            last.eq(left <= chunk),
            reads.valid.eq(asking & room),
            reads.addr.eq(addr),
            reads.tag.elements.eq(Mux(last, left, chunk)),
            reads.tag.last.eq(last),
            reads.tag.final.eq(last & (rows == 0)),
            accepted.eq(reads.valid & reads.ready),
            taken.eq(known & (rows != 0) & (~asking | (accepted & last))),
            queue.push.eq(reads.arrived),
            queue.push_data.eq(Cat(reads.o_data, reads.o_tag)),
        ]
        with m.If(self.start | copy):
            m.d.sync += rows.eq(Mux(copy, insn.rows, insn.score_rows))
        with m.Elif(taken):
            m.d.sync += rows.eq(rows - 1)
        with m.If(taken):
            m.d.sync += [asking.eq(1), addr.eq(row), left.eq(Mux(copying, insn.columns, insn.score_columns))]
        with m.Elif(accepted):
            m.d.sync += [asking.eq(~last), addr.eq(addr + 1), left.eq(left - chunk)]

    def write_rows(self, m: Module, o, chunk: data.View, copying: Value) -> Value:
        """Chunks of the queue to the rows of y; returns whether that was the last one."""
        insn = self.insn
        addr, following, sent = Signal(ports.ADDRESS_BITS), Signal(ports.ADDRESS_BITS), Signal()
        m.d.comb += [
            self.wr.valid.eq(copying & o.valid),
            self.wr.addr.eq(addr),
            self.wr.mask.eq(1),
            self.wr.data.eq(chunk.data),
            sent.eq(self.wr.valid & self.wr.ready),
        ]
        with m.If(~copying):
            m.d.sync += [addr.eq(insn.y), following.eq(insn.y + insn.y_pitch)]
        with m.Elif(sent):
            m.d.sync += addr.eq(Mux(chunk.about.last, following, addr + 1))
            with m.If(chunk.about.last):
                m.d.sync += following.eq(following + insn.y_pitch)
        return sent & chunk.about.final
