"""Level Q: the network in integers. Values with their scales, and nodes that make each value once; no buffer, no instruction.

A value holds int16 [rows, cols]: real = int16 * scale + offset. The arithmetic of every node is in `hwgen.numerics`:
`hwgen.sim.quantised` evaluates nodes, `hwgen.select` turns them into operations of the machine, with the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from . import numerics as num
from . import patches
from .isa import Convert, Reduce
from .numerics import ScanShifts
from .resampling import Resampled, by_weights
from .walks import Walk

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
class Piece:
    """Rows of a value in other steps: numerics.window_post of one tap, with `mult` u16 [cols], `shift` and `bias` int16 [cols].

    `rows`: which rows of x, in that order, a row of zeros where it is -1; None: all, as they stand.
    """

    x: Ref
    mult: Array
    bias: Array
    shift: int = num.WINDOW_ONE_SHIFT
    rows: Array | None = None

    @property
    def count(self) -> int:
        """Rows that come out."""
        return self.x.rows if self.rows is None else len(self.rows)

    @property
    def plain(self) -> bool:
        """Whether numbers stay as they are."""
        return bool(self.shift == num.WINDOW_ONE_SHIFT and (self.mult == num.WINDOW_ONE).all()) and not self.bias.any()


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
        held = [item.x if isinstance(item, Piece) else item for item in self.operands()]
        return [item for item in (*held, *(m.w for m in self.matrices())) if isinstance(item, Ref)]


@dataclass(frozen=True, eq=False)
class Image(Node):
    """The image as patches (see `hwgen.patches`): 256 * int8(round((x - offset) / step)), [patches, elements of one].

    `fine`: all 16 bits, round(256 * (x - offset) / step) of the same reach. `type`: of the numbers in the file's input.
    """

    image: str
    shape: tuple[int, ...]
    patch: patches.Patch
    step: float
    offset: float
    stride: patches.Patch | None = None
    pads: patches.Pads = ()
    fine: bool = False
    type: str = "float32"


@dataclass(frozen=True, eq=False)
class Table(Node):
    """A constant, int16."""

    data: Array


@dataclass(frozen=True, eq=False)
class Product(Node):
    """act(x times the matrix), added to `add` from row `at` on where that is given (in its scale).

    `walk`: which rows of x make which row, with taps whose columns stand side by side in the matrix; convert is STATIC.
    """

    x: Ref
    matrix: Matrix
    convert: Convert = Convert.ROW
    act: tuple[str, int] | None = None
    add: Ref | None = None
    at: int = 0
    walk: Walk | None = None

    @property
    def rows(self) -> int:
        """Rows of the product."""
        return self.x.rows if self.walk is None else self.walk.rows


@dataclass(frozen=True, eq=False)
class Stack(Node):
    """Pieces of as many columns one below the other; of one piece: its rows gathered, or brought to another step."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Select(Node):
    """Rows first .. first + count of x in the order numerics.ranked of their scores, a column or a row of as many."""

    x: Ref
    scores: Ref
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Scan(Node):
    """numerics.scan over the rows, or `backwards` over them: x and steps [T, C], mix [T, 2 N], params [1 + N, C]."""

    x: Ref
    steps: Ref
    mix: Ref
    params: Ref
    shifts: ScanShifts
    backwards: bool = False


@dataclass(frozen=True, eq=False)
class Join(Node):
    """Pieces of as many rows side by side."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Window(Node):
    """act(numerics.window_post(numerics.reduce_window)): each walk makes its rows with a multiplier [cols] of its own.

    weights  int8 [taps, cols] where `reduce` is WEIGHTED, but for a `Resampled` walk, which has its own
    bias     int16 [cols]
    """

    x: Ref
    walks: tuple[Walk, ...]
    mults: tuple[Array, ...]
    bias: Array
    reduce: Reduce = Reduce.SUM
    weights: Array | None = None
    before: int = 0
    shift: int = num.WINDOW_ONE_SHIFT
    act: tuple[str, int] | None = None

    @property
    def parts(self) -> list[tuple[Walk, Array, Array | None]]:
        """Each walk of the machine with its multipliers and weights."""
        pairs = zip(self.walks, self.mults, strict=True)
        return [(own, mult, w) for walk, mult in pairs for own, w in by_weights(walk, self.weights, len(mult))]


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
    """numerics.multiply with `shift`, or with `pairs` numerics.turn; `factor` may have one row for all."""

    x: Ref
    factor: Ref
    shift: int = num.GAMMA_SHIFT
    pairs: bool = False


@dataclass(frozen=True, eq=False)
class Attention(Node):
    """For each head softmax(q @ k.T * factor + bias) times its rows of v, which is [columns, tokens]; heads side by side.

    `factors`: (column multiplier, shift) of each head's scores; `matrix.w` is v. With several `windows` the tokens of q, of k
    and of v are those of one window after another, each by itself. `biases`: none, or int16 [Tq, Tk] of each head, or of
    each head of the first window, then of the next.

    `low`: none, or what int8 leaves of q and of k, whose products with the other one are added to the scores by `low_factors`:
    first those of q's, then those of k's.
    """

    q: Ref
    k: Ref
    matrix: Matrix
    factors: tuple[tuple[int, int], ...]
    biases: tuple[Ref, ...] = ()
    windows: int = 1
    low: tuple[Ref, ...] = ()
    low_factors: tuple[tuple[int, int], ...] = ()

    def bias(self, window: int, h: int) -> Ref | None:
        """What is added to the scores of a head."""
        return self.biases[(window * len(self.factors) + h) % len(self.biases)] if self.biases else None

    def scores(self, h: int) -> list[tuple[Ref, Ref, tuple[int, int]]]:
        """The products that make the scores of a head, in order: (queries, keys, factor)."""
        made = [(self.q, self.k, self.factors[h])]
        if self.low:
            q_low, k_low = self.low
            made += [(q_low, self.k, self.low_factors[h]), (self.q, k_low, self.low_factors[h])]
        return made

    def head(self, h: int) -> Matrix:
        """The matrix of one head."""
        m = self.matrix
        assert isinstance(m.w, Ref)
        rows = m.w.rows // len(self.factors)
        part = slice(h * rows, (h + 1) * rows)
        return Matrix(m.w.part(part.start, rows), np.asarray(m.col_mult)[part], m.shift, np.asarray(m.bias)[part])


@dataclass(frozen=True, eq=False)
class Route(Node):
    """numerics.route; its value is (experts [T, top_k], gate scores u16 [T, top_k]). `loads`: as in intgraph.RouteTokens."""

    logits: Ref
    top_k: int
    renormalise: bool
    loads: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Experts(Node):
    """`add` and for each token its experts' act(x @ first) @ second, times the gate scores; in `order`, or as they are numbered.

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
    order: tuple[int, ...] = ()

    @property
    def turns(self) -> tuple[int, ...]:
        """Every expert, in the order in which they add their results."""
        return self.order or tuple(range(len(self.first)))


@dataclass(frozen=True)
class Output:
    """One ONNX output: a value in real units, transposed first where so, reshaped to `shape` (without the batch axis)."""

    name: str
    x: Ref
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass
class QGraph:
    """Values and nodes of one task, in execution order. `trace`: float value (hwgen.graph name) -> the rows that hold it.

    `warnings`: what the integers cannot do as the file says, for people.
    """

    values: dict[str, Value]
    nodes: list[Node]
    outputs: list[Output]
    task: str = ""
    trace: dict[str, Ref] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


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
            taps = 1 if node.walk is None else node.walk.count
            need((taps * x.cols, value.cols) == (k, n), f"[{n}, {k}] times {taps} x {x.cols} columns gives {value.cols}")
            need(node.at + node.rows <= value.rows, f"rows {node.at}..{node.at + node.rows} of {value.rows}")
            need(node.walk is None or node.convert == Convert.STATIC, f"a walk with {node.convert.name} conversion")
        if isinstance(node, Route):
            need(len(node.loads) in (0, graph.values[node.logits.value].cols), f"loads of {len(node.loads)} experts")
        if isinstance(node, Experts):
            need(sorted(node.turns) == list(range(len(node.first))), f"order {node.order} of {len(node.first)} experts")
        if isinstance(node, Select):
            given = node.scores.rows, graph.values[node.scores.value].cols
            need(min(given) == 1 and max(given) == node.x.rows, f"scores {given} of {node.x.rows} rows")
            need((value.rows, value.cols) == (node.count, graph.values[node.x.value].cols), f"[{value.rows}, {value.cols}]")
            need(0 <= node.first <= node.x.rows - node.count, f"rows {node.first} to {node.first + node.count} of {node.x.rows}")
        if isinstance(node, Scan):
            cols = [graph.values[r.value].cols for r in (node.x, node.steps, node.mix, node.params)]
            fits = cols == [value.cols, value.cols, 2 * (node.params.rows - 1), value.cols]
            need(fits and node.x.rows == node.steps.rows == node.mix.rows == value.rows, f"operands of {cols} columns")
        if isinstance(node, Stack | Join):
            _check_pieces(graph, node, need)
        if isinstance(node, Window):
            _check_window(graph, node, need)
        if isinstance(node, Attention):
            heads, scores = len(node.factors), node.q.rows // node.windows
            need(len(node.biases) in (0, heads, heads * node.windows), f"{len(node.biases)} biases of {heads} heads")
            need(scores * node.windows == node.q.rows and node.k.rows % node.windows == 0, f"{node.windows} windows")


def _check_pieces(graph: QGraph, node: Stack | Join, need: Callable[[bool, str], None]) -> None:
    value = graph.values[node.name]
    cols = [graph.values[piece.x.value].cols for piece in node.pieces]
    rows = [piece.count for piece in node.pieces]
    if isinstance(node, Stack):
        need(set(cols) == {value.cols} and sum(rows) == value.rows, f"[{rows}, {cols}] as [{value.rows}, {value.cols}]")
    else:
        need(set(rows) == {value.rows} and sum(cols) == value.cols, f"[{rows}, {cols}] as [{value.rows}, {value.cols}]")
        width = value.cols // value.groups
        need(all(c % width == 0 for c in cols), f"{cols} columns in groups of {width}")
    for piece, c in zip(node.pieces, cols, strict=True):
        need(piece.mult.shape == piece.bias.shape == (c,), f"{piece.mult.shape} multipliers of {c} columns")
        _check_post(piece.mult, piece.bias, 0, piece.shift, need)
        at = piece.rows
        need(at is None or (-1 <= at.min() and at.max() < piece.x.rows), f"a row beyond {piece.x.rows}")


def _check_window(graph: QGraph, node: Window, need: Callable[[bool, str], None]) -> None:
    value, x = graph.values[node.name], graph.values[node.x.value]
    need(value.cols == x.cols, f"{x.cols} columns give {value.cols}")
    resampled = [walk.resampling for walk in node.walks if isinstance(walk, Resampled)]
    weighted = node.weights is not None or bool(resampled)
    need(weighted == (node.reduce == Reduce.WEIGHTED), f"weights of {node.reduce.name}")
    for larger in resampled:
        need(larger is not None and larger.size[0] * larger.size[1] == node.x.rows, f"a map of {node.x.rows} rows")
    rows = np.concatenate([walk.y_rows() for walk in node.walks])
    need(np.array_equal(np.sort(rows), np.arange(value.rows)), "walks do not make every row once")
    for walk, mult, weights in node.parts:
        need(weights is None or weights.shape == (walk.count, x.cols), "weights' shape")
        _check_post(mult, node.bias, node.before, node.shift, need)


def _check_post(mult: Array, bias: Array, before: int, shift: int, need: Callable[[bool, str], None]) -> None:
    need(0 <= mult.min() and mult.max() <= num.U16_MAX, f"multiplier {mult.min()}..{mult.max()}")
    need(np.abs(bias.astype(np.int64)).max() <= num.INT16_MAX, f"bias up to {bias.max()}")
    need(0 <= before < 16 and 0 <= shift <= num.WINDOW_SHIFT_MAX, f"shifts {before}, {shift}")
