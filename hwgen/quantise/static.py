"""Products whose streamed operand has one int8 step for all rows: patches of the image, and convolutions of maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..isa import Convert
from ..numerics import INT8_MAX, STATIC_SHIFT
from ..qgraph import UNIT_ROW, Ref
from ..walks import Walk, window
from .builder import LOW_STEPS, STATIC_MAX, Builder, Held, chosen, fitting, low_part, piece, static_room
from .hidden import Form, activated_alone, activation_form
from .norm import LEAST_SHARE, PEAK_TO_RMS
from .scales import quantise_weights, rounding, smallest_out_scale

Array = np.ndarray
WORTH = 2.0  # least reduction of the estimated noise power for which a value is copied to steps that suit a convolution
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the columns' ranges that may go into the weights, as in SmoothQuant


@dataclass(frozen=True, eq=False)
class Static:
    """weight [N, K] times rows of x, plus bias: a sum of int8 products counts in units of `step` times the weight's step.

    `more`: further operands in units of their own, whose products with the same weight are added: what int8 leaves of x.
    `fine`: what int8 leaves of the weight is a product of its own too. Each costs as much as the first.
    """

    node: fg.PatchEmbed | fg.Conv
    x: Ref
    weight: Array
    bias: Array | None
    step: float
    walk: Walk | None = None
    fine: bool = False
    more: tuple[tuple[Ref, float], ...] = ()

    def need(self, offset: float = 0.0, factor: float = 1.0) -> float:
        """Smallest step of `factor` times the result, less `offset`."""
        bias = self._bias(offset, factor)
        return float(smallest_out_scale(self.weight * factor, self.step, bias, UNIT_ROW).max())

    def _bias(self, offset: float, factor: float) -> Array | None:
        if self.bias is None and not offset:
            return None
        return (np.zeros(len(self.weight)) if self.bias is None else self.bias) * factor - offset

    def emit(
        self,
        b: Builder,
        value: str,
        scale: float,
        offset: float = 0.0,
        form: Form | None = None,
        add: Held | None = None,
    ) -> Held:
        """Emit it in steps of `scale`, or with the activation `form`, or added to `add`, as the float value `value`."""
        factor, step = (1.0, scale) if form is None else (form.factor, form.step)
        weight, bias = self.weight * factor, self._bias(offset, factor)
        parts = [("", self.x, quantise_weights(weight, self.step, step, bias, UNIT_ROW))]
        if self.fine:
            left = rounding(weight, self.step, step, UNIT_ROW)
            parts.append((".fine", self.x, quantise_weights(left, self.step, step, None, UNIT_ROW)))
        parts += [(".low", x, quantise_weights(weight, unit, step, None, UNIT_ROW)) for x, unit in self.more]
        ref, groups = (None, 1) if add is None else (add.ref, b.groups_of(add))
        act = None if form is None else (form.table, form.shift)
        held, offset = (scale, offset or None) if form is None else (form.scale, form.offset)
        apart = act is not None and len(parts) > 1  # the activation is of the sum of all parts
        for what, x, matrix in reversed(parts):
            done = not what and not apart
            units = (held, offset) if done else (step, None)
            fields = {"walk": self.walk, "layer": f"{self.node.name}{what}", "source": self.node.source}
            name, own = (value, act) if done else (f"{value}.sum", None)
            made = q.Product(b.name(name), x, matrix, Convert.STATIC, own, ref, **fields)
            ref = b.emit(made, made.rows, len(weight), *units, groups, value if done else None)
        assert ref is not None
        if apart:
            ref = activated_alone(b, ref, act, held, offset, value, self.node)
        return Held(ref, held, offset)


def static(b: Builder, node: fg.PatchEmbed | fg.Conv) -> Static:
    """The product that a node stands for; emits its operand."""
    if isinstance(node, fg.PatchEmbed):
        x, step, offset = image(b, node)
        fine, more = node.name in b.wide, ()
        if fine:
            more = ((low_part(b, node, Held(x, step / (1 << STATIC_SHIFT))).ref, step / LOW_STEPS),)
        return Static(node, x, *patch_weights(node, offset), step, fine=fine, more=more)
    held = _operand(b, node)
    count, *kernel, _ = node.weight.shape
    weight = node.weight.astype(np.float64) * (np.asarray(held.scale) * (1 << STATIC_SHIFT))
    walk = fitting(node, window(node.size, (kernel[0], kernel[1]), node.stride, node.pads, node.dilation))
    fine, more = node.name in b.wide, ()
    if fine:
        more = ((low_part(b, node, held).ref, 1 / LOW_STEPS),)
    return Static(node, held.ref, weight.reshape(count, -1), node.bias, 1.0, walk, fine, more)


def alone(b: Builder, node: fg.PatchEmbed | fg.Conv) -> None:
    """Emit the product as a value of its own."""
    product = static(b, node)
    scale, offset = chosen(b, node, product.need)
    b.held[node.name] = product.emit(b, node.name, scale, offset)


def activated(b: Builder, node: fg.Activation, source: fg.PatchEmbed | fg.Conv) -> None:
    """Emit the product together with the activation behind it."""
    product = static(b, source)
    form = activation_form(b, node, float(b.stats.values[source.name].magnitude().max()), product.need())
    b.held[node.name] = product.emit(b, node.name, 0.0, form=form)


# --- the image ---------------------------------------------------------------------------------------------------


def image(b: Builder, node: fg.PatchEmbed) -> tuple[Ref, float, float]:
    """Emit the quantised patches [patches, C*ph*pw], of a wide layer with 16 bits; their rows, int8 step and offset."""
    pixels = b.stats.values[node.image]
    low, high = float(pixels.low[0]), float(pixels.high[0])
    if any(node.pads):
        low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 2 / INT8_MAX * float(np.max(b.stats.part(node.image))) or max(abs(high), 1.0) / INT8_MAX
    offset = (low + high) / 2
    shape, patch = b.graph.inputs[node.image], node.patch
    rows, cols = b.shapes[node.name][0], int(np.prod(node.weight.shape[1:]))
    cut = {"stride": node.stride, "pads": node.pads, "source": node.source, "fine": node.name in b.wide}
    cut["type"] = b.graph.type_of(node.image)
    made = q.Image(b.name(f"{node.name}.patches"), node.image, tuple(shape), tuple(patch), step, offset, **cut)
    return b.emit(made, rows, cols, step / (1 << STATIC_SHIFT)), step, offset


def patch_weights(node: fg.PatchEmbed, offset: float) -> tuple[Array, Array]:
    """Weight [D, K] and bias [D] with the image's offset folded in."""
    weight = np.asarray(node.weight, np.float64).reshape(len(node.weight), -1)
    return weight, weight.sum(axis=1) * offset + (0.0 if node.bias is None else node.bias)


# --- maps --------------------------------------------------------------------------------------------------------


def _operand(b: Builder, node: fg.Conv) -> Held:
    """The map without an offset; copied to other steps, column by column, where that leaves far less noise."""
    held = b.held[node.x]
    if node.name in b.wide and held.offset is None:
        return held
    magnitude, best = best_steps(b, node)
    now = np.broadcast_to(held.scale, len(magnitude))
    if held.offset is None and _noise(node.weight, magnitude, now) <= WORTH * _noise(node.weight, magnitude, best):
        return held
    scale: float | Array = float(best[0]) if (best == best[0]).all() else best
    made = q.Stack(b.name(f"{node.name}.x"), (piece(b, held, scale),), source=node.source)
    return Held(b.emit(made, held.ref.rows, len(magnitude), scale, None, b.groups_of(held)), scale)


def best_steps(b: Builder, node: fg.Conv) -> tuple[Array, Array]:
    """(largest magnitude of each column of what a convolution reads, the steps of columns that leave it least noise)."""
    magnitude = np.maximum(b.stats.values[node.x].magnitude(), 1e-30)
    magnitude = np.maximum(magnitude, magnitude.max() * LEAST_SHARE)
    weight = np.abs(node.weight.astype(np.float64)).reshape(-1, node.weight.shape[3])
    largest = np.maximum(weight.max(axis=0), weight.max() * LEAST_SHARE) if weight.any() else np.ones(len(magnitude))
    evened = [magnitude**share / largest ** (1 - share) if share else np.ones(len(magnitude)) for share in SHARES]
    reach = STATIC_MAX / static_room(b.stats.values[node.x])
    columns = [even * ((magnitude / even).max() / reach) for even in evened]
    return magnitude, min(columns, key=lambda scale: _noise(node.weight, magnitude, scale))


def _noise(weight: Array, magnitude: Array, scale: Array) -> float:
    """Estimated noise power of a convolution of columns up to `magnitude` in int16 steps `scale`, all rounded to int8."""
    step = scale * (1 << STATIC_SHIFT)
    w = weight.astype(np.float64) * step
    rounded = np.square(w).sum()
    x = np.square(magnitude / step / PEAK_TO_RMS).sum() * weight[0, ..., 0].size
    steps = np.abs(w).reshape(len(w), -1).max(axis=1) / INT8_MAX
    return float(rounded + np.square(steps).sum() * x)
