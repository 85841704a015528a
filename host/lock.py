"""One process at a time: a lock file that the kernel frees when its holder ends, however it ends.

By hand, not with filelock: a board has no more than NumPy and PYNQ.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from .errors import DeviceBusy, DeviceError


class DeviceLock:
    """An advisory lock on `path`, held from construction to `release`. Raises DeviceBusy naming the holder's process."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise DeviceError(f"{self.path}: the lock file cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise DeviceBusy(f"the accelerator is used by process {holder} (lock file {self.path})") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Free the lock; the file stays, so that no third process can slip in between."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def default_path(name: str) -> Path:
    """Lock file of a device that every process of this machine agrees on."""
    return Path(tempfile.gettempdir()) / f"hwgen-{name}.lock"
