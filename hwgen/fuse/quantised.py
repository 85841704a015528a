"""QuantizeLinear and DequantizeLinear of constants: the weights and biases of a model that is quantised already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .op import Op, Unsupported

Array = np.ndarray
LINEAR = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear")
)
# What stands in a model whose products are integer products; `frontend.quantised` has removed what it understands.
INTEGER = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearMatMul QLinearConv MatMulInteger ConvInteger".split()
    + "QGemm QAttention QLinearAdd QLinearMul QLinearSigmoid QLinearSoftmax QLinearConcat QLinearGlobalAveragePool".split()
    + "QLinearAveragePool QLinearReduceMean QLinearWhere DynamicQuantizeMatMul MatMulIntegerToFloat".split()
    + "MatMulNBits MatMulFpQ4 MatMulBnb4 QMoE".split()
)
HINT = "give the float model, which hwgen quantises itself, or one in QDQ format with int8 weights"


def linear(op: Op, inputs: Sequence[Array | None]) -> Array:
    """(q - zero) * scale, or round(x / scale) + zero saturated, of constants. Raises Unsupported for other than integers."""
    x, scale, zero = [*inputs, None][:3]
    if op.attribute("block_size", 0):
        raise Unsupported(f"is quantised in blocks of {op.attribute('block_size')}", HINT)
    backward = op.type.endswith("DequantizeLinear")
    held = x if backward else zero
    if held is not None and (held.dtype.kind not in "iu" or held.dtype.type.__module__ != "numpy"):
        raise Unsupported(f"holds {held.dtype}; int8, uint8, int16, uint16 and int32 are supported", HINT)
    scale = _along(op, x, scale).astype(np.float32)
    offset = 0 if zero is None else _along(op, x, zero).astype(np.int64)
    if backward:
        return ((x.astype(np.int64) - offset) * scale).astype(np.float32)
    limits = np.iinfo(np.uint8 if zero is None else zero.dtype)
    return np.clip(np.rint(x / scale) + offset, limits.min, limits.max).astype(limits.dtype)


def _along(op: Op, x: Array, parameter: Array) -> Array:
    """A parameter per tensor, or per slice of the attribute `axis`, in a shape that broadcasts against x."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = op.attribute("axis", 1)
    if parameter.ndim != 1 or not -x.ndim <= axis < x.ndim or x.shape[axis] != len(parameter):
        raise Unsupported(f"its scale of shape {parameter.shape} does not fit {x.shape} at axis {axis}")
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)
