"""Writes ONNX graphs of any opset from 11 on: newer operators are written out where the opset has none yet."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
# Operators whose axes are an input from an opset on, and an attribute before.
AXES = dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceL2", "ReduceSumSquare"), 18)
AXES |= dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze", "Split"), 13)
IR_VERSIONS = ((21, 10), (11, 8))  # from an opset on


class Writer:
    """Collects nodes and constants; `op` returns the names of what a node makes. Every draw comes from one generator."""

    def __init__(self, seed: int, opset: int):
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.nodes_for_constants = self.chance(0.15)  # Constant nodes, as older exporters write them

    # --- draws

    def choose(self, *values):
        return values[self.rng.integers(len(values))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def whole(self, low: int, high: int) -> int:
        """low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def normal(self, *shape: int, scale: float = 0.3) -> Array:
        return self.rng.normal(0, scale, shape)

    def gain(self, *shape: int) -> Array:
        return 1 + self.rng.normal(0, 0.2, shape)

    # --- nodes

    def constant(self, value) -> str:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        tensor = numpy_helper.from_array(array, f"c{len(self.constants)}_{len(self.nodes)}")
        if self.nodes_for_constants:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], f"k{len(self.nodes)}", value=tensor))
        else:
            self.constants.append(tensor)
        return tensor.name

    def op(self, kind: str, *inputs, outputs: int = 1, **attributes):
        if lowered := getattr(self, f"_{kind}", None):
            if (result := lowered(*inputs, **attributes)) is not None:
                return result
        if self.opset < AXES.get(kind, 0) and len(inputs) > 1:
            attributes["split" if kind == "Split" else "axes"], inputs = [int(n) for n in inputs[1]], inputs[:1]
        if kind == "Resize" and self.opset < 13:  # nothing was an empty list then
            inputs = [np.zeros(0, np.float32) if isinstance(i, str) and not i else i for i in inputs]
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        made = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, f"n{len(self.nodes)}", **attributes))
        return made[0] if outputs == 1 else made

    def _LayerNormalization(self, x, gamma, beta, axis=-1, epsilon=1e-5):
        if self.opset >= 17:
            return None
        centred = self.op("Sub", x, self.op("ReduceMean", x, [axis]))
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), [axis])
        root = self.op("Sqrt", self.op("Add", variance, np.float32(epsilon)))
        return self.op("Add", self.op("Mul", self.op("Div", centred, root), gamma), beta)

    def _Gelu(self, x, approximate="none"):
        if self.opset >= 20:
            return None
        if approximate == "tanh":
            cube = self.op("Mul", self.op("Pow", x, np.float32(3)), np.float32(0.044715))
            inner = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), np.float32((2 / np.pi) ** 0.5)))
        else:
            inner = self.op("Erf", self.op("Div", x, np.float32(2**0.5)))
        return self.op("Mul", self.op("Mul", x, np.float32(0.5)), self.op("Add", inner, np.float32(1)))

    def _HardSwish(self, x):
        return None if self.opset >= 14 else self.op("Mul", x, self.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))

    def _Mish(self, x):
        return None if self.opset >= 18 else self.op("Mul", x, self.op("Tanh", self.op("Softplus", x)))

    # --- the file

    def model(self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], dynamic: bool) -> onnx.ModelProto:
        """The valid model of these inputs and outputs, name -> shape with the batch axis, which is open if `dynamic`."""

        def info(name, shape):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]] if dynamic else shape)

        graph = helper.make_graph(
            self.nodes,
            "random",
            [info(name, shape) for name, shape in inputs.items()],
            [info(name, shape) for name, shape in outputs.items()],
            self.constants,
        )
        opset = max(self.opset, 12) if any(n.op_type == "Einsum" for n in self.nodes) else self.opset
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        made.ir_version = next(ir for opset, ir in IR_VERSIONS if self.opset >= opset)
        onnx.checker.check_model(made, full_check=True)
        return made


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the weights of its products rounded to int8, one scale for each output: what no int8 engine avoids."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    held = {t.name: t for t in made.graph.initializer}
    held |= {n.output[0]: n.attribute[0].t for n in made.graph.node if n.op_type == "Constant"}
    for node in made.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"):
            continue
        for name in node.input[:2]:
            if name in held and len(held[name].dims) >= 2:
                array = numpy_helper.to_array(held[name])
                held[name].CopyFrom(numpy_helper.from_array(_rounded(node, array), name))
    return made


def _rounded(node: onnx.NodeProto, array: Array) -> Array:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv" or attributes.get("transB"):
        axes = tuple(range(1, array.ndim))
    elif node.op_type == "Einsum":
        second = attributes["equation"].decode().split(",")[1]
        result = second.split("->")[1]
        axes = tuple(i for i, letter in enumerate(second.split("->")[0]) if letter not in result)
    else:
        axes = (array.ndim - 2,)
    step = np.abs(array).max(axis=axes, keepdims=True) / 127 + 1e-30
    return (np.rint(array / step) * step).astype(np.float32)
