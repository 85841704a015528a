"""Operands made values of the row graph: one Gather, Stack and Join at most for each."""

from __future__ import annotations

import numpy as np

from .. import graph
from ..tensor import Const, Node
from .lower import GONE, Rows
from .operands import APART, TOKENS, Block, Operand
from .standing import Standing
from .views import ZERO, Array, Unsupported

MOST_PARTS = 64  # values that one is made of
MOST_NARROW = 8  # of which each is one channel
MOST_TURNS = 16  # sets of tokens whose channels are sorted into one row
MOST_TURNED = 1024  # sets of tokens that are transposed for one value
MOST_SPARE = 4  # rows made for each that is read, where tokens are transposed


def value(b: Rows, node: Node, operand: Operand, start: int = 0, stop: int | None = None, parts: int = MOST_PARTS) -> str:
    """Name of rows start..stop of what `node` reads. parts: most values side by side that it is made of."""
    stop = operand.rows if stop is None else stop
    if operand.gone:
        return GONE
    narrow = all(block.width == 1 for block in operand.blocks)
    most = MOST_NARROW if narrow else parts
    part = operand.at(np.arange(start, stop)) if (start, stop) != (0, operand.rows) else operand
    if (shared := below(b, node, part)) is not None:
        name, at, total = shared
        return joined(b, node, [gathered(b, node, name, rows, total) for rows in at.T])
    if len(operand.blocks) > most or any(len(block.parts) > most for block in operand.blocks):
        if len(part.blocks) == 1 and all((columns == columns[0]).all() for _, columns in part.blocks[0].parts) and not narrow:
            return _repeated(b, node, part)
        for way in (_beside, _grouped, _upright):
            if (found := way(b, node, part)) is not None:
                return found
        if not narrow:
            raise Unsupported(APART, TOKENS)
        try:
            return _across(b, node, part)
        except Unsupported:  # such as scores of each pixel's neighbours, one value for each of them
            if len(part.blocks) > MOST_PARTS or any(len(block.parts) > MOST_PARTS for block in part.blocks):
                raise
    order = sorted(range(len(part.blocks)), key=lambda i: bool((part.blocks[i].picks < 0).all()))  # zeros last: of what is there
    names = {i: _value(b, node, part.blocks[i]) for i in order}
    return joined(b, node, [names[i] for i in range(len(names))])


def below(b: Rows, node: Node, operand: Operand) -> tuple[str, Array, int] | None:
    """Blocks that show columns of the same several parts, such as patches that lie across the columns of a value: (these parts
    made once, one below the other; row of it that each row of each block is [R, blocks], ZERO for zeros; its rows)."""
    parts = operand.blocks[0].parts if operand.blocks else []
    keys = {block.key[0] for block in operand.blocks}
    if len(operand.blocks) == 1 or len(parts) == 1 or len(keys) > 1 or len(parts) > MOST_PARTS:
        return None
    if parts[0][1].size == 1 or any(isinstance(source.op, Const) for source, _ in parts):
        return None
    picks, rows = (np.stack([getattr(block, of) for block in operand.blocks], axis=1) for of in ("picks", "rows"))
    spans = [(int(r.min()), int(r.max()) + 1) if (r := rows[picks == i]).size else (0, 0) for i in range(len(parts))]
    shift = np.cumsum([0, *(end - start for start, end in spans)]) - np.array([*(start for start, _ in spans), 0])
    used = [(part, span) for part, span in zip(parts, spans, strict=True) if span[1]]
    name = stacked(b, node, [b.part(source, columns, *span) for (source, columns), span in used])
    return name, np.where(picks < 0, ZERO, rows + shift[picks]), sum(end - start for start, end in spans)


def _repeated(b: Rows, node: Node, operand: Operand) -> str:
    """One channel of each row for all columns."""
    (block,) = operand.blocks
    one = Block([(source, columns[:1]) for source, columns in block.parts], block.picks, block.rows, 1)
    x = value(b, node, Operand([one], operand.rows, 1))
    weight = b.intern(np.ones((operand.width, 1)))
    return made(b, graph.Linear, node, "repeated", x=x, weight=weight, bias=None)


def _beside(b: Rows, node: Node, operand: Operand) -> str | None:
    """Channels of the same rows in another order, such as pairs that were taken apart: a layer that sorts them, or one for
    each of several heads below each other."""
    if any((k.picks < 0).any() or not np.array_equal(k.rows, operand.blocks[0].rows) for k in operand.blocks):
        return None
    groups, which = np.unique(np.stack([k.picks for k in operand.blocks], axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    parts = [[k.parts[p] for k, p in zip(operand.blocks, group, strict=True)] for group in groups]
    if len(groups) > MOST_PARTS or any(isinstance(source.op, Const) for group in parts for source, _ in group):
        return None
    names = [_sorted(b, node, operand.blocks[0].rows[which == i], group) for i, group in enumerate(parts)]
    order = np.argsort(np.argsort(which, kind="stable"), kind="stable")
    return gathered(b, node, stacked(b, node, names), order, operand.rows)


def _grouped(b: Rows, node: Node, operand: Operand) -> str | None:
    """Channels of few sets of tokens, one set for each of several turns, with the sets' channels mixed: sets side by side, then
    a layer that sorts them. Upsampled maps are such, where channels of four pixels stand in a row: c0 of all four, then c1."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for k, block in enumerate(operand.blocks):
        key = (*(source for source, _ in block.parts), block.picks.tobytes(), block.rows.tobytes())
        groups.setdefault(key, []).append(k)
    if len(groups) > MOST_TURNS or len(groups) == len(operand.blocks):
        return None
    starts = np.cumsum([0, *(block.width for block in operand.blocks)])
    blocks, order = [], []
    for members in groups.values():
        first = operand.blocks[members[0]]
        parts = [
            (source, np.concatenate([operand.blocks[k].parts[p][1] for k in members]))
            for p, (source, _) in enumerate(first.parts)
        ]
        columns = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in members])
        blocks.append(Block(parts, first.picks, first.rows, len(columns)))
        order.append(columns)
    x = value(b, node, Operand(blocks, operand.rows, operand.width))
    weight = np.eye(operand.width, dtype=np.float32)[np.argsort(np.concatenate(order))]
    return made(b, graph.Linear, node, "sorted", x=x, weight=b.intern(weight), bias=None)


def _upright(b: Rows, node: Node, operand: Operand) -> str | None:
    """Rows of which each stands in columns of its own of one value, such as tokens that run along that value's columns: of the
    value transposed, where that has few parts."""
    parts = [part for block in operand.blocks for part in block.parts]
    source = parts[0][0]
    if any(other is not source for other, _ in parts) or isinstance(source.op, Const | Standing):
        return None
    if any((block.picks < 0).any() for block in operand.blocks):
        return None
    columns = np.concatenate([np.stack([c for _, c in block.parts])[block.picks] for block in operand.blocks], axis=1)
    rows = np.concatenate([np.repeat(block.rows[:, None], block.width, axis=1) for block in operand.blocks], axis=1)
    breaks = np.flatnonzero((columns[:, 1:] != columns[:, :-1]).any(axis=0)) + 1
    found: list[tuple[Array, Array, Array, int]] = []
    for run in np.split(np.arange(operand.width), breaks):
        sets, picks = np.unique(rows[:, run], axis=0, return_inverse=True)
        if len(sets) > MOST_PARTS:
            return None
        found.append((sets, picks.reshape(-1), columns[:, run[0]], len(run)))
    if len(found) > MOST_PARTS:
        return None
    whole = b.transposed(source)
    blocks = [Block([(whole, c) for c in sets], picks, at, width) for sets, picks, at, width in found]
    return value(b, node, Operand(blocks, operand.rows, operand.width))


def _sorted(b: Rows, node: Node, rows: Array, parts: list[tuple[Node, Array]]) -> str:
    """Columns of the same rows side by side."""
    used: dict[Node, Array] = {}
    for source, columns in parts:
        used[source] = np.union1d(used.get(source, columns), columns)
    starts = dict(zip(used, np.cumsum([0, *map(len, used.values())]).tolist(), strict=False))
    none = np.zeros(len(rows), np.int64)
    names = [
        value(b, node, Operand([Block([(source, columns)], none, rows, len(columns))], len(rows), len(columns)))
        for source, columns in used.items()
    ]
    order = np.concatenate([starts[source] + np.searchsorted(used[source], columns) for source, columns in parts])
    weight = np.eye(sum(map(len, used.values())), dtype=np.float32)[order]
    return made(b, graph.Linear, node, "sorted", x=joined(b, node, names), weight=b.intern(weight), bias=None)


def _across(b: Rows, node: Node, operand: Operand) -> str:
    """Rows of which each is one channel of several tokens: those tokens transposed, once for all rows that read them."""
    sources = list(dict.fromkeys(source for block in operand.blocks for source, _ in block.parts))
    place = np.full((2, operand.rows, len(operand.blocks)), ZERO, np.int64)  # source and row of each element
    column = np.full((operand.rows, len(operand.blocks)), ZERO, np.int64)
    for k, block in enumerate(operand.blocks):
        known = np.flatnonzero(block.picks >= 0)
        picks = block.picks[known]
        place[0, known, k] = np.array([sources.index(source) for source, _ in block.parts])[picks]
        place[1, known, k] = block.rows[known]
        column[known, k] = np.array([columns[0] for _, columns in block.parts])[picks]
    most = column.max(axis=1)
    sets, which = np.unique(np.moveaxis(place, 0, 1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    used = [np.unique(most[which == i]) for i in range(len(sets))]
    alike = ((column == most[:, None]) | (column < 0)).all() and (most >= 0).all()
    if not alike or len(sets) > MOST_TURNED or sum(map(len, used)) > MOST_SPARE * operand.rows:
        raise Unsupported(APART, TOKENS)
    spans = [(int(rows.min()), int(rows.max()) + 1) for rows in (place[1][place[0] == i] for i in range(len(sources)))]
    turned = []
    for (of, rows), columns in zip(sets, used, strict=True):
        own = [i for i in range(len(sources)) if (of == i).any()]
        if any(columns[-1] >= b.place(sources[i]).width for i in own):
            raise Unsupported(APART, TOKENS)
        names = [b.part(sources[i], columns, *spans[i]) for i in own]
        if GONE in names:
            return GONE
        offsets, total = np.zeros(len(sources), np.int64), 0
        for i in own:
            offsets[i], total = total - spans[i][0], total + spans[i][1] - spans[i][0]
        at = np.where(of < 0, ZERO, rows + offsets[of])
        x = gathered(b, node, stacked(b, node, names), at, total)
        turned.append(made(b, graph.Transpose, node, "transpose", x=x))
    first = np.cumsum([0, *map(len, used)])
    order = first[which] + np.array([np.searchsorted(used[i], c) for i, c in zip(which, most, strict=True)])
    return gathered(b, node, stacked(b, node, turned), order, int(first[-1]))


def _value(b: Rows, node: Node, block: Block) -> str:
    used = [int(p) for p in np.unique(block.picks) if p >= 0]
    if not used:
        return b.table(node, np.zeros((len(block.picks), block.width), np.float32))
    shown = [block.rows[block.picks == p] for p in used]
    spans = [(int(rows.min()), int(rows.max()) + 1) for rows in shown]
    names, offsets, total = [""] * len(used), np.zeros(len(block.parts), np.int64), 0
    for i in sorted(range(len(used)), key=lambda i: isinstance(block.parts[used[i]][0].op, Const)):  # computed values first
        (source, columns), span = block.parts[used[i]], spans[i]
        names[i] = b.constant(node, source, columns, *span) if isinstance(source.op, Const) else b.part(source, columns, *span)
    for p, (low, high) in zip(used, spans, strict=True):
        offsets[p], total = total - low, total + high - low
    rows = np.where(block.picks < 0, ZERO, block.rows + offsets[block.picks])
    return gathered(b, node, stacked(b, node, names), rows, int(total))


def joined(b: Rows, node: Node, names: list[str]) -> str:
    """Values side by side."""
    return names[0] if len(names) == 1 else made(b, graph.Join, node, "join", xs=tuple(names))


def stacked(b: Rows, node: Node, names: list[str]) -> str:
    """Values below each other."""
    return names[0] if len(names) == 1 else made(b, graph.Stack, node, "stack", xs=tuple(names))


def gathered(b: Rows, node: Node, x: str, rows: Array, total: int) -> str:
    """Rows of a value of `total` rows: itself where these are all of them in order."""
    whole = np.array_equal(rows, np.arange(total))
    return x if whole else made(b, graph.Gather, node, "gather", x=x, rows=rows.astype(np.int64))


def made(b: Rows, kind: type[graph.Node], node: Node, name: str, **fields: object) -> str:
    """A node that moves rows, once for all its readers."""
    plain = tuple((k, v.tobytes() if isinstance(v, np.ndarray) else v) for k, v in fields.items())
    key = kind, plain
    if key not in b.moved:
        b.moved[key] = b.add(kind, node, "", name, **fields)
    return b.moved[key]
