"""The hidden layer of an MLP: a linear layer with its activation, its outlier channels kept apart.

A row is converted to int8 with the scale of its largest element. Where a few channels are far larger than the rest,
they get a buffer, and so a row scale, of their own: two narrower products instead of one. (m3vit_edge_task0, 12
images: three layers are split, the final tokens go from 20.5 to 21.8 dB; nearly all of the error was in the first.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..numerics import (
    EXP_ONE,
    GELU_SHIFT_MAX,
    GELU_SPANS,
    INT16_MAX,
    PRODUCT_SHIFT_MAX,
    PRODUCT_SHIFT_MIN,
    STATIC_SHIFT,
    TANH_ONE,
    WINDOW_ONE,
)
from ..qgraph import Matrix, Ref
from ..walks import window as sliding
from .builder import (
    ROW_UNIT,
    STATIC_MAX,
    TINY,
    WIDE_MARGIN,
    Builder,
    Held,
    fitting,
    linear,
    linear_need,
    operands,
    own_scale,
    plain,
    read_static,
    static_room,
)
from .plan import describe, map_height
from .scales import OutOfRange, quantise_weights, smallest_out_scale

Array = np.ndarray
OUTLIERS = (32, 64, 128)  # channels that may be kept apart, at most a quarter of all
COARSER = 4.0  # as much may steps be than a value's own so that a sum shares them: nothing is brought from one to the other
WORTH = 4.0  # least reduction of the estimated noise power


def activation(b: Builder, node: fg.Activation) -> None:
    """Emit the linear layer in front of `node` together with it."""
    source, gain = b.plan.linear(node.x), 1.0
    if node.form == "exp":  # e^c e^(x - c), as the table's numbers go up to 0
        top = float(b.stats.values[source.name].high.max() + np.log(WIDE_MARGIN))
        bias, gain = np.zeros(len(source.weight)) if source.bias is None else source.bias, float(np.exp(top))
        source = replace(source, bias=bias - top)
    if source.name in b.wide or (node.form == "exp" and source.name in b.exact):
        need = linear_need(b, source)
        low = 3 * 2.0 ** (STATIC_SHIFT - 1) * max(float(np.abs(w).sum(axis=1).max()) for _, w, _ in operands(b, source))
        form = activation_form(b, node, float(b.stats.values[source.name].magnitude().max()), need, low)
        w, bias = source.weight * form.factor, None if source.bias is None else source.bias * form.factor
        sums = linear(b, replace(source, weight=w, bias=bias), form.step, f"{node.name}.sum")
        act = (form.table, form.shift)
        ref = activated_alone(b, sums.ref, act, form.scale * gain, form.offset, node.name, source)
        b.held[node.name] = Held(ref, form.scale * gain, form.offset, sums.first_row)
        return
    groups = _outliers(b, node)
    if groups is None:
        groups = [np.arange(len(source.weight))]
    ((x, weight, bias),) = operands(b, source)  # a split value is only read by layers that are added to something
    magnitude = b.stats.values[source.name].magnitude()
    held = []
    for i, columns in enumerate(groups):
        w, constant = weight[columns], None if bias is None else bias[columns]
        need = float(smallest_out_scale(w, ROW_UNIT, constant).max())
        form = activation_form(b, node, float(magnitude[columns].max()), need)
        name = node.name if len(groups) == 1 else f"{node.name}.{i}"
        fields = {"act": (form.table, form.shift), "layer": source.name, "source": source.source}
        made = q.Product(b.name(name), x.ref, activated(w, constant, form), **fields)
        value = node.name if len(groups) == 1 else None
        ref = b.emit(made, x.ref.rows, len(columns), form.scale * gain, form.offset, value=value)
        held.append((columns, Held(ref, form.scale * gain, form.offset, x.first_row)))
    b.held[node.name] = held[0][1]
    if len(groups) > 1:
        b.groups[node.name] = held


def activation_form(b: Builder, node: fg.Activation, peak: float, need: float, low: float = 0.0) -> Form:
    """For pre-activations that were seen to reach `peak`; `need`: the least step of what makes them. `low`: what is still added
    to them, at most, once they are stored."""
    seen, clip = b.stats.values[node.name], b.plan.limits.get(node.name)
    if node.form == "relu" and clip is not None and clip.low <= 0 < clip.high and node.name not in b.plan.scales:
        # What saturates lies beyond the limit all the same, also where large biases need larger steps than the limit.
        step = max((clip.high + low) / INT16_MAX, need)
        if step * INT16_MAX < peak * seen.room * WIDE_MARGIN:
            return Form(1.0, "relu", 0, step)
    margin = static_room(seen) * INT16_MAX / STATIC_MAX if read_static(b.plan, node.name) else seen.room * WIDE_MARGIN
    form, sums = form_of(node.form, node.slope, peak * margin, need), b.plan.added_to(node.name)
    if form.table not in ("tanh", "exp") and form.scale < sums <= COARSER * form.scale:  # which are made in its steps then
        form = form_of(node.form, node.slope, peak * margin, sums)
    return form


def activated(w: Array, bias: Array | None, form: Form) -> Matrix:
    """The matrix in front of an activation; `w` and `bias` as `operands` gives them."""
    return quantise_weights(w * form.factor, ROW_UNIT, form.step, None if bias is None else bias * form.factor)


def multiply(b: Builder, node: fg.Multiply) -> None:
    """The product of two stored values, as in a gated linear unit, or of one and a row.

    Its step is that of the factors times a power of two."""
    x, factor = plain(b, node.a), plain(b, node.b)
    if factor.ref.rows > 1 and (x.first_row, x.ref.rows) != (factor.first_row, factor.ref.rows):
        raise UserError(f"{describe(node)}: {node.a!r} and {node.b!r} hold different tokens")
    step = float(x.scale) * float(factor.scale)
    wanted = own_scale(b, node, 0.0) / step
    shift = int(np.clip(np.ceil(np.log2(wanted)), PRODUCT_SHIFT_MIN, PRODUCT_SHIFT_MAX))
    if wanted > 2.0**PRODUCT_SHIFT_MAX:
        raise OutOfRange(f"products up to 2^{np.log2(wanted):.0f} steps of their factors")
    scale = step * 2.0**shift
    made = q.Multiply(b.name(node.name), x.ref, factor.ref, shift, source=node.source)
    ref = b.emit(made, x.ref.rows, b.cols(x), scale, None, b.groups_of(x), node.name)
    b.held[node.name] = Held(ref, scale, None, x.first_row)


@dataclass(frozen=True)
class Form:
    """activation(x) ~= gelu(factor * x) / factor, with the table and shift of `numerics.gelu`; `step` is the real value of
    an int16 step of factor * x. Or exp(min(x, 0)), or tanh(x), and sigmoid(x) = (1 + tanh(x / 2)) / 2, `offset` of which is
    the 1 / 2."""

    factor: float
    table: str
    shift: int
    step: float
    offset: float | None = None

    @property
    def scale(self) -> float:
        """Real value of a step of the activation."""
        if self.table == "exp":
            return 1 / EXP_ONE
        if self.table == "tanh":
            return (1 if self.offset is None else self.offset) / TANH_ONE
        return self.step / self.factor


def activated_alone(
    b: Builder, x: Ref, act: tuple[str, int], scale: float, offset: float | None, value: str, node: fg.Node
) -> Ref:
    """Emit the activation of a stored value as the float value `value`: a window of one tap."""
    cols = b.made.values[x.value].cols
    height = map_height(x.rows)
    assert height is not None, node.name
    walk = fitting(node, sliding((height, x.rows // height), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)))
    mult, bias = np.full(cols, WINDOW_ONE), np.zeros(cols, np.int16)
    made = q.Window(b.name(value), x, (walk,), (mult,), bias, act=act, layer=f"{node.name}.act", source=node.source)
    return b.emit(made, x.rows, cols, scale, offset, value=value)


def form_of(kind: str, slope: float, peak: float, need: float) -> Form:
    """For pre-activations that reach `peak` and a linear layer that needs at least the step `need`.

    Numbers beyond what a table's steps hold are those of ReLU: it is off by less than 0.4 (softplus 0.7) where values go beyond
    128, less than an int8 step of theirs. Where int16 saturates, tanh is 1 and exp 0: steps are as small as the layer allows.
    """
    if kind == "gelu_tanh":
        kind = "gelu"  # which differ by a quarter of what the table is off by
    if kind == "exp":
        factor = 1 / GELU_SPANS[kind]
        shift = int(np.floor(-7 - np.log2(max(need * factor, 2.0 ** -(7 + GELU_SHIFT_MAX)))))
        if shift < 0:
            raise OutOfRange(f"weights or biases that need steps of {need:g}, of which exp is nearly a jump")
        return Form(factor, kind, shift, 2.0 ** -(7 + shift))
    if kind in ("tanh", "sigmoid"):
        offset = 0.5 if kind == "sigmoid" else None
        factor = (offset or 1.0) / GELU_SPANS["tanh"]
        shift = int(np.floor(-7 - np.log2(max(need * factor, 2.0 ** -(7 + GELU_SHIFT_MAX)))))
        if shift < 0:
            raise OutOfRange(f"weights or biases that need steps of {need:g}, of which {kind} is nearly a jump")
        return Form(factor, "tanh", shift, 2.0 ** -(7 + shift), offset)
    if kind != "relu":
        factor = slope / GELU_SPANS[kind]
        for shift in range(GELU_SHIFT_MAX, -1, -1):
            step = 2.0 ** -(7 + shift)
            if INT16_MAX * step >= peak * factor and step >= need * factor:
                return Form(factor, kind, shift, step)
    return Form(1.0, "relu", 0, max(peak / INT16_MAX, need, TINY))


def second_biases(node: fg.Experts | fg.SlotExperts, form: Form) -> Array | None:
    """Biases [E, D] of the second layer, and what the offset of the activation in front adds to each row of them."""
    if form.offset is None:
        return node.b2
    return form.offset * node.w2.sum(axis=2, dtype=np.float64) + (0.0 if node.b2 is None else node.b2)


def _outliers(b: Builder, node: fg.Activation) -> list[Array] | None:
    """[columns of the outliers, all others], or None where it is not worth it.

    Only where every reader is a linear layer that is added to something, and where the sum of the outliers alone cannot
    leave the range of what it is added to.
    """
    readers = b.plan.users.get(node.name, [])
    if not readers or node.form in ("tanh", "sigmoid") or node.name in {o.value for o in b.graph.outputs}:
        return None
    for reader in readers:
        added = all(isinstance(user, fg.Add) for user in b.plan.users.get(reader.name, []))
        if not isinstance(reader, fg.Linear) or reader.name in b.plan.alone or not added:
            return None
    magnitude = b.stats.values[node.name].magnitude()
    energy = sum(np.square(reader.weight, dtype=np.float64).sum(axis=0) for reader in readers)
    order = np.argsort(-magnitude, kind="stable")
    peaks, energy = magnitude[order], energy[order]

    def noise(count: int) -> float:
        rest = peaks[count] ** 2 * energy[count:].sum()
        return rest + (peaks[0] ** 2 * energy[:count].sum() if count else 0.0)

    count = min((n for n in OUTLIERS if 4 * n <= len(order)), key=noise, default=0)
    if noise(count) * WORTH >= noise(0):
        return None
    outliers, rest = np.sort(order[:count]), np.sort(order[count:])
    for reader in readers:
        partial = (np.abs(reader.weight[:, outliers]) @ magnitude[outliers]).max()
        for add in b.plan.users[reader.name]:
            stored = add.a if add.b == reader.name else add.b
            if partial + b.stats.values[stored].magnitude().max() > INT16_MAX * b.plan.scales[add.name]:
                return None
    return [outliers, rest]
