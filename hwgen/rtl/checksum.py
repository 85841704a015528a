"""CRC-32 of the program as it is fetched, so that the driver knows that the machine ran what the bundle holds."""

from __future__ import annotations

import zlib

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from ..config import Config

LATENCY = 2  # clocks from the last beat to its CRC
BITS, ONES = 32, 0xFFFFFFFF


def step_terms(data_bits: int) -> list[list[int]]:
    """For each bit of the next state the positions in Cat(state, data) whose exclusive or it is.

    The CRC is linear over GF(2), so the effect of every input bit is found on its own. States are zlib's, complemented.
    """
    size = data_bits // 8

    def next_state(state: int, data: int) -> int:
        return zlib.crc32(data.to_bytes(size, "little"), state ^ ONES) ^ ONES

    effects = [next_state(1 << bit, 0) for bit in range(BITS)] + [next_state(0, 1 << bit) for bit in range(data_bits)]
    return [[at for at, effect in enumerate(effects) if effect >> bit & 1] for bit in range(BITS)]


class Checksum(Component):
    """crc = zlib.crc32(the beats since `start`, each with its low byte first), LATENCY clocks late.

    Ports: start (strobe, before the first beat), valid, beat; crc.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"start": In(1), "valid": In(1), "beat": In(8 * config.axi_bytes), "crc": Out(BITS)})

    def elaborate(self, platform):
        m = Module()
        valid, beat = Signal(), Signal(8 * self.config.axi_bytes, reset_less=True)
        state = Signal(BITS, init=ONES)
        m.d.sync += [valid.eq(self.valid), beat.eq(self.beat)]
        inputs = Cat(state, beat)
        following = Cat(Cat(inputs[at] for at in terms).xor() for terms in step_terms(len(beat)))
        m.d.sync += state.eq(Mux(self.start, ONES, Mux(valid, following, state)))
        m.d.comb += self.crc.eq(~state)
        return m
