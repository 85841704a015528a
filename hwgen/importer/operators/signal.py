"""Sampling at computed places, Fourier transforms, overlapping windows added up, noise."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np

from ...errors import Finding
from ...tensor import Ref
from ...tensor.build import wrapped
from ..rules import Array, Context, Op, Unsupported, rule
from .taps import MOST_SUMMED, summed

MOST_POINTS = 16  # places of a row of a grid that are taken one by one
# Coordinates, half of the image being 1, from which on onnxruntime's numbers are not what the operator says: float32 holds no
# place within a pixel (at 1e7 of a border its weights add up to two), and int64 no pixel.
FAR, FARTHEST = 1e6, 1e18
KERNELS = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}


@rule("GridSample")
def grid_sample(c: Context, op: Op, x: Ref, grid: Ref) -> Ref:
    """x [N, C, spatial..] at grid [N, places.., axes], whose last axis runs from the last spatial axis to the first."""
    t, (n, channels, *lengths) = c.t, x.shape
    mode, padding = KERNELS.get(op.attribute("mode", "linear")), op.attribute("padding_mode", "zeros")
    corners = op.flag("align_corners")
    if mode is None or padding not in ("zeros", "border", "reflection"):
        raise Unsupported(f"mode is {op.attribute('mode')!r}, padding_mode {padding!r}")
    far = 0.0 if grid.constant is None else float(np.abs(np.asarray(grid.constant)).max(initial=0.0))
    if far > (FAR if mode == "cubic" or padding != "zeros" else FARTHEST):
        raise Unsupported(f"samples at {far:g}, where float32 tells no places apart", "give places near the image")
    if mode == "linear" and len(lengths) == 2 and padding != "reflection" and (n > 1 or grid.constant is None):
        return _sampled(c, x, grid, padding, corners)
    places = grid.shape[:-1]
    taps: list[list[tuple[Ref, Any, Any]]] = []  # of each axis: (index, weight, whether inside)
    for i, size in enumerate(lengths):
        place = t.reshape(t.slice(grid, -1, len(lengths) - 1 - i, 1), places)
        place = t.map("mul", t.map("add", place, 1.0), (size - 1) / 2 if corners else size / 2)
        place = place if corners else t.map("sub", place, 0.5)
        if mode != "cubic":  # of a cubic kernel, each tap is brought inside
            place = _inside(c, place, size, padding, corners)
        if mode == "nearest":
            taps.append([_tap(c, t.map("round", place), 1.0, size, padding, corners)])
            continue
        low = t.map("floor", place)
        share = t.map("sub", place, low)
        reach = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
        taps.append([_tap(c, t.map("add", low, float(r)), _weight(c, share, r, mode), size, padding, corners) for r in reach])
    rows = t.reshape(t.transpose(x, [0, *range(2, len(x.shape)), 1]), (n * prod(lengths), channels))
    first = t.const(np.arange(n).reshape(n, *[1] * (len(places) - 1)) * prod(lengths))
    total = None
    for chosen in product(*taps):
        index, weight = t.full(places, np.int64(0)), None
        for (at, w, inside), size in zip(chosen, lengths, strict=True):
            index = t.map("add", t.map("mul", index, size), at)
            for factor in (w, inside):
                if factor is not None:
                    weight = factor if weight is None else t.map("mul", weight, factor)
        value = t.gather(rows, t.map("add", index, first), 0)
        if isinstance(weight, Ref):
            value = t.map("mul", value, t.reshape(weight, (*places, 1)))
        total = value if total is None else t.map("add", total, value)
    assert total is not None
    return t.transpose(total, [0, len(places), *range(1, len(places))])


def _sampled(c: Context, x: Ref, grid: Ref, padding: str, corners: bool) -> Ref:
    """Bilinear at computed places as products: the weights of all elements for a place, times the elements.

    Of each image, and of each of few places for a row of the grid (the points of deformable attention), by itself.
    """
    t, (n, channels, height, width) = c.t, x.shape
    _, rows, points, _ = grid.shape
    apart = points if points <= MOST_POINTS and points < rows else 1
    at = np.divmod(np.arange(height * width), width)
    images = []
    for i in range(n):
        elements = t.reshape(t.slice(x, 0, i, 1), (channels, height * width))
        sampled = []
        for p in range(apart):
            places = t.slice(grid, 0, i, 1)
            places = t.reshape(t.slice(places, 2, p, 1) if apart > 1 else places, (rows * points // apart, 2))
            down = _hat(c, places, 1, at[0], height, padding, corners)
            across = _hat(c, places, 0, at[1], width, padding, corners)
            sampled.append(t.contract("pk,ck->pc", t.map("mul", down, across), elements))
        one = t.concat([t.reshape(y, (rows, points // apart, channels)) for y in sampled], 1)
        images.append(t.reshape(t.transpose(one, (2, 0, 1)), (1, channels, rows, points)))
    return t.concat(images, 0)


def _hat(c: Context, places: Ref, axis: int, at: Array, size: int, padding: str, corners: bool) -> Ref:
    """Weights [P, K] along an axis of `size` of elements that are `at` [K] there, for places [P, 2] of which column `axis` tells
    it, from -1 to 1: max(0, 1 - distance), as a product of two linear layers' limits. Beyond the border there is nothing, or
    with "border" the weight of its element stays 1.
    """
    t, step = c.t, (size - 1) / 2 if corners else size / 2
    first = step if corners else step - 0.5  # where 0 is
    sides = []
    for sign, last in ((1.0, 0), (-1.0, size - 1)):
        moved = np.where((at == last) & (padding == "border"), 0.0, sign * step)
        weight = np.zeros((2, len(at)), np.float32)
        weight[axis] = moved
        bias = np.where(moved == 0, 0.0, sign * (first - at)) + 1
        side = t.map("add", t.contract("pi,ik->pk", places, t.const(weight)), t.const(bias.astype(np.float32)))
        sides.append(t.map("min", t.map("max", side, 0.0), 1.0))
    return t.map("mul", *sides)


def _inside(c: Context, place: Ref, size: int, padding: str, corners: bool) -> Ref:
    """Places outside brought to the border, or mirrored at it, as `padding` says."""
    t = c.t
    if padding == "reflection":
        low, span = (0.0, size - 1.0) if corners else (-0.5, float(size))
        if span == 0:
            return t.map("mul", place, 0.0)
        turn = t.map("mod", t.map("sub", place, low), 2 * span)
        place = t.map("add", t.map("min", turn, t.map("sub", 2 * span, turn)), low)
    if padding == "zeros":
        return place
    return t.map("min", t.map("max", place, 0.0), size - 1.0)


def _tap(c: Context, place: Ref, weight: Any, size: int, padding: str, corners: bool) -> tuple[Ref, Any, Any]:
    t = c.t
    inside = None
    if padding == "zeros":
        inside = t.map("float", t.map("and", t.map("le", 0.0, place), t.map("le", place, size - 1.0)))
    place = _inside(c, place, size, padding if padding != "zeros" else "border", corners)
    return t.map("int", place), weight if isinstance(weight, Ref) else None, inside


def _weight(c: Context, share: Ref, tap: int, mode: str) -> Ref:
    """Of the tap `tap` elements from the place's lower neighbour, for a place `share` behind that; a = -0.75."""
    t, a = c.t, -0.75
    if mode == "linear":
        return share if tap else t.map("sub", 1.0, share)
    d = t.map("abs", t.map("sub", float(tap), share))
    powers: list[Any] = [1.0, d, t.map("mul", d, d), t.map("mul", t.map("mul", d, d), d)]
    factors = (1, 0, -(a + 3), a + 2) if tap in (0, 1) else (-4 * a, 8 * a, -5 * a, a)
    total = t.map("mul", powers[3], float(factors[3]))
    for factor, power in zip(factors[:3], powers[:3], strict=True):
        if factor:
            total = t.map("add", total, t.map("mul", power, float(factor)) if isinstance(power, Ref) else float(factor))
    return total


@rule("AffineGrid")
def affine_grid(c: Context, op: Op, theta: Ref, size: Ref) -> Ref:
    """Places [N, spatial.., axes], from -1 to 1 along each axis, moved by theta [N, axes, axes + 1]."""
    corners, lengths = op.flag("align_corners"), c.ints(size, "size")[2:]
    steps = [np.linspace(-1, 1, m) if corners else (2 * np.arange(m) + 1) / m - 1 for m in lengths]
    grid = np.stack([*np.meshgrid(*steps, indexing="ij")[::-1], np.ones(lengths)], -1)
    space = "stu"[: len(lengths)]
    return c.t.contract(f"nij,{space}j->n{space}i", theta, c.t.const(grid.astype(np.float32)))


@rule("DFT")
def dft(c: Context, op: Op, x: Ref, length: Ref | None = None, axis_of: Ref | None = None) -> Ref:
    """x [.., n, .., 1 or 2] by a constant matrix [n, parts, length, parts], exact to rounding."""
    t, rank = c.t, len(x.shape)
    axis = op.attribute("axis", 1) if op.opset < 20 else -2 if axis_of is None else c.ints(axis_of, "axis")[0]
    axis = wrapped(axis, rank)
    inverse, half = op.flag("inverse"), op.flag("onesided")
    n, parts = x.shape[axis], x.shape[-1]
    to = 2 * (n - 1) if inverse and half else n
    to = to if length is None else c.ints(length, "dft_length")[0]
    if inverse and half and n != to // 2 + 1:
        raise Unsupported(f"makes {to} elements of {n} of their frequencies")
    basis = np.concatenate([np.eye(n), 1j * np.eye(n)][:parts]).reshape(parts, n, n)
    if inverse and half:
        made = np.fft.irfft(basis, to)[..., None]
    else:
        spectrum = np.fft.ifft(basis, to) if inverse else np.fft.fft(basis, to)
        spectrum = spectrum[..., : to // 2 + 1] if half else spectrum
        made = np.stack([spectrum.real, spectrum.imag], -1)
    letters = "abcdefgh"[: rank - 1]
    matrix = t.const(made.transpose(1, 0, 2, 3).astype(np.float32))
    here = letters[axis]
    return t.contract(f"{letters}x,{here}xzy->{letters.replace(here, 'z')}y", x, matrix)


@rule("Col2Im")
def col2im(c: Context, op: Op, x: Ref, image: Ref, block: Ref) -> Ref:
    """Columns [N, C * kernel, positions] added up where their windows lie."""
    shape, kernel = c.ints(image, "image_shape"), c.ints(block, "block_shape")
    rank = len(shape)
    strides, dilations = op.attribute("strides") or [1] * rank, op.attribute("dilations") or [1] * rank
    pads = op.attribute("pads") or [0] * 2 * rank
    wide = [n + a + b for n, a, b in zip(shape, pads[:rank], pads[rank:], strict=True)]
    counts = [(w - d * (k - 1) - 1) // s + 1 for w, k, s, d in zip(wide, kernel, strides, dilations, strict=True)]
    n, rows = x.shape[0], x.shape[0] * x.shape[1] // prod(kernel)
    overlap = any(d * (k - 1) >= s and o > 1 for k, o, s, d in zip(kernel, counts, strides, dilations, strict=True))
    if overlap and prod(kernel) <= MOST_SUMMED:
        y = summed(c.t, c.t.reshape(x, (rows, *kernel, *counts)), wide, strides, dilations)
    else:
        steps = zip(kernel, counts, strides, dilations, strict=True)
        grids = [np.arange(k)[:, None] * d + np.arange(o) * s for k, o, s, d in steps]
        flat: Array = np.zeros([1] * 2 * rank, np.int64)
        for i, (grid, w) in enumerate(zip(grids, wide, strict=True)):
            flat = flat * w + grid.reshape([n if j in (i, rank + i) else 1 for j, n in enumerate((*kernel, *counts))])
        index = c.t.expand(c.t.const(flat.reshape(1, -1)), (rows, flat.size))
        y = c.t.scatter(c.t.full((rows, prod(wide)), np.float32(0)), index, c.t.reshape(x, (rows, flat.size)), 1, "add")
    y = c.t.reshape(y, (n, rows // n, *wide))
    for i in range(rank):
        y = c.t.slice(y, 2 + i, pads[i], shape[i])
    return y


@rule("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
def noise(c: Context, op: Op, like: Ref | None = None) -> Ref:
    """A value that nothing may read in the end; times zero it is gone."""
    op.ignore("dtype", "seed", "mean", "scale", "high", "low", "sample_size", "shape")
    shape = like.shape if like is not None else op.attribute("shape")
    r = c.t.input(f"?{op.outputs[0]}", tuple(shape))
    c.unwanted[r.node] = Finding(op.name, op.type, "import", "draws random numbers", "export the model in eval mode")
    return r
