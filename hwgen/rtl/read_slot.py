"""Registers before a scratchpad read, so that the logic of whoever asks ends before the arbitration, and the other way round."""

from __future__ import annotations

from amaranth.hdl import Module, Mux
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..config import Config
from .common import delay, delay_valid
from .ports import ADDRESS_BITS, READ_LATENCY, elements, read_port
from .register_slice import RegisterSlice


class ReadSlot(Component):
    """Passes on reads a cycle later; one that the scratchpad refuses waits here with the next one behind it.

    Data come in the order of the requests, each with its tag, READ_LATENCY cycles after the grant, so LATENCY after the
    request where nothing waits.

    Parameters: config; tag: layout (or shape) of what a request gets back with its data; chunks of a read.
    Ports: valid, addr, tag, ready (requests; `ready` is a register); asked (tag of the request at the scratchpad: the
    address of whatever is read beside it); arrived (strobe), o_tag, o_data; soon (strobe), soon_tag: the first two SOON (2)
    cycles before, for what steers many lanes; rd (to the scratchpad; valid and addr are registers, addr is zero while nothing
    is asked).
    Cost: two registers and a multiplexer for address and tag, and the tag's way beside the read.
    """

    LATENCY = latency.READ_SLOT
    SOON = 2

    def __init__(self, config: Config, tag, chunks: int = 1):
        self.request = data.StructLayout({"addr": ADDRESS_BITS, "tag": tag})
        super().__init__(
            {
                "valid": In(1),
                "addr": In(ADDRESS_BITS),
                "tag": In(tag),
                "ready": Out(1),
                "asked": Out(tag),
                "arrived": Out(1),
                "o_tag": Out(tag),
                "o_data": Out(elements(config, chunks)),
                "soon": Out(1),
                "soon_tag": Out(tag),
                "rd": Out(read_port(config, chunks)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.waiting = waiting = RegisterSlice(self.request)
        m.d.comb += [
            waiting.i.valid.eq(self.valid),
            waiting.i.payload.addr.eq(Mux(self.valid, self.addr, 0)),
            waiting.i.payload.tag.eq(self.tag),
            self.ready.eq(waiting.i.ready),
            self.rd.valid.eq(waiting.o.valid),
            self.rd.addr.eq(waiting.o.payload.addr),
            self.asked.eq(waiting.o.payload.tag),
            waiting.o.ready.eq(self.rd.ready),
            self.soon.eq(delay_valid(m, self.rd.valid & self.rd.ready, READ_LATENCY - self.SOON, "granted")),
            self.soon_tag.eq(delay(m, self.asked, READ_LATENCY - self.SOON, "tag")),
            self.arrived.eq(delay_valid(m, self.soon, self.SOON, "arrived")),
            self.o_tag.eq(delay(m, self.soon_tag, self.SOON, "tag_there")),
            self.o_data.eq(self.rd.data),
        ]
        return m
