"""What a task needs from DRAM, before anything is allocated: packed weights, constants, image inputs, outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import numerics as num
from ..config import Config
from ..errors import Shortage, UserError
from ..intgraph import (
    Constant,
    Input,
    IntGraph,
    MatMul,
    Multiply,
    Norm,
    Op,
    ReduceWindow,
    RouteTokens,
    ScanRows,
    SelectRows,
    View,
)
from ..isa import INDEX_BITS, ROW_BITS, WINDOW_TAPS, ColScale, Convert, Indirect, RowMax, RowScale
from ..program import RowLayout
from .areas import Areas
from .layout import (
    DataStore,
    Layout,
    WeightStore,
    align,
    chunk_bytes,
    fits_narrow,
    layout_of,
    pack_rows,
    pack_stream,
    stream_words,
)
from .narrow import choose, fitting_once, pack, stripe

Array = np.ndarray


@dataclass
class Needs:
    """Layouts and DRAM addresses of one task, by op index.

    `weights`: of a MatMul, the Stream that brings them: first beat, words, bits of a code (0: bytes), beats. `data`: byte offset
    in the constants region, of a Constant, of gamma and beta of a Norm, of multipliers and biases of a ReduceWindow, of the row
    multipliers of a MatMul. `taps`: likewise of the weights of a ReduceWindow, as int8. `sizes`: physical (outputs, inputs) of
    a MatMul, (columns of x, of the factor) of a Multiply, (columns, taps with weights) of a ReduceWindow. `narrow`: each
    Constant and Input that crosses DRAM as int8. `shortages`: what operations exceed of the Config. `areas`: of buffers in DRAM.
    """

    layouts: dict[str, Layout]
    areas: Areas
    weights: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    data: dict[int, int] = field(default_factory=dict)
    taps: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    narrow: set[int] = field(default_factory=set)
    shortages: list[Shortage] = field(default_factory=list)

    def ask(self, op: Op, config: Config, field: str, amount: int, what: str) -> None:
        """Note it where `what` of an operation needs more than a field of the Config has."""
        have = getattr(config, field)
        if amount > have:
            message = f"{op.name}: {what} need {field}={amount}, it is {have}"
            self.shortages.append(Shortage(message, field, amount / max(have, 1)))


def prepare(graph: IntGraph, config: Config, weights: WeightStore, constants: DataStore) -> Needs:
    """Pack everything static of `graph` into the stores. Raises UserError where the machine cannot do an operation."""
    layouts = {name: layout_of(buffer, config) for name, buffer in graph.buffers.items()}
    needs = Needs(layouts, Areas(graph, layouts, config))
    routes: dict[str, RouteTokens] = {}
    last_route = ""
    for i, op in enumerate(graph.ops):
        for out in op.writes().values():
            _layout(needs, out).check_written(out)
        match op:
            case Constant():
                columns = _layout(needs, op.out).columns(op.out)
                if fits_narrow(op.data):
                    needs.narrow.add(i)
                needs.data[i] = constants.add(pack_rows(op.data, columns, config, i in needs.narrow))
            case Input():
                if not op.fine:
                    needs.narrow.add(i)  # the host quantises images to int8
            case Norm():
                _check_norm(needs, op, config)
                rows = np.stack([op.gamma, op.beta])
                needs.data[i] = constants.add(pack_rows(rows, np.arange(rows.shape[1]), config))
            case Multiply():
                needs.sizes[i] = _multiply_columns(needs, op, config)
            case ReduceWindow():
                _prepare_window(needs, i, op, config, constants)
            case SelectRows():
                _check_select(needs, op, config)
            case ScanRows():
                _check_scan(needs, op, config)
            case RouteTokens():
                _check_route(needs, op, config)
                routes[op.name], last_route = op, op.name
            case MatMul():
                if op.expert and op.expert[0] != last_route:
                    raise ValueError(f"{op.name}: {last_route!r} has replaced the queues of {op.expert[0]!r}")
                _prepare_matmul(needs, i, op, config, weights, constants, routes)
    return needs


def _layout(needs: Needs, view: View) -> Layout:
    return needs.layouts[view.buffer]


def _prepare_matmul(
    needs: Needs, i: int, op: MatMul, config: Config, weights: WeightStore, constants: DataStore, routes: dict[str, RouteTokens]
) -> None:
    k_columns = _layout(needs, op.x).columns(op.x)
    n_columns = _layout(needs, op.out).columns(op.out)
    k, n = int(k_columns[-1]) + 1, int(n_columns[-1]) + 1
    needs.sizes[i] = n, k
    _check_matmul(needs, op, config, routes)
    whole, params = op.stationary(), op.col_scale == ColScale.PARAMETERS
    constant = whole is None
    if whole is not None:
        w_columns = _layout(needs, whole).columns(whole)
        if not np.array_equal(k_columns, w_columns):
            raise UserError(f"{op.name}: columns of {op.x.buffer!r} and {whole.buffer!r} are padded differently")
        if n != op.out.cols:
            raise UserError(f"{op.name}: output columns of a product of two buffers must lie in one group")
    if op.bias is not None and not params:
        raise ValueError(f"{op.name}: a bias needs column parameters")
    if constant or params:
        padded = op.taps * align(k, config.array_inputs)  # every tap's weights begin with a word
        count = stream_words(config, n, padded if constant else 0, params)
        bits, beats = 0, count * config.slice_beats

        def arranged() -> Array:
            found = np.zeros((n, padded), np.int8)
            columns = np.arange(op.taps)[:, None] * (padded // op.taps) + k_columns
            found[np.ix_(n_columns, columns.reshape(-1))] = np.asarray(op.w)
            return found

        if config.narrow_weights and not isinstance(op.w, View):
            key = n_columns.tobytes(), k_columns.tobytes(), op.taps
            bits, beats = choose(config, count, fitting_once(config, op.w, key, arranged))
        if weights.contents:
            packed, mult, bias = arranged() if constant else None, None, None
            if params:
                mult, bias = np.zeros(n, np.uint16), np.zeros(n, np.int16)
                mult[n_columns] = op.col_mult
                bias[n_columns] = 0 if op.bias is None else op.bias
            words, are_weights = pack_stream(config, packed, mult, bias)
            first = weights.add(pack(config, words, are_weights, bits) if bits else stripe(config, words))
        else:
            reserved = constant and id(op.w), params and (id(op.col_mult), id(op.bias)), n, k, op.taps
            first = weights.reserve(reserved, beats)
        needs.weights[i] = first, count, bits, beats
    if op.row_scale == RowScale.TABLE:
        table = np.broadcast_to(np.asarray(op.row_mult, "<u2"), op.x.rows)
        needs.data[i] = constants.add(table.tobytes())


def _prepare_window(needs: Needs, i: int, op: ReduceWindow, config: Config, constants: DataStore) -> None:
    columns = _layout(needs, op.x).columns(op.x)
    if not np.array_equal(columns, _layout(needs, op.out).columns(op.out)):
        raise UserError(f"{op.name}: columns of {op.x.buffer!r} and {op.out.buffer!r} are padded differently")
    needs.ask(op, config, "window_chunks", 1, "windows of rows")
    _check_walked(op, config)
    for name, value, low, high in (
        ("weights", op.weights, -num.INT8_MAX, num.INT8_MAX),
        ("mult", op.mult, 0, num.U16_MAX),
        ("bias", op.bias, -num.INT16_MAX - 1, num.INT16_MAX),
    ):
        if value is not None and (value.min() < low or value.max() > high):
            raise ValueError(f"{op.name}: {name} outside {low}..{high}")
    scales = np.stack([op.mult.astype(np.uint16).view(np.int16), op.bias.astype(np.int16)])
    if op.resampling is not None:
        rows = np.concatenate([np.concatenate([scales, _taps(op, weights, config)]) for _, weights in op.parts])
        needs.sizes[i] = int(columns[-1]) + 1, len(rows) - len(scales)
        needs.data[i] = constants.add(pack_rows(rows, columns, config))
        return
    needs.sizes[i] = int(columns[-1]) + 1, 0 if op.weights is None else len(op.weights)
    needs.data[i] = constants.add(pack_rows(scales, columns, config))
    if op.weights is not None:
        needs.taps[i] = constants.add(pack_rows(_taps(op, op.weights, config), columns, config, narrow=True))


def _taps(op: ReduceWindow, weights: Array | None, config: Config) -> Array:
    """Weights as rows of the scratchpad."""
    assert weights is not None
    if len(weights) > WINDOW_TAPS:
        raise UserError(f"{op.name}: a window of {len(weights)} taps with weights, the machine takes at most {WINDOW_TAPS}")
    return np.asarray(weights).astype(np.int16) << num.STATIC_SHIFT


def _check_matmul(needs: Needs, op: MatMul, config: Config, routes: dict[str, RouteTokens]) -> None:
    """What the machine asks beyond `intgraph_checks.verify`."""

    def need(condition: object, message: str) -> None:
        if not condition:
            raise ValueError(f"{op.name}: {message}")

    x, out = _layout(needs, op.x), _layout(needs, op.out)
    for name, value, low, high in (
        ("weights", op.w, -num.INT8_MAX, num.INT8_MAX),
        ("col_mult", op.col_mult, 0, num.U16_MAX),
        ("row_mult", op.row_mult, 0, num.U16_MAX),
        ("bias", op.bias, -num.INT16_MAX - 1, num.INT16_MAX),
    ):
        if value is not None and not isinstance(value, View):
            value = np.asarray(value)
            need(value.min() >= low and value.max() <= high, f"{name} outside {low}..{high}")
    if op.x_convert == Convert.PROBABILITY and x.columns(op.x)[-1] + 1 != op.x.cols:
        raise UserError(f"{op.name}: probabilities in several padded groups of {op.x.buffer!r}")
    if op.row_max == RowMax.SIGNED and out.columns(op.out)[-1] + 1 != op.out.cols:
        raise UserError(f"{op.name}: signed row maxima over several padded groups of {op.out.buffer!r}")
    need(op.row_scale != RowScale.CONVERTED or op.x_convert != Convert.STATIC, "STATIC conversion has no row scale")
    need(op.row_scale != RowScale.TABLE or op.x_convert == Convert.STATIC, "a row table excludes a converted x")
    need(op.w_convert != Convert.PROBABILITY, "stationary probabilities")
    need(op.col_scale != ColScale.ROW_SCALES or isinstance(op.w, View), "row scales of constant weights")
    need(op.col_scale != ColScale.ROW_SCALES or op.w_convert == Convert.ROW, "row scales of STATIC rows")
    need(op.indirect == Indirect.NONE or op.expert is not None, "indirect rows without an expert")
    need(op.expert is None or not op.continue_max, "an expert's row maxima cannot be continued")
    need(op.row_max == RowMax.NONE or op.indirect != Indirect.SCATTER, "row maxima of scattered rows")
    for name in ("x", "w"):
        view = getattr(op, name)
        need(not isinstance(view, View) or not view.overlaps(op.out), f"{name} overlaps out")
    if op.residual is not None:
        least = op.out.rows if op.walk is not None else min(op.x.rows, op.out.rows)
        need(op.residual.cols == op.out.cols and op.residual.rows >= least, "residual shape")
        if not np.array_equal(_layout(needs, op.residual).columns(op.residual), out.columns(op.out)):
            raise UserError(f"{op.name}: {op.residual.buffer!r} and {op.out.buffer!r} are padded differently")
    if op.walk is not None:
        _check_walked(op, config)
    if op.expert is not None:
        tokens = routes[op.expert[0]].logits.rows
        rows = op.out if op.indirect == Indirect.GATHER else op.x
        need(rows.rows >= tokens, f"{rows.rows} rows for queues of up to {tokens} tokens")
        need((op.x if op.indirect == Indirect.GATHER else op.out).rows >= tokens, f"fewer rows than {tokens} tokens")
        needs.ask(op, config, "acc_rows", tokens, f"queues of up to {tokens} tokens")


def _check_walked(op: MatMul | ReduceWindow, config: Config) -> None:
    """Rows are counted modulo 2^16. What no bank holds is not looked at: it finds no room, or lies in DRAM and is cut."""
    rows = max(op.x.rows, op.out.rows)
    if 1 << INDEX_BITS < rows <= config.bank_chunks:
        raise UserError(f"{op.name}: walks {rows} rows, the machine at most {1 << INDEX_BITS}")


def _check_norm(needs: Needs, op: Norm, config: Config) -> None:
    needs.ask(op, config, "norm_columns", op.x.cols, f"rows of {op.x.cols} columns")
    for view in (op.x, op.out):
        if _layout(needs, view).columns(view)[-1] + 1 != view.cols:
            raise UserError(f"{op.name}: {view.buffer!r} has padding between its groups")


def _multiply_columns(needs: Needs, op: Multiply, config: Config) -> tuple[int, int]:
    """Physical columns of x and of a row of factors. Raises UserError where the machine cannot multiply the rows."""
    x, out, factor = (_layout(needs, view).columns(view) for view in (op.x, op.out, op.factor))
    width = op.factor.cols
    pitch = config.chunk * _layout(needs, op.factor).chunks(op.factor) if width < op.x.cols else 0
    for k in range(op.x.cols // width):
        if not np.array_equal(x[k * width : (k + 1) * width], factor + k * pitch):
            raise UserError(f"{op.name}: columns of {op.x.buffer!r} and {op.factor.buffer!r} are padded differently")
    if not np.array_equal(x, out):
        raise UserError(f"{op.name}: columns of {op.x.buffer!r} and {op.out.buffer!r} are padded differently")
    columns = int(x[-1]) + 1
    needs.ask(op, config, "norm_columns", columns, f"rows of {columns} columns")
    if op.pairs and config.chunk % 2:
        why = "rotary positions need an even array_inputs"
        raise UserError(f"{op.name}: turns pairs of columns, which chunks of {config.chunk} elements divide: {why}")
    return columns, int(factor[-1]) + 1


def _check_route(needs: Needs, op: RouteTokens, config: Config) -> None:
    needs.ask(op, config, "max_experts", op.logits.cols, f"{op.logits.cols} experts")
    if op.top_k > num.MAX_TOP_K:
        raise UserError(f"{op.name}: chooses {op.top_k} experts a token, the machine at most {num.MAX_TOP_K}")
    if op.logits.rows > 1 << ROW_BITS:
        raise UserError(f"{op.name}: {op.logits.rows} tokens, a router takes at most {1 << ROW_BITS}")
    what = f"{op.logits.rows} tokens times {op.top_k} experts"
    needs.ask(op, config, "queue_entries", op.logits.rows * op.top_k, what)


def _check_select(needs: Needs, op: SelectRows, config: Config) -> None:
    needs.ask(op, config, "select_rows", op.x.rows, f"choices among {op.x.rows} rows")
    if not np.array_equal(_layout(needs, op.x).columns(op.x), _layout(needs, op.out).columns(op.out)):
        raise UserError(f"{op.name}: columns of {op.x.buffer!r} and {op.out.buffer!r} are padded differently")
    scores = _layout(needs, op.scores)
    if op.scores.cols > 1 and scores.columns(op.scores)[-1] + 1 != op.scores.cols:
        raise UserError(f"{op.name}: the scores in {op.scores.buffer!r} have padding between them")


def _check_scan(needs: Needs, op: ScanRows, config: Config) -> None:
    needs.ask(op, config, "scan_states", 1, "selective scans")
    for view in (op.x, op.steps, op.mix, op.rates, op.out):
        if _layout(needs, view).columns(view)[-1] + 1 != view.cols:
            raise UserError(f"{op.name}: {view.buffer!r} has padding between its groups")


def row_layout(layout: Layout, view: View, rows: int, config: Config, narrow: bool = False) -> RowLayout:
    """How a view lies in DRAM when its chunks are loaded or stored row by row; `narrow` as in isa.Load."""
    groups, width = (view.cols // layout.width, layout.width) if layout.groups > 1 else (1, view.cols)
    return RowLayout(rows, groups, width, config.chunk, chunk_bytes(config, narrow), 1 if narrow else 2)


def input_key(op: Input, layout: RowLayout) -> tuple[object, ...]:
    """Inputs of different tasks with equal keys share their place in DRAM."""
    cut = tuple(op.shape), tuple(op.patch), op.stride and tuple(op.stride), tuple(op.pads)
    return op.image, op.index, *cut, float(op.step), float(op.offset), layout
