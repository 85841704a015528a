"""Ragged tensors: the rows that one expert gets.

NonZero of a mask gives the places of an expert's tokens, as many as there are. What exporters compute on them is run here
on the full tensor behind (`Packed.inner`), of which the ragged one holds the entries where the mask does. That is sound
as long as every entry of the ragged axis stays by itself and in order, which the rules below see to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import dispatch
from .emit import Context
from .gathering import Packed, Sized
from .layout import MOVES, move
from .op import Op, Unsupported
from .views import Const, View

Apply = Callable[[Context, Op, list], Any]

FROZEN = (
    "the export froze how many tokens each expert got in its example",
    "export with dynamic shapes, or run every expert on all tokens",
)
TO_THE_END = 1 << 30  # exporters write the end of an axis as some number beyond all lengths
ROWWISE = frozenset("LayerNormalization Softmax LogSoftmax".split())
ELEMENTWISE = frozenset(
    "Add Sub Mul Div Pow Mod Neg Abs Sqrt Reciprocal Floor Ceil Round Cast CastLike Gelu Erf Tanh Relu Sigmoid HardSwish "
    "Softplus Silu Mish Swish Equal Greater Less GreaterOrEqual LessOrEqual Not And Or Where Clip Min Max "
    "com.microsoft.Gelu com.microsoft.BiasGelu com.microsoft.FastGelu com.microsoft.QuickGelu".split()
)


def run(ctx: Context, op: Op, values: list, apply: Apply) -> Any:
    """Results of a node with ragged inputs; `apply` runs a node on full tensors."""
    if op.type in ("ScatterND", "ScatterElements"):
        return dispatch.scatter(ctx, op, values)
    packed = [v for v in values if isinstance(v, Packed)]
    first = packed[0]
    if not all(dispatch.same_tokens(p, first) and p.axis == first.axis for p in packed):
        raise Unsupported("combines the tokens of different experts")
    inner = [v.inner if isinstance(v, Packed) else v for v in values]
    if op.type == "Shape":
        shape = np.asarray(first.inner.shape, np.int64)
        return Sized(shape[op.attribute("start", 0) : op.attribute("end", len(shape))], mask=first.mask)
    if op.type in MOVES and values[0] is first:
        return _moved(op, first, inner)
    result = _update(first, op, inner) or apply(ctx, op, inner)
    result = result[0] if isinstance(result, list) and len(op.outputs) == 1 else result
    if isinstance(result, list):
        raise Unsupported("splits the tokens of one expert")
    return Packed(first.mask, result, _axis(op, values, first, result))


def _update(first: Packed, op: Op, inner: list) -> View | None:
    if op.type != "Add" or not all(isinstance(v, View) for v in inner):
        return None
    return dispatch.updated(first.mask, *inner)


def _axis(op: Op, values: list, first: Packed, result: View | Const) -> int:
    """The ragged axis of the result of a node that does not move the ragged axis itself."""
    if op.type in ("Gather", "GatherND"):
        depth = 0 if op.type == "GatherND" else op.attribute("axis", 0) % len(values[0].shape)
        return depth + len(first.inner.shape) + first.axis - len(result.shape)
    others = [v for v in values if v is not None and not isinstance(v, Packed)]
    if op.type in ("MatMul", "Gemm"):
        alone = values[0] is first and first.axis <= -2 and len(others) == len(values) - 1
    elif op.type == "Concat":
        rank = len(first.inner.shape)
        alone = not others and op.attribute("axis") % rank != first.axis % rank
    elif op.type in ROWWISE:
        alone = first.axis < -1 and op.attribute("axis", -1) in (-1, len(first.inner.shape) - 1)
    else:
        alone = op.type in ELEMENTWISE
        alone = alone and all(len(v.shape) < -first.axis or v.shape[first.axis] == 1 for v in others)
    if not alone:
        raise Unsupported("mixes the tokens of one expert")
    return first.axis


def _moved(op: Op, packed: Packed, inner: list) -> Any:
    """Reshape, Transpose, Split, ... of a ragged tensor: the ragged axis is followed by where its coordinate goes."""
    shape, n = packed.inner.shape, packed.mask.shape[0]
    if op.type == "Slice":
        inner = _whole_slice(packed, inner)
    line = [1] * len(shape)
    line[packed.axis] = n
    try:
        followed = move(op, np.broadcast_to(np.arange(n).reshape(line), shape), inner)
    except ValueError:
        raise _misfit(op, inner) from None
    if isinstance(packed.inner, View):
        data = [_view(packed.inner, index) for index in move(op, packed.inner.positions, inner)]
    else:
        data = [Const(array) for array in move(op, packed.inner.array, inner)]
    results = []
    for coordinate, result in zip(followed, data, strict=True):
        axis, mask = _follow(coordinate, packed.mask)
        if op.type in ("Reshape", "Expand") and not isinstance(inner[1], Sized):
            target = np.ravel(inner[1].array)
            fixed = len(target) >= -axis and int(target[axis])
            if fixed and fixed > 1:  # 0 and -1 leave it open, 1 broadcasts
                raise Unsupported(*FROZEN)
        results.append(Packed(mask, result, axis))
    return results


def _view(view: View, index: np.ndarray) -> View:
    return replace(view, shape=index.shape, index=index)


def _misfit(op: Op, inner: list) -> Unsupported:
    """Why a Reshape or Expand cannot take all tokens: its target holds the number that the example had."""
    if op.type in ("Reshape", "Expand") and isinstance(inner[1], Const) and not isinstance(inner[1], Sized):
        shape = np.ravel(inner[1].array).tolist()
        return Unsupported(f"{FROZEN[0]}: the shape {shape} does not fit other numbers", FROZEN[1])
    return Unsupported("rearranges the tokens of one expert")


def _follow(coordinate: np.ndarray, mask: View) -> tuple[int, View]:
    """(ragged axis, mask along it) of a tensor whose elements come from these entries of the ragged axis of another."""
    counts = np.bincount(coordinate.reshape(-1), minlength=mask.shape[0])
    if coordinate.size and counts.min() == counts.max():
        entries = mask.positions.reshape(-1)[coordinate]
        for axis in range(-1, -coordinate.ndim - 1, -1):
            lanes = np.moveaxis(coordinate, axis, -1).reshape(-1, coordinate.shape[axis])
            same = np.moveaxis(entries, axis, -1).reshape(lanes.shape)
            if (same == same[0]).all() and (np.diff(lanes, axis=1) >= 0).all() and coordinate.shape[axis] > 1:
                return axis, replace(mask, shape=(lanes.shape[1],), index=same[0])
        if mask.shape[0] == 1:
            axis = next((a for a in range(-coordinate.ndim, 0) if coordinate.shape[a] == 1), -1)
            if coordinate.shape[axis] == 1:
                return axis, replace(mask, index=mask.positions.reshape(1))
    raise Unsupported("rearranges the tokens of one expert")


def _whole_slice(packed: Packed, inner: list) -> list:
    """The arguments of a Slice, refused if it drops entries of the ragged axis."""
    starts, ends = inner[1].array, inner[2].array
    rank = len(packed.inner.shape)
    axes = np.arange(len(starts)) if len(inner) < 4 or inner[3] is None else np.ravel(inner[3].array)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        if int(axis) % rank != packed.axis % rank:
            continue
        whole = int(end) >= TO_THE_END or (
            isinstance(inner[2], Sized)
            and int(end) == packed.mask.shape[0]
            and dispatch.same_mask(inner[2].mask, packed.mask)
        )
        if int(start) or not whole:
            raise Unsupported(*FROZEN) if not isinstance(inner[2], Sized) else Unsupported("drops tokens of one expert")
    return inner


def sized(op: Op, values: list) -> Sized | None:
    """What stands for the lengths of an expert's queue among the inputs of a node.

    They are good for shapes only: as a number they are the length of the full tensor, not that of the ragged one.
    """
    found = next((v for v in values if isinstance(v, Sized)), None)
    if found is None or all(v is None or isinstance(v, Const) for v in values):
        return found
    if any(isinstance(v, Packed) for v in values) and op.type in MOVES and not isinstance(values[0], Sized):
        return found
    raise Unsupported("computes with the number of tokens of an expert")
