"""An image cut into patches, one row each: what a convolution reads, and in that order."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
Pads = tuple[int, int, int, int]  # zeros above, left, below, right of the image; negative ones cut it


Patch = tuple[int, ...]  # pixels down and across; then the channels, where they stand last in the image [H, W, C]


def grid(shape: tuple[int, ...], patch: Patch, stride: tuple[int, int] | None, pads: Pads) -> tuple[int, int]:
    """Patches down and across an image [C, H, W] or [H, W, C], `stride` pixels (None: one patch) from one to the next."""
    stride = stride or (patch[0], patch[1])
    height, width = shape[:2] if len(patch) == 3 else shape[-2:]
    height, width = height + pads[0] + pads[2], width + pads[1] + pads[3]
    return max(0, (height - patch[0]) // stride[0] + 1), max(0, (width - patch[1]) // stride[1] + 1)


def pad(image: Array, pads: Pads, patch: Patch) -> Array:
    """Image [C, H, W] with its border of zeros; negative pads cut pixels off."""
    image = image.transpose(2, 0, 1) if len(patch) == 3 else image
    top, left, bottom, right = (max(0, -p) for p in pads)
    image = image[:, top : image.shape[1] - bottom, left : image.shape[2] - right]
    top, left, bottom, right = (max(0, p) for p in pads)
    return np.pad(image, ((0, 0), (top, bottom), (left, right))) if any(pads) else image


def patchify(image: Array, patch: Patch, stride: tuple[int, int] | None = None) -> Array:
    """[C, H, W] -> [patches, C*ph*pw], patches row-major, elements in the order of a convolution weight."""
    down, across = stride or patch[:2]
    windows = np.lib.stride_tricks.sliding_window_view(image, patch[:2], axis=(1, 2))[:, ::down, ::across]
    return windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1)
