"""AXI4: the signals of a master, and the engines that turn commands into bursts.

A command is a run of beats at a beat offset from a base address. The base is aligned to 4 KiB
(registers.BASE_ALIGNMENT) and bursts end at multiples of their greatest length, which divides 4 KiB: so no burst
crosses a 4 KiB boundary. All bursts carry ID 0, hence answers come in order.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Member, Out, Signature, connect, flipped

from ..config import Config
from ..memories import memories
from .claims import assume, claim, claim_counter, claim_reads, claim_writes
from .common import counter, delay_valid
from .fifo import RamFifo

ID_BITS = 1
BYTE_ADDRESS_BITS = 64
COMMAND = data.StructLayout({"offset": 32, "beats": 32})  # both in beats; no beats: nothing happens
INCREMENT = 1
BURST_CYCLES = 2  # from one burst to the next at the earliest
CACHE = 0b0011  # modifiable, bufferable: interconnects may pack and reorder towards DRAM


def _address_channel(x: str) -> dict:
    return {
        f"{x}id": Out(ID_BITS),
        f"{x}addr": Out(BYTE_ADDRESS_BITS),
        f"{x}len": Out(8),
        f"{x}size": Out(3),
        f"{x}burst": Out(2),
        f"{x}cache": Out(4),
        f"{x}prot": Out(3),
        f"{x}valid": Out(1),
        f"{x}ready": In(1),
    }


def axi_read(config: Config) -> Signature:
    """Read channels of a master."""
    return Signature(
        _address_channel("ar")
        | {
            "rid": In(ID_BITS),
            "rdata": In(8 * config.axi_bytes),
            "rresp": In(2),
            "rlast": In(1),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def axi_write(config: Config) -> Signature:
    """Write channels of a master."""
    return Signature(
        _address_channel("aw")
        | {
            "wdata": Out(8 * config.axi_bytes),
            "wstrb": Out(config.axi_bytes),
            "wlast": Out(1),
            "wvalid": Out(1),
            "wready": In(1),
            "bid": In(ID_BITS),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
        }
    )


def beat_stream(config: Config) -> Signature:
    """AXI beats as a stream."""
    return stream.Signature(8 * config.axi_bytes)


class _Bursts(Component):
    """Cuts commands into bursts: one (addr, len) in BURST_CYCLES at most, taken with `step`.

    Ports: base, command (stream in); valid, beats (1..burst_beats) and addr of the next burst, step; busy (a command or
    a burst left). Bursts end at multiples of burst_beats. Latency: two cycles from command to burst.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "base": In(BYTE_ADDRESS_BITS),
                "command": In(stream.Signature(COMMAND)),
                "valid": Out(1),
                "busy": Out(1),
                "beats": Out(range(config.burst_beats + 1)),
                "addr": Out(BYTE_ADDRESS_BITS),
                "step": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        most = self.config.burst_beats
        shift = (self.config.axi_bytes - 1).bit_length()
        offset, left = Signal(32, reset_less=True), Signal(32)
        valid, idle = Signal(), Signal(init=1)
        beats = Signal(range(most + 1), reset_less=True)
        addr = Signal(BYTE_ADDRESS_BITS, reset_less=True)
        to_border = Signal(range(most + 1))
        m.d.comb += [
            self.valid.eq(valid),
            self.busy.eq(~idle),
            self.command.ready.eq(idle),
            to_border.eq(most - (offset & (most - 1))),
            self.beats.eq(beats),
            self.addr.eq(addr),
        ]
        # What is left is looked at in one cycle and taken in another.
        m.d.sync += [
            valid.eq((left != 0) & ~self.step),
            beats.eq(Mux(left > to_border, to_border, left)),
            addr.eq(Cat(Const(0, 12), self.base[12:]) + (offset << shift)),
        ]
        with m.If(idle):
            m.d.sync += offset.eq(self.command.payload.offset)
            with m.If(self.command.valid):
                m.d.sync += [left.eq(self.command.payload.beats), idle.eq(self.command.payload.beats == 0)]
        with m.Elif(self.step):
            m.d.sync += [offset.eq(offset + beats), left.eq(left - beats), idle.eq(left == beats)]

        assume(m, platform, ~self.step | valid)
        whole = beats == Mux(left > to_border, to_border, left)
        where = addr == (Cat(Const(0, 12), self.base[12:]) + (offset << shift))[: len(addr)]
        claim(m, platform, idle == (left == 0), ~valid | ((left != 0) & whole & where))
        return m


def _drive_address(m: Module, config: Config, bus, x: str, bursts: _Bursts, issue) -> None:
    """The address channel `x` of `bus` as a register that `issue` loads with the next burst."""
    valid = getattr(bus, f"{x}valid")
    addr = Signal(BYTE_ADDRESS_BITS, name=f"{x}addr_next", reset_less=True)
    length = Signal(range(max(config.burst_beats, 2)), name=f"{x}len_next", reset_less=True)
    busy = Signal(name=f"{x}valid_next")
    m.d.comb += [
        valid.eq(busy),
        getattr(bus, f"{x}addr").eq(addr),
        getattr(bus, f"{x}len").eq(length),
        getattr(bus, f"{x}size").eq((config.axi_bytes - 1).bit_length()),
        getattr(bus, f"{x}burst").eq(INCREMENT),
        getattr(bus, f"{x}cache").eq(CACHE),
        bursts.step.eq(issue),
    ]
    with m.If(issue):
        m.d.sync += [busy.eq(1), addr.eq(bursts.addr), length.eq(bursts.beats - 1)]
    with m.Elif(getattr(bus, f"{x}ready")):
        m.d.sync += busy.eq(0)


def _engine(beats: Member, bus: Signature) -> dict:
    """Ports of AxiReader and AxiWriter."""
    return {
        "base": In(BYTE_ADDRESS_BITS),
        "command": In(stream.Signature(COMMAND)),
        "beats": beats,
        "bus": Out(bus),
        "drain": In(1),
        "idle": Out(1),
        "busy": Out(1),
        "error": Out(1),
        "beat": Out(1),
    }


class AxiReader(Component):
    """Commands in, their beats out, in order; up to `config.outstanding` bursts in flight.

    Only asks for what its queue can take, so rready never waits for the consumer.
    Ports: base (byte address, stable while at work), command (stream of COMMAND), beats (stream), bus (axi_read),
    drain (1: start no further burst), idle (no burst in flight), busy (a command or a burst left), error (strobe: a bad
    answer), beat (strobe: a beat arrived).
    Cost: outstanding * burst_beats beats of RAM.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(_engine(Out(beat_stream(config)), axi_read(config)))

    def elaborate(self, platform):
        m = Module()
        config, bus = self.config, self.bus
        depth = memories(config)["data beats"].depth
        m.submodules.bursts = bursts = _Bursts(config)
        m.submodules.fifo = fifo = RamFifo(8 * config.axi_bytes, depth, counted=True)
        connect(m, flipped(self.command), bursts.command)
        connect(m, fifo.o, flipped(self.beats))

        space = Signal(range(depth + 1), init=depth)  # beats that the queue can take beyond those asked for
        issue, taken, last = Signal(), Signal(), Signal()
        in_flight, flying, all_flying = counter(m, issue, last, config.outstanding, "flying")  # bursts
        enough = Signal()  # space for a burst; a cycle late, as bursts are at least two apart
        m.d.sync += enough.eq(space >= config.burst_beats)
        m.d.comb += [
            bursts.base.eq(self.base),
            issue.eq(bursts.valid & (~bus.arvalid | bus.arready) & enough & ~all_flying & ~self.drain),
            taken.eq(self.beats.valid & self.beats.ready),
            bus.rready.eq(1),
            fifo.i.valid.eq(bus.rvalid),
            fifo.i.payload.eq(bus.rdata),
            self.beat.eq(bus.rvalid & bus.rready),
            last.eq(self.beat & bus.rlast),
            self.error.eq(self.beat & bus.rresp[1]),
            self.idle.eq(~flying),
            self.busy.eq(bursts.busy | ~self.idle),
        ]
        _drive_address(m, config, bus, "ar", bursts, issue)
        left = delay_valid(m, taken, 1, "left")  # a cycle late, too: who takes beats lies far away
        m.d.sync += space.eq(space + left - Mux(issue, bursts.beats, 0))

        claim_counter(m, platform, (in_flight, flying, all_flying), config.outstanding)
        if under_way := claim_reads(m, platform, bus, config.outstanding, config.burst_beats):
            beats, asked = under_way
            offered = Mux(bus.arvalid, bus.arlen + 1, 0)
            claim(
                m, platform, space + left + fifo.words(platform) + beats + offered == depth, in_flight == asked + bus.arvalid,
                bus.arlen < config.burst_beats, ~enough | ~bursts.valid | (space >= config.burst_beats),
            )  # fmt: skip
        return m


class AxiWriter(Component):
    """Commands and their beats in, bursts out; up to `config.outstanding` of them unanswered.

    A burst's address goes out before its beats; the next burst's after them.
    Ports: base, command (stream of COMMAND), beats (stream in, whole beats), bus (axi_write), drain (1: start no
    further burst), idle (no burst under way or unanswered), busy (work left), error (strobe), beat (strobe).
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(_engine(In(beat_stream(config)), axi_write(config)))

    def elaborate(self, platform):
        m = Module()
        config, bus = self.config, self.bus
        m.submodules.bursts = bursts = _Bursts(config)
        connect(m, flipped(self.command), bursts.command)
        left, some_left = Signal(range(config.burst_beats + 1)), Signal()  # beats of the burst under way
        issue, answered = Signal(), Signal()
        in_flight, flying, all_flying = counter(m, issue, answered, config.outstanding, "flying")
        m.d.comb += [
            bursts.base.eq(self.base),
            issue.eq(bursts.valid & ~bus.awvalid & ~some_left & ~all_flying & ~self.drain),
            bus.wvalid.eq(self.beats.valid & ~bus.awvalid & some_left),
            bus.wdata.eq(self.beats.payload),
            bus.wstrb.eq(~Const(0, config.axi_bytes)),
            bus.wlast.eq(left == 1),
            self.beat.eq(bus.wvalid & bus.wready),
            self.beats.ready.eq(bus.wready & ~bus.awvalid & some_left),
            bus.bready.eq(1),
            answered.eq(bus.bvalid),
            self.error.eq(bus.bvalid & bus.bresp[1]),
            self.idle.eq(~flying),
            self.busy.eq(bursts.busy | ~self.idle),
        ]
        _drive_address(m, config, bus, "aw", bursts, issue)
        with m.If(issue):
            m.d.sync += [left.eq(bursts.beats), some_left.eq(1)]
        with m.Elif(self.beat):
            m.d.sync += [left.eq(left - 1), some_left.eq(left != 1)]

        claim_counter(m, platform, (in_flight, flying, all_flying), config.outstanding)
        if under_way := claim_writes(m, platform, bus, config.outstanding, config.burst_beats):
            due, complete = under_way
            claim(
                m, platform, some_left == (left != 0), left == Mux(bus.awvalid, bus.awlen + 1, due), ~bus.awvalid | (due == 0),
                in_flight == complete + some_left, bus.awlen < config.burst_beats,
            )  # fmt: skip
        return m
