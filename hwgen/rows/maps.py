"""Feature maps: convolutions, and numbers of windows of a map that slide or lie side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import graph, walks
from ..layers import Activation, Clip, Conv, Pool
from ..tensor import Node
from .depthwise import MOST_DILATION, MOST_KERNEL, check_walk, depthwise
from .lower import GONE, Rows
from .moves import joined, value
from .operands import Operand, kept
from .views import LOWEST, ZERO, Array, Place, Unsupported, View

# --- windows as fields of a node --------------------------------------------------------------------------------------


def sliding(rows: Array, total: int) -> tuple[int, dict[str, Any]] | None:
    """Rows [positions, taps] of a value of `total` rows (negative: beyond a border) as a window that slides over a map: (the
    map's first row, fields of a node); None where they are none."""
    known = rows >= 0
    if (found := _offsets(rows, known)) is None:
        return None
    base, taps, corner = found
    start = int(rows[known].min())
    before = start - corner  # rows from the first position's first tap to the map
    wanted = np.where(known, rows - start, -1)
    for across, dx in _runs(taps):
        if across > MOST_KERNEL or len(taps) > across * MOST_KERNEL:
            continue
        for wide, sx in _runs(base):
            down, up = taps[::across], base[::wide]
            for width in _widths(down, up, wanted):
                dy, sy = (int(a[1]) // width if len(a) > 1 else 1 for a in (down, up))
                if not _even(down, dy * width) or not _even(up, sy * width):
                    continue
                fields = {"kernel": (len(down), across), "stride": (sy, sx), "dilation": (dy, dx)}
                if _fits(fields, wanted, (len(up), wide), before, width, total - start):
                    return start, fields
    return None


def _fits(fields: dict[str, Any], wanted: Array, places: tuple[int, int], before: int, width: int, total: int) -> bool:
    """Whether the rows are those of such a window over a map so wide; puts `size` and `pads` into the fields."""
    top, left = divmod(before, width)
    if top < 0 or min(*fields["stride"], *fields["dilation"]) < 1:
        return False
    spans = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(places, *(fields[f] for f in ("stride", "kernel", "dilation")), strict=True)
    ]
    for height in {total // width: 0, int(wanted.max()) // width + 1: 0}:
        if height * width > total or max(height, width, *spans) >= MOST_ALONG:
            continue
        pads = (top, left, max(0, spans[0] - top - height), max(0, spans[1] - left - width))
        walk = walks.window((height, width), pads=pads, **fields)
        if walk.loops == places and np.array_equal(walk.x_rows().T, wanted):
            fields |= {"size": (height, width), "pads": pads}
            return True
    return False


def _offsets(rows: Array, known: Array) -> tuple[Array, Array, int] | None:
    """(what each position, and each tap, adds; row of the first tap of the first position) from the rows that are known; None
    where these do not tell."""
    base, taps = (np.zeros(n, np.int64) for n in rows.shape)
    at, of = (np.zeros(n, np.bool_) for n in rows.shape)
    at[known.sum(axis=1).argmax()] = True
    while not (at.all() and of.all()):
        both = known & at[:, None]
        new, u = both.any(axis=0) & ~of, both.argmax(axis=0)
        taps[new] = (rows[u, np.arange(len(taps))] - base[u])[new]
        of |= new
        both = known & of[None]
        more, t = both.any(axis=1) & ~at, both.argmax(axis=1)
        base[more] = (rows[np.arange(len(base)), t] - taps[t])[more]
        at |= more
        if not (new.any() or more.any()):
            return None
    return base - base[0], taps - taps[0], int(base[0] + taps[0])


def _runs(offsets: Array) -> Iterator[tuple[int, int]]:
    """(length, step) of even inner loops that offsets may be made of, the longest first."""
    for n in range(len(offsets), 0, -1):
        if len(offsets) % n == 0:
            step = int(offsets[1]) if n > 1 else 1
            if step > 0 and (offsets.reshape(-1, n) == offsets[::n, None] + np.arange(n) * step).all():
                yield n, step


def _even(offsets: Array, step: int) -> bool:
    return bool((offsets == np.arange(len(offsets)) * step).all())


def _widths(down: Array, up: Array, wanted: Array) -> list[int]:
    """Widths that a map may have, of which the steps from one row of taps, or of positions, to the next are multiples."""
    step = int(down[1]) if len(down) > 1 else int(up[1]) if len(up) > 1 else 0
    return [n for n in range(step, 0, -1) if step % n == 0] if step > 0 else [int(wanted.max()) + 1]


MOST_ALONG = 1 << 12  # tokens along an axis of a map that a walk tells from each other: `isa.COORDINATE_BITS`, signed


def taps_of(b: Rows, operand: Operand) -> tuple[tuple[Node, Array], int, dict[str, Any]] | None:
    """(layer and columns, first row of the map, fields of a Conv) of an operand whose blocks are the taps of a window."""
    if operand.gone or len(operand.blocks) == 1 or any(len(k.parts) != 1 for k in operand.blocks):
        return None
    source, columns = operand.blocks[0].parts[0]
    if any(k.parts[0][0] is not source or not np.array_equal(k.parts[0][1], columns) for k in operand.blocks):
        return None
    rows = np.stack([np.where(k.picks < 0, -1, k.rows) for k in operand.blocks], axis=1)
    found = sliding(rows, b.place(source).rows)
    if found is None or max(found[1].get("dilation", (1, 1))) > MOST_DILATION:
        return None
    return (source, columns), *found


# --- convolutions ---

MOST_WEIGHTS = 1 << 22  # of a convolution with groups as one product, with zeros between them: the mapping leaves them out


def conv_place(b: Rows, node: Node) -> Place:
    return Place(node.shape[0], node.shape[1])


def conv(b: Rows, node: Node, start: int, stop: int) -> str:
    return b.rows_of(node, start, stop, lambda: _conv(b, node))


def _conv(b: Rows, node: Node) -> str:
    x, w, *bias = node.operands
    op, rank = node.op, len(node.op.strides)
    assert isinstance(op, Conv)
    if rank > 2:
        raise Unsupported("convolves computed tokens along three axes", "convolve the frames of a video by themselves")
    view = b.view(x)
    if b.lost(view):
        return GONE
    view, lengths, border = _uncovered(view)
    channels = x.shape[0]
    view = view.group(list(range(1, rank + 1)), [0])
    weight = b.array(w, "its weight")
    constant = b.array(bias[0], "its bias") if bias else None

    def two(pair: tuple[int, ...], alone: int) -> tuple[int, int]:
        return (pair[0], pair[1]) if rank == 2 else (alone, pair[0])

    pads = [p + q for p, q in zip(op.pads, border, strict=True)]
    before, after = two(tuple(pads[:rank]), 0), two(tuple(pads[rank:]), 0)
    fields = {
        "size": two(lengths, 1),
        "stride": two(op.strides, 1),
        "pads": (*before, *after),
        "dilation": two(op.dilations, 1),
    }
    kernel = two(weight.shape[2:], 1)
    fields["dilation"] = tuple(d if n > 1 else 1 for d, n in zip(fields["dilation"], kernel, strict=True))
    weight = weight.reshape(*weight.shape[:2], *kernel)
    if op.groups == channels:  # a window for each channel
        times = weight.shape[0] // channels
        if times > 1:
            columns = np.repeat(np.arange(channels), times)
            view = view.group([0], [1]).map(lambda a: a[:, columns])
        name = value(b, node, b.kept(view))
        return depthwise(b, node, name, weight[:, 0].transpose(1, 2, 0), constant, fields)
    check_walk(kernel, fields, tall=False)
    taps = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    if op.groups == 1:
        name = value(b, node, b.kept(view))
        return b.add(graph.Conv, node, node.name, "conv", x=name, weight=b.intern(taps), bias=constant, **fields)
    parts, each, out = [], channels // op.groups, len(taps) // op.groups
    beside = max(1, int((MOST_WEIGHTS / (out * each * taps[0, ..., 0].size)) ** 0.5))  # groups that one product computes
    alone = kernel == (1, 1) and fields["stride"] == (1, 1) and not any(fields["pads"])
    for g in range(0, op.groups, beside):
        count = min(beside, op.groups - g)
        inputs, outputs = slice(g * each, (g + count) * each), slice(g * out, (g + count) * out)
        which = None if view.which is None else _columns(view.which, inputs)
        shape = view.shape[0], count * each
        own = View(view.sources, shape, _columns(view.rows, inputs), _columns(view.columns, inputs), which)
        diagonal = np.zeros((count * out, *kernel, count * each), np.float32)
        for i in range(count):
            diagonal[i * out : (i + 1) * out, ..., i * each : (i + 1) * each] = taps[outputs][i * out : (i + 1) * out]
        term = None if constant is None else b.intern(constant[outputs])
        name = node.name and (node.name if count == op.groups else f"{node.name}.{g}")
        read = value(b, node, kept(own))
        if alone:
            weight = b.intern(diagonal.reshape(count * out, count * each))
            parts.append(b.add(graph.Linear, node, name, "linear", x=read, weight=weight, bias=term))
            continue
        parts.append(b.add(graph.Conv, node, name, "conv", x=read, weight=b.intern(diagonal), bias=term, **fields))
    return parts[0] if len(parts) == 1 else joined(b, node, parts)


def _uncovered(view: View) -> tuple[View, tuple[int, ...], tuple[int, ...]]:
    """A map [C, L1 ..] without a border of zeros: (what is inside, its lengths, the border before and behind each axis)."""
    lengths, rank = view.shape[1:], len(view.shape) - 1
    known = np.ones(view.shape, np.bool_) if view.which is None else np.broadcast_to(view.which >= 0, view.shape)
    spans = []
    for i in range(1, rank + 1):
        here = np.flatnonzero(known.any(axis=tuple(j for j in range(rank + 1) if j != i)))
        spans.append((int(here[0]), int(here[-1]) + 1) if here.size else (0, view.shape[i]))
    cut: tuple[slice, ...] = (slice(None), *(slice(a, e) for a, e in spans))
    if view.which is None or not known[cut].all():
        return view, lengths, (0,) * 2 * rank
    rows, columns = (np.broadcast_to(a, view.shape)[cut] for a in (view.rows, view.columns))
    which = np.broadcast_to(view.which, view.shape)[cut]
    inner = View(view.sources, rows.shape, rows, columns, which if which.any() else None)
    border = *(a for a, _ in spans), *(n - e for (_, e), n in zip(spans, lengths, strict=True))
    return inner, rows.shape[1:], border


def _columns(a: Array, columns: slice) -> Array:
    return a if a.shape[1] == 1 else a[:, columns]


# --- pooling ---


@dataclass(eq=False)
class Pooled:
    """What is pooled: rows [positions, taps] (negative: zeros, or nothing where the largest is taken) of `columns` of one
    layer, or of several where `source` is None."""

    view: View  # [positions, taps, columns]
    rows: Array
    source: tuple[Node, Array] | None
    solid: bool = False  # zeros are values like others, of which the largest is taken

    @property
    def read(self) -> Operand:
        """All rows that are read, position by position."""
        return kept(self.view.group([0, 1], [2]))


def pooled_of(view: View, form: str) -> Pooled:
    if form == "max" and view.which is not None and all(_never_negative(n) for n in view.sources):
        full = np.broadcast_to(view.which, view.shape)
        if (full >= 0).any(axis=1).all():  # beside such values zeros are never larger than all
            view = replace(view, which=np.where(view.which == ZERO, LOWEST, view.which))
    which = np.zeros((1, 1, 1), np.int64) if view.which is None else view.which
    solid = form == "max" and bool(((which < 0) & (which != LOWEST)).any())
    if form != "max" and (which == LOWEST).any():
        raise Unsupported("averages values and infinities around them", "pad by zeros")
    rows = np.broadcast_to(np.where(which < 0, -1, view.rows)[..., 0], view.shape[:2])
    if not (rows >= 0).any():
        raise Unsupported("pools nothing but a border")
    u, t = np.argwhere(rows >= 0)[0]
    columns = np.broadcast_to(view.columns, view.shape)[u, t]
    alike = len(view.sources) == 1 and ((view.columns == columns) | (which < 0)).all()
    return Pooled(view, rows, (view.node, columns.copy()) if alike and not solid else None, solid)


def _never_negative(node: Node) -> bool:
    if isinstance(node.op, Pool):
        return node.op.form != "sum" and _never_negative(node.operands[0].node)
    if isinstance(node.op, Clip):
        return node.op.low >= 0
    return isinstance(node.op, Activation) and (
        node.op.form in ("relu6", "sigmoid", "hardsigmoid", "softplus", "exp") or (node.op.form == "relu" and not node.op.slope)
    )


def windows_of(b: Rows, node: Node, pooled: Pooled, form: str, start: int, stop: int) -> str:
    """Mean, largest or sum ("weighted" by ones) of the taps of each position."""
    return GONE if b.lost(pooled.view) else b.rows_of(node, start, stop, lambda: window_of(b, node, pooled, form))


def window_of(b: Rows, node: Node, pooled: Pooled, form: str, count_pads: bool = True) -> str:
    positions, taps, width = pooled.view.shape
    if positions == 1 and form != "max":
        return _mean(b, node, pooled, form)
    found = pooled.source and sliding(pooled.rows, b.place(pooled.source[0]).rows)
    if pooled.source and found:
        first, fields = found
        x = b.part(*pooled.source, first, first + fields["size"][0] * fields["size"][1])
    else:
        if (pooled.rows < 0).any() and (form == "max" and not pooled.solid or not count_pads):
            raise Unsupported("pools windows that leave the map in another way than by a border", "pool a map row by row")
        x = value(b, node, pooled.read)
        wide = max(n for n in range(1, taps + 1) if taps % n == 0 and n <= MOST_KERNEL)
        high = taps // wide  # the taps of a position are a map of their own
        fields = {"size": (positions * high, wide), "kernel": (high, wide), "stride": (high, wide)}
    if form == "weighted":
        fields["weight"] = b.intern(np.ones((*fields["kernel"], width), np.float32))
    else:
        fields["count_pads"] = count_pads
    return b.add(graph.Window, node, node.name, "pool", x=x, form=form, **fields)


def _mean(b: Rows, node: Node, pooled: Pooled, form: str) -> str:
    """The mean, or the sum, of some rows."""
    _, taps, width = pooled.view.shape
    known = np.sort(pooled.rows.reshape(-1))
    first = int(known[0])
    if pooled.source and first >= 0 and np.array_equal(known, np.arange(first, first + taps)):
        x = b.part(*pooled.source, 0, b.place(pooled.source[0]).rows)
    else:
        x, first = value(b, node, pooled.read), 0
    name = b.add(graph.Mean, node, node.name, "mean", x=x, start=first, stop=first + taps)
    return name if form == "mean" else b.diagonal(node, name, np.full(width, float(taps)))


def pool(b: Rows, node: Node, start: int, stop: int) -> str:
    view = b.view(node.operands[0])
    if b.lost(view):
        return GONE
    view = b.upright(view, 2)
    return windows_of(b, node, pooled_of(view, node.op.form), node.op.form, start, stop)


def pool_place(b: Rows, node: Node) -> Place:
    return Place(node.shape[0], node.shape[1])


KINDS = {Conv: (conv_place, conv), Pool: (pool_place, pool)}
