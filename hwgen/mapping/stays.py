"""What stays in the scratchpad as a whole while units of operations work, and what is short beside it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .depth_first import Limits

Array = np.ndarray
Sizes = Mapping[str, int]  # of buffers


class Stays:
    """Buffers that stay, unit by unit. names: of the buffers, in which order does not matter.

    full, entries: chunks and row maxima of every buffer; spans: the first and last unit that one lives in; units: how many.
    """

    def __init__(self, names: Iterable[str], full: Sizes, entries: Sizes, spans: Mapping[str, Sequence[int]], units: int):
        self.names: list[list[str]] = [[] for _ in range(units)]
        for name in sorted(names):
            for found in self.names[spans[name][0] : spans[name][1] + 1]:
                found.append(name)
        self.sizes = [[full[name] for name in found] for found in self.names]
        self.chunks = np.array([sum(sizes) for sizes in self.sizes], np.int64)
        self.largest = np.array([max(sizes, default=0) for sizes in self.sizes], np.int64)
        self.entries = np.array([sum(entries[name] for name in found) for found in self.names], np.int64)
        self.turns = [u for u in range(1, units) if self.names[u] != self.names[u - 1]]  # where others stay than before

    def held(self, u: int) -> tuple[int, int]:
        """Chunks and row maxima of what stays while a unit works."""
        return int(self.chunks[u]), int(self.entries[u])

    def changes(self, first: int, end: int) -> list[int]:
        """Units behind the first of first..end-1 where others stay than in the unit before."""
        return self.turns[bisect_right(self.turns, first) : bisect_right(self.turns, end - 1)]

    def short(self, first: int, end: int, limits: Limits, places: Array, exact: bool = True) -> int:
        """Chunks, or row maxima, that are short where most are, while units first..end-1 work.

        places: int64 [n, 5]: a place's first and last unit, its chunks, how many such it has, and the row maxima of all.
        exact: else any positive number stands for what is short.
        """
        begins, lasts, chunks, copies, maxima = places.T
        at = np.array(sorted({first, *self.changes(first, end), *begins.tolist()}))
        live = (begins <= at[:, None]) & (at[:, None] <= lasts)
        rows = self.entries[at] + live @ maxima
        total = self.chunks[at] + live @ (chunks * copies)
        largest = np.maximum(self.largest[at], (live * chunks).max(axis=1, initial=0))
        most = max(0, int(rows.max()) - limits.scales)
        if not exact and (most or (total > limits.banks * limits.bank_chunks).any()):
            return 1
        for i in np.flatnonzero(~limits.surely(total, largest)):
            found = np.flatnonzero(live[i])
            most = max(most, limits.over(self.sizes[at[i]] + np.repeat(chunks[found], copies[found]).tolist()))
        return most
