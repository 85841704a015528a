"""What an instruction touches, from its own fields: what it waits for, and what `checks` holds against the graph."""

from __future__ import annotations

import numpy as np

from .. import isa
from ..config import Config
from ..intgraph import Fetch, MatMul, Op, SelectRows, Spill
from ..isa import Convert, Indirect, Reduce, RowMax, RowScale, WeightSource
from ..walks import ZERO_ROW, Walk
from .hazards import Region

Access = tuple[str, Region]  # a field of the operation, or one of these:
PARAMS, TABLE, STORED, QUEUE = "params", "table", "stored", "queue"
KEPT = "out, kept"  # rows of `out` that a scatter leaves as they were: no other instruction need have written them
SCALES = " scales"  # behind a field: its rows' entries of the scale memory


def addresses(config: Config, spilled: int) -> int:
    """Of all memories one behind the other: scratchpad, scale memory, queues, so many chunks of spilled values."""
    return config.scratch_chunks + config.scale_entries + 1 + spilled


def reach(walk: Walk) -> dict[str, np.ndarray]:
    """Rows of the views that an instruction with this walk reads or writes, by field of the operation, each once."""
    x, y = np.unique(walk.x_rows()), walk.y_rows()
    x = x[x != ZERO_ROW] if len(x) > 1 else np.maximum(x, 0)
    return {"x": x, TABLE: x, "out": y, "residual": y}


def footprint(
    insn: isa.Insn, op: Op, config: Config, walk: Walk | None = None, spills: int = 0
) -> tuple[list[Access], list[Access]]:
    """(read, written) regions by field of the operation, at `addresses`. spills: beats in front of the spilled values.

    Behind a walk a region goes from the first to the last of its rows (see `reach`), as not every set of rows is one.
    """
    scales, queue = config.scratch_chunks, Region(config.scratch_chunks + config.scale_entries)

    def area(start: int, rows: int, pitch: int, elements: int) -> Region:
        return Region(start, rows, pitch, -(-elements // config.chunk))

    def outside(move: isa.Load | isa.Store) -> Region:
        first = addresses(config, 0) + (move.dram - spills) // config.chunk_beats
        return Region(first, move.rows, move.chunks, move.chunks)

    def entries(field: str, first: int, count: int) -> Access:
        return field + SCALES, Region(scales + first, 1, 1, count)

    def rows(field: str, count: int) -> tuple[int, int]:
        """First row and number of rows of a view of which `count` are used without a walk."""
        if walk is None:
            return 0, count
        used = reach(walk)[field]
        return int(used.min()), int(used.max() - used.min()) + 1

    match insn:
        case isa.Load():
            scratch = Region(insn.dst, insn.rows, insn.pitch, insn.chunks)
            if isinstance(op, Fetch):
                return [("x", outside(insn))], [("out", scratch)]
            return [], [(PARAMS if hasattr(op, "x") else "out", scratch)]
        case isa.LoadScales():
            return [], [entries(TABLE, insn.dst, insn.count)]
        case isa.Stream():
            return [(QUEUE, queue)] if insn.expert != isa.NO_EXPERT else [], []
        case isa.Store():
            source = Region(insn.src, insn.rows, insn.pitch, insn.chunks)
            return ([("x", source)], [("out", outside(insn))]) if isinstance(op, Spill) else ([(STORED, source)], [])
        case isa.Route():
            written = [(QUEUE, queue)]
            if insn.dense:
                written.append(("dense", area(insn.y, insn.rows, insn.y_pitch, insn.experts)))
            return [("logits", area(insn.x, insn.rows, insn.x_pitch, insn.experts))], written
        case isa.Select() if isinstance(op, SelectRows):
            read = [("x", area(insn.x, op.x.rows, insn.x_pitch, insn.columns))]
            read.append(("scores", area(insn.scores, insn.score_rows, insn.scores_pitch, insn.score_columns)))
            return read, [("out", area(insn.y, insn.rows, insn.y_pitch, insn.columns))]
        case isa.Scan():

            def rows_of(at: int, pitch: int, columns: int) -> Region:
                return area(at - (insn.rows - 1) * pitch if insn.backwards else at, insn.rows, pitch, columns)

            read = [("x", rows_of(insn.x, insn.x_pitch, insn.columns))]
            read.append(("steps", rows_of(insn.steps, insn.steps_pitch, insn.columns)))
            read.append(("mix", rows_of(insn.mix, insn.mix_pitch, 2 * insn.states)))
            read.append(("rates", area(insn.params, 1 + insn.states, insn.params_pitch, insn.columns)))
            return read, [("out", rows_of(insn.y, insn.y_pitch, insn.columns))]
        case isa.Norm() | isa.Multiply():
            read = [("x", area(insn.x, insn.rows, insn.x_pitch, insn.columns))]
            if isinstance(insn, isa.Norm):
                read.append((PARAMS, Region(insn.params, 1, 1, 2 * -(-insn.columns // config.chunk))))
            else:
                count = insn.rows if insn.factor_pitch else 1
                read.append(("factor", Region(insn.factor, count, insn.factor_pitch, insn.period)))
            written = [("out", area(insn.y, insn.rows, insn.y_pitch, insn.columns))]
            return read, written + ([entries("out", insn.y_scale, insn.rows)] if insn.y_max else [])
        case isa.ReduceWindow():
            (x_first, x_rows), (y_first, y_rows) = rows("x", insn.rows), rows("out", insn.rows)
            weights = walk.count if walk is not None and insn.reduce == Reduce.WEIGHTED else 0
            params = Region(insn.params, 1, 1, (2 + weights) * -(-insn.columns // config.chunk))
            read = [("x", area(insn.x + x_first * insn.x_pitch, x_rows, insn.x_pitch, insn.columns)), (PARAMS, params)]
            written = [("out", area(insn.y + y_first * insn.y_pitch, y_rows, insn.y_pitch, insn.columns))]
            return read, written + ([entries("out", insn.y_scale + y_first, y_rows)] if insn.y_max else [])
        case isa.Matmul() if isinstance(op, MatMul):
            queued = insn.expert != isa.NO_EXPERT
            x_first, x_rows = rows("x", op.x.rows if queued else insn.rows)
            y_first, y_rows = rows("out", op.out.rows if queued else insn.rows)
            x = area(insn.x + x_first * insn.x_pitch, x_rows, insn.x_pitch, insn.inputs)
            read = [("x", x)] + ([(QUEUE, queue)] if queued else [])
            if insn.x_convert != Convert.STATIC or insn.row_source == RowScale.TABLE:
                field = "x" if insn.x_convert != Convert.STATIC else TABLE
                read.append(entries(field, insn.x_scale + x_first, x_rows))
            if insn.w_source == WeightSource.SCRATCHPAD:
                read.append(("w", area(insn.w, insn.outputs, insn.w_pitch, insn.inputs)))
                if insn.w_convert == Convert.ROW:
                    read.append(entries("w", insn.w_scale, insn.outputs))
            if insn.residual:
                first, count = rows("residual", op.residual.rows if queued and op.residual is not None else insn.rows)
                read.append(("residual", area(insn.res + first * insn.res_pitch, count, insn.res_pitch, insn.outputs)))
            written = [("out", area(insn.y + y_first * insn.y_pitch, y_rows, insn.y_pitch, insn.outputs))]
            if insn.indirect == Indirect.SCATTER:
                read.append((KEPT, written[0][1]))
            return read, written + ([entries("out", insn.y_scale + y_first, y_rows)] if insn.y_max != RowMax.NONE else [])
    raise ValueError(f"{type(insn).__name__} of {op.name}")
