"""Scale memory: the row maxima and row multipliers beside the scratchpad."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import Component, In

from ..config import Config
from ..memories import memories
from .common import register
from .memory import RAM_LATENCY, Ram
from .ports import READ_LATENCY, SCALE_READ, SCALE_WRITE

REGISTERS_BEFORE = 1  # of the read address, ahead of the RAM


class ScaleMemory(Component):
    """rd.data = contents[rd.addr], READ_LATENCY cycles later, on two independent read ports; one write a cycle.

    Parameters: config (scale_entries values of 16 bits).
    Ports: rd_x (row reader), rd_w (tile loader): SCALE_READ, an address every cycle; wr_y (post-processor), wr_vector,
    wr_load: SCALE_WRITE, in falling priority: `ready` while no port of higher priority is valid.
    A write accepted in cycle t is seen by addresses presented in cycle t + WRITE_LATENCY (2) or later.
    Cost: two RAMs of scale_entries x 16 bits (a copy for each read port), about 100 registers.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "rd_x": In(SCALE_READ),
                "rd_w": In(SCALE_READ),
                "wr_y": In(SCALE_WRITE),
                "wr_vector": In(SCALE_WRITE),
                "wr_load": In(SCALE_WRITE),
            }
        )

    def elaborate(self, platform):
        m = Module()
        entries = self.config.scale_entries
        bits = (entries - 1).bit_length()

        # The winner of a write goes through one register; the address bits beyond the memory are not used.
        enable = Signal()
        address, value = Signal(bits, reset_less=True), Signal(16, reset_less=True)
        m.d.sync += enable.eq(self.wr_y.valid | self.wr_vector.valid | self.wr_load.valid)
        m.d.comb += [
            self.wr_y.ready.eq(1),
            self.wr_vector.ready.eq(~self.wr_y.valid),
            self.wr_load.ready.eq(~self.wr_y.valid & ~self.wr_vector.valid),
        ]
        with m.If(self.wr_y.valid):
            m.d.sync += [address.eq(self.wr_y.addr), value.eq(self.wr_y.data)]
        with m.Elif(self.wr_vector.valid):
            m.d.sync += [address.eq(self.wr_vector.addr), value.eq(self.wr_vector.data)]
        with m.Else():
            m.d.sync += [address.eq(self.wr_load.addr), value.eq(self.wr_load.data)]

        for name, rd in (("x", self.rd_x), ("w", self.rd_w)):
            m.submodules[f"ram_{name}"] = ram = Ram.of(memories(self.config)["row scales"])
            m.d.comb += [
                ram.write_addr.eq(address),
                ram.write_data.eq(value),
                ram.write_enable.eq(enable),
                ram.read_addr.eq(register(m, rd.addr[:bits], f"{name}_addr")),
            ]
            result = ram.read_data
            for i in range(READ_LATENCY - REGISTERS_BEFORE - RAM_LATENCY):
                result = register(m, result, f"{name}_data_{i}")
            m.d.comb += rd.data.eq(result)
        return m
