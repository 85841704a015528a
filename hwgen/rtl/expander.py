"""Narrow weights of one port's beats to bytes."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from ..config import Config
from ..numerics import NARROW_BITS, NARROW_FACTORS
from .axi import beat_stream
from .common import WIDE
from .register_slice import RegisterSlice
from .small_memory import lut_rom

GRANULES = 8  # of a beat, as many bits each as it has bytes
NUMBER_BITS = 4
# `units` of a Stream and the bits of its codes, 0 for bytes.
SEGMENT = data.StructLayout({"units": 32, "bits": 3})


class Expander(Component):
    """isa.Stream's units: numerics.widen(codes, factor of their number), or bytes as they are, a unit a cycle.

    A window of a beat's width slides over the beat that is held and the next one, by as many granules as a unit has; numbers
    that stand in front of a block of units take a cycle of their own. Behind a segment's last unit the rest of its beat falls.
    Ports: segment (stream in: SEGMENT), i (beats), o (units, a byte a lane). Latency: 5 cycles from a beat to its unit.
    Cost, for L = axi_bytes lanes: about 107 * L LUTs and 91 * L flip-flops, by Yosys (1,710 and 1,450 of a port of 128 bits).
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"segment": In(stream.Signature(SEGMENT)), "i": In(beat_stream(config)), "o": Out(beat_stream(config))})

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.axi_bytes
        m.submodules.beats = beats = RegisterSlice(8 * lanes)
        m.submodules.units = units = RegisterSlice(8 * lanes)
        connect(m, flipped(self.i), beats.i)
        connect(m, units.o, flipped(self.o))
        go = units.i.ready  # a register: all stages move, or none

        # --- which granules are next ------------------------------------------------------------------------------
        left, active, last = Signal(32, reset_less=True), Signal(), Signal(reset_less=True)
        bits = Signal(3, reset_less=True)
        header = Signal(reset_less=True)  # what comes next are numbers
        numbers = Signal(NUMBER_BITS * 2 * lanes, reset_less=True)  # of the units of this block that are to come
        in_block = Signal(range(2 * lanes), reset_less=True)
        size = Signal(range(GRANULES + 1), reset_less=True)  # of what comes next
        at = Signal(range(GRANULES), attrs=WIDE)
        held, there = Signal(8 * lanes, reset_less=True), Signal()
        end = Signal(range(2 * GRANULES + 1))
        whole, used, fire, drop = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            end.eq(at + size),
            whole.eq(there & ((end <= GRANULES) | beats.o.valid)),
            fire.eq(active & whole & go),
            used.eq(fire & ((end >= GRANULES) | last)),
            # Of the last unit the beat that it ends in goes too, unless that is the one held.
            drop.eq(last & (end > GRANULES)),
            beats.o.ready.eq(~there | used),
        ]
        with m.If(beats.o.ready):
            m.d.sync += [held.eq(beats.o.payload), there.eq(beats.o.valid & ~(there & drop))]
        with m.If(fire):
            m.d.sync += at.eq(Mux(last, 0, end))

        window = Cat(held, beats.o.payload).word_select(0, 16 * lanes)
        for step in (4, 2, 1):
            width = (GRANULES + step - 1) * lanes
            window = Mux(at[step.bit_length() - 1], window[step * lanes :], window)[:width]
        first, second = numbers[:NUMBER_BITS], numbers[NUMBER_BITS : 2 * NUMBER_BITS]
        block_end = Signal(reset_less=True)  # the next unit is the last one of its block
        m.d.comb += self.segment.ready.eq(~active | (fire & last & ~header))
        with m.If(fire & header):
            m.d.sync += [header.eq(0), numbers.eq(window), in_block.eq(2 * lanes - 1), block_end.eq(0)]
            m.d.sync += [size.eq(Mux(window[:NUMBER_BITS] == 0, GRANULES, bits)), last.eq(left == 1)]
        with m.Elif(fire):
            m.d.sync += [numbers.eq(numbers[NUMBER_BITS:]), left.eq(left - 1), in_block.eq(in_block - 1)]
            m.d.sync += [block_end.eq(in_block == 1), header.eq(block_end & (bits != 0))]
            m.d.sync += size.eq(Mux(block_end | (second == 0) | (bits == 0), GRANULES, bits))
            m.d.sync += last.eq((left == 2) & ~(block_end & (bits != 0)))
        with m.If(self.segment.ready):
            begun = self.segment.payload
            m.d.sync += [active.eq(self.segment.valid & (begun.units != 0)), left.eq(begun.units), bits.eq(begun.bits)]
            m.d.sync += [header.eq(begun.bits != 0), size.eq(GRANULES), last.eq((begun.units == 1) & (begun.bits == 0))]
            m.d.sync += [numbers.eq(0), block_end.eq(0)]

        # --- its weights ------------------------------------------------------------------------------------------
        taken, raw = Signal(8 * lanes, reset_less=True), Signal(reset_less=True, attrs=WIDE)
        number, kind = Signal(NUMBER_BITS, reset_less=True), Signal(3, reset_less=True, attrs=WIDE)
        valid = Signal(3)
        codes = [Signal(8, name=f"code_{i}", reset_less=True) for i in range(lanes)]
        factor = Signal(range(max(NARROW_FACTORS) + 1), reset_less=True, attrs=WIDE)
        table = lut_rom(m, [f or 1 for f in NARROW_FACTORS], len(factor), number, "factors")
        with m.If(go):
            m.d.sync += [taken.eq(window), number.eq(first), raw.eq(first == 0), kind.eq(bits)]
            m.d.sync += [valid.eq(Cat(fire & ~header, valid[:2])), factor.eq(table)]
        for i, code in enumerate(codes):
            choices = {b: taken[b * i : b * (i + 1)].as_signed() for b in NARROW_BITS}
            found = Mux(kind[1], choices[6], Mux(kind[0], choices[5], choices[4]))  # 6, 5, 4 by their lowest bits
            parts = Signal(8, name=f"low_{i}", reset_less=True), Signal(6, name=f"middle_{i}", reset_less=True)
            top = Signal(4, name=f"top_{i}", reset_less=True)
            by = [factor[k].replicate(8) for k in range(len(factor))]
            with m.If(go):
                m.d.sync += code.eq(Mux(raw, taken[8 * i : 8 * (i + 1)], found))
                m.d.sync += [
                    parts[0].eq((code & by[0]) + ((code & by[1]) << 1)),
                    parts[1].eq((code & by[2]) + ((code & by[3]) << 1)),
                    top.eq(code & by[4]),
                ]
            total = Signal(unsigned(8), name=f"weight_{i}")
            m.d.comb += [total.eq(parts[0] + (parts[1] << 2) + (top << 4)), units.i.payload[8 * i : 8 * (i + 1)].eq(total)]
        m.d.comb += units.i.valid.eq(valid[2])
        return m
