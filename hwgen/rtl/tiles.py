"""Tile loader: fills the array's shadow weights and the post-processor's parameter banks, one tile ahead of the rows."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from ..isa import ColScale
from ..latency import STATIONARY, WORDS_PER_CYCLE
from . import ports
from .common import WIDE, delay, delay_valid, register
from .insn import insn_view
from .read_slot import ReadSlot
from .reader import RowQuantiser
from .register_slice import RegisterSlice
from .row_walk import IN_ORDER, walk_layout


def job_layout() -> data.StructLayout:
    """A Matmul on its way to the row issuer: its fields, its walk, and the queue it works on if it names an expert."""
    return data.StructLayout(
        {
            "insn": ports.insn_layout(isa.Matmul),
            "walk": walk_layout(),
            "rows": ports.ROW_BITS + 1,
            "start": 16,
            "empty": 1,
        }
    )


class TileLoader(Component):
    """Loads, for each Matmul, its tiles in the order of `isa.Matmul`'s loop nest, and passes the Matmul on as a job.

    A MatmulWalk is kept for the next Matmul, whose tiles then come tap by tap; a stationary operand in the scratchpad has
    one tap.
    A tile of n valid outputs takes n weight words, two a cycle, or n scratchpad rows through a `RowQuantiser`, one a cycle.
    The next tile is written as soon as the previous one is taken: its weights are delayed on their way to the array as
    long as the rows are (`Core`). `w_valid` comes W_LATENCY (2) cycles after what counts a word or row as loaded, which
    decides from registers whether there will be a word: what 1,024 bits are taken by begins in registers near them. With
    `discard` the words of an empty queue's Matmul are popped and go nowhere. A parameter bank is written only when no row that
    uses it is on its way (`bank_busy`).

    Ports: insn, words (weight word k on words[k % 2]), lookup (queue length of an expert), rd/scale (stationary rows and
    their maxima), w_* (to the array), params (to the post-processor), job (to the issuer), full (a tile waits in the
    shadow), take (strobe: the issuer has taken it), bank_busy (parameter bank has rows on their way).
    Cost: control, registers for an instruction and a walk, and array_inputs 16x8 multipliers in the RowQuantiser.
    """

    W_LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        lanes = config.array_inputs
        super().__init__(
            {
                "insn": In(ports.insn_stream()),
                "words": In(stream.Signature(data.ArrayLayout(signed(8), lanes))).array(WORDS_PER_CYCLE),
                "lookup": Out(ports.QUEUE_LOOKUP),
                "rd": Out(ports.read_port(config, config.input_chunks)),
                "scale": Out(ports.SCALE_READ),
                "w_valid": Out(WORDS_PER_CYCLE),
                "w_pair": Out(range(config.array_outputs // 2)),
                "w_data": Out(data.ArrayLayout(data.ArrayLayout(signed(8), lanes), WORDS_PER_CYCLE)),
                "params": Out(ports.param_write(config)),
                "job": Out(stream.Signature(job_layout())),
                "full": Out(1),
                "take": In(1),
                "bank_busy": In(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, outputs = self.config, self.config.array_outputs
        insn = Signal(ports.insn_layout(isa.Matmul))
        walk = Signal(walk_layout(), init=IN_ORDER)
        m.submodules.quantiser = quantiser = RowQuantiser(c)

        # --- loop state -----------------------------------------------------------------------------------------
        outputs_left = Signal(16)  # outputs - ob*O
        inputs_left = Signal(16)  # inputs - ib*I
        last_columns = Signal()
        row = Signal(range(outputs + 1))
        bank = Signal()
        first_inputs = Signal()  # ib == 0, in the first tap
        taps_v, taps_u = Signal(isa.TAP_BITS), Signal(isa.TAP_BITS)  # behind this one: in its line; lines
        more_taps = Signal()
        discarding = Signal()  # the queue is empty: words are only popped
        block = Signal(ports.ADDRESS_BITS)  # row ob*O of w, at ib = 0
        addr, scale = Signal(ports.ADDRESS_BITS), Signal(16)
        block_scale, offset = Signal(16), Signal(ports.ADDRESS_BITS)
        # Registers: `outputs_left` changes in JOB and NEXT, they are first looked at two cycles later.
        last_row = Signal(range(outputs))
        m.d.sync += [
            last_columns.eq(outputs_left <= outputs),
            last_row.eq(Mux(outputs_left <= outputs, outputs_left - 1, outputs - 1)),
            more_taps.eq((taps_v != 0) | (taps_u != 0)),
        ]
        # Less one: of the Matmul whose tiles are loaded, of the one that begins.
        kernel, begun = (Signal(data.StructLayout({"v": isa.TAP_BITS, "u": isa.TAP_BITS}), name=n) for n in ("kernel", "begun"))
        m.d.comb += [begun.v.eq(walk.kernel_v - 1), begun.u.eq(walk.kernel_u - 1)]
        from_stream = insn.w_source == isa.WeightSource.STREAM

        with m.If(self.take):
            m.d.sync += self.full.eq(0)

        # --- stationary rows from the scratchpad ----------------------------------------------------------------
        reading, pop = Signal(), Signal()
        final, accepted = Signal(), Signal()
        lanes = Signal(range(c.array_inputs + 1))
        tag = data.StructLayout({"scale": 16, "lanes": len(lanes), "row": len(row), "final": 1})
        m.submodules.reads = reads = ReadSlot(c, tag, c.input_chunks)
        connect(m, reads.rd, flipped(self.rd))
        m.d.comb += [
            final.eq(row == last_row),
            lanes.eq(Mux(inputs_left <= c.array_inputs, inputs_left, c.array_inputs)),
            reads.valid.eq(reading),
            reads.addr.eq(addr),
            reads.tag.eq(Cat(scale, lanes, row, final)),
            accepted.eq(reading & reads.ready),
            self.scale.addr.eq(reads.asked.scale),
            quantiser.i_valid.eq(reads.arrived),
            quantiser.i_data.eq(reads.o_data),
            quantiser.i_scale.eq(self.scale.data),
            quantiser.i_convert.eq(insn.w_convert),
            quantiser.i_lanes.eq(reads.o_tag.lanes),
        ]
        # A row counts as loaded a cycle before it is there.
        arrived = delay_valid(m, reads.arrived, STATIONARY, "w_path")
        arrived_row = delay(m, reads.o_tag.row, STATIONARY, "w_row_path")
        arrived_final = delay(m, reads.o_tag.final, STATIONARY, "w_final_path")

        # --- weight words: two at a time, the last of an odd number alone ------------------------------------------
        # Registers: words are taken as soon as there will be two, or one if `single`.
        wanted, single = Signal(), Signal()
        taken = Signal()
        odd_next = Signal()  # the next word comes on words[1]
        near, far = (RegisterSlice(words.payload.shape()) for words in self.words)
        m.submodules += [near, far]
        valid = Mux(odd_next, far.coming, near.coming)
        m.d.comb += taken.eq(wanted & Mux(single, valid, near.coming & far.coming))
        for k, (following, other) in enumerate(((near, odd_next), (far, ~odd_next))):
            connect(m, flipped(self.words[k]), following.i)
            take = Signal(name=f"take_{k}", attrs=WIDE)
            m.d.sync += take.eq(taken & ~(single & other))
            m.d.comb += following.o.ready.eq(take)
        starved = Signal()  # for the trace of a simulation
        m.d.sync += [odd_next.eq(odd_next ^ (taken & single)), starved.eq(wanted & ~taken)]
        odd_first = register(m, odd_next, "odd_first", WIDE)  # of those that are taken now
        payloads = [near.o.payload.as_value(), far.o.payload.as_value()]
        next_words = [Mux(odd_first, payloads[1 - k], payloads[k]) for k in range(WORDS_PER_CYCLE)]
        pairs_left, last_pair = Signal(range(outputs // 2)), Signal()  # of the tile's rows behind the next pair; none

        # --- to the array ---------------------------------------------------------------------------------------
        quantised = register(m, arrived, "w_quantised", WIDE)
        for k, word_data in enumerate(next_words):
            whole = (arrived & (arrived_row[0] == k)) | (pop & ~discarding & ((k == 0) | ~single))
            m.d.comb += self.w_valid[k].eq(delay_valid(m, whole, self.W_LATENCY, f"w_valid_{k}"))
            m.d.sync += self.w_data[k].as_value().eq(Mux(quantised, quantiser.o_data.as_value(), word_data))
        m.d.comb += self.w_pair.eq(delay(m, Mux(arrived, arrived_row[1:], row[1:]), self.W_LATENCY, "w_pair"))
        with m.If((arrived & arrived_final) | (pop & last_pair & ~discarding)):
            m.d.sync += self.full.eq(1)

        # --- to the parameter banks -----------------------------------------------------------------------------
        word = Signal(range(c.param_words(outputs) + WORDS_PER_CYCLE))
        # Columns whose parameters have come with the next word, the word behind it, and so on.
        most = (c.param_words(outputs) + 3 * WORDS_PER_CYCLE) * c.params_per_word
        covered = [
            Signal(range(most), init=(k + 1) * c.params_per_word, name=f"covered_{k}") for k in range(2 * WORDS_PER_CYCLE)
        ]
        ends = [(reach >= outputs_left) | (reach >= outputs) for reach in covered]
        last_params = Signal()  # the next word is the last one, or the one behind it
        pop_params, immediate = Signal(), Signal()
        by_scale = arrived & (insn.col_source == ColScale.ROW_SCALES) & first_inputs
        # From the registers before the array, which the words pass through too: every column reads it.
        late = self.W_LATENCY
        at_once, scaled = (delay(m, v, late, name) for v, name in ((immediate, "params_at_once"), (by_scale, "params_scaled")))
        popped = register(m, delay(m, pop_params, late - 1, "params_popping"), "params_popped", WIDE)
        popped_word, scaled_row = delay(m, word, late, "params_word"), delay(m, arrived_row, late, "params_row")
        scaled_by = register(m, quantiser.o_scale, "params_scale")
        valid_late = delay(m, (pop_params & ~discarding) | immediate | by_scale, late, "params_valid")
        m.d.sync += [self.params.valid.eq(valid_late), self.params.bank.eq(delay(m, bank, late, "params_bank"))]
        for o in range(outputs):
            at, j = divmod(o, c.params_per_word)
            pairs = self.w_data[at % WORDS_PER_CYCLE].as_value()
            mult, bias = pairs[32 * j : 32 * j + 16], pairs[32 * j + 16 : 32 * j + 32]
            m.d.sync += [
                self.params.mask[o].eq(
                    at_once
                    | (popped & (popped_word == at - at % WORDS_PER_CYCLE))
                    | (scaled & (scaled_row == o))
                ),
                self.params.mult[o].eq(Mux(popped, mult, Mux(at_once, insn.col_mult, scaled_by))),
                self.params.bias[o].eq(Mux(popped, bias, 0)),
            ]

        # --- job ------------------------------------------------------------------------------------------------
        # The queue is looked up while the instruction is taken in: its waits are met, so no Route runs.
        offered = insn_view(isa.Matmul, self.insn.payload)
        offered_walk, is_walk = insn_view(isa.MatmulWalk, self.insn.payload), Signal()
        count, start = Signal(ports.ROW_BITS + 1, reset_less=True), Signal(16, reset_less=True)
        has_expert, empty = Signal(), Signal()
        m.d.comb += [
            self.lookup.expert.eq(offered.expert),
            empty.eq(has_expert & (count == 0)),
            is_walk.eq(offered.op == isa.Op.MATMUL_WALK),
            self.job.payload.insn.eq(insn),
            self.job.payload.walk.eq(walk),
            self.job.payload.rows.eq(Mux(has_expert, count, insn.rows)),
            self.job.payload.start.eq(Mux(has_expert, start, 0)),
            self.job.payload.empty.eq(empty),
        ]

        def next_columns(kernel):
            """Begin the next output tile: its parameters first."""
            taps = [taps_v.eq(kernel.v), taps_u.eq(kernel.u)]
            return [word.eq(0), first_inputs.eq(1), *taps, *(reach.eq(reach.init) for reach in covered)]

        with m.If(accepted):  # only in READ
            m.d.sync += [row.eq(row + 1), addr.eq(addr + insn.w_pitch), scale.eq(scale + 1), reading.eq(~final)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.insn.ready.eq(1)
                m.d.sync += [insn.eq(offered), has_expert.eq(offered.expert != isa.NO_EXPERT)]
                m.d.sync += [count.eq(self.lookup.count), start.eq(self.lookup.start)]
                with m.If(self.insn.valid & is_walk):
                    m.d.sync += [walk[name].eq(offered_walk[name]) for name in walk.shape().members]
                with m.Elif(self.insn.valid):
                    m.next = "JOB"
            with m.State("JOB"):
                m.d.comb += self.job.valid.eq(1)
                m.d.sync += [
                    outputs_left.eq(insn.outputs),
                    inputs_left.eq(insn.inputs),
                    block.eq(insn.w),
                    addr.eq(insn.w),
                    scale.eq(insn.w_scale),
                    block_scale.eq(insn.w_scale),
                    offset.eq(0),
                    kernel.eq(begun),
                    *next_columns(begun),
                ]
                m.d.sync += discarding.eq(empty)
                with m.If(self.job.ready):
                    m.d.sync += walk.eq(walk_layout().const(IN_ORDER))
                    m.next = "IDLE"
                    with m.If(~empty | insn.discard):
                        m.next = "PARAMS"
            with m.State("PARAMS"):
                # Only when the previous tile is taken have all rows of the bank's last user been issued.
                m.d.sync += [single.eq(ends[0]), last_params.eq(ends[1])]
                with m.If((~self.full & ~self.bank_busy.bit_select(bank, 1)) | discarding):
                    with m.Switch(insn.col_source):
                        with m.Case(ColScale.PARAMETERS):
                            m.d.sync += wanted.eq(1)
                            m.next = "PARAM_WORDS"
                        with m.Case(ColScale.IMMEDIATE):
                            m.d.comb += immediate.eq(~discarding)
                            m.next = "TILE"
                        with m.Default():
                            m.next = "TILE"
            with m.State("PARAM_WORDS"):
                m.d.comb += pop_params.eq(taken)
                with m.If(taken):
                    m.d.sync += word.eq(word + WORDS_PER_CYCLE)
                    m.d.sync += [reach.eq(reach + WORDS_PER_CYCLE * c.params_per_word) for reach in covered]
                    m.d.sync += [single.eq(ends[2]), last_params.eq(ends[3]), wanted.eq(~last_params)]
                    with m.If(last_params):
                        m.next = "TILE"
            with m.State("TILE"):
                m.d.sync += [row.eq(0), pairs_left.eq(last_row[1:]), last_pair.eq(last_row[1:] == 0), single.eq(last_row == 0)]
                with m.If(~self.full | discarding):
                    m.d.sync += [wanted.eq(from_stream), reading.eq(~from_stream)]
                    m.next = "STREAM"
                    with m.If(~from_stream):
                        m.next = "READ"
            with m.State("STREAM"):
                m.d.comb += pop.eq(taken)
                with m.If(taken):
                    m.d.sync += [row.eq(row + WORDS_PER_CYCLE), wanted.eq(~last_pair)]
                    m.d.sync += [pairs_left.eq(pairs_left - 1), last_pair.eq(pairs_left == 1)]
                    m.d.sync += single.eq((pairs_left == 1) & ~last_row[0])
                    with m.If(last_pair):
                        m.next = "NEXT"
            with m.State("READ"):
                with m.If(arrived & arrived_final):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += first_inputs.eq(0)
                with m.If(inputs_left > c.array_inputs):
                    m.d.sync += [
                        inputs_left.eq(inputs_left - c.array_inputs),
                        offset.eq(offset + c.input_chunks),
                        addr.eq(block + offset + c.input_chunks),
                        scale.eq(block_scale),
                    ]
                    m.next = "TILE"
                with m.Elif(more_taps):
                    m.d.sync += [inputs_left.eq(insn.inputs), taps_v.eq(Mux(taps_v == 0, kernel.v, taps_v - 1))]
                    m.d.sync += taps_u.eq(taps_u - (taps_v == 0))
                    m.next = "TILE"
                with m.Else():
                    # After a whole tile `addr` stands at the row behind it, `offset` chunks to the right.
                    m.d.sync += [
                        inputs_left.eq(insn.inputs),
                        outputs_left.eq(outputs_left - outputs),
                        block.eq(addr - offset),
                        addr.eq(addr - offset),
                        block_scale.eq(scale),
                        offset.eq(0),
                        bank.eq(bank ^ ~discarding),
                        *next_columns(kernel),
                    ]
                    m.next = "PARAMS"
                    with m.If(last_columns):
                        m.next = "IDLE"
        return m
