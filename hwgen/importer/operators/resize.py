"""Resize and Upsample: along each axis, a constant matrix or a gather of positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensor import INT, Ref
from ...tensor.build import wrapped
from ...tensor.layout import check_size
from ..rules import Array, Context, Op, Unsupported, rule

POLICIES = {"not_larger": min, "not_smaller": max}


@rule("Resize", "Upsample")
def resize(c: Context, op: Op, x: Ref, *rest: Ref | None) -> Ref:
    """Where every length stays, a copy, whatever the scales; axes of scale 1 keep their places (both as onnxruntime)."""
    rank = len(x.shape)
    old = op.type == "Upsample" or op.opset < 11
    roi, scales, sizes = (None, rest[0] if rest else None, None) if old else (*rest, None, None, None)[:3]
    axes = [wrapped(a, rank) for a in op.attribute("axes") or range(rank)]
    lengths = [x.shape[a] for a in axes]
    policy = op.attribute("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and sizes.layout.size:
        wanted = c.ints(sizes, "sizes")
        factors = np.array([w / n for w, n in zip(wanted, lengths, strict=True)], np.float32)
        if policy in POLICIES:
            factors[:] = POLICIES[policy](w / n for w, n in zip(wanted, lengths, strict=True))
            wanted = [int(np.floor(float(f) * n + 0.5)) for f, n in zip(factors, lengths, strict=True)]
        elif policy != "stretch":
            raise Unsupported(f"keep_aspect_ratio_policy is {policy!r}")
    else:
        given = op.attribute("scales") if scales is None else c.array(scales, "scales")
        factors = np.asarray(given, np.float32).reshape(-1)
        wanted = [int(np.floor(f * np.float32(n))) for f, n in zip(factors, lengths, strict=True)]
    mode = op.attribute("mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"mode is {mode!r}")
    op.ignore("antialias", "cubic_coeff_a", "exclude_outside", "extrapolation_value", "nearest_mode")
    transform = op.attribute("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    if x.dtype == INT and mode == "cubic":
        raise Unsupported("interpolates integers by cubics")
    if wanted == lengths:
        return x
    check_size(tuple(dict(zip(axes, wanted, strict=True)).get(a, n) for a, n in enumerate(x.shape)))
    if x.dtype == INT and mode == "linear":
        return c.t.map("int", resize(c, op, c.t.map("float", x), *rest))
    bounds = c.array(roi, "roi").reshape(2, -1) if transform == "tf_crop_and_resize" and roi is not None else None
    outside = np.zeros([1] * rank, bool)
    # The last axis first: a map that is as large as it gets is made line by line of whole lines.
    for i, (axis, n, to, factor) in list(enumerate(zip(axes, lengths, wanted, factors, strict=True)))[::-1]:
        place = _coordinates("asymmetric" if factor == 1 else transform, n, to, factor, None if bounds is None else bounds[:, i])
        if transform == "tf_crop_and_resize":
            outside = outside | ((place < 0) | (place > n - 1)).reshape([-1 if a == axis else 1 for a in range(rank)])
        if to == n and (place == np.arange(n)).all():
            continue
        if mode == "nearest":
            x = c.t.gather(x, c.t.const(np.clip(_nearest(op, place, factor, old), 0, n - 1).astype(np.int64)), axis)
        else:
            letters = "abcdefgh"[:rank]
            matrix = c.t.const(_matrix(op, mode, place, n, factor).astype(np.float32))
            x = c.t.contract(f"{letters},z{letters[axis]}->{letters.replace(letters[axis], 'z')}", x, matrix)
    return c.t.map("where", c.t.const(outside), op.attribute("extrapolation_value", 0.0), x) if outside.any() else x


def _coordinates(transform: str, n: int, to: int, factor: Any, bounds: Array | None) -> Any:
    """Where each of `to` elements lies among `n`, in float32 as onnxruntime computes it."""
    i, half, one = np.arange(to, dtype=np.float32), np.float32(0.5), np.float32(1)
    match transform:
        case "half_pixel":
            return (i + half) / factor - half
        case "pytorch_half_pixel":
            return (i + half) / factor - half if to > 1 else i * 0
        case "half_pixel_symmetric":
            return np.float32(n / 2) * (one - np.float32(to) / (factor * np.float32(n))) + (i + half) / factor - half
        case "tf_half_pixel_for_nn":
            return (i + half) / factor
        case "align_corners":
            return i * np.float32(n - 1) / np.float32(to - 1) if to > 1 else i * 0
        case "asymmetric":
            return i / factor
        case "tf_crop_and_resize" if bounds is not None:
            start, end = bounds * np.float32(n - 1)
            return start + i * (end - start) / np.float32(to - 1) if to > 1 else i * 0 + half * (start + end)
    raise Unsupported(f"coordinate_transformation_mode is {transform!r}")


def _nearest(op: Op, place: Any, factor: float, old: bool) -> Any:
    how = op.attribute("nearest_mode", "simple" if old else "round_prefer_floor")
    match how:
        case "round_prefer_floor":
            return np.ceil(place - np.float32(0.5))
        case "round_prefer_ceil":
            return np.floor(place + np.float32(0.5))
        case "floor":
            return np.floor(place)
        case "ceil":
            return np.ceil(place)
        case "simple":
            return np.ceil(place) if factor < 1 else np.floor(place)
    raise Unsupported(f"nearest_mode is {how!r}")


def _matrix(op: Op, mode: str, place: Array, n: int, factor: float) -> Array:
    """[outputs, inputs]: the kernel around each place, wider when it shrinks with antialias, edges repeated or left out."""
    a = op.attribute("cubic_coeff_a", -0.75)
    shrink = min(float(factor), 1.0) if op.flag("antialias") else 1.0
    reach = (1 if mode == "linear" else 2) / shrink
    place = place.astype(np.float64)
    tap = np.floor(place)[:, None] + np.arange(-int(np.ceil(reach)), int(np.ceil(reach)) + 1)
    d = np.abs(tap - place[:, None]) * shrink
    if mode == "linear":
        weight = np.maximum(1 - d, 0)
    else:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        weight = np.where(d <= 1, near, np.where(d < 2, ((d - 5) * d + 8) * d * a - 4 * a, 0))
    if op.flag("exclude_outside"):
        weight = np.where((tap < 0) | (tap > n - 1), 0, weight)
    weight = weight / weight.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(place), n))
    np.add.at(matrix, (np.arange(len(place))[:, None], np.clip(tap, 0, n - 1).astype(np.int64)), weight)
    return matrix
