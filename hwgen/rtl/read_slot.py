"""A place for one scratchpad read that waits, so that the logic of whoever asks ends before the arbitration."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from ..config import Config
from .common import delay, delay_valid
from .ports import ADDRESS_BITS, READ_LATENCY, elements, read_port


class ReadSlot(Component):
    """Passes on reads of a chunk; one that the scratchpad refuses waits here.

    `ready` is a register: it drops only while a read waits. A read that is granted at once takes no cycle longer, and no
    read is granted later than without the slot. Data come in the order of the requests, each with its tag, READ_LATENCY
    cycles after the grant.

    Parameters: config; tag: layout (or shape) of what a request gets back with its data.
    Ports: valid, addr, tag, ready (requests); arrived (strobe), o_tag, o_data; rd (to the scratchpad).
    Cost: a register and a multiplexer for address and tag.
    """

    def __init__(self, config: Config, tag):
        super().__init__(
            {
                "valid": In(1),
                "addr": In(ADDRESS_BITS),
                "tag": In(tag),
                "ready": Out(1, init=1),
                "arrived": Out(1),
                "o_tag": Out(tag),
                "o_data": Out(elements(config, 1)),
                "rd": Out(read_port(config, 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        addr = Signal(ADDRESS_BITS, reset_less=True)
        tag = Signal.like(self.tag, name="waiting_tag", reset_less=True)
        asked = Signal.like(self.tag, name="asked_tag")
        m.d.comb += [
            self.rd.valid.eq(self.valid | ~self.ready),
            self.rd.addr.eq(Mux(self.ready, self.addr, addr)),
            asked.eq(Mux(self.ready, self.tag, tag)),
            self.arrived.eq(delay_valid(m, self.rd.valid & self.rd.ready, READ_LATENCY, "arrived")),
            self.o_tag.eq(delay(m, asked, READ_LATENCY, "tag")),
            self.o_data.eq(self.rd.data),
        ]
        m.d.sync += self.ready.eq(~self.rd.valid | self.rd.ready)
        with m.If(self.ready):
            m.d.sync += [addr.eq(self.addr), tag.eq(self.tag)]
        return m
