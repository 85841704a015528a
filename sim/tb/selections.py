"""Random integer graphs of tokens that are kept by their scores, for tests of all engines."""

from __future__ import annotations

import numpy as np

from hwgen.intgraph import Input, IntGraph, Output, SelectRows, View

from .graphs import Builder, Shape


def random_selection_graph(seed: int, tokens: tuple[int, int] = (5, 4), width: int = 24, groups: int = 1) -> IntGraph:
    """Tokens of `width` columns in `groups`: some chosen by a column of scores that often tie, of these some by a row of
    scores, the rest of both in order, all rows, and one."""
    b, (h, w) = Builder(seed, Shape(), ""), tokens
    rng, count = b.rng, h * w
    pixels, x = b.buffer("pixels", count, 12), b.buffer("x", count, width, groups)
    b.result.ops.append(Input("input", pixels, "image", (3, 2 * h, 2 * w), (3, 2, 2), 0.02, 0.1))
    b.matmul("stem", x, pixels, b.weights(width, 12))

    def chosen(name: str, x: View, scores: View, rows: int, first: int = 0) -> View:
        out = b.buffer(name, rows, width, groups)
        b.result.ops.append(SelectRows(name, out, x, scores, first))
        b.result.outputs.append(Output(name, out, 1 / 1024, (rows, width)))
        return out

    scores = b.buffer("scores", count, 1)
    b.matmul("scores", scores, x, b.weights(1, width), target=2.0)
    kept = int(rng.integers(2, count))
    y = chosen("kept", x, scores, kept)
    chosen("dropped", x, scores, count - kept, kept)
    best = chosen("best", y, View("scores", 0, kept, 0, 1), 1)
    mixed = b.buffer("mixed", kept, width, groups)
    b.matmul("mixed", mixed, y, b.weights(width, width), residual=y)
    row, y = b.buffer("row", 1, kept), mixed
    b.matmul("row", row, best, b.weights(kept, width))
    chosen("again", y, row, kept)
    chosen("worst", y, row, 1, kept - 1)
    tokens_of = View(x.buffer, 1, count - 1, 0, width)  # a run of rows, of scores as many
    chosen("inner", tokens_of, View("scores", 1, count - 1, 0, 1), int(rng.integers(1, count - 1)))
    return b.result


def tied(scores: np.ndarray) -> bool:
    """Whether some scores are equal."""
    return len(np.unique(scores)) < scores.size
