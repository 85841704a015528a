"""Executes the integer graph with NumPy: the reference for machine and RTL, bit for bit.

All arithmetic is `hwgen.numerics`; this file only moves rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hwgen import numerics as num
from hwgen.errors import UserError
from hwgen.intgraph import (
    Constant,
    Input,
    IntGraph,
    MatMul,
    Multiply,
    Norm,
    ReduceWindow,
    RouteTokens,
    ScanRows,
    SelectRows,
    Transfer,
    View,
)
from hwgen.isa import ColScale, Convert, Indirect, Reduce, RowMax, RowScale
from hwgen.patches import pad, patchify
from hwgen.walks import taken

Array = np.ndarray


@dataclass
class Result:
    """What one image gave.

    buffers    name -> int16 [rows, cols] at the end
    outputs    ONNX output name -> float32 in the ONNX shape without the batch axis
    snapshots  op name -> copy of its out view right after it ran (of `RouteTokens`: the dense view); with trace only
    values     float value name -> copy of the view that `IntGraph.trace` gives it, at that moment; with trace only
    queues     (route name, expert) -> (tokens, gate scores u16) as routed last
    """

    buffers: dict[str, Array]
    outputs: dict[str, Array]
    snapshots: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    queues: dict[tuple[str, int], tuple[Array, Array]] = field(default_factory=dict)


@dataclass
class _State:
    buffers: dict[str, Array]  # int16 [rows, cols]
    maxima: dict[str, Array]  # row maxima of each buffer, int64 [rows]
    previous: dict[RowMax, Array]  # row maxima of the last MatMul of each kind
    queues: dict[tuple[str, int], tuple[Array, Array]]

    def read(self, view: View, rows: Array | None = None) -> Array:
        rows = slice(view.row, view.row + view.rows) if rows is None else view.row + rows
        return self.buffers[view.buffer][rows, view.col : view.col + view.cols]

    def write(self, view: View, data: Array, rows: Array | None = None) -> None:
        rows = slice(view.row, view.row + len(data)) if rows is None else view.row + rows
        self.buffers[view.buffer][rows, view.col : view.col + view.cols] = data


def quantise_image(op: Input, image: Array) -> Array:
    """Image [C, H, W] -> int16 [patches, C*ph*pw]: 256 times the int8 value, or with all bits."""
    image = np.asarray(image)
    if image.shape != tuple(op.shape):
        raise UserError(f"input {op.image!r} has shape {list(image.shape)}, the model needs {list(op.shape)}")
    pixels = num.quantise_image(pad(image.astype(np.float64), op.pads), op.step, op.offset, op.fine)
    return patchify(pixels, op.patch, op.stride)


Operands = dict[int, Array]  # by index of the operation: its constant weights as `numerics.product` takes them


def operands(graph: IntGraph) -> Operands:
    """The constant weights as operands: made once for several images, they save a conversion each."""
    return {
        i: op.w.astype(num.OPERAND) for i, op in enumerate(graph.ops) if isinstance(op, MatMul) and not isinstance(op.w, View)
    }


def run(graph: IntGraph, images: dict[str, Array], trace: bool = False, weights: Operands | None = None) -> Result:
    """One run of the graph. `images`: ONNX input name -> float [C, H, W]; UserError where one is wrong.

    A graph for a batch takes [batch, C, H, W] and gives its outputs with that axis in front.
    weights: `operands` of the graph, where it runs several times.
    """
    weights = weights or {}
    state = _State(
        {b.name: np.zeros((b.rows, b.cols), np.int16) for b in graph.buffers.values()},
        {b.name: np.zeros(b.rows, np.int64) for b in graph.buffers.values()},
        {},
        {},
    )
    snapshots: dict[str, Array] = {}
    values: dict[str, Array] = {}
    traced: dict[str, list[str]] = {}
    for name, (_, op_name) in graph.trace.items():
        traced.setdefault(op_name, []).append(name)
    for i, op in enumerate(graph.ops):
        match op:
            case Constant():
                state.write(op.out, op.data)
            case Input():
                if op.image not in images:
                    raise UserError(f"no array {op.image!r} (the model's input) among {sorted(images)}")
                image = images[op.image] if graph.batch == 1 else images[op.image][op.index]
                state.write(op.out, quantise_image(op, image)[op.row : op.row + op.out.rows])
            case MatMul():
                _matmul(state, op, weights.get(i))
            case Norm():
                _finish(state, op, num.layer_norm(state.read(op.x), op.gamma, op.beta, op.epsilon, op.centred))
            case Multiply():
                x, factor = state.read(op.x), state.read(op.factor)
                _finish(state, op, num.turn(x, factor) if op.pairs else num.multiply(x, factor, op.shift))
            case ReduceWindow():
                _reduce_window(state, op)
            case RouteTokens():
                _route(state, op)
            case SelectRows():
                order = num.ranked(state.read(op.scores).reshape(-1))[op.first : op.first + op.out.rows]
                state.write(op.out, state.read(op.x, order))
            case ScanRows():
                read = (state.read(view) for view in (op.x, op.steps, op.mix, op.rates))
                state.write(op.out, num.scan(*read, op.shifts, op.backwards))
            case Transfer():
                state.write(op.out, state.read(op.x))
        if trace:
            view = op.dense if isinstance(op, RouteTokens) else op.out
            if view is not None:
                snapshots[op.name] = state.read(view).copy()
            for name in traced.get(op.name, ()):
                values[name] = state.read(graph.trace[name][0]).copy()
    outputs: dict[str, list[Array]] = {}
    for o in graph.outputs:
        rows = state.read(o.view).T if o.transposed else state.read(o.view)
        outputs.setdefault(o.name, []).append((rows * np.float64(o.scale)).astype(np.float32).reshape(o.shape))
    joined = {name: parts[0] if graph.batch == 1 else np.stack(parts) for name, parts in outputs.items()}
    return Result(state.buffers, joined, snapshots, values, state.queues)


def _finish(state: _State, op: Norm | Multiply, y: Array) -> None:
    state.write(op.out, y)
    if op.row_max != RowMax.NONE:
        state.maxima[op.out.buffer][op.out.row : op.out.row + op.out.rows] = num.row_max_abs(y)


def _matmul(state: _State, op: MatMul, weights: Array | None) -> None:
    tokens = gates = None
    count = op.x.rows
    if op.expert is not None:
        tokens, gates = state.queues[op.expert]
        count = len(tokens)
        if count == 0:
            return
    in_order = np.arange(count) if op.walk is None else op.walk.y_rows()
    x_rows = tokens if op.indirect == Indirect.GATHER else in_order
    y_rows = tokens if op.indirect == Indirect.SCATTER else in_order
    if op.walk is not None:
        count, taps = op.walk.rows, op.walk.x_rows()
        x_rows = np.maximum(taps[0], 0)  # what lies beyond the border is zero: the row scale of another row does no harm
        parts = [_convert(state, op.x, op.x_convert, np.maximum(rows, 0)) for rows in taps]
        x = np.concatenate([part[0] * (rows >= 0)[:, None] for part, rows in zip(parts, taps, strict=True)], axis=1)
        _, row_mult, exponent = parts[0]
    else:
        x, row_mult, exponent = _convert(state, op.x, op.x_convert, x_rows)
    if isinstance(op.w, View):
        w, w_scale, _ = _convert(state, op.w, op.w_convert, np.arange(op.w.rows))
    else:
        w, w_scale = op.w if weights is None else weights, None
    if op.row_scale != RowScale.CONVERTED:
        exponent = np.zeros(count, np.int64)
    if op.row_scale == RowScale.TABLE:
        row_mult = np.asarray(op.row_mult, np.int64)[x_rows]
    elif op.row_scale == RowScale.IMMEDIATE:
        row_mult = np.full(count, op.row_mult, np.int64)
    if op.indirect == Indirect.SCATTER:
        row_mult = num.gated_scale(row_mult, gates)
    col_mult = w_scale if op.col_scale == ColScale.ROW_SCALES else np.asarray(op.col_mult, np.int64)
    bias = 0 if op.bias is None else np.asarray(op.bias, np.int64)

    y = num.requantise(num.product(x, w), col_mult, row_mult[:, None], op.shift + exponent[:, None], bias)
    if op.gelu is not None:
        y = num.gelu(y, *op.gelu)
    if op.residual is not None:
        y = num.add_residual(state.read(op.residual, y_rows), y)
    state.write(op.out, y, y_rows)

    if op.row_max != RowMax.NONE:
        peak = num.row_max_abs(y) if op.row_max == RowMax.ABS else y.max(axis=1)
        if op.continue_max:
            peak = np.maximum(peak, state.previous[op.row_max])
        state.previous[op.row_max] = peak
        state.maxima[op.out.buffer][op.out.row + in_order] = peak


def _reduce_window(state: _State, op: ReduceWindow) -> None:
    x = state.read(op.x)
    for walk, weights in op.parts:
        taps, y_rows = walk.x_rows(), walk.y_rows()
        total = num.reduce_window(taken(x, taps), weights, taps >= 0 if op.reduce == Reduce.MAX else None)
        y = num.window_post(total, op.mult, op.before, op.shift, op.bias)
        if op.gelu is not None:
            y = num.gelu(y, *op.gelu)
        state.write(op.out, y, y_rows)
        if op.row_max != RowMax.NONE:
            state.maxima[op.out.buffer][op.out.row + y_rows] = num.row_max_abs(y)


def _convert(state: _State, view: View, convert: Convert, rows: Array) -> tuple[Array, Array | None, Array]:
    """int8 rows of a view; each row's multiplier (RowScale.CONVERTED), None for STATIC; the exponent that goes with it."""
    data = state.read(view, rows)
    peak = state.maxima[view.buffer][view.row + rows]
    none = np.zeros(len(rows), np.int64)
    if convert == Convert.STATIC:
        return num.quantise_static(data), None, none
    if convert == Convert.ROW:
        return *num.quantise_rows(data, peak), none
    p = num.probabilities(data, peak)
    return p, *num.reciprocal(p.sum(axis=1))


def _route(state: _State, op: RouteTokens) -> None:
    logits = state.read(op.logits)
    experts, scores = num.route(logits, op.top_k, op.renormalise)
    for e in range(op.logits.cols):
        tokens, slot = np.nonzero(experts == e)
        state.queues[op.name, e] = tokens, scores[tokens, slot]
    if op.dense is not None:
        gates = np.zeros(logits.shape, np.int64)
        np.put_along_axis(gates, experts, num.saturate(scores, num.INT16_MAX), axis=1)
        state.write(op.dense, gates)
