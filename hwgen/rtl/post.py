"""Post-processor: exact sums to stored int16 activations, one row of the array's outputs per cycle."""

from __future__ import annotations

from amaranth.hdl import Assert, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..config import Config
from ..isa import RowMax
from ..memories import memories
from ..numerics import ACC_BITS, COL_SHIFT, INT16_MAX, RECIPROCAL_EXPONENT_MAX, SHIFT_MAX, SHIFT_MIN
from . import ports
from .common import (
    HALVES_BITS,
    WIDE,
    add_halves,
    at_most,
    delay,
    delay_valid,
    history,
    lanes_mask,
    largest_tree,
    register,
    shift_by_steps,
)
from .gelu import GELU_LATENCY, gelu_lanes
from .memory import RAM_LATENCY, Ram

NEAR_DSP = {**WIDE, "max_fanout": 8}  # of what goes to the multipliers of all lanes
LOWEST = -(1 << 15)  # below every stored element


class PostProcessor(Component):
    """y = residual + gelu(requantise(acc)), stored with the row's maximum: isa.Matmul's `post`, exactly as numerics.

    Sums are taken as magnitude and sign, where rounding half away from zero is adding a half.

    Parameters: config (O = array_outputs).
    Ports: i_valid, i_acc (O x signed(27), magnitude <= ACC_MAX), i_meta (ports.post_meta), no gaps needed; params:
    writes to the two banks of column multipliers and biases, in force for rows that enter PARAM_READY cycles later;
    used, used_bank: a row with meta.write needs its bank no more, the bank may be written from this cycle on; res:
    residual read; y: activation write; scale: write of the row maximum after the last tile (ABS as u16, SIGNED in two's
    complement); done: the instruction whose `last` row came in is visible to all reads accepted from this cycle on.
    A row without meta.write does nothing but `done`. res, y and scale are never refused.
    Latencies, from i_valid: used USED_LATENCY, res RES_LATENCY, y Y_LATENCY, scale `scale_latency`, done `latency`.
    The same row may come again MAX_GAP cycles later (its running maximum is in RAM).
    Cost: 2*O DSPs, O/2 RAMB36 (GELU), 64*O parameter flip-flops, 2*acc_rows x 16 bits of RAM; what all lanes
    read is decoded in front of about 70 registers that are copied near them (`common.WIDE`).
    """

    PARAM_READY = 1
    USED_LATENCY = latency.PARAMS_USED
    REQUANTISE_LATENCY = latency.REQUANTISE
    RES_LATENCY = REQUANTISE_LATENCY + GELU_LATENCY - ports.READ_LATENCY
    Y_LATENCY = latency.Y_WRITE
    MAX_GAP = latency.POST_GAP

    def __init__(self, config: Config):
        self.config = config
        self.scale_latency = latency.row_maximum(config)
        self.latency = self.latency_of(config)
        chunks = config.output_chunks
        super().__init__(
            {
                "i_valid": In(1),
                "i_acc": In(data.ArrayLayout(signed(ACC_BITS), config.array_outputs)),
                "i_meta": In(ports.post_meta(config)),
                "params": In(ports.param_write(config)),
                "used": Out(1),
                "used_bank": Out(1),
                "res": Out(ports.read_port(config, chunks)),
                "y": Out(ports.write_port(config, chunks)),
                "scale": Out(ports.SCALE_WRITE),
                "done": Out(1),
            }
        )

    @classmethod
    def latency_of(cls, config: Config) -> int:
        """Cycles from a row to its `done`."""
        return latency.post(config)

    def elaborate(self, platform):
        m = Module()
        valid = [Signal(name="valid_0")]
        m.d.comb += valid[0].eq(self.i_valid & self.i_meta.write)
        for n in range(1, self.scale_latency + 1):
            valid.append(delay_valid(m, valid[-1], 1, f"valid_{n}"))
        done = Signal()
        m.d.comb += [
            done.eq(self.i_valid & self.i_meta.last),
            self.done.eq(delay_valid(m, done, self.latency, "done")),
        ]
        meta = {name: history(m, self.i_meta[name], name) for name, _ in self.i_meta.shape()}

        lanes = self._requantise(m, meta)
        m.d.comb += [self.used.eq(valid[self.USED_LATENCY]), self.used_bank.eq(meta["bank"](self.USED_LATENCY))]

        at = self.REQUANTISE_LATENCY
        mode, shift = meta["gelu"], meta["gelu_shift"]
        lanes = gelu_lanes(m, lanes, lambda n: mode(at + n), lambda n: shift(at + n))
        lanes = self._add_residual(m, meta, valid, lanes)
        m.d.comb += [
            self.y.valid.eq(valid[self.Y_LATENCY]),
            self.y.addr.eq(meta["y_addr"](self.Y_LATENCY)),
            self.y.data.eq(Cat(lanes)),
        ]
        self._row_maximum(m, meta, valid, lanes)

        if platform is None:  # the Python simulator; emitted Verilog stays free of assertions
            for port in (self.res, self.y, self.scale):
                with m.If(port.valid):
                    m.d.sync += Assert(port.ready, "the post-processor cannot wait")
        return m

    def _requantise(self, m: Module, meta: dict) -> list[Signal]:
        """numerics.requantise, REQUANTISE_LATENCY cycles."""
        low = SHIFT_MIN - 1  # shift out all but one bit below the result, which rounds
        bits = (SHIFT_MAX + RECIPROCAL_EXPONENT_MAX - SHIFT_MIN).bit_length()
        steps = register(m, (meta["shift"](4) + meta["row_shift"](4) - SHIFT_MIN)[:bits], "steps")
        # What every lane reads, and what it is decoded to, stands in registers that are copied near them.
        coarse, least_coarse = (register(m, v, f"coarse_{i}", WIDE) for i, v in enumerate((steps[3:], at_most(steps[3:]))))
        later = register(m, steps[:3], "steps_fine")
        fine, least_fine = (register(m, v, f"fine_{i}", WIDE) for i, v in enumerate((later, at_most(later))))
        near = Signal(16, name="row_mult_near", attrs=NEAR_DSP)  # with reset, or it would be a part of a shift register
        m.d.sync += near.eq(meta["row_mult"](3))
        row_mult = register(m, near, "row_mult_in")  # inside the multipliers
        bank, bias_bank = meta["bank"], register(m, meta["bank"](7), "bias_bank", WIDE)
        lanes = []
        for o in range(self.config.array_outputs):

            def stage(name: str, shape, value, o: int = o) -> Signal:
                out = Signal(shape, name=f"{name}{o}", reset_less=True)
                m.d.sync += out.eq(value)
                return out

            mult = [Signal(16, name=f"mult{o}_{b}", reset_less=True) for b in range(2)]
            bias = [Signal(signed(16), name=f"bias{o}_{b}", reset_less=True) for b in range(2)]
            for b in range(2):
                with m.If(self.params.valid & (self.params.bank == b) & self.params.mask[o]):
                    m.d.sync += [mult[b].eq(self.params.mult[o]), bias[b].eq(self.params.bias[o])]

            acc = self.i_acc[o]
            negative = delay(m, acc[-1], 8, f"neg{o}")
            # 1: magnitude and multiplier; 2: on their way, as the multipliers may lie far away. 3: product. 4: rounded; 5: on
            # its way.
            magnitude = stage("mag_in", ACC_BITS - 1, stage("mag", ACC_BITS - 1, Mux(acc[-1], -acc, acc)))
            column = stage("col_in", 16, stage("col", 16, Mux(bank(0), mult[1], mult[0])))
            product = stage("prod", magnitude.shape().width + 16, magnitude * column)
            v = stage("v", ACC_BITS - 1, (product + (1 << (COL_SHIFT - 1))) >> COL_SHIFT)
            v = stage("v_in", ACC_BITS - 1, v)
            # 6: product with the row multiplier. 7, 8: shift by eights, then by ones; note what is too large.
            wide = stage("wide", ACC_BITS - 1 + 16, v * row_mult)
            least = (least_coarse, least_fine)
            q, over = shift_by_steps(m, wide[low:], coarse, fine, HALVES_BITS, f"shift{o}", least)
            # 9: round, sign and bias. 10: saturate.
            offset = Mux(bias_bank, bias[1], bias[0])
            total = stage("sum", signed(19), add_halves(offset, q, negative))
            over, sign = stage("over", 1, over), stage("sign", 1, negative)
            lanes.append(stage("req", signed(16), _clip(total, over, sign)))
        return lanes

    def _add_residual(self, m: Module, meta: dict, valid: list, lanes: list) -> list[Signal]:
        """numerics.add_residual and zeros beyond the valid columns, 2 cycles."""
        at = self.REQUANTISE_LATENCY + GELU_LATENCY
        m.d.comb += [
            self.res.valid.eq(valid[self.RES_LATENCY] & meta["residual"](self.RES_LATENCY)),
            self.res.addr.eq(meta["res_addr"](self.RES_LATENCY)),
        ]
        columns, chunk = meta["columns"](at), self.config.chunk
        keep = delay(m, lanes_mask(columns, len(lanes)), 1, "keep")
        mask = lanes_mask(columns, len(lanes))[::chunk]
        m.d.comb += self.y.mask.eq(delay(m, mask, self.Y_LATENCY - at, "mask"))
        residual = register(m, meta["residual"](at - 1), "residual_near", WIDE)
        out = []
        for o, lane in enumerate(lanes):
            total = Signal(signed(17), name=f"add{o}", reset_less=True)
            y = Signal(signed(16), name=f"y{o}", reset_less=True)
            m.d.sync += total.eq(lane + Mux(residual, self.res.data[o], 0))
            m.d.sync += y.eq(Mux(keep[o], _clip(total), 0))
            out.append(y)
        return out

    def _row_maximum(self, m: Module, meta: dict, valid: list, lanes: list) -> None:
        """Running maximum of a row over its output tiles, to the scale memory after the last."""
        at = self.Y_LATENCY
        kind = meta["y_max"]
        keep = delay(m, lanes_mask(meta["columns"](at - 1), len(lanes)), 1, "key_keep")
        signed_max = register(m, kind(at - 1) == RowMax.SIGNED, "signed_max", WIDE)
        keys = []
        for o, y in enumerate(lanes):
            key = Signal(signed(16), name=f"key{o}", reset_less=True)
            m.d.sync += key.eq(Mux(keep[o], Mux(y[-1] & ~signed_max, -y, y), LOWEST))
            keys.append(key)
        largest, cycles = largest_tree(m, keys)
        end = at + 1 + cycles

        rows = self.config.acc_rows
        m.submodules.maxima = ram = Ram.of(memories(self.config)["row maxima"])
        row_bits = (rows - 1).bit_length()

        def address(n: int) -> Value:
            return Cat(meta["row"](n)[:row_bits], kind(n) == RowMax.SIGNED)

        before = ram.read_data.as_signed()
        running = Signal(signed(16), reset_less=True)
        with m.If(meta["first_tile"](end) | (largest > before)):
            m.d.sync += running.eq(largest)
        with m.Else():
            m.d.sync += running.eq(before)
        kept = Signal()
        m.d.comb += [
            ram.read_addr.eq(address(end - RAM_LATENCY)),
            kept.eq(valid[end + 1] & (kind(end + 1) != RowMax.NONE)),
            ram.write_enable.eq(kept),
            ram.write_addr.eq(address(end + 1)),
            ram.write_data.eq(running),
            self.scale.valid.eq(kept & meta["last_tile"](end + 1)),
            self.scale.addr.eq(meta["scale_addr"](end + 1)),
            self.scale.data.eq(running),
        ]


def _clip(value: Value, over=0, sign=0) -> Value:
    """Saturate to int16, symmetric; `over` says that the true value is beyond the range on the side of `sign`."""
    negative = Mux(over, sign, value[-1])
    # Beyond: bits above the magnitude that differ from the sign, or -32768.
    top = value[15:]
    beyond = over | ~((top == 0) | (top.all() & value[:15].any()))
    return Mux(beyond, Mux(negative, -INT16_MAX, INT16_MAX), value[:16].as_signed())
