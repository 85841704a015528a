"""Constants that a product adds to and overwrites, such as positions: batches in halves load them once for all images.

The product reads them from a buffer of their own, and what it makes lies where they were. Rows that it leaves as they are,
such as that of a class token, are loaded for every image as before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..intgraph import Constant, IntGraph, MatMul, Op, View
from .parts import part, part_name


def tables_once(graph: IntGraph) -> IntGraph:
    """`graph` with such constants in buffers that nothing else writes, which `batch.Batch` shares between images."""
    buffers, changed = dict(graph.buffers), dict[int, list[Op]]()
    for i, op in enumerate(graph.ops):
        if not isinstance(op, Constant):
            continue
        at = next((j for j in range(i + 1, len(graph.ops)) if _touches(graph.ops[j], op.out)), None)
        user = graph.ops[at] if at is not None else None
        if at is None or not isinstance(user, MatMul) or not _adds_in_place(user, op.out):
            continue
        name = f"{op.out.buffer}.{op.name}"
        if name in buffers:
            continue
        view, first = user.out, user.out.row - op.out.row
        whole = graph.buffers[op.out.buffer]
        scale = whole.scale
        if isinstance(scale, np.ndarray) and scale.ndim == 2 and len(scale) == whole.rows:
            scale = scale[view.row : view.row + view.rows]
        buffers[name] = replace(whole, name=name, rows=view.rows, scale=scale)
        place = replace(view, buffer=name, row=0)
        shared = Constant(f"{op.name}.table", place, op.data[first : first + view.rows], op.source)
        rest = [(0, first), (first + view.rows, op.out.rows)]
        kept = [part(op, a, b, part_name(op.name, k, k == 1, "kept"), lambda v: v) for k, (a, b) in enumerate(rest) if a < b]
        changed[i] = [shared, *kept]
        changed[at] = [replace(user, residual=place)]
    ops = [new for i, op in enumerate(graph.ops) for new in changed.get(i, [op])]
    return replace(graph, buffers=buffers, ops=ops) if changed else graph


def _touches(op: Op, view: View) -> bool:
    return any(other.overlaps(view) for other in op.views().values())


def _adds_in_place(op: MatMul, table: View) -> bool:
    """Whether all that a product touches of a table is what it adds its results to, whole rows of it."""
    places = [view for field, view in op.views().items() if field not in ("residual", "out") and view.overlaps(table)]
    plain = op.residual is not None and op.expert is None and op.walk is None and not places
    return plain and op.residual == op.out and table.covers(op.out) and (op.out.col, op.out.cols) == (table.col, table.cols)
