"""Operators that only move elements, and those that say shapes and make constants."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ...tensor import Ref
from ...tensor.build import wrapped
from ...tensor.layout import check_size
from ..rules import Context, Op, Unsupported, rule
from .ragged import computed_slice


@rule("Identity", "Dropout")
def identity(c: Context, op: Op, x: Ref, *ratio: Any) -> Any:
    """Dropout drops nothing here; its mask is all true."""
    op.ignore("seed", "ratio", "is_test")
    if len(ratio) > 1 and ratio[1] is not None and any(c.ints(ratio[1], "training_mode")):
        raise Unsupported("drops at random (training_mode)", "export the model in eval mode")
    return [x] if len(op.outputs) == 1 else [x, c.t.full(x.shape, True)]


@rule("Constant")
def constant(c: Context, op: Op) -> Ref:
    ((name, value),) = op.attributes.items()
    op.ignore(name)
    if name not in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        raise Unsupported(f"holds {name}, which is no tensor of numbers")
    value = np.asarray(value, {"value_float": np.float32, "value_floats": np.float32}.get(name))
    c.kinds[op.outputs[0]] = value.dtype.name
    return c.t.const(value, op.outputs[0])


@rule("Shape", "Size")
def shape(c: Context, op: Op, x: Ref) -> Ref:
    if op.type == "Size":
        return c.t.const(prod(x.shape))
    return c.t.const(np.asarray(x.shape[op.attribute("start", 0) : op.attribute("end")], np.int64))


@rule("ConstantOfShape")
def constant_of_shape(c: Context, op: Op, sizes: Ref) -> Ref:
    value = np.asarray(op.attribute("value", np.zeros(1, np.float32))).reshape(())
    return c.t.full(tuple(c.ints(sizes, "shape")), value)


@rule("Range")
def steps(c: Context, op: Op, *x: Ref) -> Ref:
    start, limit, delta = (c.array(r, "range").reshape(-1)[0] for r in x)
    check_size((max(0, int((float(limit) - float(start)) / float(delta))),))
    return c.t.const(np.arange(start, limit, delta).astype(start.dtype))


@rule("Reshape")
def reshape(c: Context, op: Op, x: Ref, sizes: Ref) -> Ref:
    wanted = c.ints(sizes, "shape")
    if not op.flag("allowzero"):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return c.t.reshape(x, wanted)


@rule("Flatten")
def flatten(c: Context, op: Op, x: Ref) -> Ref:
    axis = op.attribute("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    return c.t.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


@rule("Transpose")
def transpose(c: Context, op: Op, x: Ref) -> Ref:
    return c.t.transpose(x, op.attribute("perm", range(len(x.shape))[::-1]))


@rule("Squeeze")
def squeeze(c: Context, op: Op, *x: Ref) -> Ref:
    axes = c.argument(op, x, 1, "axes", [i for i, n in enumerate(x[0].shape) if n == 1])
    dropped = {wrapped(int(a), len(x[0].shape)) for a in np.atleast_1d(axes)}
    return c.t.reshape(x[0], [n for i, n in enumerate(x[0].shape) if i not in dropped])


@rule("Unsqueeze")
def unsqueeze(c: Context, op: Op, *x: Ref) -> Ref:
    axes = np.atleast_1d(c.argument(op, x, 1, "axes"))
    rank = len(x[0].shape) + len(axes)
    sizes = list(x[0].shape)
    for axis in sorted(wrapped(int(a), rank) for a in axes):
        sizes.insert(axis, 1)
    return c.t.reshape(x[0], sizes)


@rule("Expand")
def expand(c: Context, op: Op, x: Ref, sizes: Ref) -> Ref:
    return c.t.expand(x, c.ints(sizes, "shape"))


@rule("Tile")
def tile(c: Context, op: Op, x: Ref, times: Ref) -> Ref:
    return c.t.tile(x, c.ints(times, "repeats"))


@rule("Slice")
def cut(c: Context, op: Op, *x: Ref) -> Any:
    if (masked := computed_slice(c, op, x)) is not None:
        return masked
    y = x[0]
    starts, ends = c.argument(op, x, 1, "starts"), c.argument(op, x, 2, "ends")
    axes = c.argument(op, x, 3, "axes", np.arange(len(starts)))
    strides = c.argument(op, x, 4, "steps", np.ones(len(starts), np.int64))
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), strides.tolist(), strict=True):
        n = y.shape[axis]
        first, last, step = slice(start, None if step < 0 and end < -n else end, step).indices(n)
        y = c.t.slice(y, axis, first, len(range(first, last, step)), step)
    return y


@rule("Split")
def split(c: Context, op: Op, *x: Ref) -> Any:
    if (masked := computed_slice(c, op, x)) is not None:
        return masked
    axis = op.axis(len(x[0].shape))
    parts = op.attribute("num_outputs", len(op.outputs))
    each = -(-x[0].shape[axis] // parts)
    sizes = [min(each, x[0].shape[axis] - i * each) for i in range(parts)]
    sizes = [int(n) for n in c.argument(op, x, 1, "split", sizes)]
    if sum(sizes) != x[0].shape[axis]:
        raise ValueError(f"parts of {sizes} from {x[0].shape[axis]}")
    return [c.t.slice(x[0], axis, sum(sizes[:i]), n) for i, n in enumerate(sizes)]


@rule("Concat")
def concat(c: Context, op: Op, *x: Ref) -> Ref:
    return c.t.concat(list(x), op.attribute("axis"))


def padded(c: Context, x: Ref, before: list[int], after: list[int], value: float = 0.0) -> Ref:
    """With `value` before and behind each axis; negative numbers crop."""
    for axis, n in enumerate(x.shape):
        low, high = max(-before[axis], 0), max(-after[axis], 0)
        x = c.t.slice(x, axis, low, n - low - high) if low or high else x
    return c.t.pad(x, [max(n, 0) for n in before], [max(n, 0) for n in after], value)


@rule("Pad")
def pad(c: Context, op: Op, *x: Ref) -> Ref:
    """Negative pads crop first; the other modes read the cropped tensor's own elements."""
    y, rank = x[0], len(x[0].shape)
    pads = [int(n) for n in c.argument(op, x, 1, "pads")]
    axes = c.ints(x[3], "axes") if len(x) > 3 and x[3] is not None else range(rank)
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        axis = wrapped(axis, rank)
        before[axis], after[axis] = pads[i], pads[i + len(pads) // 2]
    mode = op.attribute("mode", "constant")
    if mode == "constant":
        value = c.argument(op, x, 2, "value", np.zeros(()))
        return padded(c, y, before, after, float(np.asarray(value).reshape(())))
    if mode not in ("reflect", "edge", "wrap"):
        raise Unsupported(f"mode is {mode!r}")
    y = padded(c, y, [min(n, 0) for n in before], [min(n, 0) for n in after])
    for axis in range(rank):
        if before[axis] > 0 or after[axis] > 0:
            check_size((y.shape[axis] + max(before[axis], 0) + max(after[axis], 0),))
            index = np.pad(np.arange(y.shape[axis]), (max(before[axis], 0), max(after[axis], 0)), mode=mode)
            y = c.t.gather(y, c.t.const(index), axis)
    return y


@rule("DepthToSpace")
def depth_to_space(c: Context, op: Op, x: Ref) -> Ref:
    (n, depth, h, w), b = x.shape, op.attribute("blocksize")
    if op.attribute("mode", "DCR") == "DCR":
        y = c.t.transpose(c.t.reshape(x, (n, b, b, depth // b**2, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = c.t.transpose(c.t.reshape(x, (n, depth // b**2, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return c.t.reshape(y, (n, depth // b**2, h * b, w * b))


@rule("SpaceToDepth")
def space_to_depth(c: Context, op: Op, x: Ref) -> Ref:
    (n, depth, h, w), b = x.shape, op.attribute("blocksize")
    y = c.t.transpose(c.t.reshape(x, (n, depth, h // b, b, w // b, b)), (0, 3, 5, 1, 2, 4))
    return c.t.reshape(y, (n, depth * b**2, h // b, w // b))
