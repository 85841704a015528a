"""One run of the accelerator, from its submission to its outputs."""

from __future__ import annotations

from functools import partial

import numpy as np

from .errors import HostError
from .pack import unpack_run


class Job:
    """What `Accelerator.submit` returns. After `wait`: `outputs`, `counters`, `seconds` (start to halt, device's time).

    outputs: {ONNX output: float32 [count, ...]}. counters: lower-case register names, `cycles` among them, and
    `dram_bytes`.
    """

    def __init__(
        self, accelerator, task: str, slot: int, count: int, first: int, instructions: int, crc: int, limit: float
    ):
        self.task, self.slot, self.count = task, slot, count
        self.first, self.instructions, self.crc, self.limit = first, instructions, crc, limit
        self.started = 0.0
        self.seconds = 0.0
        self.counters: dict[str, int] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self.error: HostError | None = None
        self._accelerator = accelerator

    def done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._accelerator._settle(self, block=False)

    def wait(self) -> Job:
        """The finished job. Raises the DeviceFault that ended it, `Cancelled` if it never started."""
        self._accelerator._settle(self, block=True)
        if self.error is not None:
            raise self.error
        return self

    def abandon(self) -> None:
        """Nobody wants the outputs any more: wait for the end whatever it is."""
        self._accelerator._settle(self, block=True)

    def unpack(self, memory, bundle) -> None:
        """Fetch the outputs from the job's slot."""
        slots = bundle.task(self.task)["outputs"]
        self.outputs = unpack_run(slots, partial(memory.read, self.slot), self.count)
