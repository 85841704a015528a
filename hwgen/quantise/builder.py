"""The integer graph under construction, and the operations that every kind of node needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import graph as fg
from ..errors import UserError
from ..intgraph import Buffer, ColScale, Convert, IntGraph, MatMul, Op, RowMax, RowScale, View
from ..numerics import GELU_SHIFT_MAX, INT16_MAX, LOGIT_STEPS, ROW_STEP_BITS, SHIFT_MIN
from .calibrate import Stats
from .plan import Plan, describe
from .scales import UNIT_ROW, ScaleTooSmall, Weights, quantise_weights, smallest_out_scale

Array = np.ndarray

# Room above the calibrated peak of 16-bit tensors, which lose nothing by it: they are converted row by row. (Q, K and V
# have a fixed int8 scale and get no room; 0.9 to 1.2 times the peak measured alike, within the spread of 12 images.)
WIDE_MARGIN = 2.0
LOGIT_SCALE = float(np.log(2)) / LOGIT_STEPS
ROW_UNIT = 2.0**-ROW_STEP_BITS  # a row-converted operand: real = int8 * row scale * ROW_UNIT * scale of the int16 step
TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Held:
    """Where a value is: real[r, c] = int16[r - first_row, c] * scale[c] + offset[c].

    scale     a float, or [cols]
    offset    [cols], or None for zero
    row_max   whether the row maxima are stored, which a row conversion reads
    """

    view: View
    scale: float | Array
    offset: Array | None = None
    row_max: bool = False
    first_row: int = 0


@dataclass
class Builder:
    graph: fg.Graph
    plan: Plan
    stats: Stats
    stream_scale: float
    shapes: dict[str, tuple[int, ...]]
    buffers: dict[str, Buffer] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    trace: dict[str, tuple[View, str]] = field(default_factory=dict)
    # Values whose columns are split over several buffers: (their columns, where they are).
    groups: dict[str, list[tuple[Array, Held]]] = field(default_factory=dict)

    def buffer(self, name: str, rows: int, cols: int, groups: int = 1, scale: float | Array = 1.0) -> View:
        """A new buffer, as a view of all of it; `scale` as in `intgraph.Buffer`."""
        name = _unused(name, self.buffers)
        self.buffers[name] = Buffer(name, rows, cols, groups, scale)
        return View(name, 0, rows, 0, cols)

    def op_name(self, name: str) -> str:
        return _unused(name, {op.name for op in self.ops})

    def emit(self, op: Op, value: str | None = None, view: View | None = None) -> Op:
        """Append an operation; `value` is the float value that `view` (its out view) holds after it."""
        self.ops.append(op)
        if value is not None:
            self.trace[value] = (view or op.out, op.name)
        return op

    def finish(self, outputs, task: str) -> IntGraph:
        return IntGraph(self.buffers, self.ops, outputs, task, self.trace)


def _unused(name: str, taken) -> str:
    candidate, i = name, 2
    while candidate in taken:
        candidate, i = f"{name}.{i}", i + 1
    return candidate


def copy(b: Builder, name: str, source: View, out: View, row_max: RowMax = RowMax.NONE) -> None:
    """out = source, by a product with zero weights and `source` as its residual; also measures row maxima in place."""
    width = b.buffers[source.buffer].cols // b.buffers[source.buffer].groups
    narrow = 1 if b.buffers[source.buffer].groups == 1 else width
    b.emit(
        MatMul(
            b.op_name(name),
            out,
            View(source.buffer, source.row, source.rows, source.col, narrow),
            np.zeros((out.cols, narrow), np.int8),
            col_scale=ColScale.IMMEDIATE,
            shift=SHIFT_MIN,
            residual=source,
            row_max=row_max,
        )
    )


def row_operand(b: Builder, value: str) -> Held:
    """The value, ready for a row conversion: where nothing stored its row maxima, an operation is added that does."""
    held = b.held[value]
    if not held.row_max:
        copy(b, f"{value}.rows", held.view, held.view, RowMax.ABS)
        held = Held(held.view, held.scale, held.offset, True, held.first_row)
        b.held[value] = held
    return held


def folded(x: Held, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """(weight [N, K] per int16 step of x, bias [N]): scale and offset of x moved into the matrix that multiplies it."""
    weight = np.asarray(weight, np.float64)
    if x.offset is not None:
        constant = weight @ x.offset
        bias = constant if bias is None else bias + constant
    return weight * x.scale, bias


def wide_scale(magnitude: Array | float) -> float:
    """int16 step for values up to `magnitude`, with room."""
    return max(float(np.max(magnitude, initial=0.0)) * WIDE_MARGIN / INT16_MAX, TINY)


def read_by_array(b: Builder, value: str) -> bool:
    multiplying = fg.Linear | fg.Experts | fg.Mean | fg.Dispatch | fg.SlotExperts | fg.Combine
    return any(isinstance(user, multiplying) for user in b.plan.readers(value))


def own_scale(b: Builder, node: fg.Node, need: float) -> float:
    """Output step of a matrix whose value stands alone; `need`: the smallest that its multipliers and biases allow."""
    root = b.plan.roots[node.name]
    if root in b.plan.stream:
        if need > b.stream_scale:
            raise ScaleTooSmall(need)
        return b.stream_scale
    if root in b.plan.logits:
        if need > LOGIT_SCALE:
            raise UserError(f"{describe(node)}: a router with weights or biases beyond what its logits can hold")
        return LOGIT_SCALE
    return max(wide_scale(b.stats.values[node.name].magnitude()), need)


def operands(b: Builder, node: fg.Linear) -> list[tuple[Held, Array, Array | None]]:
    """What `node` multiplies, as (operand, weight per int16 step of it, bias), for each column group of its input."""
    groups = b.groups.get(node.x)
    if groups is None:
        x = row_operand(b, node.x)
        return [(x, *folded(x, node.weight, node.bias))]
    found = [(x, *folded(x, node.weight[:, columns], None)) for columns, x in groups]
    return [(*found[0][:2], node.bias), *found[1:]]


def linear_need(b: Builder, node: fg.Linear) -> float:
    """Smallest output step of `linear`."""
    return max(float(smallest_out_scale(w, ROW_UNIT, bias).max()) for _, w, bias in operands(b, node))


def linear(
    b: Builder,
    node: fg.Linear,
    out: View,
    scale: float,
    value: str,
    residual: View | None = None,
    row_max: RowMax = RowMax.NONE,
) -> None:
    """Emit `out = residual + x @ weight.T + bias` in steps of `scale`; `value` is what `out` holds then."""
    parts = operands(b, node)
    for i, (x, weight, bias) in enumerate(parts):
        last = i == len(parts) - 1
        product(
            b,
            node.name,
            out,
            x,
            quantise_weights(weight, ROW_UNIT, scale, bias),
            value if last else None,
            residual=out if i else residual,
            row_max=row_max if last else RowMax.NONE,
            source=node.source,
        )


def product(b: Builder, name: str, out: View, x: Held, q: Weights, value: str | None = None, **fields) -> MatMul:
    """Emit the product of a row-converted operand with int8 weights; `fields` go to the MatMul."""
    return b.emit(
        MatMul(
            b.op_name(name),
            out,
            x.view,
            q.w,
            x_convert=Convert.ROW,
            col_mult=q.col_mult,
            bias=q.bias,
            row_scale=RowScale.CONVERTED,
            shift=q.shift,
            **fields,
        ),
        value,
    )


def static_product(b: Builder, name: str, out: View, x: View, q: Weights, value: str | None = None, **fields) -> MatMul:
    """Emit the product of an operand of fixed scale with int8 weights made with the row multiplier UNIT_ROW."""
    parameters = {"col_mult": q.col_mult, "bias": q.bias, "row_mult": UNIT_ROW, "shift": q.shift}
    return b.emit(MatMul(b.op_name(name), out, x, q.w, **parameters, **fields), value)


def gelu_scale(node: fg.Node, peak: float, need: float) -> tuple[int, float]:
    """(gelu_shift, step) of a pre-activation that reaches `peak` and needs at least the step `need`."""
    for shift in range(GELU_SHIFT_MAX, -1, -1):
        step = 2.0 ** -(7 + shift)
        if INT16_MAX * step >= peak and step >= need:
            return shift, step
    raise UserError(f"{describe(node)}: values of {peak / WIDE_MARGIN:g} before GELU, the machine holds up to 128")
