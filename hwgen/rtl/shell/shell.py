"""The machine with its memory controller and host link: what a board without a processor holds, less its pins."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.back import verilog
from amaranth.hdl import Cat, ClockSignal, Instance, Module, ResetSignal, Signal
from amaranth.lib.wiring import Component, Flow, In, Out, Signature, connect

from ...config import Config
from ..axi import axi_read, axi_write
from ..control import AXI_LITE
from ..top import TOP_MODULE
from .link import REGISTERS, HostLink
from .memory import BoardMemory, check
from .sdram import PINS, Timing

SHELL_MODULE = "hwgen_shell"
LEDS = 8


class RegisterMaster(Component):
    """One AXI4-Lite access after another. Ports: access (REGISTERS, taken as a slave), bus (AXI_LITE, as its master)."""

    def __init__(self):
        super().__init__({"access": Out(REGISTERS.flip()), "bus": Out(AXI_LITE.flip())})

    def elaborate(self, platform):
        m = Module()
        access, bus = self.access, self.bus
        asked, data_asked = Signal(), Signal()  # address and data are handed over
        m.d.comb += [
            bus.awaddr.eq(access.addr),
            bus.araddr.eq(access.addr),
            bus.wdata.eq(access.data),
            bus.wstrb.eq(0b1111),
            bus.awvalid.eq(access.valid & access.write & ~asked),
            bus.wvalid.eq(access.valid & access.write & ~data_asked),
            bus.arvalid.eq(access.valid & ~access.write & ~asked),
            bus.bready.eq(1),
            bus.rready.eq(1),
            access.done.eq(bus.bvalid | bus.rvalid),
            access.value.eq(bus.rdata),
        ]
        with m.If(access.done):
            m.d.sync += [asked.eq(0), data_asked.eq(0)]
        with m.Else():
            with m.If((bus.awvalid & bus.awready) | (bus.arvalid & bus.arready)):
                m.d.sync += asked.eq(1)
            with m.If(bus.wvalid & bus.wready):
                m.d.sync += data_asked.eq(1)
        return m


@dataclass(frozen=True)
class ShellTiming:
    """Clock and serial line of a shell."""

    clock_mhz: float
    baud: int
    timeout_ms: float = 50.0  # pause in a request after which it is forgotten

    @property
    def bit_cycles(self) -> int:
        """Clocks of a bit on the serial line."""
        return round(self.clock_mhz * 1e6 / self.baud)

    @property
    def timeout(self) -> int:
        """Clocks of `timeout_ms`."""
        return round(self.clock_mhz * 1e3 * self.timeout_ms)


class Shell(Component):
    """hwgen_top, an instance of the bundle's Verilog, between `BoardMemory` and `HostLink`.

    Ports: rx, tx; sdram_* (PINS); led (from bit 0: memory ready, interrupt, last request answered, request refused,
    beat lost); clk and rst come with the domain.
    """

    def __init__(self, config: Config, timing: ShellTiming):
        self.config, self.timing = config, timing
        members = {f"sdram_{name}": member for name, member in PINS.members.items()}
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "led": Out(LEDS), **members})

    def elaborate(self, platform):
        m = Module()
        config, timing = self.config, self.timing
        m.submodules.memory = memory = BoardMemory(config, Timing(timing.clock_mhz))
        m.submodules.link = link = HostLink(timing.bit_cycles, timing.timeout)
        m.submodules.registers = registers = RegisterMaster()
        for name, member in PINS.members.items():
            outside, inside = getattr(self, f"sdram_{name}"), getattr(memory.pins, name)
            m.d.comb += outside.eq(inside) if member.flow == Flow.Out else inside.eq(outside)
        m.d.comb += [link.rx.eq(self.rx), self.tx.eq(link.tx)]

        for name, member in REGISTERS.members.items():
            master, slave = getattr(link.registers, name), getattr(registers.access, name)
            m.d.comb += slave.eq(master) if member.flow == Flow.Out else master.eq(slave)
        connect(m, link.memory, memory.link)
        m.d.comb += [
            link.memory_valid.eq(memory.link_valid),
            link.memory_data.eq(memory.link_data),
        ]

        irq = Signal()
        ports = {"i_clk": ClockSignal(), "i_rst": ResetSignal(), "o_irq": irq}

        def join(prefix: str, bus, signature: Signature) -> None:
            """Ports of hwgen_top for `bus`."""
            for name, member in signature.members.items():
                ports[f"{'o' if member.flow == Flow.Out else 'i'}_{prefix}_{name}"] = getattr(bus, name)

        join("s_axi", registers.bus, AXI_LITE)
        join("m_axi_data", memory.data_read, axi_read(config))
        join("m_axi_data", memory.data_write, axi_write(config))
        for port in range(config.weight_ports):
            join(f"m_axi_w{port}", memory.weights[port], axi_read(config))
        m.submodules.top = Instance(TOP_MODULE, **ports)

        answered, refused, lost = Signal(), Signal(), Signal()
        with m.If(link.answered):
            m.d.sync += [answered.eq(~answered), refused.eq(link.refused)]
        with m.If(memory.overrun):
            m.d.sync += lost.eq(1)
        m.d.comb += self.led.eq(Cat(memory.ready, irq, answered, refused, lost))
        return m


def emit_shell(config: Config, timing: ShellTiming) -> str:
    """Verilog of the shell around the module hwgen_top. Raises UserError for a Config that it cannot serve."""
    check(config)
    return verilog.convert(Shell(config, timing), name=SHELL_MODULE, strip_internal_attrs=True)
