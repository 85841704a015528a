"""Resampling: every output is a weighted sum of a few neighbouring tokens of a map, the same for all channels, along both axes.

Maps made larger or smaller by any ratio, nearest, linear or cubic, whatever is done at their edges. Outputs of the same weights
whose tokens go on in equal steps are a span, such as every second column of a map made twice as large, or one at an edge. One
walk makes the outputs of a span of rows and a span of columns, so that the larger map is written in place, by few instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from .numerics import INT8_MAX
from .walks import Walk

Array = np.ndarray
EXACT = 64  # steps of weight one, where all weights are whole numbers of them; else as many as int8 has
EQUAL = 1e-6  # what a sum of weights may differ from one


@dataclass(frozen=True)
class Span:
    """Outputs begin, begin + step, .. of an axis, `count` of them, made of tokens from start, start + move, .. on."""

    begin: int
    step: int
    count: int
    start: int
    move: int
    weights: tuple[float, ...]

    def within(self, begin: int, end: int) -> Span | None:
        """Those of its outputs that are in begin..end-1."""
        skipped = max(0, -(-(begin - self.begin) // self.step))
        count = min(self.count, -(-(end - self.begin) // self.step)) - skipped
        if count <= 0:
            return None
        return Span(self.begin + skipped * self.step, self.step, count, self.start + skipped * self.move, self.move, self.weights)


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of so many tokens: output o is the sum over taps a of weights[o, a] times token first[o] + a.

    weights  float32 [outputs, taps], zero beyond the taps that an output has; first  int64 [outputs]
    """

    tokens: int
    weights: Array
    first: Array

    @property
    def outputs(self) -> int:
        return len(self.first)

    @property
    def moves_nothing(self) -> bool:
        """Whether outputs are the tokens as they are."""
        return np.array_equal(self.first, np.arange(self.tokens)) and np.array_equal(self.weights, np.ones((self.tokens, 1)))

    @cached_property
    def _taps(self) -> Array:
        """Of each output."""
        used = self.weights != 0
        return np.where(used.any(axis=1), self.weights.shape[1] - np.argmax(used[:, ::-1], axis=1), 1)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """All outputs, each in one."""
        kinds: dict[bytes, list[int]] = {}
        for o, taps in enumerate(self._taps):
            kinds.setdefault(self.weights[o, :taps].tobytes(), []).append(o)
        found = []
        for outputs in kinds.values():
            weights = tuple(self.weights[outputs[0], : self._taps[outputs[0]]].tolist())
            while outputs:
                at, tokens = np.array(outputs), self.first[outputs]
                alike = (np.diff(at) == np.diff(at)[:1]) & (np.diff(tokens) == np.diff(tokens)[:1])
                count = len(alike) + 1 if alike.all() else int(alike.argmin()) + 1
                step, move = (int(np.diff(a)[0]) if count > 1 else 1 for a in (at, tokens))
                found.append(Span(int(at[0]), step, count, int(tokens[0]), move, weights))
                outputs = outputs[count:]
        return tuple(found)

    @cached_property
    def reads(self) -> Array:
        """Tokens that an output is made of, the last one again where it has fewer taps than others: int64 [taps, outputs]."""
        found: Array = self.first + np.minimum(np.arange(self.weights.shape[1])[:, None], self._taps - 1)
        return found

    @cached_property
    def matrix(self) -> Array:
        """[outputs, tokens]: what makes the outputs of the tokens."""
        made = np.zeros((self.outputs, self.tokens))
        for o, (first, count) in enumerate(zip(self.first, self._taps, strict=True)):
            made[o, first : first + count] = self.weights[o, :count]
        return made


def axis_of(matrix: Array) -> Axis:
    """The axis of a matrix [outputs, tokens], from the first weight of each output to its last."""
    outputs, tokens = matrix.shape
    used = matrix != 0
    first = np.where(used.any(axis=1), used.argmax(axis=1), 0)
    end = np.where(used.any(axis=1), tokens - used[:, ::-1].argmax(axis=1), 1)
    weights = np.zeros((outputs, int((end - first).max())), np.float32)
    for o in range(outputs):
        weights[o, : end[o] - first[o]] = matrix[o, first[o] : end[o]]
    return Axis(tokens, weights, first.astype(np.int64))


def same(tokens: int) -> Axis:
    """Outputs that are the tokens."""
    return Axis(tokens, np.ones((tokens, 1), np.float32), np.arange(tokens))


@dataclass(frozen=True, eq=False)
class Resampling:
    """A map [height, width] of tokens, each axis resampled by itself."""

    down: Axis
    across: Axis

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is read."""
        return self.down.tokens, self.across.tokens

    @property
    def made(self) -> tuple[int, int]:
        """Height and width of what is made."""
        return self.down.outputs, self.across.outputs

    @property
    def taps(self) -> int:
        """Most tokens that one is made of."""
        return int(self.down.weights.shape[1] * self.across.weights.shape[1])

    @property
    def kinds(self) -> int:
        """Walks: instructions of the machine at least."""
        return len(self.down.spans) * len(self.across.spans)

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
        down, across = ({span.weights for span in axis.spans} for axis in (self.down, self.across))
        return [np.outer(a, b).reshape(-1) for a in down for b in across]

    def evaluate(self, x: Array) -> Array:
        """[height * width, C] -> [rows of the larger map, C]."""
        down, across = (axis.matrix.astype(x.dtype) for axis in (self.down, self.across))
        larger = np.einsum("uh,hwc->uwc", down, x.reshape(*self.size, -1), optimize=True)
        made: Array = np.einsum("vw,uwc->uvc", across, larger, optimize=True).reshape(-1, x.shape[1])
        return made

    def walk(self) -> Resampled:
        """All outputs in order."""
        height, width = self.made
        kernel = self.down.weights.shape[1], self.across.weights.shape[1]
        return Resampled((height, width), (0, 0), (width, 1), kernel=kernel, resampling=self)

    def integers(self, weights: Array) -> Array:
        """Weights in int8 steps; the largest of them makes up for what rounding changes of their sum."""
        made = np.rint(weights * self.steps)
        made[np.abs(weights).argmax()] += np.rint(weights.sum() * self.steps) - made.sum()
        return np.clip(made, -INT8_MAX, INT8_MAX).astype(np.int8)


@dataclass(frozen=True)
class Resampled(Walk):
    """Outputs of a resampling in order, rows of the made map from row `first` on: with every token that one is made of as a tap.

    No instruction walks so, but it says which outputs an operation makes and which tokens it reads; `by_weights` is what the
    machine walks. It is cut at rows of the made map.
    """

    resampling: Resampling | None = None
    first: int = 0

    def x_rows(self) -> Array:
        of = self._of()
        down, across = of.down.reads[:, self.first : self.first + self.loops[0]], of.across.reads
        rows: Array = self.x_start + down[:, None, :, None] * of.size[1] + across[None, :, None, :]
        return rows.reshape(self.count, -1)

    def part(self, at: tuple[int, ...], loops: tuple[int, ...]) -> Resampled:
        if len(at) != 1 or len(loops) != 2:
            raise ValueError(f"rows of a resampled map are not cut: {at}, {loops}")
        made = super().part(at, loops)
        assert isinstance(made, Resampled)
        return replace(made, first=self.first + at[0])

    def _of(self) -> Resampling:
        assert self.resampling is not None
        return self.resampling


@lru_cache(maxsize=256)
def _parts(walk: Resampled) -> list[tuple[Walk, Array]]:
    of = walk._of()
    width, wide, end = of.size[1], of.made[1], walk.first + walk.loops[0]
    found = []
    for a in (span.within(walk.first, end) for span in of.down.spans):
        for b in of.across.spans if a is not None else ():
            assert a is not None
            made = Walk(
                (a.count, b.count),
                (a.move * width, b.move),
                (a.step * wide, b.step),
                walk.x_start + a.start * width + b.start,
                walk.y_start + (a.begin - walk.first) * wide + b.begin,
                (len(a.weights), len(b.weights)),
                (width, 1),
            )
            found.append((made, of.integers(np.outer(a.weights, b.weights).reshape(-1))))
    return found


def by_weights(walk: Walk, weights: Array | None, columns: int) -> list[tuple[Walk, Array | None]]:
    """The walks of the machine, with the weights int8 [taps, columns] of each: of a resampling one for each kind of its own
    weights, else the walk itself with those given."""
    if not isinstance(walk, Resampled):
        return [(walk, weights)]
    return [(own, np.broadcast_to(w[:, None], (len(w), columns))) for own, w in _parts(walk)]
