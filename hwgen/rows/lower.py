"""L -> row graph: a layer's value is an array [tokens, channels], made when something needs it and only once.

Layers that treat rows alike take the order in which their input stands; a layout is only an order of tokens or a choice of
channels, which goes into weights. What the row graph has no node for is a finding of the level `select`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import numpy as np

from .. import graph
from ..errors import Finding
from ..layers import Activation, Clip, Linear
from ..tensor import Builder, Concat, Copy, Gather, Input, Layout, Map, Node, Program, Ref
from .reasons import reason
from .views import Array, Place, Unsupported, View, as_rows, base, behind, shown, span

Make = Callable[["Rows", Node, int, int], str]  # name of rows start..stop of the value of a layer
Where = Callable[["Rows", Node], Place]
GONE = "?"  # a value that a finding explains


class Rows:
    """One lowering. `layers`: kind of layer -> (where its value stands, how rows of it are made)."""

    def __init__(self, program: Program, layers: Mapping[type, tuple[Where, Make]]):
        self.t = Builder()
        self.program, self.layers = program, layers
        self.nodes: list[graph.Node] = []
        self.names: set[str] = {n.op.name for n in program.nodes() if isinstance(n.op, Input)}
        self.findings: dict[Finding, None] = {}
        self.kinds: dict[str, str] = program.notes.get("operators", {})
        self.routes: dict[Any, str] = {}  # routers' row lists, by what they are made of
        self.ranges: dict[str, tuple[Array, Array]] = {}
        self._places: dict[Node, Place] = {}
        self._made: dict[Any, str] = {}
        self._derived: dict[Any, Any] = {}
        self._interned: dict[Any, Array] = {}
        self._at: dict[Ref, tuple[Node, Array | Layout]] = {}
        self._failed: set[Node] = set()

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
        """Rows and columns of the row graph that an operand shows, and of which layer."""
        if r not in self._at:
            self._at[r] = base(r) if isinstance(r.op, Copy | Gather | Concat) else (r.node, r.layout)
        node, at = self._at[r]
        if isinstance(node.op, Input) and len(r.shape) == 2 and not self.missing(node):
            node, at = self._pixels(r), Layout.dense(r.shape)
        return shown(r.shape, at, node, self.place(node))

    def _pixels(self, r: Ref) -> Node:
        """Patches of the image as they are: a linear layer that copies them."""
        self.t.name, self.t.source = "", r.node.source
        return self.t.node(Linear(), r, self.t.const(np.eye(r.shape[1], dtype=np.float32))).node

    def tokens(self, r: Ref) -> tuple[Node, int, Array | None]:
        """An operand [R, C] as (layer of these columns, first row, order of the rows)."""
        return self.of_columns(self.view(r))

    def of_columns(self, view: View) -> tuple[Node, int, Array | None]:
        if self.missing(view.node):
            return view.node, 0, None
        rows, columns = as_rows(view)
        first, order = span(rows)
        return self.columns(view.node, columns), first, order

    def columns(self, node: Node, columns: Array) -> Node:
        """A layer of some columns of a value, as far as possible by keeping those rows of its weight."""
        if np.array_equal(columns, np.arange(self.place(node).width)):
            return node
        key = node, columns.tobytes()
        if key not in self._derived:
            self._derived[key] = self._columns(node, columns)
        derived: Node = self._derived[key]
        return derived

    def _columns(self, node: Node, columns: Array) -> Node:
        op, index = node.op, self.t.const(columns)
        self.t.source, self.t.name = node.source, node.name
        if isinstance(op, Linear):
            x, *parts = node.operands
            return self.t.node(op, x, *(self.t.gather(p, index, 0) for p in parts)).node
        if isinstance(op, Activation | Clip) or (isinstance(op, Map) and op.function == "mul"):
            return self.t.node(op, *(self.t.gather(r, index, 1) for r in node.operands)).node
        return self.identity(node, columns)

    def identity(self, node: Node, columns: Array | None = None) -> Node:
        """A linear layer that copies columns of a value (all without `columns`); the value itself where it is one already."""
        if isinstance(node.op, Linear) and columns is None:
            return node
        place = self.place(node)
        if place.column is not None or node.shape != (place.rows, place.width):
            raise Unsupported("uses some channels of normalised queries or keys", "normalise queries and keys by themselves")
        eye = np.eye(place.width, dtype=np.float32)
        self.t.source, self.t.name = node.source, ""
        return self.t.node(Linear(), node.ref, self.t.const(eye if columns is None else eye[columns])).node

    # --- nodes ---

    def add(self, kind: type[graph.Node], node: Node, name: str, fallback: str, **parameters: Any) -> str:
        """Append a node of a unique readable name and return that name."""
        unique, n = name, 0
        while not unique or unique in self.names:
            unique, n = f"{name or fallback}_{n if not name else n + 1}", n + 1
        self.names.add(unique)
        self.nodes.append(kind(unique, **parameters, source=node.source))
        return unique

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
        """What a quantised file lets a value hold; of several limits for its readers, the widest."""
        old = self.ranges.get(name, (np.inf, -np.inf))
        self.ranges[name] = np.full(columns, np.minimum(low, old[0])), np.full(columns, np.maximum(high, old[1]))

    # --- what cannot be held ---

    def _fail(self, node: Node, no: Unsupported) -> None:
        """A finding, unless the node only suffers from one before it."""
        self._failed.add(node)
        if not any(self.missing(behind(r)) for r in node.operands):
            self.refuse(node, no.reason, no.hint)

    def refuse(self, node: Node, reason: str, hint: str = "") -> None:
        self._failed.add(node)
        source = node.source or node.name
        if any(f.node == source for f in self.findings):
            return  # of one ONNX node the first fault
        self.findings[Finding(source, self.kinds.get(source, node.op.kind), "select", reason, hint)] = None
