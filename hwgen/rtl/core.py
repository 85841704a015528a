"""The core: array, post-processor, scratchpad and vector unit wired together. It knows instructions, but no bus."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from ..latency import WORDS_PER_CYCLE
from . import ports
from .accumulator import NEAR_RAM, Accumulator
from .array import MacArray
from .common import WIDE, delay, delay_valid, register
from .insn import insn_view
from .issue import RowIssuer
from .post import PostProcessor
from .reader import RowReader
from .scales import ScaleMemory
from .scratchpad import Scratchpad
from .tiles import TileLoader
from .vector import VectorUnit

IN_FLIGHT_BITS = 8  # rows between issue and post-processor: bounded by the pipeline's length


class Core(Component):
    """Executes MATMUL, NORM and ROUTE instructions, and walks before them, on the scratchpad.

    Ports: matmul_insn, vector_insn (instructions whose waits are met) with done strobes and busy flags; words (weight
    words in stream order, word k on words[k % 2]); rd_store, wr_load, wr_scale (scratchpad and scale memory for the DMA
    units); nonempty (which expert queues hold tokens); event strobes array_active, stall_weights, stall_bank for the counters.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "matmul_insn": In(ports.insn_stream()),
                "vector_insn": In(ports.insn_stream()),
                "matmul_done": Out(1),
                "vector_done": Out(1),
                "matmul_busy": Out(1),
                "vector_busy": Out(1),
                "words": In(stream.Signature(data.ArrayLayout(signed(8), config.array_inputs))).array(WORDS_PER_CYCLE),
                "rd_store": In(ports.read_port(config, 1)),
                "wr_load": In(ports.write_port(config, 1)),
                "wr_scale": In(ports.SCALE_WRITE),
                "nonempty": Out(config.max_experts),
                "array_active": Out(1),
                "stall_weights": Out(1),
                "stall_bank": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.scratchpad = scratchpad = Scratchpad(c)
        m.submodules.scales = scales = ScaleMemory(c)
        m.submodules.reader = reader = RowReader(c)
        m.submodules.array = array = MacArray(c)
        m.submodules.accumulator = accumulator = Accumulator(c)
        m.submodules.post = post = PostProcessor(c)
        m.submodules.vector = vector = VectorUnit(c)
        m.submodules.issuer = issuer = RowIssuer(c)
        into_array = ports.READ_LATENCY + reader.LATENCY  # cycles from a row's issue to its entry into the array
        m.submodules.loader = loader = TileLoader(c)

        # --- memories and units ---------------------------------------------------------------------------------
        connect(m, scratchpad.rd_res, post.res)
        connect(m, scratchpad.rd_w, loader.rd)
        connect(m, scratchpad.rd_vector, vector.rd)
        connect(m, scratchpad.rd_store, flipped(self.rd_store))
        connect(m, scratchpad.wr_y, post.y)
        connect(m, scratchpad.wr_vector, vector.wr)
        connect(m, scratchpad.wr_load, flipped(self.wr_load))
        connect(m, scales.rd_w, loader.scale)
        connect(m, scales.wr_y, post.scale)
        connect(m, scales.wr_vector, vector.scale)
        connect(m, scales.wr_load, flipped(self.wr_scale))
        connect(m, vector.insn, flipped(self.vector_insn))
        connect(m, vector.lookup, loader.lookup)
        connect(m, vector.queue, issuer.queue)
        connect(m, loader.insn, flipped(self.matmul_insn))
        for inside, outside in zip(loader.words, self.words, strict=True):
            connect(m, inside, flipped(outside))
        connect(m, loader.job, issuer.job)
        connect(m, loader.params, post.params)

        # --- tiles ----------------------------------------------------------------------------------------------
        # As late as the rows, so that the loader may overwrite the shadow right after a tile is taken; early enough that
        # the tile is complete SHADOW_READY cycles before its first row.
        weights_late = into_array - array.SHADOW_READY + 1 - loader.W_LATENCY
        m.d.comb += [
            array.w_valid.eq(delay_valid(m, loader.w_valid, weights_late, "w_valid")),
            array.w_pair.eq(delay(m, loader.w_pair, weights_late, "w_pair")),
            array.w_data.eq(delay(m, loader.w_data, weights_late, "w_data")),
            issuer.full.eq(loader.full),
            loader.take.eq(issuer.take),
        ]
        for bank in range(2):
            rows = Signal(IN_FLIGHT_BITS, name=f"rows_in_flight_{bank}")
            # A cycle late, as `full` is, without which the loader does not look.
            begin = delay_valid(m, issuer.bank_used & (issuer.row.post.bank == bank), 1, f"row_begins_{bank}")
            end = post.used & (post.used_bank == bank)
            m.d.sync += rows.eq(rows + begin - end)
            m.d.comb += loader.bank_busy[bank].eq(rows != 0)

        # --- rows: issue -> scratchpad -> reader -> array -> accumulator -> post ---------------------------------
        m.d.comb += [
            scratchpad.rd_x.valid.eq(issuer.rd_valid),
            scratchpad.rd_x.addr.eq(issuer.rd_addr),
            issuer.rd_ready.eq(scratchpad.rd_x.ready),
            scales.rd_x.addr.eq(issuer.scale_addr),
        ]
        row, valid = issuer.row, issuer.issued
        read_valid = delay_valid(m, valid, ports.READ_LATENCY, "row_read_valid")
        m.d.comb += [
            reader.i_valid.eq(read_valid),
            reader.i_data.eq(scratchpad.rd_x.data),
            reader.i_scale.eq(scales.rd_x.data),
            reader.i_meta.eq(delay(m, row.reader, ports.READ_LATENCY, "row_reader")),
            array.x_valid.eq(delay_valid(m, read_valid, reader.LATENCY, "row_x_valid")),
            array.x_swap.eq(delay(m, row.swap, into_array, "row_swap")),
            array.x_data.eq(reader.o_data),
        ]
        sums = into_array + array.latency
        order = delay(m, Cat(row.first, row.last), sums, "row_order")
        m.d.comb += [
            accumulator.i_valid.eq(array.y_valid),
            accumulator.i_first.eq(order[0]),
            accumulator.i_last.eq(order[1]),
            accumulator.i_row.eq(register(m, delay(m, row.row, sums - 1, "row_row"), "row_near", NEAR_RAM)),
            accumulator.i_data.eq(array.y_data),
        ]
        # The row multiplier of a softmax row comes out of a divider and may be later than the row's sums.
        totals = sums + accumulator.LATENCY
        mult = ports.READ_LATENCY + reader.ROW_MULT_LATENCY
        enter = max(totals, mult)
        m.d.comb += [
            post.i_valid.eq(delay_valid(m, accumulator.o_valid, enter - totals, "row_post_valid")),
            post.i_acc.eq(delay(m, accumulator.o_data, enter - totals, "row_acc")),
            post.i_meta.eq(register(m, delay(m, row.post, enter - 1, "row_post"), "row_post_near", WIDE)),
            post.i_meta.row_mult.eq(delay(m, reader.o_row_mult, enter - mult, "row_mult")),
            post.i_meta.row_shift.eq(delay(m, reader.o_row_shift, enter - mult, "row_shift")),
        ]

        # --- status ---------------------------------------------------------------------------------------------
        instructions = Signal(8)
        is_walk = insn_view(isa.MatmulWalk, self.matmul_insn.payload).op == isa.Op.MATMUL_WALK  # which never finishes
        accepted = self.matmul_insn.valid & self.matmul_insn.ready & ~is_walk
        m.d.sync += instructions.eq(instructions + accepted - post.done)
        m.d.comb += [
            self.matmul_done.eq(post.done),
            self.vector_done.eq(vector.done),
            self.matmul_busy.eq(instructions != 0),
            self.vector_busy.eq(vector.busy),
            self.nonempty.eq(vector.nonempty),
            self.array_active.eq(issuer.issued),
            self.stall_weights.eq(issuer.stall_weights),
            self.stall_bank.eq(issuer.stall_bank),
        ]
        return m
