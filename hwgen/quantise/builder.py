"""Level Q under construction, and what every kind of node needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from .. import graph as fg
from .. import isa
from .. import qgraph as q
from ..errors import UserError
from ..isa import Convert
from ..naming import unused
from ..numerics import (
    INT8_MAX,
    INT16_MAX,
    LOGIT_STEPS,
    PRODUCT_SHIFT_MAX,
    PRODUCT_SHIFT_MIN,
    ROW_STEP_BITS,
    STATIC_SHIFT,
    U16_MAX,
    WINDOW_ONE,
    WINDOW_ONE_SHIFT,
    WINDOW_SHIFT_MAX,
)
from ..qgraph import UNIT_ROW, Matrix, Piece, QGraph, Ref, Value
from ..walks import ZERO_ROW, Walk
from .calibrate import Range, Stats
from .options import Quantisation, matches
from .plan import Plan, describe
from .scales import OutOfRange, quantise_weights, rounding, smallest_out_scale

Array = np.ndarray

# Room above the calibrated peak of 16-bit tensors, which lose nothing by it: they are converted row by row. (Q, K and V
# have a fixed int8 scale and get no room; 0.9 to 1.2 times the peak measured alike, within the spread of 12 images.)
WIDE_MARGIN = 2.0
# Room above the calibrated peak of a column of tokens that are averaged or mixed: a sum of many roundings loses little by
# a larger step, and much by one token that is cut off (five exports, 8 images: 1.5 at 34 to 41 dB, 1 at 30 to 34, 2 alike).
ROOM = 1.5
LOGIT_SCALE = float(np.log(2)) / LOGIT_STEPS
LOGIT_RANGE = LOGIT_SCALE * INT16_MAX
ROW_UNIT = 2.0**-ROW_STEP_BITS  # a row-converted operand: real = int8 * row scale * ROW_UNIT * scale of the int16 step
# Largest int16 number that a fixed int8 step takes. Of what convolutions read: room for a fifth above the calibrated peak.
# (Random networks, 8 images: without room an unseen image falls to 21 dB where others have 30; with it the worst has 27,
# the mean is 0.5 dB lower.)
STATIC_MAX = INT8_MAX << STATIC_SHIFT
STATIC_ROOM = 1.2
TINY = 1e-30
LOW_STEPS = 254  # by which half an int8 step, the most that int8 leaves of a number, becomes the largest int8 number
EPSILON_MAX = (1 << 48) - 1  # of numerics.layer_norm


@dataclass(frozen=True, eq=False)
class Held:
    """Where a float value is: real[r, c] = int16[r - first_row, c] * scale[c] + offset[c].

    scale     a float, or [cols]; [rows, 1] of what only products read, as their second operand
    offset    a float or [cols]; None for zero
    """

    ref: Ref
    scale: float | Array
    offset: float | Array | None = None
    first_row: int = 0

    @property
    def common(self) -> bool:
        """Whether all columns have the same step, and no offset."""
        return np.ndim(self.scale) == 0 and self.offset is None


@dataclass
class Builder:
    graph: fg.Graph
    plan: Plan
    stats: Stats
    shapes: dict[str, tuple[int, ...]]
    options: Quantisation
    made: QGraph
    exact: set[str]  # linear layers that must read all 16 bits
    fine: set[str]  # of these the ones whose weights have more than 8 bits
    wide: set[str]  # layers and attentions, both of whose operands have 16 bits
    held: dict[str, Held] = field(default_factory=dict)
    # Values whose columns are split over several: (their columns, where they are).
    groups: dict[str, list[tuple[Array, Held]]] = field(default_factory=dict)

    def name(self, name: str) -> str:
        """`name`, or one like it that no value has."""
        return unused(name, self.made.values)

    def emit(self, node: q.Node, rows: int, cols: int, scale=1.0, offset=None, groups: int = 1, value: str | None = None) -> Ref:
        """Append a node with its value; `value`: the float value that it is."""
        self.made.nodes.append(node)
        self.made.values[node.name] = Value(rows, cols, scale, offset, groups)
        ref = Ref(node.name, 0, rows)
        if value is not None:
            limit = self.plan.limits.get(value)
            self.made.trace[limit.name if limit else value] = ref
        return ref

    def cols(self, held: Held) -> int:
        return self.made.values[held.ref.value].cols

    def groups_of(self, held: Held) -> int:
        return self.made.values[held.ref.value].groups

    def table(self, name: str, data: Array, scale=1.0, source: str = "", groups: int = 1) -> Ref:
        """Emit a constant."""
        return self.emit(q.Table(self.name(name), data.astype(np.int16), source=source), *data.shape, scale, groups=groups)


def folded(x: Held, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """(weight [N, K] per int16 step of x, bias [N]): scale and offset of x moved into the matrix that multiplies it."""
    weight = np.asarray(weight, np.float64)
    if x.offset is not None:
        constant = weight @ np.broadcast_to(x.offset, weight.shape[1])
        bias = constant if bias is None else bias + constant
    return weight * x.scale, bias


def wide_scale(magnitude: Array | float, room: float = 1.0) -> float:
    """int16 step for values up to `magnitude`, with room, and with `room` on top."""
    return max(float(np.max(magnitude, initial=0.0)) * (room * WIDE_MARGIN) / INT16_MAX, TINY)


def static_room(seen: Range) -> float:
    """What a fixed int8 step leaves beyond the calibrated range, as a factor."""
    return max(seen.room, STATIC_ROOM)


def static_scale(seen: Range) -> float:
    """int16 step for a value that is converted to int8 by a fixed step."""
    return max(float(seen.magnitude().max()) * static_room(seen) / STATIC_MAX, TINY)


def read_static(plan: Plan, name: str) -> bool:
    """Whether convolutions, which convert with one int8 step, are all that reads a value."""
    readers = plan.readers(name)
    return bool(readers) and plan.roots[name] not in plan.outputs and all(isinstance(r, fg.Conv) for r in readers)


def epsilon_need(plan: Plan, name: str) -> float:
    """Least step of what LayerNorms read: their epsilon must fit."""
    norms = [user for user in plan.readers(name) if isinstance(user, fg.LayerNorm)]
    return max((len(norm.gamma) * (norm.epsilon / EPSILON_MAX) ** 0.5 * 1.001 for norm in norms), default=0.0)


def own_scale(b: Builder, node: fg.Node, need: float) -> float:
    """Step of a value that stands alone; `need`: the smallest that its multipliers and biases allow."""
    name = node.name
    if b.plan.roots[name] in b.plan.logits:
        if need > LOGIT_SCALE:
            raise UserError(f"{describe(node)}: a router with weights or biases beyond what its logits can hold")
        return LOGIT_SCALE
    if name in b.plan.scales:
        chosen = b.plan.scales[name]
    elif (whole := b.plan.stacked(name)) is not None:
        chosen = own_scale(b, whole, 0.0)
    elif read_static(b.plan, name):
        chosen = static_scale(b.stats.values[name])
    else:
        chosen = wide_scale(b.stats.values[name].magnitude(), b.stats.values[name].room)
    return max(chosen, need, epsilon_need(b.plan, name))


def limited(b: Builder, node: fg.Node) -> tuple[float, float] | None:
    """(scale, offset) with which saturation is the `Clip` behind `node`; None without one, or where it is not so simple.

    Where no reader takes an offset, saturation is the farther limit only.
    """
    clip = b.plan.limits.get(node.name)
    if clip is None or node.name in b.plan.scales:
        return None
    reach = float(b.stats.values[node.name].magnitude().max()) * WIDE_MARGIN
    low, high = (limit if np.isfinite(limit) else np.sign(limit) * max(reach, TINY) for limit in (clip.low, clip.high))
    if b.plan.only_multiplied(clip.name) and low < high:
        return (high - low) / 2 / INT16_MAX, (high + low) / 2
    return max(abs(low), abs(high), TINY) / INT16_MAX, 0.0


def chosen(b: Builder, node: fg.Node, need: Callable[[float], float]) -> tuple[float, float]:
    """(scale, offset) of a value: `limited`, or with room around all that was seen; `need`: least scale, by offset."""
    limit = limited(b, node)
    if limit is not None and node.name not in b.plan.logits and need(limit[1]) <= limit[0]:
        return limit
    return own_scale(b, node, need(0.0)), 0.0


def clip(b: Builder, node: fg.Clip) -> None:
    """What saturation has not limited yet: shifted until saturation does it, and back."""
    held = b.held[node.x]
    if np.ndim(held.scale) or np.ndim(held.offset if held.offset is not None else 0.0):
        held = moved(b, node.x, own_scale(b, b.plan.nodes[node.x], 0.0))
    offset = held.offset or 0.0
    low, high = (np.clip((limit - offset) / held.scale, -INT16_MAX, INT16_MAX) for limit in (node.low, node.high))
    above, below = INT16_MAX - round(float(high)), INT16_MAX + round(float(low))
    moves = [above, -above - below, below] if above else [-below, below]
    rows, cols, scale = held.ref.rows, b.cols(held), float(held.scale)
    ref, at = held.ref, 0
    for move in moves:
        while move:
            step = int(np.clip(move, -INT16_MAX, INT16_MAX))
            move, at = move - step, at + step
            shift = q.Shift(b.name(node.name), ref, np.full(cols, step, np.int16), source=node.source)
            ref = b.emit(shift, rows, cols, scale, offset - at * scale or None, b.groups_of(held))
    b.held[node.name] = Held(ref, scale, held.offset, held.first_row)
    if rows == b.shapes[node.name][0]:
        b.made.trace[node.name] = ref


def moved(b: Builder, name: str, scale: float) -> Held:
    """The value in steps of `scale`, without an offset: as it is, or brought there by operations."""
    held = b.held[name]
    if held.common and held.scale == scale:
        return held
    node, rows, cols = b.plan.nodes[name], held.ref.rows, b.cols(held)
    if np.ndim(held.scale) or np.ndim(held.offset if held.offset is not None else 0.0):
        unit = fg.Linear(f"{name}.steps", name, np.eye(cols), None, source=node.source)
        b.exact.add(unit.name)
        return linear(b, unit, max(scale, linear_need(b, unit)), unit.name)
    ref, ratio, groups = held.ref, float(held.scale) / scale, b.groups_of(held)
    while ratio != 1.0:
        step = min(ratio, 64.0)  # factors are int16 fractions of at least 2^PRODUCT_SHIFT_MIN
        ratio = ratio / step
        shift = int(np.clip(14 - np.ceil(np.log2(step)), PRODUCT_SHIFT_MIN, PRODUCT_SHIFT_MAX))
        factor = max(round(step * 2.0**shift), 1)
        factors = b.table(f"{name}.factor", np.full((1, cols), factor), source=node.source, groups=groups)
        multiply = q.Multiply(b.name(f"{name}.steps"), ref, factors, shift, source=node.source)
        ref = b.emit(multiply, rows, cols, scale * ratio, held.offset, groups)
    if held.offset is not None:
        steps = round(float(held.offset) / scale)
        if abs(steps) > INT16_MAX:
            raise OutOfRange(f"an offset of {steps} steps")
        ref = b.emit(q.Shift(b.name(f"{name}.steps"), ref, np.full(cols, steps, np.int16)), rows, cols, scale, None, groups)
    return Held(ref, scale, None, held.first_row)


def plain(b: Builder, name: str) -> Held:
    """The value with one step for all columns and no offset."""
    held, seen = b.held[name], b.stats.values[name]
    if held.common:
        return held
    offset = np.asarray(0.0 if held.offset is None else held.offset, np.float64)  # that, and what lies beside it, in 16 bits
    reach = max(float(np.abs(a).max()) for a in (offset, seen.low - offset, seen.high - offset))
    return moved(b, name, own_scale(b, b.plan.nodes[name], reach / INT16_MAX if offset.any() else 0.0))


def fraction(largest: float) -> int:
    """The shift of numerics.window_post with which multipliers of factors up to `largest` have all their 16 bits."""
    shift = min(16 - int(np.frexp(largest)[1]), WINDOW_SHIFT_MAX) if largest > 0 else WINDOW_ONE_SHIFT
    if np.ceil(np.ldexp(largest, shift)) > U16_MAX:
        shift -= 1
    if shift < 0:
        raise OutOfRange(f"factor {largest:g} is too large for a multiplier")
    return shift


def piece(b: Builder, held: Held, scale: float | Array, offset: float | Array | None = None, rows: Array | None = None) -> Piece:
    """Rows of a value, in steps of `scale` from `offset`."""
    held_offset, offset = (0.0 if o is None else o for o in (held.offset, offset))
    cols = b.cols(held)
    ratio = np.broadcast_to(np.asarray(held.scale, np.float64) / scale, cols)
    bias = np.broadcast_to(np.rint((np.asarray(held_offset, np.float64) - offset) / scale), cols)
    if np.abs(bias).max() > INT16_MAX:
        raise OutOfRange(f"an offset of {np.abs(bias).max():g} steps")
    if (ratio == 1).all():
        mult, shift = np.full(cols, WINDOW_ONE), WINDOW_ONE_SHIFT
    else:
        shift = fraction(float(ratio.max()))
        mult = np.rint(np.ldexp(ratio, shift)).astype(np.int64)
    return Piece(held.ref, mult, bias.astype(np.int16), shift, rows)


def fitting(node: fg.Node, walk: Walk) -> Walk:
    """The walk of a window, without coordinates where these do not fit and none lies beyond the map. Raises UserError where no
    instruction holds it."""
    try:
        isa.encode(isa.WindowWalk(**walk.fields()))
    except ValueError as error:
        if walk.plane is not None and (walk.x_rows() != ZERO_ROW).all():
            return fitting(node, replace(walk, plane=None, dilation=(0, 0)))
        raise UserError(f"{describe(node)}: {error}") from None
    return walk


# --- products --------------------------------------------------------------------------------------------------------


def operands(b: Builder, node: fg.Linear) -> list[tuple[Held, Array, Array | None]]:
    """What `node` multiplies, as (operand, weight per int16 step of it, bias), for each column group of its input."""
    groups = b.groups.get(node.x)
    if groups is None:
        x = b.held[node.x]
        return [(x, *folded(x, node.weight, node.bias))]
    found = [(x, *folded(x, node.weight[:, columns], None)) for columns, x in groups]
    return [(*found[0][:2], node.bias), *found[1:]]


def linear_need(b: Builder, node: fg.Linear, offset: float = 0.0) -> float:
    """Smallest output step of `linear`."""
    return max(float(smallest_out_scale(w, ROW_UNIT, _less(bias, offset)).max()) for _, w, bias in operands(b, node))


def _less(bias: Array | None, offset: float) -> Array | None:
    return bias if not offset else (0.0 if bias is None else bias) - np.float64(offset)


def linear(
    b: Builder,
    node: fg.Linear,
    scale: float,
    value: str,
    add: Ref | None = None,
    at: int = 0,
    offset: float = 0.0,
    groups: int = 1,
) -> Held:
    """Emit `add + x @ weight.T + bias - offset` in steps of `scale` as the float value `value`; `add` from row `at` on.

    The result has the column groups of `add`, or `groups`.
    """
    parts, cols = operands(b, node), len(node.weight)
    for i, (x, weight, bias) in enumerate(parts):
        last = i == len(parts) - 1
        if not i and offset:
            bias = np.broadcast_to(_less(bias, offset), cols)
        fields = {"layer": node.name, "source": node.source}
        rows = x.ref.rows if add is None else add.rows
        name, groups = value if last else f"{value}.{i}", groups if add is None else b.made.values[add.value].groups
        if node.name in b.exact or matches(b.options.wide, value):
            ref, x = rest(b, node, x)
            parts_of = [(weight, bias)]
            if node.name in b.fine and (low := rounding(weight, 2.0**STATIC_SHIFT, scale, UNIT_ROW)).any():
                parts_of.append((low, None))
            for part, term in parts_of:
                high = quantise_weights(part, 2.0**STATIC_SHIFT, scale, term, UNIT_ROW)
                names = {"layer": f"{node.name}.high", "source": node.source}
                product = q.Product(b.name(f"{value}.high"), ref, high, Convert.STATIC, add=add, at=at, **names)
                add, bias = b.emit(product, rows, cols, scale, groups=groups), None
        product = q.Product(b.name(name), x.ref, quantise_weights(weight, ROW_UNIT, scale, bias), add=add, at=at, **fields)
        add = b.emit(product, rows, cols, scale, offset or None, groups, value if last else None)
    return Held(add, scale, offset or None, parts[0][0].first_row)


def low_part(b: Builder, node: fg.PatchEmbed | fg.Conv | fg.Attention, x: Held) -> Held:
    """What the int8 conversion of x with a fixed step leaves, in steps LOW_STEPS times finer: an operand of its own."""
    _, low = rest(b, node, x)
    made = q.Stack(b.name(f"{node.name}.low"), (piece(b, low, low.scale / LOW_STEPS),), source=node.source)
    scale = low.scale / LOW_STEPS
    return Held(b.emit(made, low.ref.rows, b.cols(low), scale, None, b.groups_of(low)), scale, None, x.first_row)


def rest(b: Builder, node: fg.Linear | fg.PatchEmbed | fg.Conv | fg.Attention, x: Held) -> tuple[Ref, Held]:
    """(x, what the int8 conversion of it with a fixed step leaves): products of the two together have all 16 bits.

    The rest, x - 256 * int8(x), is made by the array too, by a product with the identity; rows of it are small, so their
    own scale keeps nearly every bit. It costs the weights twice and, for K columns, a K by K matrix.
    """
    columns = b.cols(x)
    identity = np.eye(columns, dtype=np.int8) * np.int8(-64)
    # -64 * high byte * 2^15 / 2^16 * 2^11 / 2^8 = -256 * high byte
    power = Matrix(identity, np.full(columns, 1 << 15), 8, np.zeros(columns, np.int16), 1 << 11)
    name = b.name(f"{node.name}.rest")
    product = q.Product(name, x.ref, power, Convert.STATIC, add=x.ref, source=node.source)
    ref = b.emit(product, x.ref.rows, columns, b.made.values[x.ref.value].scale, None, b.groups_of(x))
    return x.ref, Held(ref, x.scale, None, x.first_row)
