"""Fetches the program and hands each unit its instructions when their counts are reached."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from .. import isa
from ..config import Config
from ..latency import FETCH_BATCH
from ..memories import FETCH_QUEUE, QUEUE_HEADS, memories
from .axi import COMMAND, beat_stream
from .claims import assume, claim, proves
from .fifo import RamFifo
from .insn import insn_view
from .ports import insn_layout, insn_stream

UNITS = len(isa.Unit)
# Operations of units that a Config need not have, and its field that says whether it has.
OPTIONAL = {
    isa.Op.WINDOW_WALK: "window_chunks",
    isa.Op.REDUCE_WINDOW: "window_chunks",
    isa.Op.SELECT: "select_rows",
    isa.Op.SCAN: "scan_states",
}


def insns_of(unit: isa.Unit, config: Config) -> dict[isa.Op, type[isa.Insn]]:
    """The instructions of a unit that the hardware of a Config knows."""
    there = {op for op in isa.INSNS if op not in OPTIONAL or getattr(config, OPTIONAL[op])}
    return {op: c for op, c in isa.INSNS.items() if c.unit == unit and op in there}


class Sequencer(Component):
    """Program order into one queue per unit; the head of a queue is offered once done[u] >= wait_u for every unit u.

    END, which must be the program's last instruction, waits at dispatch for its counts, then the run is over. An
    unknown operation (of a unit that the Config does not have, too), an END elsewhere or a program without END end
    it at once as `illegal`; `fault` ends it too. After these the queues hold leftovers: reset before the next start.
    A walk waits for nothing and gets no `done`.
    Dispatch is in program order, so a full queue holds up all instructions behind it: a program must not need, to free
    an instruction, one that comes more than isa.QUEUE_DEPTH of the same unit's later.

    Ports: start (strobe; resets the counts), program (beats from the data base), length (instructions); command and
    beats of the data reader; insn[5] (streams, by isa.Unit), done[5] (strobes, an instruction each); fault; running,
    finished (strobe), illegal (strobe, with finished), instruction (index of the next one to dispatch), counts[5]
    (finished instructions), stall_depend (an instruction for the matmul unit waits for its counts).
    Latency: 2 cycles from a done strobe to the instruction it frees, 5 from one accepted to the next offered.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "program": In(32),
                "length": In(32),
                "command": Out(stream.Signature(COMMAND)),
                "beats": In(beat_stream(config)),
                "insn": Out(insn_stream()).array(UNITS),
                "done": In(UNITS),
                "fault": In(1),
                "running": Out(1),
                "finished": Out(1),
                "illegal": Out(1),
                "instruction": Out(32),
                "counts": Out(data.ArrayLayout(unsigned(isa.COUNT_BITS), UNITS)),
                "stall_depend": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        insn_beats = isa.WORD_BYTES // config.axi_bytes

        def waits_met(word):
            header = insn_view(isa.End, word)
            return Cat(self.counts[u] >= header[f"wait_{u.name.lower()}"] for u in isa.Unit).all()

        with m.If(self.start):
            m.d.sync += self.counts.eq(0)
        with m.Else():
            for u in isa.Unit:
                m.d.sync += self.counts[u].eq(self.counts[u] + self.done[u])
                assume(m, platform, ~self.counts[u].all())  # a program has fewer instructions

        # Fetch: only what the queue can take, so the shared reader never waits for a dispatch.
        m.submodules.fetched = fetched = RamFifo.of(memories(config)["program"])
        room = Signal(range(FETCH_QUEUE + 1), init=FETCH_QUEUE)
        offset, left = Signal(32, reset_less=True), Signal(32)
        batch, asking = Signal(range(FETCH_BATCH + 1)), Signal()
        asked, dispatched = Signal(), Signal()
        m.d.sync += [
            batch.eq(Mux(left > FETCH_BATCH, FETCH_BATCH, left)),
            asking.eq((left != 0) & (room >= FETCH_BATCH) & ~asked),
        ]
        m.d.comb += [
            self.command.valid.eq(asking),
            self.command.payload.offset.eq(offset),
            self.command.payload.beats.eq(batch * insn_beats),
            asked.eq(self.command.valid & self.command.ready),
            fetched.i.valid.eq(self.beats.valid),
            fetched.i.payload.eq(self.beats.payload),
            self.beats.ready.eq(fetched.i.ready),
        ]
        m.d.sync += room.eq(room + dispatched - Mux(asked, batch, 0))
        with m.If(self.start):
            m.d.sync += [offset.eq(self.program), left.eq(self.length)]
        with m.Elif(asked):
            m.d.sync += [offset.eq(offset + batch * insn_beats), left.eq(left - batch)]

        word, whole, beat_at = Signal(isa.WORD_BITS, reset_less=True), Signal(), Signal(range(max(insn_beats, 2)))
        m.d.comb += fetched.o.ready.eq(~whole)
        with m.If(fetched.o.valid & fetched.o.ready):
            m.d.sync += [
                word.eq(Cat(word, fetched.o.payload)[8 * config.axi_bytes :]),
                beat_at.eq(Mux(beat_at == insn_beats - 1, 0, beat_at + 1)),
                whole.eq(beat_at == insn_beats - 1),
            ]
        with m.If(dispatched):
            m.d.sync += whole.eq(0)

        # Dispatch.
        queues = [self._queue(m, platform, u, waits_met) for u in isa.Unit]
        op, is_end, known = word[: isa.OP_BITS], Signal(), Signal()
        end_met = Signal()
        m.d.comb += [is_end.eq(op == isa.Op.END), known.eq(0)]
        m.d.sync += end_met.eq(whole & waits_met(word))  # a cycle late: `whole` stays while END waits
        for u, queue in zip(isa.Unit, queues, strict=True):
            m.d.comb += queue.i.payload.eq(word)
            with m.If(Cat(op == o for o in insns_of(u, config)).any()):
                m.d.comb += [
                    known.eq(1),
                    queue.i.valid.eq(whole & self.running),
                    dispatched.eq(whole & self.running & queue.i.ready),
                ]
        with m.If(self.start):
            m.d.sync += self.instruction.eq(0)
        with m.Elif(dispatched):
            m.d.sync += self.instruction.eq(self.instruction + 1)

        # A cycle late: behind its last instruction nothing is whole, and END has waited a cycle.
        at_end, at_last = Signal(), Signal()
        m.d.sync += [
            at_end.eq(self.running & (self.instruction == self.length)),
            at_last.eq(self.instruction + 1 == self.length),
        ]
        with m.FSM():
            with m.State("HALTED"):
                with m.If(self.start):
                    m.next = "RUNNING"
            with m.State("RUNNING"):
                m.d.comb += self.running.eq(1)
                with m.If(self.fault):
                    m.d.comb += self.finished.eq(1)
                    m.next = "HALTED"
                with m.Elif(at_end | (whole & ~known & ~is_end)):
                    m.d.comb += [self.finished.eq(1), self.illegal.eq(1)]
                    m.next = "HALTED"
                with m.Elif(whole & is_end & end_met):
                    m.d.comb += [
                        self.finished.eq(1),
                        self.illegal.eq(~at_last),
                        dispatched.eq(1),
                    ]
                    m.next = "HALTED"
        return m

    def _queue(self, m: Module, platform, unit: isa.Unit, waits_met) -> RamFifo:
        """The queue of a unit, as wide as its longest instruction; its head is offered once its counts are reached."""
        width = max(insn_layout(insn).size for insn in insns_of(unit, self.config).values())
        name = unit.name.lower()
        m.submodules[f"queue_{name}"] = queue = RamFifo(width, isa.QUEUE_DEPTH, style="distributed", lookahead=QUEUE_HEADS)
        out = self.insn[unit]
        released = Signal(name=f"released_{name}")  # counts only rise: once true for a head, it stays true
        m.d.comb += [
            out.valid.eq(released),
            out.payload.eq(queue.o.payload),
            queue.o.ready.eq(released & out.ready),
        ]
        m.d.sync += released.eq(queue.o.valid & waits_met(queue.o.payload) & ~queue.o.ready)
        if unit == isa.Unit.MATMUL:
            m.d.comb += self.stall_depend.eq(queue.o.valid & ~released)

        if proves(platform):
            free, met = Signal(name=f"free_{name}"), waits_met(queue.o.payload)
            assume(m, platform, ~self.start | (queue.words(platform) == 0))  # leftovers are reset before
            m.d.sync += free.eq(queue.o.valid & met & ~self.start & ~queue.o.ready)
            # Never early; and what may start is offered in the next cycle, whatever the others do.
            claim(m, platform, ~released | (queue.o.valid & met), ~free | released)
        return queue
