"""LayerNorm unit: executes `isa.Norm` and `isa.Multiply`, a chunk a cycle at most."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa, latency
from ..config import Config
from ..memories import memories, norm_chunks
from ..numerics import RSQRT_BITS, XHAT_BITS
from . import ports
from .common import WIDE, counter, delay, delay_valid, lanes_mask, register, settled
from .insn import insn_view
from .memory import RAM_LATENCY, Ram
from .norm_pipeline import NormLanes, RowStatistics
from .read_slot import ReadSlot
from .small_memory import SmallFifo
from .walk import Walk

CHUNKS = 32  # chunks on their way from the row buffer to the scratchpad: covers the pipeline's length
SETTLE = latency.NORM_SETTLE


class Norm(Component):
    """For every row: y = numerics.layer_norm(x), or a product of rows (multiply, turn); row maximum into the scale memory.

    Reads gamma and beta into two RAMs, then rows into a ring buffer while their statistics are taken; once a row's
    statistics are known the buffer is replayed through the normalisation. Both halves work on different rows at the same
    time. Credits count what is on its way, so nothing ever stalls between a read and a FIFO with room.

    A product reads each row's factors behind the row into both RAMs, at the address of the row's first chunk: one count of
    chunks addresses both, modulo the depth of each. When they are there the row is replayed.

    Parameters: config. Ports: start (strobe), insn (instruction word, held until done), done (strobe: all writes visible);
    rd, wr (scratchpad), scale (row maxima). Precondition: 1 <= columns <= norm_columns.
    Cycles: `latency.norm_cycles`, (rows + 3) * ceil(columns / chunk) and the latency of the pipelines;
    `latency.multiply_cycles`, rows * (ceil(columns / chunk) + period) and the like.
    Cost: 4 multipliers per element of a chunk and about 10 for a row; RAM of at least 3 rows of x, gamma, beta.
    """

    def __init__(self, config: Config):
        self.config = config
        self.max_chunks = norm_chunks(config)
        self.buffer = memories(config)["norm rows"].depth
        self.factors = memories(config)["norm parameters"].depth
        super().__init__(
            {
                "start": In(1),
                "insn": In(max(ports.insn_layout(insn).size for insn in (isa.Norm, isa.Multiply))),
                "done": Out(1),
                "rd": Out(ports.read_port(config, 1)),
                "wr": Out(ports.write_port(config, 1)),
                "scale": Out(ports.SCALE_WRITE),
            }
        )

    def elaborate(self, platform):
        m = Module()
        chunk = self.config.chunk
        insn, multiply = insn_view(isa.Norm, self.insn), insn_view(isa.Multiply, self.insn)
        product = Signal()
        m.submodules.statistics = statistics = RowStatistics(self.config)
        m.submodules.lanes = lanes = NormLanes(self.config)
        m.d.comb += product.eq(insn.op == isa.Op.MULTIPLY)
        is_product = register(m, product, "is_product", WIDE)
        m.d.comb += [
            # Held for long before the first row comes: registers that are copied near the lanes, or inside multipliers.
            statistics.columns.eq(register(m, insn.columns, "of_columns")),
            statistics.epsilon.eq(register(m, insn.epsilon, "of_epsilon")),
            statistics.centred.eq(register(m, insn.centred, "of_centred", WIDE)),
            lanes.columns.eq(register(m, register(m, Mux(product, 1, insn.columns), "by_columns"), "by_columns_in")),
            lanes.product.eq(is_product),
            lanes.turning.eq(register(m, product & multiply.pairs, "is_turning", WIDE)),
        ]

        def credit(limit: int, take: Value, give: Value, name: str) -> tuple[Signal, Signal]:
            """(some of `limit` places are free, all are): one is taken and one given back by each strobe."""
            _, some, all_free = counter(m, give, take, limit, name, init=limit)
            return some, all_free

        # --- reads: parameters, then rows, each with its factors behind it ---------------------------------------
        reading_params, reading_rows, reading_factors, beta = Signal(), Signal(), Signal(), Signal()
        last_chunk = Signal(range(max(self.max_chunks, 2)))  # number of chunks less one
        left = Signal(16)  # columns from this chunk of gamma on, in the end those of the last chunk
        column, row = Signal(range(max(self.max_chunks, 2))), Signal(16)
        read = Walk("x")
        factors = Signal(ports.ADDRESS_BITS, reset_less=True)  # of the row
        accepted = Signal()
        read_last, factors_last = Signal(), Signal()
        # last: of a row; factors_last: of a row's factors
        tag = data.StructLayout(
            {"column": len(column), "row": 1, "last": 1, "beta": 1, "factors": 1, "factors_last": 1}
        )
        m.submodules.reads = reads = ReadSlot(self.config, tag)
        connect(m, reads.rd, flipped(self.rd))
        rows_free, buffer_free = Signal(), Signal()  # there is room for a row's maximum, for a chunk
        room = Signal()
        m.d.comb += [
            room.eq(buffer_free & rows_free),
            reads.valid.eq(reading_params | reading_factors | (reading_rows & room)),
            reads.addr.eq(read.addr),
            reads.tag.column.eq(column),
            reads.tag.row.eq(reading_rows),
            reads.tag.last.eq(reading_rows & read_last),
            reads.tag.beta.eq(beta),
            reads.tag.factors.eq(reading_factors),
            reads.tag.factors_last.eq(factors_last),
            accepted.eq(reads.valid & reads.ready),
            read_last.eq(column == last_chunk),
            factors_last.eq(reading_factors & (column == multiply.period - 1)),
        ]
        with m.If(accepted):
            m.d.sync += column.eq(column + 1)

        # --- data of the reads ----------------------------------------------------------------------------------
        came = register(m, reads.o_tag, "came")
        keep = register(m, lanes_mask(left, chunk), "keep")
        x = Signal(ports.elements(self.config, 1), reset_less=True)
        for i in range(chunk):
            m.d.sync += x[i].eq(Mux(reads.o_tag.last & ~keep[i], 0, reads.o_data[i]))
        x_valid = delay_valid(m, reads.arrived & reads.o_tag.row, 1, "x_valid")
        m.d.comb += [
            statistics.i_valid.eq(x_valid & ~product),
            statistics.i_first.eq(came.column == 0),
            statistics.i_last.eq(came.last),
            statistics.i_data.eq(x),
        ]
        m.submodules.rows = rows = Ram.of(memories(self.config)["norm rows"])
        # Both depths are powers of two: the deeper one's count, cut short, is the other's.
        counts = range(max(self.buffer, self.factors))
        write_at, row_at = Signal(counts), Signal(range(self.factors))
        m.d.comb += [rows.write_addr.eq(write_at[: len(rows.write_addr)]), rows.write_data.eq(x), rows.write_enable.eq(x_valid)]
        m.d.sync += write_at.eq(write_at + x_valid)
        with m.If(~product):
            m.d.sync += row_at.eq(0)
        with m.Elif(x_valid & (came.column == 0)):
            m.d.sync += row_at.eq(write_at)
        params = []
        for name, select in (("gamma", ~reads.o_tag.beta), ("beta", reads.o_tag.beta)):
            ram = Ram.of(memories(self.config)["norm parameters"])
            m.submodules[name] = ram
            params.append(ram)
            taken = reads.arrived & (reads.o_tag.factors | (~reads.o_tag.row & select))
            m.d.comb += [
                ram.write_addr.eq(row_at + came.column),
                ram.write_data.eq(x),
                ram.write_enable.eq(delay_valid(m, taken, 1, f"{name}_valid")),
            ]
        factors_there = delay_valid(m, reads.arrived & reads.o_tag.factors_last, 1, "factors_there")

        # --- replay ---------------------------------------------------------------------------------------------
        row_bits = Cat(statistics.o_sum, statistics.o_r, statistics.o_e)
        m.submodules.known = known = SmallFifo(latency.NORM_ROWS, len(row_bits))
        # Of a product only e counts; the sum is zero.
        shift = (multiply.shift - (RSQRT_BITS - XHAT_BITS))[: len(statistics.o_e)] << (len(row_bits) - len(statistics.o_e))
        m.d.comb += [
            known.push.eq(Mux(product, factors_there, statistics.o_valid)),
            known.push_data.eq(Mux(product, shift, row_bits)),
        ]
        read_at, replay_row = Signal(counts), Signal(range(self.factors))
        replay_column, factor_column = Signal(range(max(self.max_chunks, 2))), Signal(range(max(self.max_chunks, 2)))
        replay, replay_last = Signal(), Signal()
        out_free = Signal()
        m.d.comb += [
            replay.eq(known.o.valid & out_free),
            replay_last.eq(replay_column == last_chunk),
            known.o.ready.eq(replay & replay_last),
            rows.read_addr.eq(read_at[: len(rows.read_addr)]),
        ]
        with m.If(replay):
            factors_end = replay_last | (product & (factor_column == multiply.period - 1))
            m.d.sync += [
                read_at.eq(read_at + 1),
                replay_column.eq(Mux(replay_last, 0, replay_column + 1)),
                factor_column.eq(Mux(factors_end, 0, factor_column + 1)),
            ]
            with m.If(product & replay_last):
                m.d.sync += replay_row.eq(read_at + 1)
        factor_at = register(m, (replay_row + factor_column)[: len(replay_row)], "factor_at")
        sum_end = len(statistics.o_sum)
        of_row = delay(m, known.o.payload, RAM_LATENCY, "of_row")
        every = ~register(m, replay_last, "replay_last").replicate(chunk)
        m.d.comb += [
            lanes.i_valid.eq(delay_valid(m, replay, RAM_LATENCY, "replay")),
            lanes.i_first.eq(delay(m, replay_column == 0, RAM_LATENCY, "replay_first")),
            lanes.i_last.eq(delay(m, replay_last, RAM_LATENCY, "replay_end")),
            lanes.i_mask.eq(register(m, keep | every, "replay_mask")),
            lanes.i_data.eq(rows.read_data),
            lanes.i_sum.eq(of_row[:sum_end]),
            lanes.i_r.eq(of_row[sum_end:]),
            lanes.i_e.eq(of_row[sum_end + len(statistics.o_r) :]),
            params[0].read_addr.eq(delay(m, factor_at, lanes.GAMMA_AT - 1, "gamma_at")),
            params[1].read_addr.eq(
                Mux(
                    is_product,
                    delay(m, factor_at, lanes.FACTOR_AT - 1, "product_at"),
                    delay(m, factor_at, lanes.BETA_AT - 1, "beta_at"),
                )
            ),
            lanes.gamma.eq(params[0].read_data),
            lanes.beta.eq(params[1].read_data),
            lanes.factor.eq(params[1].read_data),
        ]

        # --- writes ---------------------------------------------------------------------------------------------
        m.submodules.results = results = SmallFifo(CHUNKS, 16 * chunk + 1)
        m.submodules.maxima = maxima = SmallFifo(latency.NORM_ROWS, len(lanes.max_data))
        write = Walk("y")
        scale_addr = Signal(ports.SCALE_ADDRESS_BITS, reset_less=True)
        m.d.comb += [
            results.push.eq(lanes.o_valid),
            results.push_data.eq(Cat(lanes.o_data, lanes.o_last)),
            self.wr.valid.eq(results.o.valid),
            self.wr.addr.eq(write.addr),
            self.wr.mask.eq(1),
            self.wr.data.eq(results.o.payload[: 16 * chunk]),
            results.o.ready.eq(self.wr.ready),
            maxima.push.eq(lanes.max_valid),
            maxima.push_data.eq(lanes.max_data),
            self.scale.valid.eq(maxima.o.valid & insn.y_max),
            self.scale.addr.eq(scale_addr),
            self.scale.data.eq(maxima.o.payload),
            maxima.o.ready.eq(self.scale.ready | ~insn.y_max),
        ]
        written, scale_written = Signal(), Signal()
        m.d.comb += [
            written.eq(self.wr.valid & self.wr.ready),
            scale_written.eq(maxima.o.valid & maxima.o.ready),
        ]
        with m.If(written):
            m.d.sync += write.step(results.o.payload[-1], insn.y_pitch)
        with m.If(scale_written):
            m.d.sync += scale_addr.eq(scale_addr + 1)
        row_begins = accepted & reading_rows & (column == 0)
        some_rows, no_rows = credit(latency.NORM_ROWS, row_begins, scale_written, "rows_credit")
        row_chunk = accepted & reading_rows
        some_buffer, _ = credit(self.buffer, row_chunk, replay, "buffer_credit")
        # A row's factors are in use until its last chunk is replayed, and a later row's may reach a row's length behind its
        # first chunk: with two rows' room kept free they never meet.
        factors_ahead = self.factors - 2 * self.max_chunks
        some_factors, _ = credit(factors_ahead, row_chunk & product, replay & product, "factors_credit")
        some_out, none_out = credit(CHUNKS, replay, written, "out_credit")
        m.d.comb += [rows_free.eq(some_rows), buffer_free.eq(some_buffer & some_factors), out_free.eq(some_out)]

        # --- control --------------------------------------------------------------------------------------------
        settle = Signal(range(SETTLE + 1))
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [left.eq(insn.columns), column.eq(0), row.eq(insn.rows), beta.eq(0), settle.eq(SETTLE)]
                m.d.sync += read.start(insn.params, 0)
                m.d.sync += write.start(insn.y, insn.y_pitch)
                m.d.sync += [scale_addr.eq(insn.y_scale), replay_column.eq(0), factor_column.eq(0)]
                m.d.sync += [factors.eq(multiply.factor), replay_row.eq(Mux(product, read_at, 0))]
                with m.If(self.start):
                    m.next = "GAMMA"
                    with m.If(product):
                        m.next = "COUNT"
                    with m.If(insn.rows == 0):
                        m.next = "DRAIN"
                    with m.Else():
                        m.d.sync += reading_params.eq(~product)
            with m.State("COUNT"):
                m.d.sync += [left.eq(left - chunk), column.eq(column + 1)]
                with m.If(left <= chunk):
                    m.d.sync += [left.eq(left), last_chunk.eq(column), column.eq(0)]
                    m.d.sync += read.start(insn.x, insn.x_pitch)
                    m.d.sync += reading_rows.eq(1)
                    m.next = "ROWS"
            with m.State("GAMMA"):
                with m.If(accepted):
                    m.d.sync += read.step(0, 0)
                    with m.If(left > chunk):
                        m.d.sync += left.eq(left - chunk)
                    with m.Else():
                        m.d.sync += [last_chunk.eq(column), column.eq(0), beta.eq(1)]
                        m.next = "BETA"
            with m.State("BETA"):
                with m.If(accepted):
                    m.d.sync += read.step(0, 0)
                    with m.If(read_last):
                        m.d.sync += [column.eq(0), reading_params.eq(0), reading_rows.eq(1)]
                        m.d.sync += read.start(insn.x, insn.x_pitch)
                        m.next = "ROWS"
            with m.State("ROWS"):
                with m.If(accepted):
                    m.d.sync += read.step(read_last, insn.x_pitch)
                    with m.If(read_last):
                        m.d.sync += [column.eq(0), row.eq(row - 1)]
                        with m.If(product):
                            m.d.sync += [read.addr.eq(factors), factors.eq(factors + multiply.factor_pitch)]
                            m.d.sync += read.next_row.eq(read.next_row)
                            m.d.sync += [reading_rows.eq(0), reading_factors.eq(1)]
                            m.next = "FACTORS"
                        with m.Elif(row == 1):
                            m.d.sync += reading_rows.eq(0)
                            m.next = "DRAIN"
            with m.State("FACTORS"):
                with m.If(accepted):
                    m.d.sync += read.step(factors_last, insn.x_pitch)
                    with m.If(factors_last):
                        m.d.sync += [column.eq(0), reading_factors.eq(0), reading_rows.eq(row != 0)]
                        m.next = "ROWS"
                        with m.If(row == 0):
                            m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(no_rows & none_out):
                    m.next = "SETTLE"
            settled(m, settle, self.done, "IDLE")
        return m
