"""The clock of the cycle model: actions at points in time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Clock:
    """Actions in order of their time, those of one time in the order they were asked for. Cycles are floats."""

    def __init__(self):
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._order = count()

    def at(self, time: float, action: Action) -> None:
        """Do `action` at `time`, or now if that is past."""
        heapq.heappush(self._events, (time if time > self.now else self.now, next(self._order), action))

    def run(self) -> None:
        """Until nothing is left to do."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
