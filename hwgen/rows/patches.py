"""The patch embedding: a linear layer of windows of the image, however they are cut out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..recognise.limits import beneath, is_limit
from ..recognise.match import is_map
from ..tensor import Input, Layout, Node, Pad, Ref
from .reasons import PLAIN, STEM
from .views import Array, Unsupported

if TYPE_CHECKING:
    from .lower import Rows


ELSEWHERE = "pads something else than the image, as convolution stems do"


def patch_embedding(b: Rows, node: Node) -> tuple[dict[str, Any], Array | None]:
    """(fields of a `PatchEmbed`, order of its rows) of a linear layer that reads an image."""
    key = node, "patches"
    if key not in b._derived:
        b._derived[key] = _patches(b, node)
    found: tuple[dict[str, Any], Array | None] = b._derived[key]
    return found


def _patches(b: Rows, node: Node) -> tuple[dict[str, Any], Array | None]:
    x, w, *bias = node.operands
    x = _image(b, x)
    image, shape, turned = x.node, x.node.shape, False
    before = after = (0,) * len(shape)
    if isinstance(image.op, Pad):
        border, inner = image.op, _image(b, image.operands[0])
        if is_map(inner, "add", "sub"):
            hint = "pad nothing, or give the network an image of which the mean is subtracted already"
            raise Unsupported("pads an image to which a constant is added before", hint)
        image, before, after = inner.node, border.before, border.after
        turned = len(shape) == len(image.shape) == 4 and not inner.whole
        turned = turned and inner.layout == Layout.dense(image.shape).transpose((0, 3, 1, 2))
        if not isinstance(image.op, Input) or not (inner.whole or turned):
            raise Unsupported(ELSEWHERE, STEM)
        if border.value:
            raise Unsupported(f"pads the image by {border.value:g}", PLAIN)
    if len(shape) not in (3, 4):
        hint = "give the image as [batch, channels, height, width]"
        raise Unsupported(f"reads an input of shape {list(image.shape)} as patches", hint)
    shape, before, after = shape[-3:], before[-3:], after[-3:]
    flat = x.layout.positions()
    last = _box(flat[0], shape, (2, 0, 1)) == x.shape[1] != _box(flat[0], shape, (0, 1, 2))
    axes = (2, 0, 1) if last else (0, 1, 2)  # of channels, rows, columns
    c, row, column = (np.unravel_index(flat[0], shape)[i] for i in axes)
    channels, height, width = (shape[i] for i in axes)
    if before[axes[0]] or after[axes[0]]:
        raise Unsupported("adds channels to the image", PLAIN)
    pads = tuple(p[i] for p in (before, after) for i in axes[1:])
    size = int(np.ptp(row)) + 1, int(np.ptp(column)) + 1
    pitch = (width * channels, channels) if last else (width, 1)
    pattern = flat[0] - (row.min() * pitch[0] + column.min() * pitch[1])
    corner = flat[:, 0] - pattern[0]
    down, across = corner // pitch[0], corner % pitch[0] // pitch[1]
    if not np.array_equal(flat, (down * pitch[0] + across * pitch[1])[:, None] + pattern) or down.max() >= height:
        raise Unsupported("does not read the image in patches of one form", PLAIN)
    (top, dy, tall), (left, dx, wide) = _steps(down, size[0]), _steps(across, size[1])
    if tall * wide != len(flat):
        raise Unsupported("does not read the image in rows and columns of patches", PLAIN)
    # What the kernel leaves out of its box is zero; what the patches leave out of the image is cut off.
    order = ((down - top) // dy * wide + (across - left) // dx).astype(np.int64)
    place = (c * size[0] + row - row.min()) * size[1] + column - column.min()
    weight = np.zeros((w.shape[0], channels * size[0] * size[1]), np.float32)
    weight[:, place] = w.constant
    ends = top + (tall - 1) * dy + size[0], left + (wide - 1) * dx + size[1]
    spare = height - ends[0], width - ends[1]
    pads = _cut(pads, (top, left, spare[0] if spare[0] >= dy else 0, spare[1] if spare[1] >= dx else 0))
    stride = None if (dy, dx) == size else (dy, dx)
    if not len(np.unique(order)) == len(order):
        raise Unsupported("reads some patches twice", PLAIN)
    fields = {
        "image": image.op.name,
        "weight": b.intern(weight.reshape(-1, channels, *size)),
        "bias": b.array(bias[0]) if bias else None,
        "stride": stride,
        "pads": pads,
        "channels_last": last or turned,
    }
    return fields, None if np.array_equal(order, np.arange(len(order))) else order


def _image(b: Rows, x: Ref) -> Ref:
    """x without the limits of a quantised file, which are those of the image."""
    if is_limit(x) and isinstance(beneath(b.t, x).op, Input):
        b.limit(beneath(b.t, x).op.name, x.op.low, x.op.high, 1)
    return beneath(b.t, x)


def _box(pixels: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Elements of all channels in the rows and columns that pixels take up."""
    places = np.unravel_index(pixels, shape)
    return int(shape[axes[0]] * np.prod([np.ptp(places[i]) + 1 for i in axes[1:]]))


def _steps(place: Array, alone: int) -> tuple[int, int, int]:
    """(first, step, count) of evenly spaced places; the step of a single one is `alone`."""
    known = np.unique(place)
    step = int(known[1] - known[0]) if len(known) > 1 else alone
    if (np.diff(known) != step).any():
        raise Unsupported("does not read the image in even steps", PLAIN)
    return int(known[0]), step, len(known)


def _cut(pads: tuple[int, ...], off: tuple[int, ...]) -> tuple[int, ...]:
    """Pads less what the patches leave out: negative where the image is cropped."""
    return tuple(int(p - o) for p, o in zip(pads, off, strict=True))
