"""The hidden layer of an MLP: a linear layer with its activation, its outlier channels kept apart.

A row is converted to int8 with the scale of its largest element. Where a few channels are far larger than the rest,
they get a buffer, and so a row scale, of their own: two narrower products instead of one. (m3vit_edge_task0, 12
images: three layers are split, the final tokens go from 20.5 to 21.8 dB; nearly all of the error was in the first.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph as fg
from ..intgraph import RowMax, View
from ..numerics import INT16_MAX
from .builder import ROW_UNIT, WIDE_MARGIN, Builder, Held, gelu_scale, operands, product
from .scales import quantise_weights, smallest_out_scale

Array = np.ndarray
OUTLIERS = (32, 64, 128)  # channels that may be kept apart, at most a quarter of all
# x * sigmoid(x) ~= (gelu(a x) + gelu(b x)) / (a + b), fitted for the smallest largest error, which is 0.0018: that of the
# GELU table itself. So SiLU costs one more product and no table of its own.
SILU_FACTORS = (0.4161, 0.7343)
WORTH = 4.0  # least reduction of the estimated noise power


def activation(b: Builder, node: fg.Gelu | fg.Silu | fg.Relu) -> None:
    """Emit the linear layer in front of `node` together with it."""
    source = b.plan.linear(node.x, node)
    groups = _outliers(b, node)
    if groups is None:
        groups = [np.arange(len(source.weight))]
    ((x, weight, bias),) = operands(b, source)  # a split value is only read by layers that are added to the stream
    magnitude = b.stats.values[source.name].magnitude()
    held = []
    for i, columns in enumerate(groups):
        w, constant = weight[columns], None if bias is None else bias[columns]
        need = float(smallest_out_scale(w, ROW_UNIT, constant).max())
        form = form_of(node, *kind_of(node), float(magnitude[columns].max()) * WIDE_MARGIN, need)
        scale = form.step * form.gain
        name = node.name if len(groups) == 1 else f"{node.name}.{i}"
        out = b.buffer(name, x.view.rows, len(columns), scale=scale)
        activated(b, source.name, out, x, w, constant, form, node.name if len(groups) == 1 else None, source=source.source)
        held.append((columns, Held(out, scale, row_max=True, first_row=x.first_row)))
    b.held[node.name] = held[0][1]
    if len(groups) > 1:
        b.groups[node.name] = held


def activated(
    b: Builder, name: str, out: View, x: Held, w: Array, bias: Array | None, form: Form, value: str | None = None, **fields
) -> None:
    """Emit out = form(x @ w.T + bias); `w` and `bias` as `operands` gives them, `fields` go to the MatMuls."""
    for n, factor in enumerate(form.factors):
        last = n == len(form.factors) - 1
        product(
            b,
            name,
            out,
            x,
            quantise_weights(w * factor, ROW_UNIT, form.step, None if bias is None else bias * factor),
            value if last else None,
            gelu=(form.table, form.shift),
            residual=out if n else None,
            row_max=RowMax.ABS if last else RowMax.NONE,
            **fields,
        )


@dataclass(frozen=True)
class Form:
    """activation(x) ~= gain * sum over f in `factors` of gelu(f * x), with the table and shift of `numerics.gelu`;
    `step` is the real value of an int16 step of f * x."""

    factors: tuple[float, ...]
    gain: float
    table: str
    shift: int
    step: float


def kind_of(node: fg.Gelu | fg.Silu | fg.Relu) -> tuple[str, float]:
    """(form, slope) as `graph.Experts` names them."""
    match node:
        case fg.Relu():
            return "relu", 1.0
        case fg.Silu(slope=slope):
            return "sigmoid", slope
    return node.approximate, 1.0


def form_of(node: fg.Node, kind: str, slope: float, peak: float, need: float) -> Form:
    """For pre-activations that reach `peak` and a linear layer that needs at least the step `need`."""
    if kind == "relu":
        # GELU in steps so small that its bend around 0 is next to nothing: 22 steps of some ten thousand.
        return Form((1.0,), 1.0, "none", 0, max(peak / INT16_MAX, need))
    if kind == "sigmoid":
        factors = tuple(slope * f for f in SILU_FACTORS)
        shift, step = gelu_scale(node, peak * sum(factors), need * max(factors))
        return Form(factors, 1 / sum(factors), "none", shift, step)
    shift, step = gelu_scale(node, peak, need)
    return Form((1.0,), 1.0, kind, shift, step)


def _outliers(b: Builder, node: fg.Gelu | fg.Silu | fg.Relu) -> list[Array] | None:
    """[columns of the outliers, all others], or None where it is not worth it.

    Only where every reader is a linear layer that is added to the residual stream, and where the sum of the outliers
    alone cannot leave the stream's range.
    """
    readers = b.plan.users.get(node.name, [])
    if not readers or node.name in {o.value for o in b.graph.outputs}:
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
            if partial + b.stats.values[stored].magnitude().max() > INT16_MAX * b.stream_scale:
                return None
    return [outliers, rest]
