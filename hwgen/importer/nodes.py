"""ONNX nodes as `Op`s: attributes decoded, graphs inside nodes as `Body`s, nodes that nothing needs left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from .external import bodies
from .rules import Array, Body, Op

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}


def array(tensor: TensorProto) -> Array:
    """A tensor's numbers, floating point as float32, whatever the file holds."""
    value = numpy_helper.to_array(tensor)
    return value.astype(np.float32, copy=False) if tensor.data_type in FLOATS else value


def ops(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str], opsets: dict[str, int]) -> list[Op]:
    """The nodes that `outputs` need, in their order; of their outputs, those that nothing reads have no name."""
    places, names = needed(nodes, outputs)
    read = [tuple(name if name in names else "" for name in nodes[place].output) for place in places]
    return [_op(nodes[place], place, own, opsets) for place, own in zip(places, read, strict=True)]


def needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> tuple[list[int], set[str]]:
    """The places of the nodes that `outputs` need, and every name that is read on the way, `outputs` among them."""
    names, places = set(outputs), []
    for place in reversed(range(len(nodes))):
        if not names.isdisjoint(name for name in nodes[place].output if name):
            places.append(place)
            names |= read_names(nodes[place])
    return places[::-1], names


def read_names(node: onnx.NodeProto) -> set[str]:
    """What a node reads; of the graphs inside it all that they read, names from around them among it."""
    names = {name for name in node.input if name}
    for inner in bodies(node):
        names.update(o.name for o in inner.output)
        names.update(*(read_names(n) for n in inner.node))
    return names


def body(graph: onnx.GraphProto, opsets: dict[str, int]) -> Body:
    outputs = tuple(o.name for o in graph.output)
    constants = {t.name: array(t) for t in graph.initializer}
    return Body(tuple(i.name for i in graph.input), ops(graph.node, outputs, opsets), constants, outputs)


def label(node: onnx.NodeProto, place: int) -> str:
    """What messages call a node, the `place`th of its graph: its name, or what tells it apart where it has none."""
    return node.name or f"{node.op_type}_{place} (-> {', '.join(node.output)})"


def _op(node: onnx.NodeProto, place: int, outputs: tuple[str, ...], opsets: dict[str, int]) -> Op:
    name = label(node, place)
    attributes = {a.name: _attribute(a, opsets) for a in node.attribute}
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Op(kind, name, tuple(node.input), outputs, attributes, opsets.get(node.domain, 1), node)


def _attribute(attribute: AttributeProto, opsets: dict[str, int]) -> Any:
    if attribute.type == AttributeProto.GRAPH:
        return body(attribute.g, opsets)
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return array(value)
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return list(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else value
