"""What a file itself computes: run by onnxruntime without optimisation, else by ONNX's own reference evaluator.

Never a rewritten model: a quantised file rounds and saturates here as it says. onnxruntime's optimiser is off because it
makes integer products of dequantised weights, which round elsewhere, and rewrites what is to be proven. Weights of integer
products alone are given to it as the same integers in another type: see `_unsigned`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..errors import UserError
from .external import everything, fetch
from .load import Model, load, read

Array = np.ndarray
Feed = dict[str, Array]
ZERO_POINT = 2  # where all of them have that of the first factor
INT8 = onnx.TensorProto.INT8
INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)  # as which shapes are written
FOLDER = "session.model_external_initializers_file_folder_path"
Runner = Callable[[Feed], dict[str, Array]]
INTEGER_PRODUCTS = {  # operator -> position of its second factor and of that one's zero point
    "MatMulInteger": (1, 3), "ConvInteger": (1, 3), "QLinearMatMul": (3, 5), "QLinearConv": (3, 5),
}  # fmt: skip
ORT = "onnxruntime is needed: pip install onnxruntime"


def reference(path: str | Path | Model, images: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of the file for all images, first axis = images, whatever batch the file was exported with.

    images: every input's name -> array [images, ...]; names that are no inputs are ignored. Inputs that a `Model` has
    fixed keep their value. Raises UserError naming an input that is missing or has the wrong shape.
    """
    model = path if isinstance(path, Model) else load(path, like={name: np.shape(array) for name, array in images.items()})
    count = _count(model, images)
    run = runner(model)
    rows = [run({name: images[name][i : i + 1] for name in model.inputs}) for i in range(count)]
    return {name: np.concatenate([np.atleast_1d(row[name]) for row in rows]) for name in model.outputs}


def _count(model: Model, images: Mapping[str, Array]) -> int:
    counts: set[int] = set()
    for name, shape in model.inputs.items():
        if name not in images:
            raise UserError(f"{model.path}: no array for input {name!r}; there are {sorted(images)}")
        got = np.shape(images[name])
        if got[1:] != shape[1:] or not got:
            readable = ", ".join(str(n) for n in shape[1:])
            raise UserError(f"{model.path}: array {name!r} has shape {got}, must be (images, {readable})")
        counts.add(got[0])
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"{model.path}: the inputs hold {sorted(counts)} images, must be one number above 0")
    return counts.pop()


def runner(model: Model) -> Runner:
    """A function from one image (every input in its shape, or one that reshapes to it) to the file's outputs."""
    run = _exact(model) or _onnxruntime(model) or _evaluator(model)

    def one(feed: Feed) -> dict[str, Array]:
        held = {n: np.asarray(feed[n]).reshape(shape).astype(model.kinds[n]) for n, shape in model.inputs.items()}
        return dict(zip(model.outputs, run(held | model.fixed), strict=True))

    return one


def _exact(model: Model) -> Callable[[Feed], list[Array]] | None:
    """The evaluator, if it can, where onnxruntime may be wrong: its products of integers saturate in 16 bits on x86 CPUs without
    VNNI, and before 1.30, newer than which Python 3.10 has none, it truncates where it should round half precision to a grid."""
    if not _has_products(model) and not (model.half and model.quantised and _truncates()):
        return None
    try:
        return _evaluator(model)
    except UserError:
        return None


def _has_products(model: Model) -> bool:
    return any(node.op_type in INTEGER_PRODUCTS for node in model.graph.node)


@cache
def _truncates() -> bool:
    """Whether this onnxruntime's QuantizeLinear of half precision does not round."""
    try:
        import onnxruntime
    except ImportError:
        return False
    half, one = onnx.TensorProto.FLOAT16, helper.make_tensor("one", onnx.TensorProto.FLOAT16, [], [1.0])
    node = helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["y"])
    image, grid = helper.make_tensor_value_info("x", half, [1]), helper.make_tensor_value_info("y", INT8, [1])
    graph = helper.make_graph([node], "rounds", [image], [grid], [one, helper.make_tensor("zero", INT8, [], [0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool(session.run(None, {"x": np.array([0.75], np.float16)})[0][0] != 1)


def _onnxruntime(model: Model) -> Callable[[Feed], list[Array]] | None:
    """None where it is not installed, or too old for the model while the evaluator may still take it."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # warnings about the exporter's graph are not about the user's request
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source: str | bytes = str(model.path)
    eyes = any(node.op_type == "EyeLike" for node in model.graph.node)
    if model.part or _has_products(model) or eyes:  # the file would not give the values that lie within it
        proto = read(model.path, model.outputs if model.part else ())
        _unsigned(model, proto)
        if eyes:
            _eyes(proto)
        source = proto.SerializeToString()
        options.add_session_config_entry(FOLDER, str(model.path.parent))

    def opened() -> Any:
        try:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception:
            if (near := _shapes_within(model, source)) is None:
                raise
            options.add_session_config_entry(FOLDER, str(model.path.parent))
            return onnxruntime.InferenceSession(near, options, providers=["CPUExecutionProvider"])

    try:
        session = opened()
    except Exception as error:  # onnxruntime has a class of its own for every kind of failure
        try:
            _evaluator(model)  # an onnxruntime older than the model's opset must not stop a build
            return None
        except UserError:
            raise UserError(f"{model.path}: onnxruntime cannot run it: {_brief(error)}") from None
    return _telling(f"{model.path}: onnxruntime cannot run it", lambda feed: session.run(model.outputs, feed))


def _eyes(proto: onnx.ModelProto) -> None:
    """Diagonals of booleans, as PyTorch's exporter writes them and onnxruntime has no kernel for, as numbers made booleans."""
    known = onnx.shape_inference.infer_shapes(proto).graph.value_info
    booleans = {v.name for v in known if v.type.tensor_type.elem_type == onnx.TensorProto.BOOL}
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type != "EyeLike" or node.output[0] not in booleans:
            proto.graph.node.append(node)
            continue
        given, number = (f"{node.output[0]}.{part}" for part in ("given", "number"))
        diagonal = {a.name: a.i for a in node.attribute if a.name != "dtype"}
        proto.graph.node.extend(
            (
                helper.make_node("Cast", node.input, [given], to=onnx.TensorProto.FLOAT),
                helper.make_node("EyeLike", [given], [number], name=node.name, dtype=onnx.TensorProto.FLOAT, **diagonal),
                helper.make_node("Cast", [number], node.output, to=onnx.TensorProto.BOOL),
            )
        )


def _shapes_within(model: Model, source: str | bytes) -> bytes | None:
    """The file with integers that lie beside it brought in, of which onnxruntime infers shapes; None where there are none."""
    if isinstance(source, bytes):
        return None
    proto = read(model.path)
    outside = onnx.TensorProto.EXTERNAL
    beside = [(t, what) for t, what in everything(proto) if t.data_type in INTEGERS and t.data_location == outside]
    for tensor, what in beside:
        fetch(model.path, tensor, what)
    return proto.SerializeToString() if beside else None


def _evaluator(model: Model) -> Callable[[Feed], list[Array]]:
    from onnx.reference import ReferenceEvaluator

    from .stand_ins import faults, operators  # which load what onnxruntime does without

    proto = read(model.path, model.outputs if model.part else ())
    for tensor, what in everything(proto):
        fetch(model.path, tensor, what)
    opset = model.opsets.get("", 1)
    bad = faults(opset, proto.graph.node, model.constants)
    if bad:
        raise UserError(f"{model.path}: {ORT} (ONNX's reference evaluator is wrong on {bad[0]})")
    _densify(proto.graph)
    try:
        evaluator = ReferenceEvaluator(proto, new_ops=operators(opset))
    except Exception as error:  # an operator that has no reference implementation
        raise UserError(f"{model.path}: {ORT}: {_brief(error)}") from None
    return _telling(
        f"{model.path}: ONNX's reference evaluator cannot run it, {ORT}", lambda feed: evaluator.run(model.outputs, feed)
    )


def _unsigned(model: Model, proto: onnx.ModelProto) -> None:
    """Constant int8 factors of uint8 values as uint8 with 128 more, also in their zero points: the same product. onnxruntime's
    kernel for uint8 times uint8 is exact; that for int8 adds two products in 16 bits, saturated, where the CPU has no VNNI."""
    held = {t.name: t for t in proto.graph.initializer}
    unsigned = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.UINT8}
    unsigned |= {name for node in proto.graph.node if node.op_type == "DynamicQuantizeLinear" for name in node.output[2:]}
    made: dict[str, str] = {}

    def moved(name: str) -> str:
        if name not in made:
            fetch(model.path, held[name], f"initializer {name!r}")
            made[name] = f"{name}.unsigned"
            array = (numpy_helper.to_array(held[name]).astype(np.int16) + 128).astype(np.uint8)
            proto.graph.initializer.append(numpy_helper.from_array(array, made[name]))
        return made[name]

    for node in proto.graph.node:
        weight, zero = INTEGER_PRODUCTS.get(node.op_type, (0, 0))
        names = [*node.input, *[""] * (zero + 1 - len(node.input))]
        if not weight or names[ZERO_POINT] not in unsigned:
            continue
        if any(name and (name not in held or held[name].data_type != INT8) for name in (names[weight], names[zero])):
            continue
        if not names[zero]:
            none = numpy_helper.from_array(np.array(0, np.int8), f"{names[weight]}.zero")
            held.setdefault(none.name, none)
            names[zero] = none.name
        names[weight], names[zero] = moved(names[weight]), moved(names[zero])
        del node.input[:]
        node.input.extend(names)


def _densify(graph: onnx.GraphProto) -> None:
    """Sparse initialisers written out, which the evaluator needs."""
    for sparse in graph.sparse_initializer:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, dense.shape)] = values
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def _telling(words: str, run: Callable[[Feed], Any]) -> Callable[[Feed], list[Array]]:
    """`run`, its exceptions as a UserError."""

    def told(feed: Feed) -> list[Array]:
        try:
            return [np.asarray(a) for a in run(feed)]
        except Exception as error:
            raise UserError(f"{words}: {_brief(error)}") from None

    return told


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
