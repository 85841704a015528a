"""Draws faults, runs the tests that should notice each, and lists what lives.

    python tests/bench/mutants [--count 150] [--seed 1] [--area NAME ...] [--seconds LIMIT] [--output VERDICTS.jsonl]

Every mutation runs in a copy of the repository's files, which is thrown away. Exit code 1: more than one in twenty lives
that `equivalent.txt` does not name with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from areas import AREAS, files, tests_of
from drawing import Mutation, draw

TOP = Path(__file__).resolve().parents[3]
COPIED = ("hwgen", "sim", "host", "boards", "rtl_templates", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")
LEAST_KILLED = 0.95


def known() -> dict[str, str]:
    """Changes without effect: `path: was -> text` and the reason, from `equivalent.txt`."""
    lines = (Path(__file__).parent / "equivalent.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" # ", 1) for line in lines if line and not line.startswith("#")]
    return {change: reason for change, reason in pairs}


def called(mutation: Mutation) -> str:
    """A mutation without its line, which moves."""
    return f"{mutation.path}: {mutation.was} -> {' '.join(mutation.text.split())}"


def notices(copy: Path, tests: list[str], seconds: float) -> str:
    """The test that fails, "time" where they do not end in time, or "" where all pass."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", *tests]
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "time"
    if process.returncode == 0:
        return ""
    failed = [line.split()[1] for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"exit code {process.returncode}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--area", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--file", nargs="+", help="only these files of the areas")
    parser.add_argument("--seconds", type=float, default=600.0, help="for the tests of one mutation")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--list", action="store_true", help="only show what would be drawn")
    options = parser.parse_args(arguments)
    whole = sum(AREAS[name].share for name in options.area)
    jobs = []
    for name in options.area:
        area = AREAS[name]
        sources = {path: (TOP / path).read_text(encoding="utf-8") for path in files(area, TOP)}
        if options.file:
            sources = {path: source for path, source in sources.items() if path in options.file}
        count = round(options.count * area.share / whole)
        jobs += [(area, mutation) for mutation in draw(sources, count, options.seed)]
    equivalent, lives, killed = known(), [], 0
    for number, (area, mutation) in enumerate(jobs):
        if options.list:
            print(mutation)
            continue
        if called(mutation) in equivalent:
            print(f"{number + 1}/{len(jobs)} {mutation}: without effect: {equivalent[called(mutation)]}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            copy = Path(folder)
            for part in COPIED:
                (shutil.copytree if (TOP / part).is_dir() else shutil.copy)(TOP / part, copy / part)
            place = copy / mutation.path
            place.write_text(mutation.apply(place.read_text(encoding="utf-8")), encoding="utf-8")
            by = notices(copy, tests_of(area, mutation.path, TOP), options.seconds)
        killed += bool(by)
        lives += [] if by else [mutation]
        print(f"{number + 1}/{len(jobs)} {mutation}: {by or 'LIVES'}", flush=True)
        if options.output:
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(json.dumps({"mutation": called(mutation), "line": mutation.line, "by": by}) + "\n")
    if options.list:
        return 0
    print(f"{killed} of {killed + len(lives)} noticed")
    for mutation in lives:
        print(f"lives: {mutation}")
    return 0 if killed >= LEAST_KILLED * (killed + len(lives)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
