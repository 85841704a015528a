"""Quantisation: to integers and back, dynamic scales, products of integers, and onnxruntime's operators on integers, each
as what it emulates: dequantise, compute, quantise. `..quantised` says in which nodes of T a grid stands."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from ...tensor import Ref
from ..quantised import as_float, clip, real, scaled
from ..rules import RULES, Array, Context, Op, Unsupported, rule
from .products import conv

HINT = "give the float model, which hwgen quantises itself, or one in QDQ format with int8 weights"
TYPES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 21: "uint4", 22: "int4", 25: "uint2", 26: "int2"}


def limits(kind: str) -> tuple[int, int]:
    """(smallest, largest) number of an integer type."""
    found = re.fullmatch(r"(u?)int(\d+)", kind)
    if found is None:
        raise Unsupported(f"holds {kind}, which is no integer", HINT)
    bits = int(found[2])
    return (0, 2**bits - 1) if found[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def kind_of(c: Context, op: Op, position: int) -> str | None:
    """The element type that an operand has in the file."""
    name = op.inputs[position] if position < len(op.inputs) else ""
    return c.kinds.get(name) if name else None


def shaped(c: Context, p: Any, shape: tuple[int, ...], axis: int, block: int = 0) -> Any:
    """A scale or zero point, per tensor, per slice of an axis or per block of it, such that it broadcasts."""
    if p is not None and p.constant is not None and not np.isfinite(p.numbers).all():
        raise Unsupported("its scale is infinite", "quantise again without what masks by -inf (nodes_to_exclude)")
    if p is None or p.layout.size == 1:
        return p if p is None else c.t.reshape(p, ())
    axis = axis % len(shape) if -len(shape) <= axis < len(shape) else -1
    if block:
        if len(p.shape) != len(shape) or axis < 0 or -(-shape[axis] // block) != p.shape[axis]:
            raise Unsupported(f"its scale of shape {p.shape} does not fit {shape} in blocks of {block} of axis {axis}")
        wide = c.t.reshape(p, (*p.shape[: axis + 1], 1, *p.shape[axis + 1 :]))
        wide = c.t.expand(wide, (*p.shape[: axis + 1], block, *p.shape[axis + 1 :]))
        wide = c.t.reshape(wide, (*p.shape[:axis], p.shape[axis] * block, *p.shape[axis + 1 :]))
        return c.t.slice(wide, axis, 0, shape[axis])
    if len(p.shape) != 1 or axis < 0 or shape[axis] != p.shape[0]:
        raise Unsupported(f"its scale of shape {p.shape} does not fit {shape} at axis {axis}")
    return c.t.reshape(p, [-1 if i == axis else 1 for i in range(len(shape))])


def quantise(c: Context, x: Ref, scale: Any, zero: Ref | None, kind: str) -> Ref:
    """round(x / scale) + zero, saturated, as integers; scale and zero broadcast against x."""
    t, (low, high) = c.t, limits(kind)
    x = t.map("round", t.map("div", as_float(t, x), scale))
    if zero is not None and zero.constant is None:
        return t.map("int", clip(t, t.map("add", x, as_float(t, zero)), low, high))
    shift = np.zeros(()) if zero is None else zero.numbers.astype(np.float32)
    return t.map("int", t.map("add", clip(t, x, low - shift, high - shift), t.const(shift.astype(np.float32))))


def dequantise(c: Context, q: Any, scale: Any, zero: Any, axis: int = 1) -> Ref:
    """Integers as the numbers that they stand for."""
    return scaled(c.t, real(c.t, q, shaped(c, zero, q.shape, axis)), shaped(c, scale, q.shape, axis))


@rule("QuantizeLinear", "com.microsoft.QuantizeLinear")
def quantize_linear(c: Context, op: Op, x: Ref, scale: Ref, zero: Ref | None = None) -> Ref:
    """The type is that of the zero point, else `output_dtype`, else uint8."""
    op.ignore("saturate")  # of 8-bit floating point alone
    if op.attribute("precision", 0) not in (0, 1):
        raise Unsupported("divides in another precision than float32")
    given = op.attribute("output_dtype", 0)
    kind = kind_of(c, op, 2) if zero is not None else TYPES.get(given, f"type {given} of ONNX") if given else "uint8"
    if kind is None:
        raise Unsupported("the type of its zero point is not known", HINT)
    axis, block = op.attribute("axis", 1), op.attribute("block_size", 0)
    c.kinds[op.outputs[0]] = kind
    return quantise(c, x, shaped(c, scale, x.shape, axis, block), shaped(c, zero, x.shape, axis, block), kind)


@rule("DequantizeLinear", "com.microsoft.DequantizeLinear")
def dequantize_linear(c: Context, op: Op, q: Ref, scale: Ref, zero: Ref | None = None) -> Ref:
    if op.attribute("output_dtype", 0) not in (0, 1, 10, 16):
        raise Unsupported(f"output_dtype is {op.attribute('output_dtype')} of ONNX, which is no floating point")
    limits(kind_of(c, op, 0) or "int8")
    axis, block = op.attribute("axis", 1), op.attribute("block_size", 0)
    return scaled(c.t, real(c.t, q, shaped(c, zero, q.shape, axis, block)), shaped(c, scale, q.shape, axis, block))


@rule("DynamicQuantizeLinear")
def dynamic(c: Context, op: Op, x: Ref) -> list[Ref]:
    """uint8, with scale and zero point from the smallest and largest number of the tensor and 0; as onnxruntime, the scale
    is 1 where all are 0."""
    t, axes = c.t, list(range(len(x.shape)))
    least = t.map("min", t.reduce("min", x, axes, keep=False), 0)
    most = t.map("max", t.reduce("max", x, axes, keep=False), 0)
    scale = t.map("where", t.map("eq", most, least), 1.0, t.map("div", t.map("sub", most, least), 255.0))
    zero = t.map("round", clip(t, t.map("sub", 0.0, t.map("div", least, scale)), 0, 255))
    y = clip(t, t.map("add", t.map("round", t.map("div", x, scale)), zero), 0, 255)
    c.kinds[op.outputs[0]] = "uint8"
    return [t.map("int", y), scale, t.map("int", zero)]


# --- products of integers ---------------------------------------------------------------------------------------------


def _rows(c: Context, p: Ref | None, x: Ref) -> Ref | None:
    """A zero point or scale of the left operand of a product: for all, or for each row."""
    return c.t.reshape(p, (*p.shape, 1)) if p is not None and len(p.shape) == 1 and p.layout.size > 1 else p


@rule("MatMulInteger")
def matmul_integer(c: Context, op: Op, a: Ref, b: Ref, a_zero: Ref | None = None, b_zero: Ref | None = None) -> Ref:
    """In floating point: exact up to 2^24, beyond to 1e-7, as the float32 is that it becomes."""
    return c.t.map("int", c.t.matmul(real(c.t, a, _rows(c, a_zero, a)), real(c.t, b, b_zero)))


@rule("ConvInteger")
def conv_integer(c: Context, op: Op, x: Ref, w: Ref, x_zero: Ref | None = None, w_zero: Ref | None = None) -> Ref:
    """Padded with the zero point, which is 0 here."""
    return c.t.map("int", conv(c, op, real(c.t, x, x_zero), real(c.t, w, shaped(c, w_zero, w.shape, 0))))


@rule("com.microsoft.MatMulIntegerToFloat")
def matmul_integer_to_float(c: Context, op: Op, a: Ref, b: Ref, a_scale: Ref, b_scale: Ref, *rest: Ref | None) -> Ref:
    a_zero, b_zero, bias = [*rest, None, None, None][:3]
    left = c.t.map("mul", real(c.t, a, _rows(c, a_zero, a)), _rows(c, a_scale, a))
    y = c.t.matmul(left, c.t.map("mul", real(c.t, b, b_zero), b_scale))
    return y if bias is None else c.t.map("add", y, bias)


@rule("com.microsoft.DynamicQuantizeMatMul")
def dynamic_matmul(
    c: Context, op: Op, a: Ref, b: Ref, b_scale: Ref, b_zero: Ref | None = None, bias: Ref | None = None
) -> Ref:
    q, scale, zero = dynamic(c, op, a)
    y: Ref = matmul_integer_to_float(c, op, q, b, scale, b_scale, zero, b_zero, bias)
    return y


@rule("com.microsoft.MatMulNBits")
def matmul_nbits(c: Context, op: Op, a: Ref, b: Ref, scales: Ref, *rest: Ref | None) -> Ref:
    """a @ w' + bias, w [N, K] in blocks along K of packed numbers, the low bits first; zero point 2^(bits - 1) by default."""
    op.ignore("accuracy_level", "weight_prepacked")
    zeros, order, bias = [*rest, None, None, None][:3]
    inputs, outputs, bits, block = (
        op.attribute(n, d) for n, d in (("K", None), ("N", None), ("bits", 4), ("block_size", None))
    )
    if order is not None or bits not in (2, 4, 8):
        raise Unsupported(f"has its columns in another order, or {bits} bits", HINT)
    blocks = -(-inputs // block)
    whole = zeros is None or kind_of(c, op, 3) == "uint8"
    if bits == 8 and not whole:
        raise Unsupported("has 8 bits and zero points that are no whole numbers, which onnxruntime refuses", HINT)
    packed = c.array(b, "the weight").reshape(outputs, blocks, -1)
    w = _unpacked(packed, bits).astype(np.float32)
    if zeros is None:
        zero: Array = np.array(2 ** (bits - 1), np.float32)
    else:
        zero = c.array(zeros, "the zero points").reshape(outputs, -1)
        zero = zero if not whole else _unpacked(zero, bits)[:, :blocks]
        zero = zero.reshape(outputs, blocks, 1).astype(np.float32)
    w = (w - zero) * c.array(scales, "the scales").reshape(outputs, blocks, 1)
    y = c.t.matmul(a, c.t.const(w.reshape(outputs, -1)[:, :inputs].T, op.inputs[1]))
    return y if bias is None else c.t.map("add", y, bias)


def _unpacked(packed: Array, bits: int) -> Array:
    """Numbers of few bits out of bytes, along the last axis."""
    parts = packed.astype(np.int64)[..., None] >> np.arange(0, 8, bits) & (1 << bits) - 1
    return parts.reshape(*packed.shape[:-1], -1)


# --- operators on integers: dequantise, compute, quantise ----------------------------------------------------------------


def _output(c: Context, op: Op, y: Ref, scale: Any, zero: Any, position: int) -> Ref:
    """A result as integers of the type of its zero point, which is operand `position`."""
    kind = kind_of(c, op, position) or ("uint8" if zero is None else None)
    if kind is None:
        raise Unsupported("the type of its zero point is not known", HINT)
    c.kinds[op.outputs[0]] = kind
    return quantise(c, y, c.t.reshape(scale, ()), None if zero is None else c.t.reshape(zero, ()), kind)


@rule("QLinearMatMul")
def qlinear_matmul(
    c: Context, op: Op, a: Ref, a_scale: Ref, a_zero: Ref, b: Ref, b_scale: Ref, b_zero: Ref, *y: Ref
) -> Ref:
    left = c.t.map("mul", real(c.t, a, _rows(c, a_zero, a)), _rows(c, a_scale, a))
    return _output(c, op, c.t.matmul(left, c.t.map("mul", real(c.t, b, b_zero), b_scale)), y[0], y[1], 7)


@rule("QLinearConv")
def qlinear_conv(c: Context, op: Op, *x: Any) -> Ref:
    data, weight = dequantise(c, x[0], x[1], x[2]), dequantise(c, x[3], x[4], x[5], axis=0)
    bias = x[8] if len(x) > 8 else None
    if bias is not None:
        bias = c.t.map("mul", c.t.map("float", bias), c.t.map("mul", x[1], c.t.reshape(x[4], (-1,))))
    return _output(c, op, conv(c, op, data, weight, bias), x[6], x[7], 7)


@rule("com.microsoft.QGemm")
def qgemm(c: Context, op: Op, *x: Any) -> Ref:
    """Floating point where no scale of the result is given."""
    bias, scale, zero = [*x[6:], None, None, None][:3]
    rows = 0 if op.flag("transB") else 1
    if bias is not None:
        bias = c.t.map("mul", c.t.map("float", bias), c.t.map("mul", x[1], x[4]))
    y = RULES["Gemm"](c, op, dequantise(c, x[0], x[1], x[2]), dequantise(c, x[3], x[4], x[5], axis=rows), bias)
    return y if scale is None else _output(c, op, y, scale, zero, 8)


@rule("com.microsoft.QLinearConcat")
def qlinear_concat(c: Context, op: Op, scale: Ref, zero: Ref, *x: Any) -> Ref:
    parts = [dequantise(c, x[i], x[i + 1], x[i + 2]) for i in range(0, len(x), 3)]
    return _output(c, op, c.t.concat(parts, op.attribute("axis")), scale, zero, 1)


@rule("com.microsoft.QLinearWhere")
def qlinear_where(c: Context, op: Op, condition: Ref, *x: Any) -> Ref:
    return _output(
        c,
        op,
        c.t.map("where", condition, dequantise(c, x[0], x[1], x[2]), dequantise(c, x[3], x[4], x[5])),
        x[6],
        x[7],
        8,
    )


EMULATED = {
    "Add": 2,
    "Mul": 2,
    **dict.fromkeys("Sigmoid LeakyRelu Softmax AveragePool GlobalAveragePool".split(), 1),
}
REFUSED = "QMoE QAttention MatMulBnb4 MatMulFpQ4 QOrderedMatMul QOrderedAttention QEmbedLayerNormalization".split()


@rule(*(f"com.microsoft.QLinear{kind}" for kind in EMULATED))
def qlinear(c: Context, op: Op, *x: Any) -> Ref:
    """Operands in threes, then scale and zero point of the result."""
    kind = op.type.removeprefix("com.microsoft.QLinear")
    if op.flag("channels_last"):
        raise Unsupported("has its channels last (channels_last=1)")
    plain = replace(op, type=kind, opset=op.attribute("opset", 17), read=op.read)
    parts = [dequantise(c, x[i], x[i + 1], x[i + 2]) for i in range(0, 3 * EMULATED[kind], 3)]
    scale, zero = [*x[3 * len(parts) :], None][:2]
    return _output(c, op, RULES[kind](c, plain, *parts), scale, zero, 3 * len(parts) + 1)


@rule(*(f"com.microsoft.{kind}" for kind in REFUSED))
def refused(c: Context, op: Op, *x: Any) -> Any:
    raise Unsupported("computes on integers in a way that is not supported", HINT)
