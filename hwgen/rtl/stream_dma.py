"""DRAM -> weight buffer, as far ahead as it has room."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from .. import isa
from ..config import Config
from ..memories import memories
from .axi import BYTE_ADDRESS_BITS, AxiReader, axi_read
from .common import counter, delay_valid
from .expander import SEGMENT, Expander
from .fifo import RamFifo
from .insn import insn_view
from .ports import insn_stream
from .register_slice import RegisterSlice
from .small_memory import SmallFifo

SEGMENTS = 8  # Streams that a port may be ahead of what is expanded


class WeightStream(Component):
    """isa.Stream: every port reads its slice of each word, expanded where weights are narrow; slices are joined into words in a
    deep buffer. The tile loader has a register behind it.

    Ports: insn (stream in), base[weight_ports] (byte addresses, stable), bus[weight_ports] (axi_read), nonempty
    (experts with a token, looked at once an instruction is accepted), words[2] (streams of array_inputs int8, a word a cycle
    each: word k of all comes on words[k % 2]),
    done (strobe: the readers have taken the request; words come in order), busy (an instruction held or a burst in
    flight), drain, idle, error, beat[weight_ports] as AxiReader.
    Cost: weight_words * array_inputs bytes of RAM, the readers' queues, two words of registers, and with narrow_weights an
    Expander for each port.
    """

    def __init__(self, config: Config):
        self.config = config
        ports = config.weight_ports
        super().__init__(
            {
                "insn": In(insn_stream()),
                "base": In(BYTE_ADDRESS_BITS).array(ports),
                "bus": Out(axi_read(config)).array(ports),
                "nonempty": In(config.max_experts),
                "words": Out(stream.Signature(data.ArrayLayout(signed(8), config.array_inputs))).array(2),
                "done": Out(1),
                "busy": Out(1),
                "drain": In(1),
                "idle": Out(1),
                "error": Out(1),
                "beat": Out(ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        ports = range(config.weight_ports)
        readers = [AxiReader(config) for _ in ports]
        for p, reader in enumerate(readers):
            m.submodules[f"reader_{p}"] = reader
            m.d.comb += [reader.base.eq(self.base[p]), reader.drain.eq(self.drain)]
            connect(m, reader.bus, flipped(self.bus[p]))
        m.d.comb += [
            self.idle.eq(Cat(r.idle for r in readers).all()),
            self.error.eq(Cat(r.error for r in readers).any()),
            self.beat.eq(Cat(r.beat for r in readers)),
        ]

        insn = insn_view(isa.Stream, self.insn.payload)
        dram, words = Signal(32, reset_less=True), Signal(32, reset_less=True)
        expert = Signal(8, reset_less=True)
        narrow, beats = Signal(3, reset_less=True), Signal(32, reset_less=True)
        wanted = Signal(reset_less=True)
        waiting = Signal(config.weight_ports)  # ports whose reader has not taken the command
        m.d.sync += self.done.eq(0)
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += self.insn.ready.eq(1)
                m.d.sync += [dram.eq(insn.dram), words.eq(insn.words), expert.eq(insn.expert)]
                m.d.sync += [narrow.eq(insn.narrow), beats.eq(insn.beats)]
                with m.If(self.insn.valid):
                    m.next = "LOOKUP"
            with m.State("LOOKUP"):
                m.d.sync += wanted.eq((expert == isa.NO_EXPERT) | self.nonempty.bit_select(expert, 1))
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.d.sync += waiting.eq(wanted.replicate(config.weight_ports))
                m.next = "ISSUE"
            with m.State("ISSUE"):
                with m.If(waiting == 0):
                    m.d.sync += self.done.eq(1)
                    m.next = "IDLE"
        m.d.comb += self.busy.eq(~fsm.ongoing("IDLE") | Cat(r.busy for r in readers).any())
        arriving = []  # bytes of each port
        for p, reader in enumerate(readers):
            asked, room, arrived = Signal(name=f"asked_{p}"), 1, reader.beats
            length = units = words * config.slice_beats  # beats that are read, and what they become
            if config.narrow_weights:
                arrived, room = _expanded(m, reader.beats, asked, Cat(units[:32], narrow), config, p)
                length = Mux(narrow != 0, beats, units)
            # A word takes a slice of every port at once: no port's reader hangs on the others.
            m.submodules[f"arrived_{p}"] = waits = RegisterSlice(8 * config.axi_bytes)
            connect(m, arrived, waits.i)
            arriving.append(waits.o)
            m.d.comb += [
                reader.command.valid.eq(waiting[p] & room),
                reader.command.payload.offset.eq(dram),
                reader.command.payload.beats.eq(length),
                asked.eq(reader.command.valid & reader.command.ready),
            ]
            with m.If(asked):
                m.d.sync += waiting[p].eq(0)

        halves = [RamFifo.of(memories(config)[f"weight buffer, {name} words"]) for name in ("even", "odd")]
        m.submodules.even, m.submodules.odd = even, odd = halves
        joined, stored, odd_next = Signal(), Signal(), Signal()
        slices = [_slice(m, beats, config, p) for p, beats in enumerate(arriving)]
        # A word waits in a register, so that what the buffer's many memories are written by begins there.
        free = [~buffer.i.valid | buffer.i.ready for buffer in halves]
        m.d.comb += [
            joined.eq(Cat(whole for whole, _, _ in slices).all()),
            stored.eq(joined & Mux(odd_next, free[1], free[0])),
        ]
        m.d.sync += odd_next.eq(odd_next ^ stored)
        for k, buffer in enumerate(halves):
            filled = Signal(name=f"filled_{k}")
            word = Signal(buffer.width, name=f"word_{k}", reset_less=True)
            m.d.comb += [buffer.i.valid.eq(filled), buffer.i.payload.eq(word)]
            with m.If(free[k]):
                m.d.sync += filled.eq(joined & (odd_next == k))
                m.d.sync += word.eq(Cat(value for _, value, _ in slices)[: 8 * config.array_inputs])
            m.d.comb += [
                self.words[k].valid.eq(buffer.o.valid),
                self.words[k].payload.as_value().eq(buffer.o.payload),
                buffer.o.ready.eq(self.words[k].ready),
            ]
        for _, _, take in slices:
            m.d.comb += take.eq(stored)
        return m


def _expanded(m: Module, beats, asked: Value, segment: Value, config: Config, port: int):
    """Beats through an Expander, a segment for each command that is `asked` for: (units, whether there is room for a segment)."""
    m.submodules[f"expander_{port}"] = expander = Expander(config)
    m.submodules[f"segments_{port}"] = segments = SmallFifo(SEGMENTS, SEGMENT.size)
    begun = delay_valid(m, expander.segment.valid & expander.segment.ready, 1, f"begun_{port}")
    _, _, full = counter(m, asked, begun, SEGMENTS, f"segments_held_{port}")
    connect(m, beats, expander.i)
    m.d.comb += [
        segments.push.eq(asked),
        segments.push_data.eq(segment),
        expander.segment.valid.eq(segments.o.valid),
        expander.segment.payload.eq(segments.o.payload),
        segments.o.ready.eq(expander.segment.ready),
    ]
    return expander.o, ~full


def _slice(m: Module, beats, config: Config, port: int):
    """Collect the slice_beats beats of a slice: (whole, its value, take)."""
    count = config.slice_beats
    whole, take = Signal(name=f"whole_{port}"), Signal(name=f"take_{port}")
    at = Signal(range(max(count, 2)), name=f"beat_at_{port}")
    behind = [Signal(8 * config.axi_bytes, name=f"behind_{port}_{i}", reset_less=True) for i in range(count - 1)]
    last = at == count - 1
    m.d.comb += [whole.eq(beats.valid & last), beats.ready.eq(Mux(last, take, 1))]
    with m.If(beats.valid & beats.ready):
        m.d.sync += at.eq(Mux(last, 0, at + 1))
        for i, register in enumerate(behind):
            with m.If(at == i):
                m.d.sync += register.eq(beats.payload)
    return whole, Cat(*behind, beats.payload), take
