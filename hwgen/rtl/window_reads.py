"""What the window engine reads and where its rows go: parameters of a block of columns, then every tap of every row."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import isa
from ..config import Config
from ..isa import INDEX_BITS, WALK_LOOPS, WINDOW_TAPS, Border, Reduce
from ..latency import WINDOW_CREDIT, WINDOW_READ, WINDOW_RING
from . import ports
from .common import counter, delay, delay_valid, register
from .insn import insn_view
from .small_memory import SmallFifo

TAP, MULT, BIAS, WEIGHT = range(4)  # what is read
TARGET = data.StructLayout({"addr": ports.ADDRESS_BITS, "scale": ports.SCALE_ADDRESS_BITS})


def number_bits() -> int:
    """Bits of a tap's number, or of a parameter's place in its ring."""
    return max((WINDOW_TAPS - 1).bit_length(), (WINDOW_RING - 1).bit_length())


def block_bits(config: Config) -> int:
    """Bits of a chunk's number within a block of columns."""
    return (config.window_chunks - 1).bit_length()


def ring_slot_bits(config: Config) -> int:
    """Bits of the number of a block's place in the ring of parameters."""
    return WINDOW_RING.bit_length() - 1 - block_bits(config)


def read_tag(config: Config) -> data.StructLayout:
    """What comes back with data."""
    return data.StructLayout(
        {
            "kind": 2,
            "number": number_bits(),
            "inside": 1,  # of a tap: within the border
            "own": 1,  # it is a tap of its group's first row
            "first": 1,  # of its group's first row
            "row_last": 1,  # of its group's first row
            "line_end": 1,  # the last that its group reads of a line of the kernel
            "last": 1,  # of its group; the fields below count with it
            "rows": max((config.window_rows - 1).bit_length(), 1),  # of the group, less one
            "more": max(block_bits(config), 1),  # chunks of the block less one
            "block_end": 1,  # the block's last row
            "final": 1,  # the last block
        }
    )


class WindowReads(Component):
    """For each block of window_chunks chunks of columns: multipliers and biases chunk by chunk, weights tap by tap, then for
    every group of rows of the walk every row of x that is a tap of one of them: a read each.

    A group are up to window_rows rows of the innermost loop, where from each to the next is a tap's step along v: a line of the
    kernel reads one row of x more for each row more (two rows of a kernel three wide: x rows 0 to 3, not 0 to 2 and 1 to 3).
    Elsewhere each row is its own group. A loop of the walk is a counter, an index the sum of its steps; one adder each makes
    an index a cycle. Then the border, then base + index * pitch, base alone beyond the border. What is on its way to the FIFO
    is counted, so a stage never waits.

    Parameters: config. Ports: insn, walk (words, held); start (strobe), finished (all reads are in the FIFO, or there are
    none); block_free, row_free (a block's parameters, a row's results have room); begins (strobe: a row takes its room, of
    `chunks` chunks), block_begins (strobe); tail (elements of a row's last chunk); valid, payload, ready (a read); target
    (strobe `target_valid`: a row's place, ahead of its last tap).
    Cost: two 16x16 multipliers, about 1,000 LUTs.
    """

    def __init__(self, config: Config):
        self.config = config
        self.read = data.StructLayout({"addr": ports.ADDRESS_BITS, "tag": read_tag(config)})
        super().__init__(
            {
                "insn": In(ports.insn_layout(isa.ReduceWindow).size),
                "walk": In(ports.insn_layout(isa.WindowWalk).size),
                "start": In(1),
                "finished": Out(1),
                "block_free": In(1),
                "row_free": In(1),
                "begins": Out(1),
                "chunks": Out(range(config.window_chunks + 1)),
                "tail": Out(range(config.chunk + 1)),
                "block_begins": Out(1),
                "valid": Out(1),
                "payload": Out(self.read),
                "ready": In(1),
                "target_valid": Out(1),
                "target": Out(TARGET),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, side, most = self.config, self.config.window_chunks, max(self.config.window_rows, 2)
        insn, walk = insn_view(isa.ReduceWindow, self.insn), insn_view(isa.WindowWalk, self.walk)
        weighted = insn.reduce == Reduce.WEIGHTED

        # --- loops ----------------------------------------------------------------------------------------------------
        reading_params, reading_tap, kind = Signal(), Signal(), Signal(2)
        go, load = Signal(), Signal()  # a tap (or its weights) goes on its way; the loops begin anew
        last_own, last_v, last_u = Signal(), Signal(), Signal()  # of the line: the last of the group's first row, of all
        left_v, left_u = Signal(isa.TAP_BITS), Signal(isa.TAP_BITS)
        behind, extra, joining = Signal(), Signal(range(most)), Signal(range(most))
        left_behind = Signal(range(most))
        single_v, single_u = walk.kernel_v == 1, walk.kernel_u == 1
        last_tap = last_v & last_u
        line, group = go & last_v, go & last_tap  # with this tap a line of the kernel, a group ends
        joins = reading_tap & (joining != 0)  # with the next tap a row begins within the group
        row = joins | group  # the walk goes on to its next row
        for step, again, left, last, count, single in (
            (go, line, left_v, last_own, walk.kernel_v, single_v),
            (line, group, left_u, last_u, walk.kernel_u, single_u),
        ):
            with m.If(load | again):
                m.d.sync += [left.eq(count), last.eq(single)]
            with m.Elif(step):
                m.d.sync += [left.eq(left - 1), last.eq(left == 2)]
        advance: Value = row
        ends: list[Value] = []
        together = register(
            m,
            (walk.kernel_v != 1)
            & (walk.x0 == walk.tap_v)
            & (walk.u0 == 0)
            & (walk.v0.as_signed() == walk.dilation_v),
            "together",
        )
        for k in range(WALK_LOOPS - 1):
            left, end = Signal(12, name=f"left_{k}"), Signal(name=f"end_{k}")
            count = walk[f"n{k}"]
            with m.If(load | (advance & end)):
                m.d.sync += [left.eq(count), end.eq(count == 1)]
            with m.Elif(advance):
                m.d.sync += [left.eq(left - 1), end.eq(left == 2)]
            if k == 0:
                self._group(m, load, group & end, group, together, count, left, extra, joining)
            advance = advance & end
            ends.append(end)
        loop = Mux(~ends[0], 0, Mux(~ends[1], 1, Mux(~ends[2], 2, 3)))  # that a row's end advances
        rows, last_row = Signal(16), Signal()
        with m.If(load):
            m.d.sync += [rows.eq(insn.rows), last_row.eq(insn.rows == 1)]
        with m.Elif(row):
            m.d.sync += [rows.eq(rows - 1), last_row.eq(rows == 2)]
        with m.If(joins):
            m.d.sync += joining.eq(joining - 1)
        # Behind the first row's last tap of a line come those that only the others have; weights have none.
        with m.If(load | line):
            m.d.sync += [behind.eq(0), last_v.eq(single_v)]
        with m.Elif(go & last_own):
            m.d.sync += [behind.eq(1), left_behind.eq(extra), last_v.eq(extra == 1)]
        with m.Elif(go):
            ends_own = (left_v == 2) & ((extra == 0) | (kind == WEIGHT))
            m.d.sync += [left_behind.eq(left_behind - 1), last_v.eq(Mux(behind, left_behind == 2, ends_own))]
        first, new_row, number = Signal(), Signal(), Signal(number_bits())
        with m.If(load | group):
            m.d.sync += [first.eq(1), new_row.eq(1), number.eq(0)]
        with m.Elif(go):
            m.d.sync += [first.eq(0), new_row.eq(joins), number.eq(number + ~behind)]

        def steps(name: str) -> Value:
            return Array(walk[f"{name}{k}"] for k in range(WALK_LOOPS))[loop]

        def index(name: str, of_line: Value, of_tap: Value | int, start: Value) -> Signal:
            """An index of the tap; a line of the kernel adds `of_line` to where the line before began, a tap `of_tap`."""
            bits = len(start)
            here, line_start = (Signal(bits, name=f"{name}_{of}", reset_less=True) for of in ("", "line"))
            following = (Mux(last_v, line_start, here) + Mux(last_v, of_line, of_tap))[:bits]
            next_row = of_row(name, start)[1]
            with m.If(load):
                m.d.sync += [here.eq(start), line_start.eq(start)]
            with m.Elif(group):
                m.d.sync += [here.eq(next_row), line_start.eq(next_row)]
            with m.Elif(go):
                m.d.sync += here.eq(following)
                with m.If(line):
                    m.d.sync += line_start.eq(following)
            return here

        def of_row(name: str, start: Value) -> tuple[Signal, Value]:
            """An index of the row's first tap, and of the next row's."""
            here = Signal(len(start), name=f"{name}_row", reset_less=True)
            following = (here + steps(name))[: len(start)]
            with m.If(load):
                m.d.sync += here.eq(start)
            with m.Elif(row):
                m.d.sync += here.eq(following)
            return here, following

        x = index("x", walk.tap_u, walk.tap_v, walk.x_start)
        y, _ = of_row("y", walk.y_start)
        u, v = index("u", walk.dilation_u, 0, walk.u), index("v", Value.cast(0), walk.dilation_v, walk.v)

        # Chunks of a row; those from this block on.
        whole, left = Signal(16, reset_less=True), Signal(16, reset_less=True)
        columns = Signal(16, reset_less=True)
        in_block = Signal(range(side + 1))  # chunks of this block

        # --- border, addresses ------------------------------------------------------------------------------------------
        bases = {name: Signal(ports.ADDRESS_BITS, name=f"{name}_base", reset_less=True) for name in "xy"}
        param, param_row = (Signal(ports.ADDRESS_BITS, name=name, reset_less=True) for name in ("param", "param_row"))
        place = Signal(number_bits())
        going = Signal()
        m.d.comb += [going.eq(reading_tap | reading_params), go.eq(reading_tap | (reading_params & (kind == WEIGHT)))]
        tag = Signal(read_tag(config))
        m.d.comb += [
            tag.kind.eq(kind),
            tag.number.eq(Mux(reading_params & (kind != WEIGHT), place, number)),
            tag.own.eq(~behind),
            tag.first.eq(first),
            tag.row_last.eq(last_own & last_u & ~behind),
            tag.line_end.eq(last_v),
            tag.last.eq(reading_tap & last_tap),
            tag.rows.eq(extra),
            tag.more.eq(in_block - 1),
            tag.block_end.eq(last_row),
            tag.final.eq(left <= side),
        ]
        beyond = [
            register(m, Cat(*(c.as_signed()[-1] for c in (u, v))).any(), "before_map"),
            register(m, u.as_signed() >= walk.height, "below_map"),
            register(m, v.as_signed() >= walk.width, "behind_map"),
        ]
        zero, wrap_x, wrap_y = (walk.border == kind for kind in (Border.ZERO, Border.WRAP_X, Border.WRAP_Y))
        inside = register(m, ~(zero & Cat(beyond).any()), "inside")
        addresses = {}
        for name, here, wraps, pitch in (("x", x, wrap_x, insn.x_pitch), ("y", y, wrap_y, insn.y_pitch)):
            here = delay(m, here, 1, f"{name}_index")
            here = register(m, here - Mux(wraps & beyond[1], walk.area, 0), f"{name}_up")[:INDEX_BITS]
            behind = register(m, beyond[2] & wraps, f"{name}_behind")
            here = register(m, here - Mux(behind, walk.width, 0), f"{name}_inside")[:INDEX_BITS]
            base: Value = bases[name] if name == "y" else Mux(reading_params, param, bases[name])
            product = register(m, delay(m, here, 1, f"{name}_factor") * pitch, f"{name}_product")
            if name == "x":  # what lies beyond the border is not used, and is read in the bank of the map
                own = delay(m, reading_params, 4, "params") | delay(m, ~inside, 2, "outside")
                product = Mux(register(m, own, "at_base"), 0, product)
            base = delay(m, base, 5, f"{name}_from")
            addresses[name] = register(m, base + product, f"{name}_addr")[: ports.ADDRESS_BITS], here
        scale = delay(m, addresses["y"][1], 2, "row_index")
        m.d.comb += [
            self.target_valid.eq(delay_valid(m, reading_tap & new_row, WINDOW_READ, "target")),
            self.target.addr.eq(addresses["y"][0]),
            self.target.scale.eq(register(m, scale + insn.y_scale, "row_scale")),
        ]

        # --- to the FIFO ------------------------------------------------------------------------------------------------
        m.submodules.reads = reads = SmallFifo(WINDOW_CREDIT, self.read.size)
        passed = Signal()
        tag_there = delay(m, tag, WINDOW_READ, "tag")
        _, some, all_passed = counter(m, passed, going, WINDOW_CREDIT, "read_credit", init=WINDOW_CREDIT)
        payload = Signal(self.read)
        m.d.comb += [
            payload.addr.eq(addresses["x"][0]),
            payload.tag.eq(tag_there),
            payload.tag.inside.eq(delay(m, inside, WINDOW_READ - 2, "read_inside")),
            reads.push.eq(delay_valid(m, going, WINDOW_READ, "read")),
            reads.push_data.eq(payload),
            self.valid.eq(reads.o.valid),
            self.payload.eq(reads.o.payload),
            reads.o.ready.eq(self.ready),
            passed.eq(reads.o.valid & self.ready),
        ]

        # --- blocks ------------------------------------------------------------------------------------------------------
        at = Signal(range(max(side, 2)))  # chunk of a block's multipliers or biases
        last_at = at == in_block - 1
        slot = Signal(ring_slot_bits(config))
        m.d.comb += [
            place.eq(Cat(at[: block_bits(config)], slot)),
            self.chunks.eq(in_block),
            self.tail.eq(columns),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.finished.eq(1)
                with m.If(self.start & (insn.rows != 0)):
                    m.d.sync += [columns.eq(insn.columns), whole.eq(0), param_row.eq(insn.params)]
                    m.d.sync += [bases[name].eq(insn[name]) for name in "xy"]
                    m.next = "COUNT"
            with m.State("COUNT"):
                m.d.sync += [whole.eq(whole + 1), left.eq(whole + 1)]
                with m.If(columns > config.chunk):
                    m.d.sync += columns.eq(columns - config.chunk)
                with m.Else():
                    m.next = "BLOCK"
            with m.State("BLOCK"):
                m.d.comb += [load.eq(1), self.block_begins.eq(self.block_free)]
                m.d.sync += [param.eq(param_row), in_block.eq(Mux(left > side, side, left)), at.eq(0)]
                with m.If(self.block_free):
                    m.next = "MULT"
            with m.State("MULT"):
                m.d.comb += [kind.eq(MULT), reading_params.eq(some), load.eq(1)]
                with m.If(some):
                    m.d.sync += [param.eq(param + 1), at.eq(at + 1)]
                    with m.If(last_at):
                        m.d.sync += [param.eq(param_row + whole), at.eq(0)]
                        m.next = "BIAS"
            with m.State("BIAS"):
                m.d.comb += [kind.eq(BIAS), reading_params.eq(some), load.eq(1)]
                with m.If(some):
                    m.d.sync += [param.eq(param + 1), at.eq(at + 1)]
                    with m.If(last_at):
                        m.d.sync += [param.eq(param_row + (whole << 1)), at.eq(0)]
                        m.next = "ROWS"
                        with m.If(weighted):
                            m.next = "WEIGHTS"
            with m.State("WEIGHTS"):
                m.d.comb += [kind.eq(WEIGHT), reading_params.eq(some)]
                with m.If(some):
                    m.d.sync += param.eq(param + whole)
                    # The taps' counters count the weights, too.
                    with m.If(last_tap):
                        m.d.comb += load.eq(1)
                        m.next = "ROWS"
            with m.State("ROWS"):
                m.d.comb += [reading_tap.eq(some & (~new_row | self.row_free)), self.begins.eq(reading_tap & new_row)]
                with m.If(group & last_row):
                    m.d.sync += [left.eq(left - side), param_row.eq(param_row + side), slot.eq(slot + 1)]
                    m.d.sync += [bases[name].eq(bases[name] + side) for name in "xy"]
                    m.next = "BLOCK"
                    with m.If(left <= side):
                        m.next = "FLUSH"
            with m.State("FLUSH"):
                with m.If(all_passed):
                    m.next = "IDLE"
        return m

    def _group(
        self, m: Module, load: Value, again: Value, group: Value, together: Value, count: Value, left: Value,
        extra: Signal, joining: Signal,
    ) -> None:  # fmt: skip
        """Rows of the next group less one, of the `left` (with this) or, where the innermost loop begins `again`, `count`."""
        most = self.config.window_rows

        def less_one(rows: Value, taken: int) -> Value:
            found: Value = Value.cast(most - 1)
            for n in reversed(range(1, most)):
                found = Mux(rows == n + taken, n - 1, found)
            return Mux(together, found, 0)

        for target in (extra, joining):
            with m.If(load | again):
                m.d.sync += target.eq(less_one(count, 0))
            with m.Elif(group):
                m.d.sync += target.eq(less_one(left, 1))
