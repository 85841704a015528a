"""Level M, well formed or not: what an integer graph must hold before it runs or becomes a program."""

from __future__ import annotations

import numpy as np

from . import numerics as num
from .intgraph import (
    Constant,
    Fetch,
    Input,
    IntGraph,
    MatMul,
    Multiply,
    Norm,
    Op,
    Output,
    ReduceWindow,
    RouteTokens,
    ScanRows,
    SelectRows,
    Spill,
    Transfer,
    View,
)
from .isa import Convert, Indirect, Reduce, RowMax, RowScale
from .walks import Walk


def verify(graph: IntGraph) -> None:
    """Raise ValueError naming the operation whose views, shapes or ranges are inconsistent."""

    routes: dict[str, int] = {}

    def need(condition: object, op: Op | Output, message: str) -> None:
        if not condition:
            raise ValueError(f"{op.name}: {message}")

    def check(view: View, op: Op | Output) -> None:
        need(view.buffer in graph.buffers, op, f"no buffer {view.buffer!r}")
        b = graph.buffers[view.buffer]
        need(0 <= view.row and view.row + view.rows <= b.rows, op, f"rows of {view} outside {b.rows}")
        need(0 <= view.col and view.col + view.cols <= b.cols, op, f"columns of {view} outside {b.cols}")
        width = b.cols // b.groups
        need(b.groups == 1 or (view.col % width == 0 and view.cols % width == 0), op, f"{view} splits a group")

    def walked(walk: Walk, op: MatMul | ReduceWindow) -> None:
        x, y = walk.x_rows(), walk.y_rows()
        need(
            x.max() < op.x.rows and x.min() >= (-1 if walk.plane else 0),
            op,
            f"walks rows {x.min()}..{x.max()} of {op.x.rows}",
        )
        need(0 <= y.min() and y.max() < op.out.rows, op, f"walks to rows {y.min()}..{y.max()} of {op.out.rows}")
        need(len(np.unique(y)) == len(y), op, "writes a row twice")

    names: set[str] = set()
    for op in graph.ops:
        need(op.name not in names, op, "a second operation of this name")
        names.add(op.name)
        for name, view in op.views().items():
            check(view, op)
            moves = (isinstance(op, Spill) and name == "out") or (isinstance(op, Fetch) and name == "x")
            need(graph.buffers[view.buffer].dram == moves, op, f"{view} on the wrong side of the scratchpad's border")
        match op:
            case Constant(data=data):
                need(data.shape == (op.out.rows, op.out.cols), op, f"data {data.shape}")
            case Input():
                need(
                    op.row + op.out.rows <= op.patches, op, f"patches {op.row}..{op.row + op.out.rows} of {op.patches}"
                )
            case RouteTokens():
                need(1 <= op.top_k <= op.logits.cols, op, f"top {op.top_k} of {op.logits.cols}")
                routes[op.name] = op.logits.cols
            case SelectRows(x=x, scores=scores):
                need(min(scores.rows, scores.cols) == 1, op, f"scores {scores} are no column and no row")
                need(graph.buffers[scores.buffer].groups == 1 or scores.cols == 1, op, "scores in groups")
                need(scores.rows * scores.cols == x.rows, op, f"{scores.rows * scores.cols} scores of {x.rows} rows")
                need(0 <= op.first and op.first + op.out.rows <= x.rows, op, f"rows {op.first}.. of {x.rows}")
                need(op.out.cols == x.cols, op, "columns")
                need(not x.overlaps(op.out) and not scores.overlaps(op.out), op, "out overlaps what is read")
            case ScanRows(x=x, steps=steps, mix=mix, rates=rates):
                need((x.rows, x.cols) == (steps.rows, steps.cols) == (op.out.rows, op.out.cols), op, f"x {x}, steps {steps}")
                need((mix.rows, mix.cols) == (x.rows, 2 * op.states) and rates.cols == x.cols, op, f"mix {mix}, rates {rates}")
                need(1 <= op.states <= num.SCAN_STATES_MAX, op, f"{op.states} states")
                need(not any(v.overlaps(op.out) for v in (x, steps, mix, rates)), op, "out overlaps what is read")
                need(op.shifts.fit, op, f"{op.shifts}")
            case Transfer():
                need((op.out.rows, op.out.cols) == (op.x.rows, op.x.cols), op, "out shape")
            case Norm():
                need(op.gamma.shape == op.beta.shape == (op.x.cols,), op, "gamma, beta shape")
                need((op.out.rows, op.out.cols) == (op.x.rows, op.x.cols), op, "out shape")
                need(1 <= op.epsilon < 1 << 48, op, f"epsilon {op.epsilon}")
                need(op.row_max in (RowMax.NONE, RowMax.ABS), op, f"row maxima {op.row_max.name}")
            case Multiply(x=x, factor=factor):
                need((op.out.rows, op.out.cols) == (x.rows, x.cols), op, "out shape")
                need(factor.rows in (1, x.rows) and x.cols % factor.cols == 0, op, f"factor {factor} against x {x}")
                need(op.row_max in (RowMax.NONE, RowMax.ABS), op, f"row maxima {op.row_max.name}")
                need(not op.pairs or factor.cols % 2 == 0, op, "an odd number of columns has no pairs")
                limits = (num.GAMMA_SHIFT,) * 2 if op.pairs else (num.PRODUCT_SHIFT_MIN, num.PRODUCT_SHIFT_MAX)
                need(limits[0] <= op.shift <= limits[1], op, f"shift {op.shift}")
            case ReduceWindow(x=x, walk=walk):
                walked(walk, op)
                need(not x.overlaps(op.out), op, "x overlaps out")
                need(op.out.cols == x.cols and op.mult.shape == op.bias.shape == (x.cols,), op, "columns")
                weighted = (op.weights is not None) + (op.resampling is not None)
                need(weighted == (op.reduce == Reduce.WEIGHTED), op, f"weights of {op.reduce.name}")
                for own, weights in op.parts:
                    walked(own, op)
                    need(weights is None or weights.shape == (own.count, x.cols), op, "weights' shape")
                need(op.row_max in (RowMax.NONE, RowMax.ABS), op, f"row maxima {op.row_max.name}")
                empty = op.reduce == Reduce.MAX and walk.plane is not None and (walk.x_rows() < 0).all(axis=0).any()
                need(not empty, op, "the largest of no rows")
                sums = [own.count if w is None else int(np.abs(w, dtype=np.int64).sum(axis=0).max()) for own, w in op.parts]
                limit = num.INT16_MAX * (1 if op.reduce == Reduce.MAX else max(sums))
                need(limit < 1 << num.WINDOW_SUM_BITS - 1, op, f"sums up to {limit} overflow {num.WINDOW_SUM_BITS} bits")
                need(
                    0 <= op.before < 16 and 0 <= op.shift <= num.WINDOW_SHIFT_MAX, op, f"shifts {op.before}, {op.shift}"
                )
            case MatMul():
                n, k = (op.w.rows, op.w.cols) if isinstance(op.w, View) else op.w.shape
                need(k == op.taps * op.x.cols and n == op.out.cols, op, f"w [{n}, {k}] against x {op.x}, out {op.out}")
                if op.walk is not None:
                    walked(op.walk, op)
                    need(op.expert is None and op.indirect == Indirect.NONE, op, "walks an expert's rows")
                    need(
                        op.taps == 1
                        or (op.x_convert == Convert.STATIC and op.row_scale == RowScale.IMMEDIATE and not isinstance(op.w, View)),
                        op,
                        "taps of such operands",
                    )
                need(num.SHIFT_MIN <= op.shift <= num.SHIFT_MAX, op, f"shift {op.shift}")
                need(op.indirect or op.walk or op.out.rows >= op.x.rows, op, "out rows")
                limit = num.INT8_MAX * (
                    k * num.INT8_MAX if isinstance(op.w, View) else np.abs(op.w, dtype=np.int64).sum(1).max()
                )
                need(limit <= num.ACC_MAX, op, f"sums up to {limit} overflow the {num.ACC_BITS}-bit accumulator")
                if op.expert is not None:
                    need(op.expert[0] in routes and op.expert[1] < routes[op.expert[0]], op, f"no queue {op.expert}")
    for output in graph.outputs:
        check(output.view, output)
