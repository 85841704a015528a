"""One form for what the opsets and exporters write differently: batch of 1, decoded attributes, only needed nodes."""

from __future__ import annotations

import onnx

from hwgen.errors import UserError
from hwgen.fuse import Body, Op

from .load import Model, _array
from .nchwc import plain_layout


def image_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Shape of every input with the batch axis set to 1. Raises UserError unless inputs are [batch, C, H, W]."""
    shapes = {}
    for name, shape in model.inputs.items():
        readable = "[" + ", ".join("?" if n is None else str(n) for n in shape) + "]"
        if len(shape) != 4 or None in shape[1:]:
            raise UserError(f"{model.path}: input {name!r} has shape {readable}, must be [batch, C, H, W]")
        if shape[0] not in (1, None):
            raise UserError(
                f"{model.path}: input {name!r} has shape {readable}; export with batch 1 or a dynamic batch axis"
            )
        shapes[name] = (1, *shape[1:])
    if not shapes:
        raise UserError(f"{model.path}: the model has no input")
    return shapes


def operators(model: Model) -> list[Op]:
    """The nodes that the outputs need, in order, attributes as Python values (tensors as float32 or integer arrays)."""
    needed = set(model.outputs)
    kept = []
    for node in reversed(plain_layout(model)):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for inner in _graphs(node):
                needed.update(name for n in inner.node for name in n.input)
    return [_operator(model, node, i) for i, node in enumerate(reversed(kept))]


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def _operator(model: Model, node: onnx.NodeProto, place: int) -> Op:
    domain = "" if node.domain == "ai.onnx" else node.domain
    kind = f"{domain}.{node.op_type}" if domain else node.op_type
    name = node.name or f"{node.op_type}_{place} (-> {', '.join(node.output)})"
    attributes = {a.name: _attribute(model, a) for a in node.attribute}
    opset = model.opsets.get(domain, 1)
    return Op(kind, name, tuple(node.input), tuple(node.output), attributes, opset, node)


def _body(model: Model, graph: onnx.GraphProto) -> Body:
    """A branch of an If."""
    constants = {t.name: _array(model.path, t, False) for t in graph.initializer}
    ops = [_operator(model, node, i) for i, node in enumerate(graph.node)]
    return Body(ops, constants, tuple(o.name for o in graph.output))


def _attribute(model: Model, attribute: onnx.AttributeProto):
    if attribute.type == onnx.AttributeProto.GRAPH:
        return _body(model, attribute.g)
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _array(model.path, value, False)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
