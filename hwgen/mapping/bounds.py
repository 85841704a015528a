"""Cycles of single operations on a Config, about: what the passes weigh. `hwgen.cost` simulates whole programs."""

from __future__ import annotations

from ..config import Config
from ..cost.matmul import TILE_STEPS
from ..cost.simulation import DISPATCH
from ..intgraph import (
    Buffer,
    Constant,
    Input,
    MatMul,
    Multiply,
    Norm,
    Op,
    ReduceWindow,
    RouteTokens,
    ScanRows,
    SelectRows,
    Transfer,
    View,
)
from ..isa import Reduce
from ..latency import (
    load_cycles,
    multiply_cycles,
    norm_cycles,
    pipeline,
    route_cycles,
    scan_cycles,
    select_cycles,
    window_cycles,
)
from ..walks import Walk
from .order import Timing


def bound(op: Op, rows: int, config: Config) -> float:
    """Cycles of an operation with so many rows where it has its unit and DRAM for itself."""
    if not isinstance(op, MatMul):
        return 0.0
    outputs, inputs = _tiles(op, config)
    array = outputs * inputs * max(rows, _load(op, config))
    words = 0 if isinstance(op.w, View) else op.out.cols * inputs
    return max(array, words * config.slice_beats) + pipeline(config)


def vector(op: Op, rows: int, config: Config) -> float:
    """Cycles of the vector unit for so many rows of an operation, at least one; 0 for one of another unit."""
    match op:
        case Norm():
            return norm_cycles(config, rows, op.x.cols)
        case Multiply():
            return multiply_cycles(config, rows, op.x.cols, -(-op.factor.cols // config.chunk))
        case ReduceWindow():
            if not config.window_chunks:  # the scheduler says so
                return 0.0
            return sum(_window(op, walk, -(-rows * walk.rows // op.walk.rows), config) for walk, _ in op.parts)
        case SelectRows(x=x, scores=scores):
            return select_cycles(config, rows, x.cols, scores.rows, scores.cols)
        case RouteTokens():
            return route_cycles(config, rows, op.logits.cols, op.top_k, op.dense is not None)
        case ScanRows():
            return scan_cycles(config, rows, op.x.cols, op.states) if config.scan_states else 0.0
    return 0.0


def _window(op: ReduceWindow, walk: Walk, rows: int, config: Config) -> int:
    run = min(walk.run, rows)  # a band may be less than the rows that follow each other by a tap
    return window_cycles(config, rows, op.x.cols, walk.kernel, run, op.reduce == Reduce.WEIGHTED)


def timing(config: Config) -> Timing:
    """Cycles of operations without DRAM: what an order of operations can change."""

    def duration(op: Op, tokens: int) -> float:
        match op:
            case MatMul():
                outputs, inputs = _tiles(op, config)
                rows = tokens if op.expert is not None else op.rows
                return outputs * inputs * max(rows, _load(op, config) + TILE_STEPS)
            case ReduceWindow():
                return vector(op, op.walk.rows, config)
            case SelectRows():
                return vector(op, op.out.rows, config)
            case Norm() | Multiply() | ScanRows():
                return vector(op, op.x.rows, config)
            case RouteTokens():
                return vector(op, op.logits.rows, config)
        return 0.0

    return Timing(duration, pipeline(config) + DISPATCH)


def aside(op: Op, buffers: dict[str, Buffer], config: Config) -> float:
    """Cycles of an operation beside the array: a load or a store, or one of the vector unit."""
    if isinstance(op, Constant | Input | Transfer):
        buffer = buffers[op.out.buffer]
        width = buffer.cols // buffer.groups
        chunks = op.out.rows * op.out.cols // width * -(-width // config.chunk)
        return chunks * (config.chunk_beats if isinstance(op, Transfer) else config.narrow_chunk_beats)
    return timing(config).duration(op, 0)


def _tiles(op: MatMul, config: Config) -> tuple[int, int]:
    """Tiles along the outputs and the inputs of all taps."""
    return -(-op.out.cols // config.array_outputs), op.taps * -(-op.x.cols // config.array_inputs)


def _load(op: MatMul, config: Config) -> int:
    """Cycles that a tile loads."""
    return load_cycles(config, op.out.cols, not isinstance(op.w, View))
