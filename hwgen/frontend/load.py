"""Reading an ONNX file: everything that can be wrong with it is said here, before anything is interpreted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, inliner, numpy_helper

from hwgen.errors import UserError

from .quantised import Ranges, unquantise

Array = np.ndarray
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
# Operators that onnxruntime's optimisers write into the standard domain at any opset, with the one that took them up.
EARLY = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 30}


@dataclass(eq=False)
class Model:
    """A valid ONNX model. `graph` is the protobuf graph without weights, `constants` its initialisers by name.

    Floating point initialisers are float32 whatever the file holds. `inputs` maps inputs that are no initialisers to
    shapes with the batch axis, None for a dynamic dimension; `half` says that the model computes in 16 bit somewhere.

    Of a quantised model, all this describes the floating point model that it emulates: `emulated` is that model
    serialised, `ranges` the (smallest, largest) value of its quantised tensors (empty for others).
    """

    path: Path
    graph: onnx.GraphProto
    constants: dict[str, Array]
    opsets: dict[str, int]
    inputs: dict[str, tuple[int | None, ...]]
    outputs: list[str]
    half: bool
    emulated: bytes | None = None
    ranges: Ranges = field(default_factory=dict)


def load(path: str | Path) -> Model:
    """Read and validate an ONNX file with its external data. Raises UserError naming file, initialiser or node."""
    path = Path(path)
    proto = _read(path)
    for tensor in proto.graph.initializer:
        _fetch(path, tensor)
    _sort(proto.graph)
    _check(path, proto)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    ranges = unquantise(proto)
    emulated = None if ranges is None else proto.SerializeToString()
    graph = proto.graph
    if graph.sparse_initializer:
        raise UserError(f"{path}: initialiser {graph.sparse_initializer[0].values.name!r} is sparse; not supported")
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    constants = {t.name: _array(path, t, t.name in used) for t in graph.initializer}
    kinds = {t.data_type for t in graph.initializer}
    half = any(
        v.type.tensor_type.elem_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        for v in [*graph.input, *graph.output, *graph.value_info]
    )
    half |= bool(kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}) and not any(
        n.op_type == "Cast" for n in graph.node
    )
    inputs = {v.name: _input_shape(path, v) for v in graph.input if v.name not in constants}
    outputs = [o.name for o in graph.output]
    del graph.initializer[:]
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    return Model(path, graph, constants, opsets, inputs, outputs, half, emulated, ranges or {})


def _read(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise UserError(f"{path}: not an ONNX file, or a truncated one") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not proto.ir_version or not proto.graph.node or not proto.graph.output:
        raise UserError(f"{path}: not an ONNX file, or a truncated one (it holds no graph)")
    return proto


def _fetch(path: Path, tensor: TensorProto) -> None:
    """Bring external data into the tensor."""
    if not external_data_helper.uses_external_data(tensor):
        return
    where = {e.key: e.value for e in tensor.external_data}
    data = path.parent / where.get("location", "")
    if not data.is_file():
        raise UserError(f"{path}: external data of initialiser {tensor.name!r}: no such file {data}")
    try:
        end = int(where.get("offset", 0)) + int(where.get("length", 0))
    except ValueError:
        raise UserError(f"{path}: external data of initialiser {tensor.name!r}: bad offset or length") from None
    if data.stat().st_size < end:
        raise UserError(
            f"{path}: external data of initialiser {tensor.name!r}: {data} is truncated ({end} bytes needed)"
        )
    try:
        external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except Exception as error:  # onnx reports a path that leaves the directory in its own exception types
        raise UserError(f"{path}: external data of initialiser {tensor.name!r}: {error}") from None
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in the order of their data, which ONNX demands and some optimisers leave undone; a cycle stays for `_check`."""
    made = {name for node in graph.node for name in node.output if name}
    waiting = list(graph.node)
    done: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = []
        rest = []
        for node in waiting:
            read = {name for name in node.input if name in made}
            for inner in (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
                read.update(name for n in inner.node for name in n.input if name in made)
            if read <= done:
                ready.append(node)
                done.update(node.output)
            else:
                rest.append(node)
        if not ready:
            return
        ordered += ready
        waiting = rest
    if [id(n) for n in ordered] != [id(n) for n in graph.node]:
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in ordered]
        del graph.node[:]
        graph.node.extend(copies)


def _check(path: Path, proto: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise UserError(f"{path}: opset {opset.version}; the newest that onnx {onnx.__version__} knows is {newest}")
    try:
        # By path where the weights are inside: a model in memory is serialised, which ends at 2 GB.
        with _early_operators_aside(proto):
            onnx.checker.check_model(str(path) if proto.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF else proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise UserError(f"{path}: not a valid ONNX graph: {' '.join(str(error).split())}") from None


@contextmanager
def _early_operators_aside(proto: onnx.ModelProto) -> Iterator[None]:
    """Operators of EARLY, which the checker does not know at the file's opset, in a domain that it does not look into."""
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    early = [n for n in proto.graph.node if not n.domain and opset < EARLY.get(n.op_type, 0)]
    for node in early:
        node.domain = "early"
    if early:
        proto.opset_import.append(onnx.helper.make_opsetid("early", 1))
    try:
        yield
    finally:
        for node in early:
            node.domain = ""
        if early:
            del proto.opset_import[-1]


def _array(path: Path, tensor: TensorProto, used: bool) -> Array:
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        shape = tuple(tensor.dims)
        raise UserError(f"{path}: initialiser {tensor.name!r} does not hold its shape {shape}: {error}") from None
    if tensor.data_type not in FLOATS:
        return array
    array = array.astype(np.float32)
    # Masks hold minus infinity, and what masked scores are filled with is one infinity throughout; fusion judges their use.
    bad = np.isnan(array) | np.isposinf(array)
    if used and bad.any() and (np.isnan(array).any() or (array != array.flat[0]).any()):
        place = np.argwhere(bad)[0].tolist()
        raise UserError(f"{path}: initialiser {tensor.name!r} holds NaN or infinity at {place}")
    return array


def _input_shape(path: Path, info: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    kind = info.type.tensor_type
    if kind.elem_type not in FLOATS:
        name = TensorProto.DataType.Name(kind.elem_type)
        raise UserError(f"{path}: input {info.name!r} is {name}; only floating point images are supported")
    if not kind.HasField("shape"):
        raise UserError(f"{path}: input {info.name!r} has no shape")
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
