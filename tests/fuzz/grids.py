"""Networks as quantisers leave them: operands of products rounded to grids by pairs of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PRODUCTS = ("Conv", "MatMul", "Gemm")
Run = Callable[[onnx.ModelProto], list[np.ndarray]]


def quantised(model: onnx.ModelProto, rng: np.random.Generator, run: Run) -> onnx.ModelProto:
    """The model with its products' operands on grids of 8 bits, as onnxruntime's static quantiser writes it. `run` gives a
    model's outputs on calibration images."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    held = {t.name: t for t in graph.initializer}
    products = [n for n in graph.node if n.op_type in PRODUCTS]
    values = sorted({i for n in products for i in n.input[:2] if i not in held})
    limits = dict(zip(values, _ranges(made, values, run), strict=True))
    kind = np.int8 if rng.random() < 0.5 else np.uint8
    by_channel = next(o.version for o in made.opset_import if not o.domain) >= 13 and rng.random() < 0.5
    pairs: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for i, value in enumerate(node.input[:2] if node.op_type in PRODUCTS else ()):
            if value not in pairs:
                pairs[value] = f"{value}_grid"
                if value in held:
                    axis = _axis(node, held[value]) if by_channel else None
                    nodes += _weight(graph, held[value], pairs[value], axis)
                else:
                    nodes += _pair(graph, value, pairs[value], limits[value], kind)
            node.input[i] = pairs[value]
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.checker.check_model(made)
    return made


def _ranges(model: onnx.ModelProto, values: list[str], run: Run) -> list[tuple[float, float]]:
    inside = onnx.ModelProto()
    inside.CopyFrom(model)
    del inside.graph.output[:]
    inside.graph.output.extend(helper.make_tensor_value_info(v, TensorProto.FLOAT, None) for v in values)
    return [(min(0.0, float(a.min())), max(0.0, float(a.max()))) for a in run(inside)]


def _axis(node: onnx.NodeProto, tensor: onnx.TensorProto) -> int:
    """Of a weight: that of a product's outputs."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else len(tensor.dims) - 1


def _pair(graph, value: str, result: str, limits: tuple[float, float], kind) -> list[onnx.NodeProto]:
    low, high = limits
    step = max(high - low, 1e-6) / 255 if kind is np.uint8 else max(high, -low, 1e-6) / 127
    zero = round(-low / step) if kind is np.uint8 else 0
    names = [f"{result}_{part}" for part in ("scale", "zero", "q")]
    graph.initializer.append(numpy_helper.from_array(np.float32(step), names[0]))
    graph.initializer.append(numpy_helper.from_array(np.array(zero, kind), names[1]))
    return [
        helper.make_node("QuantizeLinear", [value, *names[:2]], [names[2]], f"{result}_quantise"),
        helper.make_node("DequantizeLinear", [names[2], *names[:2]], [result], f"{result}_dequantise"),
    ]


def _weight(graph, tensor: onnx.TensorProto, result: str, axis: int | None) -> list[onnx.NodeProto]:
    array = numpy_helper.to_array(tensor)
    others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    step = np.float32(np.abs(array).max(axis=others) / 127 + 1e-12)
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    rounded = np.clip(np.rint(array / step.reshape(shape if axis is not None else [])), -127, 127).astype(np.int8)
    names = [f"{result}_{part}" for part in ("q", "scale", "zero")]
    for name, held in zip(names, (rounded, step, np.zeros(step.shape, np.int8)), strict=True):
        graph.initializer.append(numpy_helper.from_array(held, name))
    how = {} if axis is None else {"axis": axis}
    return [helper.make_node("DequantizeLinear", names, [result], f"{result}_dequantise", **how)]
