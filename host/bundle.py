"""Reads a bundle directory: every file is checked against its hash before anything is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from .errors import BundleError
from .manifest import check

FORMAT = "hwgen-bundle"
FORMAT_VERSION = 4
INSTRUCTION_BYTES = 64


class Bundle:
    """A bundle that was checked. `manifest`: the JSON object; `files`: contents by relative name, as bytes."""

    def __init__(self, path: Path | str):
        """Read and check the bundle directory `path`. Raises BundleError."""
        self.path = Path(path)
        if not self.path.is_dir():
            raise BundleError(f"{self.path}: no bundle directory")
        text = self._read("manifest.json")
        if f"{hashlib.sha256(text).hexdigest()}\n".encode() != self._read("manifest.sha256"):
            raise BundleError(f"{self.path / 'manifest.json'}: damaged (its hash is not that of manifest.sha256)")
        self.manifest: dict = self._parse(text)
        self.files: dict[str, bytes] = {}
        for name, digest in self.manifest["files"].items():
            self.files[name] = self._read(name)
            if hashlib.sha256(self.files[name]).hexdigest() != digest:
                raise BundleError(f"{self.path / name}: damaged (its hash is not that of the manifest)")
            if name.endswith(".json"):
                self._object(name)
        try:
            check(self.manifest, {name: len(data) for name, data in self.files.items()})
        except ValueError as error:
            raise BundleError(f"{self.path / 'manifest.json'}: {error}") from None

    def _read(self, name: str) -> bytes:
        try:
            path = (self.path / name).resolve()
            inside, endless = path.is_relative_to(self.path.resolve()), path.exists() and not path.is_file()
            if inside and not endless:
                return path.read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / name}: cannot be read ({error.strerror})") from None
        except RuntimeError:  # links in a circle
            raise BundleError(f"{self.path / name}: cannot be read (links in a circle)") from None
        except (ValueError, TypeError):  # a NUL in it, or no text
            raise BundleError(f"{self.path}: lists {name!r}, which is no file name") from None
        what = "is no file" if inside else "lies outside it"  # a device or a pipe may never end
        raise BundleError(f"{self.path}: lists {name!r}, which {what}")

    def _object(self, name: str) -> None:
        try:
            good = isinstance(json.loads(self.files[name]), dict)
        except (ValueError, RecursionError):
            good = False
        if not good:
            raise BundleError(f"{self.path / name}: holds no JSON object")

    def _parse(self, text: bytes) -> dict:
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(text)
            kind, version = manifest["format"], manifest["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BundleError(f"{path}: not the manifest of a bundle") from None
        if kind != FORMAT or version != FORMAT_VERSION:
            raise BundleError(f"{path}: format {kind!r} version {version}, this tool reads {FORMAT!r} {FORMAT_VERSION}")
        for part in ("config", "memory", "tasks", "files"):
            if not isinstance(manifest.get(part), dict) or not manifest[part]:
                raise BundleError(f"{path}: holds no {part}")
        for name in ("program.bin", "dram.bin"):
            if name not in manifest["files"]:
                raise BundleError(f"{path}: lists no {name}")
        return manifest

    @property
    def config(self) -> dict:
        """Fields of the machine's Config."""
        return self.manifest["config"]

    @property
    def memory(self) -> dict:
        """Memory map: bytes, alignment, data_base, weight_bases, regions, segments."""
        return self.manifest["memory"]

    @property
    def batch(self) -> int:
        """Images that one run of a program takes; slots of inputs and outputs say by `index` which of them they hold."""
        return self.manifest["batch"]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks; one "" where the network has one."""
        return list(self.manifest["tasks"])

    @property
    def together(self) -> dict[str, list[str]]:
        """Runs of several tasks of the same images, by name: the tasks of each."""
        return {name: entry["tasks"] for name, entry in self.manifest.get("together", {}).items()}

    def choose(self, task: str | None) -> str:
        """The task of that name, the only one without a name, or of several with commas between the run of all of them.

        Raises BundleError.
        """
        if task is None and len(self.tasks) > 1:
            raise BundleError(f"{self.path}: holds the tasks {', '.join(self.tasks)}: name one with --task")
        if task is None or task in self.tasks:
            return self.tasks[0] if task is None else task
        wanted = task.split(",")
        for name, tasks in self.together.items():
            if sorted(tasks) == sorted(wanted):
                return name
        if len(wanted) > 1 and set(wanted) <= set(self.tasks):
            known = ", ".join(map(repr, self.together)) or "none"
            raise BundleError(f"{self.path}: holds no run of the tasks {task}; of its tasks it runs together: {known}")
        known = ", ".join(map(repr, self.tasks)) if self.tasks != [""] else "one task, which has no name"
        raise BundleError(f"{self.path}: unknown task {task!r}; it holds {known}")

    def task(self, name: str) -> dict:
        """Manifest entry of a task, or of a run of several: program, inputs, outputs."""
        runs = self.manifest["tasks"] | self.manifest.get("together", {})
        if name not in runs:
            raise BundleError(f"{self.path}: no task {name!r}; there is {', '.join(map(repr, self.tasks))}")
        return runs[name]

    def dram(self) -> np.ndarray:
        """The DRAM buffer before the first run, programs included: uint8 [memory bytes]."""
        memory = np.zeros(self.memory["bytes"], np.uint8)
        for segment in self.memory["segments"]:
            start, size, data = segment["file_offset"], segment["bytes"], self.files[segment["file"]]
            target = slice(segment["dram_offset"], segment["dram_offset"] + size)
            memory[target] = np.frombuffer(data, np.uint8, size, start)
        return memory

    def program(self, task: str) -> bytes:
        """The instruction words of a task."""
        entry = self.task(task)["program"]
        start = entry["offset_bytes"] - self.memory["regions"]["programs"]["offset"]
        return self.files["program.bin"][start : start + entry["instructions"] * INSTRUCTION_BYTES]

    def inputs(self, task: str) -> dict[str, tuple[int, ...]]:
        """Shapes of a task's ONNX inputs, without the batch axis."""
        return {slot["name"]: tuple(slot["shape"]) for slot in self.task(task)["inputs"]}

    def types(self, task: str = "") -> dict[str, str]:
        """Types of the numbers of a task's inputs in its file, as NumPy calls them."""
        return {slot["name"]: slot["type"] for slot in self.task(task)["inputs"]}

    def outputs(self, task: str) -> list[str]:
        """Names of a task's ONNX outputs."""
        return list(dict.fromkeys(slot["name"] for slot in self.task(task)["outputs"]))

    def estimated_cycles(self, task: str) -> int:
        """Cycles of a run as the build's cost model expects them; 0 where the bundle holds no report."""
        report = self.files.get("report.json")
        return json.loads(report)["tasks"][task]["run_cycles"] if report else 0
