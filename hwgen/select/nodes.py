"""One method a kind of node: the operations that compute it, and where its value lies then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import qgraph as q
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
    View,
)
from ..isa import ColScale, Convert, Indirect, RowMax, RowScale
from ..naming import claimed, unused
from ..numerics import GATE_BITS, SHIFT_MIN
from ..walks import Walk
from . import nests

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
        self._walked = _read_by_walks(graph)
        self._stacked = _made_in_stacks(graph)
        self._joined = _made_in_joins(graph)
        for i, node in enumerate(graph.nodes):
            for name in dict.fromkeys(ref.value for ref in node.reads()):
                self._readers.setdefault(name, []).append(node)
                self._last[self._walked[name][0].value if name in self._walked else name] = i
            for name, row_max in _row_operands(node).items():
                self._wanted[self._walked[name][0].value if name in self._walked else name] = row_max
        self._last |= {o.x.value: NEVER for o in graph.outputs}

    def view(self, ref: q.Ref, done: bool = False) -> View:
        """Where some rows of a value lie; `done`: where they lay when it was made."""
        whole = self.done[ref.value][0] if done else self._places[ref.value]
        return replace(whole, row=whole.row + ref.row, rows=ref.rows)

    def select(self, node: q.Node, i: int) -> None:
        """Emit the operations of node number `i`."""
        if node.name in self._walked:
            return
        getattr(self, f"_{type(node).__name__.lower()}")(node, i)
        if not isinstance(node, q.Route):
            self.done[node.name] = self._places[node.name], self.ops[-1].name

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _buffer(self, name: str, rows: int, cols: int, groups: int = 1, scale: float | Array = 1.0) -> View:
        name = unused(name, self.buffers)
        self.buffers[name] = Buffer(name, rows, cols, groups, scale)
        return View(name, 0, rows, 0, cols)

    def _new(self, node: q.Node) -> View:
        """A place for the node's value: in that of the Stack or Join that alone reads it, or a buffer of its own, named after the
        sum that alone reads it and takes its place."""
        value, name = self.graph.values[node.name], node.name
        if name in self._joined:
            join, col = self._joined[name]
            whole = self._places[join.name] if join.name in self._places else self._new(join)
            self._places[name] = replace(whole, col=col, cols=value.cols)
            return self._places[name]
        if name in self._stacked:
            stack, row = self._stacked[name]
            whole = self._places[stack.name] if stack.name in self._places else self._new(stack)
            self._places[name] = replace(whole, row=row, rows=value.rows)
            return self._places[name]
        while name not in self._traced and len(readers := self._readers.get(name, [])) == 1:
            added = getattr(readers[0], "add", None)
            if added is None or added.value != name:
                break
            name = readers[0].name
        scale = np.asarray(value.scale)[None] if np.ndim(value.scale) == 1 else value.scale
        self._places[node.name] = self._buffer(name, value.rows, value.cols, value.groups, scale)
        return self._places[node.name]

    def _emit(self, kind: type, name: str, *args: Any, **fields: Any) -> None:
        self.ops.append(kind(claimed(name, self._names), *args, **fields))

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
        if node.name in self._joined:
            return RowMax.NONE  # of some columns
        stored = self._stacked[node.name][0] if node.name in self._stacked else node
        row_max = self._wanted.get(stored.name, RowMax.NONE)
        if row_max == RowMax.SIGNED and not isinstance(stored, q.Product | q.Shift):
            return RowMax.NONE  # the vector unit has no signed maxima: what converts the rows takes a copy that has
        if row_max != RowMax.NONE:
            self._maxima.add(node.name)
        return row_max

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
        cut = {"stride": node.stride, "pads": node.pads, "source": node.source, "fine": node.fine, "type": node.type}
        out = self._new(node)
        self._emit(Input, node.name, out, node.image, tuple(node.shape), tuple(node.patch), node.step, node.offset, **cut)

    def _table(self, node: q.Table, i: int) -> None:
        self._emit(Constant, node.name, self._new(node), node.data, node.source)

    def _product(self, node: q.Product, i: int) -> None:
        source, walk = self._walked.get(node.x.value, (node.x, node.walk))
        x = self.view(source) if node.convert == Convert.STATIC else self._measured(source)
        whole = node.rows == self.graph.values[node.name].rows
        residual = None
        if node.add is None:
            out = self._new(node)
        else:
            residual = self.view(node.add)
            w = node.matrix.w if isinstance(node.matrix.w, q.Ref) else None
            if self._free(node.add, i, source, w):
                self._places[node.name] = out = residual
            else:
                out = self._new(node)
                if not whole:
                    self._copy(f"{node.name}.copy", residual, out)
                    residual = out
        out = replace(out, row=out.row + node.at, rows=node.rows)
        residual = residual and replace(residual, row=residual.row + node.at, rows=node.rows)
        fields: dict[str, Any] = {"gelu": node.act, "residual": residual, "source": node.source, "walk": walk}
        row_max = self._keep(node) if whole else RowMax.NONE
        windows = self.graph.values[node.name].groups if isinstance(node.matrix.w, q.Ref) else 1
        if windows == 1:
            self._matmul(node.layer or node.name, out, x, node.matrix, node.convert, row_max=row_max, **fields)
            return
        assert isinstance(node.matrix.w, q.Ref)
        tokens = out.cols // windows  # columns of a product of two values lie in one group
        for n in range(windows):
            matrix = replace(node.matrix, w=node.matrix.w.part(n * tokens, tokens))
            part = _columns(out, slice(n * tokens, (n + 1) * tokens))
            self._matmul(f"{node.layer or node.name}.{n}", part, x, matrix, node.convert, **fields)

    def _stack(self, node: q.Stack, i: int) -> None:
        out = self._places[node.name] if node.name in self._places else self._new(node)
        row, row_max = 0, self._keep(node)
        for n, piece in enumerate(node.pieces):
            name = node.name if len(node.pieces) == 1 else f"{node.name}.{n}"
            if piece.x.value not in self._stacked:
                self._piece(name, piece, replace(out, row=row, rows=piece.count), row_max, node.source)
            row += piece.count

    def _join(self, node: q.Join, i: int) -> None:
        out, col = self._places[node.name] if node.name in self._places else self._new(node), 0
        for n, piece in enumerate(node.pieces):
            end = col + len(piece.mult)
            if piece.x.value not in self._joined:
                self._piece(f"{node.name}.{n}", piece, _columns(out, slice(col, end)), RowMax.NONE, node.source)
            col = end

    def _piece(self, name: str, piece: q.Piece, out: View, row_max: RowMax, source: str) -> None:
        """Rows of a value copied by walks. Rows of zeros come first: what covers all of them may cover others."""
        x = self.view(piece.x)
        rows = np.arange(x.rows) if piece.rows is None else piece.rows
        held, zeros = nests.walks(rows, x.rows)
        nothing = np.zeros_like(piece.mult), np.zeros_like(piece.bias)
        for walk, mult, bias in [*((w, *nothing) for w in zeros), *((w, piece.mult, piece.bias) for w in held)]:
            fields: dict[str, Any] = {"shift": piece.shift, "row_max": row_max, "source": source}
            self._emit(ReduceWindow, name, out, x, walk, mult, bias, **fields)

    def _select(self, node: q.Select, i: int) -> None:
        self._emit(SelectRows, node.name, self._new(node), self.view(node.x), self.view(node.scores), node.first, node.source)

    def _scan(self, node: q.Scan, i: int) -> None:
        read = [self.view(r) for r in (node.x, node.steps, node.mix, node.params)]
        fields = node.shifts, node.backwards, node.source
        self._emit(ScanRows, node.layer or node.name, self._new(node), *read, *fields)

    def _window(self, node: q.Window, i: int) -> None:
        x, out, row_max = self.view(node.x), self._new(node), self._keep(node)
        fields: dict[str, Any] = {"weights": node.weights, "before": node.before, "shift": node.shift, "gelu": node.act}
        fields |= {"row_max": row_max, "source": node.source}
        for walk, mult in zip(node.walks, node.mults, strict=True):
            self._emit(ReduceWindow, node.layer or node.name, out, x, walk, mult, node.bias, node.reduce, **fields)

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
        asking, asked = queries.rows // node.windows, keys.rows // node.windows
        turns = min(2, heads * node.windows)
        scores = [self._buffer(f"{node.name}.scores{n}", asking, asked) for n in range(turns)]
        row_max, width, depth = self._keep(node), out.cols // heads, queries.cols // heads
        for w, h in np.ndindex(node.windows, heads):
            place, head = scores[(w * heads + h) % turns], slice(h * depth, (h + 1) * depth)
            bias, name = node.bias(w, h), f"{h}" if node.windows == 1 else f"{w}.{h}"
            residual, products = None if bias is None else self.view(bias), node.scores(h)
            for n, (one, other, (col, shift)) in enumerate(products):
                last, x, k = n == len(products) - 1, self.view(one), self.view(other)
                more: dict[str, Any] = {"row_max": RowMax.SIGNED if last else RowMax.NONE, "source": node.source}
                more["w"] = _columns(replace(k, row=k.row + w * asked, rows=asked), head)
                more["residual"] = residual
                factor = q.Matrix(other, col, shift, None, q.UNIT_ROW)
                called = f"{node.name}.scores.{name}" if not n else f"{node.name}.scores.{name}.low{n - 1}"
                rows = replace(x, row=x.row + w * asking, rows=asking)
                self._matmul(called, place, _columns(rows, head), factor, Convert.STATIC, **more)
                residual = place
            more = {"row_max": row_max, "continue_max": h > 0 and row_max != RowMax.NONE, "source": node.source}
            matrix = node.head(h)
            assert isinstance(matrix.w, q.Ref)
            more["w"] = _columns(self.view(matrix.w), slice(w * asked, (w + 1) * asked))
            part = replace(out, row=out.row + w * asking, rows=asking)
            part = _columns(part, slice(h * width, (h + 1) * width))
            self._matmul(f"{node.name}.values.{name}", part, place, matrix, Convert.PROBABILITY, **more)

    def _route(self, node: q.Route, i: int) -> None:
        (experts,) = (n for n in self._readers[node.name] if isinstance(n, q.Experts))
        logits, dense = self.view(node.logits), None
        if experts.gates is not None:
            dense = self._buffer(f"{experts.layer}.gates", logits.rows, logits.cols, scale=2.0**-GATE_BITS)
        self._places[node.name] = dense or logits
        self._emit(RouteTokens, node.name, logits, node.top_k, node.renormalise, dense, node.loads, node.source)

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
        for turn, e in enumerate(node.turns):
            first, second = node.first[e], node.second[e]
            if second is None:
                continue
            between, rows, place = hidden[turn % 2], x, out
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


def _readers(graph: q.QGraph) -> dict[str, list[tuple[q.Node, q.Ref]]]:
    """Of each value all that read it, and how."""
    found: dict[str, list[tuple[q.Node, q.Ref]]] = {}
    for node in graph.nodes:
        for ref in node.reads():
            found.setdefault(ref.value, []).append((node, ref))
    return found


def _read_by_walks(graph: q.QGraph) -> dict[str, tuple[q.Ref, Walk]]:
    """Gathered rows that products read where they lie: value -> (the rows that it is of, how).

    Only what products alone read, row by row, and one walk goes through.
    """
    kept = {o.x.value for o in graph.outputs}
    found: dict[str, tuple[q.Ref, Walk]] = {}
    readers = _readers(graph)
    for node in graph.nodes:
        if not isinstance(node, q.Stack) or node.name in kept or len(node.pieces) > 1 or not node.pieces[0].plain:
            continue
        (piece,) = node.pieces
        by_rows = all(
            isinstance(n, q.Product) and n.x is ref and ref.rows == piece.count and n.walk is None and n.add is not ref
            for n, ref in readers.get(node.name, [])
        )
        if piece.rows is not None and by_rows and (walk := nests.walk(piece.rows, piece.x.rows)) is not None:
            found[node.name] = piece.x, walk
    return found


def _made_in_stacks(graph: q.QGraph) -> dict[str, tuple[q.Stack, int]]:
    """Windows' values that a Stack alone reads, as they are: value -> (the Stack in whose place it is made, its first row there).

    One piece of it is copied, at least, which is the operation that finishes it.
    """
    kept = {o.x.value for o in graph.outputs}
    readers = _readers(graph)
    windows = {node.name for node in graph.nodes if isinstance(node, q.Window)} - kept
    found: dict[str, tuple[q.Stack, int]] = {}
    for node in (node for node in graph.nodes if isinstance(node, q.Stack)):
        row, inside, groups = 0, {}, graph.values[node.name].groups
        for piece in node.pieces:
            value, name = graph.values[piece.x.value], piece.x.value
            whole = piece.plain and piece.rows is None and piece.x == q.Ref(name, 0, value.rows)
            if whole and name in windows and len(readers[name]) == 1 and value.groups == groups:
                inside[name] = node, row
            row += piece.count
        found |= inside if len(inside) < len(node.pieces) else {}
    return found


def _made_in_joins(graph: q.QGraph) -> dict[str, tuple[q.Join, int]]:
    """The same of a Join, and of products, as heads are, that it holds alone: value -> (the Join, its first column there)."""
    kept = {o.x.value for o in graph.outputs}
    readers = _readers(graph)
    windows = {node.name for node in graph.nodes if isinstance(node, q.Window)} - kept
    products = {node.name for node in graph.nodes if isinstance(node, q.Product) and node.add is None} - kept
    found: dict[str, tuple[q.Join, int]] = {}
    for node in (node for node in graph.nodes if isinstance(node, q.Join)):
        col, whole = 0, dict[str, tuple[q.Join, int]]()
        for piece in node.pieces:
            value, name = graph.values[piece.x.value], piece.x.value
            if piece.plain and piece.rows is None and piece.x == q.Ref(name, 0, value.rows) and len(readers[name]) == 1:
                whole[name] = node, col
            col += len(piece.mult)
        inside = {name: at for name, at in whole.items() if name in windows}
        if len(inside) < len(node.pieces):
            found |= inside
        if whole.keys() <= products and len(whole) == len(node.pieces):
            found |= whole
    return found


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
