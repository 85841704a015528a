"""The cache: compiled simulations, what all of them link, generated Verilog, synthesised units; all can be made again.

By hand, where libraries exist: an entry is used by many and made by one, which wants locks that are shared or exclusive and that
the kernel frees when a process dies; filelock's shared ones are SQLite databases. platformdirs gives the folder that
$XDG_CACHE_HOME and ~/.cache give on the systems that hwgen runs on.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError

KINDS = {
    "sim": "compiled simulations",
    "objects": "compiled parts of Verilator",
    "verilog": "generated Verilog",
    "synth": "synthesised units",
}
SIMULATION_BYTES = 300 << 20  # that compiling a large design takes, and then some; 169 MB of it stay
DAY = 86400.0
COMPLETE = "complete"  # a file in an entry that is a folder: it was made to its end


def directory() -> Path:
    """Where it is: $HWGEN_CACHE, or hwgen in the user's cache directory."""
    if root := os.environ.get("HWGEN_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwgen"


def check(room: int = 0) -> None:
    """Raise UserError where nothing can be kept: the folder cannot be written, or its disk has no `room` bytes."""
    folder = directory()
    advice = "set HWGEN_CACHE to another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"cache {folder}: cannot be written ({error.strerror}); {advice}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cache {folder}: cannot be written; {advice}")
    if free < room:
        need = f"{room >> 20} MB are needed to compile a simulation, {free >> 20} MB are free"
        raise UserError(f"cache {folder}: {need}; `hwgen cache --prune` makes room, or {advice}")


@contextmanager
def using(entry: Path, make: Callable[[], None]) -> Iterator[None]:
    """Meanwhile `entry` is there and nobody removes it. make: leaves it, with the file `complete` in it, where it is not.

    Of processes that want the same entry one makes it and the others wait; all use it side by side.
    """
    mark = entry / COMPLETE
    entry.parent.mkdir(parents=True, exist_ok=True)
    with open(entry.with_suffix(".lock"), "w") as handle:
        while True:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if mark.exists():
                break
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another one may make it, or wants to: not both at the same time again
                time.sleep(random.uniform(0.01, 0.2))
                continue
            if not mark.exists():
                make()
        os.utime(mark)  # when it was last used
        yield


# --- looking and removing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One thing that is kept: its size in bytes, and when it was last used, in seconds since the epoch."""

    kind: str
    path: Path
    size: int
    used: float


def entries() -> list[Entry]:
    """Everything that is kept, what was used last first."""
    found = []
    for kind in KINDS:
        folder = directory() / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix == ".lock":
                continue
            with suppress(OSError):  # removed by another process meanwhile
                files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
                mark = path / COMPLETE
                used = (mark if mark.exists() else path).stat().st_mtime
                found.append(Entry(kind, path, sum(p.stat().st_size for p in files), used))
    return sorted(found, key=lambda entry: -entry.used)


def prune(days: float = 0.0) -> tuple[list[Entry], list[Entry]]:
    """(removed, left since a process uses it): entries that were not used in the last `days`."""
    removed, left = [], []
    for entry in entries():
        if time.time() - entry.used < days * DAY:
            continue
        lock = entry.path.with_suffix(".lock")
        with open(lock, "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                left.append(entry)
                continue
            shutil.rmtree(entry.path, ignore_errors=True) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
            removed.append(entry)
            if entry.kind != "sim":  # nobody waits for these
                lock.unlink(missing_ok=True)
    return removed, left


def text(listed: list[Entry]) -> str:
    """The cache for people: each simulation, and the rest in sums."""
    lines = [f"{directory()}"]
    for entry in listed:
        if entry.kind == "sim":
            age = max(0.0, time.time() - entry.used) / DAY
            lines.append(f"  simulation {entry.path.name}  {entry.size / 1e6:8.1f} MB  used {age:.1f} days ago")
    for kind, what in KINDS.items():
        of_kind = [entry for entry in listed if entry.kind == kind]
        lines.append(f"{sum(e.size for e in of_kind) / 1e6:10.1f} MB  {len(of_kind)} {what}")
    return "\n".join(lines)
