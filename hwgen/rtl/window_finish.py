"""The rows of the window engine from their sums to the scratchpad: a chunk a cycle, with the parameters of its columns."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import isa
from ..config import Config
from ..latency import WINDOW_RING, WINDOW_ROWS
from ..memories import memories
from ..numerics import WINDOW_SUM_BITS
from . import ports
from .common import WIDE, delay, delay_valid, lanes_mask, register
from .insn import insn_view
from .memory import RAM_LATENCY, Ram
from .small_memory import LutRam, SmallFifo
from .window_post import WindowPost
from .window_reads import BIAS, MULT, TARGET, read_tag, ring_slot_bits

MAXIMUM_BITS = 15


class WindowFinish(Component):
    """For every row: for every chunk of its block of columns: a chunk of sums through `WindowPost` to the row's place.

    Multipliers and biases stand in a ring of WINDOW_RING chunks. A row's largest magnitude so far is kept in RAM until the
    last block of columns. Places, results and maxima wait in FIFOs; who sends rows counts what is in them.

    Parameters: config. Ports: insn (word, held), start (strobe), tail (elements of a row's last chunk); param_valid,
    param_tag, param_data (multipliers and biases); target_valid, target (a row's place, ahead of it); i_valid, i_tag (strobe:
    a group's sums are there two cycles later), group_row, chunk, i_data (chunk of the sums, combinational); wr, scale;
    strobes written (a chunk), stored (a row of a block, with its maximum), block_done (the ring's chunks of a block are free).
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "insn": In(ports.insn_layout(isa.ReduceWindow).size),
                "start": In(1),
                "tail": In(range(config.chunk + 1)),
                "param_valid": In(1),
                "param_tag": In(read_tag(config)),
                "param_data": In(ports.elements(config, 1)),
                "target_valid": In(1),
                "target": In(TARGET),
                "i_valid": In(1),
                "i_tag": In(read_tag(config)),
                "group_row": Out(range(max(config.window_rows, 2))),
                "chunk": Out(range(max(config.window_chunks, 2))),
                "i_data": In(data.ArrayLayout(signed(WINDOW_SUM_BITS), config.chunk)),
                "wr": Out(ports.write_port(config, 1)),
                "scale": Out(ports.SCALE_WRITE),
                "written": Out(1),
                "stored": Out(1),
                "block_done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, insn = self.config, insn_view(isa.ReduceWindow, self.insn)
        m.submodules.post = post = WindowPost(config)

        # --- a chunk a cycle ------------------------------------------------------------------------------------------
        m.submodules.targets = targets = SmallFifo(WINDOW_ROWS, TARGET.size)
        m.d.comb += [
            targets.push.eq(self.target_valid),
            targets.push_data.eq(self.target),
        ]
        chunk = Signal(range(max(config.window_chunks, 2)), name="at_chunk")
        group_row = Signal(range(max(config.window_rows, 2)), name="at_row")
        # They choose among all sums, a chunk of them a cycle: a cycle later, near the sums.
        m.d.comb += [
            self.chunk.eq(register(m, chunk, "chunk_near", WIDE)),
            self.group_row.eq(register(m, group_row, "row_near", WIDE)),
        ]
        busy, about = Signal(), Signal(read_tag(config), reset_less=True)
        place = Signal(TARGET, reset_less=True)
        slot, row, first_block = Signal(ring_slot_bits(config)), Signal(ports.ROW_BITS), Signal()
        first, last, last_row = chunk == 0, chunk == about.more, group_row == about.rows
        block_end = about.block_end & last_row
        m.d.comb += targets.o.ready.eq(self.i_valid | (busy & last & ~last_row))
        with m.If(busy):
            m.d.sync += [chunk.eq(chunk + 1), place.addr.eq(place.addr + 1), busy.eq(~last | ~last_row)]
            with m.If(last):
                m.d.sync += [row.eq(Mux(block_end, 0, row + 1)), slot.eq(slot + block_end)]
                m.d.sync += [first_block.eq(first_block & ~block_end), group_row.eq(group_row + 1)]
        with m.If(self.i_valid):
            m.d.sync += [busy.eq(1), group_row.eq(0), about.eq(self.i_tag)]
        with m.If(targets.o.ready):
            m.d.sync += [chunk.eq(0), place.eq(targets.o.payload)]
        with m.If(self.start):
            m.d.sync += [row.eq(0), first_block.eq(1)]
        tail = register(m, lanes_mask(self.tail, config.chunk), "tail_mask")
        chosen, ends = delay_valid(m, busy, 1, "chosen"), delay_valid(m, busy & last, 1, "row_chosen")
        m.d.comb += [
            post.i_valid.eq(chosen),
            post.i_data.eq(self.i_data),
            post.i_keep.eq(register(m, tail | ~(about.final & last).replicate(config.chunk), "keep")),
            *(getattr(post, name).eq(insn[name]) for name in ("before", "shift", "gelu", "gelu_shift")),
            self.block_done.eq(delay_valid(m, busy & last & block_end, post.BIAS_AT + 2, "block")),
        ]
        self._parameters(m, post, register(m, Cat(chunk[: WINDOW_RING.bit_length() - 1 - len(slot)], slot), "ring_at"))

        # --- results --------------------------------------------------------------------------------------------------
        m.submodules.results = results = SmallFifo(WINDOW_ROWS, 16 * config.chunk + ports.ADDRESS_BITS)
        addr = delay(m, place.addr, post.LATENCY + 1, "y_addr")
        m.d.comb += [
            results.push.eq(post.o_valid),
            results.push_data.eq(Cat(post.o_data, addr)),
            self.wr.valid.eq(results.o.valid),
            self.wr.data.eq(results.o.payload[: 16 * config.chunk]),
            self.wr.addr.eq(results.o.payload[16 * config.chunk :]),
            self.wr.mask.eq(1),
            results.o.ready.eq(self.wr.ready),
            self.written.eq(self.wr.valid & self.wr.ready),
        ]
        of_row = register(m, Cat(place.scale, row, about.final, first_block), "of_row")
        self._maxima(m, post, of_row, chosen, register(m, first, "first_chosen"), ends)
        return m

    def _parameters(self, m: Module, post: WindowPost, chunk: Value) -> None:
        """Multipliers and biases of a chunk from the ring, at their stages."""
        number, words = register(m, self.param_tag.number, "param_number", WIDE), register(m, self.param_data, "param_data")
        for name, kind, at in (("mult", MULT, post.MULT_AT), ("bias", BIAS, post.BIAS_AT)):
            ram = LutRam(m, WINDOW_RING, len(words.as_value()), name)
            read_at = register(m, delay(m, chunk, at - 2, f"{name}_at"), f"{name}_near", WIDE)
            m.d.comb += [
                ram.write_addr.eq(number),
                ram.write_data.eq(words),
                ram.write_enable.eq(register(m, self.param_valid & (self.param_tag.kind == kind), f"{name}_came", WIDE)),
                getattr(post, name).eq(register(m, ram.read(read_at), f"{name}_read")),
            ]

    def _maxima(self, m: Module, post: WindowPost, about: Value, valid: Value, first: Value, last: Value) -> None:
        """Largest magnitude over a row's chunks, over its blocks, into the scale memory. about: Cat(scale address, row,
        final, first block)."""
        insn = insn_view(isa.ReduceWindow, self.insn)
        at = post.max_latency_of(self.config)
        of_block, best = (Signal(MAXIMUM_BITS, name=name, reset_less=True) for name in ("of_block", "best"))
        starts = delay(m, first, at, "max_first")
        with m.If(delay_valid(m, valid, at, "max_valid")):
            m.d.sync += of_block.eq(Mux(starts | (post.o_max > of_block), post.o_max, of_block))
        m.submodules.maxima = ram = Ram.of(memories(self.config)["window maxima"])
        scale_bits = ports.SCALE_ADDRESS_BITS
        early = delay(m, about, at + 1 - RAM_LATENCY, "max_about")
        there = delay(m, early, RAM_LATENCY, "max_there")
        ends = delay_valid(m, last, at + 1, "max_ends")
        first_block = there[-1]
        # Up to three rows may come again before what was written of them can be read, RAM_LATENCY + 2 cycles later: theirs is
        # the end as many before.
        older = [best, *(Signal(MAXIMUM_BITS, name=f"best_{n}", reset_less=True) for n in (2, 3))]
        few = register(m, Mux(insn.rows <= len(older), insn.rows, 0)[:2], "few")
        before = Mux(few[1], Mux(few[0], older[2], older[1]), Mux(few[0], older[0], ram.read_data))
        with m.If(ends):
            m.d.sync += best.eq(Mux(first_block | (of_block > before), of_block, before))
            m.d.sync += [older[1].eq(older[0]), older[2].eq(older[1])]
        row = ports.ROW_BITS
        written, done = delay_valid(m, ends, 1, "max_written"), register(m, there, "max_done")
        m.submodules.fifo = fifo = SmallFifo(WINDOW_ROWS, MAXIMUM_BITS + scale_bits + 1)
        store = fifo.o.payload[-1] & insn.y_max
        m.d.comb += [
            ram.read_addr.eq(early[scale_bits : scale_bits + row]),
            ram.write_addr.eq(done[scale_bits : scale_bits + row]),
            ram.write_data.eq(best),
            ram.write_enable.eq(written),
            fifo.push.eq(written),
            fifo.push_data.eq(Cat(best, done[:scale_bits], done[-2])),
            self.scale.valid.eq(fifo.o.valid & store),
            self.scale.data.eq(fifo.o.payload[:MAXIMUM_BITS]),
            self.scale.addr.eq(fifo.o.payload[MAXIMUM_BITS : MAXIMUM_BITS + scale_bits]),
            fifo.o.ready.eq(self.scale.ready | ~store),
            self.stored.eq(fifo.o.valid & fifo.o.ready),
        ]
