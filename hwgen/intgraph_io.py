"""Integer graphs as bytes: what a bundle keeps so that golden can run without the ONNX file.

Layout: 8 bytes magic, u32 length of a JSON header with the text of each graph (`hwgen.leveltext`), the header, then the
arrays, each at a multiple of 64 bytes from the end of the header. Arrays of equal contents (weights that tasks share)
are stored once. No time, name or path of the machine enters: equal graphs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np

from . import leveltext
from .errors import UserError
from .intgraph import IntGraph

MAGIC = b"hwgenIG2"
ALIGN = 64


def save(graphs: dict[str, IntGraph]) -> bytes:
    """The graphs of all tasks as bytes; `load` gives them back."""
    arrays: list[np.ndarray] = []
    texts = {task: leveltext.text(graph, arrays) for task, graph in graphs.items()}
    blobs: list[bytes] = []
    table: list[list] = []  # dtype, shape, offset
    known: dict[bytes, int] = {}
    end = 0
    for array in arrays:
        data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        raw = data.tobytes()
        key = hashlib.sha256(raw).digest()
        if key not in known:
            known[key] = end + -end % ALIGN
            blobs.append(bytes(-end % ALIGN) + raw)
            end = known[key] + len(raw)
        table.append([data.dtype.str, list(array.shape), known[key]])
    header = json.dumps({"graphs": texts, "arrays": table}, separators=(",", ":")).encode()
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
        return {task: leveltext.parse(text, IntGraph, arrays) for task, text in header["graphs"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise UserError(f"{name}: not a saved integer graph ({error})") from None


def _array(data: bytes, base: int, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    if dtype[1:] not in leveltext.DTYPES:
        raise ValueError(f"array type {dtype!r}")
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(data, dtype, count, base + offset).reshape(shape)
