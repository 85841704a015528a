"""Operators of onnxruntime's optimiser: several of ONNX's in one, and convolutions in the layouts of its processors."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ...tensor import Ref
from ..rules import RULES, Array, Context, Op, Unsupported, rule
from .elementwise import gelu_of
from .products import conv, gemm
from .reductions import affine, normalised
from .resize import resize

NCHWC = "com.microsoft.nchwc."
ACTIVATIONS = {  # with the names of their numbers
    **{"Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",)},
    **{"Clip": ("min", "max"), "HardSigmoid": ("alpha", "beta"), "HardSwish": (), "Gelu": ()},
}


@rule("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
def skip_norm(c: Context, op: Op, x: Ref, skip: Ref, scale: Ref, *rest: Ref | None) -> list[Any]:
    """The norm of x + skip + bias, and that sum as fourth output."""
    simple = "Simplified" in op.type
    shift, bias = (None, *rest, None)[:2] if simple else (*rest, None, None)[:2]
    total = c.t.map("add", x, skip)
    total = total if bias is None else c.t.map("add", total, bias)
    y, mean, deviation = normalised(c, total, [-1], op.attribute("epsilon", 1e-12), centre=not simple)
    inverse = c.t.map("div", 1.0, deviation) if len(op.outputs) > 2 and op.outputs[2] else None
    return [affine(c, y, scale, shift), mean, inverse, total][: len(op.outputs)]


@rule("com.microsoft.BiasGelu", "com.microsoft.FastGelu")
def bias_gelu(c: Context, op: Op, x: Ref, bias: Ref | None = None) -> Ref:
    x = x if bias is None else c.t.map("add", x, bias)
    return gelu_of(c, x, "tanh" if op.type.endswith("FastGelu") else "none")


@rule("com.microsoft.FusedMatMul")
def fused_matmul(c: Context, op: Op, a: Ref, b: Ref) -> Ref:
    """alpha * a @ b, the last two axes of each swapped on request, after the first one moved before the last."""
    refs = []
    for r, name in ((a, "A"), (b, "B")):
        order = list(range(len(r.shape)))
        if op.flag(f"transBatch{name}"):
            order.insert(len(r.shape) - 2, order.pop(0))
        if op.flag(f"trans{name}"):
            order[-2:] = order[:-3:-1]
        refs.append(c.t.transpose(r, order))
    return c.t.map("mul", c.t.matmul(*refs), op.attribute("alpha", 1.0))


def activated(c: Context, op: Op, y: Ref, numbers: list[float]) -> Ref:
    """The activation that attribute `activation` names, with its `numbers`."""
    kind = op.attribute("activation", "")
    if not kind:
        return y
    if kind not in ACTIVATIONS:
        raise Unsupported(f"has {kind} as activation")
    inner = Op(kind, op.name, (), ("",), dict(zip(ACTIVATIONS[kind], numbers, strict=False)), 6)
    made: Ref = RULES[kind](c, inner, y)
    return made


@rule("com.microsoft.FusedGemm")
def fused_gemm(c: Context, op: Op, *x: Ref) -> Ref:
    numbers = [op.attribute(f"activation_{n}") for n in ("alpha", "beta")]
    op.ignore("activation_gamma")
    return activated(c, op, gemm(c, op, *x), [n for n in numbers if n is not None])


@rule("com.microsoft.FusedConv", NCHWC + "Conv")
def fused_conv(
    c: Context, op: Op, x: Ref, weight: Ref, bias: Ref | None = None, added: Ref | None = None
) -> Ref:
    """Added to a sum, then the activation. A blocked tensor is kept as a plain one of as many channels."""
    if op.type.startswith(NCHWC):
        weight = c.t.const(_plain(c.array(weight, "the weight")))
    y = conv(c, op, x, weight, bias)
    y = y if added is None else c.t.map("add", y, added)
    return activated(c, op, y, op.attribute("activation_params") or [])


@rule("com.microsoft.NhwcConv")
def nhwc_conv(c: Context, op: Op, x: Ref, weight: Ref, bias: Ref | None = None) -> Ref:
    rank = len(x.shape)
    y = conv(c, op, c.t.transpose(x, [0, rank - 1, *range(1, rank - 1)]), weight, bias)
    return c.t.transpose(y, [0, *range(2, rank), 1])


@rule(NCHWC + "ReorderInput")
def reorder_input(c: Context, op: Op, x: Ref) -> Ref:
    """Channels filled up to whole blocks."""
    x = c.t.transpose(x, (0, 3, 1, 2)) if op.flag("channels_last") else x
    return c.t.pad(x, [0] * 4, [0, -x.shape[1] % block_size(), 0, 0])


@rule(NCHWC + "ReorderOutput")
def reorder_output(c: Context, op: Op, x: Ref) -> Ref:
    x = c.t.slice(x, 1, 0, op.attribute("channels"))
    return c.t.transpose(x, (0, 2, 3, 1)) if op.flag("channels_last") else x


@rule(NCHWC + "Upsample")
def upsample(c: Context, op: Op, x: Ref) -> Ref:
    names = ("mode", "coordinate_transformation_mode")
    given: dict[str, Any] = {n: op.attribute(n, "asymmetric" if n != "mode" else "nearest") for n in names}
    scales = c.t.const(np.asarray(op.attribute("scales"), np.float32))
    made: Ref = resize(c, Op("Resize", op.name, (), ("",), {**given, "nearest_mode": "floor"}, 13), x, None, scales)
    return made


def _plain(weight: Array) -> Array:
    """A weight [outputs, inputs, height, width] out of blocks: [out / B][in / B][h][w][B in][B out], and with few inputs,
    [out / B][in][h][w][B out]."""
    outputs, inputs, *kernel = weight.shape
    b = block_size()
    if inputs % b:
        blocks = weight.reshape(outputs // b, inputs, *kernel, b)
        return np.ascontiguousarray(np.moveaxis(blocks, -1, 1)).reshape(weight.shape)
    blocks = weight.reshape(outputs // b, inputs // b, *kernel, b, b)
    return np.ascontiguousarray(blocks.transpose(0, 5, 1, 4, 2, 3)).reshape(weight.shape)


@cache
def block_size() -> int:
    """B of this machine's onnxruntime, 8 or 16, which nothing in a file tells: the operator itself is asked."""
    try:
        import onnxruntime
    except ImportError:
        raise Unsupported("has a layout that only onnxruntime can read (pip install onnxruntime)") from None
    weight = np.arange(32, dtype=np.float32).reshape(16, 1, 1, 2)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["blocked"], domain=NCHWC[:-1], kernel_shape=[1, 2]),
        helper.make_node("ReorderOutput", ["blocked"], ["y"], domain=NCHWC[:-1], channels=16),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 1, 1, 2]), ("y", None)))
    graph = helper.make_graph(nodes, "blocked", [x], [y], [numpy_helper.from_array(weight, "w")])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid(NCHWC[:-1], 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = helper.make_model(graph, opset_imports=sets, ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.array([[[[1, 0]]]], np.float32)})[0].reshape(-1)
    return 16 if found[8] == 8 else 8
