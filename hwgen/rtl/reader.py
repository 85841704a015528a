"""Conversion on read: stored int16 rows become the int8 operands of the array on their way into it."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import latency, numerics
from ..config import Config
from ..isa import Convert, RowScale
from ..latency import GATE_STAGES, PROBABILITY_STAGES, RECIPROCAL_BITS, SUM_STAGES
from ..memories import SUM_BITS, memories
from .common import WIDE, delay, delay_valid, lanes_mask, register, round_shift, shift_out, tree
from .divide import Divider
from .memory import RAM_LATENCY, Ram
from .ports import ELEMENT, ROW_BITS, ROW_SHIFT_BITS


def reader_meta(config: Config) -> data.StructLayout:
    """What rides along with a row into the `RowReader`."""
    return data.StructLayout(
        {
            "convert": 2,  # intgraph.Convert
            "lanes": config.array_inputs.bit_length(),  # valid lanes, 0..I; the others become zero
            "first": 1,  # first input tile: the sum of the row's probabilities starts anew
            "last": 1,  # last input tile: the row multiplier counts
            "row": ROW_BITS,
            "row_source": 2,  # intgraph.RowScale
            "row_mult": 16,  # IMMEDIATE
            "scatter": 1,
            "gate": 16,
        }
    )


def constant_table(values, index: Value, width: int) -> Value:
    """values[index] as plain logic: per result bit one shifted constant of at most 64 bits.

    Tools make LUTs of it (a 128-entry table takes two and a multiplexer a bit), Verilator a machine-word shift.
    """
    low = min(len(index), 6)
    bits = []
    for bit in range(width):
        column = [int(v) >> bit & 1 for v in values]
        parts = [column[i : i + (1 << low)] for i in range(0, len(column), 1 << low)]
        words = [Const(sum(b << j for j, b in enumerate(part)), 1 << low) for part in parts]
        looked_up = [word.bit_select(index[:low], 1) if word.value else Const(0, 1) for word in words]
        for position in range(low, len(index)):
            looked_up = [Mux(index[position], *looked_up[i : i + 2][::-1]) for i in range(0, len(looked_up), 2)]
        bits.append(looked_up[0])
    return Cat(bits)


class RowQuantiser(Component):
    """o_data = numerics.quantise_rows (i_convert = 1, i_scale the row's largest magnitude) or quantise_static (0).

    Both are one expression, saturate(round_shift(x * factor, 8 + exponent), 127); static has factor 1, exponent 0. Magnitudes are
    multiplied, where rounding half away from zero is adding a half: two bits of the factor choose 0, x, 2x or 3x.

    Parameters: config (I = array_inputs lanes).
    Ports: i_valid, i_data (I x s16), i_convert, i_scale (u16, below 2^15), i_lanes (0..I valid lanes; the others give
    zero); o_valid, o_data (I x s8), o_scale (u16 row scale of i_scale, whatever i_convert).
    Latency: LATENCY (8), a row every cycle.
    Cost: no DSP; about 190 registers and 160 LUTs a lane; two 128-entry tables for all.
    """

    LATENCY = latency.QUANTISER

    def __init__(self, config: Config):
        self.lanes = lanes = config.array_inputs
        super().__init__(
            {
                "i_valid": In(1),
                "i_data": In(data.ArrayLayout(ELEMENT, lanes)),
                "i_convert": In(1),
                "i_scale": In(16),
                "i_lanes": In(range(lanes + 1)),
                "o_valid": Out(1),
                "o_data": Out(data.ArrayLayout(signed(8), lanes)),
                "o_scale": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes = range(self.lanes)

        # 1: exponent of the row maximum, which lanes count
        exponent = Signal(3)
        for e in range(1, 8):
            with m.If(self.i_scale[7 + e]):  # later assignments win: the leading bit decides
                m.d.comb += exponent.eq(e)
        exponent_1, scale_1 = register(m, exponent, "exponent_1"), register(m, self.i_scale[:15], "scale_1")
        convert_1 = register(m, self.i_convert, "convert_1")
        lanes_1 = register(m, self.i_lanes, "lanes_1", WIDE)
        x = [register(m, self.i_data[i], f"x1_{i}") for i in lanes]

        # 2: table index: the seven bits below the leading one; a maximum below 128 counts as 128
        leading = Signal(8)
        m.d.comb += leading.eq(scale_1 >> exponent_1)
        index_2 = register(m, Mux(leading[7], leading[:7], 0), "index_2")
        exponent_2, convert_2 = register(m, exponent_1, "exponent_2"), register(m, convert_1, "convert_2")
        negative = [register(m, v[-1], f"negative2_{i}") for i, v in enumerate(x)]
        x = [register(m, Mux(v[-1], -v, v)[:16], f"x2_{i}") for i, v in enumerate(x)]
        mask_2 = register(m, lanes_mask(lanes_1, self.lanes), "mask_2")

        # 3: factor and step; 4: the factor goes from its table to all lanes
        row_factor = constant_table(numerics.ROW_FACTOR, index_2, 8)
        factor_4 = register(m, register(m, Mux(convert_2, row_factor, 1), "factor_3"), "factor_4", WIDE)
        step_3 = register(m, constant_table(numerics.ROW_STEP, index_2, 16), "step_3")
        shift_3 = register(m, Mux(convert_2, exponent_2, 0), "shift_3")
        drop_3 = register(m, ~exponent_2, "drop_3")  # 7 - exponent, the shift of the step
        x = [register(m, Mux(mask_2[i], v, 0), f"x3_{i}") for i, v in enumerate(x)]
        triple = [register(m, v + (v << 1), f"triple_{i}") for i, v in enumerate(x)]
        x = [register(m, v, f"x4_{i}") for i, v in enumerate(x)]

        # 5: products with the factor's halves, each a digit and a shifted digit: the DSPs belong to the array.
        def half(i: int, bits: Value) -> Value:
            low, high = (Mux(b[1], Mux(b[0], triple[i], x[i] << 1), Mux(b[0], x[i], 0)) for b in (bits[:2], bits[2:]))
            return low + (high << 2)

        low, high = (
            [register(m, half(i, factor_4[at : at + 4]), f"{name}_{i}") for i in lanes] for at, name in ((0, "low"), (4, "high"))
        )
        shift_5, drop_4 = delay(m, shift_3, 2, "shift_late"), register(m, drop_3, "drop_4")
        step_4 = register(m, step_3 + ((1 << drop_3) >> 1), "step_4")

        # 6: product, but for what no shift brings up
        drop = numerics.STATIC_SHIFT - 1  # less the bit that rounds
        halves = [register(m, (low[i] + (high[i] << 4))[drop:23], f"product_{i}") for i in lanes]
        shift_6, scale_5 = register(m, shift_5, "shift_6", WIDE), register(m, (step_4 >> drop_4)[:16], "scale_5")

        # 7: shift, note what is too large; 8: round, saturate, sign
        bits = numerics.INT8_MAX.bit_length()
        for i, value in enumerate(halves):
            kept, beyond = shift_out(value, shift_6, bits + 1)
            kept, beyond = register(m, kept, f"shifted_{i}"), register(m, beyond, f"beyond_{i}")
            sign = delay(m, negative[i], 5, f"sign_{i}")
            whole = kept[1:] | beyond.replicate(bits)
            up = kept[0] & ~whole.all()
            # -(whole + up) is the complement of whole, and one more where nothing is rounded up.
            y = Cat(Const(1, 1), whole ^ sign.replicate(bits), sign) + Cat(up ^ sign, Const(0, bits + 1))
            m.d.comb += self.o_data[i].eq(register(m, y[1 : bits + 2].as_signed(), f"y_{i}"))
        m.d.comb += [
            self.o_scale.eq(delay(m, scale_5, 3, "scale_out")),
            self.o_valid.eq(delay_valid(m, self.i_valid, self.LATENCY, "valid")),
        ]
        return m


class RowReader(Component):
    """o_data = int8 operands of a stored row, by meta.convert numerics.quantise_static, quantise_rows or probabilities.

    o_row_mult is the row multiplier of the post-processor as in isa.Matmul: meta.row_mult (IMMEDIATE), i_scale
    (TABLE), or (CONVERTED) the row scale, for probabilities numerics.reciprocal of the row's sum over its input tiles,
    meaningful for the last of them; with meta.scatter numerics.gated_scale of that. o_row_shift is the exponent of the
    reciprocal, else 0.

    Parameters: config (I = array_inputs lanes, acc_rows sums).
    Ports: i_valid, i_data (I x s16), i_scale (the row's entry of the scale memory: largest magnitude, or for
    probabilities signed maximum), i_meta (`reader_meta`); o_data (I x s8), o_row_mult (u16), o_row_shift (u4).
    Latency: LATENCY (9) for o_data, ROW_MULT_LATENCY (28) for the other two, whatever the mode; a row every cycle. The
    same row may come back ACC_GAP (4) cycles later.
    Cost: a RowQuantiser; about 90 registers and 40 LUTs a lane for the probabilities; an adder tree over the lanes,
    acc_rows x 20 bits of RAM, a divider of 16 stages, one 16x16 multiplier.
    """

    LATENCY = latency.READER
    ACC_GAP = latency.READER_GAP
    ROW_MULT_LATENCY = latency.ROW_MULT

    def __init__(self, config: Config):
        self.config = config
        self.lanes = config.array_inputs
        super().__init__(
            {
                "i_valid": In(1),
                "i_data": In(data.ArrayLayout(ELEMENT, self.lanes)),
                "i_scale": In(16),
                "i_meta": In(reader_meta(config)),
                "o_data": Out(data.ArrayLayout(signed(8), self.lanes)),
                "o_row_mult": Out(16),
                "o_row_shift": Out(ROW_SHIFT_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        meta = self.i_meta
        m.submodules.quantiser = quantiser = RowQuantiser(self.config)
        m.d.comb += [
            quantiser.i_valid.eq(self.i_valid),
            quantiser.i_data.eq(self.i_data),
            quantiser.i_convert.eq(meta.convert == Convert.ROW),
            quantiser.i_scale.eq(self.i_scale),
            quantiser.i_lanes.eq(meta.lanes),
        ]
        is_probability = Signal()
        m.d.comb += is_probability.eq(meta.convert == Convert.PROBABILITY)
        probability = self._probabilities(m)

        # One register behind the quantiser chooses the mode.
        choose = delay(m, is_probability, quantiser.LATENCY, "choose")
        for i, p in enumerate(probability):
            late = delay(m, p, quantiser.LATENCY - PROBABILITY_STAGES, f"p{i}")
            m.d.comb += self.o_data[i].eq(register(m, Mux(choose, late, quantiser.o_data[i]), f"y_{i}"))

        reciprocal, exponent, reciprocal_at = self._reciprocal(m, probability, is_probability)

        # What is no reciprocal is known with the row scale and waits for it.
        source = Signal(data.StructLayout({"kind": 2, "mult": 16, "table": 16, "scatter": 1, "gate": 16, "sum": 1}))
        m.d.comb += [
            source.kind.eq(meta.row_source),
            source.mult.eq(meta.row_mult),
            source.table.eq(self.i_scale),
            source.scatter.eq(meta.scatter),
            source.gate.eq(meta.gate),
            source.sum.eq(is_probability),
        ]
        source = delay(m, source, quantiser.LATENCY, "source")
        converted = source.kind == RowScale.CONVERTED
        known = Signal(data.StructLayout({"mult": 16, "use_sum": 1, "scatter": 1, "gate": 16}))
        m.d.comb += [
            known.mult.eq(
                Mux(converted, quantiser.o_scale, Mux(source.kind == RowScale.TABLE, source.table, source.mult))
            ),
            known.use_sum.eq(converted & source.sum),
            known.scatter.eq(source.scatter),
            known.gate.eq(source.gate),
        ]
        known = delay(m, known, reciprocal_at - quantiser.LATENCY, "known")

        # Gate: operand registers, product, rounding (GATE_STAGES).
        mult = register(m, Mux(known.use_sum, reciprocal, known.mult), "mult")
        gate, scatter = register(m, known.gate, "gate"), delay(m, known.scatter, 2, "scatter")
        gated = register(m, mult * gate, "gated")
        plain = register(m, mult, "plain")
        rounded = round_shift(gated, numerics.GATE_BITS)[:16]
        m.d.comb += [
            self.o_row_mult.eq(register(m, Mux(scatter, rounded, plain), "row_mult")),
            self.o_row_shift.eq(delay(m, Mux(known.use_sum, exponent, 0), GATE_STAGES, "row_shift")),
        ]
        return m

    def _probabilities(self, m: Module) -> list[Value]:
        """u7 probability of each lane, PROBABILITY_STAGES after the inputs; zero in lanes that do not count."""
        largest = self.i_scale.as_signed()
        mask = register(m, lanes_mask(self.i_meta.lanes, self.lanes), "p_mask")
        result = []
        for i in range(self.lanes):
            distance = register(m, largest - self.i_data[i], f"distance_{i}")
            zero = register(m, ~mask[i] | (distance > 127), f"zero_{i}")
            index = register(m, Mux(distance < 0, 0, distance[:7]), f"step_{i}")
            result.append(register(m, Mux(zero, 0, constant_table(numerics.PROBABILITY, index, 7)), f"p_{i}"))
        return result

    def _reciprocal(self, m: Module, probability: list[Value], is_probability: Value) -> tuple[Value, Value, int]:
        """numerics.reciprocal of the row's sum up to and with this tile: multiplier, exponent, their latency."""
        levels = max(2, -(-(self.lanes - 1).bit_length() // SUM_STAGES))
        partial, took = tree(m, probability, lambda a, b: a + b, levels, "sum")
        partial = delay(m, partial, SUM_STAGES - took, "sum_late")
        at = PROBABILITY_STAGES + SUM_STAGES

        # Read early, so that the row's sum so far arrives with this tile's.
        rows = self.config.acc_rows
        m.submodules.sums = sums = Ram.of(memories(self.config)["softmax sums"])
        address = delay(m, self.i_meta.row, at - RAM_LATENCY, "sum_row")[: (rows - 1).bit_length()]
        first = delay(m, self.i_meta.first, at, "sum_first")
        total = register(m, (partial + Mux(first, 0, sums.read_data))[:SUM_BITS], "total")
        enable = delay_valid(m, self.i_valid & is_probability, at + 1, "sum_valid")
        m.d.comb += [
            sums.read_addr.eq(address),
            sums.write_addr.eq(delay(m, address, RAM_LATENCY + 1, "sum_back")),
            sums.write_data.eq(total),
            sums.write_enable.eq(enable),
        ]

        # 127 * 2^e <= total: a bit above the seven from e on, or all these seven.
        most = numerics.RECIPROCAL_EXPONENT_MAX
        exponent, numerator = Signal(ROW_SHIFT_BITS), Signal(numerics.RECIPROCAL_NUMERATOR.bit_length() + most)
        m.d.comb += numerator.eq(numerics.RECIPROCAL_NUMERATOR)
        for e in range(1, most + 1):  # later assignments win
            with m.If(total[e + 7 :].any() | total[e : e + 7].all()):
                m.d.comb += [exponent.eq(e), numerator.eq(numerics.RECIPROCAL_NUMERATOR << e)]
        m.submodules.divider = divider = Divider(len(numerator), SUM_BITS, RECIPROCAL_BITS, ROW_SHIFT_BITS)
        m.d.comb += [
            divider.i_valid.eq(0),  # its results are taken by count
            divider.i_numerator.eq(register(m, numerator, "numerator")),
            divider.i_denominator.eq(
                register(m, Mux(total < numerics.INT8_MAX, numerics.INT8_MAX, total), "denominator")
            ),
            divider.i_tag.eq(register(m, exponent, "exponent")),
        ]
        return divider.o_quotient, divider.o_tag, at + 2 + divider.latency
