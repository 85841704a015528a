"""Convolutions that are no patches of the image side by side: with groups, or of windows that overlap."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

import numpy as np

from ..layers import Conv, Linear
from ..tensor import Builder, Contract, Copy, Input, Layout, Node, Pad, Ref
from ..tensor.layout import Axis
from .match import constant, group, is_map, layer, regroup, weighted
from .names import label
from .rewrite import relabel
from .tokens import pixels

MOST_MAPS = 64  # that are convolved one by one
MOST_FRAMES = 96  # times taps along time
MOST_WEIGHTS = 1 << 22  # elements of the matrix that a convolution along channels becomes


def convolution(t: Builder, node: Node) -> Ref | None:
    """A product of windows with a constant: result axes that pair with summed ones, and perhaps one of groups."""
    if (found := weighted(node)) is None:
        return None
    x, w, first, second, result = found
    groups = [c for c in result if c in first and c in second]
    outputs = [c for c in second if c in result and c not in first]
    summed = [c for c in first if c in second and c not in result]
    axes, wide = dict(zip(first, x.layout.axes, strict=True)), dict(zip(second, w.layout.axes, strict=True))
    places = [c for c in first if c in result and c not in second]
    lone, places = [c for c in places[: -len(summed) + 1 or None] if not axes[c]], places[-len(summed) + 1 or len(places) :]
    batch = next((c for c in first if c in result and c not in second and axes[c]), "")
    if batch and len([c for c in first if c in result and c not in second and axes[c]]) == len(summed) and len(summed) > 1:
        return _one_by_one(t, node, x, w, f"{first},{second}->{result}", batch)
    if not 2 <= len(summed) <= 4 or len(places) != len(summed) - 1 or len(lone + places + summed + groups) < len(first):
        return None
    if len(groups) > 1 or len(outputs) + len(summed) + len(groups) < len(second):
        return None
    if groups and not (any(s for _, s in axes[groups[0]]) and any(s for _, s in wide[groups[0]])):
        return None
    if (steps := _steps(axes, places, summed[1:])) is None or any(step * s < 0 for (_, step), (_, s) in steps):
        return None  # places one way, taps the other
    if not groups and (_of_image(x) or all(n * abs(s) <= abs(step) for (_, step), (n, s) in steps)):
        return None
    x = _of_pixels(t, x) or x
    axes = dict(zip(first, x.layout.axes, strict=True))
    if (steps := _steps(axes, places, summed[1:])) is None:
        return None
    channels = tuple(f for c in groups + summed[:1] for f in axes[c])
    source, (strides, dilations, pads) = _source(t, x, channels, steps)
    weight = group(w, [second.index(c) for c in groups + outputs], *[[second.index(c)] for c in summed])
    count = x.shape[first.index(groups[0])] if groups else 1
    y = relabel(t.node(Conv(strides, dilations, pads, count), source, weight), label(t.source, w))
    size = dict(zip(result, node.shape, strict=True))
    order = [result.index(c) for c in [*lone, *places, *groups, *outputs]]
    return regroup(t, y, [size[c] for c in result], order)


def _one_by_one(t: Builder, node: Node, x: Ref, w: Ref, spec: str, batch: str) -> Ref | None:
    """Convolutions of several maps by the same weights: windows of a map, or frames."""
    axis, count = spec.index(batch), x.shape[spec.index(batch)]
    if count > MOST_MAPS:
        return None
    parts = []
    for i in range(count):
        y = t.contract(spec, t.slice(x, axis, i, 1), w)
        found = convolution(t, y.node) if isinstance(y.op, Contract) and y.whole else None
        if found is None:
            return None
        parts.append(found)
    return t.concat(parts, spec.split("->")[1].index(batch))


def frames(t: Builder, node: Node) -> Ref | None:
    """A convolution along three axes, time or depth first: where it has one tap and step along the others, along two axes, frames
    and the pixels of all; else of each frame, summed over the taps along time (UniFormer, Li et al. 2022)."""
    if not isinstance(node.op, Conv) or len(node.op.strides) != 3 or _of_image(node.operands[0]):
        return None
    op, (x, w, *bias) = node.op, node.operands
    channels, length, height, width = x.shape
    taps, *kernel = w.shape[2:]
    before, after = op.pads[0], op.pads[3]
    if kernel == [1, 1] and op.strides[1:] == (1, 1) and not any(op.pads[1:3] + op.pads[4:]):
        along = Conv((op.strides[0], 1), (op.dilations[0], 1), (before, 0, after, 0), op.groups)
        flat = t.reshape(x, (channels, length, height * width))
        return relabel(t.node(along, flat, t.reshape(w, (*w.shape[:3], 1)), *bias), node.name)
    count = (length + before + after - (taps - 1) * op.dilations[0] - 1) // op.strides[0] + 1
    if count * taps > MOST_FRAMES:
        return None
    one = Conv(op.strides[1:], op.dilations[1:], op.pads[1:3] + op.pads[4:], op.groups)
    made = []
    for i in range(count):
        total: Ref | None = None
        for k in range(taps):
            if 0 <= (at := i * op.strides[0] + k * op.dilations[0] - before) < length:
                frame = t.reshape(t.slice(x, 1, at, 1), (channels, height, width))
                tap = t.reshape(t.slice(w, 2, k, 1), (*w.shape[:2], *kernel))
                y = t.node(one, frame, tap, *(bias if total is None else ())).node.ref
                total = y if total is None else t.map("add", total, y)
        if total is None:
            return None  # a frame of nothing but the border
        made.append(total)
    return t.concat(made, 0)


def along_channels(t: Builder, node: Node) -> Ref | None:
    """A convolution of one token, whose channels are its places, as in efficient channel attention (Wang et al. 2020): a
    matrix with the taps along its diagonal."""
    if not isinstance(node.op, Conv) or not all(constant(r) for r in node.operands[1:]):
        return None
    op, (x, w, *bias) = node.op, node.operands
    if len(x.node.shape) != 2 or x.node.shape[0] > 1 or isinstance(x.op, Input):
        return None
    (channels, *lengths), (outputs, each, *kernel) = x.shape, w.shape
    at, rank = x.layout.positions().reshape(channels, -1), len(lengths)
    taps = np.asarray(w.constant).reshape(op.groups, outputs // op.groups, each, -1)
    spans = zip(lengths, kernel, op.strides, op.dilations, op.pads[:rank], op.pads[rank:], strict=True)
    counts = [(n + before + after - (k - 1) * d - 1) // s + 1 for n, k, s, d, before, after in spans]
    if prod(counts) * outputs * x.node.shape[1] > MOST_WEIGHTS:
        return None
    matrix = np.zeros((prod(counts), op.groups, outputs // op.groups, x.node.shape[1]), np.float32)
    places = np.indices(counts).reshape(rank, -1).T
    for k, tap in enumerate(np.ndindex(*kernel)):
        read = places * op.strides + np.multiply(tap, op.dilations) - op.pads[:rank]
        inside = np.flatnonzero(((read >= 0) & (read < lengths)).all(axis=1))
        columns = at[:, np.ravel_multi_index(tuple(read[inside].T), lengths)].reshape(op.groups, each, -1)
        for g, c in np.ndindex(op.groups, each):
            matrix[inside, g, :, columns[g, c]] += taps[g, :, c, k]
    parts = [t.const(matrix.reshape(-1, x.node.shape[1]))]
    if bias:
        parts.append(t.const(np.tile(np.asarray(bias[0].constant), prod(counts))))
    y = t.node(Linear(), x.node.ref, *parts)
    return t.reshape(relabel(y, node.name), node.shape)


Steps = list[tuple[tuple[int, int], tuple[int, int]]]  # by axis: loop over places, loop over the kernel


def _steps(axes: Mapping[str, Axis], places: list[str], kernel: list[str]) -> Steps | None:
    """By axis of a map, its two loops; None where one is no single loop."""
    if any(len(axes[c]) > 1 for c in places + kernel):
        return None
    one = {c: axes[c][0] if axes[c] else (1, 0) for c in places + kernel}
    return [(one[c], one[d]) for c, d in zip(places, kernel, strict=True)]


def _source(
    t: Builder, x: Ref, channels: Axis, steps: Steps
) -> tuple[Ref, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """(what is convolved, [C, lengths..]; strides, dilations, pads)."""
    rank, op = len(steps), x.node.op
    units = [-gcd(a, b) if a < 0 or b < 0 else gcd(a, b) or 1 for (_, a), (_, b) in steps]  # a map may be turned round
    if (
        isinstance(op, Pad)
        and not op.value
        and x.layout.offset == 0
        and len(op.before) == rank + 2
        and not any(op.before[:2] + op.after[:2])
    ):
        dense = [axis[0][1] if axis else 1 for axis in Layout.dense(x.node.shape).axes]
        if (
            all(unit % own == 0 for unit, own in zip(units, dense[2:], strict=True))
            and channels == Layout.dense(x.node.shape).axes[1]
        ):
            strides, dilations = (
                tuple(max(pair[i][1] // own, 1) for pair, own in zip(steps, dense[2:], strict=True)) for i in (0, 1)
            )
            # A single place may leave any number of elements behind it.
            strides = tuple(
                s if n > 1 else length for s, ((n, _), _), length in zip(strides, steps, x.node.shape[2:], strict=True)
            )
            (inner,) = x.node.operands
            return inner.move(Layout(inner.layout.axes[1:], inner.layout.offset)), (
                strides,
                dilations,
                op.before[2:] + op.after[2:],
            )
    strides, dilations = (tuple(max(pair[i][1] // unit, 1) for pair, unit in zip(steps, units, strict=True)) for i in (0, 1))
    lengths = [(n - 1) * s + (k - 1) * d + 1 for ((n, _), (k, _)), s, d in zip(steps, strides, dilations, strict=True)]
    axes = tuple(((n, unit),) for n, unit in zip(lengths, units, strict=True))
    return x.move(Layout((channels, *axes), x.layout.offset)), (strides, dilations, (0,) * 2 * rank)


def _of_pixels(t: Builder, r: Ref, depth: int = 3) -> Ref | None:
    """An image that was made larger or smaller, one axis after the other, with its pixels as tokens: a map like others."""
    x, *rest = r.node.operands or (r,)
    if depth and isinstance(r.op, Pad | Copy):
        inner = _of_pixels(t, x, depth)
        return inner and t.through(r.layout, t.node(r.op, inner))
    if not depth or not layer(r, Linear) or len(rest) > 1:
        return None
    if not isinstance(x.op, Input):
        inner = _of_pixels(t, x, depth - 1)
    elif len(x.node.shape) == 4 and x.node.shape[0] == 1 and x.layout.axes[1] in _lines(x.node):
        inner = t.through(x.layout, pixels(t, x.node.ref))
    else:
        return None
    return inner and t.through(r.layout, t.node(r.op, inner, *rest))


def _lines(image: Node) -> list[Axis]:
    """A column and a row of an image."""
    height, width = image.shape[2:]
    return [((height, width),), ((width, 1),)]


def _of_image(r: Ref) -> bool:
    """Whether r shows pixels, with a border or times and plus constants."""
    while isinstance(r.op, Pad) or (is_map(r, "add", "sub", "mul", "div") and any(constant(o) for o in r.node.operands)):
        r = next((o for o in r.node.operands if not constant(o)), r.node.operands[0])
    return isinstance(r.op, Input)
