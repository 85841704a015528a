"""A controller for 16-bit single-data-rate SDRAM (JEDEC 256 Mbit parts: 4 banks of 8,192 rows of 512 columns)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out, Signature

COLUMN_BITS, BANK_BITS, ROW_BITS = 9, 2, 13
BANKS = 1 << BANK_BITS
WORD_BYTES = 4  # two columns
WORD_BITS = COLUMN_BITS + BANK_BITS + ROW_BITS - 1  # of a word's address
BYTES = WORD_BYTES << WORD_BITS
ROW_WORDS = 1 << (COLUMN_BITS - 1)  # a command stays inside so many words
MOST_WORDS = 16
CAS_LATENCY = 2
PIN_CYCLES = 2  # register behind the command, register before the data: see rtl_templates/board_ecp5.v
ALL_BANKS = 1 << 10  # address bit of PRECHARGE
MODE = CAS_LATENCY << 4  # bursts of one column
INIT_REFRESHES = 8

# (ras_n, cas_n, we_n), cs_n low throughout
NOP, ACTIVATE, READ, WRITE, PRECHARGE, REFRESH, LOAD_MODE = 0b111, 0b011, 0b101, 0b100, 0b010, 0b001, 0b000

PINS = Signature(
    {
        "cke": Out(1),
        "command": Out(3),
        "ba": Out(BANK_BITS),
        "a": Out(ROW_BITS),
        "dqm": Out(2),
        "dq_o": Out(16),
        "dq_oe": Out(1),
        "dq_i": In(16),
    }
)


@dataclass(frozen=True)
class Timing:
    """Nanoseconds of the slowest part that boards of this kind carry (speed grade -7, CAS latency 2 up to 100 MHz)."""

    clock_mhz: float
    power_up: float = 200_000.0
    t_rp: float = 20.0
    t_rcd: float = 20.0
    t_ras: float = 45.0
    t_rc: float = 68.0
    t_rfc: float = 68.0
    t_wr: float = 15.0
    t_mrd: float = 20.0
    refresh: float = 7_812.5  # from one REFRESH to the next, on average

    def cycles(self, ns: float) -> int:
        """Clocks that last at least so long."""
        return math.ceil(ns * self.clock_mhz / 1000 - 1e-9)


def command_layout(tags: int) -> data.StructLayout:
    """A command: `words` (1..MOST_WORDS) from word `addr` on, inside a row; `tag` returns with the words read.

    bad: nothing is written, what is read means nothing.
    """
    return data.StructLayout(
        {"write": 1, "bad": 1, "tag": range(tags), "addr": WORD_BITS, "words": range(MOST_WORDS + 1)}
    )


def read_layout(tags: int) -> data.StructLayout:
    """A word that was read, with its command's tag, and whether it is the last one."""
    return data.StructLayout({"data": 32, "tag": range(tags), "bad": 1, "last": 1})


class SdramController(Component):
    """Executes commands on the SDRAM one by one; rows stay open until another row of their bank or a refresh needs them.

    A word is two columns, low half first. Parameters: timing, tags (number of requesters).
    Ports: command (stream in); wdata (stream in: data, strobe), the words of a write command in order, which wait for
    them; written (strobe: the last word is out); read (`read_layout`) with `read_valid`, which nobody can hold back;
    pins (PINS); ready (the memory is initialised).
    Latency: CAS_LATENCY + PIN_CYCLES from a READ on the pins to its data here, an open row is read 2 cycles after the
    command is taken, one column a cycle.
    """

    def __init__(self, timing: Timing, tags: int):
        if timing.clock_mhz > 100:
            raise ValueError(f"SdramController clock_mhz={timing.clock_mhz}: CAS latency 2 reaches 100")
        self.timing, self.tags = timing, tags
        super().__init__(
            {
                "command": In(stream.Signature(command_layout(tags))),
                "wdata": In(stream.Signature(data.StructLayout({"data": 32, "strobe": 4}))),
                "written": Out(1),
                "read": Out(read_layout(tags)),
                "read_valid": Out(1),
                "pins": Out(PINS),
                "ready": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        t, cycles = self.timing, self.timing.cycles
        outputs = [(name, member.shape) for name, member in PINS.members.items() if member.flow == Out]
        pins = {n: Signal(shape, name=f"pin_{n}", init=NOP if n == "command" else 0) for n, shape in outputs}
        m.d.comb += [getattr(self.pins, name).eq(pin) for name, pin in pins.items()]
        m.d.sync += [pins["cke"].eq(1), pins["command"].eq(NOP), pins["dq_oe"].eq(0)]

        def order(command: int, wait: int, address=None, bank=None) -> None:
            """Put a command on the pins; the next one follows at least `wait` cycles later."""
            m.d.sync += [pins["command"].eq(command), pause.eq(max(wait - 1, 0))]
            if address is not None:
                m.d.sync += pins["a"].eq(address)
            if bank is not None:
                m.d.sync += pins["ba"].eq(bank)

        pause = Signal(range(cycles(t.power_up) + 1), init=cycles(t.power_up))
        idle = Signal()
        m.d.comb += idle.eq(pause == 0)
        with m.If(~idle):
            m.d.sync += pause.eq(pause - 1)

        # A refresh is due a command's longest time before the part wants it.
        period = cycles(t.refresh) - 3 * MOST_WORDS
        due, since = Signal(), Signal(range(period + 1))
        with m.If(since == period - 1):
            m.d.sync += [since.eq(0), due.eq(1)]
        with m.Else():
            m.d.sync += since.eq(since + 1)

        # --- the command at work ----------------------------------------------------------------------------------
        now = Signal(command_layout(self.tags), reset_less=True)
        column = Signal(COLUMN_BITS, reset_less=True)
        left = Signal(range(2 * MOST_WORDS + 1), reset_less=True)  # columns
        bank = now.addr[COLUMN_BITS - 1 :][:BANK_BITS]
        row = now.addr[COLUMN_BITS - 1 + BANK_BITS :]
        opened = Signal(BANKS)
        rows = Array(Signal(ROW_BITS, name=f"row_{b}", reset_less=True) for b in range(BANKS))
        hit = Signal()
        active_for = Signal(range(cycles(t.t_rc) + 1))  # cycles since the last ACTIVATE, saturating
        with m.If(active_for != cycles(t.t_rc)):
            m.d.sync += active_for.eq(active_for + 1)
        m.d.comb += hit.eq(opened.bit_select(bank, 1) & (rows[bank] == row))

        # --- words read: they come CAS_LATENCY + PIN_CYCLES after their READ shows on the pins ----------------------
        delay = CAS_LATENCY + PIN_CYCLES
        coming = [Signal(name=f"coming_{i}") for i in range(delay + 1)]
        labels = [Signal(len(now.tag) + 3, name=f"label_{i}", reset_less=True) for i in range(delay + 1)]
        reading, last = Signal(), Signal()
        m.d.comb += last.eq(left == 1)
        m.d.sync += [coming[0].eq(reading), labels[0].eq(Cat(now.tag, now.bad, last, column[0]))]
        for i in range(delay):
            m.d.sync += [coming[i + 1].eq(coming[i]), labels[i + 1].eq(labels[i])]
        low = Signal(16, reset_less=True)
        tag_bits = len(now.tag)
        label = labels[delay]
        m.d.sync += [
            self.read_valid.eq(coming[delay] & label[-1]),
            self.read.data.eq(Cat(low, self.pins.dq_i)),
            self.read.tag.eq(label[:tag_bits]),
            self.read.bad.eq(label[tag_bits]),
            self.read.last.eq(label[tag_bits + 1]),
        ]
        with m.If(coming[delay] & ~label[-1]):
            m.d.sync += low.eq(self.pins.dq_i)
        quiet = Signal()  # no data of a read on its way
        m.d.comb += quiet.eq(~Cat(coming).any())

        refreshes = Signal(range(INIT_REFRESHES + 1))
        with m.FSM():
            with m.State("POWER_UP"):
                with m.If(idle):
                    order(PRECHARGE, cycles(t.t_rp), ALL_BANKS)
                    m.next = "FIRST_REFRESHES"
            with m.State("FIRST_REFRESHES"):
                with m.If(idle):
                    with m.If(refreshes == INIT_REFRESHES):
                        order(LOAD_MODE, cycles(t.t_mrd), MODE, 0)
                        m.next = "IDLE"
                    with m.Else():
                        order(REFRESH, cycles(t.t_rfc))
                        m.d.sync += refreshes.eq(refreshes + 1)
            with m.State("IDLE"):
                m.d.comb += self.ready.eq(1)
                with m.If(due & idle & (active_for >= cycles(t.t_ras))):
                    order(PRECHARGE, cycles(t.t_rp), ALL_BANKS)
                    m.d.sync += opened.eq(0)
                    m.next = "REFRESH"
                with m.Elif(~due):
                    m.d.comb += self.command.ready.eq(1)
                    m.d.sync += [
                        now.eq(self.command.payload),
                        column.eq(self.command.payload.addr << 1),
                        left.eq(self.command.payload.words << 1),
                    ]
                    with m.If(self.command.valid):
                        m.next = "OPEN"
            with m.State("REFRESH"):
                with m.If(idle):
                    order(REFRESH, cycles(t.t_rfc))
                    m.d.sync += due.eq(0)
                    m.next = "IDLE"
            with m.State("OPEN"):
                with m.If(hit):
                    m.next = "COLUMNS"
                with m.Elif(idle & opened.bit_select(bank, 1) & (active_for >= cycles(t.t_ras))):
                    order(PRECHARGE, cycles(t.t_rp), 0, bank)
                    m.d.sync += opened.bit_select(bank, 1).eq(0)
                with m.Elif(idle & ~opened.bit_select(bank, 1) & (active_for >= cycles(t.t_rc))):
                    order(ACTIVATE, cycles(t.t_rcd), row, bank)
                    m.d.sync += [active_for.eq(0), opened.bit_select(bank, 1).eq(1), rows[bank].eq(row)]
            with m.State("COLUMNS"):
                step = Signal()
                m.d.comb += [
                    reading.eq(idle & ~now.write),
                    step.eq(idle & (~now.write | (self.wdata.valid & quiet))),
                    self.wdata.ready.eq(step & now.write & column[0]),
                    self.written.eq(step & now.write & last),
                ]
                strobe = Mux(column[0], self.wdata.payload.strobe[2:], self.wdata.payload.strobe[:2])
                m.d.sync += [
                    pins["dqm"].eq(Mux(now.write, ~strobe | now.bad.replicate(2), 0)),
                    pins["dq_o"].eq(Mux(column[0], self.wdata.payload.data[16:], self.wdata.payload.data[:16])),
                ]
                with m.If(step):
                    m.d.sync += [
                        pins["command"].eq(Mux(now.write, WRITE, READ)),
                        pins["dq_oe"].eq(now.write),
                        pins["a"].eq(column),
                        pins["ba"].eq(bank),
                        column.eq(column + 1),
                        left.eq(left - 1),
                    ]
                    with m.If(last):
                        # Until a PRECHARGE may follow a WRITE.
                        m.d.sync += pause.eq(Mux(now.write, cycles(t.t_wr), 0))
                        m.next = "IDLE"
        return m
