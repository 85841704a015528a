"""The patch embedding: a linear layer of windows of an image, video or volume, however they are cut out of it."""

from __future__ import annotations

from itertools import permutations
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tensor import Input, Layout, Node, Pad, Ref
from .reasons import PLAIN, STEM
from .views import Array, Unsupported

if TYPE_CHECKING:
    from .lower import Rows


ELSEWHERE = "pads something else than the image, as convolution stems do"


def patch_embedding(b: Rows, node: Node) -> tuple[dict[str, Any], Array | None]:
    """(fields of a `PatchEmbed`, order of its rows) of a linear layer that reads an image."""
    return b.once("patches", node, lambda: _patches(b, node))


def _patches(b: Rows, node: Node) -> tuple[dict[str, Any], Array | None]:
    x, w, *bias = node.operands
    image, stand, before, after = _source(x)
    if len(image.shape) < 3 or image.shape[0] != 1:
        hint = "give the image as [1, channels, height, width]"
        raise Unsupported(f"reads an input of shape {list(image.shape)} as patches", hint)
    shape = tuple(image.shape[a] + before[k] + after[k] for k, a in enumerate(stand))
    at = [stand.index(a) for a in range(1, len(shape))]  # the image's own axes
    if before[stand.index(0)] or after[stand.index(0)]:
        raise Unsupported("adds images to the batch", PLAIN)
    flat = x.layout.positions()
    full, corners = np.unravel_index(flat[0], shape), np.unravel_index(flat[:, 0], shape)
    places = [full[k] - full[k].min() for k in at]
    sizes = [int(p.max()) + 1 for p in places]
    corner = [corners[k] - p[0] for k, p in zip(at, places, strict=True)]
    pitch = [prod(shape[k + 1 :]) for k in at]
    start = sum(c * step for c, step in zip(corner, pitch, strict=True))
    inside = all(c.min() >= 0 and c.max() + n <= shape[k] for c, n, k in zip(corner, sizes, at, strict=True))
    if not inside or not np.array_equal(flat, start[:, None] + (flat[0] - start[0])):
        raise Unsupported("does not read the image in patches of one form", PLAIN)
    steps = [_steps(c, n) for c, n in zip(corner, sizes, strict=True)]
    counts = tuple(many for _, _, many in steps)
    if prod(counts) != len(flat):
        raise Unsupported("does not read the image in rows and columns of patches", PLAIN)
    order = np.ravel_multi_index([(c - low) // step for c, (low, step, _) in zip(corner, steps, strict=True)], counts)
    place = np.ravel_multi_index(places, sizes)
    if len(np.unique(order)) < len(order) or len(np.unique(place)) < len(place):
        raise Unsupported("reads some patches, or pixels of a patch, twice", PLAIN)
    # What the kernel leaves out of its box is zero; what the patches leave out of the image is cut off.
    weight = np.zeros((w.shape[0], prod(sizes)), np.float32)
    weight[:, place] = w.constant
    spare = [shape[k] - (low + (m - 1) * step + n) for k, n, (low, step, m) in zip(at, sizes, steps, strict=True)]
    off = [low for low, _, _ in steps], [left if left >= step else 0 for left, (_, step, _) in zip(spare, steps, strict=True)]
    pads = tuple(int(p[k] - o) for p, cut in zip((before, after), off, strict=True) for k, o in zip(at, cut, strict=True))
    stride = tuple(step for _, step, _ in steps)
    fields = {
        "image": image.op.name,
        "weight": b.intern(weight.reshape(-1, *sizes)),
        "bias": b.array(bias[0]) if bias else None,
        "stride": None if stride == tuple(sizes) else stride,
        "pads": pads if any(pads) else (),
    }
    return fields, None if np.array_equal(order, np.arange(len(order))) else order


def _source(x: Ref) -> tuple[Node, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(input, order in which its axes stand in what x shows, zeros before and behind each of these)."""
    image = x.node
    if not isinstance(image.op, Pad):
        rank = len(image.shape)
        return image, tuple(range(rank)), (0,) * rank, (0,) * rank
    border, inner = image.op, image.operands[0]
    image = inner.node
    dense = Layout.dense(image.shape)
    orders = permutations(range(len(image.shape))) if len(image.shape) == len(inner.shape) else ()
    stand = next((order for order in orders if inner.layout == dense.transpose(order)), None)
    if not isinstance(image.op, Input) or stand is None:
        raise Unsupported(ELSEWHERE, STEM)
    if border.value:
        raise Unsupported(f"pads the image by {border.value:g}", PLAIN)
    return image, stand, border.before, border.after


def _steps(place: Array, alone: int) -> tuple[int, int, int]:
    """(first, step, count) of evenly spaced places; the step of a single one is `alone`."""
    known = np.unique(place)
    step = int(known[1] - known[0]) if len(known) > 1 else alone
    if (np.diff(known) != step).any():
        raise Unsupported("does not read the image in even steps", PLAIN)
    return int(known[0]), step, len(known)
