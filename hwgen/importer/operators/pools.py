"""Pools: reductions over the windows of a padded tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensor import FLOAT, Ref
from ..rules import Context, Op, Unsupported, rule
from .products import geometry, windows


@rule("MaxPool", "AveragePool", "LpPool", "com.microsoft.nchwc.MaxPool", "com.microsoft.nchwc.AveragePool")
def pool(c: Context, op: Op, x: Ref) -> Ref:
    """With ceil_mode, a last window that starts behind the tensor and its front pad is dropped, as onnxruntime does (ONNX's
    shape inference before opset 22 keeps it); an average divides by the elements inside, pads only on request. Taps that
    lie behind the tensor and its pads in the first window already, as of a window of 640 over a map of 2, are left out."""
    t, kernel, kind = c.t, op.attribute("kernel_shape"), op.type.rpartition(".")[2]
    lengths = x.shape[2:]
    strides, dilations, pads = geometry(op, lengths, kernel)
    ceil = op.flag("ceil_mode")
    op.ignore("storage_order")
    if any(op.outputs[1:]):
        raise Unsupported("gives the indices of its maxima")
    over, within = [], []
    for n, k, s, d, (a, b) in zip(lengths, kernel, strides, dilations, pads, strict=True):
        count = (n + a + b - d * (k - 1) - 1) // s + 1
        if ceil:
            count = -(-(n + a + b - d * (k - 1) - 1) // s) + 1
            count -= (count - 1) * s >= n + a
        within.append(min(k, -(-(n + a + b) // d)))
        over.append(max((count - 1) * s + d * (within[-1] - 1) + 1 - n - a - b, 0))
    kernel = within
    wide = [(a, b + o) for (a, b), o in zip(pads, over, strict=True)]
    axes = range(2 + len(kernel), 2 + 2 * len(kernel))

    def reduced(function: str, r: Ref, pads: Any, value: float = 0.0) -> Ref:
        return t.reduce(function, windows(c, r, kernel, strides, dilations, pads, value), axes, keep=False)

    if kind == "MaxPool":
        return reduced("max", x, wide, -np.inf if x.dtype == FLOAT else np.iinfo(np.int64).min)
    if kind == "LpPool":
        p = float(op.attribute("p", 2))
        return t.map("pow", reduced("sum", t.map("pow", t.map("abs", x), p), wide), 1 / p)
    total = reduced("sum", x, wide)
    ones = t.const(np.ones((1, 1, *lengths), np.float32))
    if op.flag("count_include_pad"):
        ones = t.pad(ones, [0, 0, *(a for a, _ in pads)], [0, 0, *(b for _, b in pads)], 1.0)
        counts = reduced("sum", ones, [(0, o) for o in over])
    else:
        counts = reduced("sum", ones, wide)
    return t.map("mul", total, t.map("div", 1.0, counts))
