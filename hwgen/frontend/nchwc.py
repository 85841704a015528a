"""Undoes the blocked layout that onnxruntime's optimiser gives convolutions at its highest level.

Its weights lie as [outputs / B][inputs][height][width][B] (Oihw{B}o) for images of few channels, with B, 8 or 16, that
of the machine that wrote the file; nothing in the file tells B, so the operator itself is asked what it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwgen.errors import UserError

if TYPE_CHECKING:
    from .load import Model

Array = np.ndarray
DOMAIN = "com.microsoft.nchwc"
BLOCKS = (8, 16)


def plain_layout(model: Model) -> list[onnx.NodeProto]:
    """The model's nodes with blocked convolutions as plain ones; their new weights join the model's constants.

    Only a convolution of the image, followed by ReorderOutput, is undone; everything else stays, to be refused by name.
    """
    channels: dict[str, int] = {}  # of each blocked tensor, as ReorderOutput tells
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == "ReorderOutput":
            channels[node.input[0]] = _attributes(node)["channels"]
    nodes, undone = [], set()
    for node in model.graph.node:
        weight = model.constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.domain == DOMAIN and node.op_type == "ReorderOutput" and node.input[0] in undone:
            kind, perm = ("Transpose", {"perm": [0, 2, 3, 1]}) if _attributes(node).get("channels_last") else ("Identity", {})
            node = helper.make_node(kind, list(node.input), list(node.output), node.name, **perm)
        elif (
            node.domain == DOMAIN
            and node.op_type == "Conv"
            and weight is not None
            and node.output[0] in channels
            and node.input[0] in model.inputs
            and len(node.input) <= 3
            and "activation" not in _attributes(node)
        ):
            undone.add(node.output[0])
            node = _plain_conv(model, node, weight, channels[node.output[0]])
        nodes.append(node)
    return nodes


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _plain_conv(model: Model, node: onnx.NodeProto, weight: Array, channels: int) -> onnx.NodeProto:
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    arrays = [_unblocked(model, node, weight), *(model.constants[name] for name in node.input[2:])]
    for i, array in enumerate(arrays, 1):
        plain.input[i] = f"{node.input[i]}.plain.{node.output[0]}"
        model.constants[plain.input[i]] = array[:channels]
    return plain


def _unblocked(model: Model, node: onnx.NodeProto, weight: Array) -> Array:
    """The weight in ONNX's layout, for the block size with which a plain convolution gives what the node gives."""
    outputs, channels, height, width = weight.shape
    image = np.random.default_rng(0).standard_normal((1, channels, height, width)).astype(np.float32)
    found = _first_sums(model, node, weight, image)
    for block in (b for b in BLOCKS if outputs % b == 0):
        blocks = weight.reshape(outputs // block, channels, height, width, block)
        plain = blocks.transpose(0, 4, 1, 2, 3).reshape(weight.shape)
        if np.allclose(np.einsum("ocyx,ocyx->o", plain, np.broadcast_to(image, plain.shape)), found, 1e-3, 1e-3):
            return np.ascontiguousarray(plain)
    raise UserError(
        f"{model.path}: Conv node {node.name or node.output[0]!r}: its blocked weights (onnxruntime's layout for one kind of "
        f"processor) cannot be read here; write the file with optimisation level ORT_ENABLE_EXTENDED"
    )


def _first_sums(model: Model, node: onnx.NodeProto, weight: Array, image: Array) -> Array:
    """What the node computes for one patch, without its bias, by onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"{model.path}: Conv node {node.name or node.output[0]!r} has onnxruntime's blocked layout, which only onnxruntime "
            f"can read (pip install onnxruntime)"
        ) from None
    conv = helper.make_node("Conv", ["x", "w"], ["blocked"], domain=DOMAIN, kernel_shape=list(weight.shape[2:]))
    order = helper.make_node("ReorderOutput", ["blocked"], ["y"], domain=DOMAIN, channels=weight.shape[0])
    graph = helper.make_graph(
        [conv, order],
        "blocked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = helper.make_model(graph, opset_imports=sets, ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0].reshape(-1)
