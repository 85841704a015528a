"""A scheduled program with its memory image, and the bundle directory that carries it to a machine.

DRAM is one buffer, each region at a multiple of 4096 bytes:
data region [programs | constants | inputs | outputs], then one region of weight words for each weight port, then where there
are any the spilled values, which are no part of the image.
The data base register points at the start of the data region, the weight base registers at the weight regions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import isa
from .config import Config
from .files import check_replaceable, replace_folder
from .patches import Pads, Patch
from .version import __version__

Array = np.ndarray

FORMAT = "hwgen-bundle"
FORMAT_VERSION = 4
REGION_ALIGNMENT = 4096


@dataclass(frozen=True)
class RowLayout:
    """Rows in DRAM: `groups` groups of `width` columns, each padded to chunks, each chunk to `chunk_bytes`.

    Elements are int16, or with `element_bytes` 1 their high bytes, where the low ones are zero.
    """

    rows: int
    groups: int
    width: int
    chunk: int
    chunk_bytes: int
    element_bytes: int = 2

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.groups * -(-self.width // self.chunk) * self.chunk_bytes


@dataclass(frozen=True)
class InputSlot:
    """Where the driver puts an image, see intgraph.Input. `dram`: byte offset in the DRAM buffer."""

    name: str
    shape: tuple[int, ...]
    patch: Patch
    step: float
    offset: float
    dram: int
    layout: RowLayout
    index: int = 0  # which image of a batch
    stride: Patch | None = None  # pixels from a patch to the next; None: one patch
    pads: Pads = ()
    fine: bool = False
    type: str = "float32"


@dataclass(frozen=True)
class OutputSlot:
    """Where the driver finds an output: real value = int16 * scale, reshaped to `shape`. `dram`: byte offset.

    `transposed`: columns come before rows in that shape.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    dram: int
    layout: RowLayout
    transposed: bool = False
    index: int = 0  # of which image of a batch


@dataclass(frozen=True, eq=False)
class Place:
    """Where a buffer lies in the scratchpad while operations first..last (indices of IntGraph.ops) run.

    `address` and `pitch` in chunks; `columns[c]`: position of column c in its row, in elements.
    """

    first: int
    last: int
    address: int
    pitch: int
    rows: int
    columns: Array


@dataclass
class TaskProgram:
    """One task: its instructions, what they belong to, and where its data lies."""

    instructions: list[isa.Insn]
    origins: list[str]  # name of the operation behind each instruction
    inputs: list[InputSlot]
    outputs: list[OutputSlot]
    places: dict[str, list[Place]]  # by buffer, for tracing
    offset: int = 0  # bytes from the start of the DRAM buffer
    together: tuple[str, ...] = ()  # the tasks that it is a run of, where these are several
    queues: tuple[tuple[int, ...], ...] = ()  # of each Route, the tokens that each expert is expected to have; not in a bundle

    def place(self, buffer: str, op: int) -> Place:
        """Where `buffer` lies right after operation number `op`. Raises KeyError if it holds nothing then."""
        for place in self.places[buffer]:
            if place.first <= op <= place.last:
                return place
        raise KeyError(f"buffer {buffer!r} holds nothing after operation {op}")


@dataclass
class Region:
    """Bytes offset..offset+size of the DRAM buffer."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass
class Program:
    """Everything the machine needs, see the module's text for the memory map."""

    config: Config
    tasks: dict[str, TaskProgram]
    constants: bytes
    stripes: list[bytes]  # one a weight port
    regions: dict[str, Region]  # programs, constants, inputs, outputs, weights0..., spills
    batch: int = 1  # images that one run of a task takes

    @property
    def data_base(self) -> int:
        """Byte offset that the data base register holds, from the start of the DRAM buffer."""
        return self.regions["programs"].offset

    @property
    def weight_bases(self) -> list[int]:
        """Byte offsets of the weight regions, one a port."""
        return [self.regions[f"weights{p}"].offset for p in range(len(self.stripes))]

    @property
    def size(self) -> int:
        """Bytes of the DRAM buffer."""
        return max(region.end for region in self.regions.values())

    def binary(self) -> bytes:
        """The programs of all tasks: contents of region `programs`."""
        image = bytearray(self.regions["programs"].size)
        for task in self.tasks.values():
            code = isa.assemble(task.instructions)
            start = task.offset - self.regions["programs"].offset
            image[start : start + len(code)] = code
        return bytes(image)

    def images(self) -> list[tuple[str, int, bytes]]:
        """What must lie in DRAM before the first run: (bundle file, offset in DRAM, contents)."""
        static = [("dram.bin", self.regions["constants"].offset, self.constants)]
        static += [("dram.bin", self.regions[f"weights{p}"].offset, data) for p, data in enumerate(self.stripes)]
        return [("program.bin", self.regions["programs"].offset, self.binary()), *static]

    def dram(self) -> Array:
        """The DRAM buffer before the first run: uint8 [size]."""
        memory = np.zeros(self.size, np.uint8)
        for _, offset, data in self.images():
            memory[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        return memory


def memory_map(
    config: Config, code: dict[str, int], constants: int, inputs: int, outputs: int, stripe: int, spills: int = 0
) -> tuple[dict[str, Region], dict[str, int]]:
    """(regions, program offset of each task) from sizes in bytes; `code`: bytes of each task's program."""
    end, offsets = 0, {}
    for task, size in code.items():
        offsets[task] = end
        end = _align(end + size)
    regions = {"programs": Region(0, end)}
    sizes = {"constants": constants, "inputs": inputs, "outputs": outputs}
    sizes |= {f"weights{p}": stripe for p in range(config.weight_ports)}
    if spills:
        sizes["spills"] = spills
    for name, size in sizes.items():
        regions[name] = Region(end, size)
        end = _align(end + size)
    return regions, offsets


def _align(value: int) -> int:
    return -(-value // REGION_ALIGNMENT) * REGION_ALIGNMENT


# --- bundle ------------------------------------------------------------------------------------------------------


def manifest(
    program: Program,
    *,
    models: list[dict],
    board: str,
    registers: list[dict],
    files: dict[str, str],
    quantisation: dict | None = None,
) -> dict:
    """The manifest as a JSON object. models: {task, file, sha256} each; files: sha256 by relative name.

    quantisation: how the weights were made, for the record.
    """
    segments, position = [], {}
    for file, offset, data in program.images():
        start = position.get(file, 0)
        segments.append({"file": file, "file_offset": start, "dram_offset": offset, "bytes": len(data)})
        position[file] = start + len(data)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool": {"name": "hwgen", "version": __version__},
        "isa": isa.fingerprint(),
        "models": models,
        "board": board,
        "config": program.config.to_dict(),
        "batch": program.batch,
        "quantisation": quantisation or {},
        "registers": registers,
        "memory": {
            "bytes": program.size,
            "alignment": REGION_ALIGNMENT,
            "data_base": program.data_base,
            "weight_bases": program.weight_bases,
            "regions": {name: {"offset": r.offset, "bytes": r.size} for name, r in program.regions.items()},
            "segments": segments,
        },
        "tasks": {name: task_entry(task) for name, task in program.tasks.items() if not task.together},
        "together": {
            name: task_entry(task) | {"tasks": list(task.together)} for name, task in program.tasks.items() if task.together
        },
        "files": files,
    }


def task_entry(task: TaskProgram) -> dict:
    """A task in the manifest."""
    return {
        "program": {"offset_bytes": task.offset, "instructions": len(task.instructions)},
        "inputs": [_slot_entry(slot) for slot in task.inputs],
        "outputs": [_slot_entry(slot) for slot in task.outputs],
    }


def _slot_entry(slot: InputSlot | OutputSlot) -> dict:
    return asdict(slot) | {"bytes": slot.layout.bytes}


def write_bundle(
    path: Path | str,
    program: Program,
    *,
    models: list[dict],
    board: str,
    registers: list[dict],
    files: dict[str, bytes | str] | None = None,
    quantisation: dict | None = None,
) -> None:
    """Write the bundle directory: manifest.json, manifest.sha256, program.bin, dram.bin and `files` (relative names).

    models: {task, file, sha256} of each ONNX file; registers, quantisation: as in `manifest`. The directory appears
    complete or not at all; an existing one is replaced only if it is a bundle or empty, otherwise UserError. Equal
    arguments give equal bytes.
    """
    path = Path(path)
    contents: dict[str, bytes] = {"program.bin": program.binary()}
    contents["dram.bin"] = b"".join(data for file, _, data in program.images() if file == "dram.bin")
    for name, content in (files or {}).items():
        contents[name] = content.encode() if isinstance(content, str) else content
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    entry = manifest(program, models=models, board=board, registers=registers, files=hashes, quantisation=quantisation)
    text = (json.dumps(entry, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    contents["manifest.json"] = text
    contents["manifest.sha256"] = (hashlib.sha256(text).hexdigest() + "\n").encode()
    save_bundle(path, contents)


def save_bundle(path: Path, contents: dict[str, bytes]) -> None:
    """Write a bundle's files by relative name, complete or not at all; see `write_bundle`."""
    replace_folder(path, contents, _is_bundle, "bundle")


def check_target(path: Path | str) -> None:
    """Raise UserError unless a bundle may be written to `path`: call it before the long work."""
    check_replaceable(Path(path), _is_bundle, "bundle")


def _is_bundle(path: Path) -> bool:
    try:
        return json.loads((path / "manifest.json").read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return (path / "manifest.sha256").is_file()  # a damaged bundle may be replaced, too
