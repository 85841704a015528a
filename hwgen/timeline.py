"""When instructions ran, estimated or measured, and where the cycles went: by layer, by unit and by cause."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from . import isa
from .config import Config
from .counts import data_beats, stream_beats, taps, walks
from .isa import Unit

# What a cycle of the row issuer is spent on, in the order of `sim/tb/trace.v`: a row enters the array, or none does for
# want of a weight word, a tile (it is being loaded, or has fewer rows than words), a scratchpad bank, an instruction that
# the next one depends on, or for a step of the control logic or an empty queue.
CAUSES = ("active", "dram", "tile", "bank", "depend", "other")


@dataclass(frozen=True)
class Waves:
    """All signals of the simulated design in an FST file: of every run the cycles from the first on, before the last (None: to
    its end); without `cycles` everything, the reset included."""

    path: Path
    cycles: tuple[int, int | None] | None = None


@dataclass
class Span:
    """One instruction: cycles `start` (taken by its unit) to `end` (results visible; of a Stream: last word arrived).

    index: in the program. issued: of a Matmul the cycle of its last row, else `end`. causes: of a Matmul, what the cycles
    since the previous Matmul's last row were spent on, by CAUSES.
    """

    index: int
    unit: Unit
    start: float
    end: float
    issued: float = 0.0
    causes: dict[str, float] = field(default_factory=dict)


@dataclass
class Layer:
    """A stretch of the program, from a LayerNorm to the next.

    name: the operation it begins with. start, end: its computing (Matmul, Norm, Route, Store) begins where that of the
    layer before has ended. causes: of its Matmuls, summed. macs: products of real operands. dram_bytes: moved for it.
    """

    name: str
    start: float
    end: float
    causes: dict[str, float]
    macs: int = 0
    dram_bytes: int = 0

    @property
    def cycles(self) -> float:
        return self.end - self.start

    def to_dict(self, config: Config) -> dict:
        """Whole cycles by cause; `padding` is the part of `active` in which the array worked on no operand."""
        spent = {cause: round(cycles) for cause, cycles in self.causes.items()}
        padding = round(self.causes["active"] - self.macs / config.macs_per_cycle)
        entry = {"name": self.name, "start": round(self.start), "end": round(self.end)}
        return entry | {"cycles": entry["end"] - entry["start"], **spent, "padding": padding} | {
            "macs": self.macs,
            "dram_bytes": self.dram_bytes,
        }  # fmt: skip


def layers(program: list[isa.Insn], origins: list[str], spans: list[Span]) -> list[Layer]:
    """The layers of a run, whose cycles add up to the end of the last one; without `macs` and `dram_bytes`.

    origins: the operation of each instruction. Loads and weight streams run ahead and belong to no layer.
    """
    return _grouped(program, origins, spans)[0]


def _grouped(program: list[isa.Insn], origins: list[str], spans: list[Span]) -> tuple[list[Layer], dict[str, Layer]]:
    """Layers, and the layer of each operation that computes."""
    found: list[Layer] = []
    of: dict[str, Layer] = {}
    for span in spans:
        if span.unit in (Unit.LOAD, Unit.WEIGHTS):
            continue
        if not found or isinstance(program[span.index], isa.Norm):
            start = found[-1].end if found else 0.0
            found.append(Layer(origins[span.index], start, start, dict.fromkeys(CAUSES, 0.0)))
        layer = found[-1]
        of.setdefault(origins[span.index], layer)
        layer.end = max(layer.end, span.end)
        for cause, cycles in span.causes.items():
            layer.causes[cause] += cycles
    return found, of


def breakdown(program: list[isa.Insn], origins: list[str], spans: list[Span], cycles: float, config: Config) -> dict:
    """Where the cycles of a run went, as plain JSON: `cycles`, `busy` of each unit, `causes`, `layers`, `operations`.

    `operations` lists all instructions but END with their unit and cycles, and what they moved through DRAM; a Matmul's
    with `issued`, what its wait was for, its products of real operands, and of an expert which and the rows of its queue.
    """
    found, of = _grouped(program, origins, spans)
    walk = walks(program)
    rows = {span.index: _rows(program[span.index], span, config) for span in spans if span.unit == Unit.MATMUL}
    users: dict[tuple[str, int], list[int]] = {}  # rows of the Matmuls of each operation and expert
    macs: dict[int, int] = {}
    moves: dict[int, int] = {}
    for index, count in rows.items():
        insn = program[index]
        users.setdefault((origins[index], insn.expert), []).append(count)
        macs[index] = count * taps(walk.get(index)) * insn.inputs * insn.outputs
        of[origins[index]].macs += macs[index]
    for span in spans:
        moved = _bytes(program[span.index], config)
        if isinstance(program[span.index], isa.Stream) and not _streamed(program, origins, span, users):
            moved = 0
        layer = of.get(origins[span.index]) or next((x for x in found if span.end <= x.end), found[-1])
        layer.dram_bytes += moved
        moves[span.index] = moved
    listed = []
    for span in spans:
        insn = program[span.index]
        entry = {"index": span.index, "insn": type(insn).__name__, "unit": span.unit.name.lower(), "of": origins[span.index]}
        entry |= {"start": round(span.start), "end": round(span.end)}
        if moves[span.index]:
            entry["dram_bytes"] = moves[span.index]
        if span.causes:
            entry |= {"issued": round(span.issued)} | {cause: round(spent) for cause, spent in span.causes.items()}
            entry["macs"] = macs[span.index]
            if insn.expert != isa.NO_EXPERT:
                entry |= {"expert": insn.expert, "rows": rows[span.index]}
        listed.append(entry)
    return {
        "cycles": round(cycles),
        "busy": {unit: round(spent) for unit, spent in busy(spans).items()},
        "causes": {cause: round(spent) for cause, spent in causes(spans).items()},
        "layers": [layer.to_dict(config) for layer in found],
        "operations": listed,
    }


def _rows(insn: isa.Matmul, span: Span, config: Config) -> int:
    """Rows that a Matmul worked on; 0 for an empty queue's placeholder."""
    if insn.expert == isa.NO_EXPERT:
        return insn.rows
    tiles = -(-insn.inputs // config.array_inputs) * -(-insn.outputs // config.array_outputs)
    return int(span.causes["active"]) // tiles


def _streamed(program: list[isa.Insn], origins: list[str], span: Span, users: dict[tuple[str, int], list[int]]) -> bool:
    """Whether a Stream moved its words: its expert has tokens, or it did not ask."""
    insn = program[span.index]
    return insn.expert == isa.NO_EXPERT or any(users.get((origins[span.index], insn.expert), ()))


def _bytes(insn: isa.Insn, config: Config) -> int:
    """Bytes that an instruction moves through DRAM, padding included."""
    match insn:
        case isa.Stream():
            return stream_beats(insn, config) * config.axi_bytes * config.weight_ports
        case isa.Load() | isa.LoadScales() | isa.Store():
            return data_beats(insn, config) * config.axi_bytes
    return 0


def causes(spans: list[Span]) -> dict[str, float]:
    """What the cycles up to the last Matmul's last row were spent on, by CAUSES."""
    return {cause: sum(span.causes.get(cause, 0.0) for span in spans) for cause in CAUSES}


def busy(spans: list[Span]) -> dict[str, float]:
    """Cycles in which each unit works on at least one instruction."""
    totals = {unit.name.lower(): 0.0 for unit in Unit}
    ends = dict.fromkeys(Unit, 0.0)
    for span in spans:
        begin = max(span.start, ends[span.unit])
        totals[span.unit.name.lower()] += max(0.0, span.end - begin)
        ends[span.unit] = max(ends[span.unit], span.end)
    return totals
