"""Windows of single taps: a map cut into overlapping windows, and such windows added up, also where a convolution does it."""

from __future__ import annotations

from math import prod

import numpy as np

from ...tensor import Builder, Ref
from ..rules import Array

MOST_SUMMED = 64  # taps of windows that overlap


def summed(t: Builder, x: Ref, wide: list[int], strides: list[int], dilations: list[int]) -> Ref:
    """Taps [N, kernel.., positions..] added up as maps [N, *wide] of one tap each, with zeros between its positions."""
    rank = len(wide)
    total: Ref | None = None
    for tap in np.ndindex(*x.shape[1 : 1 + rank]):
        y = x
        for i, k in enumerate(tap):
            y = t.slice(y, 1 + i, k, 1)
        y = t.reshape(y, (x.shape[0], *x.shape[1 + rank :]))
        for i, (k, s, d, w) in enumerate(zip(tap, strides, dilations, wide, strict=True)):
            axis, count = 1 + i, y.shape[1 + i]
            y = t.reshape(y, (*y.shape[: axis + 1], 1, *y.shape[axis + 1 :]))
            y = t.pad(y, [0] * (rank + 2), [s - 1 if a == axis + 1 else 0 for a in range(rank + 2)])
            y = t.reshape(y, (*y.shape[:axis], count * s, *y.shape[axis + 2 :]))
            y = t.slice(y, axis, 0, (count - 1) * s + 1)
            before, after = ([n if a == axis else 0 for a in range(rank + 1)] for n in (k * d, w - k * d - y.shape[axis]))
            y = t.pad(y, before, after)
        total = y if total is None else t.map("add", total, y)
    assert total is not None
    return total


def picked(weight: Ref) -> Array | None:
    """Of filters [outputs, 1, kernel..] that each show a single tap, as F.unfold written as a convolution has them: which one;
    None for others."""
    numbers = weight.constant
    if numbers is None or weight.shape[1] != 1 or prod(weight.shape[2:]) < 2:
        return None
    flat = np.asarray(numbers).reshape(len(numbers), -1)
    return flat.argmax(axis=1) if ((flat == 0).sum(axis=1) == flat.shape[1] - 1).all() and (flat.max(axis=1) == 1).all() else None
