"""Components that stand many times in the design but once in the Verilog.

Amaranth writes a submodule's Verilog again for every place it stands in, which for the rows of the array takes longer
than everything else. With a platform that has `shared` (`hwgen.rtl.top.VerilogPlatform`) such a component becomes an
instance of a module that is emitted once; without one (the Python simulator) it is an ordinary submodule.
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal
from amaranth.lib.wiring import Component, Flow, Signature

from ..config import Config


class Shared(Component):
    """A component that depends on nothing but the Config, and has flat ports."""

    MODULE: str  # name of the Verilog module
    PRIMITIVES: str | None = None  # Verilog define under which the module is made of a family's primitives

    @staticmethod
    def ports(config: Config) -> Signature:
        """The component's signature."""
        raise NotImplementedError


def place(m: Module, name: str, kind: type[Shared], config: Config, platform):
    """A `kind` in module `m`, as submodule or as instance; returns the object that has its ports."""
    shared = getattr(platform, "shared", None)
    if shared is None:
        m.submodules[name] = component = kind(config)
        return component
    shared[kind.MODULE] = (kind, config)
    signature = kind.ports(config)
    interface = signature.create()
    wires = {
        f"{'i' if member.flow == Flow.In else 'o'}_{port}": getattr(interface, port)
        for port, member in signature.members.items()
    }
    m.submodules[name] = Instance(kind.MODULE, i_clk=ClockSignal(), i_rst=ResetSignal(allow_reset_less=True), **wires)
    return interface
