"""Level Q: the network in integers. Values with their scales, and nodes that make each value once; no buffer, no instruction.

A value holds int16 [rows, cols]: real = int16 * scale + offset. The arithmetic of every node is in `hwgen.numerics`:
`sim.quantised` evaluates nodes, `hwgen.select` turns them into operations of the machine, with the same integers.
"""

from __future__ import annotations

from collections.abc import Iterator
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


@dataclass(frozen=True, eq=False)
class Matrix:
    """What stands still in a product, and how a sum becomes int16: numerics.requantise.

    w         int8 [N, K], or rows of a value
    col_mult  u16 [N], one for all, or None: the row scales of `w`, which is then converted row by row, else by its fixed step
    bias      int16 [N]
    row       u16 for all rows, [R] one each, or None: what the conversion of x gives
    """

    w: Array | Ref
    col_mult: Array | int | None
    shift: int
    bias: Array | None = None
    row: int | Array | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """Makes the value of its name. `layer`: the float layer that it belongs to, `source` its ONNX node."""

    name: str
    layer: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)

    def operands(self) -> Iterator[Any]:
        """Its fields, those that are tuples one by one."""
        for f in fields(self):
            held = getattr(self, f.name)
            yield from held if isinstance(held, tuple) else (held,)

    def matrices(self) -> list[Matrix]:
        return [item for item in self.operands() if isinstance(item, Matrix)]

    def reads(self) -> list[Ref]:
        """All that the node reads."""
        return [item for item in (*self.operands(), *(m.w for m in self.matrices())) if isinstance(item, Ref)]


@dataclass(frozen=True, eq=False)
class Image(Node):
    """The image [C, H, W] as patches (see `hwgen.patches`): 256 * int8(round((x - offset) / step)), [patches, C*ph*pw]."""

    image: str
    shape: tuple[int, ...]
    patch: patches.Patch
    step: float
    offset: float
    stride: tuple[int, int] | None = None
    pads: patches.Pads = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Table(Node):
    """A constant, int16."""

    data: Array


@dataclass(frozen=True, eq=False)
class Product(Node):
    """act(x times the matrix), added to `add` from row `at` on where that is given (in its scale)."""

    x: Ref
    matrix: Matrix
    convert: Convert = Convert.ROW
    act: tuple[str, int] | None = None
    add: Ref | None = None
    at: int = 0


@dataclass(frozen=True, eq=False)
class Shift(Node):
    """x + bias (int16 [cols]), saturated: what limits a value, and moves its offset."""

    x: Ref
    bias: Array


@dataclass(frozen=True, eq=False)
class Norm(Node):
    """numerics.layer_norm of the columns, or of each of `heads` column groups; gamma and beta int16 [cols]."""

    x: Ref
    gamma: Array
    beta: Array
    epsilon: int
    centred: bool = True
    heads: int = 1


@dataclass(frozen=True, eq=False)
class Multiply(Node):
    """numerics.multiply with `shift`, or with `pairs` numerics.turn."""

    x: Ref
    factor: Ref
    shift: int = num.GAMMA_SHIFT
    pairs: bool = False


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

    def head(self, h: int) -> Matrix:
        """The matrix of one head."""
        m = self.matrix
        assert isinstance(m.w, Ref)
        rows = m.w.rows // len(self.factors)
        part = slice(h * rows, (h + 1) * rows)
        return Matrix(m.w.part(part.start, rows), np.asarray(m.col_mult)[part], m.shift, np.asarray(m.bias)[part])


@dataclass(frozen=True, eq=False)
class Route(Node):
    """numerics.route; its value is (experts [T, top_k], gate scores u16 [T, top_k])."""

    logits: Ref
    top_k: int
    renormalise: bool


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


def verify(graph: QGraph) -> None:
    """Raise ValueError naming the node whose operands, shapes or numbers are inconsistent."""
    known: set[str] = set()
    for node in graph.nodes:

        def need(condition: bool, message: str, node: Node = node) -> None:
            if not condition:
                raise ValueError(f"{node.name}: {message}")

        need(node.name in graph.values and node.name not in known, "makes no value of the graph, or one made before")
        for ref in node.reads():
            need(ref.value in known, f"reads {ref.value!r}, which no earlier node makes")
            rows = graph.values[ref.value].rows
            need(0 <= ref.row and ref.row + ref.rows <= rows, f"rows {ref.row}..{ref.row + ref.rows} of {rows}")
        known.add(node.name)
        value, add = graph.values[node.name], getattr(node, "add", None)
        if add is not None:
            other = graph.values[add.value]
            need(np.array_equal(value.scale, other.scale), f"adds steps of {other.scale} to steps of {value.scale}")
            need((add.rows, other.cols) == (value.rows, value.cols), f"adds {add} to [{value.rows}, {value.cols}]")
        for m in node.matrices():
            need(num.SHIFT_MIN <= m.shift <= num.SHIFT_MAX, f"shift {m.shift}")
            for what, number, low, high in (
                ("column multiplier", m.col_mult, 0, num.U16_MAX),
                ("row multiplier", m.row, 0, num.U16_MAX),
                ("bias", m.bias, -num.INT16_MAX, num.INT16_MAX),
                ("weight", None if isinstance(m.w, Ref) else m.w, -num.INT8_MAX, num.INT8_MAX),
            ):
                if number is not None:
                    a = np.asarray(number)
                    need(a.dtype.kind in "iu" and low <= a.min() and a.max() <= high, f"{what} {a.min()}..{a.max()}")
        if isinstance(node, Product):
            w, x = node.matrix.w, graph.values[node.x.value]
            n, k = (w.rows, graph.values[w.value].cols) if isinstance(w, Ref) else w.shape
            need((x.cols, value.cols) == (k, n), f"[{n}, {k}] times {x.cols} columns gives {value.cols}")
            need(node.at + node.x.rows <= value.rows, f"rows {node.at}..{node.at + node.x.rows} of {value.rows}")
