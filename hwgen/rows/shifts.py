"""Patches of an image beside those of shifted copies of it (shifted patch tokenisation, Lee et al. 2021): larger patches of the
image itself, of which each column is one pixel."""

from __future__ import annotations

import numpy as np

from ..layers import Linear
from ..tensor import Builder, Concat, Copy, Input, Node, Pad, Ref
from .views import Array

NONE = -1  # what a border holds instead of a pixel


def shifted(t: Builder, r: Ref) -> Node | None:
    """A linear layer whose weights pick what r [rows, columns] shows of one image; None where that is anything else."""
    if len(r.shape) != 2 or not isinstance(r.op, Concat) or len(images := _leaves(r)) != 1:
        return None
    (image,) = images
    if len(image.shape) != 4 or image.shape[0] != 1:
        return None
    places = _places(r)
    _, channels, height, width = image.shape
    seen = places != NONE
    if seen.all() or not seen.any(axis=1).all():
        return None
    channel, y, x = np.unravel_index(np.where(seen, places, 0), (channels, height, width))
    always = seen.all(axis=0)
    if not always.any() or not all((a[:, always] - a[:1, always] == (a - a[:1])[:, always][:, :1]).all() for a in (y, x)):
        return None
    down, across = (a[:, always][:, 0] for a in (y, x))  # where each row's patch lies, beside the others
    first = seen.argmax(axis=0)
    own = [a[first, np.arange(r.shape[1])] for a in (channel, y, x)]
    taps = own[1] - down[first], own[2] - across[first]
    at = down[:, None] + taps[0], across[:, None] + taps[1]
    inside = (at[0] >= 0) & (at[0] < height) & (at[1] >= 0) & (at[1] < width)
    if (inside != seen).any() or (np.where(seen, (own[0] * height + at[0]) * width + at[1], NONE) != places).any():
        return None
    one, other = _steps(down), _steps(across)
    if one is None or other is None:
        return None
    (rows, stride), (columns, along) = one, other
    if not np.array_equal(down, np.repeat(down.min() + stride * np.arange(rows), columns)) or rows * columns != len(down):
        return None
    if not np.array_equal(across, np.tile(across.min() + along * np.arange(columns), rows)):
        return None
    return _cut(t, image.ref, (int(down.min()), int(across.min())), (rows, columns), (stride, along), (own[0], *taps), r)


def _leaves(r: Ref) -> set[Node]:
    """Inputs that r is made of by movement alone; none where it is made of anything else."""
    if isinstance(r.op, Input):
        return {r.node}
    if not isinstance(r.op, Concat | Copy) and not (isinstance(r.op, Pad) and r.op.value == 0):
        return set()
    found = [_leaves(part) for part in r.node.operands]
    return set().union(*found) if all(found) else set()


def _places(r: Ref) -> Array:
    """Position within the image of each element."""
    op = r.op
    if isinstance(op, Input):
        return np.asarray(r.layout.positions())
    parts = [_places(part) for part in r.node.operands]
    if isinstance(op, Concat):
        whole = np.concatenate(parts, axis=op.axis)
    elif isinstance(op, Pad):
        whole = np.pad(parts[0], list(zip(op.before, op.after, strict=True)), constant_values=NONE)
    else:
        whole = parts[0]
    shown: Array = whole.reshape(-1)[r.layout.positions()]
    return shown


def _steps(places: Array) -> tuple[int, int] | None:
    """(how many, how far apart) of places that go on in equal steps."""
    found = np.unique(places)
    steps = np.diff(found)
    if not len(steps):
        return 1, 1
    return (len(found), int(steps[0])) if (steps == steps[0]).all() else None


def _cut(
    t: Builder,
    image: Ref,
    start: tuple[int, int],
    counts: tuple[int, int],
    strides: tuple[int, int],
    taps: tuple[Array, Array, Array],
    r: Ref,
) -> Node:
    """Patches that hold all `taps` (channel, row, column) of each column, and the layer that picks these."""
    channels = image.shape[1]
    spans = [
        (int(low + tap.min()), int(low + tap.max()) + stride * (count - 1) + 1)
        for low, count, stride, tap in zip(start, counts, strides, taps[1:], strict=True)
    ]
    before = [0, 0, *(max(-first, 0) for first, _ in spans)]
    after = [0, 0, *(max(last - n, 0) for (_, last), n in zip(spans, image.shape[2:], strict=True))]
    x = t.pad(image, before, after)
    for axis, (first, last) in enumerate(spans, 2):
        x = t.slice(x, axis, first + before[axis], last - first)
    kernel = [int(np.ptp(tap)) + 1 for tap in taps[1:]]
    for i, (size, stride) in enumerate(zip(kernel, strides, strict=True)):
        x = t.window(x, 2 + 2 * i, size, stride, 1)
    rows = counts[0] * counts[1]
    x = t.reshape(t.transpose(x, (0, 2, 4, 1, 3, 5)), (rows, channels * kernel[0] * kernel[1]))
    which = (taps[0] * kernel[0] + taps[1] - taps[1].min()) * kernel[1] + taps[2] - taps[2].min()
    weight = np.zeros((r.shape[1], x.shape[1]), np.float32)
    weight[np.arange(r.shape[1]), which] = 1
    t.name, t.source = "", r.node.source
    return t.node(Linear(), x, t.const(weight)).node
