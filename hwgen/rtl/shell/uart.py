"""Asynchronous serial: a start bit, eight data bits from the low one up, a stop bit."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out

FRAME_BITS = 10
LEAST_CYCLES = 4  # of a bit, so that it is sampled near its middle


def _check(bit_cycles: int) -> int:
    if bit_cycles < LEAST_CYCLES:
        raise ValueError(f"bit_cycles={bit_cycles}: a bit must last at least {LEAST_CYCLES} clocks")
    return bit_cycles


class UartReceiver(Component):
    """Bytes from the line `rx`: `valid` strobes with `byte`; a byte without its stop bit is dropped.

    Parameter: bit_cycles, clocks that a bit lasts.
    """

    def __init__(self, bit_cycles: int):
        self.bit_cycles = _check(bit_cycles)
        super().__init__({"rx": In(1, init=1), "valid": Out(1), "byte": Out(8)})

    def elaborate(self, platform):
        m = Module()
        line = Signal(3, init=0b111)  # two registers against metastability, one that is looked at
        wait = Signal(range(self.bit_cycles + self.bit_cycles // 2))
        left, bits = Signal(range(FRAME_BITS)), Signal(8, reset_less=True)
        m.d.sync += [line.eq(Cat(line[1:], self.rx)), self.valid.eq(0)]
        with m.If(left == 0):
            with m.If(~line[0]):
                # To the middle of the first data bit.
                m.d.sync += [left.eq(FRAME_BITS - 1), wait.eq(self.bit_cycles + self.bit_cycles // 2 - 1)]
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Else():
            m.d.sync += [wait.eq(self.bit_cycles - 1), left.eq(left - 1)]
            with m.If(left == 1):  # the stop bit
                m.d.sync += [self.valid.eq(line[0]), self.byte.eq(bits)]
            with m.Else():
                m.d.sync += bits.eq(Cat(bits[1:], line[0]))
        return m


class UartTransmitter(Component):
    """Bytes of the stream `bytes` to the line `tx`. Parameter: bit_cycles, clocks that a bit lasts."""

    def __init__(self, bit_cycles: int):
        self.bit_cycles = _check(bit_cycles)
        super().__init__({"bytes": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        wait, left = Signal(range(self.bit_cycles)), Signal(range(FRAME_BITS + 1))
        bits = Signal(FRAME_BITS, init=(1 << FRAME_BITS) - 1)
        m.d.comb += [self.tx.eq(bits[0]), self.bytes.ready.eq(left == 0)]
        with m.If(left == 0):
            with m.If(self.bytes.valid):
                m.d.sync += [bits.eq(Cat(Const(0, 1), self.bytes.payload, Const(1, 1))), left.eq(FRAME_BITS)]
                m.d.sync += wait.eq(self.bit_cycles - 1)
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Else():
            m.d.sync += [wait.eq(self.bit_cycles - 1), left.eq(left - 1), bits.eq(Cat(bits[1:], Const(1, 1)))]
        return m
