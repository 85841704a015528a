"""Random networks of vision: a stem, stages on maps or tokens, heads. A seed makes one file, always the same."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from attention import TokenBlocks
from blocks import Map, Tokens

OPSETS = range(11, 23)
SIZES, LARGE, LARGE_SHARE = (8, 10, 12, 12, 15, 16, 16, 18), (20, 24, 25, 28), 0.1  # of images
REFUSED_SHARE = 0.03  # of networks with what no machine takes yet: what is said of it counts too
ON_MAPS = (
    "plain_conv", "plain_conv", "inverted", "convnext", "pool_former", "channel_branches", "up_and_add", "squeeze_excite",
    "max_block", "depthwise", "pyramid",
)  # fmt: skip
MIXERS = (
    "self_attention", "self_attention", "self_attention", "self_attention", "window_attention", "window_attention",
    "reduced_attention", "channel_attention", "linear_attention", "token_mixing", "spatial_gate", "scan",
)  # fmt: skip
PHOTOGRAPH = -2.1, 2.6  # 0 and 255 by the mean and the deviation of ImageNet


@dataclass
class Network:
    """A file, shapes of its inputs, and what it is made of."""

    model: onnx.ModelProto
    inputs: dict[str, tuple[int, ...]]
    parts: list[str] = field(default_factory=list)
    before: onnx.ModelProto | None = None  # what `model` was before its operands were put on grids

    def images(self, count: int, seed: int) -> dict[str, np.ndarray]:
        """Smooth random inputs [count, ...], of the kind that a normalised photograph is: between its black and its white, which
        images for calibration show."""
        rng = np.random.default_rng(seed)
        found = {}
        for name, shape in self.inputs.items():
            coarse = rng.normal(0, 0.8, (count, *(n if i == 0 else 1 for i, n in enumerate(shape[1:]))))
            found[name] = (coarse + rng.normal(0, 0.6, (count, *shape[1:]))).clip(*PHOTOGRAPH).astype(np.float32)
        return found


class _Vision(TokenBlocks):
    def __init__(self, seed: int):
        super().__init__(seed, int(np.random.default_rng((seed, 1)).choice(OPSETS)))
        self.parts: list[str] = []
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.width = self.choose(8, 12, 16, 16, 20, 24, 32, 36, 48)
        self.layer_scale, self.after = self.chance(0.2), self.chance(0.12)

    def part(self, name: str, *arguments):
        self.parts.append(name)
        return getattr(self, name)(*arguments)

    # --- stems: what makes the first map of an image

    def patches(self, image: Map) -> Map:
        p = self.choose(2, 3, 4, 4)
        overlap = self.choose(0, 0, 0, 1, 2)
        return self.conv(image, self.width, (p + overlap,) * 2, (p, p), pad=overlap // 2)

    def conv_stem(self, image: Map) -> Map:
        x = self.conv(image, max(4, self.width // 2), stride=(2, 2))
        x = self.batch_norm(x) if self.chance(0.6) else x
        x = replace(x, name=self.activate(x.name))
        return self.conv(x, self.width, stride=(2, 2) if x.h > 8 else (1, 1))

    def cut_patches(self, image: Map) -> Map:
        """Patches by reshaping, then a linear layer."""
        sizes = [n for n in (1, 2, 3, 4, 5) if image.h % n == 0 and image.w % n == 0]
        p = self.choose(*[n for n in sizes if image.h * image.w <= 200 * n * n] or sizes[-1:])
        h, w = image.h // p, image.w // p
        y = self.op("Reshape", image.name, [1, image.c, h, p, w, p])
        y = self.op("Transpose", y, perm=self.choose([0, 2, 4, 3, 5, 1], [0, 2, 4, 1, 3, 5]))
        size = image.c * p * p
        y = self.linear(self.op("Reshape", y, [1, h * w, size]), size, self.width, h * w)
        return self.as_map(Tokens(y, h * w, self.width, h, w))

    # --- tokens

    def token_block(self, x: Tokens) -> Tokens:
        for kind in (self.choose(*MIXERS), self.choose("feed", "feed", "feed", "conv_mlp", "experts", "gate")):
            if self.after:
                y = self.op("Add", x.name, self.branch(kind, x))
                x = replace(x, name=self.norm(y, x.c))
            else:
                y = self.branch(kind, replace(x, name=self.norm(x.name, x.c)))
                y = self.op("Mul", y, self.normal(x.c, scale=0.5)) if self.layer_scale else y
                x = replace(x, name=self.op("Add", x.name, y) if self.chance(0.7) else self.op("Add", y, x.name))
        return x

    def branch(self, kind: str, x: Tokens) -> str:
        return self.part(kind, x)

    def feed(self, x: Tokens) -> str:
        return self.mlp(x.name, x.t, x.c)

    def positions(self, x: Tokens) -> Tokens:
        if self.chance(0.4):
            n = self.whole(1, 2)
            joined = self.op("Concat", self.normal(1, n, x.c), x.name, axis=1)
            x = replace(x, name=joined, t=x.t + n, prefix=n)
        return replace(x, name=self.op("Add", x.name, self.normal(1, x.t, x.c, scale=0.4))) if self.chance(0.7) else x

    def second(self, x: Tokens) -> Tokens:
        """Another input beside the image: a second image's tokens added or set before, or numbers that all tokens get."""
        kind = self.choose("image", "numbers", "scale", "token")
        if kind == "image":
            p = self.choose(2, 3, 4)
            h, w = self.whole(1, 4), self.whole(1, 4)
            self.inputs["depth"] = (1, 1, h * p, w * p)
            y = self.as_tokens(self.conv(Map("depth", 1, h * p, w * p), x.c, (p, p), (p, p), pad=0))
            return replace(x, name=self.op("Concat", y.name, x.name, axis=1), t=x.t + y.t, prefix=x.prefix + y.t)
        n = self.whole(2, 9)
        self.inputs["state"] = (1, n, 1, 1)
        y = self.as_tokens(self.conv(Map("state", n, 1, 1), x.c, (1, 1), pad=0)).name
        if kind == "token":
            return replace(x, name=self.op("Concat", y, x.name, axis=1), t=x.t + 1, prefix=x.prefix + 1)
        return replace(x, name=self.op("Add" if kind == "numbers" else "Mul", x.name, y))

    # --- heads

    def head(self, x: Tokens | Map) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Output name -> (value, shape)."""
        classes = self.choose(3, 5, 10)
        if isinstance(x, Map):
            kind = self.choose("pooled", "pooled", "map", "dense", "max")
            if kind == "map":
                return {"map": (x.name, (1, x.c, x.h, x.w))}
            if kind == "dense":
                y = self.conv(x, classes, (1, 1))
                return {"map": (y.name, (1, y.c, y.h, y.w))}
            if kind == "max":
                y = self.op("Squeeze", self.op("GlobalMaxPool", x.name), [2, 3])
            else:
                y = self.op("Flatten", self.op("GlobalAveragePool", x.name), axis=1)
            return self.logits(y, x.c, classes)
        x = replace(x, name=self.norm(x.name, x.c)) if self.chance(0.6) else x
        kind = self.choose("first", "mean", "mean", "tokens", "flat", "queries", "map")
        if kind == "tokens" or (kind == "map" and x.prefix) or (kind == "map" and not x.h):
            return {"tokens": (x.name, (1, x.t, x.c))}
        if kind == "map":
            y = self.as_map(x)
            return {"map": (y.name, (1, y.c, y.h, y.w))}
        if kind == "queries":
            q = self.part("pooled_by_queries", x)
            return {"boxes": (self.linear(q.name, q.c, 4, q.t), (1, q.t, 4))}
        if kind == "flat":
            return self.logits(self.op("Reshape", x.name, [1, x.t * x.c]), x.t * x.c, classes)
        if kind == "first":
            y = self.op("Gather", x.name, np.int64(0), axis=1)
            found = self.logits(y, x.c, classes)
            return found | ({"tokens": (x.name, (1, x.t, x.c))} if self.chance(0.2) else {})
        return self.logits(self.op("ReduceMean", x.name, [1], keepdims=0), x.c, classes)

    def logits(self, x: str, inputs: int, classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        w, b = self.normal(inputs, classes, scale=inputs**-0.5), self.normal(classes)
        y = self.op("Gemm", x, w.T.copy(), b, transB=1) if self.chance(0.6) else self.op("Add", self.op("MatMul", x, w), b)
        if self.chance(0.1):
            y = self.op("Softmax", y, axis=-1) if self.chance(0.5) else self.op("Sigmoid", y)
        return {"logits": (y, (1, classes))}


def network(seed: int) -> Network:
    """The network of a seed."""
    v = _Vision(seed)
    sizes = LARGE if v.chance(LARGE_SHARE) else SIZES
    h, w = (v.choose(*sizes) for _ in range(2))
    image = Map("image", v.choose(1, 3, 3, 3, 4), h, w if v.chance(0.4) else h)
    x = v.part(v.choose("patches", "patches", "patches", "conv_stem", "conv_stem", "cut_patches"), image)
    x = v.map_norm(x) if v.chance(0.15) else x
    x = v.part("place_gate", x) if v.chance(REFUSED_SHARE) else x
    kind = v.choose("tokens", "tokens", "tokens", "maps", "hybrid", "hybrid", "stages")
    if kind == "maps":
        for _ in range(v.whole(1, 4)):
            x = v.part("down", x) if v.chance(0.2) else v.part(v.choose(*ON_MAPS), x)
    elif kind == "tokens":
        x = v.positions(v.as_tokens(x))
        x = v.part("second", x) if v.chance(0.12) else x
        for _ in range(v.whole(1, 3)):
            x = v.token_block(x)
        if v.chance(0.2):
            x = v.token_block(v.part("selected", x))
    else:
        for stage in range(2 if kind == "hybrid" else v.whole(1, 2)):
            if stage:
                x = v.part("down", x)
            if kind == "hybrid" and not stage:
                x = v.part(v.choose(*ON_MAPS), x)
                continue
            y = v.as_tokens(x)
            for _ in range(v.whole(1, 2)):
                y = v.token_block(y)
            x = v.as_map(y)
        x = v.as_tokens(x) if v.chance(0.5) else x
    ends = v.head(x)
    for name, (value, _) in ends.items():
        v.nodes.append(onnx.helper.make_node("Identity", [value], [name], f"end_{name}"))
    inputs = {"image": (1, image.c, image.h, image.w)} | v.inputs
    model = v.model(inputs, {name: s for name, (_, s) in ends.items()}, dynamic=v.chance(0.3))
    return Network(model, inputs, [f"opset {v.opset}", kind, *v.parts])
