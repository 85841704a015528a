"""What a manifest must hold, before anything in it is used: a bundle may come from anywhere, and its hashes are its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MOST_BYTES = 1 << 40
MOST = 1 << 31  # of what counts something
TEXT, NUMBER, ANY = "text", "number", "anything"
TYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")


class Each(dict):
    """A JSON object of any names, each of which holds this."""


def whole(low: int, high: int = MOST) -> tuple[int, int]:
    """A whole number from `low` to `high`."""
    return low, high


BYTES = whole(0, MOST_BYTES)
LAYOUT = {**dict.fromkeys(("chunk", "chunk_bytes", "groups", "rows", "width"), whole(1)), "element_bytes": whole(1, 2)}
SLOT = {"bytes": BYTES, "dram": BYTES, "index": whole(0), "layout": LAYOUT, "name": TEXT, "shape": [whole(1)]}
INPUT = SLOT | {"offset": NUMBER, "step": NUMBER, "pads": [whole(-MOST)], "patch": [whole(1)], "stride": ANY}
INPUT |= {"fine": ANY, "type": TEXT}
OUTPUT = SLOT | {"scale": NUMBER, "transposed": ANY}
RUN = {"inputs": [INPUT], "outputs": [OUTPUT], "program": {"instructions": whole(1), "offset_bytes": BYTES}}
TOGETHER = Each(any=RUN | {"tasks": [TEXT]})  # there where the bundle has several tasks that fit together
SCHEMA = {
    "batch": whole(1),
    "isa": TEXT,
    "memory": {
        "bytes": whole(1, MOST_BYTES),
        "data_base": BYTES,
        "regions": Each(programs={"offset": BYTES, "bytes": BYTES}),
        "segments": [{"file": TEXT, "bytes": BYTES, "dram_offset": BYTES, "file_offset": BYTES}],
        "weight_bases": [BYTES],
    },
    "models": [{"file": TEXT, "sha256": TEXT, "task": TEXT, "inputs": Each(any=whole(-MOST)), "outputs": [TEXT]}],
    "tasks": Each(any=RUN),
}


def check(manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Raise ValueError naming the entry that is missing, of a wrong kind, or points where nothing is.

    sizes: bytes of the bundle's files by name.
    """
    _like(manifest, SCHEMA, "")
    memory = manifest["memory"]
    for i, segment in enumerate(memory["segments"]):
        where = f"memory.segments.{i}"
        if segment["file"] not in sizes:
            raise ValueError(f"{where}.file: {segment['file']!r} is no file of the bundle")
        _within(f"{where}.file_offset", segment["file_offset"], segment["bytes"], sizes[segment["file"]])
        _within(f"{where}.dram_offset", segment["dram_offset"], segment["bytes"], memory["bytes"])
    places = sorted((s["dram_offset"], s["dram_offset"] + s["bytes"]) for s in memory["segments"])
    for (_, end), (first, _) in zip(places, places[1:], strict=False):
        if first < end:
            raise ValueError(f"memory.segments: two of them lie at {first}")
    for i, base in enumerate(memory["weight_bases"]):
        _within(f"memory.weight_bases.{i}", base, 0, memory["bytes"])
    together = manifest.get("together", {})
    _like(together, TOGETHER, "together")
    for name, run in together.items():
        if unknown := [task for task in run["tasks"] if task not in manifest["tasks"]]:
            raise ValueError(f"together.{name}.tasks: {unknown[0]!r} is no task")
        if name in manifest["tasks"]:
            raise ValueError(f"together.{name}: is a task, too")
    for group, runs in (("tasks", manifest["tasks"]), ("together", together)):
        for name, run in runs.items():
            _run(f"{group}.{name}", run, manifest, sizes)


def _run(where: str, run: Mapping[str, Any], manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    memory = manifest["memory"]
    programs = memory["regions"].get("programs", {"offset": 0, "bytes": 0})
    first, size = run["program"]["offset_bytes"], run["program"]["instructions"] * 64
    _within(f"{where}.program", first - programs["offset"], size, min(programs["bytes"], sizes["program.bin"]))
    for side in ("inputs", "outputs"):
        if not run[side]:
            raise ValueError(f"{where}.{side}: is empty")
        for i, slot in enumerate(run[side]):
            _slot(f"{where}.{side}.{i}", slot, memory, manifest["batch"])
            # An output that is larger than the scratchpad is read where it has been spilled.
            named = [memory["regions"].get(name) for name in ((side,) if side == "inputs" else (side, "spills"))]
            regions = [region for region in named if region is not None]
            if regions and not any(_fits(slot["dram"] - r["offset"], slot["bytes"], r["bytes"]) for r in regions):
                _within(f"{where}.{side}.{i}.dram", slot["dram"] - regions[0]["offset"], slot["bytes"], regions[0]["bytes"])


def _slot(where: str, slot: Mapping[str, Any], memory: Mapping[str, Any], batch: int) -> None:
    layout, shape = slot["layout"], slot["shape"]
    _within(f"{where}.dram", slot["dram"], slot["bytes"], memory["bytes"])
    if slot["index"] >= batch:
        raise ValueError(f"{where}.index: {slot['index']}, of a batch of {batch}")
    if layout["chunk"] * layout["element_bytes"] > layout["chunk_bytes"] or layout["chunk_bytes"] % layout["element_bytes"]:
        raise ValueError(f"{where}.layout.chunk_bytes: {layout['chunk_bytes']} hold no {layout['chunk']} elements")
    chunks = -(-layout["width"] // layout["chunk"])
    if layout["rows"] * layout["groups"] * chunks * layout["chunk_bytes"] > slot["bytes"]:
        raise ValueError(f"{where}.layout: is larger than {slot['bytes']} bytes")
    elements = layout["rows"] * layout["groups"] * layout["width"]
    if "patch" not in slot:
        if math.prod(shape) != elements:
            raise ValueError(f"{where}.shape: {shape} are no {elements} elements")
        return
    stride, pads, rank = slot["stride"] or slot["patch"], slot["pads"] or [0] * 2 * len(shape), len(shape)
    if not _whole_numbers(stride, 1) or not len(slot["patch"]) == len(stride) == rank or len(pads) != 2 * rank:
        raise ValueError(f"{where}.patch: patch, stride and pads are not of the {rank} axes of its shape")
    if slot["type"] not in TYPES:
        raise ValueError(f"{where}.type: {slot['type']!r} is no type of numbers")
    if slot["fine"] is not (layout["element_bytes"] == 2):
        raise ValueError(f"{where}.fine: {slot['fine']!r}, with elements of {layout['element_bytes']} bytes")
    if not slot["step"] > 0:
        raise ValueError(f"{where}.step: {slot['step']}, must be above 0")
    spans = [n + a + b - k for n, a, b, k in zip(shape, pads, pads[rank:], slot["patch"], strict=False)]
    if min(spans) < 0 or math.prod(n // s + 1 for n, s in zip(spans, stride, strict=True)) * math.prod(slot["patch"]) != elements:
        raise ValueError(f"{where}.patch: its patches are no {elements} elements")


def _whole_numbers(value: Any, low: int) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= low for n in value)


def _fits(first: int, size: int, end: int) -> bool:
    return first >= 0 and first + size <= end


def _within(where: str, first: int, size: int, end: int) -> None:
    if not _fits(first, size, end):
        raise ValueError(f"{where}: {first} and {size} bytes on, of {end}")


def _like(value: Any, wanted: Any, where: str) -> None:
    """Raise ValueError unless the value is as the schema has it."""
    bad = ValueError(f"{where}: {str(value)[:60]!r}")
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            raise bad
        (kind,) = wanted.values() if isinstance(wanted, Each) else (None,)
        for name in value if isinstance(wanted, Each) else wanted:
            if name not in value:
                raise ValueError(f"{where}.{name}: is missing".lstrip("."))
            _like(value[name], wanted[name] if kind is None else kind, f"{where}.{name}".lstrip("."))
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise bad
        for i, item in enumerate(value):
            _like(item, wanted[0], f"{where}.{i}")
    elif isinstance(wanted, tuple):
        if type(value) is not int or not wanted[0] <= value <= wanted[1]:
            raise bad
    elif wanted == TEXT:
        if not isinstance(value, str):
            raise bad
    elif wanted == NUMBER and (not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value)):
        raise bad
