"""Operators of onnxruntime's optimiser that are several of ONNX's in one."""

from __future__ import annotations

from .activation import activation, relu, sigmoid, tanh
from .elementwise import add
from .emit import Context
from .norm import layer_norm
from .op import Op, Unsupported
from .products import gemm
from .symbols import Lin
from .views import View

FUSED_ACTIVATIONS = {"Relu": relu, "Sigmoid": sigmoid, "Tanh": tanh}


def skip_layer_norm(ctx: Context, op: Op, values: list) -> list:
    """com.microsoft.SkipLayerNormalization: y = LayerNorm(input + skip + bias), and the sum as fourth output."""
    a, b, gamma, beta, bias = (list(values) + [None] * 5)[:5]
    if bias is not None:
        if not isinstance(a, View) or not isinstance(a.sym, Lin):
            a, b = b, a
        a = add(ctx, op, a, bias)
    total = add(ctx, op, a, b)
    normalised = layer_norm(ctx, op, [total, gamma, beta])
    return [normalised, None, None, total][: len(op.outputs)]


def bias_gelu(ctx: Context, op: Op, values: list) -> View:
    """com.microsoft.BiasGelu and FastGelu (the tanh form), whose bias may be absent."""
    x = values[0] if len(values) < 2 or values[1] is None else add(ctx, op, values[0], values[1])
    return activation(ctx, op, x, "tanh" if op.type.endswith("FastGelu") else "none")


def fused_gemm(ctx: Context, op: Op, values: list) -> View:
    """com.microsoft.FusedGemm: a Gemm and the activation after it."""
    kind = op.attribute("activation")
    if kind not in FUSED_ACTIVATIONS:
        raise Unsupported(f"has {kind} as activation", "use GELU, SiLU or ReLU as activation")
    return FUSED_ACTIVATIONS[kind](ctx, op, [gemm(ctx, op, values)])
