"""Rows as a whole: constant tokens and positions, pooling, and the order in which elementwise sums and products stand."""

from __future__ import annotations

from math import prod

import numpy as np

from ..layers import Activation, Clip, Embed, Linear, Pool
from ..tensor import Builder, Concat, Input, Layout, Node, Pad, Reduce, Ref
from .linear import with_constant
from .match import at_columns, by_element, constant, group, is_map, layer, loops, reduction, regroup
from .names import label, parent
from .rewrite import relabel

Array = np.ndarray


def positions(t: Builder, node: Node) -> Ref | None:
    """A constant that differs from row to row, added."""
    found = with_constant(t, node, "add", "sub")
    if found is None or node.dtype != "f":
        return None
    x, b, _ = found
    c = by_element(b, x)
    if c is None or c.shape[0] == 1:
        return None
    y = t.node(Embed(), x.node.ref, t.const(np.zeros((0, x.node.shape[1]), np.float32)), t.expand(c, x.node.shape))
    return t.through(x.layout, relabel(y, parent(x.node.name), x.node.source))


def tokens(t: Builder, node: Node) -> Ref | None:
    """Constant rows before, after or between rows of one value, which stay together and in order."""
    if not isinstance(node.op, Concat) or node.dtype != "f":
        return None
    axis = node.op.axis
    rest = [i for i in range(len(node.shape)) if i != axis]
    parts = [group(r, [axis], rest) for r in node.operands]
    made = [r for r in parts if not constant(r)]
    if len(made) == len(parts) or any(r.node is not made[0].node for r in made) or len(made[0].node.shape) != 2:
        return None
    old, width = made[0].node, made[0].node.shape[1]
    base, prefix, fixed = (old.ref, 0, np.zeros(old.shape, np.float32))
    if layer(old, Embed):
        base, first, position = old.operands
        prefix, fixed = first.shape[0], np.array(position.constant, np.float32)
        fixed[:prefix] += np.asarray(first.constant)
    rows: list[int] = []
    table: list[Array] = []
    dense = Layout.dense((1, width)).axes[1]
    for r in parts:
        if constant(r):
            rows += [-1] * r.shape[0]
            table.append(np.asarray(r.constant, np.float32))
            continue
        if (
            r.layout.axes[1] != dense
            or any(s % width for _, s in r.layout.axes[0])
            or r.layout.offset % width
            or r.shape[1] != width
        ):
            return None
        at = r.layout.positions()[:, 0] // width
        rows += [int(i) - prefix if prefix <= i < prefix + base.shape[0] else -1 for i in at]
        table.append(fixed[at])
    count, every = base.shape[0], np.concatenate(table)
    start = rows.index(0) if 0 in rows else -1
    if start < 0 or rows[start : start + count] != list(range(count)) or sum(i >= 0 for i in rows) != count:
        return None
    before, after = every[:start].copy(), every.copy()
    after[:start] = 0
    y = relabel(t.node(Embed(), base, t.const(before), t.const(after)), parent(old.name), t.source)
    y = t.reshape(y, (node.shape[axis], *(node.shape[i] for i in rest)))
    order = [axis, *rest]
    return t.transpose(y, [order.index(i) for i in range(len(order))])


def padded(t: Builder, node: Node) -> Ref | None:
    """Zeros around a value times a constant: the constant times the padded value, where it is the same along those axes."""
    if not isinstance(node.op, Pad) or node.op.value or (found := with_constant(t, node.operands[0].node, "mul", "div")) is None:
        return None
    x, c, function = found
    (r,) = node.operands
    if not r.whole or r.shape != r.node.shape:
        return None
    grown = [i for i, (a, b) in enumerate(zip(node.op.before, node.op.after, strict=True)) if a or b]
    if any(s for i in grown for _, s in c.layout.axes[i]):
        return None
    axes = tuple(((node.shape[i], 0),) if i in grown else axis for i, axis in enumerate(c.layout.axes))
    return t.map(function, t.node(node.op, x), c.move(Layout(axes, c.layout.offset)))


def shifted(t: Builder, node: Node) -> Ref | None:
    """A border around an image to which a constant is added, as around normalised pixels: the pixels as tokens of their own."""
    if not isinstance(node.op, Pad) or node.op.value or len(node.shape) != 4 or node.dtype != "f":
        return None
    r, steps = node.operands[0], list[tuple[str, Array]]()
    while len(steps) < 8 and r.whole and r.shape == r.node.shape:
        if (found := with_constant(t, r.node, "add", "sub", "mul", "div")) is None:
            break
        numbers = np.broadcast_to(np.asarray(found[1].constant, np.float64), node.operands[0].shape)
        if (numbers != numbers[:, :, :1, :1]).any():
            return None
        r, steps = found[0], [*steps, (found[2], numbers[0, :, 0, 0])]
    if not isinstance(r.op, Input) or not r.whole or not any(function == "add" for function, _ in steps):
        return None
    channels = r.shape[1]
    gain, offset = np.ones(channels), np.zeros(channels)
    for function, number in reversed(steps):
        number = 1 / number if function == "div" else number
        gain, offset = (gain, offset + number) if function == "add" else (gain * number, offset * number)
    return t.node(node.op, pixels(t, r, gain, offset))


def pixels(t: Builder, r: Ref, gain: Array | None = None, offset: Array | None = None) -> Ref:
    """An image [1, C, H, W], times a number and plus one for each channel, as what a linear layer of its pixels makes."""
    channels = r.shape[1]
    gain = np.ones(channels) if gain is None else gain
    parts = [np.diag(gain).astype(np.float32), *(() if offset is None else (offset.astype(np.float32),))]
    y = t.node(Linear(), t.reshape(t.transpose(r, (0, 2, 3, 1)), (-1, channels)), *map(t.const, parts))
    return t.transpose(t.reshape(y, (1, *r.shape[2:], channels)), (0, 3, 1, 2))


def channels_last(t: Builder, node: Node) -> Ref | None:
    """A border around a feature map, with the channels behind the places, as its value stands."""
    if not isinstance(node.op, Pad) or len((x := node.operands[0]).node.shape) != 2 or x.layout.offset:
        return None
    wide = [i for i, axis in enumerate(x.layout.axes) if axis == ((x.node.shape[1], 1),)]
    last = len(node.shape) - 1
    if len(wide) != 1 or wide[0] == last or node.op.before[wide[0]] or node.op.after[wide[0]]:
        return None
    order = [i for i in range(last + 1) if i != wide[0]] + wide
    before, after = (tuple(p[i] for i in order) for p in (node.op.before, node.op.after))
    y = relabel(t.node(Pad(before, after, node.op.value), t.transpose(x, order)), label(t.source))
    return t.transpose(y, [order.index(i) for i in range(last + 1)])


def pool(t: Builder, node: Node) -> Ref | None:
    """A sum or maximum over rows, the same ones for every channel."""
    if not isinstance(node.op, Reduce) or node.op.function not in ("sum", "max") or node.dtype != "f":
        return None
    x, axes = node.operands[0], node.op.axes
    if len(x.node.shape) != 2 and not isinstance(x.op, Pad):
        return None
    columns = x.node.shape[-1]
    split = at_columns(x.layout, columns)
    if (
        split is None
        or any(not abs(s) >= columns for i in axes for _, s in split.axes[i])
        or not any(split.axes[i] for i in axes)
    ):
        return None
    flat = [(i, n, s) for i, axis in enumerate(split.axes) for n, s in axis]
    kept = [[f for f in flat if f[0] not in axes and (0 < abs(f[2]) < columns) == wide] for wide in (False, True)]
    over = [f for f in flat if f[0] in axes]
    walk = tuple(tuple((n, s) for _, n, s in part) for part in (kept[0], over, kept[1]))
    form = "mean" if node.op.function == "sum" else "max"
    y = relabel(t.node(Pool(form), x.move(Layout(walk, x.layout.offset))), label(t.source))
    parts = kept[0] + kept[1]
    y = t.reshape(y, [n for _, n, _ in parts])
    y = t.transpose(y, [parts.index(f) for f in flat if f in parts]) if parts else y
    y = t.reshape(y, node.shape)
    return y if form == "max" else t.map("mul", y, float(prod(n for _, n, _ in over)))


def total(t: Builder, node: Node) -> Ref | None:
    """A sum over the channels of each row: a layer of equal weights."""
    found = reduction(node, "sum") if isinstance(node.op, Reduce) and node.dtype == "f" else None
    if found is None or len(found[0].node.shape) != 2 or constant(found[0]):
        return None
    x, axes, factor = found
    width = x.node.shape[1]
    kept = [i for i in range(len(x.shape)) if i not in axes]
    if any(abs(s) >= width for i in axes for _, s in x.layout.axes[i]) or not any(s for i in axes for _, s in x.layout.axes[i]):
        return None
    rows = group(x, kept, axes)
    y = relabel(t.node(Linear(), rows, t.full((1, rows.shape[1]), factor)), label(t.source))
    y = regroup(t, y, [1 if i in axes else n for i, n in enumerate(x.shape)], [*kept, *axes])
    return t.reshape(y, node.shape)


def ordered(t: Builder, node: Node) -> Ref | None:
    """An elementwise function in the order of rows and columns in which its first computed operand stands: tokens by channels,
    where that is a map which is resampled axis by axis."""
    function = layer(node, Clip, Activation)
    channels = _mixed_channels(node.operands[0].node) if function else None
    if function and channels is None:
        (x,) = node.operands
        return None if x == x.node.ref else t.through(x.layout, relabel(t.node(node.op, x.node.ref), node.name))
    if not function and not is_map(node):
        return None
    computed = [r for r in node.operands if not constant(r)]
    lead = max(computed, key=lambda r: prod(n for axis in r.layout.axes for n, s in axis if s), default=None)
    if lead is None or len(lead.node.shape) != 2:
        return None
    columns = lead.node.shape[1]
    split = at_columns(lead.layout, columns)
    cut = split and loops(split, *(r.layout for r in node.operands))
    if not cut:
        return None
    limits = is_map(node, "max", "min") and len(computed) == 1  # of a Clip, which is to be found first
    if not function and not limits:
        channels = _mixed_channels(lead.node)
    if channels is not None:
        cut = [[part for n, s in axis for part in _apart(n, s, channels)] for axis in cut]
    flat = [(i, n, s) for i, axis in enumerate(cut) for n, s in axis if any(s)]
    if any(s[0] <= 0 for _, _, s in flat):
        return None
    if channels is None:
        walk = sorted(flat, key=lambda f: -f[2][0])
        down, across = ([f for f in walk if (f[2][0] >= columns) == rows] for rows in (True, False))
    else:
        moves = [channels[f[2][0]] != channels[0] for f in flat]
        down, across = ([f for f, moved in zip(flat, moves, strict=True) if moved == wide] for wide in (False, True))
        across.sort(key=lambda f: -f[2][0])
    operands = [
        r.move(Layout(tuple(tuple((n, s[k]) for _, n, s in part) for part in (down, across)), r.layout.offset))
        for k, r in enumerate(node.operands, 1)
    ]
    if tuple(operands) == node.operands:
        return None
    y = relabel(t.node(node.op, *operands), node.name if function else label(t.source))
    weight, place = 1, {}
    for f in reversed(down + across):
        place[f] = weight
        weight *= f[1]
    axes = tuple(tuple((n, place.get((i, n, s), 0)) for n, s in axis) for i, axis in enumerate(cut))
    return y.move(Layout(axes, 0))


def _mixed_channels(node: Node) -> Array | None:
    """Of each element of a linear layer's value the channel that it is of, where the layer mixes tokens of one channel, such as
    rows of a map that is resized; None for others."""
    if layer(node, Clip, Activation) and node.operands[0] == node.operands[0].node.ref:
        return _mixed_channels(node.operands[0].node)
    if not layer(node, Linear) or len(node.shape) != 2 or node.operands[0].shape[1] < 2 or constant(node.operands[0]):
        return None
    x = node.operands[0]
    if len(x.node.shape) != 2 or x.node.shape[1] < 2:
        return None
    of = _mixed_channels(x.node)
    if of is None and not any(s and s % x.node.shape[1] == 0 for _, s in x.layout.axes[1]):
        return None
    at = x.layout.positions()
    own: Array = (np.arange(prod(x.node.shape)) % x.node.shape[1] if of is None else of)[at]
    return np.repeat(own[:, 0], node.shape[1]) if (own == own[:, :1]).all() else None


def _apart(n: int, strides: tuple[int, ...], channels: Array) -> list[tuple[int, tuple[int, ...]]]:
    """A loop over elements as one over channels and one over tokens, either of them first; itself where it is neither."""
    if strides[0] <= 0:
        return [(n, strides)]
    change = np.flatnonzero(np.diff(channels[np.arange(n) * strides[0]]))
    inner = int(change[0]) + 1 if len(change) else n
    if inner == 1:  # channels first, until the first one comes again
        again = np.flatnonzero(channels[np.arange(1, n) * strides[0]] == channels[0])
        inner = int(again[0]) + 1 if len(again) else n
    if inner == n or n % inner:
        return [(n, strides)]
    return [(n // inner, tuple(s * inner for s in strides)), (inner, strides)]
