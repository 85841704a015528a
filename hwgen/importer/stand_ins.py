"""ONNX's reference evaluator where onnxruntime is absent: operators that it lacks, and those that it computes wrongly.
It hands a class of ours what the newest operator of that name has as attributes: `**_`.

What is wrong was found with onnx 1.23 beside onnxruntime 1.32 and the specification. A file that has such a node is not
run by it at all: a float reference that is not the file's would make a right import look wrong, or a wrong one right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_grid_sample import GridSample as Sampler
from scipy.special import erf

Array = np.ndarray


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + erf(x / np.sqrt(2))), x.dtype)


class Gelu(OpRun):
    """x * normal distribution function of x."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, **_: Any) -> tuple[Array, ...]:
        return (_gelu(x),)


class BiasGelu(OpRun):
    """Gelu of x + bias."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, bias: Array, **_: Any) -> tuple[Array, ...]:
        return (_gelu(x + bias),)


class FastGelu(OpRun):
    """The tanh form of Gelu of x + bias."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, bias: Any = None, **_: Any) -> tuple[Array, ...]:
        x = x if bias is None else x + bias
        return ((0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(x.dtype),)


class SkipLayerNormalization(OpRun):
    """LayerNorm of input + skip + bias; mean, inverse deviation and the sum as further outputs."""

    op_domain = "com.microsoft"

    def _run(
        self, x: Array, skip: Array, gamma: Array, beta: Any = None, bias: Any = None, epsilon: Any = None, **_: Any
    ) -> tuple[Array, ...]:
        total = x + skip if bias is None else x + skip + bias
        mean = total.mean(axis=-1, keepdims=True)
        inverse = 1 / np.sqrt(((total - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon)
        y = (total - mean) * inverse * gamma
        y = y if beta is None else y + beta
        return (y.astype(x.dtype), mean, inverse, total)[: max(1, len(self.onnx_node.output))]


def _along(x: Array, parameter: Array, axis: int) -> Array:
    """A scale or zero point for the whole tensor, or for each slice along an axis, so that it broadcasts against x."""
    if parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


class DequantizeLinear(OpRun):
    """(x - zero point) * scale."""

    def _run(self, x: Array, scale: Array, zero: Any = None, axis: Any = 1, **_: Any) -> tuple[Array, ...]:
        offset = 0 if zero is None else _along(x, zero, axis).astype(np.int64)
        return (((x.astype(np.int64) - offset) * _along(x, scale, axis)).astype(scale.dtype),)


class QuantizeLinear(OpRun):
    """x / scale rounded half to even, + zero point, saturated; uint8 without a zero point."""

    def _run(self, x: Array, scale: Array, zero: Any = None, axis: Any = 1, **_: Any) -> tuple[Array, ...]:
        kind = np.uint8 if zero is None else zero.dtype
        offset = 0 if zero is None else _along(x, zero, axis).astype(np.int64)
        limits = np.iinfo(kind)
        return (np.clip(np.rint(x / _along(x, scale, axis)) + offset, limits.min, limits.max).astype(kind),)


class BatchNormalization(OpRun):
    """Per channel (x - mean) / sqrt(variance + epsilon) * scale + bias, of the file's mean and variance."""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: Any = None, **_: Any
    ) -> tuple[Array, ...]:
        scale, bias, mean, variance = (_along(x, a, 1) for a in (scale, bias, mean, variance))
        return (((x - mean) / np.sqrt(variance + np.float32(epsilon)) * scale + bias).astype(x.dtype),)


class GridSample(Sampler):
    """The evaluator's own, which knows the modes of opset 20 only."""

    def _run(self, X: Any, grid: Any, mode: Any = None, padding_mode: Any = None, align_corners: Any = None, **_: Any) -> Any:
        mode = {"bilinear": "linear", "bicubic": "cubic", None: "linear"}.get(mode, mode)
        own: Any = super()._run
        return own(X, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners)


def operators(opset: int) -> list[type[OpRun]]:
    """What a file of this opset needs beside the evaluator's own."""
    pairs = (DequantizeLinear, QuantizeLinear)
    contrib = [type(c.__name__, (c,), {"op_domain": "com.microsoft"}) for c in pairs]
    # Below opset 14 the evaluator normalises by what it sees of the batch, as in training; below 20 modes have other names.
    old = [*(pairs if opset < 19 else ()), *([BatchNormalization] if opset < 14 else [])]
    old += [GridSample] if opset < 20 else []
    return [Gelu, BiasGelu, FastGelu, SkipLayerNormalization, *contrib, *old]


def faults(opset: int, nodes: Iterable[NodeProto], constants: Mapping[str, Array]) -> list[str]:
    """Nodes that the evaluator computes otherwise than onnxruntime and the specification do, with what it is about them."""
    found = []
    for node in nodes:
        has = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type != a.GRAPH}
        texts = {k: v.decode() for k, v in has.items() if isinstance(v, bytes)}
        why = None
        if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and opset < 13:
            why = f"{node.op_type} of opset {opset}"
        elif node.op_type == "AveragePool" and has.get("ceil_mode"):
            why = "AveragePool with ceil_mode"
        elif node.op_type in ("MaxPool", "ConvTranspose") and texts.get("auto_pad", "NOTSET") != "NOTSET":
            why = f"{node.op_type} with auto_pad"
        elif node.op_type == "GridSample" and "cubic" in texts.get("mode", "") and texts.get("padding_mode") == "border":
            why = "cubic GridSample with border"
        elif node.op_type == "LpNormalization" and has.get("p", 2) == 1:
            why = "LpNormalization of p = 1"
        elif node.op_type == "Resize":
            scales = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.ones(1)
            odd = texts.get("coordinate_transformation_mode") in ("align_corners", "pytorch_half_pixel")
            if scales is None or (scales % 1).any() or (odd and (scales != 1).any()) or (odd and texts.get("mode") == "cubic"):
                why = "Resize by such scales"
        if why:
            found.append(f"{why} in node {node.name or ', '.join(node.output)!r}")
    return found
