"""The host's way to registers and memory: frames over a serial line.

A request is SYNC_REQUEST, op, sequence number, words - 1, byte address (4 bytes), the words of a write, CRC; its answer
SYNC_ANSWER, status, sequence number, words - 1 (of what follows: 0 without words), the words of a read, CRC. Numbers have
their low byte first; the CRC is CRC-16/IBM-3740 over everything between the first byte and itself. Addresses are multiples of
4. Nothing of a request is done before its CRC was right. A register write with the sequence number of the request before it is
answered, but not done again: so a host that missed the answer may ask again. After a pause of `timeout` clocks inside a
request the line waits for a new one.
"""

from __future__ import annotations

from enum import IntEnum

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.crc.catalog import CRC16_IBM_3740
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Component, In, Out, Signature

from ...registers import ADDRESS_BITS
from .memory import LINK
from .sdram import BYTES, WORD_BITS
from .uart import UartReceiver, UartTransmitter

SYNC_REQUEST, SYNC_ANSWER = 0x5A, 0xA5
MOST_WORDS = 256  # of a frame
HEADER_BYTES = 8


class Op(IntEnum):
    """What a request asks for."""

    READ_REGISTERS = 1
    WRITE_REGISTERS = 2
    READ_MEMORY = 3
    WRITE_MEMORY = 4


class Result(IntEnum):
    """How a request ended."""

    OK = 0
    BAD_CRC = 1
    BAD_REQUEST = 2  # unknown op, or an address that is not a multiple of 4 or beyond the memory


# A register access: `done` strobes with `value` when it is over.
REGISTERS = Signature(
    {
        "valid": Out(1),
        "write": Out(1),
        "addr": Out(ADDRESS_BITS),
        "data": Out(32),
        "done": In(1),
        "value": In(32),
    }
)


class HostLink(Component):
    """Frames on `rx` and `tx`, registers and memory words on the other side.

    Parameters: bit_cycles (clocks of a bit), timeout (clocks).
    Ports: rx, tx; registers (REGISTERS: `valid` holds until `done`); memory (stream of LINK), memory_valid and memory_data as
    `BoardMemory.link_valid` and `link_data`; answered and refused (strobes).
    """

    def __init__(self, bit_cycles: int, timeout: int):
        self.bit_cycles, self.timeout = bit_cycles, timeout
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "registers": Out(REGISTERS),
                "memory": Out(stream.Signature(LINK)),
                "memory_valid": In(1),
                "memory_data": In(32),
                "answered": Out(1),
                "refused": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self.bit_cycles)
        m.submodules.transmitter = transmitter = UartTransmitter(self.bit_cycles)
        m.submodules.crc = crc = CRC16_IBM_3740(data_width=8).create()
        m.submodules.buffer = buffer = Memory(shape=32, depth=MOST_WORDS, init=[])
        store, fetch = buffer.write_port(), buffer.read_port()
        out = transmitter.bytes
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx)]

        header = Signal(data.StructLayout({"op": 8, "sequence": 8, "most": 8, "addr": 32}), reset_less=True)
        count = Signal(range(HEADER_BYTES))  # bytes of the header, of a word or of the CRC
        at = Signal(range(MOST_WORDS))  # the word
        word, received = Signal(32, reset_less=True), Signal(16, reset_less=True)
        result, repeated = Signal(Result), Signal()
        before = Signal(8, init=0)  # sequence number of the request before, if there was one
        any_before = Signal()
        is_write, is_memory, last = Signal(), Signal(), Signal()
        m.d.comb += [
            is_write.eq((header.op == Op.WRITE_REGISTERS) | (header.op == Op.WRITE_MEMORY)),
            is_memory.eq((header.op == Op.READ_MEMORY) | (header.op == Op.WRITE_MEMORY)),
            last.eq(at == header.most),
            fetch.addr.eq(at),
            store.addr.eq(at),
        ]
        bad = Signal()
        limit = Mux(is_memory, BYTES - 1, (1 << ADDRESS_BITS) - 1)
        end = Signal(34)
        m.d.comb += [
            end.eq(header.addr + (header.most << 2) + 3),
            bad.eq((header.op == 0) | (header.op > Op.WRITE_MEMORY) | header.addr[:2].any() | (end > limit)),
        ]
        pause = Signal(range(self.timeout + 1))
        byte, arrived = receiver.byte, receiver.valid

        def checked(value) -> None:
            """Take a byte into the CRC."""
            m.d.comb += [crc.valid.eq(1), crc.data.eq(value)]

        def send(value) -> None:
            """A byte of the answer."""
            m.d.comb += [out.valid.eq(1), out.payload.eq(value)]
            with m.If(out.ready):
                m.d.sync += count.eq(count + 1)

        def give_up() -> None:
            """A request that stops in its middle is forgotten."""
            with m.If(pause == self.timeout):
                m.next = "SYNC"

        # What a word access has at hand: the address goes up with the word.
        address = Signal(32)
        m.d.comb += [
            address.eq(header.addr + (at << 2)),
            self.registers.write.eq(is_write),
            self.registers.addr.eq(address),
            self.registers.data.eq(fetch.data),
            self.memory.payload.write.eq(is_write),
            self.memory.payload.addr.eq(address[2 : 2 + WORD_BITS]),
            self.memory.payload.data.eq(fetch.data),
            self.memory.payload.strobe.eq(0b1111),
        ]

        with m.FSM():
            with m.State("SYNC"):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [count.eq(0), at.eq(0), result.eq(Result.OK)]
                with m.If(arrived & (byte == SYNC_REQUEST)):
                    m.next = "HEADER"
            with m.State("HEADER"):
                give_up()
                with m.If(arrived):
                    checked(byte)
                    m.d.sync += [header.as_value().eq(Cat(header.as_value()[8:], byte)), count.eq(count + 1)]
                    with m.If(count == HEADER_BYTES - 2):
                        m.d.sync += count.eq(0)
                        m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                give_up()
                with m.If(~is_write):
                    m.next = "CRC"
                with m.Elif(arrived):
                    checked(byte)
                    m.d.sync += [word.eq(Cat(word[8:], byte)), count.eq(count + 1)]
                    with m.If(count == 3):
                        m.d.comb += [store.en.eq(1), store.data.eq(Cat(word[8:], byte))]
                        m.d.sync += [count.eq(0), at.eq(at + 1)]
                        with m.If(last):
                            m.d.sync += at.eq(0)
                            m.next = "CRC"
            with m.State("CRC"):
                give_up()
                with m.If(arrived):
                    m.d.sync += [received.eq(Cat(received[8:], byte)), count.eq(count + 1)]
                    with m.If(count == 1):
                        m.d.sync += count.eq(0)
                        m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += repeated.eq((header.op == Op.WRITE_REGISTERS) & any_before & (before == header.sequence))
                m.next = "ANSWER"
                with m.If(received != crc.crc):
                    m.d.sync += result.eq(Result.BAD_CRC)
                with m.Else():
                    m.d.sync += [before.eq(header.sequence), any_before.eq(1)]
                    with m.If(bad):
                        m.d.sync += result.eq(Result.BAD_REQUEST)
                    with m.Elif(~repeated):
                        m.next = "FETCH"
            with m.State("FETCH"):
                with m.If(is_memory):
                    m.next = "MEMORY"
                with m.Else():
                    m.next = "REGISTER"
            with m.State("REGISTER"):
                m.d.comb += self.registers.valid.eq(1)
                m.d.sync += word.eq(self.registers.value)
                with m.If(self.registers.done):
                    m.next = "KEEP"
            with m.State("MEMORY"):
                m.d.comb += self.memory.valid.eq(1)
                with m.If(self.memory.ready):
                    m.next = "WAIT"
                with m.If(self.memory_valid):  # a write is stored as its word is taken
                    m.next = "KEEP"
            with m.State("WAIT"):
                m.d.sync += word.eq(self.memory_data)
                with m.If(self.memory_valid):
                    m.next = "KEEP"
            with m.State("KEEP"):
                m.d.comb += [store.en.eq(~is_write), store.data.eq(word)]
                m.d.sync += at.eq(at + 1)
                m.next = "FETCH_NEXT"
                with m.If(last):
                    m.d.sync += at.eq(0)
                    m.next = "ANSWER"
            with m.State("FETCH_NEXT"):
                m.next = "FETCH"
            with m.State("ANSWER"):
                words = ~is_write & (result == Result.OK)
                m.d.comb += [
                    crc.start.eq(1),
                    self.answered.eq(out.ready),
                    self.refused.eq(out.ready & (result != Result.OK)),
                ]
                m.d.sync += count.eq(0)
                with m.If(~words):
                    m.d.sync += header.most.eq(0)
                m.d.comb += [out.valid.eq(1), out.payload.eq(SYNC_ANSWER)]
                with m.If(out.ready):
                    m.next = "ANSWER_HEADER"
            with m.State("ANSWER_HEADER"):
                value = Mux(count == 0, result, Mux(count == 1, header.sequence, header.most))
                send(value)
                with m.If(out.ready):
                    checked(value)
                    with m.If(count == 2):
                        m.d.sync += count.eq(0)
                        m.next = "WORDS"
            with m.State("WORDS"):
                with m.If(is_write | (result != Result.OK)):
                    m.next = "ANSWER_CRC"
                with m.Else():
                    value = fetch.data.word_select(count[:2], 8)
                    send(value)
                    with m.If(out.ready):
                        checked(value)
                        with m.If(count == 3):
                            m.d.sync += [count.eq(0), at.eq(at + 1)]
                            m.next = "WORD"
                            with m.If(last):
                                m.next = "ANSWER_CRC"
            with m.State("WORD"):  # the buffer's next word
                m.next = "WORDS"
            with m.State("ANSWER_CRC"):
                send(crc.crc.word_select(count[0], 8))
                with m.If(out.ready & (count == 1)):
                    m.next = "SYNC"

        with m.If(arrived):
            m.d.sync += pause.eq(0)
        with m.Elif(pause != self.timeout):
            m.d.sync += pause.eq(pause + 1)
        return m
