"""The AXI masters of the machine, and the host link, on one SDRAM controller."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from ...config import Config
from ...errors import UserError
from ..axi import axi_read, axi_write
from .sdram import BYTES, MOST_WORDS, PINS, WORD_BITS, WORD_BYTES, SdramController, Timing

ADDRESS_BITS = BYTES.bit_length() - 1
SLVERR = 2
# A word of the host: `strobe` of a write's bytes; what is read comes back with `link_valid`.
LINK = data.StructLayout({"write": 1, "addr": WORD_BITS, "data": 32, "strobe": 4})


def check(config: Config) -> None:
    """Raise UserError for a Config whose bursts `BoardMemory` does not serve."""
    if config.axi_bytes != WORD_BYTES:
        raise UserError(f"Config axi_bytes={config.axi_bytes}: a 16-bit SDRAM is served in words of {WORD_BYTES} bytes")
    if config.burst_beats > MOST_WORDS:
        raise UserError(f"Config burst_beats={config.burst_beats}: at most {MOST_WORDS} to a 16-bit SDRAM")


class BoardMemory(Component):
    """Serves data reads, data writes, weight reads and the host's words, in this priority, a burst at a time.

    Bursts are aligned and of at most MOST_WORDS beats, as `rtl.axi` makes them. Addresses beyond the memory answer SLVERR
    and store nothing. A master must take every beat when it comes, as AxiReader does.
    Parameters: config (axi_bytes 4, else UserError), timing.
    Ports: data_read, data_write, weights[weight_ports] (taken as a slave); link (stream of LINK), link_valid and
    link_data (a word read, or, with data that means nothing, a write that is stored); pins; ready; overrun (strobe: a beat
    was not taken).
    """

    def __init__(self, config: Config, timing: Timing):
        if config.axi_bytes != WORD_BYTES:
            raise UserError(
                f"Config axi_bytes={config.axi_bytes}: a 16-bit SDRAM is served in words of {WORD_BYTES} bytes"
            )
        if config.burst_beats > MOST_WORDS:
            raise UserError(f"Config burst_beats={config.burst_beats}: at most {MOST_WORDS} to a 16-bit SDRAM")
        self.config, self.timing = config, timing
        super().__init__(
            {
                "data_read": In(axi_read(config)),
                "data_write": In(axi_write(config)),
                "weights": In(axi_read(config)).array(config.weight_ports),
                "link": In(stream.Signature(LINK)),
                "link_valid": Out(1),
                "link_data": Out(32),
                "pins": Out(PINS),
                "ready": Out(1),
                "overrun": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        readers = [self.data_read, *(self.weights[p] for p in range(self.config.weight_ports))]
        write, link = len(readers), len(readers) + 1  # their tags; a reader's is its place
        m.submodules.controller = controller = SdramController(self.timing, link + 1)
        for name in PINS.members:
            inside, outside = getattr(controller.pins, name), getattr(self.pins, name)
            m.d.comb += inside.eq(outside) if name == "dq_i" else outside.eq(inside)
        m.d.comb += self.ready.eq(controller.ready)

        # --- one request in a register, then the controller ----------------------------------------------------------
        command = Signal.like(controller.command.payload, reset_less=True)
        held, fetch = Signal(), Signal()
        m.d.comb += [
            controller.command.payload.eq(command),
            controller.command.valid.eq(held),
            fetch.eq(~held | controller.command.ready),
        ]
        writing = Signal()  # a write command's words and answer are not all done: the next one waits
        with m.If(fetch):
            m.d.sync += held.eq(0)

        def request(bus, x: str, tag: int, is_write: int) -> None:
            address = getattr(bus, f"{x}addr")
            m.d.sync += [
                held.eq(1),
                command.write.eq(is_write),
                command.bad.eq(address[ADDRESS_BITS:] != 0),
                command.tag.eq(tag),
                command.addr.eq(address[2:]),
                command.words.eq(getattr(bus, f"{x}len") + 1),
            ]

        bus, to_link = self.data_write, Signal()  # to_link: the host's write is the one that wants words
        bad = Signal(reset_less=True)
        with m.If(fetch):
            with m.If(readers[0].arvalid):
                m.d.comb += readers[0].arready.eq(1)
                request(readers[0], "ar", 0, 0)
            with m.Elif(bus.awvalid & ~writing):
                m.d.comb += bus.awready.eq(1)
                request(bus, "aw", write, 1)
                m.d.sync += [writing.eq(1), to_link.eq(0), bad.eq(bus.awaddr[ADDRESS_BITS:] != 0)]
            for p, weights in enumerate(readers[1:], 1):
                with m.Elif(weights.arvalid):
                    m.d.comb += weights.arready.eq(1)
                    request(weights, "ar", p, 0)
            with m.Elif(self.link.valid & ~writing):
                m.d.sync += [
                    held.eq(1),
                    command.write.eq(self.link.payload.write),
                    command.bad.eq(0),
                    command.tag.eq(link),
                    command.addr.eq(self.link.payload.addr),
                    command.words.eq(1),
                ]
                # A write stays in the stream until its word is taken.
                m.d.comb += self.link.ready.eq(~self.link.payload.write)
                with m.If(self.link.payload.write):
                    m.d.sync += [writing.eq(1), to_link.eq(1)]

        # --- words written ------------------------------------------------------------------------------------------
        stored = Signal()
        m.d.comb += [
            controller.wdata.valid.eq(writing & Mux(to_link, self.link.valid, bus.wvalid)),
            controller.wdata.payload.data.eq(Mux(to_link, self.link.payload.data, bus.wdata)),
            controller.wdata.payload.strobe.eq(Mux(to_link, self.link.payload.strobe, bus.wstrb)),
            bus.wready.eq(writing & ~to_link & controller.wdata.ready),
            stored.eq(controller.written),
        ]
        with m.If(writing & to_link & controller.wdata.ready):
            m.d.comb += self.link.ready.eq(1)
        with m.If(stored):
            m.d.sync += [writing.eq(0), bus.bvalid.eq(~to_link), bus.bresp.eq(Mux(bad, SLVERR, 0))]
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)

        # --- words read ---------------------------------------------------------------------------------------------
        read, arrived = controller.read, controller.read_valid
        missed = []
        for tag, reader in enumerate(readers):
            m.d.comb += [
                reader.rvalid.eq(arrived & (read.tag == tag)),
                reader.rdata.eq(read.data),
                reader.rlast.eq(read.last),
                reader.rresp.eq(Mux(read.bad, SLVERR, 0)),
            ]
            missed.append(reader.rvalid & ~reader.rready)
        m.d.sync += self.overrun.eq(Cat(missed).any())
        m.d.comb += [
            self.link_valid.eq((arrived & (read.tag == link)) | (stored & to_link)),
            self.link_data.eq(read.data),
        ]
        return m
