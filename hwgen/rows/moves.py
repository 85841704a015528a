"""Operands made values of the row graph: one Gather, Stack and Join at most for each."""

from __future__ import annotations

import numpy as np

from .. import graph
from ..tensor import Const, Node
from .lower import GONE, Rows
from .operands import APART, TOKENS, Block, Operand
from .views import ZERO, Unsupported

MOST_PARTS = 64  # values that one is made of
MOST_NARROW = 8  # of which each is one channel


def value(b: Rows, node: Node, operand: Operand, start: int = 0, stop: int | None = None) -> str:
    """Name of rows start..stop of what `node` reads."""
    stop = operand.rows if stop is None else stop
    if operand.gone:
        return GONE
    most = MOST_NARROW if all(block.width == 1 for block in operand.blocks) else MOST_PARTS
    if len(operand.blocks) > most or any(len(block.parts) > most for block in operand.blocks):
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
    shown = [block.rows[block.picks == p] for p in used]
    spans = [(int(rows.min()), int(rows.max()) + 1) for rows in shown]
    names, offsets, total = [""] * len(used), np.zeros(len(block.parts), np.int64), 0
    for i in sorted(range(len(used)), key=lambda i: isinstance(block.parts[used[i]][0].op, Const)):  # computed values first
        (source, columns), span = block.parts[used[i]], spans[i]
        names[i] = b.constant(node, source, columns, *span) if isinstance(source.op, Const) else b.part(source, columns, *span)
    for p, (low, high) in zip(used, spans, strict=True):
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
