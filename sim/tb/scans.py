"""Random integer graphs of selective scans, for tests of all engines."""

from __future__ import annotations

import numpy as np

from hwgen.intgraph import Constant, Input, IntGraph, Output, ScanRows
from hwgen.numerics import ScanShifts

from .graphs import Builder, Shape


def random_scan_graph(seed: int, tokens: tuple[int, int] = (4, 3), width: int = 20, states: int = 4) -> IntGraph:
    """Tokens scanned from the first to the last, that again backwards, with steps, operands and rates of their own; the sum of
    both is an output, too."""
    b, (h, w) = Builder(seed, Shape(), ""), tokens
    rng, count = b.rng, h * w
    pixels, x = b.buffer("pixels", count, 12), b.buffer("x", count, width)
    b.result.ops.append(Input("input", pixels, "image", (3, 2 * h, 2 * w), (3, 2, 2), 0.02, 0.1))
    b.matmul("stem", x, pixels, b.weights(width, 12))
    for n, backwards in enumerate((False, True)):
        steps, mix = b.buffer(f"steps{n}", count, width), b.buffer(f"mix{n}", count, 2 * states)
        b.matmul(f"steps{n}", steps, x, b.weights(width, width))
        b.matmul(f"mix{n}", mix, x, b.weights(2 * states, width))
        params, y = b.buffer(f"params{n}", 1 + states, width), b.buffer(f"y{n}", count, width)
        rates = rng.integers(1 << 9, 1 << 14, (states, width))
        numbers = np.concatenate([rng.integers(-4000, 4000, (1, width)), rates]).astype(np.int16)
        b.result.ops.append(Constant(f"params{n}", params, numbers))
        shifts = ScanShifts(steps=5, step=3, fed=int(rng.integers(11, 14)), decay=int(rng.integers(1, 4)), skip=20, out=10)
        b.result.ops.append(ScanRows(f"scan{n}", y, x, steps, mix, params, shifts, backwards))
        b.result.outputs.append(Output(f"y{n}", y, 1 / 1024, (count, width)))
        x = y
    out = b.buffer("out", count, width)
    b.matmul("out", out, x, b.weights(width, width), residual=b.buffer("y0", count, width))
    b.result.outputs.append(Output("out", out, 1 / 1024, (count, width)))
    return b.result
