"""Models that are quantised already: their QuantizeLinear/DequantizeLinear pairs become ranges, their integers weights.

A pair around an activation rounds it to the file's int8 grid. The machine has a grid of its own, finer in every place
(16 bits, or 8 bits with a scale for each token), so what is kept of a pair is the range of values it can hold. A
DequantizeLinear of a constant stays: fusion evaluates it, and the quantiser finds the file's integers in the result.
Dynamic quantisation (DynamicQuantizeLinear with MatMulInteger or ConvInteger) is a scale per tensor taken from the image,
which the machine does better by itself; what is kept are the weights.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwgen.fuse.layout import MOVES

Array = np.ndarray
Ranges = dict[str, tuple[float, float]]
INTEGERS = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16}
DYNAMIC = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def unquantise(proto: onnx.ModelProto) -> Ranges | None:
    """Edit `proto` into the floating point model that it emulates; None where it is one already.

    The result maps a tensor to the (smallest, largest) value that the file's scale and zero point let it have. What is
    not understood stays as it is, for fusion to refuse by name.
    """
    kinds = {node.op_type for node in proto.graph.node}
    if not kinds & {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}:
        return None
    graph = _Graph(proto.graph)
    ranges = _pairs(graph)
    _dynamic(graph)
    del proto.graph.value_info[:]  # the types of tensors that were integers
    return ranges


class _Graph:
    """A GraphProto with its constants and producers at hand."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.tensors = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.tensors[node.output[0]] = node.attribute[0].t
        self.outputs = {o.name for o in graph.output}

    def constant(self, name: str) -> Array | None:
        return numpy_helper.to_array(self.tensors[name]) if name in self.tensors else None

    def users(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def fixed(self, name: str) -> bool:
        """Whether a value depends on no input: a constant, or what nodes make of constants."""
        todo, seen = [name], set()
        while todo:
            name = todo.pop()
            if not name or name in self.tensors or name in seen:
                continue
            seen.add(name)
            if name not in self.makers:
                return False
            todo += self.makers[name].input
        return True


def _into(node: onnx.NodeProto, op_type: str, inputs: list[str], attributes: dict | None = None) -> None:
    """Make another operator of the standard domain out of a node, with its name and outputs."""
    node.op_type, node.domain = op_type, ""
    del node.input[:]
    node.input.extend(inputs)
    if attributes is not None:
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())


# --- static: pairs around activations --------------------------------------------------------------------------------


def _parameters(graph: _Graph, node: onnx.NodeProto) -> tuple[Array, Array, int] | None:
    """(scale, zero point, integer type) of a Quantize- or DequantizeLinear with constant parameters."""
    scale = graph.constant(node.input[1])
    if scale is None or any(a.name == "block_size" and a.i for a in node.attribute):
        return None
    if len(node.input) > 2 and node.input[2]:
        zero, tensor = graph.constant(node.input[2]), graph.tensors.get(node.input[2])
        if zero is None:
            return None
        return scale, zero.astype(np.int64), tensor.data_type
    kind = next((a.i for a in node.attribute if a.name == "output_dtype" and a.i), TensorProto.UINT8)
    return scale, np.zeros_like(scale, np.int64), kind


def _pairs(graph: _Graph) -> Ranges:
    """Every quantised activation that is dequantised as it was quantised: both nodes become Identity."""
    held: dict[str, tuple] = {}  # integer tensor -> how it was quantised
    followers: dict[str, list[onnx.NodeProto]] = {}  # integer tensor -> the nodes that made it, back to the quantiser
    ranges: Ranges = {}
    pairs: list[tuple[onnx.NodeProto, list[onnx.NodeProto]]] = []
    loose: set[str] = set()  # integer tensors that something else reads as integers
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear" and not graph.fixed(node.input[0]):
            parameters = _parameters(graph, node)
            if parameters is not None and parameters[2] in INTEGERS:
                held[node.output[0]], followers[node.output[0]] = parameters, [node]
        elif node.input and node.input[0] in held:
            source = node.input[0]
            if node.op_type in MOVES and node.domain in ("", "ai.onnx"):
                for name in node.output:
                    held[name], followers[name] = held[source], followers[source]
            elif node.op_type == "DequantizeLinear":
                parameters = _parameters(graph, node)
                if parameters is not None and _same(parameters, held[source]):
                    pairs.append((node, followers[source]))
                else:
                    loose.add(followers[source][0].output[0])
            else:
                loose.add(followers[source][0].output[0])
        loose.update(followers[name][0].output[0] for name in node.input[1:] if name in followers)
    loose.update(followers[name][0].output[0] for name in graph.outputs if name in followers)
    for node, (first,) in pairs:
        if first.output[0] not in loose:
            _into(node, "Identity", [node.input[0]], {})
    for name, (first,) in followers.items():
        if name == first.output[0] and name not in loose:
            low, high = _range(held[name])
            old = ranges.get(first.input[0], (-np.inf, np.inf))
            ranges[first.input[0]] = max(low, old[0]), min(high, old[1])
            _into(first, "Identity", [first.input[0]], {})
    return ranges


def _same(a: tuple[Array, Array, int], b: tuple[Array, Array, int]) -> bool:
    return a[2] == b[2] and all(np.array_equal(x.reshape(-1), y.reshape(-1)) for x, y in zip(a[:2], b[:2], strict=True))


def _range(parameters: tuple[Array, Array, int]) -> tuple[float, float]:
    scale, zero, kind = parameters
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
    return (
        float(((limits.min - zero) * scale.astype(np.float64)).min()),
        float(((limits.max - zero) * scale.astype(np.float64)).max()),
    )


# --- dynamic: integer products ---------------------------------------------------------------------------------------


def _dynamic(graph: _Graph) -> None:
    """Float(MatMulInteger(q, w, zq, zw)) * (sq * sw), q, sq, zq from DynamicQuantizeLinear(x), becomes x @ ((w - zw) * sw).

    Likewise ConvInteger.
    """
    for node in list(graph.graph.node):
        match = _match(graph, node) if node.op_type in DYNAMIC else None
        if match is None:
            continue
        quantiser, scale, cast, factor, product = match
        weight = f"{node.output[0]}_weight"
        axis = len(graph.tensors[node.input[1]].dims) - 1 if node.op_type == "MatMulInteger" else 0
        inputs = [node.input[1], scale, *node.input[3:4]]
        dequantise = helper.make_node("DequantizeLinear", inputs, [weight], f"{node.name}_weight", axis=axis)
        place = next(i for i, n in enumerate(graph.graph.node) if n is node)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        _into(node, DYNAMIC[node.op_type], [quantiser.input[0], weight], attributes)
        _into(cast, "Identity", [node.output[0]], {})
        _into(product, "Identity", [cast.output[0]], {})
        graph.graph.node.insert(place, dequantise)


def _match(graph: _Graph, node: onnx.NodeProto):
    """(DynamicQuantizeLinear, name of the weights' scale, Cast, product of scales, last product) or None."""
    inputs = [*node.input, "", ""][:4]
    quantiser = graph.makers.get(inputs[0])
    if quantiser is None or quantiser.op_type != "DynamicQuantizeLinear" or inputs[2] != quantiser.output[2]:
        return None
    if inputs[1] not in graph.tensors or (inputs[3] and inputs[3] not in graph.tensors):
        return None
    (cast, *more), scale = graph.users(node.output[0]) or (None,), quantiser.output[1]
    if more or cast is None or cast.op_type != "Cast" or node.output[0] in graph.outputs:
        return None
    (product, *more) = graph.users(cast.output[0]) or (None,)
    if more or product is None or product.op_type != "Mul" or cast.output[0] in graph.outputs:
        return None
    other = product.input[1] if product.input[0] == cast.output[0] else product.input[0]
    factor = graph.makers.get(other)
    if factor is None or factor.op_type != "Mul" or scale not in factor.input:
        return None
    weights = factor.input[1] if factor.input[0] == scale else factor.input[0]
    array = graph.constant(weights)
    if array is None or (array.size > 1 and array.ndim != 1):
        return None
    return quantiser, weights, cast, factor, product
