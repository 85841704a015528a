"""Instructions of one task: liveness, allocation, then every operation in turn with its wait counts.

Program order is dispatch order: the sequencer hands instructions to the queues of their units in turn and stops at a
full queue. Every wait names earlier instructions, and weight streams and loads run ahead of their users by fewer
instructions than a queue holds, so the oldest unfinished instruction can always make progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from typing import Any

from .. import isa
from ..config import Config
from ..errors import Shortage
from ..intgraph import (
    Constant,
    Fetch,
    Input,
    IntGraph,
    MatMul,
    Multiply,
    Norm,
    ReduceWindow,
    RouteTokens,
    ScanRows,
    SelectRows,
    Spill,
    Transfer,
)
from ..isa import ColScale, Convert, Indirect, RowMax, RowScale
from ..program import Place
from ..walks import Walk
from .footprint import KEPT, addresses, footprint
from .hazards import Hazards, fields_fit, walk_fields
from .liveness import steps
from .prepare import Needs
from .spaces import Spaces

Load = tuple[int, Callable[..., None], tuple[int, ...]]  # step of use, function that emits it, its arguments
STREAM_LEAD = isa.QUEUE_DEPTH - 2  # streams that may be dispatched before the Matmul of the first of them


class Emitter:
    """State of one task's emission: where everything lies, and the instructions so far.

    inputs, outputs: byte offsets from the constants region's start, of each Input by op index, of each output by number;
    spills: of the region of buffers in DRAM.
    """

    def __init__(
        self, graph: IntGraph, config: Config, needs: Needs, inputs: dict[int, int], outputs: list[int], spills: int
    ):
        self.graph, self.config, self.needs = graph, config, needs
        self.inputs, self.outputs, self.spills = inputs, outputs, spills // config.axi_bytes
        self.steps = steps(graph, config)
        self.step_of = {i: s for s, step in enumerate(self.steps) for i in step}
        self.spaces = Spaces(graph, config, needs, self.step_of)
        self.stores = self._stores()
        self.hazards = Hazards(addresses(config, needs.areas.size))
        # (instruction, op index, stream index or -1) in program order, streams apart until `program` merges them
        self.emitted: list[tuple[isa.Insn, int, int]] = []
        self.streams: list[tuple[isa.Insn, int, int]] = []  # (instruction, op index, position of its Route or -1)
        self.route_position = -1
        self.early_words = 0  # weight words of the latest Route's experts that are streamed without waiting for it

    def _stores(self) -> dict[int, list[tuple[int, int]]]:
        """Step -> outputs that are complete after it: their numbers and the operations that wrote them last."""
        last: dict[str, int] = {}
        for i, op in enumerate(self.graph.ops):
            last |= {view.buffer: i for view in op.writes().values()}
        result: dict[int, list[tuple[int, int]]] = {}
        for number, output in enumerate(self.graph.outputs):
            if output.view.buffer not in last:
                raise ValueError(f"output {output.name!r}: nothing writes {output.view.buffer!r}")
            if self.graph.buffers[output.view.buffer].dram:
                continue  # it lies where the host looks for it
            writer = last[output.view.buffer]
            result.setdefault(self.step_of[writer], []).append((number, writer))
        return result

    # --- instructions -----------------------------------------------------------------------------------------------

    def _emit(self, kind: type[isa.Insn], i: int, stream: int = -1, walk: Walk | None = None, **values: Any) -> None:
        """The instruction, behind its walk where it has one."""
        if walk is not None:
            name = self.graph.ops[i].name
            self.emitted.append((fields_fit(isa.WALKS[kind], name, walk_fields(name, walk)), i, -1))
        self.emitted.append((self._waiting(kind, i, values, walk), i, stream))

    def _waiting(self, kind: type[isa.Insn], i: int, values: dict[str, Any], walk: Walk | None = None) -> isa.Insn:
        """The instruction, with its wait counts."""
        op = self.graph.ops[i]
        reads, writes = footprint(kind(**values), op, self.config, walk, self.spills)
        assert kind.unit is not None
        read = [region for field, region in reads if field != KEPT]
        waits = self.hazards.issue(kind.unit, read, [region for _, region in writes])
        return fields_fit(kind, op.name, waits | values)

    def _load(self, i: int, address: int, rows: int, chunks: int, pitch: int, dram: int, narrow: bool = False) -> None:
        beat = dram // self.config.axi_bytes
        self._emit(isa.Load, i, dram=beat, dst=address, rows=rows, chunks=chunks, pitch=pitch, narrow=int(narrow))

    def _load_view(self, i: int) -> None:
        """The transfer of a Constant, Input or Fetch."""
        op = self.graph.ops[i]
        if isinstance(op, Fetch):
            self._transfer(i, op)
            return
        view = op.writes()["out"]
        layout = self.needs.layouts[view.buffer]
        dram = self.inputs[i] if isinstance(op, Input) else self.needs.data[i]
        place = self.spaces.address(view, i), view.rows, layout.chunks(view), layout.pitch
        self._load(i, *place, dram, i in self.needs.narrow)

    def _load_params(self, i: int) -> None:
        """The parameters of a Norm or a ReduceWindow: two rows, then weights; of several kinds of weights all of it as one."""
        item, op = self.spaces.params[i], self.graph.ops[i]
        weights = self.needs.sizes[i][1] if isinstance(op, ReduceWindow) else 0
        chunks, apart = item.size // (2 + weights), i in self.needs.taps
        self._load(i, item.address, 2 if apart else 2 + weights, chunks, chunks, self.needs.data[i])
        if apart:
            self._load(i, item.address + 2 * chunks, weights, chunks, chunks, self.needs.taps[i], True)

    def _transfer(self, i: int, op: Transfer) -> None:
        """Loads of a Fetch, or Stores of a Spill."""
        inside = self.spaces.region(op.x if isinstance(op, Spill) else op.out, i)
        for part in self.needs.areas.parts(op):
            dram = self.spills + part.address * self.config.chunk_beats
            values: dict[str, Any] = {"dram": dram, "rows": part.rows, "chunks": part.chunks}
            kind, end = (isa.Store, "src") if isinstance(op, Spill) else (isa.Load, "dst")
            self._emit(kind, i, **values | {end: inside.start + part.column}, pitch=inside.pitch)

    def _load_table(self, i: int) -> None:
        item = self.spaces.tables[i]
        self._emit(isa.LoadScales, i, dram=self.needs.data[i] // self.config.axi_bytes, dst=item.address, count=item.size)

    def _loads(self) -> tuple[dict[int, list[Load]], set[int]]:
        """Loads to issue at the start of each step, as (step of use, function, arguments), and the operations they cover."""
        found: list[tuple[int, Load]] = []
        moved: set[int] = set()
        for pairs in self.spaces.spans.values():
            for span, item in pairs:
                moved.update(span.loads)
                found += [(item.first, (self.step_of[span.use], self._load_view, (i,))) for i in span.loads]
        for i, item in self.spaces.params.items():
            found.append((max(item.first, item.load), (self.step_of[i], self._load_params, (i,))))
        for i, item in self.spaces.tables.items():
            found.append((max(item.first, item.load), (self.step_of[i], self._load_table, (i,))))
        result: dict[int, list[Load]] = {}
        for first, load in sorted(found, key=lambda entry: (entry[0], entry[1][0], entry[1][2])):
            result.setdefault(first, []).append(load)
        return result, moved

    def _blocks(self, op: MatMul) -> Iterator[tuple[int, int, Walk | None]]:
        """(first row, rows, walk) of the blocks a Matmul without queue is split into; a part of a walk starts where it does."""
        size = self.config.acc_rows
        if op.walk is not None:
            yield from ((0, part.rows, part) for part in op.walk.parts(size))
            return
        for first in range(0, op.x.rows, size):
            yield first, min(size, op.x.rows - first), None

    def _matmul(self, i: int, op: MatMul, first: int, rows: int, walk: Walk | None = None) -> None:
        spaces, (outputs, inputs) = self.spaces, self.needs.sizes[i]
        expert = isa.NO_EXPERT if op.expert is None else op.expert[1]
        x, y = spaces.region(op.x, i, first), spaces.region(op.out, i, first)
        values: dict[str, Any] = {"x": x.start, "x_pitch": x.pitch, "y": y.start, "y_pitch": y.pitch}
        values |= {"inputs": inputs, "outputs": outputs, "shift": op.shift, "expert": expert, "indirect": op.indirect}
        values |= {"x_convert": op.x_convert, "col_source": op.col_scale, "row_source": op.row_scale}
        values["rows"] = rows if not op.expert else op.out.rows if op.indirect == Indirect.SCATTER else op.x.rows
        if op.x_convert != Convert.STATIC:
            values["x_scale"] = spaces.scale(op.x, i) + first
        elif op.row_scale == RowScale.TABLE:
            values["x_scale"] = spaces.tables[i].address + first
        if (whole := op.stationary()) is not None:
            values |= {"w_source": isa.WeightSource.SCRATCHPAD, "w_convert": op.w_convert}
            values |= {"w": spaces.address(whole, i), "w_pitch": spaces.pitch(whole)}
            if op.w_convert == Convert.ROW:
                values["w_scale"] = spaces.scale(whole, i)
        if op.residual is not None:
            region = spaces.region(op.residual, i, first)
            values |= {"residual": 1, "res": region.start, "res_pitch": region.pitch}
        if op.row_max != RowMax.NONE:
            values |= {"y_max": op.row_max, "max_continue": int(op.continue_max), "y_scale": spaces.scale(op.out, i) + first}
        if op.gelu is not None:
            values |= {"gelu": isa.Gelu[op.gelu[0].upper()], "gelu_shift": op.gelu[1]}
        if op.col_scale == ColScale.IMMEDIATE:
            values["col_mult"] = int(op.col_mult)
        if op.row_scale == RowScale.IMMEDIATE:
            values["row_mult"] = int(op.row_mult)
        stream = -1
        if i in self.needs.weights:
            stream = len(self.streams)
            values["discard"] = int(expert != isa.NO_EXPERT and self._early(i))
            self._stream(i, isa.NO_EXPERT if values["discard"] else expert)
        self._emit(isa.Matmul, i, stream, walk, **values)

    def _early(self, i: int) -> bool:
        """Whether an expert's weights are streamed before its queue is known: those of the first experts, as far as the
        buffer holds them. They arrive while attention leaves DRAM idle; where the queue turns out empty they are dropped.
        """
        words = self.early_words + self.needs.weights[i][1]
        fits = words <= self.config.weight_words
        self.early_words = words if fits else self.config.weight_words + 1  # a later one must not overtake
        return fits

    def _stream(self, i: int, expert: int) -> None:
        first, words, bits, beats = self.needs.weights[i]
        values = {"dram": first, "words": words, "expert": expert, "narrow": bits, "beats": beats if bits else 0}
        insn = self._waiting(isa.Stream, i, values)
        self.streams.append((insn, i, self.route_position if expert != isa.NO_EXPERT else -1))

    def _norm(self, i: int, op: Norm) -> None:
        params = self.spaces.params[i].address
        self._rows(isa.Norm, i, op, columns=op.x.cols, params=params, epsilon=op.epsilon, centred=int(op.centred))

    def _multiply(self, i: int, op: Multiply) -> None:
        factor, (columns, period) = self.spaces.region(op.factor, i), self.needs.sizes[i]
        pitch = factor.pitch if factor.rows > 1 else 0  # one row of factors for all of x
        values: dict[str, Any] = {"factor": factor.start, "factor_pitch": pitch, "period": -(-period // self.config.chunk)}
        self._rows(isa.Multiply, i, op, columns=columns, pairs=int(op.pairs), shift=op.shift, **values)

    def _window(self, i: int, op: ReduceWindow) -> None:
        columns, params = self.needs.sizes[i][0], self.spaces.params[i].address
        values: dict[str, Any] = {"columns": columns, "reduce": op.reduce, "before": op.before, "shift": op.shift}
        if op.gelu is not None:
            values |= {"gelu": isa.Gelu[op.gelu[0].upper()], "gelu_shift": op.gelu[1]}
        for walk, weights in op.parts:
            for part in walk.parts(self.config.acc_rows):
                self._rows(isa.ReduceWindow, i, op, part, params=params, **values)
            params += (2 + (0 if weights is None else len(weights))) * -(-columns // self.config.chunk)

    def _rows(
        self, kind: type[isa.RowInsn], i: int, op: Norm | Multiply | ReduceWindow, walk: Walk | None = None, **values: Any
    ) -> None:
        """An instruction that makes rows from rows."""
        x, y = self.spaces.region(op.x, i), self.spaces.region(op.out, i)
        values |= {"x": x.start, "x_pitch": x.pitch, "y": y.start, "y_pitch": y.pitch}
        values["rows"] = x.rows if walk is None else walk.rows
        values["y_max"] = int(op.row_max != RowMax.NONE)
        if values["y_max"]:
            values["y_scale"] = self.spaces.scale(op.out, i)
        self._emit(kind, i, -1, walk, **values)

    def _route(self, i: int, op: RouteTokens) -> None:
        x = self.spaces.region(op.logits, i)
        values: dict[str, Any] = {"dense": int(op.dense is not None)}
        if op.dense is not None:
            y = self.spaces.region(op.dense, i)
            values |= {"y": y.start, "y_pitch": y.pitch}
        values |= {"rows": x.rows, "experts": op.logits.cols, "top_k": op.top_k, "renormalise": int(op.renormalise)}
        self._emit(isa.Route, i, x=x.start, x_pitch=x.pitch, **values)
        self.route_position = len(self.emitted) - 1
        self.early_words = 0

    def _select(self, i: int, op: SelectRows) -> None:
        x, y, scores = (self.spaces.region(view, i) for view in (op.x, op.out, op.scores))
        values: dict[str, Any] = {"x": x.start, "x_pitch": x.pitch, "y": y.start, "y_pitch": y.pitch}
        values |= {"rows": y.rows, "first": op.first, "scores": scores.start, "scores_pitch": scores.pitch}
        columns = int(self.needs.layouts[op.x.buffer].columns(op.x)[-1]) + 1
        self._emit(isa.Select, i, columns=columns, score_rows=op.scores.rows, score_columns=op.scores.cols, **values)

    def _scan(self, i: int, op: ScanRows) -> None:
        values: dict[str, Any] = {"rows": op.out.rows, "columns": op.x.cols, "states": op.states, "backwards": int(op.backwards)}
        values["beats"], values["group"] = self.config.scan_beats(op.x.cols, op.states)
        for name, view in (("x", op.x), ("y", op.out), ("steps", op.steps), ("mix", op.mix), ("params", op.rates)):
            region = self.spaces.region(view, i)
            last = (region.rows - 1) * region.pitch if op.backwards and name != "params" else 0
            values |= {name: region.start + last, f"{name}_pitch": region.pitch}
        names = "steps_shift", "step_shift", "fed_shift", "decay_shift", "skip_shift", "shift"
        self._emit(isa.Scan, i, **values, **dict(zip(names, astuple(op.shifts), strict=True)))

    def _store(self, number: int, i: int) -> None:
        region = self.spaces.region(self.graph.outputs[number].view, i)
        dram = self.outputs[number] // self.config.axi_bytes
        self._emit(isa.Store, i, dram=dram, src=region.start, rows=region.rows, chunks=region.width, pitch=region.pitch)

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
        return [insn for insn, _ in merged], origins, self.spaces.places()

    def _operation(self, i: int) -> None:
        op = self.graph.ops[i]
        match op:
            case Constant() | Input() | Fetch():
                self._load_view(i)
            case Spill():
                self._transfer(i, op)
            case Norm():
                self._norm(i, op)
            case Multiply():
                self._multiply(i, op)
            case ReduceWindow():
                self._window(i, op)
            case SelectRows():
                self._select(i, op)
            case ScanRows():
                self._scan(i, op)
            case RouteTokens():
                self._route(i, op)
            case MatMul():
                for first, rows, walk in [(0, op.x.rows, None)] if op.expert else self._blocks(op):
                    self._matmul(i, op, first, rows, walk)

    def _run_blocks(self, step: list[int]) -> None:
        """One block of rows through all MatMuls of the step, then the next; see liveness.steps."""
        ops = [op for op in (self.graph.ops[i] for i in step) if isinstance(op, MatMul)]
        if len(ops) < len(step):
            first, have = self.graph.ops[step[0]], self.config.acc_rows
            need = first.row_views()["x"].rows
            raise Shortage(f"{first.name}: acc_rows={have} must be at least {need}", "acc_rows", need / have)
        for begin, rows, _ in self._blocks(ops[0]):
            for i, op in zip(step, ops, strict=True):
                self._matmul(i, op, begin, rows)

    def _image_first(self) -> list[int]:
        """Of each Stream the Loads that it waits for, though it reads nothing of them: weights that are wanted behind the image
        come behind it, else the ports that carry them take most of DRAM from the one that carries the image, and the array has
        nothing to do.

        The first product of rows of inputs has its weights at once. The next ones, for other rows, wait for what these load,
        and the one behind them for all of it, so that those behind that one do.
        """
        inputs = {op.out.buffer for op in self.graph.ops if isinstance(op, Input)}
        loads: dict[int, int] = {}  # that the first products wait for, by their streams
        most = 0
        for insn, i, stream in self.emitted:
            if isinstance(insn, isa.Matmul):
                op = self.graph.ops[i]
                if not (isinstance(op, MatMul) and op.x.buffer in inputs):
                    break
                most = max(most, insn.wait_load)
                if stream >= 0:
                    loads[stream] = most if loads else 0
        return [loads.get(k, most if k == len(loads) else 0) for k in range(len(self.streams))]

    def _merge_streams(self) -> Iterator[tuple[isa.Insn, int]]:
        """All instructions, every Stream STREAM_LEAD streamed Matmuls before its own, but behind the Route that it looks at and
        the Loads that it waits for."""
        users = [position for position, (_, _, stream) in enumerate(self.emitted) if stream >= 0]
        loads = [-1, *(position for position, (insn, _, _) in enumerate(self.emitted) if insn.unit == isa.Unit.LOAD)]
        at: dict[int, list[tuple[isa.Insn, int]]] = {}
        last = 0
        for k, ((insn, i, route), wait) in enumerate(zip(self.streams, self._image_first(), strict=True)):
            last = max(last, users[k - STREAM_LEAD] if k >= STREAM_LEAD else 0, route + 1, loads[wait] + 1)
            at.setdefault(last, []).append((replace(insn, wait_load=max(insn.wait_load, wait)), i))
        for position, (insn, i, _) in enumerate(self.emitted):
            yield from at.get(position, ())
            yield insn, i
