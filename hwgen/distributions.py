"""How the values of each layer lie on the grid of 8 bits that the array reads them on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .intgraph import IntGraph, MatMul, View
from .isa import Convert
from .numerics import INT8_MAX, STATIC_SHIFT

Array = np.ndarray
BINS = 64
REACH = 160.0  # steps to either side of 0 that are drawn; what lies beyond stands in the outermost bins
STATIC, ROW, WIDE = "one step", "a step a token", "16 bits"


@dataclass(frozen=True)
class Distribution:
    """Values of one layer over all images, in steps of 8 bits.

    reading  how the array reads them: STATIC, one step for all; ROW, each row with a step of its own, its maximum / 127;
             WIDE, nothing reads them with 8 bits
    step     real value of a step: the mean over columns, tokens and images where there are several
    real, integer  counts of the float model's and golden's values in `BINS` bins of equal width from -REACH to REACH
    clipped  share of the float values that lie beyond 127 steps; `rms`: root mean square of them in steps
    """

    name: str
    reading: str
    step: float
    real: tuple[int, ...]
    integer: tuple[int, ...]
    clipped: float
    rms: float


@dataclass
class _Counts:
    reading: str
    real: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    integer: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    beyond: int = 0
    squares: float = 0.0
    steps: list[float] = field(default_factory=list)


class Watch:
    """Gathers the distributions while `compare` goes through the images."""

    def __init__(self, graph: IntGraph):
        self.graph = graph
        self._reading = {name: reading(graph, name) for name in graph.trace}
        self._found: dict[str, _Counts] = {}

    def see(self, name: str, real: Array, stored: Array) -> None:
        """One image's value: real units of the float model, and golden's int16 in the view that `trace` gives it."""
        kind = self._reading[name]
        scale = np.broadcast_to(np.asarray(step_of(self.graph, name), np.float64), stored.shape)
        values = (real - self.graph.offsets.get(name, 0.0)) / scale
        unit = np.full((len(stored), 1), 2.0**STATIC_SHIFT)
        if kind == ROW:
            unit = np.maximum(np.abs(stored.astype(np.int64)).max(axis=1, keepdims=True), 1) / INT8_MAX
        counts = self._found.setdefault(name, _Counts(kind))
        counts.real += _histogram(values / unit)
        counts.integer += _histogram(stored / unit)
        counts.beyond += int((np.abs(values / unit) > INT8_MAX + 0.5).sum())
        counts.squares += float(((values / unit) ** 2).sum())
        counts.steps.append(float(np.mean(unit * scale)))

    def found(self) -> tuple[Distribution, ...]:
        """One for each layer, in the order of the graph."""
        return tuple(
            Distribution(
                name, c.reading, float(np.mean(c.steps)), tuple(map(int, c.real)), tuple(map(int, c.integer)),
                c.beyond / int(c.real.sum()), float(np.sqrt(c.squares / c.real.sum())),
            )
            for name, c in self._found.items()
        )  # fmt: skip


def step_of(graph: IntGraph, name: str) -> float | Array:
    """Real value of an int16 step of a value that `trace` knows, broadcastable to the view that holds it."""
    view, _ = graph.trace[name]
    buffer = graph.buffers[view.buffer]
    if np.ndim(buffer.scale) == 0:
        return buffer.scale
    whole = np.broadcast_to(buffer.scale, (buffer.rows, buffer.cols))
    return whole[view.row : view.row + view.rows, view.col : view.col + view.cols]


def _histogram(steps: Array) -> Array:
    return np.histogram(np.clip(steps, -REACH, np.nextafter(REACH, 0)), BINS, (-REACH, REACH))[0]


def reading(graph: IntGraph, name: str) -> str:
    """How the array reads a value: by the products that read its view between its writing and the next."""
    view, maker = graph.trace[name]
    found: set[Convert] = set()
    start = next(i for i, op in enumerate(graph.ops) if op.name == maker)
    for op in graph.ops[start + 1 :]:
        if isinstance(op, MatMul):
            for operand, convert in ((op.x, op.x_convert), (op.w, op.w_convert)):
                if isinstance(operand, View) and operand.overlaps(view):
                    found.add(convert)
        if any(written.covers(view) for written in op.writes().values()):
            break
    return ROW if Convert.ROW in found else STATIC if Convert.STATIC in found else WIDE
