"""The AXI shell around the core, and its Verilog.

Everything that knows a bus is here; the core knows none. Port names are flat: clk, rst, irq, s_axi_* (AXI4-Lite),
m_axi_data_* (program, data in and out), m_axi_w0_* and so on (weights, read only).
"""

from __future__ import annotations

import gc
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Module, ResetInserter
from amaranth.lib.wiring import Component, Flow, In, Out, Signature, connect

from ..config import Config
from ..errors import UserError, full_disk
from ..isa import Unit
from ..latency import WORDS_PER_CYCLE
from .arbiter import ReadArbiter
from .axi import AxiReader, AxiWriter, axi_read, axi_write
from .checksum import Checksum
from .common import WIDE, register
from .control import AXI_LITE, Control
from .core import Core
from .load import LoadUnit
from .memory import template_memory
from .sequencer import Sequencer
from .shared import Shared
from .store import StoreUnit
from .stream_dma import WeightStream

TOP_MODULE = "hwgen_top"


def _flat(prefix: str, signature: Signature) -> dict:
    """The members of a bus as members of the top component."""
    return {f"{prefix}_{name}": member for name, member in signature.members.items()}


class Top(Component):
    """The machine: Control, Sequencer, LoadUnit, StoreUnit, WeightStream and Core on their buses.

    Ports: s_axi_*, m_axi_data_*, m_axi_w<port>_*, irq; rst (active high, synchronous); clk comes with the domain, which has
    no reset of its own: rst and the soft reset go to the units through registers, as both reach all over the part.
    """

    def __init__(self, config: Config):
        self.config = config
        members = {"rst": In(1), "irq": Out(1)} | _flat("s_axi", AXI_LITE)
        members |= _flat("m_axi_data", axi_read(config)) | _flat("m_axi_data", axi_write(config))
        for port in range(config.weight_ports):
            members |= _flat(f"m_axi_w{port}", axi_read(config))
        super().__init__(members)

    def _wire(self, m: Module, prefix: str, bus, signature: Signature) -> None:
        """Connect flat ports with the bus of a unit inside."""
        for name, member in signature.members.items():
            outside, inside = getattr(self, f"{prefix}_{name}"), getattr(bus, name)
            m.d.comb += outside.eq(inside) if member.flow == Flow.Out else inside.eq(outside)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        control, sequencer, core = Control(config), Sequencer(config), Core(config)
        load, store, weights = LoadUnit(config), StoreUnit(config), WeightStream(config)
        reader, writer, arbiter = AxiReader(config), AxiWriter(config), ReadArbiter(config)
        m.submodules.control = ResetInserter(self.rst)(control)
        reset = register(m, control.reset | self.rst, "machine_reset", WIDE)
        resettable = {
            "sequencer": sequencer,
            "core": core,
            "load": load,
            "store": store,
            "weights": weights,
            "reader": reader,
            "writer": writer,
            "arbiter": arbiter,
        }
        for name, unit in resettable.items():
            m.submodules[name] = ResetInserter(reset)(unit)

        # Buses.
        self._wire(m, "s_axi", control.bus, AXI_LITE)
        self._wire(m, "m_axi_data", reader.bus, axi_read(config))
        self._wire(m, "m_axi_data", writer.bus, axi_write(config))
        for port in range(config.weight_ports):
            self._wire(m, f"m_axi_w{port}", weights.bus[port], axi_read(config))
            m.d.comb += weights.base[port].eq(control.weight_base[port])
        m.d.comb += [
            self.irq.eq(control.irq),
            reader.base.eq(control.data_base),
            writer.base.eq(control.data_base),
            reader.drain.eq(control.drain),
            writer.drain.eq(control.drain),
            weights.drain.eq(control.drain),
            control.flying.data_reads.eq(~reader.idle),
            control.flying.data_writes.eq(~writer.idle),
            control.flying.weight_reads.eq(~weights.idle),
            control.read_error.eq(reader.error | weights.error),
            control.write_error.eq(writer.error),
        ]

        # Program and data share a reader: the program first, it is small and everything waits for it.
        connect(m, sequencer.command, arbiter.commands[0])
        connect(m, load.command, arbiter.commands[1])
        connect(m, arbiter.command, reader.command)
        connect(m, reader.beats, arbiter.read)
        connect(m, arbiter.beats[0], sequencer.beats)
        connect(m, arbiter.beats[1], load.beats)
        connect(m, store.command, writer.command)
        connect(m, store.beats, writer.beats)
        m.d.comb += store.writing.eq(writer.busy)
        m.submodules.checksum = checksum = Checksum(config)
        m.d.comb += [
            checksum.start.eq(control.start),
            checksum.valid.eq(sequencer.beats.valid & sequencer.beats.ready),
            checksum.beat.eq(sequencer.beats.payload),
            control.program_crc.eq(checksum.crc),
        ]

        # Instructions.
        connect(m, sequencer.insn[Unit.LOAD], load.insn)
        connect(m, sequencer.insn[Unit.WEIGHTS], weights.insn)
        connect(m, sequencer.insn[Unit.MATMUL], core.matmul_insn)
        connect(m, sequencer.insn[Unit.VECTOR], core.vector_insn)
        connect(m, sequencer.insn[Unit.STORE], store.insn)
        done = {
            Unit.LOAD: load.done,
            Unit.WEIGHTS: weights.done,
            Unit.MATMUL: core.matmul_done,
            Unit.VECTOR: core.vector_done,
            Unit.STORE: store.done,
        }
        m.d.comb += [sequencer.done[unit].eq(strobe) for unit, strobe in done.items()]

        # Data.
        for k in range(WORDS_PER_CYCLE):
            connect(m, weights.words[k], core.words[k])
        connect(m, store.rd, core.rd_store)
        connect(m, load.wr, core.wr_load)
        connect(m, load.scale, core.wr_scale)
        m.d.comb += weights.nonempty.eq(core.nonempty)

        # Control and counters.
        m.d.comb += [
            sequencer.start.eq(control.start),
            sequencer.program.eq(control.program),
            sequencer.length.eq(control.length),
            sequencer.fault.eq(control.fault),
            control.running.eq(sequencer.running),
            control.finished.eq(sequencer.finished),
            control.illegal.eq(sequencer.illegal),
            control.instruction.eq(sequencer.instruction),
            control.counts.eq(sequencer.counts),
        ]
        busy = {
            Unit.LOAD: load.busy,
            Unit.WEIGHTS: weights.busy,
            Unit.MATMUL: core.matmul_busy,
            Unit.VECTOR: core.vector_busy,
            Unit.STORE: store.busy,
        }
        events = control.events
        m.d.comb += [events.busy[unit].eq(level) for unit, level in busy.items()]
        m.d.comb += [
            events.array_active.eq(core.array_active),
            events.stall_weights.eq(core.stall_weights),
            events.stall_bank.eq(core.stall_bank),
            events.stall_depend.eq(sequencer.stall_depend),
            events.data_read_beats.eq(reader.beat),
            events.data_write_beats.eq(writer.beat),
            events.weight_beats.eq(weights.beat),
        ]
        return m


class VerilogPlatform:
    """What elaboration asks of a target: RAMs become instances of rtl_templates/ram_sdp.v, `shared` components instances
    of modules that are emitted once; with `primitives` some of those are made of a family's own cells."""

    get_memory = staticmethod(template_memory)

    def __init__(self, primitives: bool = False):
        self.primitives = primitives
        self.shared: dict[str, tuple[type[Shared], Config]] = {}


def emit(config: Config) -> dict[str, str]:
    """Verilog by file name: hwgen_top.v, the shared modules and templates it instantiates. Same config, same bytes."""
    platform = VerilogPlatform()
    with _rare_collection():
        files = {f"{TOP_MODULE}.v": _convert(Top(config), TOP_MODULE, platform, reset_less=True)}
        files |= {f"{module}.v": emit_shared(*found) for module, found in platform.shared.items()}
    for template in sorted(resources.files("hwgen.rtl_templates").iterdir(), key=lambda path: path.name):
        module, _, suffix = template.name.rpartition(".")
        if suffix == "v" and any(re.search(rf"\b{module}\b", text) for text in files.values()):
            files[template.name] = template.read_text(encoding="utf-8")
    return files


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Amaranth makes millions of objects that live until the text is written: looking for cycles among them as often as
    Python does takes two fifths of the time."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 1, 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def emit_shared(kind: type[Shared], config: Config) -> str:
    """Verilog of a shared module: where it has a form made of primitives, a define chooses that one."""
    described = _convert(kind(config), kind.MODULE, VerilogPlatform())
    if kind.PRIMITIVES is None:
        return described
    primitives = _convert(kind(config), kind.MODULE, VerilogPlatform(primitives=True))
    return f"`ifdef {kind.PRIMITIVES}\n{primitives}`else\n{described}`endif\n"


def _convert(component: Component, name: str, platform: VerilogPlatform, reset_less: bool = False) -> str:
    def domain(name: str) -> ClockDomain:
        return ClockDomain(name, reset_less=reset_less)

    try:
        return verilog.convert(
            component, name=name, platform=platform, emit_src=False, strip_internal_attrs=True, missing_domain=domain
        )
    except verilog.YosysError as error:
        if full := full_disk(str(error)):
            raise UserError(f"Yosys made no Verilog of {name}: {full} (temporary files {tempfile.gettempdir()})") from None
        raise
