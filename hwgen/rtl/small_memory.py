"""Memories too small for block RAM: tables, LUT RAM with an asynchronous read, and a FIFO made of it.

They are plain Amaranth memory instances, so they are not replaced by `rtl_templates/ram_sdp.v` as `memory.Ram` is.
"""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Const, MemoryData, MemoryInstance, Module, Signal, Value, unsigned
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out


def rom(m: Module, values: Sequence[int], width: int, addr: Value, name: str) -> Signal:
    """values[addr], two cycles later: a block RAM with its output register."""
    contents = MemoryData(shape=unsigned(width), depth=len(values), init=[int(v) for v in values])
    m.submodules[name] = memory = MemoryInstance(data=contents, attrs={"rom_style": "block"})
    read, out = Signal(width, name=f"{name}_read"), Signal(width, name=f"{name}_data", reset_less=True)
    memory.read_port(domain="sync", addr=addr, data=read, en=Const(1), transparent_for=())
    m.d.sync += out.eq(read)
    return out


def lut_rom(m: Module, values: Sequence[int], width: int, addr: Value, name: str) -> Signal:
    """values[addr], combinational: a table in LUTs."""
    contents = MemoryData(shape=unsigned(width), depth=len(values), init=[int(v) for v in values])
    m.submodules[name] = memory = MemoryInstance(data=contents)
    read = Signal(width, name=f"{name}_read")
    memory.read_port(domain="comb", addr=addr, data=read, en=Const(1), transparent_for=())
    return read


class LutRam:
    """One write port (`write_addr`, `write_data`, `write_enable`), any number of asynchronous read ports."""

    def __init__(self, m: Module, depth: int, width: int, name: str):
        self.memory = MemoryInstance(data=MemoryData(shape=unsigned(width), depth=depth, init=[]))
        m.submodules[name] = self.memory
        self.width, self.name, self.reads = width, name, 0
        self.write_addr = Signal(range(max(depth, 2)), name=f"{name}_write_addr")
        self.write_data = Signal(width, name=f"{name}_write_data")
        self.write_enable = Signal(name=f"{name}_write_enable")
        self.memory.write_port(
            domain="sync", addr=self.write_addr[: (depth - 1).bit_length()], data=self.write_data, en=self.write_enable
        )
        self.address_bits = (depth - 1).bit_length()

    def read(self, addr: Value) -> Signal:
        """contents[addr], combinational; a write shows in the next cycle."""
        data = Signal(self.width, name=f"{self.name}_read_{self.reads}")
        self.reads += 1
        self.memory.read_port(
            domain="comb", addr=addr[: self.address_bits], data=data, en=Const(1), transparent_for=()
        )
        return data


class SmallFifo(Component):
    """A FIFO in LUT RAM with a registered output. It has no `full`: whoever pushes counts what is in it.

    Parameters: depth, a power of two; width in bits.
    Ports: push, push_data; o (stream). A word pushed in cycle t is at the output in cycle t + 2 at the earliest.
    Cost: depth * width bits of LUT RAM, width registers.
    """

    def __init__(self, depth: int, width: int):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"SmallFifo depth={depth} is not a power of two of at least 2")
        if width < 1:
            raise ValueError(f"SmallFifo width={width} must be positive")
        self.depth, self.width = depth, width
        super().__init__({"push": In(1), "push_data": In(width), "o": Out(stream.Signature(unsigned(width)))})

    def elaborate(self, platform):
        m = Module()
        ram = LutRam(m, self.depth, self.width, "ram")
        bits = (self.depth - 1).bit_length()
        # One bit more than the address tells full from empty.
        write, read = Signal(bits + 1), Signal(bits + 1)
        payload = Signal(self.width, reset_less=True)
        m.d.comb += [
            ram.write_addr.eq(write[:bits]),
            ram.write_data.eq(self.push_data),
            ram.write_enable.eq(self.push),
            self.o.payload.eq(payload),
        ]
        with m.If(self.push):
            m.d.sync += write.eq(write + 1)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [
                self.o.valid.eq(write != read),
                read.eq(read + (write != read)),
                payload.eq(ram.read(read[:bits])),
            ]
        return m
