"""Where the data of one task lies on the chip: spans of buffers and row maxima, and constants beside them, placed."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator

from ..config import Config
from ..errors import Shortage
from ..intgraph import IntGraph, MatMul, Multiply, Norm, ReduceWindow, Spill, View
from ..isa import RowScale
from ..program import Place
from .allocate import Item, place, set_lead
from .hazards import Region
from .layout import align
from .liveness import Span, buffer_accesses, final_reads, maximum_accesses, spans
from .prepare import Needs

LINGER = (6, 3, 1, 0)  # MatMuls behind a Spill during which its rows keep their place, as far as there is room
AHEAD = 3  # MatMuls before their user that its parameters are loaded, where values spill
NORM_BESIDE = 16  # operations behind one of the vector unit among which those are looked for that run beside it
STILL = 4  # operations in front of it among which those are looked for that may still run when it begins


class Spaces:
    """Places of one task. `spans`, `maxima`: the spans of every buffer and of its row maxima, with their items.

    `params`: gamma and beta of a Norm, or what a ReduceWindow has of each column, `tables`: row multipliers of a MatMul, by
    op index. `step_of`: step of each op.
    Items that are loaded from DRAM may be loaded from the beginning of step `first`.
    """

    def __init__(self, graph: IntGraph, config: Config, needs: Needs, step_of: dict[int, int]):
        self.graph, self.config, self.needs, self.step_of = graph, config, needs, step_of
        self.spans: dict[str, list[tuple[Span, Item]]] = {}
        self.maxima: dict[str, list[tuple[Span, Item]]] = {}
        self.params: dict[int, Item] = {}
        self.tables: dict[int, Item] = {}
        self.spills = any(buffer.dram for buffer in graph.buffers.values())
        self.array = [i for i, op in enumerate(graph.ops) if isinstance(op, MatMul)]
        index = {op.name: i for i, op in enumerate(graph.ops)}
        self.held = {name: index[op] for name, op in graph.held.items()}
        for linger in LINGER if self.spills else LINGER[-1:]:
            self._collect(linger)
            try:
                self._allocate()
            except Shortage:
                if linger:
                    continue
                raise
            return

    def _collect(self, linger: int) -> None:
        """Items of everything that needs space. linger: MatMuls behind a Spill that need not wait until it has read."""
        graph, config, needs = self.graph, self.config, self.needs
        for table in (self.spans, self.maxima, self.params, self.tables):
            table.clear()
        final = final_reads(graph)
        for name, accesses in buffer_accesses(graph).items():
            if graph.buffers[name].dram:
                continue
            for span in self._merged(spans(name, accesses, final[name])):
                size = graph.buffers[name].rows * needs.layouts[name].pitch
                first = span.first if self.spills else span.use  # where values spill the mapping says when they are fetched
                item = Item(f"buffer {name!r}", size, self.step_of[first], self.step_of[span.last])
                if linger and isinstance(graph.ops[span.last], Spill):
                    item.last = max(item.last, self._near(span.last, linger))
                if name in self.held:
                    item.held = self.step_of[self.held[name]]
                self.spans.setdefault(name, []).append((span, item))
        for name, accesses in maximum_accesses(graph).items():
            for span in self._merged(spans(name, accesses, set())):
                first, last = self.step_of[span.first], self.step_of[span.last]
                item = Item(f"row maxima of {name!r}", graph.buffers[name].rows, first, last)
                self.maxima.setdefault(name, []).append((span, item))
        for i, op in enumerate(graph.ops):
            step = self.step_of[i]
            early: tuple[int, ...] = (step,)
            load = 0
            if self.spills and i:
                load = self._near(i, -AHEAD)
                early = (self._near(i, -2 * AHEAD), load, self._near(i, -1))
            if isinstance(op, Norm):
                size = 2 * (align(op.x.cols, config.chunk) // config.chunk)
                self.params[i] = Item(f"gamma and beta of {op.name!r}", size, step, step, early, load=load)
            elif isinstance(op, ReduceWindow):
                columns, weights = needs.sizes[i]
                size = (2 + weights) * (align(columns, config.chunk) // config.chunk)
                name = f"multipliers, biases and weights of {op.name!r}"
                self.params[i] = Item(name, size, step, step, early, load=load)
            elif isinstance(op, MatMul) and op.row_scale == RowScale.TABLE:
                self.tables[i] = Item(f"row multipliers of {op.name!r}", op.x.rows, step, step, early, load=load)

    def _near(self, i: int, matmuls: int) -> int:
        """The step of the MatMul so many behind operation `i` (negative: before it), or of the last or first one."""
        at = bisect(self.array, i) + matmuls - (matmuls > 0)
        return self.step_of[self.array[min(max(at, 0), len(self.array) - 1)]] if self.array else self.step_of[i]

    def _allocate(self) -> None:
        config = self.config
        buffers = [item for pairs in self.spans.values() for _, item in pairs]
        maxima = [item for pairs in self.maxima.values() for _, item in pairs]
        loaded = [item for pairs in self.spans.values() for span, item in pairs if span.loads]
        if not self.spills:
            set_lead([*loaded, *self.params.values(), *self.tables.values()])
        scratch = [*buffers, *self.params.values()]
        place(scratch, config.banks, config.bank_chunks, self._clashes(scratch), "chunks of scratchpad", "bank_words or banks")
        scales = [*maxima, *self.tables.values()]
        place(scales, 1, config.scale_entries, {}, "entries of the scale memory", "scale_entries")

    def _merged(self, found: list[Span]) -> list[Span]:
        """Spans that meet in one step (blocks of rows) become one."""
        result: list[Span] = []
        for span in found:
            if result and self.step_of[result[-1].last] >= self.step_of[span.first]:
                before = result.pop()
                span = Span(span.buffer, before.first, span.last, before.use, before.loads)
            result.append(span)
        return result

    def _clashes(self, scratch: list[Item]) -> dict[tuple[int, int], int]:
        """Cycles that two items in one bank take from each other, about: a bank serves one read a cycle.

        A Matmul reads its streamed rows nearly every cycle, its stationary rows once a tile (those of its first tiles
        while the Matmul before it runs), residual rows in the last tile of every output. The vector unit
        reads beside the Matmuls that follow it.
        """
        number = {id(item): n for n, item in enumerate(scratch)}
        result: dict[tuple[int, int], int] = {}

        def apart(one: Item, other: Item, cost: int) -> None:
            pair = sorted((number[id(one)], number[id(other)]))
            if pair[0] != pair[1]:
                result[pair[0], pair[1]] = result.get((pair[0], pair[1]), 0) + cost

        def clash(i: int, a: View | None, j: int, b: View | None, cost: int) -> None:
            if a is not None and b is not None:
                apart(self.item(a, i), self.item(b, j), cost)

        ops, previous = self.graph.ops, -1
        for i, op in enumerate(ops):
            if isinstance(op, MatMul):
                outputs, inputs = self._tiles(op)
                stationary = op.out.cols * inputs
                whole = op.stationary()
                clash(i, op.x, i, whole, stationary)
                clash(i, op.x, i, op.residual, op.rows * outputs)
                clash(i, whole, i, op.residual, min(stationary, op.rows * outputs))
                if previous >= 0:
                    clash(previous, ops[previous].reads()["x"], i, whole, min(stationary, self.config.array_outputs))
                previous = i
            elif isinstance(op, (Norm, Multiply, ReduceWindow)):
                left = op.x.rows * -(-op.x.cols // self.config.chunk)  # reads that no Matmul has run beside yet
                if isinstance(op, ReduceWindow):
                    left = op.walk.rows * op.walk.count * -(-op.x.cols // (self.config.chunk * self.config.window_chunks))
                if isinstance(op, Multiply):
                    left += op.x.rows * -(-op.factor.cols // self.config.chunk)
                beside = range(i + 1, min(i + 1 + NORM_BESIDE, len(ops)))
                for j in (*(self._still(i) if self.graph.held else ()), *beside):
                    other = ops[j]
                    if isinstance(other, MatMul) and left > 0:
                        outputs, inputs = self._tiles(other)
                        cycles = min(left, other.rows * outputs * inputs)
                        clash(i, op.x, j, other.x, cycles)
                        clash(i, op.x, j, other.residual, cycles // inputs)
                        # Gamma and beta come first: while their bank is taken nothing of the LayerNorm moves.
                        first = self.item(op.factor, i) if isinstance(op, Multiply) else self.params[i]
                        apart(first, self.item(other.x, j), cycles)
                        left -= cycles
        return result

    def _still(self, i: int) -> Iterator[int]:
        """MatMuls in front of an operation of the vector unit that may still run when it begins, where blocks go in turns."""
        views = self.graph.ops[i].views().values()
        for j in range(i - 1, max(i - 1 - STILL, -1), -1):
            other = self.graph.ops[j]
            if isinstance(other, MatMul):
                if any(other.out.overlaps(view) for view in views):
                    return
                yield j

    def _tiles(self, op: MatMul) -> tuple[int, int]:
        """Tiles of a MatMul along its outputs and the inputs of all taps."""
        return -(-op.out.cols // self.config.array_outputs), op.taps * -(-op.x.cols // self.config.array_inputs)

    def item(self, view: View, i: int) -> Item:
        """The space of the view's buffer at operation i."""
        return next(item for span, item in self.spans[view.buffer] if span.first <= i <= span.last)

    # --- addresses --------------------------------------------------------------------------------------------------

    def address(self, view: View, i: int) -> int:
        """Chunk address of the view's first element at operation i."""
        return self.item(view, i).address + self.needs.layouts[view.buffer].start(view)

    def pitch(self, view: View) -> int:
        """Chunks from a row of the view to the next."""
        return self.needs.layouts[view.buffer].pitch

    def region(self, view: View, i: int, first: int = 0) -> Region:
        """Chunks of the view's rows from row `first` of it on."""
        layout = self.needs.layouts[view.buffer]
        start = self.address(view, i) + first * layout.pitch
        return Region(start, view.rows - first, layout.pitch, layout.chunks(view))

    def scale(self, view: View, i: int) -> int:
        """Scale memory entry of the view's first row at operation i."""
        item = next(item for span, item in self.maxima[view.buffer] if span.first <= i <= span.last)
        return item.address + view.row

    def places(self) -> dict[str, list[Place]]:
        """Where every buffer lies over time."""
        result = {}
        for name, pairs in self.spans.items():
            buffer, layout = self.graph.buffers[name], self.needs.layouts[name]
            columns = layout.columns(View(name, 0, buffer.rows, 0, buffer.cols))
            result[name] = [Place(s.first, s.last, t.address, layout.pitch, buffer.rows, columns) for s, t in pairs]
        return result
