"""Where buffers lie in DRAM: chunk addresses in a region that only Spill and Fetch operations touch.

A Store writes and a Load reads chunks that lie one behind the other. So a buffer is cut where the columns of its transfers
begin or end, and each piece holds its chunks row by row: any rows of a piece are one instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from ..config import Config
from ..intgraph import IntGraph, Spill, Transfer, View
from .layout import Layout, align


@dataclass(frozen=True)
class Part:
    """What one instruction of a transfer moves: `rows` of `chunks` chunks, at chunk `column` of the view's rows, which lie
    from chunk `address` of the region on."""

    address: int
    column: int
    rows: int
    chunks: int


Placed = tuple[int, int, int, int]  # first and last operation, address, end


def first_fit(placed: list[Placed], begin: int, last: int, size: int) -> int:
    """The lowest address of `size` chunks that none of those in use between operations `begin` and `last` has; it is added."""
    address = 0
    for _, _, start, end in sorted((p for p in placed if p[0] <= last and begin <= p[1]), key=lambda p: p[2]):
        if start - address >= size:
            break
        address = max(address, end)
    placed.append((begin, last, address, address + size))
    return address


class Areas:
    """Chunk addresses of the buffers in DRAM. `size`: of the region, in chunks.

    Areas of buffers that are not in use at the same time may overlap; outputs stay to the end.
    """

    def __init__(self, graph: IntGraph, layouts: dict[str, Layout], config: Config):
        self.layouts = layouts
        self.pieces: dict[str, list[tuple[int, int, int]]] = {}  # (first chunk of a row, chunks, address)
        spans: dict[str, tuple[int, int]] = {}
        borders: dict[str, set[int]] = {}
        for i, op in enumerate(graph.ops):
            if isinstance(op, Transfer):
                view = _outside(op)
                spans[view.buffer] = spans.get(view.buffer, (i, i))[0], i
                first, chunks = self._columns(view)
                borders.setdefault(view.buffer, set()).update((first, first + chunks))
        for output in graph.outputs:
            if output.view.buffer in spans:
                spans[output.view.buffer] = spans[output.view.buffer][0], len(graph.ops)
        step = config.burst_beats // gcd(config.burst_beats, config.chunk_beats)
        self.size = 0
        placed: list[Placed] = []
        for name, (begin, last) in spans.items():
            edges = sorted(borders[name])
            rows = graph.buffers[name].rows
            sizes = [align(rows * (b - a), step) for a, b in zip(edges, edges[1:], strict=False)]
            address = first_fit(placed, begin, last, sum(sizes))
            self.size = max(self.size, address + sum(sizes))
            self.pieces[name] = []
            for first, behind, size in zip(edges, edges[1:], sizes, strict=False):
                self.pieces[name].append((first, behind - first, address))
                address += size

    def parts(self, op: Transfer) -> Iterator[Part]:
        """What each instruction of a transfer moves, from its first column on."""
        view = _outside(op)
        begin, width = self._columns(view)
        for first, chunks, address in self.pieces[view.buffer]:
            if begin <= first < begin + width:
                yield Part(address + view.row * chunks, first - begin, view.rows, chunks)

    def contiguous(self, view: View) -> int | None:
        """The address of a view whose rows lie whole, one behind the other; None where they do not."""
        for first, chunks, address in self.pieces[view.buffer]:
            if (first, chunks) == self._columns(view):
                return address + view.row * chunks
        return None

    def _columns(self, view: View) -> tuple[int, int]:
        """First chunk in a row, and chunks."""
        layout = self.layouts[view.buffer]
        return layout.start(view) - view.row * layout.pitch, layout.chunks(view)


def _outside(op: Transfer) -> View:
    """The view in DRAM."""
    return op.out if isinstance(op, Spill) else op.x
