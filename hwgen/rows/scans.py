"""Selective scans: what is scanned from its last row to its first one stays as it stands."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import graph
from ..layers import Scan
from ..numerics import SCAN_STATES_MAX
from ..tensor import Node
from .lower import GONE, Rows
from .moves import value
from .products import standing
from .views import Place, Unsupported


def _backwards(b: Rows, node: Node) -> bool:
    """Whether all that depends on the token shows rows of values in falling order."""
    views = [b.view(r) for r in node.operands[:4]]
    if any(map(b.lost, views)):
        return False
    return all(v.rows.shape[0] == node.shape[0] > 1 and bool((np.diff(v.rows, axis=0) == -1).all()) for v in views)


def place(b: Rows, node: Node) -> Place:
    rows, width = node.shape
    return Place(rows, width, np.arange(rows)[::-1] if _backwards(b, node) else None)


def scan(b: Rows, node: Node, start: int, stop: int) -> str:
    x, steps, fed, read, rates, skip = node.operands
    table, states = b.array(rates, "its rates"), fed.shape[1]
    if any(r.constant is not None for r in (x, steps, fed, read)):
        raise Unsupported("is a scan of constants", "fold constants")
    if (table > 0).any():
        raise Unsupported("is a scan whose states grow", "use rates of at most zero")
    if states > SCAN_STATES_MAX:
        raise Unsupported(f"is a scan of {states} states a channel, of which the machine holds {SCAN_STATES_MAX}")
    b.t.name, b.t.source = "", node.source
    backwards, operands = _backwards(b, node), [x, steps, b.t.concat([fed, read], 1)]
    if backwards:
        operands = [b.t.slice(r, 0, r.shape[0] - 1, r.shape[0], -1) for r in operands]
    names = [value(b, node, b.kept(b.view(standing(b, r)))) for r in operands]
    if GONE in names:
        return GONE
    fields: dict[str, Any] = dict(zip(("x", "steps", "mix"), names, strict=True))
    fields |= {"rates": table, "skip": b.array(skip, "its skip"), "backwards": backwards}
    return b.rows_of(node, start, stop, lambda: b.add(graph.Scan, node, node.name, "scan", **fields))


KINDS = {Scan: (place, scan)}
