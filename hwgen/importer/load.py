"""Reading an ONNX file: everything that can be wrong with it is said here, before anything is interpreted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, inliner

from ..errors import UserError
from ..tensor import LARGEST
from .external import LFS, bodies, everything, fetch
from .nodes import array, read_names
from .part import end_at

Array = np.ndarray
Shapes = Mapping[str, Sequence[int]]  # of inputs, with the batch axis; "" is the only input
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
# Operators that onnxruntime's optimisers write into the standard domain at any opset, with the one that took them up.
EARLY = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 30}
OWN = "ai.onnx"  # the long name of ONNX's own domain
QUANTISERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


@dataclass(eq=False)
class Model:
    """A valid ONNX model of known sizes.

    graph      the protobuf graph, nodes in the order of their data, without initialisers
    constants  initialisers by name, and the inputs that `load` was told to fix; floating point is float32
    opsets     domain -> version, "" is ONNX's own
    inputs     name -> shape with the batch axis, which is 1; `kinds`: name -> type of its elements in the file
    fixed      the inputs that became constants, as the file wants them
    numbers    the inputs that are one integer, as a task's number
    part       whether it ends in values of the file other than its own outputs
    half       it computes in 16 bit somewhere; `quantised`: it rounds activations to a grid somewhere
    """

    path: Path
    graph: onnx.GraphProto
    constants: dict[str, Array]
    opsets: dict[str, int]
    inputs: dict[str, tuple[int, ...]]
    kinds: dict[str, np.dtype[Any]]
    outputs: list[str]
    part: bool = False
    half: bool = False
    quantised: bool = False
    fixed: dict[str, Array] = field(default_factory=dict)
    numbers: list[str] = field(default_factory=list)


def load(
    path: str | Path,
    shapes: Shapes | None = None,
    fixed: Mapping[str, int] | None = None,
    like: Shapes | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """Read and validate an ONNX file with its external data.

    shapes: sizes of inputs whose axes the file leaves open (an open batch axis is 1 without them). fixed: integer inputs
    that are to be constants, as a task's number. like: shapes of arrays [images, ...], the inputs' among others ("" is the
    only input), which tell the sizes that are open then. outputs: values that the graph is to end in, instead of its own.
    Raises UserError naming file, initialiser, input or node.
    """
    path = Path(path)
    proto = read(path, outputs)
    graph = proto.graph
    used = {name for node in graph.node for name in read_names(node)} | {o.name for o in graph.output}
    constants, typed = _constants(path, graph, used)
    for tensor, what in everything(proto):
        fetch(path, tensor, what)
    _write_out(path, proto)
    _check(path, proto, typed)
    if proto.functions:
        proto.graph.input.extend(typed)  # the inliner asks for the types of what a function reads
        proto = inliner.inline_local_functions(proto)
        graph = proto.graph
    opsets = {o.domain: o.version for o in proto.opset_import}
    infos = [v for v in graph.input if v.name not in constants]
    numbers = dict(fixed or {})
    unknown = numbers.keys() - {v.name for v in infos}
    if unknown:
        raise UserError(f"{path}: has no input {min(unknown)!r}; it has {', '.join(v.name for v in infos)}")
    given = {v.name: _fixed(path, v, numbers[v.name]) for v in infos if v.name in numbers}
    infos = [v for v in infos if v.name not in given]
    inputs = _shapes(path, infos, dict(shapes or {}), like or {})
    kinds = {v.name: _kind(path, v) for v in infos}
    half = any(v.type.tensor_type.elem_type in HALVES for v in [*infos, *graph.output, *graph.value_info])
    half |= any(v.type.tensor_type.elem_type in HALVES for v in typed) and all(n.op_type != "Cast" for n in graph.node)
    half |= any(a.name == "to" and a.i in HALVES for n in graph.node if n.op_type == "Cast" for a in n.attribute)
    quantised = any(n.op_type in QUANTISERS for n in graph.node)
    ends = [o.name for o in graph.output]
    single = [v.name for v in infos if _is_number(v)]
    held = {**constants, **given}
    return Model(path, graph, held, opsets, inputs, kinds, ends, bool(outputs), half, quantised, given, single)


def read(path: Path, outputs: Sequence[str] = ()) -> onnx.ModelProto:
    """The file as it is, or up to the values `outputs`; external data not yet fetched. Raises UserError unless it is an
    ONNX model that has them."""
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file")
        with open(path, "rb") as file:
            if file.read(len(LFS)) == LFS:
                raise UserError(f"{path}: is a git-lfs pointer, not the model (git lfs pull fetches it)")
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise UserError(f"{path}: not an ONNX file, or a truncated one") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not proto.ir_version or not proto.HasField("graph"):
        raise UserError(f"{path}: not an ONNX file, or a truncated one (it holds no graph)")
    if not proto.graph.node or not proto.graph.output:
        raise UserError(f"{path}: the model has no {'output' if proto.graph.node else 'node'}")
    if (name := _unreadable(proto)) is not None:
        raise UserError(f"{path}: holds the name {name!r}, which is no UTF-8")
    _one_domain(path, proto)
    _sort(proto.graph)
    if outputs:
        end_at(path, proto, outputs)
    return proto


def _unreadable(message: Any) -> bytes | None:
    """A text in it or below that is no UTF-8, which protobuf hands out as bytes."""
    for field_ in message.DESCRIPTOR.fields:
        if field_.type not in (field_.TYPE_STRING, field_.TYPE_MESSAGE):
            continue
        held = getattr(message, field_.name)
        if not isinstance(held, str | bytes) and not hasattr(held, "__len__"):  # one message, which may be missing
            held = [held] if message.HasField(field_.name) else []
        for item in [held] if isinstance(held, str | bytes) else held:
            if isinstance(item, bytes):
                return item
            if field_.message_type and (found := _unreadable(item)) is not None:
                return found
    return None


# --- the graph -----------------------------------------------------------------------------------------------------


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those within nodes and functions too."""
    waiting = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for graph in bodies(node) for inner in graph.node]


def _one_domain(path: Path, proto: onnx.ModelProto) -> None:
    """ONNX's own domain by its short name "" everywhere: onnx's checker and evaluator know no node of "ai.onnx"."""
    for node in _nodes(proto):
        node.domain = "" if node.domain == OWN else node.domain
    for held in (proto, *proto.functions):
        versions = {o.version for o in held.opset_import if o.domain in ("", OWN)}
        if len(versions) > 1:
            raise UserError(f"{path}: imports ONNX's own operators of several opsets: {', '.join(map(str, sorted(versions)))}")
        others = [o for o in held.opset_import if o.domain not in ("", OWN)]
        own = [onnx.helper.make_opsetid("", version) for version in versions]
        del held.opset_import[:]
        held.opset_import.extend([*own, *others])


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in the order of their data, which ONNX demands and some optimisers leave undone; a cycle stays for `_check`."""
    made = {name for node in graph.node for name in node.output if name}
    reads = [read_names(node) & made for node in graph.node]
    done: set[str] = set()
    order: list[int] = []
    waiting = list(range(len(graph.node)))
    while waiting:
        rest = []
        for i in waiting:
            if reads[i] <= done:
                order.append(i)
                done.update(graph.node[i].output)
            else:
                rest.append(i)
        if len(rest) == len(waiting):
            return
        waiting = rest
    if order != sorted(order):
        copies = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(copies)


def _check(path: Path, proto: onnx.ModelProto, constants: list[onnx.ValueInfoProto]) -> None:
    """ONNX's own checker on the graph, its initialisers as inputs (they are judged here, and may be larger than 2 GB)."""
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if not opset.domain and opset.version > newest:
            raise UserError(f"{path}: opset {opset.version}; the newest that onnx {onnx.__version__} knows is {newest}")
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    known = {v.name for v in bare.graph.input}
    bare.graph.input.extend(v for v in constants if v.name not in known)
    for value in [*bare.graph.input, *bare.graph.output]:  # the checker wants what onnxruntime finds out by itself
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
            value.type.tensor_type.shape.SetInParent()
    opset_of_file = next((o.version for o in proto.opset_import if not o.domain), 1)
    early = [n for n in bare.graph.node if not n.domain and opset_of_file < EARLY.get(n.op_type, 0)]
    for node in early:  # into a domain that the checker does not look into
        node.domain = "early"
    if early:
        bare.opset_import.append(onnx.helper.make_opsetid("early", 1))
    try:
        onnx.checker.check_model(bare)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise UserError(f"{path}: not a valid ONNX graph: {' '.join(str(error).split())}") from None


# --- constants -----------------------------------------------------------------------------------------------------


def _constants(path: Path, graph: onnx.GraphProto, used: set[str]) -> tuple[dict[str, Array], list[onnx.ValueInfoProto]]:
    """The initialisers as arrays, taken out of the graph, and what type each has."""
    arrays, typed = {}, []
    for tensor in graph.initializer:
        what = f"initialiser {tensor.name!r}"
        fetch(path, tensor, what)
        arrays[tensor.name] = _array(path, tensor, what)
        tensor.ClearField("raw_data")
        typed.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        arrays[name] = _dense(path, sparse, f"initialiser {name!r}")
        typed.append(onnx.helper.make_tensor_value_info(name, sparse.values.data_type, list(sparse.dims)))
    del graph.initializer[:]
    del graph.sparse_initializer[:]
    for name in arrays.keys() & used:
        _finite(path, name, arrays[name])
    return arrays, typed


def _write_out(path: Path, proto: onnx.ModelProto) -> None:
    """Sparse values of Constant nodes as all others are held."""
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.type == attribute.SPARSE_TENSOR and node.op_type == "Constant" and not node.domain:
                kind = onnx.helper.tensor_dtype_to_np_dtype(attribute.sparse_tensor.values.data_type)
                dense = _dense(path, attribute.sparse_tensor, f"Constant node {node.name!r}").astype(kind)
                attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(dense)))


def _array(path: Path, tensor: TensorProto, what: str) -> Array:
    if min(tensor.dims, default=0) < 0:
        raise UserError(f"{path}: {what} has shape {tuple(tensor.dims)}")
    try:
        with np.errstate(over="ignore"):
            return array(tensor)
    except KeyError:
        raise UserError(f"{path}: {what} is of {_type_name(tensor.data_type)}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {what} does not hold its shape {tuple(tensor.dims)}: {error}") from None


def _dense(path: Path, sparse: onnx.SparseTensorProto, what: str) -> Array:
    """A sparse tensor written out; its indices count elements, or are coordinates."""
    fetch(path, sparse.values, what)
    fetch(path, sparse.indices, what)
    values, indices = _array(path, sparse.values, what), _array(path, sparse.indices, what)
    if prod(sparse.dims) > LARGEST or min(sparse.dims, default=0) < 0:
        raise UserError(f"{path}: {what} has shape {tuple(sparse.dims)}, too large to be written out")
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), dense.shape)
        if indices.size and indices.min() < 0:
            raise ValueError("negative")
        dense.reshape(-1)[indices] = values
    except (ValueError, IndexError):
        raise UserError(f"{path}: {what}: its sparse indices do not fit {values.size} values in {dense.shape}") from None
    return dense


def _finite(path: Path, name: str, held: Array) -> None:
    """Masks hold minus infinity, and what masked scores are filled with is one infinity throughout; all else is refused."""
    if held.dtype != np.float32 or not held.size or np.isfinite((held.min(), held.max())).all():
        return
    bad = np.isnan(held) | np.isposinf(held)
    if bad.any() and (np.isnan(held).any() or (held != held.flat[0]).any()):
        place = np.argwhere(bad)[0].tolist()
        raise UserError(f"{path}: initialiser {name!r} holds NaN or infinity at {place}")


# --- inputs --------------------------------------------------------------------------------------------------------


def _kind(path: Path, info: onnx.ValueInfoProto) -> np.dtype[Any]:
    kind = info.type.tensor_type.elem_type
    if info.type.WhichOneof("value") != "tensor_type":
        raise UserError(f"{path}: input {info.name!r} is no tensor")
    if kind == TensorProto.BFLOAT16:
        return np.dtype(np.float32)
    name = _type_name(kind)
    if kind not in FLOATS and not re.fullmatch(r"BOOL|U?INT(8|16|32|64)", name):
        raise UserError(f"{path}: input {info.name!r} is of {name}; images are floating point or integers")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _type_name(kind: int) -> str:
    """An element type as ONNX names it."""
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else f"the unknown element type {kind}"


def _fixed(path: Path, info: onnx.ValueInfoProto, number: int) -> Array:
    """The constant that an integer input becomes."""
    if not _is_number(info):
        raise UserError(f"{path}: input {info.name!r} is no single integer")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    return np.full([1] * len(info.type.tensor_type.shape.dim), number, dtype)


def _is_number(info: onnx.ValueInfoProto) -> bool:
    """Whether an input is one integer for all images, as a task's number: a scalar, or of length 1 by the file."""
    dims = info.type.tensor_type.shape.dim
    kind = info.type.tensor_type.elem_type
    integer = kind in (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL)
    return integer and len(dims) <= 1 and all(d.dim_value == 1 or not d.HasField("dim_value") for d in dims)


def _shapes(
    path: Path, infos: list[onnx.ValueInfoProto], given: Shapes, like: Shapes
) -> dict[str, tuple[int, ...]]:
    """Sizes of all inputs: what the file says, then what was given, then a batch of 1; names stand for one size."""
    if not infos:
        raise UserError(f"{path}: the model has no input")
    names = [v.name for v in infos]
    if "" in given and len(infos) > 1:
        raise UserError(f"{path}: has inputs {', '.join(names)}; say whose shape it is: --shape {names[0]}=...")
    given = {(name or names[0]): tuple(shape) for name, shape in given.items()}
    for name in given:
        if name not in names:
            raise UserError(f"{path}: has no input {name!r} to give a shape to; it has {', '.join(names)}")
    symbols: dict[str, int] = {}  # open axes of one name are one size
    unnamed = like.get("") if len(infos) == 1 else None
    own = {v.name: _own(path, v, given, like.get(v.name, unnamed), symbols) for v in infos}
    return {v.name: _known(path, v, [symbols.get(n) if isinstance(n, str) else n for n in own[v.name]]) for v in infos}


def _own(
    path: Path, info: onnx.ValueInfoProto, given: Shapes, like: Sequence[int] | None, symbols: dict[str, int]
) -> list[int | str | None]:
    """An input's axes: a size, the name of one that may be in `symbols` by the end, or None."""
    kind, wanted = info.type.tensor_type, given.get(info.name)
    if not kind.HasField("shape"):
        return list(wanted) if wanted else [1, *like[1:]] if like is not None else [None]
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    if wanted is not None:
        if len(wanted) != len(dims) or any(isinstance(n, int) and n != m for n, m in zip(dims, wanted, strict=True)):
            raise UserError(f"{path}: input {info.name!r} has shape {_readable(dims)}, not {list(wanted)}")
    elif like is not None and len(like) == len(dims):
        wanted = (1, *like[1:])
    elif dims and not isinstance(dims[0], int):
        dims[0] = 1
    if wanted is None:
        return dims
    symbols.update({n: size for n, size in zip(dims, wanted, strict=True) if isinstance(n, str)})
    return [n if isinstance(n, int) else size for n, size in zip(dims, wanted, strict=True)]


def _known(path: Path, info: onnx.ValueInfoProto, sizes: list[int | None]) -> tuple[int, ...]:
    said = f"{path}: input {info.name!r} has shape {_readable(sizes)}"
    known = tuple(n for n in sizes if n is not None)
    if len(known) < len(sizes):
        raise UserError(
            f"{said}; give its size, as --shape {info.name}=1,3,224,224 does, or --calibrate with images of that size"
        )
    if 0 in known:
        raise UserError(f"{said}, which holds nothing")
    if prod(known) > LARGEST:
        raise UserError(f"{said}: {prod(known):,} elements, at most {LARGEST:,}")
    if known and known[0] != 1:
        raise UserError(f"{said}; export with batch 1 or a dynamic batch axis")
    return known


def _readable(sizes: Sequence[int | str | None]) -> str:
    return "[" + ", ".join(str(n) if isinstance(n, int) else "?" for n in sizes) + "]"
