"""What an instruction touches, from its own fields: what it waits for, and what `checks` holds against the graph."""

from __future__ import annotations

from .. import isa
from ..config import Config
from ..intgraph import Fetch, MatMul, Op, Spill
from ..isa import Convert, Indirect, RowMax, RowScale, WeightSource
from .hazards import Region

Access = tuple[str, Region]  # a field of the operation, or one of these:
PARAMS, TABLE, STORED, QUEUE = "params", "table", "stored", "queue"
KEPT = "out, kept"  # rows of `out` that a scatter leaves as they were: no other instruction need have written them
SCALES = " scales"  # behind a field: its rows' entries of the scale memory


def addresses(config: Config, spilled: int) -> int:
    """Of all memories one behind the other: scratchpad, scale memory, queues, so many chunks of spilled values."""
    return config.scratch_chunks + config.scale_entries + 1 + spilled


def footprint(insn: isa.Insn, op: Op, config: Config, spills: int = 0) -> tuple[list[Access], list[Access]]:
    """(read, written) regions by field of the operation, at `addresses`. spills: beats in front of the spilled values."""
    scales, queue = config.scratch_chunks, Region(config.scratch_chunks + config.scale_entries)

    def area(start: int, rows: int, pitch: int, elements: int) -> Region:
        return Region(start, rows, pitch, -(-elements // config.chunk))

    def outside(move: isa.Load | isa.Store) -> Region:
        first = addresses(config, 0) + (move.dram - spills) // config.chunk_beats
        return Region(first, move.rows, move.chunks, move.chunks)

    def entries(field: str, first: int, count: int) -> Access:
        return field + SCALES, Region(scales + first, 1, 1, count)

    match insn:
        case isa.Load():
            field = PARAMS if hasattr(op, "gamma") else "out"
            return [("x", outside(insn))] if isinstance(op, Fetch) else [], [
                (field, Region(insn.dst, insn.rows, insn.pitch, insn.chunks))
            ]
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
        case isa.Norm() | isa.Multiply():
            read = [("x", area(insn.x, insn.rows, insn.x_pitch, insn.columns))]
            if isinstance(insn, isa.Norm):
                read.append((PARAMS, Region(insn.params, 1, 1, 2 * -(-insn.columns // config.chunk))))
            else:
                read.append(("factor", Region(insn.factor, insn.rows, insn.factor_pitch, insn.period)))
            written = [("out", area(insn.y, insn.rows, insn.y_pitch, insn.columns))]
            return read, written + ([entries("out", insn.y_scale, insn.rows)] if insn.y_max else [])
        case isa.Matmul() if isinstance(op, MatMul):
            queued = insn.expert != isa.NO_EXPERT
            x_rows, y_rows = (op.x.rows, op.out.rows) if queued else (insn.rows, insn.rows)
            read = [("x", area(insn.x, x_rows, insn.x_pitch, insn.inputs))] + ([(QUEUE, queue)] if queued else [])
            if insn.x_convert != Convert.STATIC or insn.row_source == RowScale.TABLE:
                read.append(entries("x" if insn.x_convert != Convert.STATIC else TABLE, insn.x_scale, x_rows))
            if insn.w_source == WeightSource.SCRATCHPAD:
                read.append(("w", area(insn.w, insn.outputs, insn.w_pitch, insn.inputs)))
                if insn.w_convert == Convert.ROW:
                    read.append(entries("w", insn.w_scale, insn.outputs))
            if insn.residual:
                rows = op.residual.rows if queued and op.residual is not None else insn.rows
                read.append(("residual", area(insn.res, rows, insn.res_pitch, insn.outputs)))
            written = [("out", area(insn.y, y_rows, insn.y_pitch, insn.outputs))]
            if insn.indirect == Indirect.SCATTER:
                read.append((KEPT, written[0][1]))
            return read, written + ([entries("out", insn.y_scale, y_rows)] if insn.y_max != RowMax.NONE else [])
    raise ValueError(f"{type(insn).__name__} of {op.name}")
