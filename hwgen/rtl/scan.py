"""Scan: executes `isa.Scan`: recurrences over rows, some chunks of channels at a time."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa, latency
from ..config import Config
from ..isa import SCAN_ENTRIES
from ..latency import (
    NORM_SETTLE,
    SCAN_FED_AT,
    SCAN_LOOP,
    SCAN_MIX,
    SCAN_QUEUE,
    SCAN_RESULTS,
    SCAN_SELECT,
    SCAN_STATE_AT,
    SCAN_STEP,
)
from ..numerics import SCAN_STATES_MAX
from . import ports
from .common import counter, delay, delay_valid, lanes_mask, register, settled
from .read_slot import ReadSlot
from .scan_lanes import ENTRY_BITS, SKIP_STAGES, ScanElement, ScanLane, ScanSum
from .shared import place
from .small_memory import LutRam, SmallFifo

SKIP, RATE, MIX, STEPS, X = range(5)  # what a chunk that was read is


class Scan(Component):
    """numerics.scan over the rows, for a group of chunks of channels after another.

    For each group: its parameters, into LUT RAM of the lanes; then for each row b and g of all states, and for each chunk its
    steps and x, which go through `ScanElement`; `scan_states` states of each element at a time through `ScanLane`, in `beats`
    beats; their sums through `ScanSum`. Chunks wait in a queue, which keeps an element for as many cycles as it has beats. Rows
    of few beats wait until the states of the row before can be read. The next group begins when all of this one is written.

    Parameters: config, with scan_states. Ports: start (strobe), insn (held until done), done (strobe: all writes visible);
    rd, wr (scratchpad, a chunk a cycle). Preconditions: rows, columns, group at least 1; beats = states / scan_states, rounded
    up; group * beats at most SCAN_ENTRIES; states at most SCAN_STATES_MAX.
    Cycles: `latency.scan_cycles`. Cost: see the lanes; twice 2 * SCAN_STATES_MAX elements of registers, and multiplexers from
    these for b and g of scan_states.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "insn": In(ports.insn_layout(isa.Scan)),
                "done": Out(1),
                "rd": Out(ports.read_port(config, 1)),
                "wr": Out(ports.write_port(config, 1)),
            }
        )
        # Of a chunk that was read. index: its entry, or which one it is; sub: which of the lanes takes a rate.
        self.about = data.StructLayout(
            {
                "kind": range(5),
                "index": ENTRY_BITS,
                "sub": range(max(config.scan_states, 2)),
                "odd": 1,
                "first_row": 1,
                "first": 1,
                "last": 1,
                "tail": 1,
                "final": 1,
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, insn = self.config, self.insn
        word = data.StructLayout({"data": 16 * config.chunk, "about": self.about})
        m.submodules.queue = queue = SmallFifo(SCAN_QUEUE, word.size)
        group, settle = Signal(), Signal(range(NORM_SETTLE + 1))
        more = self.reads(m, queue, group)

        # --- a chunk of the queue at a time -----------------------------------------------------------------------------
        came, pop = data.View(word, queue.o.payload), Signal()
        kind, written = came.about.kind, Signal()
        gap, row_gap = Signal(range(SCAN_STATES_MAX)), Signal(range(SCAN_LOOP))
        taken = Signal()
        _, room, _ = counter(m, written, taken, SCAN_RESULTS, "results", init=SCAN_RESULTS)
        ready = (gap == 0) & room & (~came.about.first | (row_gap == 0))
        m.d.comb += [
            pop.eq(queue.o.valid & ((kind != X) | ready)),
            queue.o.ready.eq((kind != X) | ready),
            taken.eq(pop & (kind == X)),
        ]
        m.d.sync += [gap.eq(Mux(gap == 0, 0, gap - 1)), row_gap.eq(Mux(row_gap == 0, 0, row_gap - 1))]
        with m.If(taken):
            m.d.sync += gap.eq(insn.beats - 1)
            with m.If(came.about.first):
                m.d.sync += row_gap.eq(SCAN_LOOP - 1)

        elements = ports.elements(config, 1)
        coming, s, x, skip = (Signal(elements, name=n, reset_less=True) for n in ("coming", "s", "x", "skip"))
        about = Signal(self.about, reset_less=True)
        skips = LutRam(m, SCAN_ENTRIES, 16 * config.chunk, "skips")
        m.d.comb += [
            skips.write_addr.eq(came.about.index),
            skips.write_data.eq(came.data),
            skips.write_enable.eq(pop & (kind == SKIP)),
        ]
        with m.If(pop & (kind == STEPS)):
            m.d.sync += coming.as_value().eq(came.data)
        with m.If(taken):
            m.d.sync += [s.eq(coming), x.as_value().eq(came.data), about.eq(came.about)]
            m.d.sync += skip.as_value().eq(skips.read(came.about.index))

        # --- its beats --------------------------------------------------------------------------------------------------
        busy, beat, entry = Signal(), Signal(range(SCAN_STATES_MAX)), Signal(ENTRY_BITS)
        last_beat = beat == insn.beats - 1
        m.d.sync += [entry.eq(entry + busy), beat.eq(beat + busy), busy.eq(busy & ~last_beat)]
        with m.If(taken):
            m.d.sync += [busy.eq(1), beat.eq(0)]
            with m.If(came.about.first):
                m.d.sync += entry.eq(0)
        mixed = self.mixed(m, pop & (kind == MIX), came, busy, beat, about.odd)
        rate, rating = register(m, came, "rate"), delay_valid(m, pop & (kind == RATE), 1, "rating")
        products = self.lanes(m, platform, (s, x), (busy, about.first_row, entry), mixed, rate, rating)
        go_on = self.results(m, platform, products, (x, skip, about), (busy & last_beat, beat == 0), written)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += group.eq(self.start)
                m.d.sync += settle.eq(NORM_SETTLE)
                with m.If(self.start):
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(go_on):
                    m.d.comb += group.eq(more)
                    with m.If(~more):
                        m.next = "SETTLE"
            settled(m, settle, self.done, "IDLE")
        return m

    def reads(self, m: Module, queue: SmallFifo, group: Value) -> Value:
        """Chunks of the group that begins into the queue; returns whether columns are left for another one behind it."""
        insn, chunk, lanes = self.insn, self.config.chunk, self.config.scan_states
        m.submodules.slot = slot = ReadSlot(self.config, self.about)
        connect(m, slot.rd, flipped(self.rd))
        accepted = Signal()
        _, room, _ = counter(m, queue.o.valid & queue.o.ready, accepted, SCAN_QUEUE, "room", init=SCAN_QUEUE)
        addr, tag, asking = Signal(ports.ADDRESS_BITS), slot.tag, Signal()
        m.d.comb += [
            slot.valid.eq(asking & room),
            slot.addr.eq(addr),
            accepted.eq(slot.valid & slot.ready),
            queue.push.eq(slot.arrived),
            queue.push_data.eq(Cat(slot.o_data, slot.o_tag)),
        ]
        column, more = Signal(ports.ADDRESS_BITS), Signal()  # first chunk of the group
        # Columns that are left: when the group begins, and from a chunk on; chunks of the group before this one.
        left_group, left, place_in = Signal(16), Signal(16), Signal(range(SCAN_ENTRIES))
        last = (left <= chunk) | (place_in == insn.group - 1)
        rows = [Signal(ports.ADDRESS_BITS, name=f"{n}_row") for n in ("mix", "steps", "x")]  # of the row at hand
        mix_row, steps_row, x_row = rows
        names = "param_row", "param", "mix", "steps", "x"
        param_row, param, mix, steps, x = (Signal(ports.ADDRESS_BITS, name=n) for n in names)
        row, first_row, odd = Signal(16), Signal(), Signal()
        mix_left, mix_index = Signal(range(2 * SCAN_STATES_MAX + 1)), Signal(range(2 * SCAN_STATES_MAX))
        state, sub, entry = Signal(range(SCAN_STATES_MAX + 1)), Signal(range(max(lanes, 2))), Signal(ENTRY_BITS)
        of_row = Signal(ENTRY_BITS)  # entry of the first chunk in a row of rates
        m.d.comb += [
            tag.sub.eq(sub),
            tag.odd.eq(odd),
            tag.first_row.eq(first_row),
            tag.first.eq(place_in == 0),
            tag.last.eq(last),
            tag.tail.eq(left <= chunk),
            tag.final.eq(last & (row == 0)),
        ]

        def begin_row() -> list:
            return [place_in.eq(0), left.eq(left_group)]

        def begin_mix(at: Value) -> list:
            return [mix.eq(at), mix_left.eq(insn.states << 1), mix_index.eq(0)]

        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [left_group.eq(insn.columns), column.eq(0)]
                with m.If(group):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.sync += [
                    param_row.eq(insn.params + column),
                    param.eq(insn.params + column),
                    mix_row.eq(insn.mix),
                    steps_row.eq(insn.steps + column),
                    x_row.eq(insn.x + column),
                    row.eq(insn.rows - 1),
                    first_row.eq(1),
                    state.eq(0),
                    sub.eq(0),
                    entry.eq(0),
                    of_row.eq(0),
                    *begin_row(),
                ]
                m.next = "PARAMS"
            with m.State("PARAMS"):  # row 0: skips; row 1 + n: the rates of state n
                m.d.comb += [
                    asking.eq(1),
                    addr.eq(param),
                    tag.kind.eq(Mux(state == 0, SKIP, RATE)),
                    tag.index.eq(Mux(state == 0, place_in, entry)),
                ]
                with m.If(accepted):
                    m.d.sync += [param.eq(param + 1), entry.eq(entry + insn.beats)]
                    m.d.sync += [place_in.eq(place_in + 1), left.eq(left - chunk)]
                    with m.If(last):
                        following = param_row + insn.params_pitch
                        m.d.sync += [*begin_row(), param_row.eq(following), param.eq(following), state.eq(state + 1)]
                        with m.If(state == 0):
                            m.d.sync += entry.eq(0)
                        with m.Elif(sub == lanes - 1):
                            m.d.sync += [sub.eq(0), of_row.eq(of_row + 1), entry.eq(of_row + 1)]
                        with m.Else():
                            m.d.sync += [sub.eq(sub + 1), entry.eq(of_row)]
                        with m.If(state == insn.states):
                            m.d.sync += begin_mix(mix_row)
                            m.next = "MIX"
            with m.State("MIX"):
                m.d.comb += [asking.eq(1), addr.eq(mix), tag.kind.eq(MIX), tag.index.eq(mix_index)]
                with m.If(accepted):
                    m.d.sync += [mix.eq(mix + 1), mix_left.eq(mix_left - chunk), mix_index.eq(mix_index + 1)]
                    with m.If(mix_left <= chunk):
                        m.d.sync += [steps.eq(steps_row), x.eq(x_row)]
                        m.next = "STEPS"
            with m.State("STEPS"):
                m.d.comb += [asking.eq(1), addr.eq(steps), tag.kind.eq(STEPS)]
                with m.If(accepted):
                    m.d.sync += steps.eq(steps + 1)
                    m.next = "X"
            with m.State("X"):
                m.d.comb += [asking.eq(1), addr.eq(x), tag.kind.eq(X), tag.index.eq(place_in)]
                with m.If(accepted):
                    m.d.sync += [x.eq(x + 1), place_in.eq(place_in + 1), left.eq(left - chunk)]
                    m.next = "STEPS"
                    with m.If(last):
                        pitches = insn.mix_pitch, insn.steps_pitch, insn.x_pitch
                        m.d.sync += [at.eq(self.next_row(at, pitch)) for at, pitch in zip(rows, pitches, strict=True)]
                        m.d.sync += [*begin_row(), row.eq(row - 1), first_row.eq(0), odd.eq(~odd)]
                        m.d.sync += begin_mix(self.next_row(mix_row, insn.mix_pitch))
                        m.next = "MIX"
                        with m.If(row == 0):
                            m.d.sync += [left_group.eq(left - chunk), more.eq(left > chunk), column.eq(column + place_in + 1)]
                            m.next = "IDLE"
        return more

    def mixed(
        self, m: Module, came: Value, word: data.View, busy: Value, beat: Value, odd: Value
    ) -> list[tuple[Value, Value]]:
        """(b, g) of each of the lanes' states, at their cycles. A row's stand beside those of the row before, which may still
        be in use."""
        insn, lanes, chunk = self.insn, self.config.scan_states, self.config.chunk
        words = -(-2 * SCAN_STATES_MAX // chunk)
        writing = delay_valid(m, came, SCAN_MIX, "mix_came")
        fields = (word.about.index, word.about.odd, word.data)
        index, parity, value = (delay(m, v, SCAN_MIX, f"mix_{n}") for n, v in zip(("index", "odd", "data"), fields, strict=True))
        banks = []
        for side in range(2):
            held = [Signal(16 * chunk, name=f"mix_{side}_{i}", reset_less=True) for i in range(words)]
            for i, part in enumerate(held):
                with m.If(writing & (index == i) & (parity == side)):
                    m.d.sync += part.eq(value)
            banks.append(Cat(held))
        beat, odd = (delay(m, v, SCAN_STEP + SCAN_SELECT - 1, f"mix_{n}") for n, v in (("beat", beat), ("side", odd)))
        base = register(m, (beat * lanes)[:ENTRY_BITS], "mix_base")
        odd = register(m, odd, "mix_side")
        found = []
        for s in range(lanes):
            at = base + s
            fed = [bank.word_select(at[:ENTRY_BITS], 16) for bank in banks]
            read = [bank.word_select((at + insn.states)[:ENTRY_BITS], 16) for bank in banks]
            b, g = ([register(m, v, f"mix_{n}{s}_{i}") for i, v in enumerate(pair)] for n, pair in (("b", fed), ("g", read)))
            there, side = register(m, at < insn.states, f"mix_there{s}"), register(m, odd, f"mix_odd{s}")
            b = register(m, Mux(side, b[1], b[0]), f"b{s}")
            g = register(m, Mux(there, Mux(side, g[1], g[0]), 0), f"g{s}")
            found.append((b.as_signed(), delay(m, g, SCAN_STATE_AT - SCAN_FED_AT, f"g{s}").as_signed()))
        return found

    def lanes(self, m: Module, platform, chunk, beat, mixed, rate: data.View, rating: Value) -> list[Value]:
        """The products of the states of each element, side by side, SCAN_STEP + SCAN_PRODUCT cycles after the beat. `rate`: rates
        of a chunk, where `rating`."""
        insn, config = self.insn, self.config
        (s, x), (busy, first_row, entry) = chunk, beat
        valid = delay_valid(m, busy, SCAN_STEP, "beat")
        first, entry = (delay(m, v, SCAN_STEP, n) for v, n in ((first_row, "beat_first"), (entry, "beat_entry")))
        products = []
        for i in range(config.chunk):
            element = place(m, f"element_{i}", ScanElement, config, platform)
            m.d.comb += [
                element.s.eq(s[i]),
                element.x.eq(x[i]),
                element.steps.eq(insn.steps_shift),
                element.shift.eq(insn.step_shift),
                element.fed_shift.eq(insn.fed_shift),
            ]
            of_element = []
            for k, (b, g) in enumerate(mixed):
                lane = place(m, f"lane_{i}_{k}", ScanLane, config, platform)
                m.d.comb += [
                    lane.rate_write.eq(rating & (rate.about.sub == k)),
                    lane.rate_entry.eq(rate.about.index),
                    lane.rate.eq(rate.data.word_select(i, 16)),
                    lane.valid.eq(valid),
                    lane.first.eq(first),
                    lane.entry.eq(entry),
                    lane.step.eq(element.step),
                    lane.decay_shift.eq(insn.decay_shift),
                    lane.fed.eq(element.fed),
                    lane.b.eq(b),
                    lane.g.eq(g),
                ]
                of_element.append(lane.product)
            products.append(Cat(of_element))
        return products

    def results(self, m: Module, platform, products, chunk, beat, written: Signal) -> Value:
        """The results of every chunk to their places, each with the strobe `written`; returns that of the group's last one."""
        insn, config = self.insn, self.config
        (x, skip, about), (done, first) = chunk, beat
        behind = latency.scan_products(config)  # from a beat to the sum over its lanes
        tail = register(m, lanes_mask(self.tail(m), config.chunk), "tail")
        early = behind + 1 - SKIP_STAGES
        x, skip = delay(m, x, early, "x_late"), delay(m, skip, early, "skip_late")
        keep = delay(m, tail | ~about.tail.replicate(config.chunk), early, "keep")
        first = delay(m, first, behind, "first_beat")
        values = []
        for i, product in enumerate(products):
            lane = place(m, f"sum_{i}", ScanSum, config, platform)
            m.d.comb += [
                lane.products.eq(product),
                lane.first.eq(first),
                lane.skip.eq(skip[i]),
                lane.x.eq(x[i]),
                lane.keep.eq(keep[i]),
                lane.skip_shift.eq(insn.skip_shift),
                lane.shift.eq(insn.shift),
            ]
            values.append(lane.y)
        after = behind + latency.SCAN_SUM
        m.submodules.made = made = SmallFifo(SCAN_RESULTS, 16 * config.chunk + 2)
        flags = delay(m, Cat(about.last, about.final), after, "result_about")
        m.d.comb += [
            made.push.eq(delay_valid(m, done, after, "result")),
            made.push_data.eq(Cat(values, flags)),
        ]
        addr, row, begin, count = (Signal(ports.ADDRESS_BITS, name=f"y_{n}") for n in ("addr", "row", "begin", "count"))
        last, final = made.o.payload[-2], made.o.payload[-1]
        m.d.comb += [
            self.wr.valid.eq(made.o.valid),
            self.wr.addr.eq(addr),
            self.wr.mask.eq(1),
            self.wr.data.eq(made.o.payload[: 16 * config.chunk]),
            made.o.ready.eq(self.wr.ready),
            written.eq(self.wr.valid & self.wr.ready),
        ]
        following = self.next_row(row, insn.y_pitch)
        with m.If(self.start):
            m.d.sync += [addr.eq(insn.y), row.eq(insn.y), begin.eq(insn.y), count.eq(1)]
        with m.Elif(written):
            m.d.sync += [addr.eq(addr + 1), count.eq(count + 1)]
            with m.If(last):
                after_row = Mux(final, begin + count, following)
                m.d.sync += [addr.eq(after_row), row.eq(after_row), count.eq(1)]
                with m.If(final):
                    m.d.sync += begin.eq(begin + count)
        return written & final

    def next_row(self, at: Value, pitch: Value) -> Value:
        """Address of the row behind that at `at`, in the order of the scan."""
        return (at + Mux(self.insn.backwards, -pitch, pitch))[: ports.ADDRESS_BITS]

    def tail(self, m: Module) -> Value:
        """Elements of the last chunk of columns."""
        rest = Signal(16)
        with m.If(self.start):
            m.d.sync += rest.eq(self.insn.columns)
        with m.Elif(rest > self.config.chunk):
            m.d.sync += rest.eq(rest - self.config.chunk)
        return rest
