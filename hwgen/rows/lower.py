"""L -> row graph: a layer's value is an array [tokens, channels], made when something needs it and only once.

Layers that treat rows alike take the order in which their input stands; a layout is only an order of tokens or a choice of
channels, which goes into weights. What the row graph has no node for is a finding of the level `select`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from .. import graph
from ..errors import Finding
from ..layers import Activation, Clip, Conv, Linear
from ..tensor import Builder, Concat, Const, Copy, Gather, Input, Layout, Map, Node, Pad, Program, Ref
from .operands import Operand, kept, settled
from .reasons import reason
from .shifts import shifted
from .standing import Standing, upright
from .views import LOWEST, ZERO, Array, Place, Unsupported, View, shown

Make = Callable[["Rows", Node, int, int], str]  # name of rows start..stop of the value of a layer
Where = Callable[["Rows", Node], Place]
T = TypeVar("T")
GONE = "?"  # a value that a finding explains
LEAST = -1e30  # below this a border is less than any number


class Rows:
    """One lowering. `layers`: kind of layer -> (where its value stands, how rows of it are made)."""

    def __init__(self, program: Program, layers: Mapping[type, tuple[Where, Make]]):
        self.t = Builder()
        self.program, self.layers = program, layers
        self.nodes: list[graph.Node] = []
        self.names: set[str] = {n.op.name for n in program.nodes() if isinstance(n.op, Input)}
        self.counts: dict[tuple[str, str], int] = {}
        self.findings: dict[Finding, None] = {}
        self.kinds: dict[str, str] = program.notes.get("operators", {})
        self.routes: dict[Any, str] = {}  # routers' row lists, by what they are made of
        self.ranges: dict[str, tuple[Array, Array]] = {
            name: (np.full(1, low), np.full(1, high)) for name, (low, high) in program.notes.get("ranges", {}).items()
        }
        self._places: dict[Node, Place] = {}
        self._made: dict[Any, str] = {}
        self._derived: dict[Any, Any] = {}
        self._interned: dict[Any, Array] = {}
        self.shapes = {op.name: tuple(op.shape[1:]) for op in program.inputs()}
        self.arranged: dict[Node, Any] = {}  # elementwise nodes with their operands in one order
        self.moved: dict[Any, str] = {}  # nodes that move rows
        self._leaves: dict[Node, tuple[tuple[Node, ...], Array, Array]] = {}
        self._operands: dict[Any, Operand] = {}
        self._failed: set[Node] = set()

    def once(self, what: str, of: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made the first time that it is asked for; `of`: what it is made of."""
        key = what, of
        if key not in self._derived:
            self._derived[key] = make()
        found: T = self._derived[key]
        return found

    # --- values ---

    def place(self, node: Node) -> Place:
        """Where the value of a layer stands."""
        if node not in self._places:
            self._places[node] = self._place(node)
        return self._places[node]

    def _place(self, node: Node) -> Place:
        width = node.shape[-1] if node.shape else 1
        plain = Place(max(node.size, 1) // max(width, 1), width)
        if self.missing(node):
            return plain
        kind = self.layers.get(type(node.op))
        if kind is None:
            self.refuse(node, *reason(node))
            return plain
        try:
            return kind[0](self, node)
        except Unsupported as no:
            self._fail(node, no)
            return plain

    def missing(self, node: Node) -> bool:
        """Whether a finding explains why there is no such value."""
        return node in self._failed or (isinstance(node.op, Input) and node.op.name.startswith("?"))

    def value(self, node: Node, start: int = 0, stop: int | None = None) -> str:
        """Name of rows start..stop of a layer's value, in the order in which they stand."""
        place = self.place(node)
        stop = place.rows if stop is None else stop
        if self.missing(node):
            return GONE
        if isinstance(node.op, Input):
            return node.op.name
        key = node, start, stop
        if key not in self._made:
            try:
                self._made[key] = self.layers[type(node.op)][1](self, node, start, stop)
            except Unsupported as no:
                self._fail(node, no)
                return GONE
        return self._made[key]

    def rows_of(self, node: Node, start: int, stop: int, make: Callable[[], str]) -> str:
        """Rows of what can only be made as a whole."""
        if (start, stop) == (0, self.place(node).rows):
            return make()
        return self.add(graph.Rows, node, "", "rows", x=self.value(node), start=start, stop=stop)

    def view(self, r: Ref) -> View:
        """Rows and columns of the row graph that an operand shows, and of which layers."""
        if len(r.shape) == 2 and self._of_image(r):
            node, at = self._pixels(r), Layout.dense(r.shape)
            return View((node,), r.shape, *shown(at, node, self.place(node)))
        if isinstance(r.op, Concat) and (cut := self.once("shifted", r, lambda: shifted(self.t, r))) is not None:
            return View((cut,), r.shape, *shown(Layout.dense(r.shape), cut, self.place(cut)))
        if not moves(r):
            node, at = r.node, r.layout
            return View((node,), r.shape, *shown(at, node, self.place(node)))
        sources, which, place = self._moved(r.node)
        index = r.layout.positions()
        which, place = which[index], place[index]
        used = [s for i, s in enumerate(sources) if (which == i).any()]
        rows, columns = np.zeros(r.shape, np.int64), np.zeros(r.shape, np.int64)
        number = np.full(r.shape, ZERO, np.int64)
        number[which == LOWEST] = LOWEST
        for i, source in enumerate(sources):
            here = which == i
            if source in used and here.any():
                rows[here], columns[here] = shown(place[here], source, self.place(source))
                number[here] = used.index(source)
        if not used:
            raise Unsupported("does not depend on the image")
        return View(tuple(used), r.shape, rows, columns, None if len(used) == 1 and not number.any() else number)

    def _moved(self, node: Node) -> tuple[tuple[Node, ...], Array, Array]:
        """(layers, which of them, position in its value), of each element of the value of a node that moves elements."""
        if node not in self._leaves:
            op = node.op
            parts = [self._flat(r) for r in (node.operands[:1] if isinstance(op, Gather) else node.operands)]
            sources = tuple(dict.fromkeys(s for own, _, _ in parts for s in own))
            arrays = []
            for own, which, place in parts:
                numbers = np.array([*(sources.index(s) for s in own), LOWEST, ZERO])
                arrays.append((numbers[which], place))
            if isinstance(op, Concat):
                which, place = (np.concatenate([a[i] for a in arrays], axis=op.axis) for i in (0, 1))
            elif isinstance(op, Gather):
                index = np.asarray(node.operands[1].constant)
                which, place = (np.take(a, index, axis=op.axis) for a in arrays[0])
            elif isinstance(op, Pad):
                if op.value and op.value > LEAST:
                    raise Unsupported(f"pads a value by {op.value:g}", "pad by zeros")
                widths = list(zip(op.before, op.after, strict=True))
                which = np.pad(arrays[0][0], widths, constant_values=LOWEST if op.value else ZERO)
                place = np.pad(arrays[0][1], widths)
            else:
                which, place = arrays[0]
            self._leaves[node] = sources, which.reshape(-1), place.reshape(-1)
        return self._leaves[node]

    def _flat(self, r: Ref) -> tuple[tuple[Node, ...], Array, Array]:
        index = r.layout.positions()
        if isinstance(r.op, Const) and r.scalar == 0:
            return (), np.full(r.shape, ZERO), np.zeros(r.shape, np.int64)
        if isinstance(r.op, Input) and len(r.shape) >= 3 and not self.missing(r.node):
            return self._map_of(r)
        if not moves(r):
            return (r.node,), np.zeros(r.shape, np.int64), index
        sources, which, place = self._moved(r.node)
        return sources, which[index], place[index]

    def _pixels(self, r: Ref) -> Node:
        """Patches of the image as they are: a linear layer that copies them."""
        self.t.name, self.t.source = "", r.node.source
        return self.t.node(Linear(), r, self.t.const(np.eye(r.shape[1], dtype=np.float32))).node

    def _of_image(self, r: Ref) -> bool:
        """Whether r shows pixels, with a border or without."""
        inner = r.node.operands[0] if isinstance(r.op, Pad) and not r.op.value else r
        return isinstance(inner.op, Input) and not self.missing(inner.node) and (inner is r or inner.whole)

    def _map_of(self, r: Ref) -> tuple[tuple[Node, ...], Array, Array]:
        """Pixels [.., C, H, W], which may be cut out of the image in any way, as a map of tokens."""
        *lead, channels, height, width = r.shape
        axes = list(range(len(lead)))
        x = self.t.reshape(self.t.transpose(r, [*axes, len(lead) + 1, len(lead) + 2, len(lead)]), (-1, channels))
        node = self._pixels(x)
        at = np.arange(node.size).reshape(*lead, height, width, channels)
        return (node,), np.zeros(r.shape, np.int64), np.moveaxis(at, -1, -3)

    def lost(self, view: View) -> bool:
        """Whether a finding explains why what a view shows is missing."""
        return any(self.missing(s) for s in view.sources)

    def tokens(self, r: Ref) -> Operand:
        """An operand [R, C] of a layer that treats rows alike."""
        if r not in self._operands:
            self._operands[r] = self.settled([self.view(r)])[0]
        return self._operands[r]

    def settled(self, views: list[View]) -> list[Operand]:
        """`operands.settled`, of which what a finding explains is gone."""
        if any(self.lost(v) for v in views):
            return [Operand.missing(v.shape) for v in views]
        return settled([self.upright(v) for v in views])

    def kept(self, view: View) -> Operand:
        """`operands.kept`, or gone."""
        return Operand.missing(view.shape) if self.lost(view) else kept(self.upright(view))

    def upright(self, view: View, split: int = 1) -> View:
        """`standing.upright`."""
        return upright(view, split, self.transposed)

    def transposed(self, source: Node) -> Node:
        """The value of a layer with its rows as columns."""
        return self.once("transposed", source, lambda: self._transposed(source))

    def _transposed(self, source: Node) -> Node:
        r = self.standing(source)
        self.t.name, self.t.source = "", source.source
        return self.t.node(Standing(), self.t.transpose(r, (1, 0))).node

    def part(self, node: Node, columns: Array, start: int, stop: int) -> str:
        """Name of columns of rows start..stop of a layer's value."""
        return self.value(self.columns(node, columns), start, stop)

    def columns(self, node: Node, columns: Array) -> Node:
        """A layer of some columns of a value, as far as possible by keeping those rows of its weight."""
        if np.array_equal(columns, np.arange(self.place(node).width)):
            return node
        return self.once("columns", (node, columns.tobytes()), lambda: self._columns(node, columns))

    def _columns(self, node: Node, columns: Array) -> Node:
        op, at, index = node.op, self.place(node), self.t.const(columns)
        self.t.source, self.t.name = node.source, node.name
        made: Node | None = None
        if isinstance(op, Linear) and at.at is None or isinstance(op, Conv) and op.groups == 1:
            x, *parts = node.operands
            made = self.t.node(op, x, *(self.t.gather(p, index, 0) for p in parts)).node
        elif at.at is None and node.shape[1:] == (at.width,) and len(np.unique(columns)) == len(columns):
            if isinstance(op, Activation | Clip) or (isinstance(op, Map) and op.function == "mul"):
                made = self.t.node(op, *(self.t.gather(r, index, 1) for r in node.operands)).node
        # few columns may stand another way than many: channels as rows, or rows in another order
        return made if made is not None and self.place(made).alike(at) else self.identity(node, columns)

    def identity(self, node: Node, columns: Array | None = None) -> Node:
        """A linear layer that copies columns of a value (all without `columns`); the value itself where it is one already."""
        if isinstance(node.op, Linear | Conv) and columns is None:
            return node
        place = self.place(node)
        eye = np.eye(place.width, dtype=np.float32)
        weight = self.t.const(eye if columns is None else eye[columns])
        self.t.source, self.t.name = node.source, ""
        return self.t.node(Linear(), self.standing(node), weight).node

    def standing(self, node: Node) -> Ref:
        """The value of a layer as it stands in the row graph, [rows, width]: itself, or moved where its own order is another."""
        place = self.place(node)
        if place.column is None and place.row is None and place.at is None and node.shape == (place.rows, place.width):
            return node.ref
        where = np.full(place.rows * place.width, -1)
        rows, columns = shown(Layout.dense(node.shape), node, place)
        where[np.broadcast_to(rows * place.width + columns, node.shape).reshape(-1)] = np.arange(node.size)
        if (where < 0).any():
            raise Unsupported("uses some channels of a value of which others are not used")
        flat = self.t.reshape(node.ref, (node.size,))
        return self.t.reshape(self.t.gather(flat, self.t.const(where), 0), (place.rows, place.width))

    # --- nodes ---

    def add(self, kind: type[graph.Node], node: Node, name: str, fallback: str, **parameters: Any) -> str:
        """Append a node of a unique readable name and return that name; gone where one of its operands is."""
        if any(v == GONE or (isinstance(v, tuple) and GONE in v) for v in parameters.values() if isinstance(v, str | tuple)):
            return GONE
        unique, n = name, self.counts.get((name, fallback), 0)
        while not unique or unique in self.names:
            unique, n = f"{name or fallback}_{n if not name else n + 1}", n + 1
        self.counts[name, fallback] = n  # names up to there are taken
        self.names.add(unique)
        self.nodes.append(kind(unique, **parameters, source=node.source))
        return unique

    def diagonal(self, node: Node, x: str, gain: Array, term: Array | None = None) -> str:
        """Gain and offset of each channel of a value: a product with a diagonal matrix."""
        bias = None if term is None or not term.any() else self.intern(term)
        return self.add(graph.Linear, node, "", "scale", x=x, weight=self.intern(np.diag(gain)), bias=bias)

    def times(self, node: Node, x: str, table: Array) -> str:
        """Rows of a value times constants that differ from row to row."""
        return x if (table == 1).all() else self.add(graph.Multiply, node, "", "multiply", a=x, b=self.table(node, table))

    def plus(self, node: Node, x: str, table: Array) -> str:
        """Rows of a value plus constants that differ from row to row."""
        none = np.zeros((0, table.shape[1]), np.float32)
        return self.add(graph.Embed, node, "", "embed", x=x, prefix=none, position=self.intern(table)) if table.any() else x

    def table(self, node: Node, table: Array) -> str:
        """Constant rows [R, C] as a value: any row of what comes from the image times zero, plus these."""
        table = self.intern(table)
        key = "table", id(table)
        if key not in self._made:
            if not self.nodes and self.findings:
                return GONE
            if not self.nodes:
                raise Unsupported("does not depend on the image")
            first = self.nodes[0]
            if GONE in first.inputs:
                return GONE
            row = self.add(graph.Rows, node, "", "rows", x=first.name, start=0, stop=1)
            width = graph.shapes(graph.Graph(self.shapes, self.nodes[:1], []))[first.name][1]
            none = self.intern(np.zeros((table.shape[1], width), np.float32))
            bias = self.intern(table[0]) if len(table) == 1 else None
            name = self.add(graph.Linear, node, "", "constant", x=row, weight=none, bias=bias)
            if len(table) > 1:
                prefix = np.zeros((0, table.shape[1]), np.float32)
                name = self.add(graph.Embed, node, "", "constants", x=name, prefix=prefix, position=table)
            self._made[key] = name
        return self._made[key]

    def constant(self, node: Node, source: Node, columns: Array, start: int, stop: int) -> str:
        """Rows start..stop of a constant as a value."""
        numbers = np.asarray(source.op.array, np.float32)
        return self.table(node, numbers.reshape(-1, numbers.shape[-1] if numbers.ndim else 1)[start:stop, columns])

    def array(self, r: Ref, what: str = "a parameter") -> Array:
        """A constant operand as contiguous float32, one object for all of the same content."""
        found = r.constant
        if found is None:
            raise Unsupported(f"{what} is computed from the image")
        if not np.isfinite(found).all():
            raise Unsupported("its constant holds infinity or NaN, which only an attention mask may")
        return self.intern(found)

    def intern(self, array: Array) -> Array:
        """One object for equal arrays, so that layers of several tasks show that they share weights."""
        array = np.ascontiguousarray(array, np.float32)
        kept = self._interned.setdefault((array.shape, crc32(array.data)), array)
        return kept if kept is array or np.array_equal(kept, array) else array

    def limit(self, name: str, low: float, high: float, columns: int) -> None:
        """What a quantised file lets a value hold, if the value is there; of several limits for its readers, the widest."""
        if name == GONE:
            return
        old = self.ranges.get(name, (np.inf, -np.inf))
        self.ranges[name] = np.full(columns, np.minimum(low, old[0])), np.full(columns, np.maximum(high, old[1]))

    # --- what cannot be held ---

    def _fail(self, node: Node, no: Unsupported) -> None:
        """A finding, unless the node only suffers from one before it."""
        self._failed.add(node)
        if not any(self._suffers(r) for r in node.operands):
            self.refuse(node, no.reason, no.hint)

    def _suffers(self, r: Ref) -> bool:
        """Whether what an operand shows is missing."""
        return (
            any(map(self._suffers, r.node.operands[:1] if isinstance(r.op, Gather) else r.node.operands))
            if moves(r)
            else (self.missing(r.node))
        )

    def refuse(self, node: Node, reason: str, hint: str = "") -> None:
        self._failed.add(node)
        source = node.source or (node.op.name if isinstance(node.op, Input) else node.name)
        if any(f.node == source for f in self.findings):
            return  # of one ONNX node the first fault
        self.findings[Finding(source, self.kinds.get(source, node.op.kind), "select", reason, hint)] = None


def moves(r: Ref) -> bool:
    """Whether the node of r does nothing but move elements to places that are known."""
    op = r.op
    return isinstance(op, Copy | Concat | Pad) or (
        isinstance(op, Gather) and not op.elements and r.node.operands[1].constant is not None
    )
