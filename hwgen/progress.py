"""How far long work is, on stderr: on a terminal a bar with an estimate of what is left, in a log a line now and then.

Whoever works says so with `work`, wherever it is called from; whoever owns the screen shows it with `shown`, and without one
nothing is shown. Of works within works the innermost is on the screen. By hand, not with rich or tqdm: the command line starts
without any library, so that `hwgen doctor` can name those that are missing. A second bar where
rich is installed would be a second thing to test.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

FRAME_SECONDS = 0.2  # between two pictures on a terminal
LOG_SECONDS = 30.0  # between two lines in a log
OFTEN_SECONDS = 1.0  # the same where somebody asked for them
BAR = 24
Look = Callable[[], tuple[float, float]]


class Work:
    """One piece of work: `done` of `total` units, both unknown at first; `note`: words on where it is."""

    def __init__(self, what: str, total: float | None = None, unit: str = "", look: Look | None = None):
        self.what, self.total, self.unit, self.look = what, total, unit, look
        self.done, self.note = 0.0, ""
        self.start = time.monotonic()
        self._first = (self.start, 0.0) if total else None  # when counting began, and where

    def at(self, done: float, total: float | None = None, note: str = "") -> None:
        """So much is done. 0 sets the clock of the pace: what comes first, such as compiling, does not count."""
        self.done, self.note = done, note
        self.total = self.total if total is None else total
        if self.total and (self._first is None or done <= self._first[1]):
            self._first = time.monotonic(), done

    def pace(self) -> float | None:
        """Units a second since counting began, None where there are none yet."""
        if self._first is None or self.done <= self._first[1]:
            return None
        return (self.done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)

    def text(self, bar: bool) -> str:
        """One line: what, how far, since when, how long still."""
        if self.look is not None:
            self.at(*self.look())
        parts, share = [], min(1.0, self.done / self.total) if self.total else None
        if self.unit and (self.done or share is not None):
            of = "" if self.total is None else f" of {self.total:,.0f}"
            parts.append(f"{self.done:,.0f}{of} {self.unit}")
        elif share is not None:
            parts.append(f"{share:.0%}")
        parts += [self.note] if self.note else []
        parts.append(clock(time.monotonic() - self.start))
        pace = self.pace()
        if pace is not None and self.total:
            parts += [f"{pace:,.0f} {self.unit}/s"] if self.unit and pace >= 10 else []
            parts += [f"about {clock((self.total - self.done) / pace)} left"] if self.done < self.total else []
        drawn = ""
        if bar and share is not None:
            full = round(share * BAR)
            drawn = f"[{'#' * full}{'.' * (BAR - full)}] "
        return f"{self.what}: {drawn}{', '.join(parts)}"


class Display:
    """The line on `stream`; a thread renews it. often: in a log, a line a second."""

    def __init__(self, stream: TextIO, often: bool = False):
        self.stream, self.terminal = stream, stream.isatty()
        self.every = FRAME_SECONDS if self.terminal else OFTEN_SECONDS if often else LOG_SECONDS
        self.works: list[Work] = []
        self._drawn = False
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._over.wait(self.every):
            with self._lock:
                if self.works and not self._over.is_set():
                    self._draw(self.works[-1])

    def _draw(self, work: Work) -> None:
        if not self.terminal:
            self._write(f"{work.text(bar=False)}\n")
            return
        width = shutil.get_terminal_size().columns - 1
        self._write(f"\r{work.text(bar=True)[:width]}\x1b[K")
        self._drawn = True

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):  # stderr is closed or full: no reason to stop the work
            self._over.set()

    def clear(self) -> None:
        """Take the bar away: what is printed next stands on a line of its own."""
        with self._lock:
            if self._drawn:
                self._write("\r\x1b[K")
                self._drawn = False

    def say(self, line: str) -> None:
        """A line that stays; the bar goes on below it."""
        with self._lock:
            self.clear()
            self._write(f"{line}\n")

    def push(self, work: Work) -> None:
        with self._lock:
            self.works.append(work)

    def pop(self, work: Work) -> None:
        with self._lock:
            self.works.remove(work)
            self.clear()

    def close(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join()
        self.clear()


_display: Display | None = None


@contextmanager
def shown(stream: TextIO | None = None, often: bool = False) -> Iterator[None]:
    """Meanwhile show all work on `stream`, by default stderr. often: in a log, a line a second."""
    global _display
    before, _display = _display, Display(sys.stderr if stream is None else stream, often)
    display = _display
    try:
        yield
    finally:
        _display = before
        display.close()


@contextmanager
def work(what: str, total: float | None = None, unit: str = "", look: Look | None = None) -> Iterator[Work]:
    """Meanwhile `what` is under way; how far, is said to the `Work` that this gives, or `look` says when it is asked.

    total: units in all, where they are known; unit: their name, a share in percent without.
    """
    here, display = Work(what, total, unit, look), _display
    if display is None:
        yield here
        return
    display.push(here)
    try:
        yield here
    finally:
        display.pop(here)


def say(line: str) -> None:
    """A line on stderr, above the bar where there is one."""
    if _display is not None:
        _display.say(line)
    else:
        print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """0:07, 1:05:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
