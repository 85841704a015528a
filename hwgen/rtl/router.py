"""Router: executes `isa.Route`: top-k of every token's logits, gate scores, expert queues."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from ..latency import GATE_QUOTIENT_BITS
from ..latency import ROUTER_LANES as LANES
from ..memories import expert_bits
from ..numerics import GATE_BITS, MAX_TOP_K
from . import ports
from .divide import Divider
from .expert_queues import ExpertQueues
from .gate_lanes import GateLanes, weight_sum_bits
from .read_slot import ReadSlot


class Router(Component):
    """numerics.route on rows of logits: the expert queues, and with `dense` the gate scores as rows.

    LANES rows go through `GateLanes` in lockstep: their chunks are read one after another, chunk by chunk, into a register
    behind the one that is shifted out, so that reading and sorting overlap. The chosen weights then go one by one through
    a divider, weight * 2^15 // sum, into `ExpertQueues`.

    Parameters: config. Ports: start (strobe), insn (held until done), done (strobe: all writes and queues visible); rd, wr
    (scratchpad); lookup, queue, nonempty: the queues. Preconditions: 1 <= top_k <= 4, top_k <= experts <= max_experts,
    rows * top_k <= queue_entries, rows <= 4096.
    Cycles: `latency.route_cycles`. Cost: GateLanes, two registers of LANES chunks, a divider, ExpertQueues; no multiplier.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "insn": In(ports.insn_layout(isa.Route)),
                "done": Out(1),
                "rd": Out(ports.read_port(config, 1)),
                "wr": Out(ports.write_port(config, 1)),
                "lookup": In(ports.QUEUE_LOOKUP),
                "queue": In(ports.QUEUE_READ),
                "nonempty": Out(config.max_experts),
            }
        )

    def elaborate(self, platform):
        m = Module()
        insn = self.insn
        m.submodules.lanes = lanes = GateLanes(self.config, LANES)
        m.submodules.queues = queues = ExpertQueues(self.config)
        connect(m, flipped(self.lookup), queues.lookup)
        connect(m, flipped(self.queue), queues.queue)
        connect(m, queues.wr, flipped(self.wr))
        m.d.comb += [
            lanes.experts.eq(insn.experts),
            lanes.top_k.eq(insn.top_k),
            lanes.renormalise.eq(insn.renormalise),
            queues.clear.eq(self.start),
            self.done.eq(queues.done),
            self.nonempty.eq(queues.nonempty),
        ]
        for name in ("rows", "experts", "top_k", "dense", "y", "y_pitch"):
            m.d.comb += getattr(queues, name).eq(getattr(insn, name))
        self.read_rows(m, lanes)
        self.divide(m, lanes, queues)
        return m

    def read_rows(self, m: Module, lanes: GateLanes) -> None:
        """Chunks from the scratchpad into `lanes`: for a group of rows: for a chunk: for a row of the group."""
        insn, chunk = self.insn, self.config.chunk
        held = min(chunk, self.config.max_experts)  # logits of a chunk that can matter
        ahead = data.StructLayout({"logits": range(held + 1), "last": 1, "rows": range(LANES + 1)})

        # --- reads ----------------------------------------------------------------------------------------------
        running, asking = Signal(), Signal()  # asking: rows are left, and `upcoming` is not yet full or promised
        rows_left, left = Signal(16), Signal(8)
        group, chunk_addr, addr = (Signal(ports.ADDRESS_BITS, name=f"{n}_addr") for n in ("group", "chunk", "x"))
        lane = Signal(range(LANES))
        group_rows = Signal(range(LANES + 1))
        last_lane, last_chunk, accepted = Signal(), Signal(), Signal()
        about = Signal(ahead, reset_less=True)
        begun = Signal()
        m.submodules.reads = reads = ReadSlot(self.config, data.StructLayout({"lane": range(LANES), "last": 1}))
        connect(m, reads.rd, flipped(self.rd))
        # A cycle late: between two groups, and two chunks, `asking` is off for longer.
        m.d.sync += [
            group_rows.eq(Mux(rows_left > LANES, LANES, rows_left)),
            last_chunk.eq(left <= chunk),
            begun.eq(self.start),
        ]
        m.d.comb += [
            last_lane.eq(lane + 1 == group_rows),
            reads.valid.eq(asking),
            reads.addr.eq(addr),
            reads.tag.lane.eq(lane),
            reads.tag.last.eq(last_lane),
            accepted.eq(reads.valid & reads.ready),
        ]
        with m.If(self.start):
            m.d.sync += [running.eq(0), asking.eq(0), rows_left.eq(insn.rows), left.eq(insn.experts)]
            m.d.sync += [group.eq(insn.x), chunk_addr.eq(insn.x), addr.eq(insn.x), lane.eq(0)]
        with m.Elif(begun):
            m.d.sync += [running.eq(rows_left != 0), asking.eq(rows_left != 0)]
        with m.Elif(accepted):
            m.d.sync += [lane.eq(lane + 1), addr.eq(addr + insn.x_pitch)]
            with m.If(last_lane):
                next_group = group + insn.x_pitch * LANES
                base = Mux(last_chunk, next_group, chunk_addr + 1)
                m.d.sync += [lane.eq(0), asking.eq(0), addr.eq(base), chunk_addr.eq(base)]
                m.d.sync += [
                    about.logits.eq(Mux(left > held, held, left)),
                    about.last.eq(last_chunk),
                    about.rows.eq(group_rows),
                    left.eq(Mux(last_chunk, insn.experts, left - chunk)),
                ]
                with m.If(last_chunk):
                    m.d.sync += [group.eq(next_group), rows_left.eq(rows_left - LANES)]
                    m.d.sync += running.eq(rows_left > LANES)

        # --- their data -----------------------------------------------------------------------------------------
        upcoming = [[Signal(ports.ELEMENT, name=f"up_{i}_{j}", reset_less=True) for j in range(held)] for i in range(LANES)]
        current = [[Signal(ports.ELEMENT, name=f"cur_{i}_{j}", reset_less=True) for j in range(held)] for i in range(LANES)]
        here, full = Signal(ahead), Signal()
        shift, load = Signal(), Signal()
        m.d.comb += [
            lanes.i_valid.eq(here.logits != 0),
            lanes.i_last.eq(here.last & (here.logits == 1)),
            lanes.i_rows.eq(here.rows),
            shift.eq(lanes.i_valid & lanes.i_ready),
            load.eq(full & ((here.logits == 0) | (shift & (here.logits == 1)))),
        ]
        with m.If(load):
            m.d.sync += [here.eq(about), full.eq(0), asking.eq(running)]
        with m.Elif(shift):
            m.d.sync += here.logits.eq(here.logits - 1)
        with m.If(reads.arrived & reads.o_tag.last):
            m.d.sync += full.eq(1)
        for i in range(LANES):
            m.d.comb += lanes.i_logits[i].eq(current[i][0])
            for j in range(held):
                following = current[i][j + 1] if j + 1 < held else current[i][j]
                with m.If(reads.arrived & (reads.o_tag.lane == i)):
                    m.d.sync += upcoming[i][j].eq(reads.o_data[j])
                with m.If(load | shift):
                    m.d.sync += current[i][j].eq(Mux(load, upcoming[i][j], following))

    def divide(self, m: Module, lanes: GateLanes, queues: ExpertQueues) -> None:
        """Chosen weights of a group, row by row and best first, through the divider into the queues."""
        number, insn = expert_bits(self.config), self.insn
        divider = Divider(16 + GATE_BITS, weight_sum_bits(self.config), GATE_QUOTIENT_BITS, number + 1)
        m.submodules.divider = divider
        choice = data.StructLayout({"expert": number, "weight": 16})
        row = data.StructLayout({"sum": weight_sum_bits(self.config), "best": data.ArrayLayout(choice, MAX_TOP_K)})
        queue = [Signal(row, name=f"given_{i}", reset_less=True) for i in range(LANES)]
        waiting, rows, chosen = Signal(), Signal(range(LANES + 1)), Signal(range(MAX_TOP_K))
        busy, last = rows != 0, chosen + 1 == insn.top_k
        ready = lanes.o_valid | waiting
        take = ready & (~busy | (last & (rows == 1)))
        m.d.comb += [
            # Two rows early: these 2 * top_k cycles are over before a new group's first weight is summed.
            lanes.given.eq(((rows == 2) & (chosen == 0)) | (take & (lanes.o_rows == 1))),
            divider.i_valid.eq(busy),
            divider.i_numerator.eq(Cat(Const(0, GATE_BITS), queue[0].best[0].weight)),
            divider.i_denominator.eq(queue[0].sum),
            divider.i_tag.eq(Cat(queue[0].best[0].expert, last)),
            queues.i_valid.eq(divider.o_valid),
            queues.i_gate.eq(divider.o_quotient),
            queues.i_expert.eq(divider.o_tag[:number]),
            queues.i_last.eq(divider.o_tag[number]),
        ]
        # A group that finds the divider busy stays where it is: `lanes` starts no third one before `given`.
        with m.If(take):
            m.d.sync += [rows.eq(lanes.o_rows), chosen.eq(0), waiting.eq(0)]
            for i in range(LANES):
                m.d.sync += queue[i].sum.eq(lanes.o_sum[i])
                for k in range(MAX_TOP_K):
                    m.d.sync += [
                        queue[i].best[k].expert.eq(lanes.o_experts[i][k]),
                        queue[i].best[k].weight.eq(lanes.o_weights[i][k]),
                    ]
        with m.Else():
            m.d.sync += waiting.eq(ready)
            with m.If(busy):
                m.d.sync += chosen.eq(Mux(last, 0, chosen + 1))
                with m.If(last):
                    m.d.sync += [rows.eq(rows - 1), *(queue[i].eq(queue[i + 1]) for i in range(LANES - 1))]
                with m.Else():
                    m.d.sync += [queue[0].best[k].eq(queue[0].best[k + 1]) for k in range(MAX_TOP_K - 1)]
