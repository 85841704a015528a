"""Level Q: the network in integers. Values with their scales, and nodes that make each value once; no buffer, no instruction.

A value holds int16 [rows, cols]: real = int16 * scale + offset. Every node defines itself by `evaluate`, whose arithmetic
is `hwgen.numerics`: `hwgen.select` turns nodes into operations of the machine, which compute the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from . import numerics as num
from . import patches
from .isa import Convert

Array = np.ndarray
UNIT_ROW = 1 << 15  # row multiplier where a row has no scale of its own: keeps the shift inside its range


@dataclass(frozen=True, eq=False)
class Value:
    """int16 [rows, cols]. `scale`: a float, [cols] or [rows, 1]; `offset`: None, a float or [cols]; `groups`: heads."""

    rows: int
    cols: int
    scale: float | Array = 1.0
    offset: float | Array | None = None
    groups: int = 1


@dataclass(frozen=True)
class Ref:
    """Rows row..row+rows of a value."""

    value: str
    row: int
    rows: int

    def part(self, row: int, rows: int) -> Ref:
        """Some of these rows."""
        return Ref(self.value, self.row + row, rows)

    def of(self, values: dict[str, Array]) -> Array:
        return values[self.value][self.row : self.row + self.rows]


@dataclass(frozen=True, eq=False)
class Matrix:
    """What stands still in a product, and how a sum becomes int16: numerics.requantise.

    w         int8 [N, K], or rows of a value
    col_mult  u16 [N], one for all, or None: the row scales of `w`, which is then converted row by row, else by its fixed step
    row       u16 for all rows, [R] one each, or None: what the conversion of x gives
    bias      int16 [N]
    """

    w: Array | Ref
    col_mult: Array | int | None
    shift: int
    bias: Array | None = None
    row: int | Array | None = None

    def times(self, x: Array, convert: Convert, values: dict[str, Array], gate: Array | None = None) -> Array:
        """int16 [R, N] of int16 x [R, K]."""
        x8, row, exponent = converted(x, convert)
        w8, col = self.w, self.col_mult
        if isinstance(w8, Ref):
            w8, scales, _ = converted(w8.of(values), Convert.ROW if col is None else Convert.STATIC)
            col = scales if col is None else col
        if self.row is not None:
            row, exponent = np.broadcast_to(np.int64(self.row), len(x)), np.zeros(len(x), np.int64)
        row = row if gate is None else num.gated_scale(row, gate)
        bias = 0 if self.bias is None else np.asarray(self.bias, np.int64)
        shift = self.shift + exponent[:, None]
        return num.requantise(num.product(x8, w8), np.asarray(col, np.int64), row[:, None], shift, bias)


def converted(x: Array, convert: Convert) -> tuple[Array, Array, Array]:
    """int8 operand of int16 rows, each row's multiplier (none for STATIC) and the exponent that goes with it."""
    none = np.zeros(len(x), np.int64)
    if convert == Convert.STATIC:
        return num.quantise_static(x), none, none
    if convert == Convert.ROW:
        return *num.quantise_rows(x, num.row_max_abs(x)), none
    p = num.probabilities(x, x.max(axis=1))
    return p, *num.reciprocal(p.sum(axis=1))


@dataclass(frozen=True, eq=False)
class Node:
    """Makes the value of its name. `layer`: the float layer that it belongs to, `source` its ONNX node."""

    name: str
    layer: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)

    def reads(self) -> list[Ref]:
        """All that the node reads."""
        found: list[Ref] = []
        for f in fields(self):
            held = getattr(self, f.name)
            for item in held if isinstance(held, tuple) else (held,):
                item = item.w if isinstance(item, Matrix) else item
                found += [item] if isinstance(item, Ref) else []
        return found

    def evaluate(self, values: dict[str, Array]) -> Array:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Image(Node):
    """The image [C, H, W] as patches (see `hwgen.patches`): 256 * int8(round((x - offset) / step)), [patches, C*ph*pw]."""

    image: str
    shape: tuple[int, int, int]
    patch: tuple[int, int]
    step: float
    offset: float
    stride: tuple[int, int] | None = None
    pads: patches.Pads = (0, 0, 0, 0)

    def evaluate(self, values: dict[str, Array]) -> Array:
        pixels = patches.pad(values[self.image].astype(np.float64), self.pads)
        return patches.patchify(num.quantise_image(pixels, self.step, self.offset), self.patch, self.stride)


@dataclass(frozen=True, eq=False)
class Table(Node):
    """A constant."""

    data: Array

    def evaluate(self, values: dict[str, Array]) -> Array:
        return self.data


@dataclass(frozen=True, eq=False)
class Product(Node):
    """act(x times the matrix), added to `add` from row `at` on where that is given (in its scale)."""

    x: Ref
    matrix: Matrix
    convert: Convert = Convert.ROW
    act: tuple[str, int] | None = None
    add: Ref | None = None
    at: int = 0

    def evaluate(self, values: dict[str, Array]) -> Array:
        y = self.matrix.times(self.x.of(values), self.convert, values)
        y = y if self.act is None else num.gelu(y, *self.act)
        if self.add is None:
            return y
        whole: Array = self.add.of(values).copy()
        rows = slice(self.at, self.at + len(y))
        whole[rows] = num.add_residual(whole[rows], y)
        return whole


@dataclass(frozen=True, eq=False)
class Shift(Node):
    """x + bias, saturated: what limits a value, and moves its offset."""

    x: Ref
    bias: Array  # int16 [cols]

    def evaluate(self, values: dict[str, Array]) -> Array:
        return num.add_residual(self.x.of(values), self.bias)


@dataclass(frozen=True, eq=False)
class Norm(Node):
    """numerics.layer_norm of the columns, or of each of `heads` column groups."""

    x: Ref
    gamma: Array  # int16 [cols]
    beta: Array  # int16 [cols]
    epsilon: int
    centred: bool = True
    heads: int = 1

    def evaluate(self, values: dict[str, Array]) -> Array:
        x, gamma, beta = (np.split(a, self.heads, axis=-1) for a in (self.x.of(values), self.gamma, self.beta))
        heads = zip(x, gamma, beta, strict=True)
        return np.concatenate([num.layer_norm(*head, self.epsilon, self.centred) for head in heads], axis=1)


@dataclass(frozen=True, eq=False)
class Multiply(Node):
    """numerics.multiply with `shift`, or with `pairs` numerics.turn."""

    x: Ref
    factor: Ref
    shift: int = num.GAMMA_SHIFT
    pairs: bool = False

    def evaluate(self, values: dict[str, Array]) -> Array:
        x, factor = self.x.of(values), self.factor.of(values)
        return num.turn(x, factor) if self.pairs else num.multiply(x, factor, self.shift)


@dataclass(frozen=True, eq=False)
class Attention(Node):
    """For each head softmax(q @ k.T * factor + bias) times its rows of v, which is [columns, tokens]; heads side by side.

    `factors`: (column multiplier, shift) of each head's scores; `biases`: none, or int16 [Tq, Tk] of each head;
    `matrix.w` is v.
    """

    q: Ref
    k: Ref
    matrix: Matrix
    factors: tuple[tuple[int, int], ...]
    biases: tuple[Ref, ...] = ()

    def head(self, h: int, rows: int) -> Matrix:
        """The matrix of one head, which has so many rows of v."""
        assert isinstance(self.matrix.w, Ref)
        part = slice(h * rows, (h + 1) * rows)
        col, bias = np.asarray(self.matrix.col_mult)[part], np.asarray(self.matrix.bias)[part]
        return Matrix(self.matrix.w.part(h * rows, rows), col, self.matrix.shift, bias)

    def evaluate(self, values: dict[str, Array]) -> Array:
        heads = len(self.factors)
        assert isinstance(self.matrix.w, Ref)
        parts = (np.split(num.quantise_static(r.of(values)), heads, axis=1) for r in (self.q, self.k))
        found = []
        for h, (q, k) in enumerate(zip(*parts, strict=True)):
            col, shift = self.factors[h]
            scores = num.requantise(num.product(q, k), col, UNIT_ROW, shift, 0)
            scores = num.add_residual(self.biases[h].of(values), scores) if self.biases else scores
            found.append(self.head(h, self.matrix.w.rows // heads).times(scores, Convert.PROBABILITY, values))
        return np.concatenate(found, axis=1)


@dataclass(frozen=True, eq=False)
class Route(Node):
    """numerics.route; its value is (experts [T, top_k], gate scores u16 [T, top_k])."""

    logits: Ref
    top_k: int
    renormalise: bool

    def evaluate(self, values: dict[str, Array]) -> Any:
        return num.route(self.logits.of(values), self.top_k, self.renormalise)


@dataclass(frozen=True, eq=False)
class Experts(Node):
    """`add` and for each token its experts' act(x @ first) @ second, times the gate scores; in order of the experts.

    `gates`: times the gate scores of all experts [T, E] (0 where not chosen): the experts' biases. None in `second`: that
    expert adds nothing. Without `route` expert e has rows e*S .. (e+1)*S of x for its own, and nothing is added.
    """

    x: Ref
    route: Ref | None
    add: Ref | None
    first: tuple[Matrix, ...]
    second: tuple[Matrix | None, ...]
    act: tuple[str, int]
    hidden_scale: float
    gates: Matrix | None = None

    def evaluate(self, values: dict[str, Array]) -> Array:
        x = self.x.of(values)

        def expert(e: int, rows: Array, gate: Array | None) -> Array:
            h, second = num.gelu(self.first[e].times(rows, Convert.ROW, values), *self.act), self.second[e]
            return np.zeros((len(rows), 1), np.int16) if second is None else second.times(h, Convert.ROW, values, gate)

        if self.route is None or self.add is None:
            return np.concatenate([expert(e, rows, None) for e, rows in enumerate(np.split(x, len(self.first)))])
        y: Array = self.add.of(values).copy()
        experts, scores = values[self.route.value]
        if self.gates is not None:
            dense = np.zeros((len(x), len(self.first)), np.int64)
            np.put_along_axis(dense, experts, num.saturate(scores, num.INT16_MAX), axis=1)
            y = num.add_residual(y, self.gates.times(dense.astype(np.int16), Convert.STATIC, values))
        for e in range(len(self.first)):
            tokens, slot = np.nonzero(experts == e)
            if len(tokens):
                y[tokens] = num.add_residual(y[tokens], expert(e, x[tokens], scores[tokens, slot]))
        return y


@dataclass(frozen=True)
class Output:
    """One ONNX output: a value in real units, transposed first where so, reshaped to `shape` (without the batch axis)."""

    name: str
    x: Ref
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass
class QGraph:
    """Values and nodes of one task, in execution order. `trace`: float value (hwgen.graph name) -> the rows that hold it."""

    values: dict[str, Value]
    nodes: list[Node]
    outputs: list[Output]
    task: str = ""
    trace: dict[str, Ref] = field(default_factory=dict)


def evaluate(graph: QGraph, images: dict[str, Array]) -> dict[str, Array]:
    """Every value of one image. `images`: ONNX input name -> float [C, H, W]."""
    values = dict(images)
    for node in graph.nodes:
        values[node.name] = node.evaluate(values)
    return values


def outputs(graph: QGraph, values: dict[str, Array]) -> dict[str, Array]:
    """The ONNX outputs, in float32, from what `evaluate` returned."""
    found = {}
    for o in graph.outputs:
        rows = o.x.of(values) * np.float64(graph.values[o.x.value].scale)
        found[o.name] = (rows.T if o.transposed else rows).astype(np.float32).reshape(o.shape)
    return found


def verify(graph: QGraph) -> None:
    """Raise ValueError naming the node whose operands, shapes or numbers are inconsistent."""
    known: set[str] = set()

    def need(condition: bool, node: Node, message: str) -> None:
        if not condition:
            raise ValueError(f"{node.name}: {message}")

    for node in graph.nodes:
        need(node.name in graph.values and node.name not in known, node, "makes no value of the graph, or one made before")
        for ref in node.reads():
            need(ref.value in known, node, f"reads {ref.value!r}, which no earlier node makes")
            rows = graph.values[ref.value].rows
            need(0 <= ref.row and ref.row + ref.rows <= rows, node, f"rows {ref.row}..{ref.row + ref.rows} of {rows}")
        known.add(node.name)
        value = graph.values[node.name]
        add = getattr(node, "add", None)
        if add is not None:
            other = graph.values[add.value]
            need(np.array_equal(value.scale, other.scale), node, f"adds steps of {other.scale} to steps of {value.scale}")
            need((add.rows, other.cols) == (value.rows, value.cols), node, f"adds {add} to [{value.rows}, {value.cols}]")
        for f in fields(node):
            held = getattr(node, f.name)
            for m in held if isinstance(held, tuple) else (held,):
                if isinstance(m, Matrix):
                    _check(graph, node, m, need)


def _check(graph: QGraph, node: Node, m: Matrix, need: Callable[[bool, Node, str], None]) -> None:
    """The numbers of a matrix fit the machine."""
    need(num.SHIFT_MIN <= m.shift <= num.SHIFT_MAX, node, f"shift {m.shift}")
    for what, number, low, high in (
        ("column multiplier", m.col_mult, 0, num.U16_MAX),
        ("row multiplier", m.row, 0, num.U16_MAX),
        ("bias", m.bias, -num.INT16_MAX, num.INT16_MAX),
        ("weight", None if isinstance(m.w, Ref) else m.w, -num.INT8_MAX, num.INT8_MAX),
    ):
        if number is not None:
            number = np.asarray(number)
            need(number.dtype.kind in "iu", node, f"{what} of type {number.dtype}")
            need(low <= number.min() and number.max() <= high, node, f"{what} {number.min()}..{number.max()}")
    if not isinstance(m.w, Ref):
        limit = num.INT8_MAX * int(np.abs(m.w, dtype=np.int64).sum(axis=1).max())
        need(limit <= num.ACC_MAX, node, f"sums up to {limit} overflow the accumulator")
    if isinstance(node, Product):
        n, k = (m.w.rows, graph.values[m.w.value].cols) if isinstance(m.w, Ref) else m.w.shape
        x, value = graph.values[node.x.value], graph.values[node.name]
        need((x.cols, value.cols) == (k, n), node, f"[{n}, {k}] times {x.cols} columns gives {value.cols}")
        need(node.at + node.x.rows <= value.rows, node, f"rows {node.at}..{node.at + node.x.rows} of {value.rows}")
