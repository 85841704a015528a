"""Random vision transformers as ONNX graphs, in many shapes and in many ways of writing them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import moe_maker

FORMS = {form.__name__: form for form in [*moe_maker.FORMS, *moe_maker.SOFT_FORMS]}


@dataclass(frozen=True)
class Layer:
    """One block. `experts` 0 makes a dense MLP; `form` names a function of moe_maker.

    Soft forms have `top_k` slots for each expert.
    gate: "random"; "one" (all tokens to expert 0 first); "ties" (pairs of experts with the same logits); "bias".
    """

    hidden: int = 16
    gated: str = ""  # an MLP with a gate: "two" linear layers side by side, or "packed" into one; "norm": and a LayerNorm
    experts: int = 0
    top_k: int = 1
    form: str = "gather_elements"
    gate: str = "random"
    shared: int = 0  # hidden width of an expert that every token goes to


@dataclass(frozen=True)
class Network:
    """A vision transformer: patches of `patch` of an image of `grid` patches, blocks, and what comes out.

    overlap: pixels by which patches are larger; as many are padded. windows: tokens per window of attention, if that
    divides them and two windows or more come out; else all.
    """

    grid: tuple[int, int] = (2, 3)
    patch: tuple[int, int] = (2, 2)
    overlap: int = 0
    windows: int = 0
    channels: int = 1
    heads: int = 2
    head: int = 8
    prefix: int = 1
    position: bool = True
    layers: tuple[Layer, ...] = (Layer(),)
    bias: bool = True
    qkv: str = "fused"  # "fused", "split" or "einsum"
    scale: str = "mul"  # of the scores: "mul", "div" or "query"
    gelu: str = "op"  # "op", "erf", "tanh" or "tanh op"; or another activation: "silu" or "relu"
    norm: str = "op"  # "op" or "steps"
    rotary: str = ""  # positions of the patches: "halves" or "pairs" of the channels of a head
    qk_norm: bool = False
    head_gains: bool = False  # of normalised queries, a learned factor for each head
    classes: int = 5  # 0: all tokens come out
    seed: int = 0

    @property
    def image(self) -> tuple[int, int, int]:
        return self.channels, self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def width(self) -> int:
        return self.heads * self.head


class _Vit(moe_maker.Writer):
    def __init__(self, net: Network):
        super().__init__(net.seed)
        self.net = net

    def linear(self, x, inputs, outputs):
        y = self.op("MatMul", x, self.normal(inputs, outputs, scale=inputs**-0.5))
        return self.op("Add", self.normal(outputs, scale=0.3), y) if self.net.bias else y

    def norm(self, x):
        gamma, beta = 1 + self.normal(self.net.width, scale=0.2), self.normal(self.net.width, scale=0.2)
        if self.net.norm == "op":
            return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-6)
        centred = self.op("Sub", x, self.op("ReduceMean", x, [-1]))
        variance = self.op("ReduceMean", self.op("Pow", centred, np.float32(2)), [-1])
        root = self.op("Sqrt", self.op("Add", variance, np.float32(1e-6)))
        return self.op("Add", self.op("Mul", self.op("Div", centred, root), gamma), beta)

    def norm_of_heads(self, x):
        gamma, beta = 1 + self.normal(self.net.head, scale=0.2), self.normal(self.net.head, scale=0.2)
        return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-6)

    def gelu(self, x):
        kind = self.net.gelu
        if kind in ("op", "tanh op"):
            return self.op("Gelu", x, approximate="tanh" if kind == "tanh op" else "none")
        if kind == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if kind == "relu":
            return self.op("Relu", x)
        if kind == "erf":
            inner = self.op("Erf", self.op("Div", x, np.float32(2**0.5)))
        else:
            cube = self.op("Mul", self.op("Pow", x, np.float32(3)), np.float32(0.044715))
            inner = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), np.float32((2 / np.pi) ** 0.5)))
        return self.op("Mul", self.op("Mul", x, np.float32(0.5)), self.op("Add", inner, np.float32(1)))

    def embedding(self):
        net = self.net
        kernel = [size + net.overlap for size in net.patch]
        w = self.normal(net.width, net.channels, *kernel, scale=(net.channels * kernel[0] * kernel[1]) ** -0.5)
        pads = [net.overlap // 2] * 2 + [net.overlap - net.overlap // 2] * 2
        shape = {"kernel_shape": kernel, "strides": net.patch, "pads": pads}
        x = self.op("Conv", "image", w, self.normal(net.width, scale=0.2), **shape)
        x = self.op("Transpose", self.op("Reshape", x, [1, net.width, -1]), perm=[0, 2, 1])
        if net.prefix:
            x = self.op("Concat", self.normal(1, net.prefix, net.width), x, axis=1)
        return self.op("Add", x, self.normal(1, net.tokens, net.width, scale=0.4)) if net.position else x

    def attention(self, x):
        net, t, d = self.net, self.net.tokens, self.net.width
        n = net.windows if net.windows and t % net.windows == 0 else t
        factor = np.float32(net.head**-0.5)
        if net.qkv == "fused":
            y = self.op("Reshape", self.linear(x, d, 3 * d), [t // n, n, 3, net.heads, net.head])
            parts = self.op("Split", self.op("Transpose", y, perm=[2, 0, 3, 1, 4]), [1, 1, 1], outputs=3, axis=0)
            q, k, v = (self.op("Squeeze", p, [0]) for p in parts)
        else:
            heads = [self.op("Reshape", self.linear(x, d, d), [t // n, n, net.heads, net.head]) for _ in range(3)]
            q, k, v = heads if net.qkv == "einsum" else (self.op("Transpose", y, perm=[0, 2, 1, 3]) for y in heads)
        by_token = net.qkv == "einsum"  # [1, T, heads, d]; else [1, heads, T, d]
        if net.qk_norm:
            q, k = (self.norm_of_heads(part) for part in (q, k))
            if net.head_gains:
                gains = np.exp(self.normal(net.heads, scale=0.5)).astype(np.float32)
                q = self.op("Mul", q, gains.reshape(-1, 1) if by_token else gains.reshape(-1, 1, 1))
        if net.rotary:
            swapped = [self.op("Transpose", part, perm=[0, 2, 1, 3]) if by_token else part for part in (q, k)]
            swapped = [self.turned(part) for part in swapped]
            q, k = (self.op("Transpose", part, perm=[0, 2, 1, 3]) if by_token else part for part in swapped)
        if net.scale == "query":
            q = self.op("Mul", q, factor)
        if net.qkv == "einsum":
            scores = self.op("Einsum", q, k, equation="bihd,bjhd->bhij")
        else:
            scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        if net.scale != "query":
            scores = self.op("Mul", scores, factor) if net.scale == "mul" else self.op("Div", scores, 1 / factor)
        p = self.op("Softmax", scores, axis=-1)
        if net.qkv == "einsum":
            y = self.op("Einsum", p, v, equation="bhij,bjhd->bihd")
        else:
            y = self.op("Transpose", self.op("MatMul", p, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", y, [1, t, d]), d, d)

    def mlp(self, x, hidden, gated=""):
        width = self.net.width
        if gated == "packed":
            a, b = self.op("Split", self.linear(x, width, 2 * hidden), [hidden, hidden], outputs=2, axis=-1)
            y = self.op("Mul", self.gelu(a), b)
        else:
            y = self.gelu(self.linear(x, width, hidden))
            y = self.op("Mul", y, self.linear(x, width, hidden)) if gated else y
        if gated == "norm":
            gamma, beta = 1 + self.normal(hidden, scale=0.2), self.normal(hidden, scale=0.2)
            y = self.op("LayerNormalization", y, gamma, beta, axis=-1, epsilon=1e-6)
        return self.linear(y, hidden, width)

    def turned(self, x):
        """Rotary positions of heads, tokens on the last axis but one; those before the patches have none."""
        net, half = self.net, self.net.head // 2
        patches = net.tokens - net.prefix
        angle = np.arange(patches)[:, None] * 10.0 ** -np.linspace(0, 1, half)
        pairs = net.rotary == "pairs"
        angle = np.repeat(angle, 2, axis=1) if pairs else np.tile(angle, 2)
        first, rest = self.op("Split", x, [net.prefix, patches], outputs=2, axis=2) if net.prefix else (None, x)
        if pairs:
            a, b = (self.op("Slice", rest, [i], [net.head], [3], [2]) for i in range(2))
            parts = [self.op("Unsqueeze", part, [-1]) for part in (self.op("Neg", b), a)]
            other = self.op("Reshape", self.op("Concat", *parts, axis=-1), [1, net.heads, patches, net.head])
        else:
            a, b = self.op("Split", rest, [half, half], outputs=2, axis=-1)
            other = self.op("Concat", self.op("Neg", b), a, axis=-1)
        y = self.op("Add", self.op("Mul", rest, np.cos(angle)), self.op("Mul", other, np.sin(angle)))
        return self.op("Concat", first, y, axis=2) if net.prefix else y

    def experts(self, x, layer: Layer):
        net = self.net
        tokens = self.op("Reshape", x, [net.tokens, net.width])
        gate = self.normal(net.width, layer.experts)
        if layer.gate == "ties":
            gate[:, 1::2] = gate[:, : 2 * (layer.experts // 2) : 2]
        size = net.tokens, net.width
        moe = moe_maker.Moe(
            self, tokens, size, layer.experts, layer.hidden, layer.top_k, bias=net.bias, gate=gate, act=self.gelu
        )
        if layer.gate in ("one", "bias"):
            bias = np.zeros(layer.experts) if layer.gate == "one" else self.normal(layer.experts)
            bias[0] += 40 if layer.gate == "one" else 0
            moe.logits = self.op("Add", moe.logits, bias)
            moe.gate = self.op("Softmax", moe.logits, axis=-1)
        y = self.op("Reshape", FORMS[layer.form](moe), [1, net.tokens, net.width])
        return self.op("Add", y, self.mlp(x, layer.shared)) if layer.shared else y


def write(net: Network, path: Path) -> Path:
    """The network as an ONNX file of opset 20, input `image`."""
    vit = _Vit(net)
    x = vit.embedding()
    for layer in net.layers:
        x = vit.op("Add", x, vit.attention(vit.norm(x)))
        y = vit.norm(x)
        x = vit.op("Add", x, vit.experts(y, layer) if layer.experts else vit.mlp(y, layer.hidden, layer.gated))
    if not net.classes:
        return vit.write(path, net.image, x, [1, net.tokens, net.width])
    x = vit.op("Gather", vit.norm(x), 0, axis=1)
    return vit.write(path, net.image, vit.linear(x, net.width, net.classes), [1, net.classes])


def images(net: Network, count: int, seed: int) -> np.ndarray:
    """Smooth random images [count, C, H, W]."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1, 1, (count, *net.image)) + rng.uniform(-0.5, 0.5, (count, 1, 1, 1))).astype(np.float32)
