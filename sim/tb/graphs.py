"""Random integer graphs in the shape of a small ViT that use every mode of every operation, for tests of all engines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwgen import numerics as num
from hwgen.intgraph import Buffer, Constant, Input, IntGraph, MatMul, Multiply, Norm, Output, RouteTokens, View
from hwgen.isa import ColScale, Convert, Indirect, RowMax, RowScale

Array = np.ndarray

TYPICAL = 4000  # standard deviation that buffers are scaled to, in int16 steps


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. `favour`: expert that every token chooses first, or -1; `shun`: one that none chooses, or -1."""

    patches: tuple[int, int] = (3, 3)
    patch: tuple[int, int] = (2, 2)
    channels: int = 3
    heads: int = 2
    head: int = 12
    layers: int = 2
    hidden: int = 40
    experts: int = 4
    top_k: int = 2
    favour: int = -1
    shun: int = -1
    classes: int = 10

    @property
    def tokens(self) -> int:
        return self.patches[0] * self.patches[1] + 1

    @property
    def width(self) -> int:
        return self.heads * self.head


def random_graph(seed: int, shape: Shape | None = None, task: str = "") -> IntGraph:
    """A graph whose even layers are dense and whose odd layers have experts; modes, weights and scales are drawn."""
    return Builder(seed, shape or Shape(), task).graph()


def random_images(graph: IntGraph, seed: int) -> dict[str, Array]:
    """float32 images [C, H, W] by input name."""
    rng = np.random.default_rng(seed)
    return {op.image: rng.normal(size=op.shape).astype(np.float32) for op in graph.ops if isinstance(op, Input)}


class Builder:
    """The graph so far, and what random operations are made of."""

    def __init__(self, seed: int, shape: Shape, task: str):
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.result = IntGraph({}, [], [], task)

    def buffer(self, name: str, rows: int, cols: int, groups: int = 1) -> View:
        """The view of a whole new buffer; an existing one of this name is used again."""
        self.result.buffers.setdefault(name, Buffer(name, rows, cols, groups))
        return View(name, 0, rows, 0, cols)

    def coin(self) -> bool:
        return bool(self.rng.integers(2))

    def weights(self, n: int, k: int) -> Array:
        return self.rng.integers(-num.INT8_MAX, num.INT8_MAX + 1, (n, k)).astype(np.int8)

    def matmul(self, name: str, out: View, x: View, w: Array | View, target: float = TYPICAL, **options) -> None:
        """Adds a product whose multipliers bring its result to about `target`."""
        convert = options.get("x_convert", Convert.STATIC)
        k = x.cols * (walk.count if (walk := options.get("walk")) else 1)
        spread = {Convert.STATIC: TYPICAL / 256, Convert.ROW: 40.0, Convert.PROBABILITY: 30.0}[convert]
        stationary = 73.0 if not isinstance(w, View) else 40.0 if options.get("w_convert") == Convert.ROW else TYPICAL / 256
        size = np.sqrt(k) * spread * stationary
        source = options.setdefault("col_scale", ColScale.PARAMETERS)
        if source == ColScale.PARAMETERS:
            options["col_mult"] = self.rng.integers(1 << 14, 1 << 16, out.cols).astype(np.uint16)
            options["bias"] = self.rng.integers(-TYPICAL // 2, TYPICAL // 2, out.cols).astype(np.int16)
            size *= 0.6
        elif source == ColScale.IMMEDIATE:
            options["col_mult"] = int(self.rng.integers(1 << 14, 1 << 16))
            size *= options["col_mult"] / 65536
        else:
            size *= 0.2
        row = options.setdefault("row_scale", RowScale.IMMEDIATE)
        multiplier = 1 << 14
        if row == RowScale.IMMEDIATE:
            options["row_mult"] = int(self.rng.integers(1 << 13, 1 << 15))
        elif row == RowScale.TABLE:
            options["row_mult"] = self.rng.integers(1 << 13, 1 << 15, x.rows).astype(np.uint16)
        shift = int(np.clip(np.round(np.log2(size * multiplier / target)), num.SHIFT_MIN, num.SHIFT_MAX))
        self.result.ops.append(MatMul(name, out, x, w, shift=shift, **options))

    def norm(self, name: str, out: View, x: View) -> None:
        gamma = self.rng.integers(TYPICAL // 2, TYPICAL * 2, x.cols).astype(np.int16)
        beta = self.rng.integers(-TYPICAL, TYPICAL, x.cols).astype(np.int16)
        self.result.ops.append(Norm(name, out, x, gamma, beta, int(self.rng.integers(1, 1 << 20))))

    def constant(self, name: str, out: View) -> None:
        """Rows that are made into stationary weights."""
        self.result.ops.append(Constant(name, out, self.weights(out.rows, out.cols).astype(np.int16) * 256))

    def row_converted(self) -> dict:
        return {"x_convert": Convert.ROW, "row_scale": RowScale.CONVERTED}

    def graph(self) -> IntGraph:
        s, ops = self.shape, self.result.ops
        columns = s.channels * s.patch[0] * s.patch[1]
        x = self.buffer("x", s.tokens, s.width)
        patches = self.buffer("patches", s.tokens - 1, columns)
        start = self.rng.normal(0, TYPICAL, (s.tokens, s.width)).astype(np.int16)
        image = (s.channels, s.patches[0] * s.patch[0], s.patches[1] * s.patch[1])
        ops.append(Input("input", patches, "image", image, (s.channels, *s.patch), 0.02, 0.1))
        ops.append(Constant("position", x, start))
        tokens = View("x", 1, s.tokens - 1, 0, s.width)
        self.matmul("embed", tokens, patches, self.weights(s.width, columns), residual=tokens)
        for layer in range(s.layers):
            self.attention(f"l{layer}.", x)
            if layer % 2:
                self.experts(f"l{layer}.", x)
            else:
                self.mlp(f"l{layer}.", x)
        self.norm("final", self.buffer("final", 1, s.width), View("x", 0, 1, 0, s.width))
        logits = self.buffer("logits", 1, s.classes)
        final = self.buffer("final", 1, s.width)
        self.matmul("head", logits, final, self.weights(s.classes, s.width), **self.row_converted())
        self.result.outputs.append(Output("logits", logits, 1 / 512, (s.classes,)))
        self.result.outputs.append(Output("tokens", x, 1 / 1024, (s.tokens, s.width)))
        return self.result

    def attention(self, p: str, x: View) -> None:
        s, t, d = self.shape, self.shape.tokens, self.shape.width
        reuse = "" if self.coin() else p  # buffers of all layers under one name, or each its own
        h = self.buffer(f"{reuse}h", t, d)
        self.norm(f"{p}norm1", h, x)
        by_row = self.coin()
        turned = self.coin() and s.head % 2 == 0
        if turned:
            angles = self.buffer(f"{p}angles", t, s.head)
            data = self.rng.integers(-num.TURN_ONE, num.TURN_ONE + 1, (t, s.head)).astype(np.int16)
            self.result.ops.append(Constant(f"{p}angles.load", angles, data))
        for name in "qk":
            out = self.buffer(f"{reuse}{name}", t, d, s.heads)
            row_max = RowMax.ABS if by_row else RowMax.NONE
            self.matmul(f"{p}{name}", out, h, self.weights(d, d), row_max=row_max, **self.row_converted())
            if turned:
                # In place, by angles of each token's own.
                op = Multiply(f"{p}{name}.turned", out, out, angles, pairs=True, row_max=row_max)
                self.result.ops.append(op)
        wv = self.buffer(f"{p}wv", d, d)
        vt = self.buffer(f"{reuse}vt", d, t)
        self.constant(f"{p}wv.load", wv)
        self.matmul(
            f"{p}v",
            vt,
            wv,
            h,
            w_convert=Convert.ROW,
            col_scale=ColScale.ROW_SCALES,
            row_scale=RowScale.TABLE,
        )
        o = self.buffer(f"{reuse}o", t, d, s.heads)
        for head in range(s.heads):
            scores = self.buffer(f"{reuse}s{head if self.coin() else ''}", t, t)
            columns = (head * s.head, s.head)
            conversions = {"x_convert": Convert.STATIC}
            if by_row:
                conversions = self.row_converted() | {"w_convert": Convert.ROW, "col_scale": ColScale.ROW_SCALES}
            else:
                conversions["col_scale"] = ColScale.IMMEDIATE
            q, k = View(f"{reuse}q", 0, t, *columns), View(f"{reuse}k", 0, t, *columns)
            self.matmul(f"{p}s{head}", scores, q, k, target=60, row_max=RowMax.SIGNED, **conversions)
            self.matmul(
                f"{p}o{head}",
                View(o.buffer, 0, t, *columns),
                scores,
                View(vt.buffer, *columns, 0, t),
                x_convert=Convert.PROBABILITY,
                row_scale=RowScale.CONVERTED,
                col_scale=ColScale.IMMEDIATE if self.coin() else ColScale.PARAMETERS,
                row_max=RowMax.ABS,
                continue_max=head > 0,
            )
        self.matmul(f"{p}proj", x, o, self.weights(d, d), residual=x, **self.row_converted())

    def gelu(self) -> tuple[str, int]:
        return num.GELU_FORMS[self.rng.integers(len(num.GELU_FORMS))], int(self.rng.integers(2, num.GELU_SHIFT_MAX + 1))

    def mlp(self, p: str, x: View) -> None:
        s, t = self.shape, self.shape.tokens
        h, hidden = self.buffer(f"{p}h2", t, s.width), self.buffer(f"{p}hidden", t, s.hidden)
        self.norm(f"{p}norm2", h, x)
        w1, w2 = self.weights(s.hidden, s.width), self.weights(s.width, s.hidden)
        gated = self.coin()
        row_max = RowMax.NONE if gated else RowMax.ABS
        self.matmul(f"{p}fc1", hidden, h, w1, gelu=self.gelu(), row_max=row_max, **self.row_converted())
        if gated:
            value, shift = self.buffer(f"{p}value", t, s.hidden), int(self.rng.integers(num.PRODUCT_SHIFT_MIN, 16))
            self.matmul(f"{p}fc3", value, h, self.weights(s.hidden, s.width), **self.row_converted())
            out = value if self.coin() else hidden
            self.result.ops.append(Multiply(f"{p}gated", out, hidden, value, shift, row_max=RowMax.ABS))
            hidden = out
        self.matmul(f"{p}fc2", x, hidden, w2, residual=x, **self.row_converted())

    def experts(self, p: str, x: View) -> None:
        s, t = self.shape, self.shape.tokens
        h, hidden = self.buffer(f"{p}h2", t, s.width), self.buffer(f"{p}hidden", t, s.hidden)
        logits = self.buffer(f"{p}logits", t, s.experts)
        self.norm(f"{p}norm2", h, x)
        self.matmul(f"{p}gate", logits, h, self.weights(s.experts, s.width), target=500, **self.row_converted())
        bias = self.rng.integers(-300, 300, s.experts)
        for expert, value in ((s.favour, 30000), (s.shun, -30000)):
            if expert >= 0:
                bias[expert] = value
        gate = self.result.ops.pop()
        options = {f: getattr(gate, f) for f in ("x_convert", "row_scale", "col_mult", "shift")}
        self.result.ops.append(
            MatMul(gate.name, gate.out, gate.x, gate.w, bias=bias.astype(np.int16), **options)
        )
        dense = self.buffer(f"{p}gates", t, s.experts) if self.coin() else None
        self.result.ops.append(RouteTokens(f"{p}route", logits, s.top_k, self.coin(), dense))
        by_row = self.coin()
        for e in range(s.experts):
            w1, w2 = self.weights(s.hidden, s.width), self.weights(s.width, s.hidden)
            expert = {"expert": (f"{p}route", e)}
            peak = RowMax.ABS if by_row else RowMax.NONE
            gather = expert | {"indirect": Indirect.GATHER, "gelu": self.gelu(), "row_max": peak}
            self.matmul(f"{p}e{e}.fc1", hidden, h, w1, **gather, **self.row_converted())
            scatter = expert | {"indirect": Indirect.SCATTER, "residual": x}
            conversion = self.row_converted() if by_row else {}
            self.matmul(f"{p}e{e}.fc2", x, hidden, w2, **scatter, **conversion)
        if dense is not None:
            self.result.outputs.append(Output(f"{p}gates", dense, 2.0**-num.GATE_BITS, (t, s.experts)))
