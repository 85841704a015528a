"""Operators of onnxruntime's own domain for ONNX's reference evaluator, for machines without onnxruntime."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun
from scipy.special import erf

Array = np.ndarray


def _gelu(x: Array) -> Array:
    return (0.5 * x * (1 + erf(x / np.sqrt(2)))).astype(x.dtype)


class Gelu(OpRun):
    """x * normal distribution function of x."""

    op_domain = "com.microsoft"

    def _run(self, x):
        return (_gelu(x),)


class BiasGelu(OpRun):
    """Gelu of x + bias."""

    op_domain = "com.microsoft"

    def _run(self, x, bias):
        return (_gelu(x + bias),)


class FastGelu(OpRun):
    """The tanh form of Gelu of x + bias."""

    op_domain = "com.microsoft"

    def _run(self, x, bias=None):
        x = x if bias is None else x + bias
        return ((0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))).astype(x.dtype),)


class SkipLayerNormalization(OpRun):
    """LayerNorm of input + skip + bias; mean, inverse deviation and the sum as further outputs."""

    op_domain = "com.microsoft"

    def _run(self, x, skip, gamma, beta=None, bias=None, epsilon=None):
        total = x + skip if bias is None else x + skip + bias
        mean = total.mean(axis=-1, keepdims=True)
        inverse = 1 / np.sqrt(((total - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon)
        y = (total - mean) * inverse * gamma
        y = y if beta is None else y + beta
        return (y.astype(x.dtype), mean, inverse, total)[: max(1, len(self.onnx_node.output))]


CONTRIB = [Gelu, BiasGelu, FastGelu, SkipLayerNormalization]
