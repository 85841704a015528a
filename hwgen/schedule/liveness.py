"""When the contents of a buffer, or its row maxima, must be kept: spans of operations, found backwards from the reads.

A buffer that is overwritten completely before it is read again has several spans, and each may lie elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import Config
from ..errors import Shortage
from ..intgraph import Constant, Fetch, Input, IntGraph, MatMul, Op, View
from ..isa import Indirect, RowMax


@dataclass
class Access:
    """What operation `index` does to one buffer: elements are column groups (or the one set of row maxima)."""

    index: int
    reads: set[int] = field(default_factory=set)
    kills: set[int] = field(default_factory=set)  # overwritten in all rows, so earlier contents no longer matter
    load: bool = False  # a transfer from DRAM, which can take place as early as there is room


@dataclass(frozen=True)
class Span:
    """Contents of `buffer` live from operation `first` to `last`; the operations `loads` open it and can move forward.

    `use`: the first operation that is none of `loads`; equal to `first` where there are none.
    """

    buffer: str
    first: int
    last: int
    use: int
    loads: tuple[int, ...]


def spans(buffer: str, accesses: list[Access], final: set[int]) -> list[Span]:
    """Spans of one buffer from its accesses in order; `final`: the elements read after the last operation."""
    live = set(final)
    found: list[list[Access]] = []  # of each span, the last one first
    for access in reversed(accesses):
        if not live or not found:
            found.append([])
        live = (live - access.kills) | access.reads
        found[-1].append(access)
    return [_span(buffer, span[::-1]) for span in reversed(found)]


def _span(buffer: str, accesses: list[Access]) -> Span:
    first, last = accesses[0].index, accesses[-1].index
    loads: list[int] = []
    for access in accesses:
        if not access.load:
            return Span(buffer, first, last, access.index, tuple(loads))
        loads.append(access.index)
    return Span(buffer, first, last, last, tuple(loads))  # loaded and never used, or only stored


def steps(graph: IntGraph, config: Config) -> list[list[int]]:
    """Operations in execution order as steps that are emitted together: nearly always one a step.

    A run of MatMuls that continue each other's row maxima and have more rows than the accumulators is one step: the
    running maxima are kept by row, so a block of rows goes through the whole run before the next block.
    """
    start = list(range(len(graph.ops)))
    previous: dict[RowMax, int] = {}
    for i, op in enumerate(graph.ops):
        if not isinstance(op, MatMul) or op.row_max == RowMax.NONE:
            continue
        if op.continue_max:
            if op.row_max not in previous:
                raise ValueError(f"{op.name}: continue_max without an earlier MatMul")
            before = graph.ops[previous[op.row_max]]
            assert isinstance(before, MatMul)
            if before.expert or op.expert or before.rows != op.rows:
                raise ValueError(f"{op.name}: continue_max after {before.name} with other rows")
            if op.rows > config.acc_rows:
                for j in range(previous[op.row_max] + 1, i + 1):
                    start[j] = start[previous[op.row_max]]
        previous[op.row_max] = i
    result: list[list[int]] = []
    for i, first in enumerate(start):
        if first == i:
            result.append([])
        result[-1].append(i)
    for step in result:
        if len(step) > 1:
            _check_blocks(graph, step, config)
    return result


def _check_blocks(graph: IntGraph, step: list[int], config: Config) -> None:
    """The operations of a step must be independent from one block of rows to the next."""
    ops = [graph.ops[i] for i in step if not isinstance(graph.ops[i], Constant)]
    written = {op.out.buffer: op.out.row for op in ops if isinstance(op, MatMul)}
    rows = ops[0].row_views()["x"].rows if ops[0].walk is None else ops[0].walk.rows
    for op in ops:
        whole = op.stationary()
        aligned = isinstance(op, MatMul) and op.expert is None and op.walk is None and op.x.rows == rows
        aligned = aligned and not (whole is not None and whole.buffer in written)
        aligned = aligned and all(written.get(v.buffer, v.row) == v.row for v in op.row_views().values())
        if not aligned:
            raise Shortage(
                f"{ops[0].name} to {ops[-1].name} cannot run in blocks of rows because of {op.name}: "
                f"acc_rows={config.acc_rows} must be at least {rows}",
                "acc_rows",
                rows / config.acc_rows,
            )


def _groups(graph: IntGraph, view: View) -> set[int]:
    buffer = graph.buffers[view.buffer]
    width = buffer.cols // buffer.groups
    return set(range(view.col // width, -(-(view.col + view.cols) // width)))


def final_reads(graph: IntGraph) -> dict[str, set[int]]:
    """Column groups of every buffer that are outputs."""
    result: dict[str, set[int]] = {name: set() for name in graph.buffers}
    for output in graph.outputs:
        result[output.view.buffer] |= _groups(graph, output.view)
    return result


def buffer_accesses(graph: IntGraph) -> dict[str, list[Access]]:
    """Accesses of every buffer, in order."""
    result: dict[str, list[Access]] = {name: [] for name in graph.buffers}
    queued = _queue_buffers(graph)
    for i, op in enumerate(graph.ops):
        for view in op.reads().values():
            _at(result, view, i).reads |= _groups(graph, view)
        for out in op.writes().values():
            access = _at(result, out, i)
            access.load = isinstance(op, (Constant, Input, Fetch))
            buffer = graph.buffers[out.buffer]
            if _whole(graph, op, out, queued) and (buffer.groups > 1 or out.cols == buffer.cols):
                access.kills |= _groups(graph, out)
    return result


def maximum_accesses(graph: IntGraph) -> dict[str, list[Access]]:
    """Accesses of the row maxima of every buffer that has some."""
    result: dict[str, list[Access]] = {}
    queued = _queue_buffers(graph)
    for i, op in enumerate(graph.ops):
        for view in op.reads_maxima():
            _at(result, view, i).reads.add(0)
        if (out := op.writes_maxima()) is not None:
            access = _at(result, out, i)
            if _whole(graph, op, out, queued) and not getattr(op, "continue_max", False):
                access.kills.add(0)
    return result


def _at(accesses: dict[str, list[Access]], view: View, i: int) -> Access:
    """The access of operation `i` to the view's buffer."""
    found = accesses.setdefault(view.buffer, [])
    if not found or found[-1].index != i:
        found.append(Access(i))
    return found[-1]


def _whole(graph: IntGraph, op: Op, out: View, queued: set[str]) -> bool:
    """Whether an operation overwrites all rows of the buffer of its view `out`."""
    rows = graph.buffers[out.buffer].rows
    if op.expert:
        return out.buffer in queued and out.rows == rows
    if op.walk is not None:  # it writes no row twice
        return op.walk.rows == rows
    return (op.x.rows if isinstance(op, MatMul) else out.rows) == rows


def _queue_buffers(graph: IntGraph) -> set[str]:
    """Buffers whose rows are queue positions, each queue's rows read only between its own write and the next queue's.

    Rows behind the end of a queue are then never looked at, and a write by another expert starts afresh.
    """
    writer: dict[str, tuple[str, int]] = {}
    bad: set[str] = {output.view.buffer for output in graph.outputs}
    for op in graph.ops:
        expert = op.expert
        views = dict(op.views())
        out = views.pop("out", None)
        for name, view in views.items():
            if expert is None or name != "x" or writer.get(view.buffer) != expert or op.indirect == Indirect.GATHER:
                bad.add(view.buffer)
        if out is not None:
            if expert is None or op.indirect == Indirect.SCATTER:
                bad.add(out.buffer)
            else:
                writer[out.buffer] = expert
    return set(writer) - bad
