"""The AXI4-Lite register file: start, status, addresses, counters."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, Signature

from .. import isa, latency, registers
from ..config import MAX_WEIGHT_PORTS, Config
from ..registers import State, Status, offset
from .axi import BYTE_ADDRESS_BITS
from .common import register

UNITS = len(isa.Unit)
RESET_SPREAD = 4  # cycles that the reset is on its way to the units at most

# Seen from the slave.
AXI_LITE = Signature(
    {
        "awaddr": In(registers.ADDRESS_BITS),
        "awprot": In(3),
        "awvalid": In(1),
        "awready": Out(1),
        "wdata": In(registers.DATA_BITS),
        "wstrb": In(registers.DATA_BITS // 8),
        "wvalid": In(1),
        "wready": Out(1),
        "bresp": Out(2),
        "bvalid": Out(1),
        "bready": In(1),
        "araddr": In(registers.ADDRESS_BITS),
        "arprot": In(3),
        "arvalid": In(1),
        "arready": Out(1),
        "rdata": Out(registers.DATA_BITS),
        "rresp": Out(2),
        "rvalid": Out(1),
        "rready": In(1),
    }
)

# Strobes and levels that the counters count, one a cycle each.
EVENTS = data.StructLayout(
    {
        "array_active": 1,
        "stall_weights": 1,
        "stall_depend": 1,
        "stall_bank": 1,
        "data_read_beats": 1,
        "data_write_beats": 1,
        "weight_beats": MAX_WEIGHT_PORTS,
        "busy": UNITS,
    }
)

FLYING = data.StructLayout({"data_reads": 1, "data_writes": 1, "weight_reads": 1})


class Control(Component):
    """registers.REGISTERS as an AXI4-Lite slave. Every access is answered OKAY; what no register holds reads as zero.

    A soft reset first lets the bursts in flight finish (`drain` until none is `flying`), then holds `reset`, a register, for
    latency.RESET; RESET_SPREAD cycles later, when it has left every unit, a start is taken again.
    Ports: bus (AXI_LITE, taken as a slave), irq (level); to the sequencer start (strobe), program, length; data_base,
    weight_base[4]; from it running, finished, illegal, instruction, counts[5]; program_crc; read_error, write_error
    (strobes), fault (an error is set); events (EVENTS); flying (FLYING: bursts that are not answered), drain, reset.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "bus": Out(AXI_LITE),
                "irq": Out(1),
                "start": Out(1),
                "program": Out(32),
                "length": Out(32),
                "data_base": Out(BYTE_ADDRESS_BITS),
                "weight_base": Out(data.ArrayLayout(BYTE_ADDRESS_BITS, MAX_WEIGHT_PORTS)),
                "running": In(1),
                "finished": In(1),
                "illegal": In(1),
                "instruction": In(32),
                "counts": In(data.ArrayLayout(unsigned(isa.COUNT_BITS), UNITS)),
                "program_crc": In(32),
                "read_error": In(1),
                "write_error": In(1),
                "fault": Out(1),
                "events": In(EVENTS),
                "flying": In(FLYING),
                "drain": Out(1),
                "reset": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        values = self._counters(m) | {
            "ID": Const(registers.ID, 32),
            "VERSION": Const(registers.VERSION, 32),
            "CONFIG_HASH": Const(registers.config_hash(self.config), 32),
            "ISA": Const(registers.isa_word(), 32),
            "PROGRAM_CRC": self.program_crc,
            "INSTRUCTION": self.instruction,
        }
        values |= {f"FINISHED_{u.name}": self.counts[u] for u in isa.Unit}

        bus = self.bus
        write, at = Signal(), bus.awaddr[2:]
        m.d.comb += [bus.awready.eq(write), bus.wready.eq(write)]
        m.d.sync += write.eq(bus.awvalid & bus.wvalid & ~write & (~bus.bvalid | bus.bready))
        with m.If(write):
            m.d.sync += bus.bvalid.eq(1)
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)

        def written(name: str, byte: int):
            return write & (at == offset(name) >> 2) & bus.wstrb[byte]

        def storage(name: str, clear: int = 0):
            """A plain register; its bits in `clear` are always zero."""
            value = Signal(32, name=name.lower())
            for byte in range(4):
                with m.If(written(name, byte)):
                    part = bus.wdata.word_select(byte, 8) & ~(clear >> (8 * byte)) & 0xFF
                    m.d.sync += value.word_select(byte, 8).eq(part)
            values[name] = value
            return value

        def base(name: str):
            return Cat(storage(f"{name}_LO", clear=registers.BASE_ALIGNMENT - 1), storage(f"{name}_HI"))

        m.d.comb += [
            self.program.eq(storage("PROGRAM")),
            self.length.eq(storage("PROGRAM_LENGTH")),
            self.data_base.eq(base("DATA_BASE")),
            *(self.weight_base[p].eq(base(f"WEIGHT_BASE{p}")) for p in range(MAX_WEIGHT_PORTS)),
        ]
        self._run_state(m, written, values)

        accept, reading, address = Signal(), Signal(), Signal(registers.ADDRESS_BITS - 2)
        m.d.comb += [bus.arready.eq(accept), accept.eq(~reading & ~bus.rvalid)]
        m.d.sync += [reading.eq(accept & bus.arvalid), address.eq(bus.araddr[2:])]
        with m.If(reading):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(0)]
            with m.Switch(address):
                for name, value in values.items():
                    with m.Case(offset(name) >> 2):
                        m.d.sync += bus.rdata.eq(value)
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        return m

    def _counters(self, m: Module) -> dict:
        """Counters of the events by register name; events are counted a cycle late."""
        events = Signal(EVENTS)
        m.d.sync += events.eq(self.events)
        listed = {
            name.upper(): events[name]
            for name in ("array_active", "stall_weights", "stall_depend", "stall_bank")
            + ("data_read_beats", "data_write_beats")
        }
        listed |= {f"WEIGHT_BEATS{p}": events.weight_beats[p] for p in range(self.config.weight_ports)}
        listed |= {f"BUSY_{u.name}": events.busy[u] for u in isa.Unit}
        values = {}
        for name, event in listed.items():
            values[name] = count = Signal(32, name=name.lower())
            m.d.sync += count.eq(Mux(self.start, 0, count + event))
        cycles = Signal(64)
        m.d.sync += cycles.eq(Mux(self.start, 0, cycles + self.running))
        return values | {"CYCLES_LO": cycles[:32], "CYCLES_HI": cycles[32:]}

    def _run_state(self, m: Module, written, values: dict) -> None:
        """CONTROL, STATUS, the interrupt and the soft reset."""
        start, reset, enable = Signal(), Signal(), Signal()
        done, pending, errors = Signal(), Signal(), Signal(3)
        control = self.bus.wdata
        with m.If(written("CONTROL", 0)):
            m.d.sync += enable.eq((control & int(registers.Control.IRQ_ENABLE)) != 0)
            m.d.comb += [
                start.eq((control & int(registers.Control.START)) != 0),
                reset.eq((control & int(registers.Control.RESET)) != 0),
            ]

        resetting = Signal()
        last = Signal(range(latency.RESET + RESET_SPREAD))
        m.d.sync += self.reset.eq(0)
        with m.FSM():
            with m.State("RUN"):
                with m.If(reset):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += [resetting.eq(1), self.drain.eq(1)]
                with m.If(self.flying.as_value() == 0):
                    m.d.sync += last.eq(latency.RESET + RESET_SPREAD - 1)
                    m.next = "RESET"
            with m.State("RESET"):
                m.d.comb += [resetting.eq(1), self.drain.eq(1)]
                m.d.sync += [self.reset.eq(last >= RESET_SPREAD), last.eq(last - 1)]
                with m.If(last == 0):
                    m.next = "RUN"

        m.d.sync += self.start.eq(start & ~reset & ~resetting & ~self.running & ~self.start & (errors == 0))
        m.d.comb += [self.fault.eq(errors[:2] != 0), self.irq.eq(pending & enable)]
        m.d.sync += errors.eq(errors | Cat(self.read_error, self.write_error, self.finished & self.illegal))
        with m.If(self.finished):
            m.d.sync += [done.eq(1), pending.eq(1)]
        with m.If(written("IRQ_CLEAR", 0) & self.bus.wdata[0]):
            m.d.sync += pending.eq(0)
        with m.If(self.start):
            m.d.sync += [done.eq(0), pending.eq(0)]
        with m.If(self.reset):
            m.d.sync += [done.eq(0), pending.eq(0), errors.eq(0)]

        flags = (
            (Status.BUSY, self.running | self.start | resetting),
            (Status.DONE, done),
            (Status.IRQ, pending),
            (Status.READ_ERROR, errors[0]),
            (Status.WRITE_ERROR, errors[1]),
            (Status.ILLEGAL, errors[2]),
        )
        values["CONTROL"] = Mux(enable, int(registers.Control.IRQ_ENABLE), 0)
        values["STATUS"] = _flags(m, "status", flags)
        busy = register(m, Cat(self.events.busy[u] for u in isa.Unit), "busy_late")  # comes from logic all over the design
        values["STATE"] = _flags(
            m,
            "state",
            (
                *((State[u.name], busy[u]) for u in isa.Unit),
                (State.RUNNING, self.running),
                (State.DATA_READS, self.flying.data_reads),
                (State.DATA_WRITES, self.flying.data_writes),
                (State.WEIGHT_READS, self.flying.weight_reads),
                (State.DRAINING, self.drain),
                (State.RESETTING, self.reset),
            ),
        )


def _flags(m: Module, name: str, flags) -> Signal:
    """A register's value from (flag, level) pairs."""
    value = Signal(registers.DATA_BITS, name=name)
    m.d.comb += [value[int(flag).bit_length() - 1].eq(level) for flag, level in flags]
    return value
