"""The integer graph under construction, and the operations that every kind of node needs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import graph as fg
from ..errors import UserError
from ..intgraph import Buffer, ColScale, Convert, IntGraph, MatMul, Op, RowMax, RowScale, View
from ..numerics import GELU_SHIFT_MAX, INT16_MAX, LOGIT_STEPS, ROW_STEP_BITS, SHIFT_MIN, STATIC_SHIFT
from .calibrate import Stats
from .options import Quantisation, matches
from .plan import Plan, describe
from .scales import UNIT_ROW, ScaleTooSmall, Weights, quantise_weights, smallest_out_scale, whole_steps

Array = np.ndarray

# Room above the calibrated peak of 16-bit tensors, which lose nothing by it: they are converted row by row. (Q, K and V
# have a fixed int8 scale and get no room; 0.9 to 1.2 times the peak measured alike, within the spread of 12 images.)
WIDE_MARGIN = 2.0
LOGIT_SCALE = float(np.log(2)) / LOGIT_STEPS
ROW_UNIT = 2.0**-ROW_STEP_BITS  # a row-converted operand: real = int8 * row scale * ROW_UNIT * scale of the int16 step
TINY = 1e-30
EPSILON_MAX = (1 << 48) - 1  # of intgraph.Norm
EQUALISED = 0.5  # of the estimated noise: equalisation must leave no more than that
PEAK_TO_RMS = 4.0  # of a column
LEAST_SHARE = 1e-3  # a column's range or weight, of the largest, that equalisation takes for what it is


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
    options: Quantisation = Quantisation()
    buffers: dict[str, Buffer] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    trace: dict[str, tuple[View, str]] = field(default_factory=dict)
    offsets: dict[str, Array] = field(default_factory=dict)
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
        return IntGraph(self.buffers, self.ops, outputs, task, self.trace, self.offsets)


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
        if matches(b.options.wide, value):
            product_of_two_bytes(
                b,
                node,
                out,
                x,
                (weight, bias, scale),
                value if last else None,
                out if i else residual,
                row_max if last else RowMax.NONE,
            )
            continue
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


def product_of_two_bytes(
    b: Builder,
    node: fg.Linear,
    out: View,
    x: Held,
    matrix: tuple[Array, Array | None, float],
    value: str | None,
    residual: View | None,
    row_max: RowMax,
) -> None:
    """Emit `out = residual + x @ weight.T + bias` with all 16 bits of x: the product of its high byte and that of the rest.

    `matrix`: weight per int16 step of x, bias, step of out. The rest, x - 256 * int8(x), is made by the array too, by a
    product with the identity; rows of it are small, so their own scale keeps nearly every bit. It costs the weights
    twice and, for K columns, a K by K matrix.
    """
    weight, bias, scale = matrix
    columns = weight.shape[1]
    source = b.buffers[x.view.buffer]
    rest = b.buffer(f"{node.name}.rest", x.view.rows, columns, source.groups, source.scale)
    identity = np.eye(columns, dtype=np.int8) * np.int8(-64)
    # -64 * high byte * 2^15 / 2^16 * 2^11 / 2^8 = -256 * high byte
    power = Weights(identity, np.full(columns, 1 << 15), SHIFT_MIN, np.zeros(columns, np.int16))
    fields = {"residual": x.view, "row_max": RowMax.ABS, "source": node.source}
    static_product(b, f"{node.name}.rest", rest, x.view, power, row_mult=1 << 11, **fields)
    high = quantise_weights(weight, 2.0**STATIC_SHIFT, scale, bias, UNIT_ROW)
    static_product(b, f"{node.name}.high", out, x.view, high, residual=residual, source=node.source)
    low = quantise_weights(weight, ROW_UNIT, scale, None)
    held = Held(rest, x.scale, None, True, x.first_row)
    product(b, node.name, out, held, low, value, residual=out, row_max=row_max, source=node.source)


def static_product(b: Builder, name: str, out: View, x: View, q: Weights, value: str | None = None, **fields) -> MatMul:
    """Emit the product of an operand of fixed scale with int8 weights made with the row multiplier UNIT_ROW (or `row_mult`)."""
    parameters = {"col_mult": q.col_mult, "bias": q.bias, "row_mult": UNIT_ROW, "shift": q.shift}
    return b.emit(MatMul(b.op_name(name), out, x, q.w, **parameters | fields), value)


def gelu_scale(node: fg.Node, peak: float, need: float) -> tuple[int, float]:
    """(gelu_shift, step) of a pre-activation that reaches `peak` and needs at least the step `need`."""
    for shift in range(GELU_SHIFT_MAX, -1, -1):
        step = 2.0 ** -(7 + shift)
        if INT16_MAX * step >= peak and step >= need:
            return shift, step
    raise UserError(f"{describe(node)}: values of {peak / WIDE_MARGIN:g} before GELU, the machine holds up to 128")


def _matrices(b: Builder, name: str) -> list[Array]:
    """What multiplies a value, [matrices, N, columns] each. Without routers: a task's own must not part what tasks share."""
    readers = [reader for reader in b.plan.readers(name) if b.plan.roots[reader.name] not in b.plan.logits]
    return [reader.w1 if isinstance(reader, fg.Experts) else reader.weight[None] for reader in readers]


def centred(b: Builder, name: str) -> Array:
    """The middle of the range of each column [columns], which the biases of the readers can take.

    Zero where a router reads the value: the biases of its logits have no room.
    """
    seen = b.stats.values[name]
    routed = any(b.plan.roots[reader.name] in b.plan.logits for reader in b.plan.readers(name))
    return np.zeros_like(seen.low) if routed else (seen.low + seen.high) / 2


def equalised(b: Builder, name: str) -> Array:
    """Factors [columns], 1 in the mean, that share the range of a value between its columns and the matrices that read it.

    Column c is stored divided by factor c, and the weights that multiply it are multiplied: the factor is
    magnitude^equalise / weight^(1 - equalise), weight the largest of any reader (SmoothQuant, Xiao et al. 2022). Weights
    of a model that was quantised before stay as they are.
    """
    magnitude, matrices = b.stats.values[name].magnitude(centred(b, name)), _matrices(b, name)
    none, strength = np.ones(len(magnitude)), b.options.equalise
    if not strength or not matrices or any(whole_steps(m.reshape(-1, m.shape[-1])).any() for m in matrices):
        return none
    weight = np.max([np.abs(m).max(axis=(0, 1)) for m in matrices], axis=0).astype(np.float64)
    if not weight.any() or not magnitude.any():
        return none
    magnitude, weight = (np.maximum(a, a.max() * LEAST_SHARE) for a in (magnitude, weight))
    factors = magnitude**strength / weight ** (1 - strength)
    factors /= np.exp(np.log(factors).mean())
    rows = np.concatenate([np.asarray(m, np.float64).reshape(-1, m.shape[-1]) for m in matrices])
    worth = _noise(magnitude, rows, factors) < EQUALISED * _noise(magnitude, rows, none)
    return factors if worth else none


def _noise(magnitude: Array, weight: Array, factors: Array) -> float:
    """Estimated noise power of weight [N, K] times a value of columns up to `magnitude` [K], both rounded to int8."""
    x, w = magnitude / factors, weight * factors
    rounded = np.square(x.max()) * np.square(w).sum()
    return float(rounded + (np.square(np.abs(w).max(axis=1)).sum() * np.square(x / PEAK_TO_RMS).sum()))
