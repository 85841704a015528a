"""Ending: signals become exceptions, so that nothing half-written stays, and child processes go with all that they started."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .errors import Terminated

GRACE_SECONDS = 5.0  # that a child has to end by itself, with its own children
REPEAT_SECONDS = 10.0  # a second SIGTERM that comes sooner does not disturb the cleaning up
_ENDING = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]

# A process that ends the others should this one be killed: it is told their groups, and reads to its end when we are gone.
_WATCHER = """
import os, signal, sys, time
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for number, seconds in ((signal.SIGTERM, SECONDS), (signal.SIGKILL, 0)):
    for group in groups:
        try:
            os.killpg(group, number)
        except OSError:
            pass
    time.sleep(seconds if groups else 0)
"""

_watcher: subprocess.Popen[str] | None = None
_living: set[subprocess.Popen[Any]] = set()
_telling = threading.Lock()
_starting = 0  # children that are between fork and the moment when somebody knows them, of all threads
_counting = threading.RLock()  # of what stands above and below; a signal's handler interrupts its own thread
_asked: set[int] = set()  # signals that came meanwhile
_told = -REPEAT_SECONDS


@contextmanager
def stoppable() -> Iterator[None]:
    """Meanwhile SIGTERM and SIGHUP raise Terminated, whose code is 128 + their number, SIGINT KeyboardInterrupt.

    Signals that this process was started to ignore stay ignored. In a thread beside the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may set signal handlers
        yield
        return
    global _told
    _told = -REPEAT_SECONDS
    caught = [n for n in (*_ENDING, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before, hook = {n: signal.signal(n, _stop) for n in caught}, sys.unraisablehook
    sys.unraisablehook = lambda lost: _again(lost) or hook(lost)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: Any) -> None:
    global _told
    with _counting:
        if later := _starting > 0:
            _asked.add(number)
    if later:
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    elif time.monotonic() - _told >= REPEAT_SECONDS:
        _told = time.monotonic()
        raise Terminated(128 + number)


def _again(lost: Any) -> bool:
    """Whether an exception that Python drops, as in a finaliser, was a signal's: then the signal comes once more."""
    global _told
    if not issubclass(lost.exc_type, (Terminated, KeyboardInterrupt)):
        return False
    number = lost.exc_value.code - 128 if isinstance(lost.exc_value, Terminated) else signal.SIGINT
    _told = -REPEAT_SECONDS
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # when the finaliser is over
    return True


# --- children ------------------------------------------------------------------------------------------------------


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """A child in a session, and so a process group, of its own: `end` reaches whatever it starts. options: of Popen."""
    global _starting
    with _counting:
        _starting += 1
    try:
        child = subprocess.Popen(command, start_new_session=True, **options)
        _living.add(child)
        _tell_watcher(f"+{child.pid}")
    finally:
        with _counting:
            _starting -= 1
    try:
        with _counting:
            due = set() if _starting else _asked.copy()
            _asked.difference_update(due)
        for number in due:
            os.kill(os.getpid(), number)
    except BaseException:
        end(child)
        raise
    return child


def _tell_watcher(line: str) -> None:
    """That a group is there, `+ID`, or is no more, `-ID`."""
    global _watcher
    with _telling, suppress(OSError):  # without it children outlive a kill -9, no more
        if _watcher is None:
            code = _WATCHER.replace("SECONDS", str(GRACE_SECONDS))
            command = [sys.executable, "-I", "-S", "-c", code]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # nobody waits for its end of our pipes
            _watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True, **quiet)
            atexit.register(_dismiss, _watcher)
        assert _watcher.stdin is not None
        _watcher.stdin.write(f"{line}\n")
        _watcher.stdin.flush()


def _dismiss(watcher: subprocess.Popen[str]) -> None:
    """At our end: what still lives is left to the watcher."""
    assert watcher.stdin is not None
    with suppress(OSError):
        watcher.stdin.close()
    if not _living:
        watcher.kill()
        watcher.wait()


def end(child: subprocess.Popen[Any]) -> None:
    """End a child and its whole group: politely, so that it removes its files, after a while by force."""
    if child.poll() is None:
        _signal(child, signal.SIGTERM)
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    _signal(child, signal.SIGKILL)  # a compiler that the child left behind, too
    child.wait()
    _living.discard(child)
    _tell_watcher(f"-{child.pid}")


def end_all() -> None:
    """End every child that `start` made: of threads that nobody waits for any more."""
    for child in list(_living):
        end(child)


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A child that has ended, with its group, when the block is left, however that happens."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)


def run(command: Sequence[str], **options: Any) -> int:
    """The exit code of a command. It does not outlive an exception, of a signal for example. options: of Popen."""
    with child(command, **options) as process:
        return process.wait()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes that are started meanwhile ignore SIGINT, which a terminal sends to all: who started them ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _signal(child: subprocess.Popen[Any], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):  # none of the group is left
        pass
