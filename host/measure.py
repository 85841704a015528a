"""What a stream of runs took: throughput, latency percentiles, traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from .accelerator import Accelerator
from .job import Job

PERCENTILES = (50, 90, 99)


@dataclass
class Measurement:
    """Runs in order: `outputs` {name: [images, ...]} by task; seconds of the device's time; cycles and bytes per run."""

    clock_mhz: float
    batch: int
    images: int = 0
    seconds: float = 0.0  # from the first start to the last end
    latencies: list[float] = field(default_factory=list)  # seconds, one a run
    cycles: list[int] = field(default_factory=list)
    dram_bytes: list[int] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    outputs: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def summary(self) -> dict:
        """The `--json` object."""
        at = np.percentile(self.latencies, PERCENTILES) * 1e3
        return {
            "images": self.images,
            "clock_mhz": self.clock_mhz,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
            "latency_ms": {f"p{p}": float(v) for p, v in zip(PERCENTILES, at, strict=True)},
            "cycles_per_image": sum(self.cycles) / self.images,
            "dram_bytes_per_image": sum(self.dram_bytes) / self.images,
        }


def measure(
    accelerator: Accelerator, images, task: str | Iterable[str] | None = None, told: Callable[[int], object] = lambda done: None
) -> Measurement:
    """Stream all images, see `Accelerator.stream`, and note what every run took. told: hears of images done."""
    found = Measurement(accelerator.device.clock_mhz, accelerator.bundle.batch)
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    start = accelerator.device.now()
    for job in accelerator.stream(images, task):
        _note(found, job)
        told(found.images)
        for name, values in job.outputs.items():
            parts.setdefault(job.task, {}).setdefault(name, []).append(values)
    found.seconds = accelerator.device.now() - start
    found.outputs = {t: {name: np.concatenate(p) for name, p in of_task.items()} for t, of_task in parts.items()}
    return found


def _note(found: Measurement, job: Job) -> None:
    found.images += job.count
    found.latencies.append(job.seconds)
    found.cycles.append(job.counters["cycles"])
    found.dram_bytes.append(job.counters["dram_bytes"])
    found.tasks.append(job.task)
