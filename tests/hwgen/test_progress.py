"""What is shown of long work: on a terminal a bar that ends with nothing left of it, in a log lines now and then."""

from __future__ import annotations

import io
import re
import time

import pytest

from hwgen import progress


class Terminal(io.StringIO):
    """A terminal that remembers everything; `screen` is what is to be seen at the end."""

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        lines = [""]
        for part in re.split(r"(\r|\n|\x1b\[K)", self.getvalue()):
            if part == "\n":
                lines.append("")
            elif part == "\r":
                lines[-1] = lines[-1] + "\r"  # the cursor is at its begin: what comes next is written over
            elif part and part != "\x1b[K":
                old = lines[-1].split("\r")[0] if lines[-1].endswith("\r") else ""
                lines[-1] = part + old[len(part) :] if lines[-1].endswith("\r") else lines[-1] + part
            elif part:
                lines[-1] = "" if lines[-1].endswith("\r") else lines[-1]
        return lines


@pytest.fixture
def fast(monkeypatch):
    for name in ("FRAME_SECONDS", "LOG_SECONDS", "OFTEN_SECONDS"):
        monkeypatch.setattr(progress, name, 0.01)


def until(holds) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_bar_moves_and_leaves_its_line(fast):
    screen = Terminal()
    with progress.shown(screen), progress.work("golden", 8, "images") as here:
        here.at(0)
        time.sleep(0.05)
        here.at(2)
        until(lambda: "golden: [######..................] 2 of 8 images" in screen.getvalue())
        until(lambda: re.search(r"8 images, 0:\d\d, .*about \d:\d\d left", screen.getvalue()))
        progress.say("a warning")
        here.at(6)
        until(lambda: "[##################......] 6 of 8" in screen.getvalue())
    assert screen.screen == ["a warning", ""]


def test_the_time_passes_where_nobody_knows_how_far_it_is(fast, monkeypatch):
    screen, now = Terminal(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    work = progress.Work("quantise")
    assert work.text(bar=True) == "quantise: 0:00"
    now[0] = 3725.0
    assert work.text(bar=True) == "quantise: 1:02:05"
    assert screen.getvalue() == ""


def test_the_rest_by_the_pace_since_counting_began(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    work = progress.Work("rtl", 100_000, "cycles")
    now[0] = 60.0  # compiling
    work.at(0)
    now[0] = 70.0
    work.at(20_000, note="run 1 of 1")
    assert work.text(bar=False) == "rtl: 20,000 of 100,000 cycles, run 1 of 1, 1:10, 2,000 cycles/s, about 0:40 left"
    work.at(100_000)
    assert "left" not in work.text(bar=False) and "#" * progress.BAR in work.text(bar=True)


def test_who_is_asked_tells_a_share():
    counts = iter([(0, 0), (1, 4), (3, 4)])
    work = progress.Work("compiling", look=lambda: next(counts))
    assert work.text(bar=False) == "compiling: 0:00"
    assert work.text(bar=False) == "compiling: 25%, 0:00"
    assert work.text(bar=True).startswith(f"compiling: [{'#' * 18}{'.' * 6}] 75%, 0:00, about 0:00 left")


def test_a_log_gets_whole_lines(fast):
    log = io.StringIO()
    with progress.shown(log), progress.work("outer"):
        until(lambda: "outer: 0:00\n" in log.getvalue())
        with progress.work("inner", 2):
            until(lambda: "inner: 0%, 0:00\n" in log.getvalue())
    assert "\r" not in log.getvalue() and set(log.getvalue().splitlines()) <= {"outer: 0:00", "inner: 0%, 0:00"}


def test_a_log_of_short_work_is_empty():
    log = io.StringIO()
    with progress.shown(log), progress.work("short", 3) as here:
        here.at(3)
    assert log.getvalue() == ""


def test_a_stderr_that_is_gone_does_not_stop_the_work(fast):
    log = io.StringIO()
    with progress.shown(log), progress.work("work") as here:
        log.close()
        time.sleep(0.05)
        here.at(1)
        progress.say("more")


def test_nothing_is_shown_where_nobody_asked(capsys):
    with progress.work("work", 2, "images") as here:
        here.at(1)
    assert capsys.readouterr() == ("", "")
