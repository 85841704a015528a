"""The driver: a bundle on a device, NumPy in and NumPy out."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path

import numpy as np

from .bundle import Bundle
from .device import open_device
from .errors import BundleError, Cancelled, DeviceError, HostError, InputError
from .job import Job
from .lock import DeviceLock
from .memory import SLOTS, Memory
from .pack import pack_run, unfit
from .registers import Registers
from .runner import Runner

Images = Mapping[str, np.ndarray]
WAITS = ("polling", "interrupt")
UNKNOWN_SECONDS = 0.1  # that a run may take which nobody estimated
PATIENCE = 8.0  # times the estimated cycles of a run before it counts as hung


class Accelerator:
    """A bundle that runs on a device.

        with Accelerator("digits.bundle", device="sim") as accelerator:
            logits = accelerator(images)

    device: "board" (the default), "sim", "rtl", or an object that offers what `host.device` describes, which stays open
    when the accelerator closes. task: the first one unless named. bitstream: of the board, see
    `host.board`. wait: "polling" or "interrupt". timeout: seconds of the device's time a run may take; by default
    PATIENCE times what the bundle's report expects, plus the device's `grace`. say: takes the line that tells the clock
    (None: silence).

    Opening takes the device's lock, checks that the hardware is the bundle's and loads the memory. After a DeviceFault
    the machine is reset and the next run starts clean; nothing has to be loaded again by the caller. Not for several
    threads at once. Raises BundleError, DeviceError.
    """

    def __init__(
        self,
        bundle: Bundle | str,
        device=None,
        *,
        task: str | None = None,
        bitstream: Path | str | None = None,
        wait: str = "polling",
        timeout: float | None = None,
        say: Callable[[str], None] | None = print,
    ):
        if wait not in WAITS:
            raise InputError(f"wait={wait!r} is not one of {', '.join(WAITS)}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self._closed, self._lock, self._memory = False, None, None
        self._slots: deque[int] = deque(range(SLOTS))
        self._jobs: deque[Job] = deque()  # submitted and not finished; the first one is at work
        self._programs: dict[str, tuple[int, int, int]] = {}
        self.task = self.bundle.tasks[0] if task is None else task
        self._owned = device is None or isinstance(device, str)
        self._device = open_device(device, self.bundle, bitstream)
        try:
            if self._device.lock_path is not None:
                self._lock = DeviceLock(self._device.lock_path)
            registers = Registers(self._device, self.bundle)
            registers.check_identity()
            self._runner = Runner(self._device, registers, self.bundle, wait == "interrupt")
            self._runner.reset()  # before there are buffers: a run that another process left may still write
            self._memory = self._runner.memory = Memory(self._device, self.bundle)
        except BaseException:
            self.close()
            raise
        self._timeout = timeout
        if say is not None:
            say(self.describe())

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the bundle's tasks; one without a name where it holds a single network."""
        return self.bundle.tasks

    @property
    def task(self) -> str:
        """The task of coming runs, or several with commas between. Another is chosen by assigning its name: no weight moves."""
        return self._task

    @task.setter
    def task(self, name: str) -> None:
        self._task = self._known(name)

    @property
    def device(self):
        """The device, see `host.device`."""
        return self._device

    def describe(self) -> str:
        """One line: device, and the clock that it really runs at beside the one the bundle was built for."""
        clock, wanted = self._device.clock_mhz, self.bundle.config["clock_mhz"]
        note = "" if abs(clock - wanted) <= 0.01 * wanted else f", not at the {wanted:g} MHz that the bundle was built for"
        return f"{self._device.name}: runs at {clock:g} MHz{note}"

    def registers(self) -> dict[str, int]:
        """Every readable register, now."""
        return self._open()._runner.registers.snapshot()

    def verify(self) -> list[str]:
        """Compare programs, constants and weights in DRAM with the bundle: what differs, one text each. Idle only."""
        if self._open()._jobs:
            raise DeviceError("memory is verified while no run is under way")
        return self._memory.damaged()

    # --- runs ---------------------------------------------------------------------------------------------------

    def __call__(self, images: Images | np.ndarray, task: str | None = None):
        """All images, streamed. {ONNX input: [images, C, H, W]} -> {ONNX output: float32 [images, ...]}.

        A bare array stands for the only input, and comes back as a bare array where there is one output only. Raises
        InputError, DeviceFault.
        """
        task = self._task if task is None else self._known(task)
        bare = not isinstance(images, Mapping)
        parts = [job.outputs for job in self.stream(images, task)]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in self.bundle.outputs(task)}
        return next(iter(outputs.values())) if bare and len(outputs) == 1 else outputs

    def stream(self, images: Images | np.ndarray, task: str | Iterable[str] | None = None) -> Iterator[Job]:
        """Finished runs in the order of the images, while the next one is packed and started.

        task: of all runs, or one name per run (an endless iterable will do). Each run takes `bundle.batch` images.
        Raises as `__call__`, at the first run that failed.
        """
        first = self._task if task is None else task
        names = repeat(self._known(first)) if isinstance(first, str) else map(self._known, first)
        pending: deque[Job] = deque()
        position, names = 0, iter(names)
        arrays: dict[str, np.ndarray] | None = None
        try:
            while True:
                name = next(names, None)
                if name is None:
                    raise InputError(f"{position} images have a task, there are {len(next(iter(arrays.values())))}")
                if arrays is None:
                    arrays = self._checked(images, name)
                group = {n: a[position : position + self.bundle.batch] for n, a in self._of_task(arrays, name).items()}
                pending.append(self._submit(group, name))
                position += self.bundle.batch
                done = position >= len(next(iter(arrays.values())))
                while pending and (done or len(pending) == SLOTS):
                    yield pending.popleft().wait()
                if done:
                    return
        finally:
            for job in pending:
                job.abandon()

    def submit(self, images: Images | np.ndarray, task: str | None = None) -> Job:
        """Start a run, or line it up behind the one that is at work; at most `host.memory.SLOTS` are outstanding.

        images: at most `bundle.batch` of them, with their axis. The job's `wait` gives the outputs. Raises InputError;
        DeviceError where too many are outstanding.
        """
        task = self._task if task is None else self._known(task)
        return self._submit(self._checked(images, task), task)

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop what runs, free buffers and lock. The accelerator is of no use afterwards; may be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._jobs:  # nothing may write to memory that is given back
                self._cancel("the accelerator was closed")
                self._runner.reset()
        finally:
            if self._memory is not None:
                self._memory.free()
            if self._owned:
                self._device.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Accelerator:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _open(self) -> Accelerator:
        if self._closed:
            raise DeviceError("the accelerator is closed")
        return self

    def _known(self, task: str) -> str:
        try:
            return self.bundle.choose(task)
        except BundleError as error:
            raise InputError(str(error)) from None

    def _checked(self, images: Images | np.ndarray, task: str) -> dict[str, np.ndarray]:
        """float32 arrays by input name, all of one length. Raises InputError naming the array."""
        inputs, types = self.bundle.inputs(task), self.bundle.types(task)
        if not isinstance(images, Mapping):
            if len(inputs) != 1:
                raise InputError(f"the inputs {', '.join(inputs)} are given by name, in a mapping")
            images = dict.fromkeys(inputs, images)
        arrays: dict[str, np.ndarray] = {}
        for name, shape in inputs.items():
            if name not in images:
                raise InputError(f"input {name!r} is missing; given: {', '.join(map(repr, images)) or 'none'}")
            array = np.asarray(images[name])
            if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
                expected = ", ".join(str(n) for n in ("images", *shape))
                raise InputError(f"input {name!r}: shape {list(array.shape)}, expected [{expected}]")
            if array.dtype.kind not in "fiub":
                raise InputError(f"input {name!r}: type {array.dtype}, expected numbers")
            if not len(array):
                raise InputError(f"input {name!r}: holds no image")
            if fault := unfit(array, types[name]):
                raise InputError(f"input {name!r}: holds {fault}")
            arrays[name] = array.astype(np.float32)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"inputs of different length: {lengths}")
        return arrays

    def _of_task(self, arrays: dict[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
        """The checked arrays that a task takes, where tasks alternate."""
        inputs = self.bundle.inputs(task)
        for name, shape in inputs.items():
            if name not in arrays or arrays[name].shape[1:] != shape:
                raise InputError(f"task {task!r} takes {name!r} of shape {list(shape)}, unlike the first task")
            if fault := unfit(arrays[name], self.bundle.types(task)[name]):
                raise InputError(f"task {task!r}: input {name!r}: holds {fault}")
        return {name: arrays[name] for name in inputs}

    def _program(self, task: str) -> tuple[int, int, int]:
        """First instruction in beats from the data base, instructions, CRC-32 of their words."""
        if task not in self._programs:
            entry, config = self.bundle.task(task)["program"], self.bundle.config
            first = (entry["offset_bytes"] - self.bundle.memory["data_base"]) // config["axi_bytes"]
            self._programs[task] = first, entry["instructions"], zlib.crc32(self.bundle.program(task))
        return self._programs[task]

    def _submit(self, arrays: dict[str, np.ndarray], task: str) -> Job:
        self._open()
        count, batch = len(next(iter(arrays.values()))), self.bundle.batch
        if count > batch:
            raise InputError(f"{count} images in one run; the bundle's program takes {batch} (`stream` takes any number)")
        if not self._slots:
            raise DeviceError(f"{SLOTS} runs are outstanding: wait for the first")
        slot = self._slots.popleft()
        for offset, data in pack_run(self.bundle.task(task)["inputs"], arrays):
            self._memory.write(slot, offset, data)
        job = Job(self, task, slot, count, *self._program(task), self._limit(task))
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._start()
        return job

    def _limit(self, task: str) -> float:
        """Seconds that a run may take."""
        if self._timeout is not None:
            return self._timeout
        expected = self.bundle.estimated_cycles(task) / (self._device.clock_mhz * 1e6)
        return (PATIENCE * expected or UNKNOWN_SECONDS) + self._device.grace

    def _start(self) -> None:
        """Start the first job in line; if that fails, its `wait` tells."""
        try:
            self._runner.start(self._jobs[0])
        except HostError as error:
            self._fail(error)

    def _settle(self, job: Job, block: bool) -> bool:
        """Bring jobs to their end up to and with `job`; False if it is still at work and `block` is not set."""
        while job in self._jobs:
            head = self._jobs[0]
            try:
                if not self._runner.finish(head, block):
                    return False
            except HostError as error:
                self._fail(error)
                return True
            self._jobs.popleft()
            if self._jobs:
                self._start()
            head.unpack(self._memory, self.bundle)
            self._slots.append(head.slot)
        return True

    def _fail(self, error: HostError) -> None:
        """The head failed with `error`: reset the machine; the jobs behind it never start."""
        head = self._jobs.popleft()
        head.error = error
        self._slots.append(head.slot)
        self._cancel(f"a run before this one failed: {error}")
        self._runner.recover()

    def _cancel(self, why: str) -> None:
        while self._jobs:
            job = self._jobs.popleft()
            job.error = Cancelled(why)
            self._slots.append(job.slot)
