"""Images to the bytes the accelerator loads, and the bytes it stores to the model's outputs.

`entry` is an element of the manifest's `inputs` or `outputs` of a task. Rows lie as the instruction `Load` expects them:
each column group padded to whole chunks of elements, each chunk padded to `chunk_bytes`. Elements are int16, or int8
where `element_bytes` is 1: then the row's value is INT16_STEPS times the element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

INT8_MAX = 127
INT16_STEPS = 256  # int16 steps of one int8 step


def pack_input(entry: dict, image: np.ndarray) -> bytes:
    """Bytes for the input region from an image, video or volume. Raises ValueError for a wrong shape or what it cannot hold.

    `fine`: all 16 bits of an element hold the image, in steps 1/256 as large. `patch`, `stride` (None: `patch`) and `pads`
    (before each axis, then behind each; []: none) have an entry for each axis.
    """
    image = np.asarray(image)
    if image.shape != tuple(entry["shape"]):
        raise ValueError(f"input {entry['name']!r}: shape {list(image.shape)}, expected {list(entry['shape'])}")
    if fault := unfit(image[None], entry["type"]):
        raise ValueError(f"input {entry['name']!r}: holds {fault}")
    pads = np.reshape(entry["pads"] or [0] * 2 * image.ndim, (2, image.ndim)).T.tolist()
    inside = tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(image.shape, pads, strict=True))
    pixels = np.pad(image[inside].astype(np.float64), [(max(0, a), max(0, b)) for a, b in pads])
    steps = (pixels - entry["offset"]) / entry["step"]
    steps = np.round(steps * INT16_STEPS) if entry["fine"] else np.round(steps) * INT16_STEPS
    levels = np.clip(steps, -INT8_MAX * INT16_STEPS, INT8_MAX * INT16_STEPS).astype(np.int16)
    return pack_rows(entry["layout"], patchify(levels, entry["patch"], entry["stride"]))


def unfit(images: np.ndarray, kind: str) -> str | None:
    """What of an array [images, ...] an input of a type cannot hold, and in which image; None where it holds all of it.

    kind: the type as NumPy calls it. Floats hold what float32 does; whole numbers and booleans no fraction, and nothing beyond
    their range: pixels from 0 to 1 are none of uint8.
    """
    flat, dtype = images.reshape(len(images), -1), np.dtype(kind)
    with np.errstate(over="ignore"):
        finite = np.isfinite(flat.astype(np.float32))
    if not finite.all():
        image = int((~finite).any(axis=1).argmax())
        what = "a value beyond float32" if np.isfinite(flat[image]).all() else "NaN or infinity"
        return f"{what} in image {image}"
    if dtype.kind == "f" or flat.dtype == dtype:
        return None
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    bad = (flat < low) | (flat > high) | (flat != np.floor(flat) if flat.dtype.kind == "f" else False)
    if not bad.any():
        return None
    image = int(bad.any(axis=1).argmax())
    value = flat[image][bad[image].argmax()]
    return f"{value:g} in image {image}, the input takes {dtype.name}, whole numbers from {low} to {high}"


def unpack_output(entry: dict, data: bytes | np.ndarray) -> np.ndarray:
    """float32 array in the ONNX shape (without the batch axis) from the bytes of the output region."""
    rows = unpack_rows(entry["layout"], data)
    if entry["transposed"]:
        rows = rows.T
    return (rows * np.float64(entry["scale"])).astype(np.float32).reshape(entry["shape"])


def pack_run(slots: list[dict], arrays: dict[str, np.ndarray]) -> Iterator[tuple[int, bytes]]:
    """(byte offset in DRAM, bytes) of every input slot of a run. arrays: input name -> [n, *shape], n at most its batch.

    A slot's `index` says which of the images it takes; the last one stands in for those that are missing.
    """
    for slot in slots:
        images = arrays[slot["name"]]
        yield slot["dram"], pack_input(slot, images[min(slot["index"], len(images) - 1)])


def unpack_run(slots: list[dict], read: Callable[[int, int], np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Output name -> float32 [count, ...] of a run's first `count` images. read: bytes of DRAM from offset and size."""
    images: dict[str, list] = {}
    for slot in sorted(slots, key=lambda slot: slot["index"]):
        if slot["index"] < count:
            data = read(slot["dram"], slot["bytes"])
            images.setdefault(slot["name"], []).append(unpack_output(slot, data))
    return {name: np.stack(parts) for name, parts in images.items()}


def patchify(image: np.ndarray, patch: Sequence[int], stride: Sequence[int] | None) -> np.ndarray:
    """[patches, elements of a patch], row-major in the order of the axes, `stride` pixels apart along each (None: a patch)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, tuple(patch))[tuple(slice(None, None, s) for s in stride or patch)]
    return windows.reshape(-1, int(np.prod(patch)))


def pack_rows(layout: dict, rows: np.ndarray) -> bytes:
    """int16 [rows, groups*width] as bytes in `layout`. Raises ValueError where int8 elements cannot hold the values."""
    element = _element(layout)
    if element.itemsize == 1:
        if (rows % INT16_STEPS).any():
            raise ValueError(f"int8 rows hold multiples of {INT16_STEPS} only")
        rows = rows // INT16_STEPS
    padded = np.zeros(_shape(layout), element)
    chunks = padded[..., : layout["chunk"]]
    groups = np.zeros((*chunks.shape[:2], chunks.shape[2] * layout["chunk"]), element)
    groups[..., : layout["width"]] = rows.reshape(layout["rows"], layout["groups"], layout["width"])
    chunks[:] = groups.reshape(chunks.shape)
    return padded.tobytes()


def unpack_rows(layout: dict, data: bytes | np.ndarray) -> np.ndarray:
    """int16 [rows, groups*width] from bytes in `layout`."""
    shape, element = _shape(layout), _element(layout)
    padded = np.frombuffer(data, element, int(np.prod(shape))).reshape(shape)
    chunks = padded[..., : layout["chunk"]].reshape(shape[0], shape[1], -1)
    rows = chunks[..., : layout["width"]].reshape(shape[0], -1)
    return rows.astype(np.int16) * INT16_STEPS if element.itemsize == 1 else rows


def _element(layout: dict) -> np.dtype:
    return np.dtype(np.int8 if layout["element_bytes"] == 1 else "<i2")


def _shape(layout: dict) -> tuple[int, int, int, int]:
    """rows, groups, chunks, elements a chunk takes with its padding."""
    chunks = -(-layout["width"] // layout["chunk"])
    return layout["rows"], layout["groups"], chunks, layout["chunk_bytes"] // layout["element_bytes"]
