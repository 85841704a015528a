"""Addresses of rows of chunks, one after another."""

from __future__ import annotations

from amaranth.hdl import Mux, Signal, Value

from .ports import ADDRESS_BITS


class Walk:
    """`addr` runs through the chunks of a row, then on to the next row, `pitch` chunks behind the start of this one.

    `start` and `step` return sync statements. Cost: two address registers and two adders.
    """

    def __init__(self, name: str):
        self.addr = Signal(ADDRESS_BITS, name=f"{name}_addr", reset_less=True)
        self.next_row = Signal(ADDRESS_BITS, name=f"{name}_next_row", reset_less=True)

    def start(self, base: Value, pitch: Value) -> list:
        """Begin at chunk `base`."""
        return [self.addr.eq(base), self.next_row.eq(base + pitch)]

    def step(self, last: Value, pitch: Value) -> list:
        """After an access; `last`: it was the last chunk of its row."""
        return [
            self.addr.eq(Mux(last, self.next_row, self.addr + 1)),
            self.next_row.eq(Mux(last, self.next_row + pitch, self.next_row)),
        ]
