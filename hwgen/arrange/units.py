"""Units: runs of operations that must stay together, because they share state that the machine has once."""

from __future__ import annotations

from ..intgraph import MatMul, Op, RouteTokens
from .chains import chains


def units(ops: list[Op]) -> list[list[Op]]:
    """`ops` in order as runs: a chain of row maxima, a router with all its experts, or one operation."""
    first = []  # of each operation, where its run begins
    for chain in chains(ops):
        first += [len(first)] * len(chain)
    route = None
    for i, op in enumerate(ops):
        if isinstance(op, RouteTokens):
            route = i
        elif isinstance(op, MatMul) and op.expert is not None:
            start = first[route]
            first[start : i + 1] = [start] * (i + 1 - start)
    result: list[list[Op]] = []
    for i, op in enumerate(ops):
        if first[i] == i:
            result.append([])
        result[-1].append(op)
    return result
