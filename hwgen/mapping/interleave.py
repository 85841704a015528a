"""Interleaving: operations of several tiles in turns, so that the units work side by side.

Tiles come one after another from the passes that cut a network, and what is in one tile depends on what is before it there:
while the vector unit takes a tile through a depthwise convolution, the array would wait. Here the array goes on with the
next tile meanwhile, as far as there is room for it: list scheduling over the units' times, every operation as early as its
unit, its operands and the scratchpad allow, and in the order of the tiles where several could go.

Room: what is left must still fit in its old order, whatever has been taken from further behind. So what an operation opens
early must find room from now until where it stood; the schedule never comes to where nothing fits. Of buffers larger than
half a bank no two lie in one.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..intgraph import Buffer, Constant, Fetch, Input, IntGraph, MatMul, Op, Spill
from .apart import values_apart
from .depth_first import Limits
from .order import VECTOR, Timing, dependencies

REACH = 8  # operations in the old order among which the next one is looked for: more would take room far ahead of their use
LOADS = (Constant, Input, Fetch)
MOVES = (*LOADS, Spill)
Array = np.ndarray
NOTHING = np.zeros(2, np.int64)
Load = Callable[[Op, dict[str, Buffer]], float]


def interleaved(graph: IntGraph, timing: Timing, load: Load, limits: Limits) -> IntGraph:
    """`graph` with its operations in an order in which array and vector unit wait less for each other, every buffer `held`
    while its last reader is at work.

    load(op, buffers): cycles of a load or a store. limits: the room; where that is full, the old order stays.
    """
    graph = values_apart(graph)
    schedule = _Schedule(graph, timing, load, limits)
    order = schedule.order()
    return replace(graph, ops=[graph.ops[i] for i in order], held=schedule.held)


class _Schedule:
    """State of one schedule.

    `room`: chunks that live while each operation of the old order works, and buffers larger than half a bank, if all that are
    left keep it. A buffer that is loaded counts its chunks twice, so that the next one may load. `done`: the new order, and
    when each operation has finished. `held`: as in IntGraph.
    """

    def __init__(self, graph: IntGraph, timing: Timing, load: Load, limits: Limits):
        nodes = dependencies(graph)
        before, needs = [node.before for node in nodes], [node.needs for node in nodes]
        self.ops, self.before, self.needs = graph.ops, before, needs
        self.cycles = [load(op, graph.buffers) if isinstance(op, MOVES) else timing.duration(op, 0) for op in graph.ops]
        self.latency = timing.latency
        self.most = np.array([limits.banks * limits.bank_chunks, limits.banks])
        sizes = {n: limits.size(b, b.rows) for n, b in graph.buffers.items() if not b.dram}
        self.size = {n: np.array([size, 2 * size > limits.bank_chunks]) for n, size in sizes.items()}
        self.touch: list[list[str]] = [list({v.buffer for v in op.views().values()} & self.size.keys()) for op in graph.ops]
        for op in graph.ops:
            if isinstance(op, LOADS):
                self.size[op.out.buffer][0] = 2 * sizes[op.out.buffer]
        self.left: dict[str, int] = defaultdict(int)  # users that are still to come
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, names in enumerate(self.touch):
            for name in names:
                first.setdefault(name, i)
                last[name] = i
                self.left[name] += 1
        for output in graph.outputs:
            last[output.view.buffer] = len(graph.ops)
            self.left[output.view.buffer] += 1
        self.first, self.last = first, last
        self.held: dict[str, str] = {}
        self.room = np.zeros((len(graph.ops) + 1, 2), np.int64)
        for name in first:
            self.room[first[name] : last[name] + 1] += self.size[name]
        self.open: set[str] = set()
        self.free = {"array": 0.0, "vector": 0.0, "load": 0.0, "dram": 0.0}  # when a unit can take the next one
        self.begun: dict[int, float] = {}
        self.done: dict[int, float] = {}  # in the new order: when each one has finished
        self.used = np.zeros(2, np.int64)
        self.releases: list[tuple[float, str]] = []  # when a buffer's room was given back

    def order(self) -> list[int]:
        """Every operation once, each behind those in `before`; a load just before its first user."""
        count = len(self.ops)
        loads = [isinstance(op, LOADS) for op in self.ops]
        waits: list[set[int]] = []
        for b in self.before:
            waits.append({j for j in b if not loads[j]}.union(*(waits[j] for j in b if loads[j])))
        after: list[list[int]] = [[] for _ in self.ops]
        for i, b in enumerate(waits):
            for j in b:
                after[j].append(i)
        missing = [len(b) for b in waits]
        ready = {i for i in range(count) if not missing[i] and not loads[i]}
        head = 0
        while ready:
            while head in self.done or loads[head]:
                head += 1
            i, start = self._next(head, sorted(i for i in ready if i < head + REACH))
            for j in (*sorted(j for j in self.before[i] if loads[j] and j not in self.done), i):
                self._emit(j, start, head)
            ready.discard(i)
            for j in after[i]:
                missing[j] -= 1
                if not missing[j] and not loads[j]:
                    ready.add(j)
        for i in range(count):
            if i not in self.done:  # a load that nobody uses
                self._emit(i, 0.0, head)
        return list(self.done)

    def _next(self, head: int, ready: list[int]) -> tuple[int, float]:
        """Which one of those that are ready begins first, and when."""
        best, key, full, granted = head, (math.inf, head), False, 0.0
        for i in ready:
            size = self._opens(i)
            # One that waits for room holds up those behind it: they would take what it waits for.
            if size[0] and i != head and (full or self._over(self.room[head:i].max(axis=0) + size)):
                full = True
                continue
            unit = _unit(self.ops[i])
            start = max(self.free[unit], max((self._ready(j) for j in self.needs[i]), default=0.0))
            # What must only come later in order, such as the next one in the same place, begins behind it.
            start = max(start, max((self.begun[j] for j in self.before[i] if j in self.begun), default=0.0))
            if size[0]:
                granted = max(granted, self._free_from(size))
                start = max(start, granted)
            if (start, i) < key:
                best, key = i, (start, i)
        return best, key[0]

    def _ready(self, i: int) -> float:
        """When an operation has finished, or a load that is still to come will have."""
        return self.done[i] if i in self.done else self.free["load"] + self.cycles[i]

    def _opens(self, i: int) -> Array:
        """Room of what nobody has used before it."""
        return sum((self.size[name] for name in self.touch[i] if name not in self.open), NOTHING)

    def _over(self, room: Array) -> bool:
        return bool((room > self.most).any())

    def _free_from(self, size: Array) -> float:
        """When so much room is free, as those that used it have finished."""
        used = self.used + size
        for at, name in reversed(self.releases):
            used = used + self.size[name]
            if self._over(used):
                return at
        return 0.0

    def _emit(self, i: int, start: float, head: int) -> None:
        """Operation i begins at `start`, `head` being the first in the old order that is left."""
        unit = _unit(self.ops[i])
        self.begun[i] = start if unit != "load" else 0.0
        done = (self.free["load"] if unit == "load" else start) + self.cycles[i]
        self.free[unit] = done
        done += self.latency * (unit == "array")
        self.done[i] = done
        if self._opens(i)[0]:
            for at, name in reversed(self.releases):
                if at <= start:
                    break
                self.held[name] = self.ops[i].name
        for name in self.touch[i]:
            if name not in self.open:
                self.open.add(name)
                self.used = self.used + self.size[name]
                if self.first[name] > head:
                    self.room[head : self.first[name]] += self.size[name]
            self.left[name] -= 1
            if not self.left[name]:
                self.used = self.used - self.size[name]
                insort(self.releases, (done, name))
                if self.last[name] > i:  # its last user stood further in front
                    self.room[max(i, head) + 1 : self.last[name] + 1] -= self.size[name]


def _unit(op: Op) -> str:
    if isinstance(op, MatMul):
        return "array"
    if isinstance(op, LOADS):
        return "load"
    return "vector" if isinstance(op, VECTOR) else "dram"
