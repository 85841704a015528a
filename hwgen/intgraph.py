"""The integer graph: the network after quantisation, before any hardware shape is chosen.

Operations read and write named buffers of int16 `[rows, columns]`; they run in order and may write in place. Each `MatMul`,
`Norm`, `Multiply`, `ReduceWindow`, `RouteTokens`, `SelectRows` and `ScanRows` becomes exactly one instruction of the machine.
`hwgen.sim.golden` executes the graph, `hwgen.schedule` lays it out; the arithmetic of every field is in `hwgen.numerics`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from . import patches
from .isa import ColScale, Convert, Indirect, Reduce, RowMax, RowScale
from .numerics import GAMMA_SHIFT, WINDOW_ONE_SHIFT, ScanShifts
from .resampling import Resampled, Resampling, by_weights
from .walks import Walk

Array = np.ndarray


@dataclass(frozen=True)
class Buffer:
    """int16 [rows, cols]. `groups`: equal column groups (heads) that the layout may pad apart.

    `scale`: real value of one step, a float, or an array broadcastable to [rows, cols]; for comparison and outputs.
    `dram`: it lies in DRAM, where only `Spill` writes and only `Fetch` reads it; it has no row maxima.
    """

    name: str
    rows: int
    cols: int
    groups: int = 1
    scale: float | Array = 1.0
    dram: bool = False


@dataclass(frozen=True)
class View:
    """Rows row..row+rows and columns col..col+cols of a buffer. Columns are whole groups of it."""

    buffer: str
    row: int
    rows: int
    col: int
    cols: int

    def overlaps(self, other: View) -> bool:
        """Whether the two have an element in common."""
        rows = self.row < other.row + other.rows and other.row < self.row + self.rows
        columns = self.col < other.col + other.cols and other.col < self.col + self.cols
        return self.buffer == other.buffer and rows and columns

    def covers(self, other: View) -> bool:
        """Whether all of `other` lies in this one."""
        rows = self.row <= other.row and other.row + other.rows <= self.row + self.rows
        columns = self.col <= other.col and other.col + other.cols <= self.col + self.cols
        return self.buffer == other.buffer and rows and columns


class Operation:
    """What every operation reads and writes: fields that hold views, and views whose row maxima (see `MatMul`) it takes."""

    READS: ClassVar[tuple[str, ...]] = ()
    WRITES: ClassVar[tuple[str, ...]] = ("out",)
    name: str
    row_max: RowMax = RowMax.NONE
    expert: tuple[str, int] | None = None
    indirect: Indirect = Indirect.NONE
    walk: Walk | None = None

    def reads(self) -> dict[str, View]:
        """Views that are read, by field."""
        return self._reads

    def writes(self) -> dict[str, View]:
        """Views that are written, by field."""
        return self._writes

    def views(self) -> dict[str, View]:
        """All views, by field."""
        return self._views

    # The passes that map a graph ask for these far more often than operations are made.
    @cached_property
    def _reads(self) -> dict[str, View]:
        return {name: view for name in self.READS if isinstance(view := getattr(self, name), View)}

    @cached_property
    def _writes(self) -> dict[str, View]:
        return {name: view for name in self.WRITES if isinstance(view := getattr(self, name), View)}

    @cached_property
    def _views(self) -> dict[str, View]:
        return self._writes | self._reads

    def row_views(self) -> dict[str, View]:
        """Those whose rows go through the operation one by one: all but a stationary operand."""
        return {name: view for name, view in self.views().items() if name != "w"}

    def touched_rows(self) -> dict[str, Array | slice]:
        """Rows that it touches, counted from a view's first, by field, of those views of which these may not be all."""
        if self.walk is None:
            return {}
        x, y = self.walk.x_rows(), self.walk.y_rows()
        return {"x": x[x >= 0], "out": y, "residual": y}

    def stationary(self) -> View | None:
        """The view that is read as a whole."""
        return self.reads().get("w")

    def reads_maxima(self) -> list[View]:
        """Views whose rows' maxima are read."""
        return []

    def writes_maxima(self) -> View | None:
        """The view whose rows' maxima are stored, if any."""
        return self.writes()["out"] if self.row_max != RowMax.NONE else None


@dataclass(frozen=True, eq=False)
class Constant(Operation):
    """Loads `data` int16 [rows, cols] into a buffer at its start."""

    name: str
    out: View
    data: Array
    source: str = ""


@dataclass(frozen=True, eq=False)
class Input(Operation):
    """The quantised image: the driver cuts input `image`, with `pads` zeros around it, into patches `stride` pixels apart
    (see `hwgen.patches`) and stores 256 * int8(round((x - offset) / step)), or `fine` all 16 bits.
    """

    name: str
    out: View  # [patches, elements of one], or some of the patches
    image: str
    shape: tuple[int, ...]
    patch: patches.Patch
    step: float
    offset: float
    source: str = ""
    index: int = 0  # which image of a batch
    row: int = 0  # first patch of those that are loaded
    stride: patches.Patch | None = None  # None: one patch
    pads: patches.Pads = ()
    fine: bool = False
    type: str = "float32"  # of the numbers in the file's input

    @property
    def patches(self) -> int:
        """Patches of the whole image."""
        return patches.count(self.shape, self.patch, self.stride, self.pads)


@dataclass(frozen=True, eq=False)
class MatMul(Operation):
    """out[r, :] = post(sum over k of convert(x)[r, k] * w[:, k]); see the fields for `post`.

    x      streamed operand [R, K], converted by `x_convert`
    w      stationary operand: int8 weights [N, K], or a View [N, K] converted by `w_convert` (STATIC or ROW)
    out    [R, N]; with `Indirect.SCATTER` rows are tokens and only the queue's rows are written
    post   y = numerics.requantise(sum, column multiplier, row multiplier, shift, bias); then `numerics.gelu` where
           `gelu` = (form, shift); then `numerics.add_residual` with `residual` (same rows and columns as `out`)
    expert (route name, e): R is the number of tokens in that queue; nothing is done where it is empty. With GATHER, x rows
           are tokens and out rows are queue positions; with SCATTER the reverse, and the row multiplier is
           numerics.gated_scale(row multiplier, gate).
    row_max what is stored with the out rows (queue positions with GATHER). A buffer has one maximum a row: a ROW or
           PROBABILITY conversion reads what the last MatMul or Norm with a row maximum stored for those rows.
    walk   None: row r of x makes row r of out. Else it says which rows do, among those of the views, and which taps are
           summed: w is [N, taps * K], tap by tap. `residual` has the rows of out. A walk has no expert; with taps
           x_convert is STATIC, row_scale IMMEDIATE.
    continue_max: the maxima also cover those of the previous MatMul with the same kind of row_max (heads side by side).
    """

    READS = ("x", "w", "residual")

    name: str
    out: View
    x: View
    w: Array | View
    x_convert: Convert = Convert.STATIC
    w_convert: Convert = Convert.STATIC
    col_scale: ColScale = ColScale.PARAMETERS
    col_mult: Array | int = 0  # u16 [N] or u16
    bias: Array | None = None  # int16 [N], PARAMETERS only
    row_scale: RowScale = RowScale.IMMEDIATE
    row_mult: Array | int = 1  # u16, or u16 [R] for TABLE
    shift: int = 16
    gelu: tuple[str, int] | None = None
    residual: View | None = None
    row_max: RowMax = RowMax.NONE
    continue_max: bool = False
    expert: tuple[str, int] | None = None
    indirect: Indirect = Indirect.NONE
    source: str = ""
    walk: Walk | None = None

    @property
    def rows(self) -> int:
        """Rows that go through the array, of a queue at most."""
        return self.x.rows if self.walk is None else self.walk.rows

    def touched_rows(self) -> dict[str, Array | slice]:
        if self.walk is not None or self.expert is not None:
            return super().touched_rows()
        return dict.fromkeys(("out", "residual"), slice(0, self.x.rows))

    @property
    def taps(self) -> int:
        """Rows of x in a row's sum."""
        return 1 if self.walk is None else self.walk.count

    def reads_maxima(self) -> list[View]:
        found = [self.x] if self.x_convert != Convert.STATIC else []
        stationary = self.w_convert != Convert.STATIC or self.col_scale == ColScale.ROW_SCALES
        return [*found, self.w] if stationary and isinstance(self.w, View) else found


@dataclass(frozen=True, eq=False)
class Norm(Operation):
    """numerics.layer_norm, without `centred` RMSNorm; `row_max` NONE or ABS."""

    READS = ("x",)

    name: str
    out: View
    x: View
    gamma: Array  # int16 [D]
    beta: Array  # int16 [D]
    epsilon: int
    source: str = ""
    centred: bool = True
    row_max: RowMax = RowMax.ABS


@dataclass(frozen=True, eq=False)
class Multiply(Operation):
    """Rows of x times rows of `factor`: numerics.multiply with `shift`, or with `pairs` numerics.turn; `row_max` NONE or ABS.

    A row of `factor` is used again for every `factor.cols` columns of x: where there are several times, x has groups of so
    many columns. One row of `factor` is that of all rows of x. `out` may be the place of x or of `factor`.
    """

    READS = ("x", "factor")

    name: str
    out: View
    x: View
    factor: View
    shift: int = GAMMA_SHIFT
    pairs: bool = False
    row_max: RowMax = RowMax.NONE
    source: str = ""


@dataclass(frozen=True, eq=False)
class ReduceWindow(Operation):
    """Rows of out from windows of rows of x, column by column: numerics.reduce_window, window_post, then numerics.gelu.

    `walk`: which rows of x are the taps of which row of out, among those of the views; rows of out that it leaves out stay
    as they are. `weights` int8 [taps, C] with Reduce.WEIGHTED, else None. One tap with SUM copies rows. `row_max` NONE or ABS:
    stored with the rows of out that are written. With a `Resampled` walk the weights are those of the resampling (WEIGHTED),
    and an instruction makes the rows of each kind of weights.
    """

    READS = ("x",)

    name: str
    out: View
    x: View
    walk: Walk = field()  # no default, unlike the other operations'
    mult: Array  # u16 [C]
    bias: Array  # int16 [C]
    reduce: Reduce = Reduce.SUM
    weights: Array | None = None
    before: int = 0
    shift: int = WINDOW_ONE_SHIFT
    gelu: tuple[str, int] | None = None
    row_max: RowMax = RowMax.NONE
    source: str = ""

    @property
    def resampling(self) -> Resampling | None:
        """What the walk is a part of, whose weights are those of the operation."""
        return self.walk.resampling if isinstance(self.walk, Resampled) else None

    @property
    def cuts(self) -> bool:
        """Whether parts of its walk are such operations: a resampling goes by rows of the map that is made."""
        return not isinstance(self.walk, Resampled) or self.walk.loops[0] > 1

    @property
    def parts(self) -> list[tuple[Walk, Array | None]]:
        """Walks that make the rows, each with its weights int8 [taps, C]."""
        return by_weights(self.walk, self.weights, self.x.cols)


@dataclass(frozen=True, eq=False)
class RouteTokens(Operation):
    """numerics.route on logits [T, E]; fills one queue per expert, tokens in rising order.

    `dense`: view [T, E] that receives the gate scores (saturated to int16), zero for experts not chosen. `loads`: in which
    proportion an image's tokens are expected to choose the E experts, for estimates; empty: evenly.
    """

    READS = ("logits",)
    WRITES = ("dense",)

    name: str
    logits: View
    top_k: int
    renormalise: bool
    dense: View | None = None
    loads: tuple[int, ...] = ()
    source: str = ""


@dataclass(frozen=True, eq=False)
class SelectRows(Operation):
    """out[r] = x[order[first + r]], order = numerics.ranked(scores), best first: a run of rows in the order of their scores.

    `scores`: a column or a row of as many scores as x has rows.
    """

    READS = ("x", "scores")

    name: str
    out: View
    x: View
    scores: View
    first: int = 0
    source: str = ""


@dataclass(frozen=True, eq=False)
class ScanRows(Operation):
    """out = numerics.scan(x, steps, mix, rates, shifts): rows in order, or `backwards`, from states of zero.

    x, steps and out [T, C]; mix [T, 2 N]; rates [1 + N, C], of which the first row is the skips.
    """

    READS = ("x", "steps", "mix", "rates")

    name: str
    out: View
    x: View
    steps: View
    mix: View
    rates: View
    shifts: ScanShifts
    backwards: bool = False
    source: str = ""

    @property
    def states(self) -> int:
        """States of a channel."""
        return self.rates.rows - 1


@dataclass(frozen=True, eq=False)
class Transfer(Operation):
    """Copies rows of x to out, of which one lies in DRAM: see its two kinds."""

    READS = ("x",)

    name: str
    out: View
    x: View
    source: str = ""


class Spill(Transfer):
    """From the scratchpad to a buffer in DRAM."""


class Fetch(Transfer):
    """From a buffer in DRAM to the scratchpad."""


@dataclass(frozen=True)
class Output:
    """One ONNX output: real value = buffer view * scale, transposed first where `transposed`, reshaped to `shape` (without
    the batch axis)."""

    name: str
    view: View
    scale: float
    shape: tuple[int, ...]
    transposed: bool = False
    index: int = 0  # of which image of a batch


Op = Constant | Input | MatMul | Norm | Multiply | ReduceWindow | RouteTokens | SelectRows | ScanRows | Spill | Fetch


@dataclass
class IntGraph:
    """Buffers and operations of one task, in execution order. `task` is its name ("" where there is only one).

    `batch`: images that one run takes; each has its own Input operations and Outputs.
    """

    buffers: dict[str, Buffer]
    ops: list[Op]
    outputs: list[Output]
    task: str = ""
    # float value (hwgen.graph name) -> the view that holds it after the op named in the second place; for comparison
    trace: dict[str, tuple[View, str]] = field(default_factory=dict)
    # float value -> what it holds [columns] beyond the integers in its view times their scale
    offsets: dict[str, Array] = field(default_factory=dict)
    batch: int = 1
    # buffer -> the operation until which its place had better stay free: its last reader will still be at work
    held: dict[str, str] = field(default_factory=dict)
