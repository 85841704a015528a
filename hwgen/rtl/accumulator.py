"""Accumulators: partial sums of an output tile, one row per token, kept in RAM between its input tiles."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..config import Config
from ..memories import memories
from ..numerics import ACC_BITS
from . import ports
from .common import WIDE, delay, delay_valid, register
from .memory import RAM_LATENCY, Ram

NEAR_RAM = {**WIDE, "max_fanout": 8}  # of what goes to every block RAM of a row of sums


class Accumulator(Component):
    """acc[row] = (0 if first else acc[row]) + data; of the last input tile the sum goes out instead.

    Parameters: config (O = array_outputs, acc_rows).
    Ports: i_valid, i_first, i_last, i_row, i_data (O x signed(27)); o_valid (rows with i_last only), o_data
    (O x signed(27)).
    Latency: LATENCY cycles. The same row may enter again ACC_GAP cycles later or later.
    Cost: a RAM of acc_rows x 27*O bits, O 27-bit adders.
    """

    LATENCY, ACC_GAP = latency.ACCUMULATOR, latency.ACCUMULATOR_GAP  # a read sees what was written in an earlier cycle

    def __init__(self, config: Config):
        self.config = config
        sums = data.ArrayLayout(signed(ACC_BITS), config.array_outputs)
        super().__init__(
            {
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_row": In(ports.ROW_BITS),
                "i_data": In(sums),
                "o_valid": Out(1),
                "o_data": Out(sums),
            }
        )

    def elaborate(self, platform):
        m = Module()
        outputs = self.config.array_outputs
        m.submodules.ram = ram = Ram.of(memories(self.config)["accumulators"])
        row_bits = len(ram.read_addr)
        m.d.comb += ram.read_addr.eq(self.i_row[:row_bits])

        first = register(m, delay(m, self.i_first, RAM_LATENCY - 1, "first"), "first_near", WIDE)
        sums = []
        for o in range(outputs):
            before = ram.read_data.word_select(o, ACC_BITS).as_signed()
            after = Signal(signed(ACC_BITS), name=f"sum_{o}", reset_less=True)
            m.d.sync += after.eq(Mux(first, 0, before) + delay(m, self.i_data[o], RAM_LATENCY, f"data{o}"))
            sums.append(after)

        valid = delay_valid(m, self.i_valid, RAM_LATENCY, "valid")
        last = delay(m, self.i_last, RAM_LATENCY, "last")
        store = register(m, valid & ~last, "store", NEAR_RAM)
        m.d.comb += [
            self.o_valid.eq(delay_valid(m, valid & last, 1, "finish")),
            self.o_data.eq(Cat(sums)),
            ram.write_enable.eq(store),
            ram.write_addr.eq(register(m, delay(m, self.i_row[:row_bits], RAM_LATENCY, "row"), "write_row", NEAR_RAM)),
            ram.write_data.eq(Cat(sums)),
        ]
        return m
