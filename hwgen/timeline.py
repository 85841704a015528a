"""When instructions ran, estimated or measured, and where the cycles went: by layer, by unit and by cause."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import isa
from .isa import Unit

# What a cycle of the row issuer is spent on, in the order of `sim/tb/trace.v`: a row enters the array, or none does for
# want of a weight word, a tile (it is being loaded, or has fewer rows than words), a scratchpad bank, an instruction that
# the next one depends on, or for a step of the control logic or an empty queue.
CAUSES = ("active", "dram", "tile", "bank", "depend", "other")


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
    layer before has ended. causes: of its Matmuls, summed.
    """

    name: str
    start: float
    end: float
    causes: dict[str, float]

    @property
    def cycles(self) -> float:
        return self.end - self.start


def layers(program: list[isa.Insn], origins: list[str], spans: list[Span]) -> list[Layer]:
    """The layers of a run, whose cycles add up to the end of the last one.

    origins: the operation of each instruction. Loads and weight streams run ahead and belong to no layer.
    """
    found: list[Layer] = []
    for span in spans:
        insn = program[span.index]
        if span.unit in (Unit.LOAD, Unit.WEIGHTS):
            continue
        if not found or isinstance(insn, isa.Norm):
            start = found[-1].end if found else 0.0
            found.append(Layer(origins[span.index], start, start, dict.fromkeys(CAUSES, 0.0)))
        layer = found[-1]
        layer.end = max(layer.end, span.end)
        for cause, cycles in span.causes.items():
            layer.causes[cause] += cycles
    return found


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
