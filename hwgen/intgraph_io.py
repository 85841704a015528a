"""Integer graphs as bytes: what a bundle keeps so that golden can run without the ONNX file.

Layout: 8 bytes magic, u32 length of a JSON header, the header, then the arrays, each at a multiple of 64 bytes from the
end of the header. Arrays of equal contents (weights that tasks share) are stored once. No time, name or path of the
machine enters: equal graphs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import fields, is_dataclass
from enum import IntEnum

import numpy as np

from . import intgraph, isa
from .errors import UserError
from .intgraph import IntGraph

MAGIC = b"hwgenIG1"
ALIGN = 64
DTYPES = {"|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"}
CLASSES = {
    c.__name__: c
    for c in (
        IntGraph,
        intgraph.Buffer,
        intgraph.View,
        intgraph.Constant,
        intgraph.Input,
        intgraph.MatMul,
        intgraph.Norm,
        intgraph.Multiply,
        intgraph.RouteTokens,
        intgraph.Output,
    )
}
ENUMS = {
    c.__name__: c
    for c in (isa.Convert, isa.ColScale, isa.RowScale, isa.RowMax, isa.Indirect)
}


def save(graphs: dict[str, IntGraph]) -> bytes:
    """The graphs of all tasks as bytes; `load` gives them back."""
    blobs: list[bytes] = []
    table: list[list] = []  # dtype, shape, offset
    known: dict[bytes, int] = {}
    end = 0

    def place(array: np.ndarray) -> int:
        nonlocal end
        array = np.asarray(array)
        data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        if data.dtype.str not in DTYPES:
            raise TypeError(f"arrays of type {data.dtype} cannot be saved")
        raw = data.tobytes()
        key = hashlib.sha256(f"{data.dtype.str}{array.shape}".encode() + raw).digest()
        if key not in known:
            padding = -end % ALIGN
            known[key] = len(table)
            table.append([data.dtype.str, list(array.shape), end + padding])
            blobs.append(bytes(padding) + raw)
            end += padding + len(raw)
        return known[key]

    def pack(value):
        if isinstance(value, IntEnum):
            return {"enum": [type(value).__name__, int(value)]}
        if isinstance(value, np.generic):
            return value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.ndarray):
            return {"array": place(value)}
        if is_dataclass(value):
            return {"class": type(value).__name__, "fields": {f.name: pack(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, tuple):
            return {"tuple": [pack(v) for v in value]}
        if isinstance(value, list):
            return [pack(v) for v in value]
        if isinstance(value, dict):
            return {"map": {k: pack(v) for k, v in value.items()}}
        raise TypeError(f"{type(value).__name__} cannot be saved")

    body = pack(graphs)
    header = json.dumps({"graphs": body, "arrays": table}, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *blobs])


def load(data: bytes, name: str = "graph") -> dict[str, IntGraph]:
    """The graphs in `data`. Raises UserError naming `name` if it is not what `save` wrote."""
    try:
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError("wrong magic")
        (length,) = struct.unpack_from("<I", data, len(MAGIC))
        start = len(MAGIC) + 4
        header = json.loads(data[start : start + length])
        arrays = [_array(data, start + length, *entry) for entry in header["arrays"]]
        return _unpack(header["graphs"], arrays)
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise UserError(f"{name}: not a saved integer graph ({error})") from None


def _array(data: bytes, base: int, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    if dtype not in DTYPES:
        raise ValueError(f"array type {dtype!r}")
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(data, dtype, count, base + offset).reshape(shape)


def _unpack(value, arrays: list[np.ndarray]):
    if isinstance(value, list):
        return [_unpack(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "enum" in value:
        kind, number = value["enum"]
        return ENUMS[kind](number)
    if "tuple" in value:
        return tuple(_unpack(v, arrays) for v in value["tuple"])
    if "map" in value:
        return {k: _unpack(v, arrays) for k, v in value["map"].items()}
    return CLASSES[value["class"]](**{k: _unpack(v, arrays) for k, v in value["fields"].items()})
