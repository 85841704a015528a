"""Tensors whose numbers stand in a file beside the model: initialisers, attributes, those of branches and loop bodies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from ..errors import UserError

LFS = b"version https://git-lfs"


def tensors(graph: GraphProto) -> Iterator[tuple[TensorProto, str]]:
    """Every tensor that a graph holds, also in its branches, with what a message calls it."""
    yield from ((t, f"initialiser {t.name!r}") for t in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from ((t, f"initialiser {sparse.values.name!r}") for t in (sparse.values, sparse.indices))
    yield from of_nodes(graph.node)


def of_nodes(nodes: Iterable[NodeProto]) -> Iterator[tuple[TensorProto, str]]:
    """Every tensor among the attributes of nodes (those of a graph or of a model's local function)."""
    for node in nodes:
        for a in node.attribute:
            name = f"attribute {a.name!r} of {node.op_type} node {node.name or ', '.join(node.output)!r}"
            held = [*([a.t] if a.type == AttributeProto.TENSOR else []), *a.tensors]
            for sparse in [*([a.sparse_tensor] if a.type == AttributeProto.SPARSE_TENSOR else []), *a.sparse_tensors]:
                held += [sparse.values, sparse.indices]
            yield from ((t, name) for t in held)
        for inner in bodies(node):
            yield from tensors(inner)


def bodies(node: NodeProto) -> list[GraphProto]:
    """The branches of an If, the body of a Loop or Scan."""
    found: list[GraphProto] = []
    for a in node.attribute:
        found += [a.g] if a.type == AttributeProto.GRAPH else []
        found += a.graphs
    return found


def everything(proto: onnx.ModelProto) -> Iterator[tuple[TensorProto, str]]:
    """Every tensor of a model."""
    yield from tensors(proto.graph)
    for function in proto.functions:
        yield from of_nodes(function.node)


def fetch(path: Path, tensor: TensorProto, what: str) -> None:
    """Bring external data into the tensor. path: of the model. Raises UserError naming the tensor and the file."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    where = {e.key: e.value for e in tensor.external_data}
    said = f"{path}: external data of {what}"
    try:
        offset = int(where.get("offset") or 0)
        length = int(where["length"]) if where.get("length") else None
        if offset < 0 or (length or 0) < 0:
            raise ValueError
    except ValueError:
        raise UserError(f"{said}: bad offset or length") from None
    data = place(path, where.get("location", ""), said)
    try:
        with open(data, "rb") as file:
            if file.read(len(LFS)) == LFS:
                raise UserError(f"{said}: {data} is a git-lfs pointer, not the data (git lfs pull fetches it)")
            size = file.seek(0, 2)
            if size < offset + (length or 0):
                raise UserError(f"{said}: {data} is truncated ({offset + (length or 0)} bytes needed, {size} there)")
            file.seek(offset)
            tensor.raw_data = file.read(-1 if length is None else length)
    except OSError as error:
        raise UserError(f"{said}: {data} cannot be read: {error.strerror or error}") from None
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def place(path: Path, location: str, said: str) -> Path:
    """The data file of a model: beside the model as it is named, or beside the file that a link leads to.

    Links are followed, as in the cache of huggingface_hub, where model and data both lead to a folder of blobs; but
    never out of these two folders. said: begins the message. Raises UserError.
    """
    folders = dict.fromkeys((path.parent, path.resolve().parent))
    roots = [folder.resolve() for folder in folders]
    if not location or "\0" in location or len(location) > 4096 or Path(location).is_absolute() or ".." in Path(location).parts:
        raise UserError(f"{said}: location {location!r} is no file beside the model")
    try:
        found = next((folder / location for folder in folders if (folder / location).is_file()), None)
    except OSError as error:  # a name that is too long for the file system
        raise UserError(f"{said}: {location[:80]!r}: {error.strerror}") from None
    if found is None:
        raise UserError(f"{said}: no such file {path.parent / location}")
    if not any(found.resolve().is_relative_to(root) for root in roots):
        raise UserError(f"{said}: the link {found} leads to another folder (copy the model with cp -L)")
    return found


def fingerprint(path: Path) -> str:
    """SHA-256 of a model: of its file, or of the hashes of its file and its external data where it has some."""
    own = _sha256(path)
    proto = onnx.load(path, load_external_data=False)
    names: set[str] = set()
    for tensor, _ in everything(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            names.update(e.value for e in tensor.external_data if e.key == "location")
    if not names:
        return own
    parts = [own, *(_sha256(place(path, name, f"{path}: external data")) for name in sorted(names))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
