"""Random integer graphs of windowed reductions in every mode, for tests of all engines."""

from __future__ import annotations

import numpy as np

from hwgen import numerics as num
from hwgen.intgraph import Input, IntGraph, Output, ReduceWindow, View
from hwgen.isa import WINDOW_TAPS, Border, Reduce, RowMax
from hwgen.walks import Plane, Walk, window

from .graphs import TYPICAL, Builder, Shape


def random_window_graph(seed: int, size: tuple[int, int] = (6, 4), width: int = 20, groups: int = 1) -> IntGraph:
    """A map of `size` with `width` columns in `groups` through depthwise convolution, pooling and copies, products between."""
    return _Windows(seed, size, width, groups).graph()


class _Windows:
    def __init__(self, seed: int, size: tuple[int, int], width: int, groups: int):
        self.b = Builder(seed, Shape(), "")
        self.rng, self.size, self.width, self.groups = self.b.rng, size, width, groups

    def graph(self) -> IntGraph:
        b, (h, w) = self.b, self.size
        pixels, x = b.buffer("pixels", h * w, 12), self.map("x", h * w)
        b.result.ops.append(Input("input", pixels, "image", (3, 2 * h, 2 * w), (3, 2, 2), 0.02, 0.1))
        b.matmul("stem", x, pixels, b.weights(self.width, 12))
        mixed = self.map("mixed", h * w)
        self.convolution("dw", mixed, x, window(self.size, (3, 3), pads=(1, 1, 1, 1)))
        b.matmul("point", x, mixed, b.weights(self.width, self.width), residual=x, **b.row_converted())
        self.any_window("any", x)
        parts = self.shifted("parts", x)
        self.back("back", x, parts)
        larger = self.map("larger", 4 * h * w)
        nearest = Walk((h, 2, w, 2), (w, 0, 1, 0), (4 * w, 2 * w, 2, 1))
        self.reduce("larger", larger, x, nearest, row_max=RowMax.ABS)
        if self.groups == 1:
            wide = self.merged("merged", x)
            b.result.outputs.append(Output("merged", wide, 1 / 1024, (wide.rows, wide.cols)))
        mean = self.map("mean", 1)
        self.reduce("mean", mean, x, window(self.size, self.size), before=2, shift=16, scale=True)
        logits = b.buffer("logits", 1, 7)
        b.matmul("head", logits, mean, b.weights(7, self.width))
        b.result.outputs.append(Output("logits", logits, 1 / 512, (7,)))
        b.result.outputs.append(Output("larger", larger, 1 / 1024, (4 * h * w, self.width)))
        b.result.outputs.append(Output("map", x, 1 / 1024, (h * w, self.width)))
        return b.result

    def map(self, name: str, rows: int) -> View:
        return self.b.buffer(name, rows, self.width, self.groups)

    def reduce(self, name: str, out: View, x: View, walk: Walk, scale: bool = False, **options) -> None:
        """One reduction; `scale`: with multipliers and biases of its columns, else numbers stay as they are."""
        columns = x.cols
        mult = self.rng.integers(1 << 13, 1 << 16, columns) if scale else np.full(columns, num.WINDOW_ONE)
        bias = self.rng.integers(-TYPICAL // 2, TYPICAL // 2, columns) if scale else np.zeros(columns)
        fields = (mult.astype(np.uint16), bias.astype(np.int16))
        self.b.result.ops.append(ReduceWindow(name, out, x, walk, *fields, **options))

    def convolution(self, name: str, out: View, x: View, walk: Walk) -> None:
        weights = self.rng.integers(-num.INT8_MAX, num.INT8_MAX + 1, (walk.count, x.cols)).astype(np.int8)
        before = int(self.rng.integers(0, 6))
        shift = int(np.clip(np.round(np.log2(73 * walk.count**0.5 * (1 << 15))) - before, 0, num.WINDOW_SHIFT_MAX))
        gelu = self.b.gelu() if self.b.coin() else None
        modes = {"weights": weights, "before": before, "shift": shift, "gelu": gelu, "row_max": RowMax.ABS}
        self.reduce(name, out, x, walk, True, reduce=Reduce.WEIGHTED, **modes)

    def any_window(self, name: str, x: View) -> None:
        """Each kind of reduction by any kernel, stride and dilation with rows beyond the border, then into x again."""
        rng = self.rng
        for reduce in Reduce:
            kernel, stride, dilation = (tuple(int(n) for n in rng.integers(1, 4, 2)) for _ in range(3))
            pads = tuple(int(d * (k - 1)) // 2 for d, k in zip(dilation, kernel, strict=True)) * 2
            walk = window(self.size, kernel, stride, pads, dilation)
            assert walk.count <= WINDOW_TAPS
            out = self.map(f"{name}.{reduce.name.lower()}", walk.rows)
            if reduce == Reduce.WEIGHTED:
                self.convolution(f"{name}.weighted", out, x, walk)
            elif reduce == Reduce.MAX:
                self.reduce(f"{name}.max", out, x, walk, reduce=reduce, row_max=RowMax.ABS)
            else:
                self.reduce(f"{name}.sum", out, x, walk, True, before=int(rng.integers(0, 4)), shift=17)
            # Rows of x that are not these stay as they are.
            rows = Walk((out.rows,), (1,), (-1,), y_start=out.rows - 1)
            self.b.matmul(f"{name}.{reduce.name.lower()}.back", View("x", 0, out.rows, 0, self.width), out,
                          self.b.weights(self.width, self.width), walk=rows)  # fmt: skip

    def shifted(self, name: str, x: View) -> View:
        """Windows of two rows by two of a rolled map."""
        h, w = self.size
        out = self.map(name, h * w)
        u, v = (int(n) for n in self.rng.integers(0, 2, 2))
        plane = Plane(h, w, Border.WRAP_X, u, v, (2, 0, 1, 0), (0, 2, 0, 1))
        loops = (h // 2, w // 2, 2, 2)
        self.reduce(name, out, x, Walk(loops, (2 * w, 2, w, 1), (2 * w, 4, 2, 1), u * w + v, plane=plane))
        return out

    def back(self, name: str, x: View, parts: View) -> None:
        """The windows back to their places in the map, moved on by a row and a column."""
        h, w = self.size
        plane = Plane(h, w, Border.WRAP_Y, 1, 1, (2, 0, 1, 0), (0, 2, 0, 1))
        walk = Walk((h // 2, w // 2, 2, 2), (2 * w, 4, 2, 1), (2 * w, 2, w, 1), 0, w + 1, plane=plane)
        self.reduce(name, x, parts, walk, row_max=RowMax.ABS)

    def merged(self, name: str, x: View) -> View:
        """Every second row of a map into the columns of a wider buffer, side by side."""
        h, w = self.size
        wide = self.b.buffer(name, h * w // 4, 4 * self.width, 4)
        for i, (u, v) in enumerate(np.ndindex(2, 2)):
            walk = Walk((h // 2, w // 2), (2 * w, 2), (w // 2, 1), u * w + v)
            self.reduce(f"{name}.{i}", View(name, 0, wide.rows, i * self.width, self.width), x, walk)
        return wide
