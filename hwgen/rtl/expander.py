"""Narrow weights of one port's beats to bytes."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from ..config import Config
from ..isa import NARROW_GRANULES as GRANULES
from ..isa import NARROW_NUMBER_BITS as NUMBER_BITS
from ..numerics import NARROW_BITS, NARROW_FACTORS
from .axi import beat_stream
from .common import WIDE
from .register_slice import RegisterSlice
from .small_memory import lut_rom

BYTES = 3
# `units` of a Stream and the bits of its codes, 0 for bytes.
SEGMENT = data.StructLayout({"units": 32, "bits": 3})
# A factor: (one + 2 * two) * (-1 if negative) + 4 * (0, 1, 2, 4)[large].
DIGITS = data.StructLayout({"one": 1, "two": 1, "negative": 1, "large": 2})


def _digits(factor: int) -> int:
    """DIGITS of a factor, as bits."""
    for large, part in enumerate((0, 4, 8, 16)):
        rest = factor - part
        if -2 <= rest <= 2:
            return (abs(rest) == 1) | (abs(rest) == 2) << 1 | (rest < 0) << 2 | large << 3
    raise ValueError(f"factor {factor} is no sum of -2..2 and 0, 4, 8 or 16")


class Expander(Component):
    """isa.Stream's units: numerics.widen(codes, factor of their number), or bytes as they are, a unit a cycle.

    A window of a beat's width slides over the beat that is held and the next one, by as many granules as a unit has; numbers
    that stand in front of a block of units take a cycle of their own. Behind a segment's last unit the rest of its beat falls.
    Ports: segment (stream in: SEGMENT), i (beats), o (units, a byte a lane). Latency: 5 cycles from a beat to its unit.
    Cost, for L = axi_bytes lanes: about 70 * L LUTs and 79 * L flip-flops, by Yosys (1,115 and 1,260 of a port of 128 bits).
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"segment": In(stream.Signature(SEGMENT)), "i": In(beat_stream(config)), "o": Out(beat_stream(config))})

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.axi_bytes
        m.submodules.beats = beats = RegisterSlice(8 * lanes)
        connect(m, flipped(self.i), beats.i)
        go = Signal()  # all stages move, or none
        m.d.comb += go.eq(~self.o.valid | self.o.ready)

        # --- which granules are next ------------------------------------------------------------------------------
        left, active, last = Signal(32, reset_less=True), Signal(), Signal(reset_less=True)
        bits, narrow = Signal(3, reset_less=True), Signal(reset_less=True)
        header = Signal(reset_less=True)  # what comes next are numbers
        numbers = Signal(8 * lanes, reset_less=True)  # of the units of this block
        # Those of the next unit and of the one behind it.
        first, second = (Signal(NUMBER_BITS, name=name, reset_less=True) for name in ("first", "second"))
        behind = Signal(range(self.config.narrow_block), reset_less=True)  # which unit comes after these two
        at = Signal(range(GRANULES), attrs=WIDE)
        held, there = Signal(8 * lanes, reset_less=True), Signal()
        # Granules of the beat up to the end of what comes next; whether it needs the beat behind, the last of this one.
        end, over, reaches = Signal(range(2 * GRANULES + 1), reset_less=True), Signal(reset_less=True), Signal(reset_less=True)
        whole, used, fire, drop = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            whole.eq(there & (~over | beats.o.valid)),
            fire.eq(active & whole & go),
            used.eq(fire & (reaches | last)),
            # Of the last unit the beat that it ends in goes too, unless that is the one held.
            drop.eq(last & over),
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
        first_number = window[:NUMBER_BITS]
        block_end = Signal(reset_less=True)  # the next unit is the last one of its block
        # What comes behind has as many granules as a beat, or as a code has bits: both are added up beforehand.
        full = Mux(header, first_number == 0, block_end | (second == 0) | ~narrow)
        start = end[: len(at)]
        reach = start + bits
        with m.If(fire):
            m.d.sync += [
                end.eq(Mux(full, start + GRANULES, reach)),
                over.eq(Mux(full, start != 0, reach > GRANULES)),
                reaches.eq(full | (reach >= GRANULES)),
            ]
        m.d.comb += self.segment.ready.eq(~active | (fire & last & ~header))
        with m.If(fire & header):
            m.d.sync += [header.eq(0), numbers.eq(window), block_end.eq(0)]
            m.d.sync += [first.eq(first_number), second.eq(window[NUMBER_BITS : 2 * NUMBER_BITS]), behind.eq(2)]
            m.d.sync += last.eq(left == 1)
        with m.Elif(fire):
            m.d.sync += [first.eq(second), second.eq(numbers.word_select(behind, NUMBER_BITS))]
            m.d.sync += [left.eq(left - 1), behind.eq(behind + 1)]
            m.d.sync += [block_end.eq(behind == 0), header.eq(block_end & narrow)]
            m.d.sync += last.eq((left == 2) & ~(block_end & narrow))
        with m.If(self.segment.ready):
            begun = self.segment.payload
            m.d.sync += [active.eq(self.segment.valid & (begun.units != 0)), left.eq(begun.units), bits.eq(begun.bits)]
            m.d.sync += narrow.eq(begun.bits != 0)
            m.d.sync += [header.eq(begun.bits != 0), last.eq((begun.units == 1) & (begun.bits == 0))]
            m.d.sync += [end.eq(GRANULES), over.eq(0), reaches.eq(1)]
            m.d.sync += block_end.eq(0)

        # --- its weights ------------------------------------------------------------------------------------------
        taken, number = Signal(8 * lanes, reset_less=True), Signal(NUMBER_BITS, reset_less=True)
        kind = Signal(2, reset_less=True, attrs=WIDE)  # of the codes: by the lowest bits of their width, or bytes
        on_way = Signal(3)
        codes = [Signal(8, name=f"code_{i}", reset_less=True) for i in range(lanes)]
        digits = Signal(DIGITS, reset_less=True, attrs=WIDE)
        negative = Signal(reset_less=True, attrs=WIDE)
        table = lut_rom(m, [_digits(f or 1) for f in NARROW_FACTORS], DIGITS.size, number, "factors")
        with m.If(go):
            plain = ~narrow | (first == 0)
            m.d.sync += [taken.eq(window), number.eq(Mux(narrow, first, 0)), kind.eq(Mux(plain, BYTES, bits[:2]))]
            m.d.sync += [on_way.eq(Cat(fire & ~header, on_way[:2])), self.o.valid.eq(on_way[2])]
            m.d.sync += [digits.as_value().eq(table), negative.eq(digits.negative)]
        for i, code in enumerate(codes):
            choices = {b: taken[b * i : b * (i + 1)].as_signed() for b in NARROW_BITS}
            byte = taken[8 * i : 8 * (i + 1)].as_signed()
            found = Mux(kind[1], Mux(kind[0], byte, choices[6]), Mux(kind[0], choices[5], choices[4]))
            low, high = Signal(8, name=f"low_{i}", reset_less=True), Signal(6, name=f"high_{i}", reset_less=True)
            small = (code & digits.one.replicate(8)) | ((code << 1) & digits.two.replicate(8))
            with m.If(go):
                m.d.sync += code.eq(found)
                m.d.sync += low.eq(small[:8] ^ digits.negative.replicate(8))
                many = Mux(digits.large[0], code << 2, code << 1)
                m.d.sync += high.eq(Mux(digits.large[1], many, Mux(digits.large[0], code, 0)))
            # The lowest bits carry the one into what is complemented.
            total = Signal(10, name=f"weight_{i}")
            m.d.comb += total.eq(Cat(1, low) + Cat(negative, 0, 0, high))
            with m.If(go):
                m.d.sync += self.o.payload[8 * i : 8 * (i + 1)].eq(total[1:9])
        return m
