"""Rows of a Matmul's operands, one after another: the loops, taps and borders of a walk as counters."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import isa
from ..isa import COORDINATE_BITS, INDEX_BITS, Border
from .common import register

HEADER = {name for name, _ in isa.layout(isa.Insn)}
WIDTHS = {name: width for name, width in isa.layout(isa.WalkFields) if name not in HEADER}


def walk_layout() -> data.StructLayout:
    """The fields of `isa.WalkFields` that say where rows lie."""
    return data.StructLayout(WIDTHS)


# Row r of every operand: the walk of a Matmul that has none before it.
IN_ORDER = {"n0": 1, "n1": 1, "n2": 1, "x3": 1, "y3": 1, "kernel_u": 1, "kernel_v": 1}


class RowWalk(Component):
    """For each row and tap of a walk: its input row `x`, its output row `y`, and whether it is `outside` the border.

    Ports: begin (strobe: the next row is the first of the walk `fields`); step (strobe: a row is made, go on to the next),
    last_row (it is the last of its tile), last_tile (its tile is the last of its tap); last_tap (the row's tap is the
    walk's last); x, y, outside of the row that was made LATENCY cycles before. x is 0 outside.
    Cost: two copies of the walk's fields, sixteen adders of 12 to 16 bits, no multiplier.
    """

    LATENCY = 4  # of x, y and outside: compare, subtract downwards, subtract to the right, choose

    def __init__(self) -> None:
        super().__init__(
            {
                "begin": In(1),
                "fields": In(walk_layout()),
                "step": In(1),
                "last_row": In(1),
                "last_tile": In(1),
                "last_tap": Out(1),
                "x": Out(INDEX_BITS),
                "y": Out(INDEX_BITS),
                "outside": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        new, now = self.fields, Signal(walk_layout(), reset_less=True)
        with m.If(self.begin):
            m.d.sync += now.eq(new)

        def count(advance: Value, name: str) -> Signal:
            """Whether a loop of as many steps as the field says is at its end; `advance`: go on, from the end to the start."""
            bits = WIDTHS[name]
            left, end = Signal(bits, name=f"{name}_left", reset_less=True), Signal(name=f"{name}_end", reset_less=True)
            with m.If(advance):
                m.d.sync += [left.eq(Mux(end, now[name], left) - 1), end.eq(Mux(end, now[name] == 1, left == 1))]
            with m.If(self.begin):
                m.d.sync += [left.eq(new[name] - 1), end.eq(new[name] == 1)]
            return end

        # --- loops over the rows: whether each is at its end, the innermost first ---------------------------------
        ends: list[Value] = []
        advance: Value = self.step
        for k in range(isa.WALK_LOOPS - 1):
            ends.append(count(advance, f"n{k}"))
            advance = advance & ends[-1]

        def stepped(name: str) -> Value:
            """What the step to the next row adds."""
            step = now[f"{name}{isa.WALK_LOOPS - 1}"]
            for k in reversed(range(isa.WALK_LOOPS - 1)):
                step = Mux(ends[k], step, now[f"{name}{k}"])
            return step

        # --- taps: where the first row of the next one lies -------------------------------------------------------
        next_tap = self.step & self.last_row & self.last_tile
        last_v = count(next_tap, "kernel_v")
        last_u = count(next_tap & last_v, "kernel_u")
        m.d.comb += self.last_tap.eq(last_u & last_v)

        def begins(name: str, start: str, bits: int, across: Value | int, down: Value | int) -> Value:
            """The index at which the next tile begins: of this tap's rows, or behind its last tile of the next tap's."""
            at, line = Signal(bits, name=f"{name}_tap"), Signal(bits, name=f"{name}_line")
            below = Mux(last_u, now[start], line + down)
            following = Mux(last_v, below, at + across)[:bits]
            with m.If(next_tap):
                m.d.sync += at.eq(following)
                with m.If(last_v):
                    m.d.sync += line.eq(below)
            with m.If(self.begin):
                m.d.sync += [at.eq(new[start]), line.eq(new[start])]
            return Mux(self.last_tile, following, at)

        def index(name: str, start: str, bits: int, restart: Value) -> Signal:
            value = Signal(bits, name=f"{name}_index", reset_less=True)
            with m.If(self.step):
                m.d.sync += value.eq(Mux(self.last_row, restart, value + stepped(name)))
            with m.If(self.begin):
                m.d.sync += value.eq(new[start])
            return value

        still = now.border == Border.WRAP_Y  # it asks where the output row lies, whatever the tap
        dilation_u, dilation_v = (Mux(still, 0, now[f"dilation_{c}"]) for c in "uv")
        x = index("x", "x_start", INDEX_BITS, begins("x", "x_start", INDEX_BITS, now.tap_v, now.tap_u))
        y = index("y", "y_start", INDEX_BITS, now.y_start)
        u = index("u", "u", COORDINATE_BITS, begins("u", "u", COORDINATE_BITS, 0, dilation_u))
        v = index("v", "v", COORDINATE_BITS, begins("v", "v", COORDINATE_BITS, dilation_v, 0))

        # --- border -----------------------------------------------------------------------------------------------
        u_high = register(m, u.as_signed() >= now.height, "u_high")
        v_high = register(m, v.as_signed() >= now.width, "v_high")
        negative = register(m, u[-1] | v[-1], "negative")
        kind, area, width = (register(m, now[name], f"{name}_1") for name in ("border", "area", "width"))
        x, y = register(m, x, "x_1"), register(m, y, "y_1")
        wraps = {"x": kind == Border.WRAP_X, "y": kind == Border.WRAP_Y}
        outside = register(m, (kind == Border.ZERO) & (u_high | v_high | negative), "outside_2")
        right = {name: register(m, v_high & wrap, f"{name}_right_2") for name, wrap in wraps.items()}
        width = register(m, width, "width_2")
        x, y = (
            register(m, (value - Mux(u_high & wraps[name], area, 0))[:INDEX_BITS], f"{name}_2")
            for name, value in (("x", x), ("y", y))
        )
        x, y = (
            register(m, (value - Mux(right[name], width, 0))[:INDEX_BITS], f"{name}_3") for name, value in (("x", x), ("y", y))
        )
        outside = register(m, outside, "outside_3")
        m.d.comb += [
            self.x.eq(register(m, Mux(outside, 0, x), "x_4")),
            self.y.eq(register(m, y, "y_4")),
            self.outside.eq(register(m, outside, "outside_4")),
        ]
        return m
