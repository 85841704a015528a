"""Instructions of one task: liveness, allocation, then every operation in turn with its wait counts.

Program order is dispatch order: the sequencer hands instructions to the queues of their units in turn and stops at a full
queue. Every wait names earlier instructions, and weight streams and loads run ahead of their users by fewer instructions
than a queue holds, so the oldest unfinished instruction can always make progress.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import isa
from ..config import Config
from ..errors import UserError
from ..intgraph import ColScale, Constant, Convert, Indirect, Input, IntGraph, MatMul, Norm, RouteTokens, RowScale, View
from ..intgraph import RowMax as RowMaximum
from ..isa import Unit
from ..program import Place
from .allocate import Item, place, set_lead
from .hazards import Hazards, Region, fields_fit
from .layout import align
from .liveness import Span, buffer_accesses, final_reads, maximum_accesses, spans, steps, written
from .prepare import Needs

STREAM_LEAD = 6  # streams that may be dispatched before the Matmul of the first of them
GELU = {"none": isa.Gelu.ERF, "tanh": isa.Gelu.TANH}


class Emitter:
    """State of one task's emission: where everything lies, and the instructions so far.

    inputs, outputs: byte offsets, from the constants region's start, of each Input by op index and of each output by number.
    """

    def __init__(self, graph: IntGraph, config: Config, needs: Needs, inputs: dict[int, int], outputs: list[int]):
        self.graph, self.config, self.needs = graph, config, needs
        self.inputs, self.outputs = inputs, outputs
        self.steps = steps(graph, config)
        self.step_of = {i: s for s, step in enumerate(self.steps) for i in step}
        self.scratch: list[Item] = []
        self.scales: list[Item] = []
        self.spans: dict[str, list[tuple[Span, Item]]] = {}
        self.maxima: dict[str, list[tuple[Span, Item]]] = {}
        self.params: dict[int, Item] = {}  # Norm: gamma and beta
        self.tables: dict[int, Item] = {}  # MatMul: row multipliers
        self.stores = self._stores()
        self._allocate()
        self.hazards = Hazards(config.scratch_chunks + config.scale_entries + 1)
        self.queue = [Region(config.scratch_chunks + config.scale_entries)]
        # (instruction, op index, stream index or -1) in program order, streams apart until `program` merges them
        self.emitted: list[tuple[isa.Insn, int, int]] = []
        self.streams: list[tuple[isa.Stream, int, int]] = []  # (instruction, op index, position of its Route or -1)
        self.route_position = -1

    # --- allocation -------------------------------------------------------------------------------------------------

    def _stores(self) -> dict[int, list[tuple[int, int]]]:
        """Step -> outputs that are complete after it: their numbers and the operations that wrote them last."""
        last = {}
        for i, op in enumerate(self.graph.ops):
            out = written(op)
            if out is not None:
                last[out.buffer] = i
        result: dict[int, list[tuple[int, int]]] = {}
        for number, output in enumerate(self.graph.outputs):
            if output.view.buffer not in last:
                raise ValueError(f"output {output.name!r}: nothing writes {output.view.buffer!r}")
            writer = last[output.view.buffer]
            result.setdefault(self.step_of[writer], []).append((number, writer))
        return result

    def _allocate(self) -> None:
        graph, config, needs = self.graph, self.config, self.needs
        final = final_reads(graph)
        for name, accesses in buffer_accesses(graph).items():
            for span in self._merged(spans(name, accesses, final[name])):
                size = graph.buffers[name].rows * needs.layouts[name].pitch
                item = Item(f"buffer {name!r}", size, self.step_of[span.use], self.step_of[span.last])
                self.spans.setdefault(name, []).append((span, item))
        for name, accesses in maximum_accesses(graph).items():
            for span in self._merged(spans(name, accesses, set())):
                item = Item(
                    f"row maxima of {name!r}", graph.buffers[name].rows, self.step_of[span.first], self.step_of[span.last]
                )
                self.maxima.setdefault(name, []).append((span, item))
        for i, op in enumerate(graph.ops):
            step = self.step_of[i]
            if isinstance(op, Norm):
                size = 2 * (align(op.x.cols, config.chunk) // config.chunk)
                self.params[i] = Item(f"gamma and beta of {op.name!r}", size, step, step)
            elif isinstance(op, MatMul) and op.row_scale == RowScale.TABLE:
                self.tables[i] = Item(f"row multipliers of {op.name!r}", op.x.rows, step, step)
        loaded = [item for pairs in self.spans.values() for span, item in pairs if span.loads]
        set_lead([*loaded, *self.params.values(), *self.tables.values()])
        self.scratch = [*(item for pairs in self.spans.values() for _, item in pairs), *self.params.values()]
        self.scales = [*(item for pairs in self.maxima.values() for _, item in pairs), *self.tables.values()]
        # A row is read in whole accesses: none may run over the end of a bank.
        margin = max(config.input_chunks, config.output_chunks) - 1
        usable = config.bank_chunks - margin
        place(self.scratch, config.banks, usable, self._clashes(), "chunks of scratchpad", "bank_words or banks")
        for item in self.scratch:
            item.address += item.address // usable * margin
        place(self.scales, 1, config.scale_entries, {}, "entries of the scale memory", "scale_entries")

    def _merged(self, found: list[Span]) -> list[Span]:
        """Spans that meet in one step (blocks of rows) become one."""
        result: list[Span] = []
        for span in found:
            if result and self.step_of[result[-1].last] >= self.step_of[span.first]:
                before = result.pop()
                span = Span(span.buffer, before.first, span.last, before.use, before.loads)
            result.append(span)
        return result

    def _clashes(self) -> dict[tuple[int, int], int]:
        """Cost of two items in one bank: both are read while a Matmul runs or while the next one's tiles load."""
        number = {id(item): n for n, item in enumerate(self.scratch)}
        result: dict[tuple[int, int], int] = {}

        def clash(i: int, a: View | None, j: int, b: View | None, cost: int) -> None:
            if isinstance(a, View) and isinstance(b, View):
                pair = sorted((number[id(self._item(a, i))], number[id(self._item(b, j))]))
                if pair[0] != pair[1]:
                    result[pair[0], pair[1]] = result.get((pair[0], pair[1]), 0) + cost

        previous = None
        for i, op in enumerate(self.graph.ops):
            if isinstance(op, MatMul):
                clash(i, op.x, i, op.w, 4)
                clash(i, op.x, i, op.residual, 2)
                clash(i, op.w, i, op.residual, 1)
                if previous is not None:
                    clash(previous, self.graph.ops[previous].x, i, op.w, 2)
                previous = i
        return result

    def _item(self, view: View, i: int) -> Item:
        return next(item for span, item in self.spans[view.buffer] if span.first <= i <= span.last)

    # --- addresses --------------------------------------------------------------------------------------------------

    def _address(self, view: View, i: int) -> int:
        return self._item(view, i).address + self.needs.layouts[view.buffer].start(view)

    def _pitch(self, view: View) -> int:
        return self.needs.layouts[view.buffer].pitch

    def _region(self, view: View, i: int, first: int = 0, rows: int | None = None) -> Region:
        layout = self.needs.layouts[view.buffer]
        start = self._address(view, i) + first * layout.pitch
        return Region(start, view.rows if rows is None else rows, layout.pitch, layout.chunks(view))

    def _scale(self, view: View, i: int) -> int:
        item = next(item for span, item in self.maxima[view.buffer] if span.first <= i <= span.last)
        return item.address + view.row

    def _scale_region(self, address: int, rows: int) -> Region:
        return Region(self.config.scratch_chunks + address, 1, 1, rows)

    # --- instructions -----------------------------------------------------------------------------------------------

    def _emit(self, insn, i: int, reads: list[Region], writes: list[Region], stream: int = -1, **values) -> None:
        waits = self.hazards.issue(insn.unit, reads, writes)
        self.emitted.append((fields_fit(insn, self.graph.ops[i].name, waits | values), i, stream))

    def _load(self, i: int, address: int, rows: int, chunks: int, pitch: int, dram: int) -> None:
        self._emit(
            isa.Load,
            i,
            [],
            [Region(address, rows, pitch, chunks)],
            dram=dram // self.config.axi_bytes,
            dst=address,
            rows=rows,
            chunks=chunks,
            pitch=pitch,
        )

    def _load_view(self, i: int) -> None:
        """The transfer of a Constant or Input."""
        view, layout = self.graph.ops[i].out, self.needs.layouts[self.graph.ops[i].out.buffer]
        dram = self.inputs[i] if isinstance(self.graph.ops[i], Input) else self.needs.data[i]
        self._load(i, self._address(view, i), view.rows, layout.chunks(view), layout.pitch, dram)

    def _load_table(self, i: int) -> None:
        item = self.tables[i]
        self._emit(
            isa.LoadScales,
            i,
            [],
            [self._scale_region(item.address, item.size)],
            dram=self.needs.data[i] // self.config.axi_bytes,
            dst=item.address,
            count=item.size,
        )

    def _loads(self) -> tuple[dict[int, list[tuple]], set[int]]:
        """(step -> loads to issue at its start as (step of use, function, arguments); op indices that they take care of)."""
        found, moved = [], set()
        for pairs in self.spans.values():
            for span, item in pairs:
                moved.update(span.loads)
                found += [(item.first, self.step_of[span.use], self._load_view, (i,)) for i in span.loads]
        for i, item in self.params.items():
            chunks = item.size // 2
            arguments = (i, item.address, 2, chunks, chunks, self.needs.data[i])
            found.append((item.first, self.step_of[i], self._load, arguments))
        found += [(item.first, self.step_of[i], self._load_table, (i,)) for i, item in self.tables.items()]
        result: dict[int, list[tuple]] = {}
        for first, use, function, arguments in sorted(found, key=lambda entry: (entry[0], entry[1], entry[3])):
            result.setdefault(first, []).append((use, function, arguments))
        return result, moved

    def _blocks(self, op) -> Iterator[tuple[int, int]]:
        """(first row, rows) of the blocks a Matmul without queue is split into."""
        size = self.config.acc_rows
        for first in range(0, op.x.rows, size):
            yield first, min(size, op.x.rows - first)

    def _matmul(self, i: int, op: MatMul, first: int, rows: int) -> None:
        outputs, inputs = self.needs.sizes[i]
        expert = isa.NO_EXPERT if op.expert is None else op.expert[1]
        in_rows = op.x.rows if op.expert else rows
        out_rows = op.out.rows if op.expert else rows
        reads = [self._region(op.x, i, first, in_rows)]
        writes = [self._region(op.out, i, first, out_rows)]
        values: dict = {}
        if op.expert:
            reads += self.queue
        if op.x_convert != Convert.STATIC:
            values["x_scale"] = self._scale(op.x, i) + first
            reads.append(self._scale_region(values["x_scale"], in_rows))
        elif op.row_scale == RowScale.TABLE:
            values["x_scale"] = self.tables[i].address + first
            reads.append(self._scale_region(values["x_scale"], in_rows))
        if isinstance(op.w, View):
            values |= {"w_source": isa.WeightSource.SCRATCHPAD, "w_convert": op.w_convert}
            values |= {"w": self._address(op.w, i), "w_pitch": self._pitch(op.w)}
            reads.append(self._region(op.w, i))
            if op.w_convert == Convert.ROW:
                values["w_scale"] = self._scale(op.w, i)
                reads.append(self._scale_region(values["w_scale"], op.w.rows))
        if op.residual is not None:
            region = self._region(op.residual, i, first, op.residual.rows if op.expert else rows)
            values |= {"residual": 1, "res": region.start, "res_pitch": region.pitch}
            reads.append(region)
        if op.row_max != RowMaximum.NONE:
            values |= {"y_max": op.row_max, "max_continue": int(op.continue_max)}
            values["y_scale"] = self._scale(op.out, i) + first
            writes.append(self._scale_region(values["y_scale"], out_rows))
        if op.gelu is not None:
            values |= {"gelu": GELU[op.gelu[0]], "gelu_shift": op.gelu[1]}
        if op.col_scale == ColScale.IMMEDIATE:
            values["col_mult"] = int(op.col_mult)
        if op.row_scale == RowScale.IMMEDIATE:
            values["row_mult"] = int(op.row_mult)
        stream = -1
        if i in self.needs.weights:
            stream = len(self.streams)
            self._stream(i, expert)
        self._emit(
            isa.Matmul,
            i,
            reads,
            writes,
            stream,
            rows=out_rows if op.indirect == Indirect.SCATTER else in_rows,
            inputs=inputs,
            outputs=outputs,
            x=self._region(op.x, i, first, in_rows).start,
            x_pitch=self._pitch(op.x),
            x_convert=op.x_convert,
            col_source=op.col_scale,
            row_source=op.row_scale,
            indirect=op.indirect,
            shift=op.shift,
            expert=expert,
            y=writes[0].start,
            y_pitch=writes[0].pitch,
            **values,
        )

    def _stream(self, i: int, expert: int) -> None:
        word, words = self.needs.weights[i]
        waits = self.hazards.issue(Unit.WEIGHTS, self.queue if expert != isa.NO_EXPERT else [], [])
        values = waits | {"dram": word * self.config.slice_beats, "words": words, "expert": expert}
        insn = fields_fit(isa.Stream, self.graph.ops[i].name, values)
        self.streams.append((insn, i, self.route_position if expert != isa.NO_EXPERT else -1))

    def _norm(self, i: int, op: Norm) -> None:
        params = self.params[i]
        y_scale = self._scale(op.out, i)
        reads = [self._region(op.x, i), Region(params.address, 1, 1, params.size)]
        self._emit(
            isa.Norm,
            i,
            reads,
            [self._region(op.out, i), self._scale_region(y_scale, op.out.rows)],
            rows=op.x.rows,
            columns=op.x.cols,
            x=reads[0].start,
            x_pitch=reads[0].pitch,
            y=self._address(op.out, i),
            y_pitch=self._pitch(op.out),
            y_scale=y_scale,
            params=params.address,
            epsilon=op.epsilon,
        )

    def _route(self, i: int, op: RouteTokens) -> None:
        x = self._region(op.logits, i)
        values, writes = {}, list(self.queue)
        if op.dense is not None:
            y = self._region(op.dense, i)
            values = {"dense": 1, "y": y.start, "y_pitch": y.pitch}
            writes.append(y)
        values |= {"rows": x.rows, "experts": op.logits.cols, "top_k": op.top_k, "renormalise": int(op.renormalise)}
        self._emit(isa.Route, i, [x], writes, x=x.start, x_pitch=x.pitch, **values)
        self.route_position = len(self.emitted) - 1

    def _store(self, number: int, i: int) -> None:
        view = self.graph.outputs[number].view
        region = self._region(view, i)
        self._emit(
            isa.Store,
            i,
            [region],
            [],
            dram=self.outputs[number] // self.config.axi_bytes,
            src=region.start,
            rows=region.rows,
            chunks=region.width,
            pitch=region.pitch,
        )

    def program(self) -> tuple[list[isa.Insn], list[str], dict[str, list[Place]]]:
        """(instructions, name of the operation of each, places of the buffers)."""
        loads, moved = self._loads()
        for s, step in enumerate(self.steps):
            for _, function, arguments in loads.get(s, ()):
                function(*arguments)
            rest = [i for i in step if i not in moved]
            if len(rest) > 1:
                self._run_blocks(rest)
            else:
                for i in rest:
                    self._operation(i)
            for number, writer in self.stores.get(s, ()):
                self._store(number, writer)
        end = fields_fit(isa.End, "end of program", self.hazards.everything())
        merged = [*self._merge_streams(), (end, -1)]
        origins = [self.graph.ops[i].name if i >= 0 else "" for _, i in merged]
        return [insn for insn, _ in merged], origins, self._places()

    def _operation(self, i: int) -> None:
        op = self.graph.ops[i]
        match op:
            case Constant() | Input():
                self._load_view(i)
            case Norm():
                self._norm(i, op)
            case RouteTokens():
                self._route(i, op)
            case MatMul():
                for first, rows in [(0, op.x.rows)] if op.expert else self._blocks(op):
                    self._matmul(i, op, first, rows)

    def _run_blocks(self, step: list[int]) -> None:
        """One block of rows through all MatMuls of the step, then the next; see liveness.steps."""
        ops = [self.graph.ops[i] for i in step]
        if not all(isinstance(op, MatMul) for op in ops):
            raise UserError(f"{ops[0].name}: acc_rows={self.config.acc_rows} must be at least {ops[0].x.rows}")
        for first, rows in self._blocks(ops[0]):
            for i, op in zip(step, ops, strict=True):
                self._matmul(i, op, first, rows)

    def _merge_streams(self) -> Iterator[tuple[isa.Insn, int]]:
        """All instructions with every Stream STREAM_LEAD streamed Matmuls before its own, behind the Route it looks at."""
        users = [position for position, (_, _, stream) in enumerate(self.emitted) if stream >= 0]
        at: dict[int, list[tuple[isa.Insn, int]]] = {}
        last = 0
        for k, (insn, i, route) in enumerate(self.streams):
            last = max(last, users[k - STREAM_LEAD] if k >= STREAM_LEAD else 0, route + 1)
            at.setdefault(last, []).append((insn, i))
        for position, (insn, i, _) in enumerate(self.emitted):
            yield from at.get(position, ())
            yield insn, i

    def _places(self) -> dict[str, list[Place]]:
        result = {}
        for name, pairs in self.spans.items():
            buffer, layout = self.graph.buffers[name], self.needs.layouts[name]
            columns = layout.columns(View(name, 0, buffer.rows, 0, buffer.cols))
            result[name] = [Place(s.first, s.last, t.address, layout.pitch, buffer.rows, columns) for s, t in pairs]
        return result
