"""M3ViT networks with seeded random weights, in the operators that PyTorch's exporter writes (opset 17)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Spec:
    """An M3ViT: blocks 1, 3, 5, ... are mixtures of experts, the others dense.

    `classes` None: all tokens are the output. `dense` is the name of a task of maps, which puts the convolutional head of M3ViT's
    public code (four upsampling steps, SETR's) behind the tokens; tasks of one seed differ in gates and head alone.
    """

    image: tuple[int, int, int]  # C, H, W
    patch: int
    width: int  # D
    heads: int
    layers: int
    hidden: int  # of the dense MLP
    experts: int
    expert_hidden: int
    top_k: int
    classes: int | None = None
    dense: str = ""
    channels: int = 256  # between the convolutions of a dense head
    seed: int = 2023

    @property
    def patches(self) -> int:
        return (self.image[1] // self.patch) * (self.image[2] // self.patch)

    @property
    def tokens(self) -> int:
        return self.patches + 1


TINY = Spec((3, 128, 256), 16, 192, 3, 12, 768, 16, 384, 2)
SEGMENTATION = replace(TINY, classes=19, dense="segmentation")
DEPTH = replace(TINY, classes=1, dense="depth")
MICRO = Spec((1, 8, 8), 4, 16, 2, 2, 32, 4, 16, 2, classes=5)


def images(spec: Spec, count: int, seed: int) -> np.ndarray:
    """float32 [count, C, H, W] in [-2, 2): noise at several scales, so that neighbouring patches are alike."""
    rng = np.random.default_rng([spec.seed, seed])
    c, h, w = spec.image
    result = np.zeros((count, c, h, w), np.float32)
    for size in (h // 2, h // 4, 2, 1):
        coarse = rng.random((count, c, -(-h // size), -(-w // size)), dtype=np.float32)
        result += np.kron(coarse, np.ones((1, 1, size, size), np.float32))[:, :, :h, :w]
    return result - 2


class _Writer:
    """Collects nodes and initialisers; every method returns the name of the value it made."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.rng = np.random.default_rng(spec.seed)
        self.of_task = np.random.default_rng([spec.seed, *spec.dense.encode()]) if spec.dense else self.rng
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, inputs: list[str], name: str, outputs: int = 1, **attributes) -> str | list[str]:
        names = [f"{name}/{kind}_output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"{name}/{kind}", **attributes))
        return names if outputs > 1 else names[0]

    def constant(self, values, name: str) -> str:
        array = np.asarray(values)
        tensor = numpy_helper.from_array(array if array.dtype == np.float32 else array.astype(np.int64))
        self.nodes.append(helper.make_node("Constant", [], [f"{name}_output_0"], name, value=tensor))
        return f"{name}_output_0"

    def weight(self, name: str, *shape: int, deviation: float, mean: float = 0.0, of_task: bool = False) -> str:
        rng = self.of_task if of_task else self.rng
        array = rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation) + np.float32(mean)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def norm(self, x: str, name: str, weights: str) -> str:
        gamma = self.weight(f"{weights}.weight", self.spec.width, deviation=0.1, mean=1.0)
        beta = self.weight(f"{weights}.bias", self.spec.width, deviation=0.15)  # a common part that skews the routing
        return self.op("LayerNormalization", [x, gamma, beta], name, axis=-1, epsilon=1e-6)

    def linear(self, x: str, name: str, weights: str, inputs: int, outputs: int, gain: float = 1.0) -> str:
        w = self.weight(f"{weights}.weight", inputs, outputs, deviation=gain / inputs**0.5)
        b = self.weight(f"{weights}.bias", outputs, deviation=0.02)
        return self.op("Add", [b, self.op("MatMul", [x, w], name)], name)

    def gelu(self, x: str, name: str) -> str:
        inner = self.op("Div", [x, self.constant(np.float32(2**0.5), f"{name}/Constant")], name)
        one = self.op("Add", [self.op("Erf", [inner], name), self.constant(np.float32(1), f"{name}/Constant_1")], name)
        both = self.op("Mul", [x, one], name)
        return self.op("Mul", [both, self.constant(np.float32(0.5), f"{name}/Constant_2")], f"{name}/half")

    def reshape(self, x: str, shape, name: str) -> str:
        return self.op("Reshape", [x, self.constant(shape, f"{name}/shape")], name)

    # --- the network -------------------------------------------------------------------------------------------
    def embedding(self) -> str:
        s = self.spec
        c = s.image[0]
        w = self.weight("patch_embed.proj.weight", s.width, c, s.patch, s.patch, deviation=1.0 / (c * s.patch**2) ** 0.5)
        b = self.weight("patch_embed.proj.bias", s.width, deviation=0.1)
        size = {"kernel_shape": [s.patch] * 2, "strides": [s.patch] * 2, "dilations": [1, 1], "pads": [0] * 4, "group": 1}
        x = self.op("Conv", ["image", w, b], "/patch_embed/proj", **size)
        x = self.reshape(x, [1, s.width, s.patches], "/patch_embed")
        x = self.op("Transpose", [x], "/patch_embed", perm=[0, 2, 1])
        token = self.weight("cls_token", 1, 1, s.width, deviation=0.5)
        position = self.weight("pos_embed", 1, s.tokens, s.width, deviation=0.3)
        x = self.op("Concat", [token, x], "/embed", axis=1)
        return self.op("Add", [x, position], "/embed")

    def attention(self, x: str, name: str, weights: str) -> str:
        s = self.spec
        depth = s.width // s.heads
        qkv = self.linear(x, f"{name}/qkv", f"{weights}.qkv", s.width, 3 * s.width, gain=1.2)
        qkv = self.reshape(qkv, [1, s.tokens, 3, s.heads, depth], f"{name}/heads")
        qkv = self.op("Transpose", [qkv], f"{name}/heads", perm=[2, 0, 3, 1, 4])
        parts = self.op("Split", [qkv, self.constant([1, 1, 1], f"{name}/Split/sizes")], name, outputs=3, axis=0)
        axis = self.constant([0], f"{name}/Squeeze/axes")
        q, k, v = (self.op("Squeeze", [p, axis], f"{name}/{n}") for p, n in zip(parts, "qkv", strict=True))
        k = self.op("Transpose", [k], f"{name}/k", perm=[0, 1, 3, 2])
        scores = self.op("MatMul", [q, k], f"{name}/scores")
        scores = self.op("Mul", [scores, self.constant(np.float32(depth**-0.5), f"{name}/scale")], name)
        y = self.op("MatMul", [self.op("Softmax", [scores], name, axis=-1), v], f"{name}/context")
        y = self.op("Transpose", [y], f"{name}/context", perm=[0, 2, 1, 3])
        y = self.reshape(y, [1, s.tokens, s.width], f"{name}/context")
        return self.linear(y, f"{name}/proj", f"{weights}.proj", s.width, s.width, gain=0.7)

    def mlp(self, x: str, name: str, weights: str) -> str:
        s = self.spec
        h = self.gelu(self.linear(x, f"{name}/fc1", f"{weights}.fc1", s.width, s.hidden, gain=1.2), f"{name}/act")
        return self.linear(h, f"{name}/fc2", f"{weights}.fc2", s.hidden, s.width, gain=0.7)

    def experts(self, x: str, name: str, weights: str) -> str:
        """Every expert on every token, then the chosen ones gathered: what an exporter makes of sparse routing."""
        s = self.spec
        e, t, d, h = s.experts, s.tokens, s.width, s.expert_hidden
        x = self.reshape(x, [t, d], f"{name}/flat")
        gate = self.weight(f"{weights}.gate.w_gate", d, e, deviation=1.5 / d**0.5, of_task=True)
        logits = self.op("MatMul", [x, gate], f"{name}/gate")
        scores = self.op("Softmax", [logits], f"{name}/gate", axis=1)
        top = {"axis": 1, "largest": 1, "sorted": 1}
        k = self.constant([s.top_k], f"{name}/gate/k")
        chosen, index = self.op("TopK", [scores, k], f"{name}/gate", outputs=2, **top)
        x = self.op("Unsqueeze", [x, self.constant([0], f"{name}/Unsqueeze/axes")], name)
        x = self.op("Expand", [x, self.constant([e, t, d], f"{name}/Expand/shape")], name)
        w1 = self.weight(f"{weights}.experts.htoh4.weight", e, d, h, deviation=1.2 / d**0.5)
        b1 = self.weight(f"{weights}.experts.htoh4.bias", e, 1, h, deviation=0.02)
        w2 = self.weight(f"{weights}.experts.h4toh.weight", e, h, d, deviation=0.7 / h**0.5)
        b2 = self.weight(f"{weights}.experts.h4toh.bias", e, 1, d, deviation=0.02)
        y = self.op("Add", [self.op("MatMul", [x, w1], f"{name}/htoh4"), b1], f"{name}/htoh4")
        y = self.gelu(y, f"{name}/act")
        y = self.op("Add", [self.op("MatMul", [y, w2], f"{name}/h4toh"), b2], f"{name}/h4toh")
        y = self.op("Transpose", [y], f"{name}/h4toh", perm=[1, 0, 2])
        index = self.op("Unsqueeze", [index, self.constant([-1], f"{name}/index/axes")], f"{name}/index")
        index = self.op("Expand", [index, self.constant([t, s.top_k, d], f"{name}/index/shape")], f"{name}/index")
        y = self.op("GatherElements", [y, index], name, axis=1)
        chosen = self.reshape(chosen, [t, 1, s.top_k], f"{name}/scores")
        y = self.op("MatMul", [chosen, y], f"{name}/combine")
        return self.reshape(y, [1, t, d], f"{name}/combine")

    def block(self, x: str, index: int) -> str:
        name, weights = f"/blocks.{index}", f"blocks.{index}"
        y = self.attention(self.norm(x, f"{name}/norm1", f"{weights}.norm1"), f"{name}/attn", f"{weights}.attn")
        x = self.op("Add", [x, y], name)
        part = self.experts if index % 2 else self.mlp
        y = part(self.norm(x, f"{name}/norm2", f"{weights}.norm2"), f"{name}/mlp", f"{weights}.mlp")
        return self.op("Add", [x, y], f"{name}/out")

    def head(self, x: str) -> str:
        s = self.spec
        x = self.op("Gather", [self.norm(x, "/norm", "norm"), self.constant(0, "/head/index")], "/head", axis=1)
        w = self.weight("head.weight", s.classes, s.width, deviation=1.0 / s.width**0.5)
        b = self.weight("head.bias", s.classes, deviation=0.02)
        return self.op("Gemm", [x, w, b], "/head", alpha=1.0, beta=1.0, transB=1)

    def conv(self, x: str, name: str, inputs: int, outputs: int, size: int = 3) -> str:
        """A convolution that keeps the map's size; BatchNorm is folded into it, as exporters do."""
        deviation = (2 / (inputs * size**2)) ** 0.5
        w = self.weight(f"{name[1:]}.weight", outputs, inputs, size, size, deviation=deviation, of_task=True)
        b = self.weight(f"{name[1:]}.bias", outputs, deviation=0.05, of_task=True)
        window = {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, "strides": [1, 1], "dilations": [1, 1], "group": 1}
        return self.op("Conv", [x, w, b], name, **window)

    def doubled(self, x: str, name: str) -> str:
        scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32))
        self.nodes.append(helper.make_node("Constant", [], [f"{name}/scales"], f"{name}/scales", value=scales))
        half = {"coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75, "mode": "linear"}
        return self.op("Resize", [x, "", f"{name}/scales"], name, nearest_mode="floor", **half)

    def dense_head(self, x: str) -> str:
        """Patch tokens as a map, then convolutions of 3 x 3, each on a map of twice the size, and classes on the largest."""
        s = self.spec
        bounds = [self.constant([n], f"/head/slice/{what}") for n, what in ((1, "from"), (s.tokens, "to"), (1, "axes"))]
        x = self.norm(self.op("Slice", [x, *bounds], "/head/slice"), "/head/norm", "head.norm")
        x = self.op("Transpose", [x], "/head/map", perm=[0, 2, 1])
        x = self.reshape(x, [1, s.width, s.image[1] // s.patch, s.image[2] // s.patch], "/head/map")
        for index in range(4):
            x = self.doubled(x, f"/head/up_{index}") if index else x
            x = self.conv(x, f"/head.conv_{index}", s.channels if index else s.width, s.channels)
            x = self.op("Relu", [x], f"/head/relu_{index}")
        return self.doubled(self.conv(x, "/head.conv_4", s.channels, s.classes, size=1), "/head/up_4")


def model(spec: Spec) -> onnx.ModelProto:
    """The network of `spec` as ONNX: input `image` [1, C, H, W].

    Output: `tokens` [1, T, D], `logits` [1, classes], or, named as the dense task, [1, classes, 16 H / patch, 16 W / patch].
    """
    w = _Writer(spec)
    x = w.embedding()
    for index in range(spec.layers):
        x = w.block(x, index)
    name, shape = "tokens", [1, spec.tokens, spec.width]
    if spec.dense:
        x = w.dense_head(x)
        name, shape = spec.dense, [1, spec.classes, *(16 * n // spec.patch for n in spec.image[1:])]
    elif spec.classes is not None:
        x = w.head(x)
        name, shape = "logits", [1, spec.classes]
    w.nodes[-1].output[0] = name  # the node that makes x
    graph = helper.make_graph(
        w.nodes,
        "m3vit",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *spec.image])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        w.weights,
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="hwgen")
    result.ir_version = 8
    return result
