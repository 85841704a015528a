"""DRAM -> scratchpad and scale memory."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from .. import isa
from ..config import Config
from ..latency import MOST_BEATS
from .axi import COMMAND, beat_stream
from .block import Block
from .insn import insn_view
from .ports import ADDRESS_BITS, ELEMENT, SCALE_ADDRESS_BITS, SCALE_WRITE, elements, insn_stream, write_port
from .register_slice import RegisterSlice


class LoadUnit(Component):
    """isa.Load and isa.LoadScales, one after the other.

    Ports: insn (stream in), command (stream of COMMAND, at most MOST_BEATS each) and beats (stream in) of the data
    reader, wr (scratchpad write of a chunk), scale (scale memory write), done (strobe: everything written is visible),
    busy.
    A chunk takes chunk_beats cycles, a narrow one narrow_chunk_beats, a scale one.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "insn": In(insn_stream()),
                "command": Out(stream.Signature(COMMAND)),
                "beats": In(beat_stream(config)),
                "wr": Out(write_port(config, 1)),
                "scale": Out(SCALE_WRITE),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes = config.axi_bytes // 2  # scales in a beat
        load = insn_view(isa.Load, self.insn.payload)
        load_scales = insn_view(isa.LoadScales, self.insn.payload)
        m.submodules.block = block = Block()
        m.d.comb += [
            block.first.eq(load.dst),
            block.rows.eq(load.rows),
            block.chunks.eq(load.chunks),
            block.pitch.eq(load.pitch),
        ]

        # Commands, cut so that the program's fetch need not wait for a long load.
        dram, beats_left = Signal(32, reset_less=True), Signal(32)
        piece, asking = Signal(range(MOST_BEATS + 1), reset_less=True), Signal()
        asked = self.command.valid & self.command.ready
        m.d.sync += [
            piece.eq(Mux(beats_left > MOST_BEATS, MOST_BEATS, beats_left)),
            asking.eq((beats_left != 0) & ~asked),
        ]
        m.d.comb += [
            self.command.valid.eq(asking),
            self.command.payload.offset.eq(dram),
            self.command.payload.beats.eq(piece),
        ]
        with m.If(asked):
            m.d.sync += [dram.eq(dram + piece), beats_left.eq(beats_left - piece)]

        narrow = Signal(reset_less=True)
        scale_addr, scales_left = Signal(SCALE_ADDRESS_BITS, reset_less=True), Signal(16)
        more_scales, last_scale = Signal(), Signal()
        beat_end = Signal()  # the next scale is the last one of its beat
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += self.insn.ready.eq(1)
                m.d.sync += [dram.eq(load.dram), narrow.eq(load.narrow), scale_addr.eq(load_scales.dst)]
                with m.If(self.insn.valid):
                    with m.If(load_scales.op == isa.Op.LOAD_SCALES):
                        m.d.sync += [scales_left.eq(load_scales.count), more_scales.eq(load_scales.count != 0)]
                        m.d.sync += [last_scale.eq(load_scales.count == 1), beat_end.eq((load_scales.count == 1) | (lanes == 1))]
                        m.next = "SCALES"
                    with m.Else():
                        m.d.comb += block.start.eq(1)
                        m.next = "LOAD"
            with m.State("LOAD"):
                with m.If(block.loaded):
                    wide_total, narrow_total = block.total * config.chunk_beats, block.total * config.narrow_chunk_beats
                    m.d.sync += beats_left.eq(Mux(narrow, narrow_total, wide_total))
                    m.next = "RUN"
            with m.State("SCALES"):
                m.d.sync += beats_left.eq((scales_left + (lanes - 1)) >> (lanes - 1).bit_length())
                m.next = "RUN"
            with m.State("RUN"):
                with m.If(~block.more & ~more_scales & ~self.wr.valid & ~self.scale.valid):
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"
        m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))

        # Beats to chunks and scales; the slices keep the write ports' arbitration away from the beats.
        place = data.StructLayout({"addr": ADDRESS_BITS, "data": elements(config, 1)})
        scale_place = data.StructLayout({"addr": SCALE_ADDRESS_BITS, "data": 16})
        m.submodules.chunks = chunks = RegisterSlice(place)
        m.submodules.scales = scales = RegisterSlice(scale_place)
        for port, slot in ((self.wr, chunks), (self.scale, scales)):
            m.d.comb += [
                port.valid.eq(slot.o.valid),
                port.addr.eq(slot.o.payload.addr),
                port.data.eq(slot.o.payload.data),
                slot.o.ready.eq(port.ready),
            ]
        beats = self.beats
        beat_bits = 8 * config.axi_bytes
        behind = [Signal(beat_bits, name=f"behind_{i}", reset_less=True) for i in range(config.chunk_beats - 1)]
        beat_at = Signal(range(max(config.chunk_beats, 2)))
        whole, room, take_chunk = Signal(), Signal(), Signal()
        scale_room, take_scale = Signal(), Signal()
        lane, next_lane = Signal(range(lanes)), Signal(range(lanes))
        wide_data = Cat(*behind, beats.payload)[: config.chunk * ELEMENT.width]
        narrow_bytes = Cat(*behind[: config.narrow_chunk_beats - 1], beats.payload)
        narrow_data = Cat(Cat(Const(0, 8), narrow_bytes[8 * i : 8 * i + 8]) for i in range(config.chunk))
        m.d.comb += [
            whole.eq(beat_at == Mux(narrow, config.narrow_chunk_beats - 1, config.chunk_beats - 1)),
            room.eq(block.more & (~whole | chunks.i.ready)),
            scale_room.eq(more_scales & scales.i.ready),
            take_chunk.eq(beats.valid & room),
            take_scale.eq(beats.valid & scale_room),
            next_lane.eq(Mux(beat_end, 0, lane + 1)),
            beats.ready.eq(room | (scale_room & beat_end)),
            block.step.eq(take_chunk & whole),
            chunks.i.valid.eq(beats.valid & block.more & whole),
            chunks.i.payload.addr.eq(block.addr),
            chunks.i.payload.data.eq(Mux(narrow, narrow_data, wide_data)),
            scales.i.valid.eq(beats.valid & more_scales),
            scales.i.payload.addr.eq(scale_addr),
            scales.i.payload.data.eq(beats.payload.word_select(lane, 16)),
            self.wr.mask.eq(1),
        ]
        with m.If(take_chunk):
            m.d.sync += beat_at.eq(Mux(whole, 0, beat_at + 1))
            for i, register in enumerate(behind):
                with m.If(beat_at == i):
                    m.d.sync += register.eq(beats.payload)
        with m.If(take_scale):
            m.d.sync += [
                lane.eq(next_lane),
                beat_end.eq((next_lane == lanes - 1) | (scales_left == 2)),
                scales_left.eq(scales_left - 1),
                more_scales.eq(~last_scale),
                last_scale.eq(scales_left == 2),
                scale_addr.eq(scale_addr + 1),
            ]
        return m
