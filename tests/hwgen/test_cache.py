"""The cache: shown, pruned, never under somebody's hands; an entry is made once however many want it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwgen import cache
from hwgen.errors import UserError

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """A cache with two simulations, `old` of ten days ago and `new`, and one file of Verilog."""
    monkeypatch.setenv("HWGEN_CACHE", str(tmp_path))
    for name, days in (("old", 10), ("new", 0)):
        with cache.using(tmp_path / "sim" / name, lambda name=name: made(tmp_path / "sim" / name)):
            pass
        used = time.time() - days * cache.DAY
        os.utime(tmp_path / "sim" / name / cache.COMPLETE, (used, used))
    (tmp_path / "verilog").mkdir()
    (tmp_path / "verilog" / "x.json.gz").write_bytes(b"x" * 100)
    return tmp_path


def made(entry: Path) -> None:
    entry.mkdir()
    (entry / "model").write_bytes(b"x" * 1_000_000)
    (entry / cache.COMPLETE).touch()


def test_it_is_shown(hwgen, kept):
    code, out, _ = hwgen("cache")
    assert code == 0 and out.splitlines()[0] == str(kept)
    assert (
        "simulation new       1.0 MB  used 0.0 days ago" in out
        and "simulation old       1.0 MB  used 10.0 days ago" in out
    )
    assert "2.0 MB  2 compiled simulations" in out and "0.0 MB  1 generated Verilog" in out
    found = json.loads(hwgen("cache", "--json")[1])
    assert [(e["kind"], e["bytes"]) for e in found["entries"]] == [
        ("verilog", 100),
        ("sim", 1_000_000),
        ("sim", 1_000_000),
    ]


def test_what_was_not_used_long_is_pruned(hwgen, kept):
    code, out, _ = hwgen("cache", "--prune", "--older", 5)
    assert code == 0 and out.startswith("removed 1 entries, 1.0 MB\n")
    assert not (kept / "sim" / "old").exists() and (kept / "sim" / "new").exists()
    found = json.loads(hwgen("cache", "--prune", "--json")[1])
    assert (found["removed"], found["removed_bytes"], found["entries"]) == (2, 1_000_100, [])


def test_what_is_in_use_stays(hwgen, kept):
    with cache.using(kept / "sim" / "old", lambda: pytest.fail("it is there")):
        assert "1 in use stay" in hwgen("cache", "--prune")[1]
        assert (kept / "sim" / "old" / "model").exists() and not (kept / "sim" / "new").exists()
        with cache.using(kept / "sim" / "old", lambda: pytest.fail("it is there")):  # two may use it at the same time
            pass
    assert cache.entries()[0].used == pytest.approx(time.time(), abs=60)


def test_options_that_make_no_sense(hwgen, kept):
    for options in (["--older", "3"], ["--prune", "--older", "-1"], ["--prune", "--older", "nan"]):
        code, _, err = hwgen("cache", *options)
        assert code == 2 and "--older" in err


def test_an_entry_is_made_once_by_many(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from hwgen import cache\n"
        "entry = Path(sys.argv[1])\n"
        "def make():\n"
        "    open(entry.parent / 'log', 'a').write('made ')\n"
        "    time.sleep(0.3); entry.mkdir(); (entry / cache.COMPLETE).touch()\n"
        "with cache.using(entry, make): assert entry.is_dir(); time.sleep(0.2)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "e")]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    running = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait(30) for process in running] == [0] * 4
    assert (tmp_path / "log").read_text() == "made "


def test_a_failed_making_leaves_it_to_the_next(tmp_path):
    def fails():
        raise RuntimeError

    with pytest.raises(RuntimeError), cache.using(tmp_path / "e", fails):
        pytest.fail("not made")
    with cache.using(tmp_path / "e", lambda: made(tmp_path / "e")):
        assert (tmp_path / "e" / "model").exists()


def test_where_nothing_can_be_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HWGEN_CACHE", str(tmp_path / "made"))
    cache.check()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="made: cannot be written; set HWGEN_CACHE"):
        cache.check()
