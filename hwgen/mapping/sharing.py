"""Which operations may share a run of those through which tokens stream from DRAM: how each takes its tokens, and what one
may read of what another one writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..intgraph import Buffer, IntGraph, Op, RouteTokens
from ..isa import RowMax
from .bands import BAND, Shape
from .halos import taken_by_band
from .parts import COLUMNS, ROWS, WHOLE


@dataclass
class Together:
    """Units that may share a run: what one of them writes is of its blocks' tokens alone."""

    buffers: dict[str, Buffer]
    tokens: int = -1
    plain: bool = True  # equal numbers of tokens, and every one depends on those of its block only
    keys: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    whole: dict[str, set[str]] = field(default_factory=dict)  # with the operations that take them so
    by_band: set[str] = field(default_factory=set)  # of which a walk takes bands
    banded: set[str] = field(default_factory=set)  # written in bands
    strict: bool = False  # some operation takes its tokens only as they are

    def add(self, ops: list[tuple[Op, Shape]]) -> bool:
        """Add a unit; False where the run must end before it."""
        for op, shape in ops:
            if not shape.tokens:
                return False
            self.plain &= self.tokens in (-1, shape.tokens)
            self.tokens = shape.tokens
            self.strict |= op.expert is not None or isinstance(op, RouteTokens) or COLUMNS in shape.axes.values()
            for name, view in op.views().items():
                axis, rows = shape.axes[name], self.buffers[view.buffer].rows
                if axis == BAND and name == "x" and len(ops) == 1 and taken_by_band(view, rows, op.walk):
                    self.by_band.add(view.buffer)
                    self.keys.setdefault(view.buffer, set()).add((ROWS, 0))
                    continue
                if axis in (WHOLE, BAND):
                    self.whole.setdefault(view.buffer, set()).add(op.name)
                    if name in op.WRITES:
                        self.banded.add(view.buffer)
                    continue
                self.keys.setdefault(view.buffer, set()).add((axis, view.row if axis == ROWS else view.col))
                if name in op.WRITES:
                    self.written.add(view.buffer)
        self.plain &= not self.by_band & self.written
        alone = all(len(self.whole[name]) == 1 and name not in self.keys for name in self.banded)
        apart = not self.written & self.whole.keys() and all(len(self.keys[n]) == 1 for n in self.written)
        return alone and apart and (self.plain or not self.strict)


def with_maxima(found: list[list[Op]], graph: IntGraph) -> list[list[Op]]:
    """Units joined where one reads row maxima of another that `apart.measure` could not take again from spilled rows: those
    of signed values, or of some columns."""
    first = list(range(len(found)))  # of each unit, where what it must stay with begins
    writers: dict[str, tuple[int, RowMax]] = {}
    for u, unit in enumerate(found):
        for op in unit:
            for view in op.reads_maxima():
                writer, kind = writers.get(view.buffer, (u, RowMax.ABS))
                if kind != RowMax.ABS or view.cols != graph.buffers[view.buffer].cols:
                    first[writer : u + 1] = [min(first[writer : u + 1])] * (u + 1 - writer)
            if (kept := op.writes_maxima()) is not None:
                before = writers.get(kept.buffer, (u, op.row_max))
                partial = kept.cols != graph.buffers[kept.buffer].cols
                writers[kept.buffer] = before if partial and before[1] == op.row_max else (u, op.row_max)
    result: list[list[Op]] = []
    for u, unit in enumerate(found):
        if first[u] == u:
            result.append([])
        result[-1] += unit
    return result
