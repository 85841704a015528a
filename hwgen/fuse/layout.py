"""Operators that only move elements, on arrays: they serve constants and the index arrays of views alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .op import Op, Unsupported, constant_argument

Array = np.ndarray
MOVES = frozenset(
    "Identity Dropout Reshape Flatten Transpose Squeeze Unsqueeze Slice Split Expand Tile Gather GatherND SpaceToDepth".split()
)


def move(op: Op, array: Array, values: Sequence) -> list[Array]:
    """Apply an operator of MOVES to `array`, its data; `values` are all its inputs, the others constants."""

    def argument(position: int, name: str, default=None):
        return constant_argument(op, values, position, name, default)

    match op.type:
        case "Identity" | "Dropout":
            return [array]
        case "Reshape":
            return [array.reshape(_target(op, array, argument(1, "shape")))]
        case "Flatten":
            axis = op.attribute("axis", 1)
            return [array.reshape(int(np.prod(array.shape[:axis])), -1)]
        case "Transpose":
            return [array.transpose(op.attribute("perm"))]
        case "Squeeze":
            axes = argument(1, "axes")
            return [np.squeeze(array, None if axes is None else tuple(int(a) for a in np.atleast_1d(axes)))]
        case "Unsqueeze":
            return [np.expand_dims(array, tuple(int(a) for a in np.atleast_1d(argument(1, "axes"))))]
        case "Slice":
            return [array[_slices(array, argument)]]
        case "Split":
            return _split(op, array, argument)
        case "Expand":
            target = tuple(int(n) for n in argument(1, "shape"))
            return [np.broadcast_to(array, np.broadcast_shapes(array.shape, target))]
        case "Tile":
            return [np.tile(array, argument(1, "repeats"))]
        case "Gather":
            return [np.take(array, argument(1, "indices"), axis=op.attribute("axis", 0))]
        case "GatherND":
            if op.attribute("batch_dims", 0):
                raise Unsupported("batch_dims is not 0")
            return [array[tuple(np.moveaxis(argument(1, "indices"), -1, 0))]]
        case "SpaceToDepth":
            n, c, height, width = array.shape
            b = op.attribute("blocksize")
            blocks = array.reshape(n, c, height // b, b, width // b, b).transpose(0, 3, 5, 1, 2, 4)
            return [blocks.reshape(n, b * b * c, height // b, width // b)]
    raise AssertionError(op.type)


def _target(op: Op, array: Array, shape: Array) -> tuple[int, ...]:
    target = [int(n) for n in shape]
    if not op.attribute("allowzero", 0):
        target = [array.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return tuple(target)


def _slices(array: Array, argument) -> tuple[slice, ...]:
    starts, ends = argument(1, "starts"), argument(2, "ends")
    axes, steps = argument(3, "axes", np.arange(len(starts))), argument(4, "steps", np.ones(len(starts), int))
    cut = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = array.shape[int(axis)]
        start, end, step = int(start), int(end), int(step)
        # ONNX clamps a negative end beyond the front to "before the first element", which Python spells None.
        last = None if step < 0 and end < -size else end
        cut[int(axis)] = slice(start, last, step)
    return tuple(cut)


def _split(op: Op, array: Array, argument) -> list[Array]:
    axis = op.attribute("axis", 0)
    sizes = argument(1, "split")
    if sizes is None:
        parts = op.attribute("num_outputs", len(op.outputs))
        each = -(-array.shape[axis] // parts)
        sizes = [min(each, array.shape[axis] - each * i) for i in range(parts)]
    return np.split(array, np.cumsum([int(n) for n in sizes])[:-1], axis=axis)
