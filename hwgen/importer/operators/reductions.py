"""Reductions, softmax and normalisations."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ...tensor import FLOAT, Ref
from ..rules import Context, Op, Unsupported, rule

REDUCES = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


@rule(*(f"Reduce{kind}" for kind in REDUCES))
def reduce(c: Context, op: Op, *x: Ref) -> Ref:
    """Axes empty or absent: all of them, or none with noop_with_empty_axes."""
    t, y, kind = c.t, x[0], op.type[6:]
    axes = [int(a) for a in np.atleast_1d(c.argument(op, x, 1, "axes", []))]
    none = op.flag("noop_with_empty_axes")
    if not axes and not none:
        axes = list(range(len(y.shape)))
    keep = op.flag("keepdims", True)
    if kind == "Mean" and y.dtype != FLOAT:
        raise Unsupported("is the mean of integers")
    if kind in ("L1", "L2", "SumSquare"):
        y = t.map("abs", y) if kind == "L1" else t.map("mul", y, y)
    if kind == "LogSumExp":
        largest = t.reduce("max", y, axes)
        y = t.map("add", t.map("log", t.reduce("sum", t.map("exp", t.map("sub", y, largest)), axes)), largest)
        return y if keep else t.reduce("max", y, axes, keep)
    y = t.reduce(kind.lower() if kind in ("Mean", "Max", "Min", "Prod") else "sum", y, axes, keep)
    return t.map({"L2": "sqrt", "LogSum": "log"}[kind], y) if kind in ("L2", "LogSum") else y


@rule(*(d + k for d in ("", "com.microsoft.nchwc.") for k in ("GlobalAveragePool", "GlobalMaxPool")), "GlobalLpPool")
def global_pool(c: Context, op: Op, x: Ref) -> Ref:
    axes = list(range(2, len(x.shape)))
    if op.type == "GlobalLpPool":
        p = float(op.attribute("p", 2))
        return c.t.map("pow", c.t.reduce("sum", c.t.map("pow", c.t.map("abs", x), p), axes), 1 / p)
    return c.t.reduce("mean" if op.type.endswith("GlobalAveragePool") else "max", x, axes)


@rule("Softmax", "LogSoftmax")
def softmax(c: Context, op: Op, x: Ref) -> Ref:
    """Before opset 13 over all axes from `axis` on."""
    axis = op.axis(len(x.shape), -1 if op.opset >= 13 else 1)
    axes = [axis] if op.opset >= 13 else list(range(axis, len(x.shape)))
    if op.type == "Softmax":
        return softmax_of(c, x, axes)
    centred = c.t.map("sub", x, c.t.reduce("max", x, axes))
    return c.t.map("sub", centred, c.t.map("log", c.t.reduce("sum", c.t.map("exp", centred), axes)))


def softmax_of(c: Context, x: Ref, axes: list[int]) -> Ref:
    e = c.t.map("exp", c.t.map("sub", x, c.t.reduce("max", x, axes)))
    return c.t.map("div", e, c.t.reduce("sum", e, axes))


def normalised(c: Context, x: Ref, axes: Any, epsilon: float, centre: bool = True) -> tuple[Ref, Ref | None, Ref]:
    """((x - mean) / deviation, mean, deviation) over `axes`; without `centre`, the mean stays."""
    t = c.t
    mean = t.reduce("mean", x, axes) if centre else None
    x = t.map("sub", x, mean) if centre else x
    deviation = t.map("sqrt", t.map("add", t.reduce("mean", t.map("mul", x, x), axes), epsilon))
    return t.map("div", x, deviation), mean, deviation


def affine(c: Context, x: Ref, scale: Ref | None, shift: Ref | None, shape: Any = None) -> Ref:
    """x * scale + shift, both in `shape`."""
    for function, r in (("mul", scale), ("add", shift)):
        if r is not None:
            x = c.t.map(function, x, r if shape is None else c.t.reshape(r, shape))
    return x


@rule("LpNormalization")
def lp_norm(c: Context, op: Op, x: Ref) -> Ref:
    """A row of zeros stays one."""
    axes, p = [op.attribute("axis", -1)], op.attribute("p", 2)
    total = c.t.reduce("sum", c.t.map("abs", x) if p == 1 else c.t.map("mul", x, x), axes)
    length = total if p == 1 else c.t.map("sqrt", total)
    return c.t.map("div", x, c.t.map("where", c.t.map("eq", length, 0.0), 1.0, length))


@rule("LRN")
def local_norm(c: Context, op: Op, x: Ref) -> Ref:
    """By the mean square of the neighbouring channels."""
    t, size, rank = c.t, op.attribute("size"), len(x.shape)
    before, after = [0] * rank, [0] * rank
    before[1], after[1] = (size - 1) // 2, size // 2
    squares = t.reduce("sum", t.window(t.pad(t.map("mul", x, x), before, after), 1, size), [2], keep=False)
    base = t.map("add", t.map("mul", squares, op.attribute("alpha", 1e-4) / size), op.attribute("bias", 1.0))
    return t.map("div", x, t.map("pow", base, op.attribute("beta", 0.75)))


@rule("RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization")
def rms_norm(c: Context, op: Op, x: Ref, scale: Ref | None = None) -> list[Ref]:
    """The inverse deviation is a further output."""
    op.ignore("stash_type")
    axes = range(op.axis(len(x.shape), -1), len(x.shape))
    y, _, deviation = normalised(c, x, axes, op.attribute("epsilon", 1e-5), centre=False)
    return [affine(c, y, scale, None), c.t.map("div", 1.0, deviation)][: len(op.outputs)]


@rule("LayerNormalization")
def layer_norm(c: Context, op: Op, x: Ref, scale: Ref | None = None, shift: Ref | None = None) -> list[Any]:
    """Mean and inverse deviation are further outputs."""
    op.ignore("stash_type")
    axes = range(op.axis(len(x.shape), -1), len(x.shape))
    y, mean, deviation = normalised(c, x, axes, op.attribute("epsilon", 1e-5))
    extra = [mean, c.t.map("div", 1.0, deviation)] if len(op.outputs) > 1 else []
    return [affine(c, y, scale, shift), *extra][: len(op.outputs)]


def channels(x: Ref) -> tuple[int, ...]:
    """The shape in which a vector over the channels, axis 1, broadcasts."""
    return (1, x.shape[1], *[1] * (len(x.shape) - 2))


@rule("BatchNormalization")
def batch_norm(c: Context, op: Op, x: Ref, scale: Ref, shift: Ref, mean: Ref, variance: Ref) -> Ref:
    op.ignore("momentum", "spatial")
    t = c.t
    if op.flag("training_mode"):  # weights that are standardised, as in BiT (Kolesnikov et al. 2020), are such a batch
        if x.constant is None:
            raise Unsupported("normalises by the batch itself (training_mode=1)", "export the model in eval mode")
        y, _, _ = normalised(c, x, [i for i in range(len(x.shape)) if i != 1], op.attribute("epsilon", 1e-5))
        return affine(c, y, scale, shift, channels(x))
    factor = t.map("div", scale, t.map("sqrt", t.map("add", variance, op.attribute("epsilon", 1e-5))))
    return affine(c, x, factor, t.map("sub", shift, t.map("mul", mean, factor)), channels(x))


@rule("InstanceNormalization")
def instance_norm(c: Context, op: Op, x: Ref, scale: Ref, shift: Ref) -> Ref:
    y, _, _ = normalised(c, x, range(2, len(x.shape)), op.attribute("epsilon", 1e-5))
    return affine(c, y, scale, shift, channels(x))


@rule("GroupNormalization")
def group_norm(c: Context, op: Op, x: Ref, scale: Ref, shift: Ref) -> Ref:
    """Scale and shift per group (opset 18 to 20) or per channel; either length is taken."""
    op.ignore("stash_type")
    groups = op.attribute("num_groups")
    n, width, *rest = x.shape
    grouped = c.t.reshape(x, (n, groups, width // groups, *rest))
    y, _, _ = normalised(c, grouped, range(2, len(grouped.shape)), op.attribute("epsilon", 1e-5))
    if prod(scale.shape) == width:
        return affine(c, c.t.reshape(y, x.shape), scale, shift, channels(x))
    return c.t.reshape(affine(c, y, scale, shift, channels(grouped)), x.shape)
