"""Random integer graphs on maps that use every mode of a MatMul's walk, for tests of all engines."""

from __future__ import annotations

from hwgen.intgraph import Input, IntGraph, Output, View
from hwgen.isa import Border, ColScale, Convert, RowMax, RowScale
from hwgen.walks import Plane, Walk, window

from .graphs import Builder, Shape


def random_map_graph(seed: int, windows: tuple[int, int] = (2, 2), size: tuple[int, int] = (3, 2), width: int = 20) -> IntGraph:
    """`windows` of `size` rows each make the map: convolutions, shifted windows there and back, attention in a window."""
    return _Maps(seed, windows, size, width).graph()


class _Maps:
    """The map is `x`, row-major; `width` channels."""

    def __init__(self, seed: int, windows: tuple[int, int], size: tuple[int, int], width: int):
        self.b = Builder(seed, Shape(), "")
        self.rng = self.b.rng
        self.windows, self.size, self.width = windows, size, width
        self.height, self.across = windows[0] * size[0], windows[1] * size[1]
        self.rows = self.height * self.across

    def graph(self) -> IntGraph:
        b, rows, width = self.b, self.rows, self.width
        pixels, x = b.buffer("pixels", rows, 12), b.buffer("x", rows, width)
        b.result.ops.append(Input("input", pixels, "image", (3, 2 * self.height, 2 * self.across), (3, 2, 2), 0.02, 0.1))
        same = window((self.height, self.across), (3, 3), pads=(1, 1, 1, 1))
        self.matmul("stem", x, pixels, same, gelu=b.gelu(), row_max=RowMax.ABS)
        small = self.convolution("down", x)
        self.pooled("skip", x)
        self.shifted("w1.", x, Border.WRAP_Y)
        self.shifted("w2.", x, Border.WRAP_X)
        self.attention("a.", x)
        b.result.outputs.append(Output("map", x, 1 / 1024, (rows, width)))
        b.result.outputs.append(Output("down", small, 1 / 1024, (small.rows, small.cols)))
        return b.result

    def matmul(self, name: str, out: View, x: View, walk: Walk, **options) -> None:
        self.b.matmul(name, out, x, self.b.weights(out.cols, walk.count * x.cols), walk=walk, **options)

    def convolution(self, name: str, x: View) -> View:
        """Any kernel, stride and dilation; rows behind the border on every side."""
        rng, low = self.rng, (1, 1)
        kernel = tuple(int(n) for n in rng.integers(low, (4, 4)))
        stride, dilation = (tuple(int(n) for n in rng.integers(low, (3, 3))) for _ in range(2))
        pads = tuple(int(n) for n in rng.integers(0, 3, 2)) * 2
        while any(side + 2 * pad <= step * (taps - 1) for side, pad, step, taps in zip(
            (self.height, self.across), pads[:2], dilation, kernel, strict=True
        )):  # fmt: skip
            pads = tuple(pad + 1 for pad in pads)
        walk = window((self.height, self.across), kernel, stride, pads, dilation)
        out = self.b.buffer(name, walk.rows, 2 * self.width + 3)
        self.matmul(name, out, x, walk)
        return out

    def pooled(self, name: str, x: View) -> None:
        """Every second row and column, with the row's scale, rows beyond the border; a table of row multipliers; then added to
        some rows of x."""
        out = self.b.buffer(name, self.rows, self.width)
        walk = window((self.height, self.across), (1, 1), (2, 2), (1, 0, 1, 1))
        row = self.b.row_converted()
        self.matmul(f"{name}.rows", out, x, walk, row_max=RowMax.ABS, **row)
        half = self.rows // 2
        back = Walk((half,), (1,), (-2,), y_start=2 * half - 1)  # to odd rows of x, from the last one on
        count = walk.rows
        late = View(name, count, self.rows - count, 0, self.width)
        first = Walk((self.rows - count,), (1,), (1,), x_start=1)
        self.matmul(f"{name}.late", late, x, first, row_scale=RowScale.TABLE)
        self.matmul(f"{name}.back", x, out, back, residual=x)

    def shifted(self, p: str, x: View, border: Border) -> None:
        """Windows of a rolled map, row by row and window by window, and what is made of them back at its place."""
        b, (h, w) = self.b, self.size
        normed, parts = b.buffer(f"{p}norm", self.rows, self.width), b.buffer(f"{p}parts", self.rows, self.width, 2)
        b.norm(f"{p}norm", normed, x)
        u, v = int(self.rng.integers(0, h)), int(self.rng.integers(0, w))
        loops = (*self.windows, h, w)
        strides = (h * self.across, w, self.across, 1)
        dense = (h * w * self.windows[1], h * w, w, 1)
        start = u * self.across + v
        plane = Plane(self.height, self.across, border, u, v, (h, 0, 1, 0), (0, w, 0, 1))
        plain = self.rows_of(strides, dense)
        if border == Border.WRAP_X:
            there = Walk(loops, strides, dense, start, 0, plane=plane)
            back = Walk(loops, plain.y, plain.x)
        else:
            there, back = plain, Walk(loops, dense, strides, 0, start, plane=plane)
        self.matmul(f"{p}there", parts, normed, there, row_max=RowMax.ABS, **b.row_converted())
        self.matmul(f"{p}back", x, parts, back, residual=x, gelu=b.gelu(), row_max=RowMax.ABS, **b.row_converted())

    def rows_of(self, x: tuple[int, ...], y: tuple[int, ...]) -> Walk:
        return Walk((*self.windows, *self.size), x, y)

    def attention(self, p: str, x: View) -> None:
        """Two heads of one window: stationary operands in the scratchpad, maxima continued from walk to walk."""
        b, (h, w) = self.b, self.size
        count, head = h * w, self.width // 2
        q, vt = b.buffer(f"{p}q", self.rows, self.width, 2), b.buffer(f"{p}vt", self.width, count)
        o = b.buffer(f"{p}o", count, self.width, 2)
        b.matmul(f"{p}q", q, x, b.weights(self.width, self.width), row_max=RowMax.ABS, **b.row_converted())
        wv = b.buffer(f"{p}wv", self.width, self.width)
        b.constant(f"{p}wv.load", wv)
        keys = View("x", 0, count, 0, self.width)
        b.matmul(f"{p}v", vt, wv, keys, w_convert=Convert.ROW, col_scale=ColScale.ROW_SCALES)
        inside = Walk((h, w), (self.across, 1), (w, 1))
        turned = Walk((count,), (1,), (-1,), y_start=count - 1)
        for i in range(2):
            columns = (i * head, head)
            scores = b.buffer(f"{p}s{i}", count, count)
            one, k = View(q.buffer, 0, self.rows, *columns), View(q.buffer, 0, count, *columns)
            modes = {"w_convert": Convert.ROW, "col_scale": ColScale.ROW_SCALES} | b.row_converted()
            b.matmul(f"{p}s{i}", scores, one, k, target=60, row_max=RowMax.SIGNED, walk=inside, **modes)
            modes = {"x_convert": Convert.PROBABILITY, "row_scale": RowScale.CONVERTED, "col_scale": ColScale.IMMEDIATE}
            part, values = View(o.buffer, 0, count, *columns), View(vt.buffer, *columns, 0, count)
            modes |= {"row_max": RowMax.ABS, "continue_max": i > 0}
            b.matmul(f"{p}o{i}", part, scores, values, walk=turned, **modes)
        back = Walk((h, w), (w, 1), (self.across, 1), x_start=0, y_start=0)
        self.matmul(f"{p}proj", x, o, back, residual=x, **b.row_converted())

