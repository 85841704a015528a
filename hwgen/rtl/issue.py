"""Row issuer: walks the rows of each Matmul's tiles and sends them, one a cycle, into the pipeline that never stalls."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import Component, In, Out

from ..config import Config
from ..isa import INDEX_BITS, Indirect
from ..latency import ISSUE_QUEUE, ROW_GAP
from . import ports
from .common import delay, delay_valid
from .reader import reader_meta
from .row_walk import RowWalk
from .tiles import job_layout


def row_layout(config: Config) -> data.StructLayout:
    """One row on its way: where it is read, how it is converted, accumulated and finished."""
    return data.StructLayout(
        {
            "swap": 1,  # first row of a tile
            "short": 1,  # first row of a tile that has fewer rows than ROW_GAP cycles
            "x_addr": ports.ADDRESS_BITS,
            "x_scale": ports.SCALE_ADDRESS_BITS,
            "row": ports.ROW_BITS,
            "first": 1,  # first input tile
            "last": 1,  # last input tile
            "reader": reader_meta(config),
            "post": ports.post_meta(config),
        }
    )


class RowIssuer(Component):
    """For each job: for ob, for tap, for ib, for r: one row, as in the loop nests of `isa.Matmul` and `isa.MatmulWalk`.

    A generator makes one row a cycle: queue entry (token, gate) or rows of the walk, then row addresses base + index *
    pitch, then a short FIFO. A row beyond the walk's border is row 0 without valid lanes. The issue stage sends the FIFO's
    head when its tile waits in the shadow (`full`) and the scratchpad grants the read. A Matmul with an empty queue is one
    placeholder row, read but written nowhere, so that instructions finish in order.

    Ports: job; queue (entries of the expert queues); rd_valid/rd_addr/rd_ready (scratchpad read) and scale_addr; full, take
    (tile handshake); issued (a row, in the cycle its read is granted), row; strobes stall_weights, stall_bank, last (the
    issued row is its Matmul's last: the test bench's trace sees it) and bank_used (a row that will use parameter bank
    `row.post.bank` was issued).
    Cost: three 16x16 multipliers, a FIFO of 16 rows, a RowWalk.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "job": In(stream.Signature(job_layout())),
                "queue": Out(ports.QUEUE_READ),
                "rd_valid": Out(1),
                "rd_addr": Out(ports.ADDRESS_BITS),
                "rd_ready": In(1),
                "scale_addr": Out(ports.SCALE_ADDRESS_BITS),
                "full": In(1),
                "take": Out(1),
                "issued": Out(1),
                "row": Out(row_layout(config)),
                "bank_used": Out(1),
                "last": Out(1),
                "stall_weights": Out(1),
                "stall_bank": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        outputs, inputs = c.array_outputs, c.array_inputs
        layout = row_layout(c)
        job, upcoming, waiting = Signal(job_layout()), Signal(job_layout(), reset_less=True), Signal()
        insn = job.insn

        # --- generator: loop state ------------------------------------------------------------------------------
        active, generate = Signal(), Signal()
        r = Signal(ports.ROW_BITS)
        outputs_left, inputs_left = Signal(16), Signal(16)
        first_ob, first_tile, bank = Signal(), Signal(), Signal()
        out_offset, in_offset = Signal(ports.ADDRESS_BITS), Signal(ports.ADDRESS_BITS)
        last_ob, last_ib, last_tile, last_r, begin = (Signal() for _ in range(5))
        m.submodules.walk = walk = RowWalk()
        m.d.comb += [
            last_ob.eq(outputs_left <= outputs),
            last_ib.eq(inputs_left <= inputs),
            last_tile.eq(last_ib & walk.last_tap),
            last_r.eq((r + 1 == job.rows) | job.empty),
            self.job.ready.eq(~waiting),
            begin.eq(waiting & (~active | (generate & last_r & last_tile & last_ob))),
            walk.begin.eq(begin),
            walk.fields.eq(upcoming.walk),
            walk.step.eq(generate),
            walk.last_row.eq(last_r),
            walk.last_tile.eq(last_ib),
        ]
        # A job waits in a register: the loader, far ahead of the rows, need not know how far they are.
        with m.If(~waiting):
            m.d.sync += [waiting.eq(self.job.valid), upcoming.eq(self.job.payload)]
        with m.Elif(begin):
            m.d.sync += waiting.eq(0)
        with m.If(generate):
            m.d.sync += r.eq(r + 1)
            with m.If(last_r):
                m.d.sync += [r.eq(0), first_tile.eq(0), inputs_left.eq(inputs_left - inputs)]
                m.d.sync += in_offset.eq(in_offset + c.input_chunks)
                with m.If(last_ib):
                    m.d.sync += [inputs_left.eq(insn.inputs), in_offset.eq(0)]
                with m.If(last_tile):
                    m.d.sync += [first_tile.eq(1), first_ob.eq(0)]
                    m.d.sync += [outputs_left.eq(outputs_left - outputs), out_offset.eq(out_offset + c.output_chunks)]
                    m.d.sync += bank.eq(bank ^ ~job.empty)
                    with m.If(last_ob):
                        m.d.sync += active.eq(0)
        with m.If(begin):
            # An empty queue's placeholder is a single row of a single tile.
            m.d.sync += [
                job.eq(upcoming),
                active.eq(1),
                r.eq(0),
                first_ob.eq(1),
                first_tile.eq(1),
                outputs_left.eq(Mux(upcoming.empty, 1, upcoming.insn.outputs)),
                inputs_left.eq(Mux(upcoming.empty, 1, upcoming.insn.inputs)),
                out_offset.eq(0),
                in_offset.eq(0),
            ]

        # --- generator: queue entry, then addresses -------------------------------------------------------------
        m.d.comb += self.queue.addr.eq(job.start + r)
        made = Signal(layout)
        gathers, scatters = insn.indirect == Indirect.GATHER, insn.indirect == Indirect.SCATTER
        real = ~job.empty
        m.d.comb += [
            made.swap.eq((r == 0) & real),
            made.short.eq((r == 0) & real & (job.rows < ROW_GAP)),
            made.x_addr.eq(insn.x + in_offset),
            made.x_scale.eq(insn.x_scale),
            made.row.eq(r),
            made.first.eq(first_tile),
            made.last.eq(last_tile),
            made.reader.convert.eq(Mux(job.empty, 0, insn.x_convert)),
            made.reader.lanes.eq(Mux(last_ib, inputs_left, inputs)),
            made.reader.first.eq(first_tile),
            made.reader.last.eq(last_tile),
            made.reader.row.eq(r),
            made.reader.row_source.eq(insn.row_source),
            made.reader.row_mult.eq(insn.row_mult),
            made.reader.scatter.eq(scatters),
            made.post.write.eq(last_tile & real),
            made.post.columns.eq(Mux(last_ob, outputs_left, outputs)),
            made.post.bank.eq(bank),
            made.post.shift.eq(insn.shift),
            made.post.gelu.eq(insn.gelu),
            made.post.gelu_shift.eq(insn.gelu_shift),
            made.post.residual.eq(insn.residual),
            made.post.res_addr.eq(insn.res + out_offset),
            made.post.y_addr.eq(insn.y + out_offset),
            made.post.y_max.eq(insn.y_max),
            made.post.row.eq(r),
            made.post.first_tile.eq(first_ob & ~insn.max_continue),
            made.post.last_tile.eq(last_ob),
            made.post.scale_addr.eq(insn.y_scale),
            made.post.last.eq(last_r & last_tile & last_ob),
        ]
        wait = walk.LATENCY
        assert wait == ports.READ_LATENCY
        made_valid = delay_valid(m, generate, wait, "made_valid")
        staged = delay(m, made, wait, "made")
        pitches = data.StructLayout({"x": 16, "y": 16, "res": 16, "gather": 1, "scatter": 1})
        pitch = Signal(pitches)
        m.d.comb += [
            pitch.x.eq(insn.x_pitch),
            pitch.y.eq(insn.y_pitch),
            pitch.res.eq(insn.res_pitch),
            pitch.gather.eq(gathers),
            pitch.scatter.eq(scatters),
        ]
        pitch = delay(m, pitch, wait, "pitch")
        x_index, y_index = Signal(INDEX_BITS), Signal(INDEX_BITS)
        bordered = Signal(layout)
        m.d.comb += [
            x_index.eq(Mux(pitch.gather, self.queue.entry.token, walk.x)),
            y_index.eq(Mux(pitch.scatter, self.queue.entry.token, walk.y)),
            bordered.eq(staged),
            bordered.reader.lanes.eq(Mux(walk.outside, 0, staged.reader.lanes)),
        ]
        # index * pitch through three registers (as a DSP has them), the row alongside
        products = []
        for name, index in (("x", x_index), ("y", y_index), ("res", y_index)):
            a, b = delay(m, index, 1, f"{name}_index"), delay(m, pitch[name], 1, f"{name}_pitch")
            products.append(delay(m, (a * b)[: ports.ADDRESS_BITS], 1, f"{name}_product"))
        gate = delay(m, self.queue.entry.gate, 2, "gate")
        x_index2, kept = delay(m, x_index, 2, "x_index2"), delay(m, walk.y, 2, "kept")
        before = delay(m, bordered, 2, "staged")
        final = Signal(layout)
        m.d.comb += [
            final.eq(before),
            final.x_addr.eq(before.x_addr + products[0]),
            final.x_scale.eq(before.x_scale + x_index2),
            final.post.scale_addr.eq(before.post.scale_addr + kept),
            final.reader.gate.eq(gate),
            final.post.y_addr.eq(before.post.y_addr + products[1]),
            final.post.res_addr.eq(before.post.res_addr + products[2]),
        ]
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=layout.size, depth=ISSUE_QUEUE)
        m.d.comb += [
            fifo.w_data.eq(delay(m, final, 1, "final")),
            fifo.w_en.eq(delay_valid(m, made_valid, 3, "final_valid")),
        ]
        credits = Signal(range(ISSUE_QUEUE + 1), init=ISSUE_QUEUE)
        m.d.comb += generate.eq(active & (credits != 0))
        m.d.sync += credits.eq(credits - generate + fifo.r_en)

        # --- issue ----------------------------------------------------------------------------------------------
        head = data.View(layout, fifo.r_data)
        # A tile of so few rows that they come again too soon waits until the last one has gone ROW_GAP cycles before.
        gap, near = Signal(range(ROW_GAP)), Signal()  # near = gap != 0
        with m.If(self.issued):
            m.d.sync += [gap.eq(ROW_GAP - 1), near.eq(1)]
        with m.Elif(near):
            m.d.sync += [gap.eq(gap - 1), near.eq(gap != 1)]
        tile_ready = ~(head.swap & ~self.full) & ~(head.short & near)
        m.d.comb += [
            self.row.eq(head),
            self.rd_valid.eq(fifo.r_rdy & tile_ready),
            self.rd_addr.eq(head.x_addr),
            self.scale_addr.eq(head.x_scale),
            self.issued.eq(self.rd_valid & self.rd_ready),
            fifo.r_en.eq(self.issued),
            self.take.eq(self.issued & head.swap),
            self.bank_used.eq(self.issued & head.post.write),
            self.last.eq(self.issued & head.post.last),
            self.stall_weights.eq(fifo.r_rdy & ~tile_ready),
            self.stall_bank.eq(self.rd_valid & ~self.rd_ready),
        ]
        return m
