"""Resampling: a map made larger by whole numbers along both axes, nearest, linear or cubic, with its edges repeated.

Rows of the larger map take turns: output (n*i + p, m*j + q) is a weighted sum of the tokens around (i, j), with weights that are
those of the phase (p, q) for every i and j. Beyond an edge stands the map's last token, so that weights which reach there count
for that one: rows and columns at an edge have weights of their own. One walk makes all outputs of one kind of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from .numerics import INT8_MAX
from .walks import Plane, Walk

Array = np.ndarray
EXACT = 64  # steps of weight one, where all weights are whole numbers of them; else as many as int8 has
EQUAL = 1e-6  # what a sum of weights may differ from one


@dataclass(frozen=True, eq=False)
class Axis:
    """Output n*i + p is the sum over taps a of weights[p, a] times token i + first[p] + a, or the nearest one that is.

    weights  float32 [n, taps]
    """

    weights: Array
    first: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, int]:
        """(first tap of all phases, taps from there on that some phase has)."""
        low = min(self.first)
        return low, max(self.first) + self.weights.shape[1] - low

    def spans(self, tokens: int) -> list[_Span]:
        """Outputs of an axis of so many tokens by their weights, each made by tokens within it."""
        found = []
        for p, (weights, first) in enumerate(zip(self.weights, self.first, strict=True)):
            low, high = max(0, -first), min(tokens, tokens - first - len(weights) + 1)
            if low >= high:
                low = high = 0
            else:
                found.append(_Span(p, low, high, low + first, tuple(weights.tolist())))
            for i in (*range(low), *range(high, tokens)):
                at = np.clip(i + first + np.arange(len(weights)), 0, tokens - 1)
                merged = np.zeros(at[-1] - at[0] + 1)
                np.add.at(merged, at - at[0], weights)
                found.append(_Span(p, i, i + 1, int(at[0]), tuple(merged.tolist())))
        return found

    def matrix(self, tokens: int) -> Array:
        """[n * tokens, tokens]: what makes the outputs of the tokens."""
        made, count = np.zeros((len(self.first) * tokens, tokens)), len(self.first)
        for s in self.spans(tokens):
            for i in range(s.begin, s.end):
                made[i * count + s.phase, s.start + i - s.begin :][: len(s.weights)] = s.weights
        return made


@dataclass(frozen=True)
class _Span:
    """Outputs n*i + phase, i = begin..end-1, whose first taps are the tokens from `start` on."""

    phase: int
    begin: int
    end: int
    start: int
    weights: tuple[float, ...]

    def within(self, begin: int, end: int) -> _Span | None:
        first, last = max(self.begin, begin), min(self.end, end)
        return None if first >= last else _Span(self.phase, first, last, self.start + first - self.begin, self.weights)


SAME = Axis(np.ones((1, 1), np.float32), (0,))


@dataclass(frozen=True, eq=False)
class Resampling:
    """A map [height, width] of tokens made larger along both axes."""

    size: tuple[int, int]
    down: Axis
    across: Axis

    @property
    def made(self) -> tuple[int, int]:
        """Height and width of the larger map."""
        return self.size[0] * len(self.down.first), self.size[1] * len(self.across.first)

    @property
    def taps(self) -> int:
        """Most tokens that one is made of."""
        return int(self.down.weights.shape[1] * self.across.weights.shape[1])

    @property
    def kinds(self) -> int:
        """Different weights: walks, each an instruction of the machine at least."""
        return len(self.down.spans(self.size[0])) * len(self.across.spans(self.size[1]))

    @property
    def keeps_sums(self) -> bool:
        """Whether a number that is added to every token is added to every output."""
        return all(abs(w.sum() - 1) < EQUAL for w in self._weights)

    @property
    def gain(self) -> int:
        """How many times larger than the largest token a sum of integers is, at most."""
        return max(int(np.abs(self.integers(w), dtype=np.int64).sum()) for w in self._weights)

    @cached_property
    def steps(self) -> float:
        """Integer that weight one is."""
        largest = max(float(np.abs(w).max()) for w in self._weights)
        whole = largest * EXACT <= INT8_MAX and all((w * EXACT == np.rint(w * EXACT)).all() for w in self._weights)
        return EXACT if whole else INT8_MAX / largest

    @cached_property
    def _weights(self) -> list[Array]:
        """Of each kind, tap by tap."""
        down, across = (axis.spans(n) for axis, n in zip((self.down, self.across), self.size, strict=True))
        return [np.outer(a.weights, b.weights).reshape(-1) for a in down for b in across]

    def evaluate(self, x: Array) -> Array:
        """[height * width, C] -> [rows of the larger map, C]."""
        down, across = (axis.matrix(n).astype(x.dtype) for axis, n in zip((self.down, self.across), self.size, strict=True))
        larger = np.einsum("uh,hwc->uwc", down, x.reshape(*self.size, -1), optimize=True)
        made: Array = np.einsum("vw,uwc->uvc", across, larger, optimize=True).reshape(-1, x.shape[1])
        return made

    def walk(self) -> Walk:
        """All outputs in order, with every token that some output around reads as its tap. A part of it, of some rows of the map,
        says which outputs an operation makes, and which tokens it reads."""
        (height, width), n, m = self.size, len(self.down.first), len(self.across.first)
        (up, tall), (left, wide) = self.down.reach, self.across.reach
        plane = Plane(height, width, u=up, v=left, u_strides=(1, 0, 0, 0), v_strides=(0, 0, 1, 0))
        loops, y = (height, n, width, m), (n * width * m, width * m, m, 1)
        return Walk(loops, (width, 0, 1, 0), y, up * width + left, 0, (tall, wide), (width, 1), (1, 1), plane)

    def parts(self, walk: Walk) -> list[tuple[Walk, Array]]:
        """The walks that make the outputs of a part of `walk()`, with the weights int8 [taps] of each."""
        return _parts(self, walk)

    def integers(self, weights: Array) -> Array:
        """Weights in int8 steps; the largest of them makes up for what rounding changes of their sum."""
        made = np.rint(weights * self.steps)
        made[np.abs(weights).argmax()] += np.rint(weights.sum() * self.steps) - made.sum()
        return np.clip(made, -INT8_MAX, INT8_MAX).astype(np.int8)


@lru_cache(maxsize=256)
def _parts(self: Resampling, walk: Walk) -> list[tuple[Walk, Array]]:
    if walk.plane is None or len(walk.loops) != 4:
        raise ValueError(f"{walk} is no part of a map in rows")
    (_, width), n, m = self.size, len(self.down.first), len(self.across.first)
    begin = walk.plane.u - self.down.reach[0]
    x_base = walk.plane.u * width + walk.plane.v - walk.x_start
    y_base = begin * n * width * m - walk.y_start
    found = []
    rows = [span.within(begin, begin + walk.loops[0]) for span in self.down.spans(self.size[0])]
    for a in (a for a in rows if a is not None):
        for b in self.across.spans(width):
            made = Walk(
                (a.end - a.begin, b.end - b.begin),
                (width, 1),
                (n * width * m, m),
                a.start * width + b.start - x_base,
                (a.begin * n + a.phase) * width * m + b.begin * m + b.phase - y_base,
                (len(a.weights), len(b.weights)),
                (width, 1),
            )
            found.append((made, self.integers(np.outer(a.weights, b.weights).reshape(-1))))
    return found
