"""An array of pixels cut into patches, one row each: windows of an image, tubelets of a video, blocks of a volume.

An axis of channels is one like others, of which a patch mostly has all: an image [3, 224, 224] in patches (3, 16, 16), with
channels last [224, 224, 3] in (16, 16, 3), a video [frames, 3, 224, 224] in tubelets (2, 3, 16, 16).
"""

from __future__ import annotations

from math import prod

import numpy as np

Array = np.ndarray
Patch = tuple[int, ...]  # its length along each axis; strides alike, None: patches side by side
Pads = tuple[int, ...]  # zeros before each axis, then behind each; negative ones cut it; (): none


def ends(pads: Pads, rank: int) -> tuple[tuple[int, int], ...]:
    """(before, behind) of each axis."""
    return tuple(zip(pads[:rank], pads[rank:], strict=True)) if pads else ((0, 0),) * rank


def grid(shape: tuple[int, ...], patch: Patch, stride: Patch | None, pads: Pads) -> tuple[int, ...]:
    """Patches along each axis of an array, `stride` pixels from one to the next; 0 where none has room."""
    sizes = [n + sum(pair) for n, pair in zip(shape, ends(pads, len(shape)), strict=True)]
    return tuple(max(0, (n - p) // s + 1) for n, p, s in zip(sizes, patch, stride or patch, strict=True))


def count(shape: tuple[int, ...], patch: Patch, stride: Patch | None, pads: Pads) -> int:
    """Patches of an array."""
    return prod(grid(shape, patch, stride, pads))


def pad(image: Array, pads: Pads) -> Array:
    """The array with its border of zeros; negative pads cut pixels off."""
    border = ends(pads, image.ndim)
    inside = image[tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(image.shape, border, strict=True))]
    return np.pad(inside, [(max(0, a), max(0, b)) for a, b in border]) if any(pads) else inside


def patchify(image: Array, patch: Patch, stride: Patch | None = None) -> Array:
    """[patches, elements of a patch], both row-major in the order of the axes."""
    windows = np.lib.stride_tricks.sliding_window_view(image, patch)[tuple(slice(None, None, s) for s in stride or patch)]
    return windows.reshape(-1, prod(patch))
