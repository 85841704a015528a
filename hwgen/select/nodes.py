"""One method a kind of node: the operations that compute it, and where its value lies then."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

import numpy as np

from .. import qgraph as q
from ..intgraph import Buffer, Constant, Input, MatMul, Multiply, Norm, Op, RouteTokens, View
from ..isa import ColScale, Convert, Indirect, RowMax, RowScale
from ..numerics import GATE_BITS, SHIFT_MIN

Array = np.ndarray
NEVER = 1 << 60  # later than any node: outputs are read at the end


class Selection:
    """The machine graph under construction. `done`: value -> (its view when it was made, the operation that finished it)."""

    def __init__(self, graph: q.QGraph):
        self.graph = graph
        self.buffers: dict[str, Buffer] = {}
        self.ops: list[Op] = []
        self.done: dict[str, tuple[View, str]] = {}
        self._names: set[str] = set()
        self._places: dict[str, View] = {}
        self._maxima: set[str] = set()  # values whose row maxima are stored
        self._last: dict[str, int] = {}
        self._wanted: dict[str, RowMax] = {}  # of values that something converts row by row
        self._readers: dict[str, list[q.Node]] = {}
        self._traced = {ref.value for ref in graph.trace.values()}
        for i, node in enumerate(graph.nodes):
            for name in dict.fromkeys(ref.value for ref in node.reads()):
                self._last[name] = i
                self._readers.setdefault(name, []).append(node)
            self._wanted |= _row_operands(node)
        self._last |= {o.x.value: NEVER for o in graph.outputs}

    def view(self, ref: q.Ref, done: bool = False) -> View:
        """Where some rows of a value lie; `done`: where they lay when it was made."""
        whole = self.done[ref.value][0] if done else self._places[ref.value]
        return replace(whole, row=whole.row + ref.row, rows=ref.rows)

    def select(self, node: q.Node, i: int) -> None:
        """Emit the operations of node number `i`."""
        getattr(self, f"_{type(node).__name__.lower()}")(node, i)
        if not isinstance(node, q.Route):
            self.done[node.name] = self._places[node.name], self.ops[-1].name

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _buffer(self, name: str, rows: int, cols: int, groups: int = 1, scale: float | Array = 1.0) -> View:
        name = _unused(name, self.buffers)
        self.buffers[name] = Buffer(name, rows, cols, groups, scale)
        return View(name, 0, rows, 0, cols)

    def _new(self, node: q.Node) -> View:
        """A buffer for the node's value, named after the sum that alone reads it and takes its place."""
        value, name = self.graph.values[node.name], node.name
        while name not in self._traced and len(readers := self._readers.get(name, [])) == 1:
            added = getattr(readers[0], "add", None)
            if added is None or added.value != name:
                break
            name = readers[0].name
        scale = np.asarray(value.scale)[None] if np.ndim(value.scale) == 1 else value.scale
        self._places[node.name] = self._buffer(name, value.rows, value.cols, value.groups, scale)
        return self._places[node.name]

    def _emit(self, kind: type, name: str, *args: Any, **fields: Any) -> None:
        name = _unused(name, self._names)
        self._names.add(name)
        self.ops.append(kind(name, *args, **fields))

    def _free(self, ref: q.Ref, i: int, *others: q.Ref | None) -> bool:
        """Whether node `i` may write over a value: nothing reads it later, and none of `others` lies in its buffer."""
        taken = {self._places[other.value].buffer for other in others if other is not None}
        return self._last[ref.value] <= i and self._places[ref.value].buffer not in taken

    def _over(self, node: q.Norm | q.Multiply, i: int, wanted: bool) -> View:
        """The place of the node's x, in the steps of its own value, where that is wanted and free; else a new buffer."""
        if not wanted or not self._free(node.x, i):
            return self._new(node)
        place = self._places[node.name] = self.view(node.x)
        scale = np.asarray(self.graph.values[node.name].scale)
        self.buffers[place.buffer] = replace(self.buffers[place.buffer], scale=scale[None] if scale.ndim == 1 else scale)
        return place

    def _keep(self, node: q.Node) -> RowMax:
        """What an operation that writes all of the node's value keeps of its rows."""
        if node.name in self._wanted:
            self._maxima.add(node.name)
        return self._wanted.get(node.name, RowMax.NONE)

    def _copy(self, name: str, source: View, out: View, row_max: RowMax = RowMax.NONE, bias: Array | None = None) -> None:
        """out = source + bias, by a product with zero weights and `source` as its residual."""
        buffer = self.buffers[source.buffer]
        narrow = 1 if buffer.groups == 1 else buffer.cols // buffer.groups
        x = replace(source, cols=narrow)
        modes: dict[str, Any] = {"col_scale": ColScale.IMMEDIATE}
        if bias is not None:
            modes = {"col_mult": np.zeros(out.cols, np.int64), "bias": bias}
        zero = np.zeros((out.cols, narrow), np.int8)
        self._emit(MatMul, name, out, x, zero, shift=SHIFT_MIN, residual=source, row_max=row_max, **modes)

    def _measured(self, ref: q.Ref) -> View:
        """The rows with their maxima: where nothing stored these, a copy that does."""
        if ref.value not in self._maxima:
            old = self._places[ref.value]
            buffer = self.buffers[old.buffer]
            new = self._buffer(f"{ref.value}.rows", old.rows, old.cols, buffer.groups, buffer.scale)
            self._copy(f"{ref.value}.rows", old, new, self._wanted[ref.value])
            self._places[ref.value] = new
            self._maxima.add(ref.value)
        return self.view(ref)

    def _matmul(self, name: str, out: View, x: View, m: q.Matrix, convert: Convert, **fields: Any) -> None:
        modes: dict[str, Any] = {"w": m.w, "col_mult": m.col_mult, "bias": m.bias, "row_scale": RowScale.CONVERTED}
        if m.col_mult is None:
            modes = {"w_convert": Convert.ROW, "col_scale": ColScale.ROW_SCALES, "row_scale": RowScale.CONVERTED}
        elif np.ndim(m.col_mult) == 0:
            modes["col_scale"] = ColScale.IMMEDIATE
        if isinstance(m.w, q.Ref):
            modes["w"] = self._measured(m.w) if m.col_mult is None else self.view(m.w)
        if m.row is not None:
            modes |= {"row_mult": m.row, "row_scale": RowScale.TABLE if np.ndim(m.row) else RowScale.IMMEDIATE}
        self._emit(MatMul, name, out, x, x_convert=convert, shift=m.shift, **modes | fields)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _image(self, node: q.Image, i: int) -> None:
        cut = {"stride": node.stride, "pads": node.pads, "source": node.source}
        out = self._new(node)
        self._emit(Input, node.name, out, node.image, tuple(node.shape), tuple(node.patch), node.step, node.offset, **cut)

    def _table(self, node: q.Table, i: int) -> None:
        self._emit(Constant, node.name, self._new(node), node.data, node.source)

    def _product(self, node: q.Product, i: int) -> None:
        x = self.view(node.x) if node.convert == Convert.STATIC else self._measured(node.x)
        whole = node.x.rows == self.graph.values[node.name].rows
        residual = None
        if node.add is None:
            out = self._new(node)
        else:
            residual = self.view(node.add)
            w = node.matrix.w if isinstance(node.matrix.w, q.Ref) else None
            if self._free(node.add, i, node.x, w):
                self._places[node.name] = out = residual
            else:
                out = self._new(node)
                if not whole:
                    self._copy(f"{node.name}.copy", residual, out)
                    residual = out
        out = replace(out, row=out.row + node.at, rows=node.x.rows)
        residual = residual and replace(residual, row=residual.row + node.at, rows=node.x.rows)
        fields: dict[str, Any] = {"gelu": node.act, "residual": residual, "source": node.source}
        row_max = self._keep(node) if whole else RowMax.NONE
        self._matmul(node.layer or node.name, out, x, node.matrix, node.convert, row_max=row_max, **fields)

    def _shift(self, node: q.Shift, i: int) -> None:
        self._copy(node.name, self.view(node.x), self._new(node), self._keep(node), node.bias)

    def _norm(self, node: q.Norm, i: int) -> None:
        x, out = self.view(node.x), self._over(node, i, node.heads > 1)
        row_max = self._keep(node)
        assert node.heads == 1 or row_max == RowMax.NONE, node.name
        width = x.cols // node.heads
        for h in range(node.heads):
            part = slice(h * width, (h + 1) * width)
            fields = node.gamma[part], node.beta[part], node.epsilon, node.source, node.centred, row_max
            name = node.name if node.heads == 1 else f"{node.name}.{h}"
            self._emit(Norm, name, _columns(out, part), _columns(x, part), *fields)

    def _multiply(self, node: q.Multiply, i: int) -> None:
        x, out = self.view(node.x), self._over(node, i, node.pairs)
        fields = {"pairs": node.pairs, "row_max": self._keep(node), "source": node.source}
        self._emit(Multiply, node.name, out, x, self.view(node.factor), node.shift, **fields)

    def _attention(self, node: q.Attention, i: int) -> None:
        queries, keys = self.view(node.q), self.view(node.k)
        heads, out = len(node.factors), self._new(node)
        scores = [self._buffer(f"{node.name}.scores{n}", queries.rows, keys.rows) for n in range(min(2, heads))]
        row_max, width, depth = self._keep(node), out.cols // heads, queries.cols // heads
        for h, (col, shift) in enumerate(node.factors):
            head = slice(h * depth, (h + 1) * depth)
            more: dict[str, Any] = {"row_max": RowMax.SIGNED, "source": node.source, "w": _columns(keys, head)}
            more["residual"] = self.view(node.biases[h]) if node.biases else None
            factor = q.Matrix(node.k, col, shift, None, q.UNIT_ROW)
            self._matmul(f"{node.name}.scores.{h}", scores[h % 2], _columns(queries, head), factor, Convert.STATIC, **more)
            more = {"row_max": row_max, "continue_max": h > 0 and row_max != RowMax.NONE, "source": node.source}
            part = _columns(out, slice(h * width, (h + 1) * width))
            self._matmul(f"{node.name}.values.{h}", part, scores[h % 2], node.head(h), Convert.PROBABILITY, **more)

    def _route(self, node: q.Route, i: int) -> None:
        (experts,) = (n for n in self._readers[node.name] if isinstance(n, q.Experts))
        logits, dense = self.view(node.logits), None
        if experts.gates is not None:
            dense = self._buffer(f"{experts.layer}.gates", logits.rows, logits.cols, scale=2.0**-GATE_BITS)
        self._places[node.name] = dense or logits
        self._emit(RouteTokens, node.name, logits, node.top_k, node.renormalise, dense, node.source)

    def _experts(self, node: q.Experts, i: int) -> None:
        """Every expert gathers its tokens and scatters its result; without a router it has its own rows."""
        x, name, count = self._measured(node.x), node.layer, len(node.first)
        slots = x.rows if node.route else x.rows // count
        if node.add is not None and self._free(node.add, i, node.x):
            self._places[node.name] = out = self.view(node.add)
        else:
            out = self._new(node)
            if node.add is not None:
                self._copy(f"{node.name}.copy", self.view(node.add), out)
        if node.gates is not None:
            assert node.route is not None
            dense, fields = self._places[node.route.value], {"residual": out, "source": node.source}
            self._matmul(f"{name}.bias", out, dense, node.gates, Convert.STATIC, **fields)
        hidden = [
            self._buffer(f"{name}.hidden{n}", slots, np.asarray(node.first[0].w).shape[0], scale=node.hidden_scale)
            for n in range(min(2, count))
        ]
        row_max = RowMax.NONE if node.route else self._keep(node)
        for e, (first, second) in enumerate(zip(node.first, node.second, strict=True)):
            if second is None:
                continue
            between, rows, place = hidden[e % 2], x, out
            scatter: dict[str, Any] = {"source": node.source, "row_max": row_max}
            gather: dict[str, Any] = scatter
            if node.route is not None:
                queue = {"expert": (node.route.value, e), "source": node.source}
                gather = {"indirect": Indirect.GATHER} | queue
                scatter = {"residual": out, "indirect": Indirect.SCATTER} | queue
            else:
                rows, place = (replace(v, row=v.row + e * slots, rows=slots) for v in (x, out))
            gather = gather | {"row_max": RowMax.ABS, "gelu": node.act}
            self._matmul(f"{name}.{e}.w1", between, rows, first, Convert.ROW, **gather)
            self._matmul(f"{name}.{e}.w2", place, between, second, Convert.ROW, **scatter)


def _columns(view: View, part: slice) -> View:
    return replace(view, col=view.col + part.start, cols=part.stop - part.start)


def _row_operands(node: q.Node) -> dict[str, RowMax]:
    """Values that a node converts row by row, with the maxima that this takes."""
    if isinstance(node, q.Experts):
        return {node.x.value: RowMax.ABS}
    found = {}
    if isinstance(node, q.Product):
        if node.convert != Convert.STATIC:
            found[node.x.value] = RowMax.ABS if node.convert == Convert.ROW else RowMax.SIGNED
        if isinstance(node.matrix.w, q.Ref) and node.matrix.col_mult is None:
            found[node.matrix.w.value] = RowMax.ABS
    return found


def _unused(name: str, taken: Container[str]) -> str:
    candidate, n = name, 2
    while candidate in taken:
        candidate, n = f"{name}.{n}", n + 1
    return candidate
