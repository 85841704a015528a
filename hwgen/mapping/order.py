"""Order of operations: list scheduling, so that the array does not wait for the result that it has just begun.

An operation that reads what another writes starts only when the last row has left the pipeline. Where the next operation
in line would wait so, one of the following that need not wait goes first: the scores of the next head before the values
of this one, the first layer of the next expert before the second layer of this one.

After R. L. Graham, "Bounds on multiprocessing timing anomalies" (1969), with the longest path to the end as priority and
a short window, so that what is live at one time stays about the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..intgraph import IntGraph, MatMul, Multiply, Norm, Op, ReduceWindow, RouteTokens, ScanRows, SelectRows, View
from ..isa import RowMax
from .runs import links

VECTOR = (Norm, Multiply, ReduceWindow, RouteTokens, SelectRows, ScanRows)
Resource = tuple[str, ...]  # a buffer's elements, or its row maxima
WINDOW = 6  # MatMuls in original order among which the next one is chosen


@dataclass
class Timing:
    """Cycles of operations, for the choice of an order. duration(op, tokens): tokens: of an expert's queue."""

    duration: Callable[[Op, int], float]
    latency: int  # from the last row of a MatMul to the first of one that reads it


@dataclass
class _Node:
    before: set[int] = field(default_factory=set)  # must be emitted earlier
    needs: set[int] = field(default_factory=set)  # among them: must have finished, too
    tokens: int = 0  # of an expert's queue, on average


def reorder(graph: IntGraph, timing: Timing) -> IntGraph:
    """`graph` with its operations in an order in which the array waits less; every dependency is kept."""
    nodes = dependencies(graph)
    cycles = [timing.duration(op, node.tokens) for op, node in zip(graph.ops, nodes, strict=True)]
    height = list(cycles)  # longest path to the end
    for i in reversed(range(len(nodes))):
        for j in nodes[i].before:
            wait = timing.latency if j in nodes[i].needs and isinstance(graph.ops[j], MatMul) else 0
            height[j] = max(height[j], height[i] + cycles[j] * (j in nodes[i].needs) + wait)
    array = [i for i, op in enumerate(graph.ops) if isinstance(op, MatMul)]
    left = list(range(len(nodes)))  # not yet emitted, in original order
    done: dict[int, float] = {}  # when an emitted operation has finished
    free = {True: 0.0, False: 0.0}  # when the array, the vector unit can take the next one
    order: list[int] = []

    def ready(i: int) -> float:
        return max((done[j] for j in nodes[i].needs), default=0.0)

    def emit(i: int) -> None:
        on_array = isinstance(graph.ops[i], MatMul)
        start = max(free[on_array], ready(i))
        if on_array or isinstance(graph.ops[i], VECTOR):
            free[on_array] = start + cycles[i]
        done[i] = start + cycles[i] + (timing.latency if on_array else 0)
        order.append(i)
        left.remove(i)

    while left:
        # Everything but MatMuls goes as soon as it stands first or all that it depends on has gone.
        head = left[0]
        if not isinstance(graph.ops[head], MatMul):
            emit(head)
            continue
        window = [i for i in left[: 4 * WINDOW] if isinstance(graph.ops[i], MatMul)][:WINDOW]
        inside = [i for i in left if i <= window[-1]]
        follows = [
            i for i in inside if isinstance(graph.ops[i], VECTOR) and nodes[i].before <= done.keys()
        ]
        if follows:
            emit(follows[0])
            continue
        candidates = [i for i in window if nodes[i].before <= done.keys()]
        emit(min(candidates, key=lambda i: (max(free[True], ready(i)), -height[i], i)))
    return replace(graph, ops=[graph.ops[i] for i in order]) if array else graph


def dependencies(graph: IntGraph) -> list[_Node]:
    """What every operation must follow, by the rows that are read and written and by the state between MatMuls."""
    nodes = [_Node() for _ in graph.ops]
    writes: dict[Resource, list[tuple[int, View]]] = defaultdict(list)
    reads: dict[Resource, list[tuple[int, View]]] = defaultdict(list)
    chained = {i for chain in links(graph.ops) for i in chain}
    last_chain: dict[RowMax, int] = {}  # the last operation of the latest chain of a kind of row maxima
    loose: dict[RowMax, set[int]] = defaultdict(set)  # those with such maxima since, in any order
    queue_users: list[int] = []
    route, tokens = -1, 0
    for i, op in enumerate(graph.ops):
        node = nodes[i]
        if isinstance(op, RouteTokens):
            node.before |= {*queue_users, *([route] if route >= 0 else [])}
            route, queue_users, tokens = i, [], -(-op.logits.rows * op.top_k // op.logits.cols)
        elif isinstance(op, MatMul) and op.expert is not None:
            node.needs.add(route)
            node.tokens = tokens
            queue_users.append(i)
        if isinstance(op, MatMul) and op.row_max != RowMax.NONE:
            # Nothing that has maxima comes between the operations of a chain, which the machine keeps once.
            node.before |= {last_chain[op.row_max]} if op.row_max in last_chain else set()
            if i in chained:
                node.before |= loose.pop(op.row_max, set())
                last_chain[op.row_max] = i
            else:
                loose[op.row_max].add(i)
        for resource, view, is_write in _accesses(op):
            node.needs |= {j for j, other in writes[resource] if not is_write and view.overlaps(other)}
            node.before |= {j for j, other in writes[resource] if view.overlaps(other)}
            if is_write:
                node.before |= {j for j, other in reads[resource] if j != i and view.overlaps(other)}
        for resource, view, is_write in _accesses(op):
            if is_write:  # what it covers needs no longer be remembered: later users follow this one
                for table in (writes, reads):
                    table[resource] = [(j, v) for j, v in table[resource] if not view.covers(v)]
                writes[resource].append((i, view))
            else:
                reads[resource].append((i, view))
        node.before |= node.needs
        node.before.discard(i)
        node.needs.discard(i)
    return nodes


def _accesses(op: Op) -> list[tuple[Resource, View, bool]]:
    """(resource, view, whether it is written): a buffer's elements, and its row maxima whatever the columns."""
    found: list[tuple[Resource, View, bool]] = [((view.buffer,), view, False) for view in op.reads().values()]
    found += [(*_maxima(view), False) for view in op.reads_maxima()]
    found += [((view.buffer,), view, True) for view in op.writes().values()]
    if (view := op.writes_maxima()) is not None:
        found.append((*_maxima(view), True))
    return found


def _maxima(view: View) -> tuple[Resource, View]:
    return (view.buffer, "maxima"), replace(view, col=0, cols=1)
