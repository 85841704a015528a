"""The one kind of RAM: simple dual port with a registered output.

`emit` (hwgen.rtl.top) passes a platform whose `get_memory` is `template_memory`: every memory becomes an instance of
`rtl_templates/ram_sdp.v`, which tools infer as block RAM, UltraRAM or LUT RAM as `style` asks. Without a platform (the
Python simulator) it stays an Amaranth memory; both behave the same as long as no cycle reads the address it writes.
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Instance, Module, Signal, unsigned
from amaranth.lib import memory as amaranth_memory
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..memories import Memory

STYLES = ("block", "ultra", "distributed", "auto")
RAM_LATENCY = latency.RAM


class Ram(Component):
    """read_data = contents[read_addr], RAM_LATENCY (2) cycles later.

    Parameters: depth (power of two or any), width in bits, style.
    Ports: write_addr, write_data, write_enable; read_addr, read_data. Contents start undefined (zero in simulation).
    Cost: depth*width bits of the RAM that `style` names, `width` output registers inside it.
    """

    def __init__(self, depth: int, width: int, style: str = "auto"):
        if depth < 1 or width < 1:
            raise ValueError(f"Ram depth={depth}, width={width}")
        if style not in STYLES:
            raise ValueError(f"Ram style={style!r} is not one of {STYLES}")
        self.depth, self.width, self.style = depth, width, style
        address = range(max(depth, 2))
        super().__init__(
            {
                "write_addr": In(address),
                "write_data": In(width),
                "write_enable": In(1),
                "read_addr": In(address),
                "read_data": Out(width),
            }
        )

    @classmethod
    def of(cls, memory: Memory) -> Ram:
        """One of the design's memories."""
        return cls(memory.depth, memory.width, memory.style)

    def elaborate(self, platform):
        m = Module()
        get_memory = getattr(platform, "get_memory", None)
        if get_memory is not None:
            m.submodules.template = get_memory(self)
            return m
        m.submodules.memory = memory = amaranth_memory.Memory(shape=unsigned(self.width), depth=self.depth, init=[])
        write = memory.write_port()
        read = memory.read_port()
        registered = Signal(self.width, reset_less=True)
        m.d.comb += [
            write.addr.eq(self.write_addr),
            write.data.eq(self.write_data),
            write.en.eq(self.write_enable),
            read.addr.eq(self.read_addr),
            self.read_data.eq(registered),
        ]
        m.d.sync += registered.eq(read.data)
        return m


def template_memory(ram: Ram | amaranth_memory.Memory):
    """The instance of `rtl_templates/ram_sdp.v` that stands for `ram` in Verilog; a ROM (Amaranth memory) as it is."""
    if not isinstance(ram, Ram):
        return ram.elaborate(None)
    return Instance(
        "ram_sdp",
        p_DEPTH=ram.depth,
        p_WIDTH=ram.width,
        p_STYLE=ram.style,
        i_clk=ClockSignal(),
        i_write_addr=ram.write_addr,
        i_write_data=ram.write_data,
        i_write_enable=ram.write_enable,
        i_read_addr=ram.read_addr,
        o_read_data=ram.read_data,
    )
