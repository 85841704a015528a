"""Pieces of vision networks in many written forms, on maps [1, C, H, W] and tokens [1, T, C]."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from writer import Writer

ACTIVATIONS = ("gelu", "gelu", "tanh gelu", "quick gelu", "relu", "relu", "silu", "hardswish", "relu6", "leaky")


@dataclass(frozen=True)
class Map:
    """A value [1, c, h, w]."""

    name: str
    c: int
    h: int
    w: int


@dataclass(frozen=True)
class Tokens:
    """A value [1, t, c]; behind `prefix` tokens come those of a map of h x w, unless h is 0."""

    name: str
    t: int
    c: int
    h: int = 0
    w: int = 0
    prefix: int = 0


class Blocks(Writer):
    """A network keeps to one way of writing for most of its nodes, as an exporter does."""

    def __init__(self, seed: int, opset: int):
        super().__init__(seed, opset)
        self.bias = self.chance(0.8)
        self.linear_form = self.choose("matmul", "matmul", "gemm", "conv", "einsum", "einsum transposed")
        self.norm_form = self.choose("op", "op", "steps", "rms")
        self.act = "mish" if self.chance(0.03) else self.choose(*ACTIVATIONS)  # which no machine takes yet

    # --- products, norms, activations

    def linear(self, x: str, inputs: int, outputs: int, tokens: int, bias: bool | None = None) -> str:
        """[1, tokens, inputs] -> [1, tokens, outputs]."""
        bias = self.bias if bias is None else bias
        w, b = self.normal(inputs, outputs, scale=inputs**-0.5), self.normal(outputs)
        form = self.linear_form if self.chance(0.8) else "matmul"
        if form == "gemm":
            flat = self.op("Reshape", x, [tokens, inputs])
            y = self.op("Gemm", flat, w.T.copy(), *([b] if bias else []), transB=1)
            return self.op("Reshape", y, [1, tokens, outputs])
        if form == "conv":
            rows = self.op("Unsqueeze", self.op("Transpose", x, perm=[0, 2, 1]), [3])
            y = self.op("Conv", rows, w.T[:, :, None, None].copy(), *([b] if bias else []), kernel_shape=[1, 1])
            return self.op("Transpose", self.op("Squeeze", y, [3]), perm=[0, 2, 1])
        if form == "matmul":
            y = self.op("MatMul", x, w)
        elif form == "einsum":
            y = self.op("Einsum", x, w, equation="btc,cd->btd")
        else:
            y = self.op("Einsum", x, w.T.copy(), equation="bnc,dc->bnd")
        if not bias:
            return y
        return self.op("Add", y, b) if self.chance(0.5) else self.op("Add", b, y)

    def norm(self, x: str, width: int, axis: int = -1) -> str:
        """Over `axis`; not the last one: of a map's channels."""
        shape = (width,) if axis == -1 else (width, 1, 1)
        gamma, beta = self.gain(*shape), self.normal(*shape)
        if self.norm_form == "op" and axis == -1:
            return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-5)
        if self.norm_form == "rms":
            square = self.op("ReduceMean", self.op("Mul", x, x), [axis])
            root = self.op("Sqrt", self.op("Add", square, np.float32(1e-6)))
            y = self.op("Div", x, root) if self.chance(0.5) else self.op("Mul", x, self.op("Reciprocal", root))
            return self.op("Mul", y, gamma)
        centred = self.op("Sub", x, self.op("ReduceMean", x, [axis]))
        variance = self.op("ReduceMean", self.op("Pow", centred, np.float32(2)), [axis])
        root = self.op("Sqrt", self.op("Add", variance, np.float32(1e-6)))
        return self.op("Add", self.op("Mul", self.op("Div", centred, root), gamma), beta)

    def activate(self, x: str, kind: str | None = None) -> str:
        kind = kind or (self.act if self.chance(0.85) else self.choose(*ACTIVATIONS))
        if kind in ("gelu", "tanh gelu"):
            return self.op("Gelu", x, approximate="tanh" if kind == "tanh gelu" else "none")
        if kind == "quick gelu":
            return self.op("Mul", x, self.op("Sigmoid", self.op("Mul", x, np.float32(1.702))))
        if kind == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if kind == "relu6":
            return self.op("Clip", x, np.float32(0), np.float32(6))
        if kind == "leaky":
            return self.op("LeakyRelu", x, alpha=0.1)
        return self.op({"relu": "Relu", "hardswish": "HardSwish", "mish": "Mish"}[kind], x)

    # --- maps

    def conv(self, x: Map, outputs: int, kernel=(3, 3), stride=(1, 1), groups: int = 1, dilation: int = 1, pad=None) -> Map:
        """Padded to the size of the map over its stride unless `pad` says how far on all sides."""
        inside = [dilation * (k - 1) for k in kernel]
        pads = [n // 2 for n in inside] + [n - n // 2 for n in inside] if pad is None else [pad] * 4
        w = self.normal(outputs, x.c // groups, *kernel, scale=(x.c // groups * kernel[0] * kernel[1]) ** -0.5)
        b = [self.normal(outputs)] if self.bias else []
        y = self.op(
            "Conv", x.name, w, *b, kernel_shape=kernel, strides=stride, pads=pads, group=groups, dilations=[dilation] * 2
        )
        h, w = ((n + pads[i] + pads[i + 2] - inside[i] - 1) // stride[i] + 1 for i, n in enumerate((x.h, x.w)))
        return Map(y, outputs, h, w)

    def batch_norm(self, x: Map) -> Map:
        c = x.c
        mean, variance = self.normal(c, scale=0.2), self.rng.uniform(0.5, 1.5, c)
        return replace(x, name=self.op("BatchNormalization", x.name, self.gain(c), self.normal(c), mean, variance, epsilon=1e-5))

    def map_norm(self, x: Map) -> Map:
        kind = self.choose("batch", "batch", "channels", "last", "instance", "group")
        if kind == "batch":
            return self.batch_norm(x)
        if kind == "channels":
            return replace(x, name=self.norm(x.name, x.c, axis=1))
        if kind == "last":
            y = self.norm(self.op("Transpose", x.name, perm=[0, 2, 3, 1]), x.c)
            return replace(x, name=self.op("Transpose", y, perm=[0, 3, 1, 2]))
        groups = x.c if kind == "instance" else 1  # a GroupNorm as torch's exporter writes it
        flat = self.op("Reshape", x.name, [1, groups, -1])
        y = self.op("InstanceNormalization", flat, np.ones(groups), np.zeros(groups), epsilon=1e-5)
        y = self.op("Reshape", y, [1, x.c, x.h, x.w])
        y = self.op("Mul", y, self.gain(x.c, 1, 1))
        return replace(x, name=self.op("Add", y, self.normal(x.c, 1, 1)))

    def squeeze_excite(self, x: Map) -> Map:
        narrow = max(2, x.c // self.choose(2, 4))
        y = self.op("GlobalAveragePool", x.name) if self.chance(0.5) else self.op("ReduceMean", x.name, [2, 3])
        y = self.conv(Map(y, x.c, 1, 1), narrow, (1, 1))
        y = self.conv(replace(y, name=self.activate(y.name, self.choose("relu", "silu"))), x.c, (1, 1))
        gate = self.op("Sigmoid", y.name) if self.chance(0.7) else self.op("HardSigmoid", y.name, alpha=1 / 6, beta=0.5)
        return replace(x, name=self.op("Mul", x.name, gate) if self.chance(0.5) else self.op("Mul", gate, x.name))

    def inverted(self, x: Map) -> Map:
        """A mobile block: expand, depthwise, perhaps a gate, project, residual where it fits."""
        wide = x.c * self.choose(2, 3)
        y = self.conv(x, wide, (1, 1))
        y = self.batch_norm(y) if self.chance(0.5) else y
        y = replace(y, name=self.activate(y.name))
        y = self.conv(y, wide, self.choose((3, 3), (5, 5)), groups=wide)
        y = replace(y, name=self.activate(y.name))
        y = self.squeeze_excite(y) if self.chance(0.4) else y
        y = self.conv(y, x.c, (1, 1))
        return replace(x, name=self.op("Add", x.name, y.name))

    def convnext(self, x: Map) -> Map:
        y = self.conv(x, x.c, self.choose((7, 7), (5, 5), (3, 3)), groups=x.c)
        last = Tokens(self.op("Transpose", y.name, perm=[0, 2, 3, 1]), x.h * x.w, x.c)
        flat = self.op("Reshape", last.name, [1, last.t, x.c])
        mlp = self.response_mlp if self.chance(0.3) else self.mlp
        z = mlp(self.norm(flat, x.c), last.t, x.c)
        z = self.op("Mul", z, self.normal(x.c, scale=0.5)) if self.chance(0.5) else z
        z = self.op("Transpose", self.op("Reshape", z, [1, x.h, x.w, x.c]), perm=[0, 3, 1, 2])
        return replace(x, name=self.op("Add", x.name, z))

    def pool_former(self, x: Map) -> Map:
        n = self.map_norm(x)
        y = self.op("AveragePool", n.name, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1], count_include_pad=0)
        return replace(x, name=self.op("Add", x.name, self.op("Sub", y, n.name)))

    def max_block(self, x: Map) -> Map:
        """A map of the same size by the largest of its neighbours, and a convolution of it."""
        size = self.choose(3, 3, 5)
        y = self.op("MaxPool", x.name, kernel_shape=[size] * 2, pads=[size // 2] * 4, strides=[1, 1])
        y = self.conv(replace(x, name=y), x.c, (1, 1))
        return replace(x, name=self.op("Add", self.activate(y.name), x.name))

    def depthwise(self, x: Map) -> Map:
        """Depthwise convolutions of other shapes than mobile blocks have: dilated, of strips, of several one after the other."""
        kind = self.choose("dilated", "strips", "pair")
        if kind == "dilated":
            y = self.conv(x, x.c, groups=x.c, dilation=self.choose(2, 3))
        elif kind == "strips":
            n = self.choose(5, 7)
            y = self.conv(self.conv(x, x.c, (1, n), groups=x.c), x.c, (n, 1), groups=x.c)
        else:
            y = self.conv(x, x.c, (5, 5), groups=x.c)
            y = self.conv(replace(y, name=self.activate(y.name)), x.c, (3, 3), groups=x.c)
        y = self.conv(y, x.c, (1, 1))
        return replace(x, name=self.op(self.choose("Mul", "Add"), y.name, x.name))  # Mul: a large kernel's attention

    def pyramid(self, x: Map) -> Map:
        """Means of parts of the map, brought back to its size and joined with it."""
        size = self.choose(2, 3, 4)
        h, w = x.h // size, x.w // size
        if not h or not w:
            return x
        y = self.op("AveragePool", x.name, kernel_shape=[size] * 2, strides=[size] * 2)
        y = self.conv(Map(y, x.c, h, w), max(4, x.c // 2), (1, 1))
        y = replace(y, name=self.activate(y.name))
        modes = {"coordinate_transformation_mode": self.choose("half_pixel", "pytorch_half_pixel", "align_corners")}
        sizes = np.int64([1, y.c, x.h, x.w])
        back = self.op("Resize", y.name, "", "", sizes, mode="linear", **modes)
        joined = self.op("Concat", x.name, back, axis=1)
        return self.conv(Map(joined, x.c + y.c, x.h, x.w), x.c, (1, 1))

    def place_gate(self, x: Map) -> Map:
        """A gate for each place of the map, from mean and largest of its channels."""
        mean, most = self.op("ReduceMean", x.name, [1]), self.op("ReduceMax", x.name, [1])
        both = Map(self.op("Concat", mean, most, axis=1), 2, x.h, x.w)
        gate = self.op("Sigmoid", self.conv(both, 1, self.choose((7, 7), (3, 3))).name)
        return replace(x, name=self.op("Mul", x.name, gate))

    def plain_conv(self, x: Map) -> Map:
        if self.chance(0.25) and x.h > 4 and x.w > 4:
            y = self.conv(x, x.c, self.choose((1, 5), (5, 1), (1, 3)))
        elif self.chance(0.2):
            y = self.conv(x, x.c, dilation=2)
        else:
            groups = self.choose(1, 1, *(g for g in (2, 4) if x.c % g == 0))
            y = self.conv(x, x.c, groups=groups)
        y = self.map_norm(y) if self.chance(0.6) else y
        y = replace(y, name=self.activate(y.name))
        return replace(x, name=self.op("Add", y.name, x.name)) if self.chance(0.6) else y

    def channel_branches(self, x: Map) -> Map:
        """Channels split, each part its own way, and joined again."""
        if x.c < 8:
            return x
        a = x.c // 2 if self.chance(0.7) else x.c // 4
        first, second = self.op("Split", x.name, [a, x.c - a], outputs=2, axis=1)
        one = self.conv(Map(first, a, x.h, x.w), a, groups=self.choose(1, a))
        two = Map(second, x.c - a, x.h, x.w)
        two = self.conv(two, two.c, (1, 1)) if self.chance(0.5) else two
        return self.conv(replace(x, name=self.op("Concat", one.name, two.name, axis=1)), x.c, (1, 1))

    def down(self, x: Map) -> Map:
        """Half the size, more channels."""
        wide = x.c + self.choose(0, 8, x.c)
        kind = self.choose("conv 2", "conv 3", "depthwise", "max", "average", "merge", "space")
        if min(x.h, x.w) < 4 or (kind in ("merge", "space") and (x.h % 2 or x.w % 2)):
            kind = "conv 3"
        if kind in ("conv 2", "conv 3"):
            size = int(kind[-1])
            y = self.conv(x, wide, (size, size), (2, 2), pad=size // 3)
        elif kind == "depthwise":
            y = self.conv(x, x.c, self.choose((3, 3), (5, 5)), (2, 2), groups=x.c)
            y = self.conv(y, wide, (1, 1))
        elif kind in ("max", "average"):
            size = self.choose(2, 3)
            pad = size // 3
            name = {"max": "MaxPool", "average": "AveragePool"}[kind]
            y = self.op(name, x.name, kernel_shape=[size] * 2, strides=[2, 2], pads=[pad] * 4)
            h, w = ((n + 2 * pad - size) // 2 + 1 for n in (x.h, x.w))
            y = self.conv(Map(y, x.c, h, w), wide, (1, 1))
        elif kind == "space":
            y = Map(self.op("SpaceToDepth", x.name, blocksize=2), 4 * x.c, x.h // 2, x.w // 2)
            y = self.conv(y, wide, (1, 1))
        else:
            return self.merge(x, wide)
        return self.map_norm(y) if self.chance(0.5) else y

    def merge(self, x: Map, wide: int) -> Map:
        """Swin's patch merging: four strided slices side by side, LayerNorm, Linear."""
        last = self.op("Transpose", x.name, perm=[0, 2, 3, 1])
        parts = [
            self.op("Slice", last, [i, j], [x.h, x.w], [1, 2], [2, 2]) for j in (0, 1) for i in (0, 1)
        ]
        h, w = x.h // 2, x.w // 2
        y = self.op("Reshape", self.op("Concat", *parts, axis=-1), [1, h * w, 4 * x.c])
        y = self.linear(self.norm(y, 4 * x.c), 4 * x.c, wide, h * w, bias=False)
        return self.as_map(Tokens(y, h * w, wide, h, w))

    def up_and_add(self, x: Map) -> Map:
        """A neck: a smaller map brought back to this one's size, added or joined."""
        if x.h % 2 or x.w % 2 or min(x.h, x.w) < 4:
            return x
        small = self.conv(x, x.c, (2, 2), (2, 2), pad=0)
        small = replace(small, name=self.activate(small.name))
        kind = self.choose("nearest", "linear", "transposed", "shuffle")
        if kind == "transposed":
            w = self.normal(x.c, x.c, 2, 2, scale=x.c**-0.5)
            y = self.op("ConvTranspose", small.name, w, kernel_shape=[2, 2], strides=[2, 2])
        elif kind == "shuffle":
            wide = self.conv(small, 4 * x.c, (1, 1))
            y = self.op("DepthToSpace", wide.name, blocksize=2, mode=self.choose("DCR", "CRD"))
        else:
            modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            modes = modes if kind == "nearest" else {"coordinate_transformation_mode": self.choose("half_pixel", "align_corners")}
            y = self.op("Resize", small.name, "", np.float32([1, 1, 2, 2]), mode=kind, **modes)
        if self.chance(0.3):
            joined = self.op("Concat", x.name, y, axis=1)
            return self.conv(Map(joined, 2 * x.c, x.h, x.w), x.c, (1, 1))
        return replace(x, name=self.op("Add", x.name, y))

    # --- between maps and tokens

    def as_tokens(self, x: Map) -> Tokens:
        if self.chance(0.7):
            flat = self.op("Reshape", x.name, [1, x.c, self.choose(-1, x.h * x.w)])
        else:
            flat = self.op("Flatten", x.name, axis=2)
            flat = self.op("Reshape", flat, [1, x.c, x.h * x.w])
        return Tokens(self.op("Transpose", flat, perm=[0, 2, 1]), x.h * x.w, x.c, x.h, x.w)

    def as_map(self, x: Tokens) -> Map:
        """Of tokens without a prefix."""
        if self.chance(0.5):
            y = self.op("Reshape", self.op("Transpose", x.name, perm=[0, 2, 1]), [1, x.c, x.h, x.w])
        else:
            y = self.op("Transpose", self.op("Reshape", x.name, [1, x.h, x.w, x.c]), perm=[0, 3, 1, 2])
        return Map(y, x.c, x.h, x.w)

    def mlp(self, x: str, tokens: int, width: int) -> str:
        hidden = self.whole(1, 3) * width + self.choose(0, 0, 3)
        if self.chance(0.2):  # gated
            if self.chance(0.5):
                a, b = self.op("Split", self.linear(x, width, 2 * hidden, tokens), [hidden] * 2, outputs=2, axis=-1)
            else:
                a, b = self.linear(x, width, hidden, tokens), self.linear(x, width, hidden, tokens)
            return self.linear(self.op("Mul", self.activate(a, self.choose("silu", "gelu")), b), hidden, width, tokens)
        return self.linear(self.activate(self.linear(x, width, hidden, tokens)), hidden, width, tokens)

    def response_mlp(self, x: str, tokens: int, width: int) -> str:
        """An MLP with ConvNeXt V2's global response normalisation within."""
        hidden = 2 * width
        y = self.activate(self.linear(x, width, hidden, tokens))
        size = self.op("ReduceL2", y, [1])
        share = self.op("Div", size, self.op("Add", self.op("ReduceMean", size, [-1]), np.float32(1e-6)))
        z = self.op("Add", self.op("Mul", self.op("Mul", y, share), self.gain(hidden)), self.normal(hidden))
        return self.linear(self.op("Add", z, y), hidden, width, tokens)
