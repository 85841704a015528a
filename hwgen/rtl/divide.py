"""Unsigned division, pipelined: the softmax reciprocal and the router's gate scores."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from .common import delay, delay_valid


class Divider(Component):
    """o_quotient = i_numerator // i_denominator, `latency` cycles later, a new division every cycle.

    Restoring division, one quotient bit a stage. Precondition: the quotient fits quotient_bits, that is
    i_numerator < i_denominator << quotient_bits (so i_denominator > 0); otherwise o_quotient is meaningless.

    Parameters: numerator_bits, denominator_bits, quotient_bits, each >= 1; tag_bits >= 0.
    Ports: i_valid, i_numerator, i_denominator; o_valid, o_quotient; with tag_bits > 0 i_tag and o_tag, riding along.
    Latency: quotient_bits. Cost: per stage a subtractor and a multiplexer of denominator_bits, and about
    2 * denominator_bits + quotient_bits registers.
    """

    def __init__(self, numerator_bits: int, denominator_bits: int, quotient_bits: int, tag_bits: int = 0):
        for name, value, least in (
            ("numerator_bits", numerator_bits, 1),
            ("denominator_bits", denominator_bits, 1),
            ("quotient_bits", quotient_bits, 1),
            ("tag_bits", tag_bits, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"Divider {name}={value!r} is not a whole number of at least {least}")
        self.quotient_bits, self.tag_bits = quotient_bits, tag_bits
        ports = {
            "i_valid": In(1),
            "i_numerator": In(numerator_bits),
            "i_denominator": In(denominator_bits),
            "o_valid": Out(1),
            "o_quotient": Out(quotient_bits),
        }
        if tag_bits:
            ports |= {"i_tag": In(tag_bits), "o_tag": Out(tag_bits)}
        super().__init__(ports)

    @property
    def latency(self) -> int:
        """Cycles from a division to its quotient."""
        return self.quotient_bits

    def elaborate(self, platform):
        m = Module()
        bits, width = self.quotient_bits, len(self.i_denominator)
        # The precondition makes the top of the numerator a remainder already: less than the denominator.
        remainder, low, denominator = self.i_numerator[bits:], self.i_numerator[:bits], self.i_denominator
        low = Cat(low, Signal(bits - len(low), name="zero")) if len(low) < bits else low
        for stage in range(bits):
            # `low` holds the numerator bits still to come on top and the quotient bits found so far below.
            trial = Cat(low[-1], remainder)[: width + 1]
            difference = Signal(width + 2, name=f"diff_{stage}")
            m.d.comb += difference.eq(trial - denominator)
            fits = ~difference[-1]
            next_remainder = Signal(width, name=f"rem_{stage}", reset_less=True)
            next_low = Signal(bits, name=f"quot_{stage}", reset_less=True)
            m.d.sync += [
                next_remainder.eq(Mux(fits, difference, trial)),
                next_low.eq(Cat(fits, low[:-1])),
            ]
            remainder, low = next_remainder, next_low
            if stage + 1 < bits:
                next_denominator = Signal(width, name=f"den_{stage}", reset_less=True)
                m.d.sync += next_denominator.eq(denominator)
                denominator = next_denominator
        m.d.comb += [
            self.o_quotient.eq(low),
            self.o_valid.eq(delay_valid(m, self.i_valid, self.latency, "valid")),
        ]
        if self.tag_bits:
            m.d.comb += self.o_tag.eq(delay(m, self.i_tag, self.latency, "tag"))
        return m
