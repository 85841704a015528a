"""Two clients share one AxiReader."""

from __future__ import annotations

from types import SimpleNamespace

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out

from ..config import Config
from ..latency import COMMANDS, MOST_BEATS
from .axi import COMMAND, beat_stream
from .claims import assume, claim, claim_order, claim_stable


class ReadArbiter(Component):
    """Passes on commands, client 0 first, and hands the beats to the client that asked for them, in order.

    A client must take its beats without waiting for the other one. Commands are 1..MOST_BEATS beats.
    Ports: commands[2] (streams in), beats[2] (streams out), command (to the reader), read (beats from the reader).
    """

    def __init__(self, config: Config):
        super().__init__(
            {
                "commands": In(stream.Signature(COMMAND)).array(2),
                "beats": Out(beat_stream(config)).array(2),
                "command": Out(stream.Signature(COMMAND)),
                "read": In(beat_stream(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        owners = [Signal(name=f"owner_{i}", reset_less=True) for i in range(COMMANDS)]
        counts = [Signal(range(MOST_BEATS + 1), name=f"beats_{i}", reset_less=True) for i in range(COMMANDS)]
        write_at, read_at, held = Signal(range(COMMANDS)), Signal(range(COMMANDS)), Signal(range(COMMANDS + 1))
        served = Signal(range(MOST_BEATS + 1))  # beats of the oldest command
        first, second = self.commands
        chosen, free, push, pop, passed = Signal(), Signal(), Signal(), Signal(), Signal()
        # A command, once offered to the reader, stays: client 1 keeps its turn until it is taken.
        keep = Signal()
        m.d.comb += [
            chosen.eq(keep | ~first.valid),
            free.eq(held != COMMANDS),
            self.command.valid.eq(Mux(chosen, second.valid, first.valid) & free),
            self.command.payload.eq(Mux(chosen, second.payload, first.payload)),
            first.ready.eq(self.command.ready & free & ~chosen),
            second.ready.eq(self.command.ready & free & chosen),
            push.eq(self.command.valid & self.command.ready),
        ]
        m.d.sync += keep.eq(self.command.valid & ~self.command.ready & chosen)
        with m.If(push):
            for i in range(COMMANDS):
                with m.If(write_at == i):
                    m.d.sync += [owners[i].eq(chosen), counts[i].eq(self.command.payload.beats)]

        owner = Array(owners)[read_at]  # a beat that comes answers a command: `held` is not zero
        for i, client in enumerate(self.beats):
            m.d.comb += [
                client.payload.eq(self.read.payload),
                client.valid.eq(self.read.valid & (owner == i)),
            ]
        m.d.comb += [
            self.read.ready.eq(Mux(owner, self.beats[1].ready, self.beats[0].ready)),
            passed.eq(self.read.valid & self.read.ready),
            pop.eq(passed & (served + 1 == Array(counts)[read_at])),
        ]
        with m.If(passed):
            m.d.sync += served.eq(Mux(pop, 0, served + 1))
        m.d.sync += [write_at.eq(write_at + push), read_at.eq(read_at + pop), held.eq(held + push - pop)]

        beats, count = self.command.payload.beats, Array(counts)[read_at]
        assume(m, platform, ~self.read.valid | (held != 0))  # answers to commands
        for command in self.commands:
            assume(m, platform, ~command.valid | ((command.payload.beats >= 1) & (command.payload.beats <= MOST_BEATS)))
        claim_stable(m, platform, self.command)
        claim(
            m, platform, held <= COMMANDS, (write_at - read_at - held)[: len(write_at)] == 0, (held == 0) | (served < count),
            (held != 0) | (served == 0), ~keep | (second.valid & free), ~(first.ready & second.ready),
        )  # fmt: skip
        for i in range(COMMANDS):
            claim(m, platform, ((i - read_at)[: len(read_at)] >= held) | (counts[i] != 0))
        asked = SimpleNamespace(valid=self.command.valid, ready=self.command.ready, payload=Cat(chosen, beats[: len(served)]))
        answered = SimpleNamespace(valid=held != 0, ready=pop, payload=Cat(owner, count))
        if inside := claim_order(m, platform, asked, answered, COMMANDS):
            at = (read_at + inside.ahead)[: len(read_at)]
            known = Cat(Array(owners)[at], Array(counts)[at])
            claim(m, platform, inside.held == held, ~inside.there | (known == inside.word))
        return m
