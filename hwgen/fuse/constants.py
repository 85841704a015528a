"""Nodes whose inputs are all known are evaluated; nodes that are not understood still have a shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, shape_inference
from onnx.defs import get_schema
from onnx.reference import ReferenceEvaluator

from .layout import MOVES, move
from .op import Op, Unsupported

Array = np.ndarray


def evaluate(op: Op, inputs: Sequence[Array | None]) -> list[Array]:
    """Outputs of a node on constants. Floating point stays float32. Raises Unsupported where it cannot be evaluated."""
    try:
        if op.type in MOVES:
            return move(op, inputs[0], [None if a is None else _Holder(a) for a in inputs])
        if op.type == "Cast":
            kind = helper.tensor_dtype_to_np_dtype(op.attribute("to"))
            return [inputs[0].astype(np.float32 if np.dtype(kind).kind not in "biu" else kind)]
        names = [f"i{i}" if a is not None else "" for i, a in enumerate(inputs)]
        node = helper.make_node(op.proto.op_type, names, [n or f"_{i}" for i, n in enumerate(op.outputs)])
        node.domain = op.proto.domain
        node.attribute.extend(op.proto.attribute)
        graph = helper.make_graph(
            [node],
            "constant",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in zip(names, inputs, strict=True)
                if a is not None
            ],
            [
                helper.make_value_info(n, helper.make_tensor_type_proto(TensorProto.UNDEFINED, None))
                for n in node.output
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(op.proto.domain, op.opset)])
        feed = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
        results = ReferenceEvaluator(model).run(None, feed)
    except Unsupported:
        raise
    except Exception as error:  # the evaluator raises whatever NumPy does on the user's misfit shapes
        raise Unsupported(f"cannot be evaluated on its constant inputs: {error}") from None
    return [as_constant(np.asarray(r)) for r in results]


class _Holder:
    def __init__(self, array: Array):
        self.array = array


def as_constant(array: Array) -> Array:
    """Floating point of any width as float32; integers and truth values as they are."""
    return array.astype(np.float32) if array.dtype != np.float32 and array.dtype.kind not in "biuOSU" else array


def output_shapes(op: Op, shapes: Sequence[tuple[int, ...] | None]) -> list[tuple[int, ...] | None]:
    """Shapes of the outputs where ONNX can tell them from the input shapes, else None."""
    try:
        schema = get_schema(op.proto.op_type, op.opset, op.proto.domain)
        types = {
            name: helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
            for name, shape in zip(op.proto.input, shapes, strict=True)
            if shape is not None
        }
        found = shape_inference.infer_node_outputs(schema, op.proto, types)
        dims = [[d.dim_value for d in found[n].tensor_type.shape.dim] if n in found else [0] for n in op.outputs]
    except Exception:  # no schema, or a type the schema does not take: the shape stays unknown
        return [None] * len(op.outputs)
    return [tuple(d) if all(d) else None for d in dims]
