"""Run a bundle on one of three engines: golden (integer graph), machine (program) or rtl (the generated Verilog)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from host.bundle import Bundle
from host.pack import pack_input, unpack_output

from . import intgraph_io
from .build import GRAPH_FILE
from .config import Config
from .errors import UserError

ENGINES = ("golden", "machine", "rtl")
Progress = Callable[[int, int], None]


@dataclass
class Run:
    """What an engine gave: `outputs` maps ONNX outputs to float32 [images, ...]; `counters` one dict per image (rtl)."""

    engine: str
    task: str
    outputs: dict[str, np.ndarray]
    seconds: float = 0.0
    counters: list[dict[str, int]] = field(default_factory=list)

    @property
    def images(self) -> int:
        return len(next(iter(self.outputs.values())))

    def summary(self, config: Config) -> dict:
        """The `--json` object of `hwgen run`."""
        result = {
            "engine": self.engine,
            "task": self.task,
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "outputs": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in self.outputs.items()},
        }
        if self.counters:
            cycles = [c["cycles"] for c in self.counters]
            active = [c["array_active"] for c in self.counters]
            result |= {
                "clock_mhz": config.clock_mhz,
                "cycles": cycles,
                "images_per_second": round(config.clock_mhz * 1e6 * len(cycles) / sum(cycles), 3),
                "array_utilisation": [round(a / c, 4) for a, c in zip(active, cycles, strict=True)],
                "counters": self.counters,
            }
        return result


def choose_task(names: list[str], task: str | None) -> str:
    """The task to run. Raises UserError where the bundle has no such task, or several and none is named."""
    if task is None:
        if len(names) > 1:
            raise UserError(f"the bundle holds the tasks {', '.join(names)}: name one with --task")
        return names[0]
    if task not in names:
        known = ", ".join(repr(name) for name in names) if names != [""] else "one task without a name"
        raise UserError(f"unknown task {task!r}; the bundle holds {known}")
    return task
