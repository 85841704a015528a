"""The image cut into patches by other means than a convolution: reshaped, unfolded, gathered."""

from __future__ import annotations

import numpy as np

from hwgen.patches import Pads, grid

from .symbols import Array, Image, Patches
from .views import View, positions


def patch_embedding(
    image: Image,
    weight: Array,
    bias: Array | None,
    scale: float,
    source: str,
    label: str,
    stride: tuple[int, int] | None = None,
    pads: Pads = (0, 0, 0, 0),
) -> Patches:
    """Patches of scale * image, with the image's own factor and offset for each channel folded in."""
    d, channels, ph, pw = weight.shape
    weight = weight.astype(np.float32) * np.float32(scale)
    if image.offset is not None:
        constant = np.einsum("dcyx,c->d", weight.astype(np.float64), image.offset).astype(np.float32)
        bias = constant if bias is None else bias.astype(np.float32) + constant
    if image.gain is not None:
        weight = weight * image.gain[:, None, None]
    rows = int(np.prod(grid(image.shape, (ph, pw), stride, pads)))
    cut = {"stride": stride, "pads": pads}
    return Patches(image=image, weight=weight, bias=bias, shape=(rows, d), source=source, label=label, **cut)


def as_patches(view: View) -> View | None:
    """A view [.., K] of an image's pixels, each row a whole patch, as a patch embedding with an identity matrix."""
    layout = _patches(view)
    if layout is None:
        return None
    rows, order, (ph, pw) = layout
    width, channels = len(order), view.sym.shape[0]
    weight = np.zeros((width, width), np.float32)
    weight[np.arange(width), order] = 1
    weight = weight.reshape(width, channels, ph, pw)
    sym = patch_embedding(view.sym, weight, None, view.scale, view.sym.source, "")
    return View(sym, view.shape, rows[..., None] * width + positions((width,)), tainted=view.tainted)


def _patches(view: View) -> tuple[Array, Array, tuple[int, int]] | None:
    """(patch number of each row, place of each element in a convolution weight [C, ph, pw], patch size)."""
    channels, height, width = view.sym.shape
    if len(view.shape) < 2:
        return None
    flat = view.positions.reshape(-1, view.shape[-1])
    c, y, x = np.unravel_index(flat[0], view.sym.shape)
    ph, pw = int(np.ptp(y)) + 1, int(np.ptp(x)) + 1
    order = (c * ph + (y - y.min())) * pw + (x - x.min())
    if len(order) != channels * ph * pw or height % ph or width % pw or len(np.unique(order)) != len(order):
        return None
    pattern = flat[0] - (y.min() * width + x.min())
    corner = flat[:, 0] - pattern[0]
    down, across = corner // width, corner % width
    whole = not (down % ph).any() and not (across % pw).any() and down.max() <= height - ph
    if not whole or not np.array_equal(flat, corner[:, None] + pattern):
        return None
    rows = down // ph * (width // pw) + across // pw
    return rows.reshape(view.shape[:-1]), order, (ph, pw)
