"""Runs of operations that must stay together, because they share state that the machine has once.

Chains: MatMuls that continue each other's row maxima, which the machine keeps by row number from one to the next. Units:
chains, and routers with the experts that read their queues.
"""

from __future__ import annotations

from itertools import pairwise

from ..intgraph import MatMul, Op, RouteTokens
from ..isa import RowMax


def chains(ops: list[Op]) -> list[list[Op]]:
    """`ops` in order as runs that must stay together: one operation, or all from a chain's first MatMul to its last.

    Raises ValueError where a MatMul continues the maxima of one that is not among `ops`.
    """
    first = list(range(len(ops)))
    for i, before in sorted((i, before) for chain in links(ops) for before, i in pairwise(chain)):
        start = first[before]
        first[start : i + 1] = [start] * (i + 1 - start)
    return _runs(ops, first)


def links(ops: list[Op]) -> list[list[int]]:
    """Of every chain of row maxima the numbers of its MatMuls: of one that is continued, and of those that continue it.

    Raises ValueError where a MatMul continues the maxima of one that is not among `ops`.
    """
    found: list[list[int]] = []
    latest: dict[RowMax, list[int]] = {}
    for i, op in enumerate(ops):
        if not isinstance(op, MatMul) or op.row_max == RowMax.NONE:
            continue
        if not op.continue_max:
            latest[op.row_max] = [i]
            continue
        if op.row_max not in latest:
            raise ValueError(f"{op.name}: continue_max without an earlier MatMul")
        chain = latest[op.row_max]
        if len(chain) == 1:
            found.append(chain)
        chain.append(i)
    return found


def units(ops: list[Op]) -> list[list[Op]]:
    """`ops` in order as runs: a chain of row maxima, a router with all its experts, or one operation."""
    first: list[int] = []  # of each operation, where its run begins
    for chain in chains(ops):
        first += [len(first)] * len(chain)
    route = -1
    for i, op in enumerate(ops):
        if isinstance(op, RouteTokens):
            route = i
        elif isinstance(op, MatMul) and op.expert is not None:
            start = first[route]
            first[start : i + 1] = [start] * (i + 1 - start)
    return _runs(ops, first)


def _runs(ops: list[Op], first: list[int]) -> list[list[Op]]:
    """Runs of `ops`; first: where the run of each operation begins."""
    result: list[list[Op]] = []
    for i, op in enumerate(ops):
        if first[i] == i:
            result.append([])
        result[-1].append(op)
    return result
