"""Expert queues: every token's chosen experts, sorted by expert, as the matrix unit reads them."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..config import Config
from ..memories import expert_bits, memories
from ..numerics import INT16_MAX, MAX_TOP_K
from . import ports
from .common import counter, delay, delay_valid, register
from .memory import RAM_LATENCY, Ram
from .small_memory import LutRam, SmallFifo
from .walk import Walk

SETTLE = latency.ROUTE_SETTLE
DENSE_ROWS = 8  # chunks of gates between the list and the scratchpad


class ExpertQueues(Component):
    """A counting sort of (token, expert, gate) by expert, tokens in rising order in each queue.

    Entries arrive token by token, top_k of each, and are listed and counted; when all `rows` tokens are there the queues'
    starts are the sums of the counts before, and the list is read once more to place the entries. With `dense` every
    row of gates is also written to the scratchpad on the way.

    Parameters: config. Ports: clear (strobe: all queues empty, begin); held during an instruction: rows, experts, top_k,
    dense, y, y_pitch; i_valid, i_expert, i_gate, i_last (last of its token); done (strobe); wr; lookup, queue, nonempty as
    in VectorUnit. Cycles from the last entry to done: experts + rows*top_k + 13, and with
    dense latency.DENSE_END, or where a row has several chunks latency.DENSE + 2 * chunks for every row.
    Cost: RAM of queue_entries x (28 and 28 + expert bits), LUT RAM of three small tables and DENSE_ROWS chunks.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "clear": In(1),
                "rows": In(16),
                "experts": In(8),
                "top_k": In(4),
                "dense": In(1),
                "y": In(ports.ADDRESS_BITS),
                "y_pitch": In(16),
                "i_valid": In(1),
                "i_expert": In(expert_bits(config)),
                "i_gate": In(16),
                "i_last": In(1),
                "done": Out(1),
                "wr": Out(ports.write_port(config, 1)),
                "lookup": In(ports.QUEUE_LOOKUP),
                "queue": In(ports.QUEUE_READ),
                "nonempty": Out(config.max_experts),
            }
        )

    def elaborate(self, platform):
        m = Module()
        depth, number = self.config.queue_entries, expert_bits(self.config)
        slots = 1 << number
        entry = data.StructLayout({"token": ports.ROW_BITS, "gate": 16, "expert": number})
        counts = LutRam(m, slots, ports.ROW_BITS + 1, "counts")
        starts = LutRam(m, slots, 16, "starts")
        cursors = LutRam(m, slots, 16, "cursors")  # where an expert's next entry goes
        m.submodules.listed = listed = Ram.of(memories(self.config)["expert list"])
        m.submodules.queues = queues = Ram.of(memories(self.config)["expert queues"])
        nonempty = Signal(slots)
        m.d.comb += self.nonempty.eq(nonempty)

        # --- what other units see -------------------------------------------------------------------------------
        asked = self.lookup.expert[:number]
        m.d.comb += [
            self.lookup.count.eq(Mux(nonempty.bit_select(asked, 1), counts.read(asked), 0)),
            self.lookup.start.eq(starts.read(asked)),
            queues.read_addr.eq(register(m, self.queue.addr, "queue_addr")),
            self.queue.entry.eq(delay(m, queues.read_data, ports.READ_LATENCY - RAM_LATENCY - 1, "queue_entry")),
        ]

        # --- entries arrive: list and count ---------------------------------------------------------------------
        token, entries = Signal(ports.ROW_BITS + 1), Signal(range(depth + 1))
        expert = Signal(8)  # of the walk over the counts
        of = Signal(number)
        known, count = Signal(), Signal(ports.ROW_BITS + 1)
        arrived = Signal(entry)
        walk = Signal()  # over the counts
        valid, last = delay_valid(m, self.i_valid, 1, "entry"), register(m, self.i_last, "entry_last")
        walking = delay_valid(m, walk, 1, "walking")
        following = Mux(self.i_valid, self.i_expert, expert[:number])
        m.d.sync += [of.eq(following), known.eq(nonempty.bit_select(following, 1) | (valid & (of == following)))]
        m.d.comb += [
            count.eq(Mux(known, counts.read(of), 0)),
            counts.write_addr.eq(of),
            counts.write_data.eq(count + 1),
            counts.write_enable.eq(valid),
            arrived.token.eq(token),
            arrived.gate.eq(register(m, self.i_gate, "entry_gate")),
            arrived.expert.eq(of),
            listed.write_addr.eq(entries),
            listed.write_data.eq(arrived),
            listed.write_enable.eq(valid),
        ]
        with m.If(valid):
            m.d.sync += [
                nonempty.bit_select(of, 1).eq(1),
                entries.eq(entries + 1),
                token.eq(token + last),
            ]

        # --- placement ------------------------------------------------------------------------------------------
        place, at = Signal(), Signal(range(depth + 1))
        to_place, some_to_place = Signal(range(depth + 1)), Signal()
        total = Signal(16)
        placing = delay_valid(m, place, RAM_LATENCY, "placing")
        placed = data.View(entry, listed.read_data)
        position = cursors.read(placed.expert)
        m.d.comb += [
            listed.read_addr.eq(at),
            starts.write_addr.eq(of),
            starts.write_data.eq(total),
            starts.write_enable.eq(walking),
            cursors.write_addr.eq(Mux(walking, of, placed.expert)),
            cursors.write_data.eq(Mux(walking, total, position + 1)),
            cursors.write_enable.eq(walking | placing),
            queues.write_addr.eq(register(m, position, "position")),
            queues.write_data.eq(register(m, Cat(placed.token, placed.gate), "moved")),
            queues.write_enable.eq(delay_valid(m, placing, 1, "moving")),
        ]
        with m.If(walking):
            m.d.sync += total.eq(total + count)
        with m.If(place):
            m.d.sync += [at.eq(at + 1), to_place.eq(to_place - 1), some_to_place.eq(to_place != 1)]

        # --- a dense row of gates -------------------------------------------------------------------------------
        chunk = self.config.chunk
        # The last entries: their experts counted from the chunk's first one, and their gates, limited to int16.
        kept = data.StructLayout({"lane": signed(9), "gate": 15})
        recent = [Signal(kept, name=f"recent_{k}", reset_less=True) for k in range(MAX_TOP_K)]
        newest = Signal(kept)
        m.d.comb += [
            newest.lane.eq(placed.expert),
            newest.gate.eq(Mux(placed.gate > INT16_MAX, INT16_MAX, placed.gate)),
        ]
        left, next_chunk = Signal(8), Signal()
        with m.If(placing):
            m.d.sync += [new.eq(old) for new, old in zip(recent, [newest, *recent], strict=False)]
        with m.Elif(next_chunk):
            m.d.sync += [entry.lane.eq(entry.lane - chunk) for entry in recent]
        counts_k = [register(m, self.top_k > k, f"counts_{k}") for k in range(MAX_TOP_K)]
        row = Signal(ports.elements(self.config, 1), reset_less=True)
        for lane in range(chunk):
            gate = 0
            for k in range(MAX_TOP_K):
                hit = (recent[k].lane == lane) & counts_k[k]
                gate = gate | Mux(hit, recent[k].gate, 0)
            m.d.sync += row[lane].eq(gate)
        # A row of one chunk is put together while the next one's entries come, a larger one chunk by chunk, alone.
        single, chunk_done, row_placed = Signal(), Signal(), Signal()
        pushed = delay_valid(m, row_placed, RAM_LATENCY + 2, "row_pushed") | chunk_done
        m.submodules.rows = rows = SmallFifo(DENSE_ROWS, ports.elements(self.config, 1).size)
        write, behind = Walk("dense"), Signal(8)  # logits that the rows' chunks have from this one on
        written, last_chunk = self.wr.valid & self.wr.ready, behind <= chunk
        _, unwritten, full = counter(m, row_placed | chunk_done, written, DENSE_ROWS, "dense_rows")
        m.d.sync += single.eq(self.experts <= chunk)
        with m.If(written):
            m.d.sync += [*write.step(last_chunk, self.y_pitch), behind.eq(Mux(last_chunk, self.experts, behind - chunk))]
        m.d.comb += [
            rows.push.eq(pushed),
            rows.push_data.eq(row.as_value()),
            self.wr.valid.eq(rows.o.valid),
            rows.o.ready.eq(self.wr.ready),
            self.wr.addr.eq(write.addr),
            self.wr.mask.eq(1),
            self.wr.data.as_value().eq(rows.o.payload),
        ]

        # --- control --------------------------------------------------------------------------------------------
        in_row, wait = Signal(range(MAX_TOP_K + 1)), Signal(range(SETTLE + 1))
        m.d.sync += wait.eq(Mux(wait != 0, wait - 1, 0))
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [token.eq(0), entries.eq(0), expert.eq(0), total.eq(0), at.eq(0), in_row.eq(0)]
                m.d.sync += [*write.start(self.y, self.y_pitch), behind.eq(self.experts)]
                with m.If(self.clear):
                    m.d.sync += nonempty.eq(0)
                    m.next = "LIST"
            with m.State("LIST"):
                with m.If(token == self.rows):
                    m.next = "SUM"
            with m.State("SUM"):
                m.d.comb += walk.eq(1)
                m.d.sync += [expert.eq(expert + 1), to_place.eq(entries), some_to_place.eq(entries != 0)]
                with m.If(expert + 1 == self.experts):
                    m.next = "PLACE"
            with m.State("PLACE"):
                m.d.sync += wait.eq(SETTLE)
                with m.If(~some_to_place):
                    m.next = "SETTLE"
                with m.Elif(~self.dense | (in_row + 1 != self.top_k)):
                    m.d.comb += place.eq(1)
                    m.d.sync += in_row.eq(in_row + 1)
                with m.Elif(~full):
                    m.d.comb += [place.eq(1), row_placed.eq(single)]
                    m.d.sync += [left.eq(self.experts), in_row.eq(0)]
                    with m.If(~single):
                        m.d.sync += wait.eq(RAM_LATENCY)
                        m.next = "ROW"
            with m.State("ROW"):
                # The row's entries are in `recent` when `wait` is over; one more cycle puts a chunk together.
                with m.If(wait == 0):
                    m.next = "CHUNK"
            with m.State("CHUNK"):
                m.next = "WRITE"
            with m.State("WRITE"):
                with m.If(~full):
                    m.d.comb += [chunk_done.eq(1), next_chunk.eq(1)]
                    m.d.sync += left.eq(left - chunk)
                    m.next = "CHUNK"
                    with m.If(left <= chunk):
                        m.next = "PLACE"
            with m.State("SETTLE"):
                with m.If(unwritten):
                    m.d.sync += wait.eq(SETTLE)
                with m.Elif(wait == 0):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
