"""What a layer reads, as a value of the row graph: rows of other values in some order, side by side and below each other.

A reader takes the rows in the order in which they stand wherever that can be, each once; only what stands otherwise is
moved, by one Gather, a Stack of values below each other and a Join of values side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import graph
from ..tensor import Const, Node
from .views import LOWEST, ZERO, Array, Unsupported, View

if TYPE_CHECKING:
    from .lower import Rows

GONE = "?"  # a value that a finding explains
MOST_TAPS = 1024  # blocks that may be the taps of one window
MOST_PARTS = 32  # values that one is made of
APART = "joins single channels of tokens, or turns tokens into channels"
TOKENS = "let layers work on tokens by channels"


@dataclass(eq=False)
class Block:
    """Columns side by side of which every row comes from one value: row r shows row `rows[r]` of part `picks[r]`, or zeros
    where that is negative. A part is a layer and columns of its value."""

    parts: list[tuple[Node, Array]]
    picks: Array
    rows: Array
    width: int

    def at(self, rows: Array) -> Block:
        return Block(self.parts, self.picks[rows], self.rows[rows], self.width)

    @property
    def key(self) -> tuple[object, ...]:
        return tuple((n, c.tobytes()) for n, c in self.parts), self.picks.tobytes(), self.rows.tobytes(), self.width


@dataclass(eq=False)
class Operand:
    """[R, C] as blocks side by side. `order`: row of this that a row of the operand is; None: the same."""

    blocks: list[Block]
    rows: int
    width: int
    order: Array | None = None
    gone: bool = False

    def at(self, rows: Array) -> Operand:
        """Some of the rows."""
        return Operand([block.at(rows) for block in self.blocks], len(rows), self.width)

    @property
    def plain(self) -> tuple[Node, Array, int] | None:
        """(layer, columns, first row) where this is a range of rows of one value."""
        if len(self.blocks) != 1 or len(self.blocks[0].parts) != 1 or (self.blocks[0].picks < 0).any():
            return None
        (block,) = self.blocks
        first = int(block.rows[0]) if block.rows.size else 0
        return (*block.parts[0], first) if np.array_equal(block.rows, np.arange(first, first + self.rows)) else None


def blocks_of(view: View) -> list[Block]:
    """The blocks of a view [R, C], rows as they come."""
    count, width = view.shape
    rows, columns, which = view.rows, view.columns, view.which
    if which is None and rows.shape[1] == 1 and columns.shape[0] == 1:
        flat = np.broadcast_to(rows[:, 0], (count,))
        return [
            Block([(view.node, np.broadcast_to(columns[0], (width,)).copy())], np.zeros(count, np.int64), flat, width)
        ]
    rows, columns = (np.broadcast_to(a, view.shape) for a in (rows, columns))
    which = np.broadcast_to(np.zeros((1, 1), np.int64) if which is None else which, view.shape)
    if (which == LOWEST).any():
        raise Unsupported("pads by less than any number, of which no largest is taken")
    known = which >= 0
    rows, columns = np.where(known, rows, 0), np.where(known, columns, 0)
    new = (rows[:, 1:] != rows[:, :-1]).any(axis=0) | (which[:, 1:] != which[:, :-1]).any(axis=0)
    starts = [0, *(np.flatnonzero(new) + 1).tolist(), width]
    if len(starts) > MOST_TAPS:
        raise Unsupported(APART, TOKENS)
    return [_block(view, rows[:, a], columns[:, a:b], which[:, a]) for a, b in zip(starts, starts[1:], strict=False)]


def _block(view: View, rows: Array, columns: Array, which: Array) -> Block:
    parts: list[tuple[Node, Array]] = []
    picks = np.full(len(rows), ZERO, np.int64)
    for source in range(len(view.sources)):
        here = np.flatnonzero(which == source)
        if not here.size:
            continue
        own = columns[here]
        if (own == own[:1]).all():
            forms, index = own[:1], np.zeros(len(here), np.int64)
        else:
            forms, index = np.unique(own, axis=0, return_inverse=True)
        if len(parts) + len(forms) > MOST_TAPS:
            raise Unsupported(APART, TOKENS)
        picks[here] = len(parts) + index.reshape(-1)
        parts += [(view.sources[source], form.copy()) for form in forms]
    return Block(parts, picks, rows, columns.shape[1])


def _keys(blocks: list[Block]) -> Array:
    """[R, ..], equal where rows are the same, in the order in which their values stand: zeros last."""
    pairs = [(np.where(b.picks < 0, len(b.parts), b.picks), np.where(b.picks < 0, 0, b.rows)) for b in blocks]
    return np.stack([a for pair in pairs for a in pair], axis=1)


def settled(views: list[View]) -> list[Operand]:
    """Operands of one reader that treats their rows alike, in one order: that in which the first stands, each row once.

    What has to be moved anyhow is moved to the order of the reader."""
    split = [blocks_of(v) for v in views]
    keys = np.concatenate([_keys(blocks) for blocks in split], axis=1)
    count = len(keys)
    once, first, order = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = order.reshape(-1)
    rows = first
    if len(once) == count and not _stands(split[0], first):
        rows, order = np.arange(count), np.arange(count)
    same = len(rows) == count and np.array_equal(order, np.arange(count))
    return [
        Operand([b.at(rows) for b in blocks], len(rows), v.shape[1], None if same else order)
        for blocks, v in zip(split, views, strict=True)
    ]


def _stands(blocks: list[Block], rows: Array) -> bool:
    """Whether these rows are whole ranges of values, one after another, side by side only in the same order."""
    for b in blocks:
        picks, at = b.picks[rows], b.rows[rows]
        if (picks < 0).any() or ((np.diff(at) != 1) & (np.diff(picks) == 0)).any():
            return False
    return True


def kept(view: View) -> Operand:
    """An operand with its rows in their own order."""
    return Operand(blocks_of(view), view.shape[0], view.shape[1])


def value(b: Rows, node: Node, operand: Operand, start: int = 0, stop: int | None = None) -> str:
    """Name of rows start..stop of what `node` reads."""
    stop = operand.rows if stop is None else stop
    if operand.gone:
        return GONE
    if max(len(operand.blocks), *(len(block.parts) for block in operand.blocks)) > MOST_PARTS:
        raise Unsupported(APART, TOKENS)
    part = operand.at(np.arange(start, stop)) if (start, stop) != (0, operand.rows) else operand
    names = [_value(b, node, block, stop - start) for block in part.blocks]
    if GONE in names:
        return GONE
    return names[0] if len(names) == 1 else made(b, graph.Join, node, "join", xs=tuple(names))


def _value(b: Rows, node: Node, block: Block, count: int) -> str:
    used = [int(p) for p in np.unique(block.picks) if p >= 0]
    if not used:
        raise Unsupported("adds channels of zeros")
    names, offsets, total = [], np.zeros(len(block.parts), np.int64), 0
    for p in used:
        here = block.rows[block.picks == p]
        low, high = int(here.min()), int(here.max()) + 1
        source, columns = block.parts[p]
        names.append(
            b.constant(node, source, columns, low, high)
            if isinstance(source.op, Const)
            else b.part(source, columns, low, high)
        )
        offsets[p], total = total - low, total + high - low
    if GONE in names:
        return GONE
    x = names[0] if len(names) == 1 else made(b, graph.Stack, node, "stack", xs=tuple(names))
    rows = np.where(block.picks < 0, ZERO, block.rows + offsets[block.picks])
    if total == count and np.array_equal(rows, np.arange(count)):
        return x
    return made(b, graph.Gather, node, "gather", x=x, rows=rows.astype(np.int64))


def made(b: Rows, kind: type[graph.Node], node: Node, name: str, **fields: object) -> str:
    """A node that moves rows, once for all its readers."""
    plain = tuple((k, v.tobytes() if isinstance(v, np.ndarray) else v) for k, v in fields.items())
    key = kind, plain
    if key not in b.moved:
        b.moved[key] = b.add(kind, node, "", name, **fields)
    return b.moved[key]
