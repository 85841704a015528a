"""Several tasks of one image as one run, so that the weights of an expert are read once for the tokens of all of them.

Tasks of one network differ in their routers, and in what follows the last layer. What comes before the first difference is
computed once. Behind it the tasks are like the images of a batch (see `batch`), with constants of their own where they have
such: tokens of all tasks are routed by one instruction, and every expert sees one queue. Where the tasks' operations are no
longer alike, they follow task by task.

An expert's turn is the same in all tasks here, between those that it has in each of them. Only where what experts add to
reaches the ends of int16 can that change a sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..intgraph import Buffer, IntGraph, MatMul, Op, Output, RouteTokens, View
from ..isa import Indirect, RowMax
from .batch import Batch, for_all, same
from .parts import read, renamed, written
from .runs import units


def name_of(tasks: Sequence[str]) -> str:
    """The name of a run of several tasks."""
    return ",".join(tasks)


def together(graphs: dict[str, IntGraph]) -> IntGraph:
    """One graph with the outputs of every task's, for one image (ValueError for a batch).

    An output whose name several tasks have is called TASK.NAME; `trace` is left out.
    """
    if any(graph.batch != 1 for graph in graphs.values()):
        raise ValueError("tasks of a batch: join them before")
    return _Together(list(graphs), _in_turns(_with_loads(list(graphs.values())))).graph()


class _Together:
    """State of one transformation: `aligned` operations of each task in the names of the first one's buffers, then `tails`."""

    def __init__(self, tasks: list[str], graphs: list[IntGraph]):
        self.tasks, self.graphs = tasks, graphs
        aligned, self.names = _align(graphs)
        starts = _starts(graphs[0].ops)
        count = starts[len(aligned[0])] if len(aligned[0]) < len(starts) else len(aligned[0])
        self.aligned = [ops[:count] for ops in aligned]
        self.tails = [graph.ops[count:] for graph in graphs]
        self.first = self.aligned[0]
        self.known = {view.buffer for op in self.first for view in op.views().values()}
        self.tail_writes: set[str] = set()
        self.tail_maxima: set[str] = set()  # read there
        for t, tail in enumerate(self.tails):
            for op in tail:
                self.tail_writes |= self._seen(t, op.writes().values())
                self.tail_maxima |= self._seen(t, op.reads_maxima())
        self.renewed: dict[str, int] = {}  # buffer -> the operation that gives each task a copy of its own
        self.split = self._split(starts)

    def _seen(self, task: int, views: Iterable[View]) -> set[str]:
        """The buffers of aligned operations among those of a task's views."""
        names = self.names[task]
        return {names[view.buffer] for view in views if view.buffer in names} & self.known

    # --- what is computed once --------------------------------------------------------------------------------------

    def _split(self, starts: list[int]) -> int:
        """How many operations of the first are computed once for all tasks."""
        differ = (k for k, ops in enumerate(zip(*self.aligned, strict=True)) if not all(same(ops[0], op) for op in ops[1:]))
        at = next(differ, len(self.first))
        while True:
            at = starts[at] if at < len(self.first) else at
            self.renewed = {}
            writers = {view.buffer: k for k, op in enumerate(self.first[:at]) for view in op.writes().values()}
            stuck = [k for name, k in writers.items() if not self._crosses(name, at)]
            if not stuck:
                return at
            at = max(stuck)

    def _crosses(self, name: str, at: int) -> bool:
        """Whether tasks can go on with what the first `at` operations left in a buffer, from a copy that is there once.

        They only read it, or one operation writes all of it anew into copies of their own.
        """
        later = [(k, op) for k, op in enumerate(self.first[at:], at) if name in read(op) | written(op)]
        writers = [(k, op) for k, op in later if name in written(op)]
        if not writers:
            return name not in self.tail_writes and not any(for_all(op) for _, op in later)
        k, op = writers[0]
        buffer = self.graphs[0].buffers[name]
        whole = View(name, 0, buffer.rows, 0, buffer.cols)
        if for_all(op) or not any(view.covers(whole) for view in op.writes().values()):
            return False
        if op.walk is not None and len(np.unique(op.walk.y_rows())) < buffer.rows:
            return False
        if any(for_all(other) for i, other in later if i < k):
            return False
        measured = any(v.buffer == name for i, other in later if i > k for v in other.reads_maxima())
        if (measured or name in self.tail_maxima) and op.row_max == RowMax.NONE:
            return False
        self.renewed[name] = k
        return True

    # --- the graph --------------------------------------------------------------------------------------------------

    def graph(self) -> IntGraph:
        """What `together` gives."""
        apart = [self._renewed(ops) for ops in self.aligned]
        buffers = {name: b for name, b in self.graphs[0].buffers.items() if name in self.known}
        copies = {_fresh(name): replace(buffers[name], name=_fresh(name)) for name in self.renewed}
        touched = {view.buffer for op in apart[0] for view in op.views().values()}
        common = touched - {name for op in apart[0] for name in written(op)}
        later = {self._now(name) for name in self.tail_writes}
        source = IntGraph({n: b for n, b in (buffers | copies).items() if n in touched}, apart[0], [])
        self.batch = Batch(source, len(self.tasks), 1, apart, common, later)
        ops = [*self.first[: self.split], *self.batch.ops()]
        for t, tail in enumerate(self.tails):
            ops += [self._tail_op(t, op) for op in tail]
        outputs = []
        for t, graph in enumerate(self.graphs):
            outputs += [replace(o, name=self._output(t, o), view=self._view(t, o.view)) for o in graph.outputs]
        every = buffers | {b.name: b for b in self.batch.buffers()}
        for t, graph in enumerate(self.graphs):
            every |= {b.name: b for b in self._tail_buffers(t, graph)}
        used = {view.buffer for op in ops for view in op.views().values()} | {o.view.buffer for o in outputs}
        return IntGraph({n: b for n, b in every.items() if n in used}, ops, outputs, name_of(self.tasks))

    def _renewed(self, ops: list[Op]) -> list[Op]:
        """Operations behind the split, on tasks' own copies once these are there."""
        made: list[Op] = []
        for k, op in enumerate(ops[self.split :], self.split):
            writes, changes = op.writes(), dict[str, Any]()
            for name, view in op.views().items():
                at = self.renewed.get(view.buffer, len(ops))
                if k > at or (k == at and name in writes):
                    changes[name] = replace(view, buffer=_fresh(view.buffer))
            made.append(replace(op, **changes))
        return made

    def _now(self, name: str) -> str:
        """What a buffer is called at the end of the aligned operations."""
        return _fresh(name) if name in self.renewed else name

    def _view(self, task: int, view: View) -> View:
        """A view of a task's behind the aligned operations."""
        name = self.names[task].get(view.buffer)
        if name not in self.known:
            return replace(view, buffer=self._own(task, view.buffer))
        now = replace(view, buffer=self._now(name))
        return self.batch.view(now, task) if now.buffer in self.batch.source.buffers else now

    def _own(self, task: int, name: str) -> str:
        return f"{name}[{task}]"

    def _tail_op(self, task: int, op: Op) -> Op:
        changes: dict[str, Any] = {name: self._view(task, view) for name, view in op.views().items()}
        if op.expert is not None:
            changes["expert"] = self._own(task, op.expert[0]), op.expert[1]
        return replace(op, name=self._own(task, op.name), **changes)

    def _tail_buffers(self, task: int, graph: IntGraph) -> Iterator[Buffer]:
        for name, buffer in graph.buffers.items():
            if self.names[task].get(name) not in self.known:
                yield replace(buffer, name=self._own(task, name))

    def _output(self, task: int, output: Output) -> str:
        several = sum(any(o.name == output.name for o in graph.outputs) for graph in self.graphs) > 1
        return f"{self.tasks[task]}.{output.name}" if several else output.name


def _fresh(name: str) -> str:
    return f"{name}.own"


def _starts(ops: list[Op]) -> list[int]:
    """Of each operation, where the run begins that must stay together with it."""
    starts: list[int] = []
    for unit in units(ops):
        starts += [len(starts)] * len(unit)
    return starts


# --- operations that are alike -----------------------------------------------------------------------------------------


@dataclass
class _Names:
    """Buffers and routers of a task, and those of the first one that stand at the same places."""

    theirs: dict[str, str] = field(default_factory=dict)
    back: dict[str, str] = field(default_factory=dict)

    def fits(self, theirs: str, ours: str) -> bool:
        """Whether the two stand for each other, from now on at least."""
        return self.theirs.setdefault(theirs, ours) == ours and self.back.setdefault(ours, theirs) == theirs


def _align(graphs: list[IntGraph]) -> tuple[list[list[Op]], list[dict[str, str]]]:
    """Operations of every task that are alike, from the start, in the names of the first; and each task's names for these."""
    names = [_Names() for _ in graphs]
    found: list[list[Op]] = [[] for _ in graphs]
    for ops in zip(*(graph.ops for graph in graphs), strict=False):
        known = [_Names(dict(n.theirs), dict(n.back)) for n in names]
        row = [_like(ops[0], op, graphs[0], graph, n) for op, graph, n in zip(ops, graphs, known, strict=True)]
        if any(op is None for op in row):
            break
        names = known
        for made, op in zip(found, row, strict=True):
            assert op is not None
            made.append(op)
    return found, [n.theirs for n in names]


def _like(ours: Op, op: Op, first: IntGraph, graph: IntGraph, names: _Names) -> Op | None:
    """`op` in the names of the first task, where it has the views of `ours`; as a router or an expert it must be equal."""
    a, b = ours.views(), op.views()
    if type(ours) is not type(op) or a.keys() != b.keys():
        return None
    changes: dict[str, Any] = {}
    for name, view in b.items():
        x, y = first.buffers[a[name].buffer], graph.buffers[view.buffer]
        if not names.fits(y.name, x.name) or (x.rows, x.cols, x.groups, x.dram) != (y.rows, y.cols, y.groups, y.dram):
            return None
        changes[name] = replace(view, buffer=x.name)
        if changes[name] != a[name]:
            return None
    if (ours.expert is None) != (op.expert is None):
        return None
    if isinstance(op, RouteTokens) and not names.fits(f"route {op.name}", f"route {ours.name}"):
        return None
    if ours.expert is not None and op.expert is not None:
        if not names.fits(f"route {op.expert[0]}", f"route {ours.expert[0]}"):
            return None
        changes["expert"] = ours.expert[0], op.expert[1]
    if (ours.walk, ours.row_max, getattr(ours, "continue_max", None)) != (op.walk, op.row_max, getattr(op, "continue_max", None)):
        return None
    made = replace(op, **changes)
    return made if not for_all(ours) or same(ours, made) else None


# --- turns of experts -------------------------------------------------------------------------------------------------


def _with_loads(graphs: list[IntGraph]) -> list[IntGraph]:
    """The graphs with what all of their n-th routers together expect of each expert, where these are as many."""
    routers = [[(i, op) for i, op in enumerate(graph.ops) if isinstance(op, RouteTokens)] for graph in graphs]
    if len({len(found) for found in routers}) > 1:
        return graphs
    made = [list(graph.ops) for graph in graphs]
    for layer in zip(*routers, strict=True):
        if len({len(op.loads) for _, op in layer}) == 1:
            total = tuple(map(sum, zip(*(op.loads for _, op in layer), strict=True)))
            for ops, (i, op) in zip(made, layer, strict=True):
                ops[i] = replace(op, loads=total)
    return [replace(graph, ops=ops) for graph, ops in zip(graphs, made, strict=True)]


def _in_turns(graphs: list[IntGraph]) -> list[IntGraph]:
    """The graphs with the experts of their n-th routers in one order, where these are as many."""
    runs = [_runs(graph.ops) for graph in graphs]
    made = [list(graph.ops) for graph in graphs]
    for layer in zip(*runs, strict=False):
        turns = [list(groups) for _, groups in layer]
        if any(sorted(t) != sorted(turns[0]) for t in turns):
            break
        order = sorted(turns[0], key=lambda e: (sum(t.index(e) for t in turns), e))
        for ops, (first, groups) in zip(made, layer, strict=True):
            moved = _reordered(groups, order)
            ops[first : first + len(moved)] = moved
    return [replace(graph, ops=ops) for graph, ops in zip(graphs, made, strict=True)]


def _runs(ops: list[Op]) -> list[tuple[int, dict[int, list[Op]]]]:
    """Of each router: where its experts' operations begin, and these by expert; none where they do not follow each other."""
    found: list[tuple[int, dict[int, list[Op]]]] = []
    for i, op in enumerate(ops):
        if isinstance(op, RouteTokens):
            at = [k for k in range(i, len(ops)) if (e := ops[k].expert) is not None and e[0] == op.name]
            groups: dict[int, list[Op]] = {}
            turn: list[int] = []
            for k in at:
                e = ops[k].expert
                assert e is not None
                groups.setdefault(e[1], []).append(ops[k])
                turn += [e[1]] if turn[-1:] != [e[1]] else []
            joined = at == list(range(at[0], at[0] + len(at))) if at else False
            found.append((at[0] if at else i, groups if joined and turn == list(groups) else {}))
    return found


def _reordered(groups: dict[int, list[Op]], order: list[int]) -> list[Op]:
    """The experts in another order, in which they take turns with the buffers of their hidden rows as before."""
    hidden = [_hidden(group) for group in groups.values()]
    if any(len(h) != len(hidden[0]) for h in hidden):
        return [op for group in groups.values() for op in group]
    made: list[Op] = []
    for e, theirs in zip(order, hidden, strict=True):
        names = dict(zip(_hidden(groups[e]), theirs, strict=True))
        made += [renamed(op, names) for op in groups[e]]
    return made


def _hidden(group: list[Op]) -> list[str]:
    """Buffers that hold rows in the order of the expert's queue."""
    return list(dict.fromkeys(op.out.buffer for op in group if isinstance(op, MatMul) and op.indirect == Indirect.GATHER))
