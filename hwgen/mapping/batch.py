"""Several images in one program, so that the weights of an expert are read once for all of them.

What works on tokens one by one does not care whose tokens they are. So the tokens of all images are routed together,
and every expert sees one queue with the tokens of the whole batch. Everything else runs in groups of images: a linear
layer once for the group, whose images lie one below the other, attention image by image. The network is cut into stages
behind every LayerNorm and every product of rows, and all groups pass a stage before the first enters the next one: while
the vector unit normalises an image, the array works on another. Routing makes all of them wait, and so do the first LayerNorm
behind the experts and the outputs at the end; halves of a batch that take turns hide these from the array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise, zip_longest
from typing import Any

import numpy as np

from ..intgraph import (
    Buffer,
    Constant,
    Input,
    IntGraph,
    MatMul,
    Multiply,
    Norm,
    Op,
    ReduceWindow,
    RouteTokens,
    ScanRows,
    SelectRows,
    View,
)
from ..isa import WALK_LOOPS, Indirect, RowScale
from ..resampling import Resampled
from .parts import renamed
from .runs import chains
from .tables import tables_once

BESIDE = (Norm, Multiply, ReduceWindow, SelectRows, ScanRows)  # what the vector unit does while the array works
CUTS = 0.4, 0.6  # of what lies in front of a router: pieces of it, where the halves of a batch take turns
BEHIND = 2  # pieces that the second half of a batch is behind the first, of five for a layer of experts and what lies in front
Run = list[list[Op]]  # stages that all are for the images that are routed together, or all for groups of them


def batched(
    graph: IntGraph, images: int, group: int = 1, shared_hidden: bool = False, staggered: bool = False, halved: bool = False
) -> IntGraph:
    """`graph` for a batch of `images`, in groups of `group` images (a divisor, else ValueError).

    shared_hidden: the experts of a layer share one buffer for their hidden rows instead of taking turns with several.
    staggered: every group is a stage ahead of the next one, so that the array has work while the next images are loaded.
    halved: the tokens of each half of the images are routed by themselves (groups must divide a half), see `Batch`; tables that
    results are added to are loaded once (elsewhere that saved nothing).
    Output views and inputs carry the index of their image; `trace` is left out.
    """
    if images % group:
        raise ValueError(f"groups of {group} do not divide a batch of {images}")
    if halved and images % (2 * group):
        raise ValueError(f"groups of {group} do not divide half a batch of {images}")
    if shared_hidden:
        graph = _share_hidden(graph)
    if halved:
        graph = tables_once(graph)
    return graph if images == 1 else Batch(graph, images, group, staggered=staggered, halved=halved).graph()


@dataclass(frozen=True)
class _Scope:
    """Some images of the batch in a row, whose rows an operation covers: first, first + 1, ... first + count - 1."""

    first: int
    count: int

    @property
    def suffix(self) -> str:
        last = self.first + self.count - 1
        return f"[{self.first}]" if self.count == 1 else f"[{self.first}-{last}]"


class Batch:
    """State of one transformation.

    `shared`: buffers with one copy for all images, constants that nothing else writes. `tall`: those with the rows of all
    images, which routers and experts touch. Every other buffer has a copy for each group.

    halved: a tall buffer has the rows of half the images, and an expert's weights are read once for each half. The halves are
    half a layer of experts apart: array and vector unit have the attention of one to do before the tokens of the other are
    routed, and again behind its experts.

    own: operations of each image in place of the graph's, where images are of several tasks (`together`): other constants on
    equal views, and equal routers and experts. common: buffers that all of them only read. apart: that cannot be shared.
    """

    def __init__(
        self,
        graph: IntGraph,
        images: int,
        group: int,
        own: Sequence[Sequence[Op]] = (),
        common: Set[str] = frozenset(),
        apart: Set[str] = frozenset(),
        staggered: bool = False,
        halved: bool = False,
    ):
        self.source, self.images, self.group, self.staggered = graph, images, group, staggered
        self.routed = images // 2 if halved else images  # images whose tokens are routed together
        self.own = {id(op): ops for op, *ops in zip(graph.ops, *own, strict=True)} if own else {}
        writers: dict[str, list[Op]] = {}
        for op in graph.ops:
            for view in op.writes().values():
                writers.setdefault(view.buffer, []).append(op)
        outputs = {output.view.buffer for output in graph.outputs}
        self.shared = {
            name
            for name, ops in writers.items()
            if len(ops) == 1 and isinstance(ops[0], Constant) and name not in outputs | apart and self._alike(ops[0])
        } | common
        self.tall: set[str] = set()
        for op in graph.ops:
            if for_all(op):
                self.tall |= {view.buffer for view in op.views().values()}

    def graph(self) -> IntGraph:
        ops = list(self.ops())
        outputs = [
            replace(o, view=self.view(o.view, image), index=image)
            for image in range(self.images)
            for o in self.source.outputs
        ]
        used = {view.buffer for op in ops for view in op.views().values()} | {output.view.buffer for output in outputs}
        buffers = {b.name: b for b in self.buffers() if b.name in used}
        return IntGraph(buffers, ops, outputs, self.source.task, batch=self.images)

    def buffers(self) -> Iterator[Buffer]:
        """Every buffer of the batch."""
        for buffer in self.source.buffers.values():
            if buffer.name in self.shared:
                yield buffer
            elif buffer.name in self.tall:
                for first in range(0, self.images, self.routed):
                    yield _stacked(buffer, self._tall(buffer.name, first), self.routed)
            else:
                for first in range(0, self.images, self.group):
                    yield _stacked(buffer, self._copy(buffer.name, first), self.group)

    def _copy(self, name: str, image: int) -> str:
        """The name of a buffer that belongs to the group of an image."""
        return f"{name}@{image // self.group}"

    def _tall(self, name: str, image: int) -> str:
        """The name of a buffer with the rows of all images that are routed with this one."""
        return name if self.routed == self.images else f"{name}@{image // self.routed}"

    # --- operations ---------------------------------------------------------------------------------------------

    def ops(self) -> Iterator[Op]:
        """The operations of the batch, in order."""
        sections = _sections(self.source)
        halves: list[list[list[Op]]] = []
        for first in range(0, self.images, self.routed):
            halves.append(_pieces([self._section(section, first) for section in sections]))
        # Those of the second half come two behind those of the first.
        late = [*[[]] * BEHIND, *halves[-1]] if len(halves) > 1 else []
        for piece, other in zip_longest(halves[0], late, fillvalue=()):
            yield from piece
            yield from other

    def _section(self, section: list[Run], first: int) -> list[list[Op]]:
        """The operations of a section for the images that are routed with image `first`, group by group."""
        groups = range(first, first + self.routed, self.group)
        parts: list[list[Op]] = []
        for run in section:
            if for_all(run[0][0]):
                scope = _Scope(first, self.routed)
                suffix = "" if self.routed == self.images else scope.suffix
                parts.append([self._op(op, scope, suffix) for stage in run for op in stage])
                continue
            lag = int(self.staggered)
            for _, k, stage in sorted((stage + lag * k, k, stage) for stage in range(len(run)) for k in range(len(groups))):
                shared = [] if k or first else [op for op in run[stage] if self._is_shared(op)]
                own = [op for op in run[stage] if not self._is_shared(op)]
                parts.append([*shared, *self._group(own, groups[k])])
        return parts

    def _group(self, ops: list[Op], first: int) -> Iterator[Op]:
        """The operations of a stage for one group: operation by operation, a chain of row maxima image by image."""
        for chain in chains(ops):
            if len(chain) == 1 and self._merges(chain[0]):
                scope = _Scope(first, self.group)
                yield self._op(chain[0], scope, scope.suffix)
                continue
            for image in range(first, first + self.group):
                scope = _Scope(image, 1)
                for op in chain:
                    yield self._op(op, scope, scope.suffix)

    def _is_shared(self, op: Op) -> bool:
        return isinstance(op, Constant) and op.out.buffer in self.shared

    def _alike(self, op: Op) -> bool:
        """Whether all images have the same operation there."""
        return all(same(op, other) for other in self.own.get(id(op), ()))

    def _merges(self, op: Op) -> bool:
        """Whether one operation can do the rows of a whole group: they must lie without a gap in all its buffers."""
        if not isinstance(op, (MatMul, ReduceWindow)) or op.stationary() is not None or not self._alike(op):
            return False
        if op.walk is not None and (len(op.walk.loops) == WALK_LOOPS or isinstance(op.walk, Resampled)):  # it takes one more
            return False
        return all(
            view.buffer not in self.shared and view.row == 0 and view.rows == self.source.buffers[view.buffer].rows
            for view in op.views().values()
        )

    def _op(self, op: Op, scope: _Scope, suffix: str) -> Op:
        if scope.count == 1 and self.own:
            op = self.own[id(op)][scope.first]
        changes: dict[str, Any] = {name: self._view(view, scope) for name, view in op.views().items()}
        if isinstance(op, MatMul) and op.row_scale == RowScale.TABLE:
            table = np.broadcast_to(np.asarray(op.row_mult), op.x.rows)
            changes["row_mult"] = np.tile(table, changes["x"].rows // op.x.rows)
        if isinstance(op, (MatMul, ReduceWindow)) and op.walk is not None and scope.count > 1:
            changes["walk"] = op.walk.repeated(scope.count, op.x.rows, op.out.rows)
        if isinstance(op, Input) and not self.own:
            changes["index"] = scope.first
        if isinstance(op, MatMul) and op.expert is not None:
            changes["expert"] = (op.expert[0] + suffix, op.expert[1])
        return replace(op, name=op.name + suffix, **changes)

    def view(self, view: View, image: int) -> View:
        """Where the rows of an image lie."""
        return self._view(view, _Scope(image, 1))

    def _view(self, view: View, scope: _Scope) -> View:
        """The rows of these images; views of whole buffers only where there are several."""
        if view.buffer in self.shared:
            return view
        rows = self.source.buffers[view.buffer].rows
        if view.buffer in self.tall:
            buffer, first = self._tall(view.buffer, scope.first), scope.first % self.routed
        else:
            buffer, first = self._copy(view.buffer, scope.first), scope.first % self.group
        if scope.count > 1 and (view.row or view.rows != rows):
            raise ValueError(f"{view} of {scope.count} images: their rows have gaps")
        return View(buffer, first * rows + view.row, (scope.count - 1) * rows + view.rows, view.col, view.cols)


def _stacked(buffer: Buffer, name: str, copies: int) -> Buffer:
    scale = buffer.scale
    if isinstance(scale, np.ndarray) and scale.ndim == 2 and scale.shape[0] == buffer.rows:
        scale = np.tile(scale, (copies, 1))
    return replace(buffer, name=name, rows=copies * buffer.rows, scale=scale)


def same(a: Op, b: Op) -> bool:
    """Whether two operations are equal but for their names."""
    if a is b:
        return True
    names = [f.name for f in fields(a) if f.name not in ("name", "source")]
    return type(a) is type(b) and all(_equal(getattr(a, name), getattr(b, name)) for name in names)


def _equal(x: Any, y: Any) -> bool:
    return np.array_equal(x, y) if isinstance(x, np.ndarray) or isinstance(y, np.ndarray) else bool(x == y)


def for_all(op: Op) -> bool:
    """Routers and experts work on the tokens of all images at once."""
    return isinstance(op, RouteTokens) or (isinstance(op, MatMul) and op.expert is not None)


def _stages(graph: IntGraph) -> Iterator[list[Op]]:
    """Runs of operations that all are for the whole batch or all for groups, the latter cut behind what the vector
    unit does: every LayerNorm, every product of rows, every window."""
    stage: list[Op] = []
    for op in graph.ops:
        beside = stage and isinstance(stage[-1], BESIDE) and not isinstance(op, BESIDE)
        if stage and (beside or for_all(op) != for_all(stage[-1])):
            yield stage
            stage = []
        stage.append(op)
    if stage:
        yield stage


def _sections(graph: IntGraph) -> list[list[Run]]:
    """Runs of stages of the graph: what lies in front of a router, from there to the last of its experts, and so on in turns."""
    runs = [list(stages) for _, stages in groupby(_stages(graph), key=lambda stage: for_all(stage[0]))]
    routers = [i for i, run in enumerate(runs) if isinstance(run[0][0], RouteTokens)]
    sections, begin = [], 0
    for first, following in pairwise([*routers, len(runs)]):
        end = 1 + max(i for i in range(first, following) if for_all(runs[i][0][0]))
        sections += [runs[begin:first], runs[first:end]]
        begin = end
    return [*sections, runs[begin:]]


def _pieces(sections: list[list[list[Op]]]) -> list[list[Op]]:
    """Half of a batch in the pieces in which it takes turns with the other half: what lies in front of a router in four, of which
    the last reads what the one before has made with the vector unit, experts as one. What the vector unit does first in a
    section stands behind the piece before, or it would wait for the other half's."""
    pieces: list[list[list[Op]]] = []
    for k, section in enumerate(sections):
        first = 1 if k else 0
        if first:
            pieces[-1].extend(section[:first])
        count = len(section) - first
        ends = [count] if k % 2 else [*(int(count * share) for share in CUTS), max(count - 1, 0), count]
        pieces += [section[first + begin : first + end] for begin, end in pairwise([0, *ends])]
    return [[op for part in piece for op in part] for piece in pieces]


def _share_hidden(graph: IntGraph) -> IntGraph:
    """Each route's equal buffers of queue rows become one: an expert's hidden rows are dead when the next one begins."""
    first: dict[tuple[Any, ...], str] = {}
    names: dict[str, str] = {}
    for op in graph.ops:
        if isinstance(op, MatMul) and op.expert is not None and op.indirect == Indirect.GATHER:
            b = graph.buffers[op.out.buffer]
            names[b.name] = first.setdefault((op.expert[0], b.rows, b.cols, b.groups), b.name)
    # A buffer that other operations read than those of its own expert must stay.
    writer: dict[str, tuple[str, int] | None] = {}
    for op in graph.ops:
        for view in op.views().values():
            if view.buffer not in names:
                continue
            if op.indirect == Indirect.GATHER and view is op.writes()["out"]:
                writer[view.buffer] = op.expert
            elif op.expert is None or writer.get(view.buffer) != op.expert:
                names.pop(view.buffer)
    names = {old: new for old, new in names.items() if new in names}
    return replace(graph, ops=[renamed(op, names) for op in graph.ops])
