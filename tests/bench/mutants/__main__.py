"""Draws faults, runs the tests that should notice each, and lists what lives.

    python tests/bench/mutants [--count 150] [--seed 1] [--area NAME ...] [--seconds LIMIT] [--output VERDICTS.jsonl] [--again]

Every mutation runs in a copy of the repository's files, which is thrown away. A run that was ended goes on where it was with the
same --output; --again asks for what lived, as after new tests. Exit code 1: more than one in twenty lives that `equivalent.txt`
does not name with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from areas import AREAS, files, tests_of
from drawing import Mutation, draw, places

TOP = Path(__file__).resolve().parents[3]
COPIED = ("hwgen", "sim", "host", "boards", "rtl_templates", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")
LEAST_KILLED = 0.95
WAITING = 20  # times the seconds of CPU: where many share a core


def known() -> dict[str, str]:
    """Changes without effect: `path: was -> text @ line` and the reason, from `equivalent.txt`."""
    lines = (Path(__file__).parent / "equivalent.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" # ", 1) for line in lines if line and not line.startswith("#")]
    return {change: reason for change, reason in pairs}


def called(mutation: Mutation) -> str:
    """A mutation with the text of its line, whose number moves."""
    line = (TOP / mutation.path).read_text(encoding="utf-8").splitlines()[mutation.line - 1]
    return f"{mutation.path}: {mutation.was} -> {' '.join(mutation.text.split())} @ {line.split(' # ')[0].strip()}"


def notices(copy: Path, tests: list[str], seconds: float) -> str:
    """The test that fails, "time" where they do not end within so many seconds of CPU, or "" where all pass."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", *tests]
    limit = round(seconds)
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=WAITING * seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "time"
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time"
    if process.returncode == 0:
        return ""
    failed = [line.split()[1] for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"exit code {process.returncode}"


def drawn(options: argparse.Namespace) -> list[tuple[str, Mutation]]:
    """Mutations with their areas, in turns, so that every area is begun early."""
    whole = sum(AREAS[name].share for name in options.area)
    by_area = []
    for name in options.area:
        area = AREAS[name]
        sources = {path: (TOP / path).read_text(encoding="utf-8") for path in files(area, TOP)}
        if options.file:
            sources = {path: source for path, source in sources.items() if path in options.file}
        count = round(options.count * area.share / whole)
        by_area.append([((k + 0.5) / count, name, m) for k, m in enumerate(draw(sources, count, options.seed))])
    return [(name, mutation) for _, name, mutation in sorted(sum(by_area, []), key=lambda entry: entry[0])]


def verdicts(log: Path | None) -> dict[tuple[str, int], dict]:
    """What was found before, the last of each mutation by its name and line."""
    if log is None or not log.exists():
        return {}
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {(entry["mutation"], entry["line"]): entry for entry in entries}


def again(entries: dict[tuple[str, int], dict]) -> list[tuple[str, Mutation]]:
    """Those that lived, where the sources still have them; of several places the nearest to the line."""
    found = []
    for (name, line), entry in entries.items():
        path = name.split(":")[0]
        if not noticed(entry):
            here = [m for m in places(path, (TOP / path).read_text(encoding="utf-8")) if called(m) == name]
            found += [(entry["area"], min(here, key=lambda m: abs(m.line - line)))] if here else []
    return found


def noticed(entry: dict) -> bool:
    return entry["by"] not in ("", "time")


def summary(entries: dict[tuple[str, int], dict], equivalent: dict[str, str]) -> int:
    """Prints what was noticed of what was drawn, by area, and what lives; the exit code."""
    seen = [entry for entry in entries.values() if entry["mutation"] not in equivalent]
    for name in AREAS:
        here = [entry for entry in seen if entry["area"] == name]
        if here:
            none = sum(entry["area"] == name for entry in entries.values()) - len(here)
            found, late = sum(noticed(e) for e in here), sum(e["by"] == "time" for e in here)
            print(f"{name:10} {found:3} of {len(here):3} noticed, {late} not in time, {none} without effect")
    killed = sum(noticed(entry) for entry in seen)
    print(f"{'all':10} {killed:3} of {len(seen):3} noticed, {len(entries) - len(seen)} without effect")
    for entry in seen:
        if not noticed(entry):
            print(f"{'late' if entry['by'] else 'lives'}: line {entry['line']} of {entry['mutation']}")
    return 0 if killed >= LEAST_KILLED * len(seen) else 1


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--area", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--file", nargs="+", help="only these files of the areas")
    parser.add_argument("--seconds", type=float, default=600.0, help="of CPU, for the tests of one mutation")
    parser.add_argument("--output", type=Path, help="verdicts; those that are there already are not asked for again")
    parser.add_argument("--again", action="store_true", help="what lived, by --output, instead of what would be drawn")
    parser.add_argument("--list", action="store_true", help="only show what would be drawn")
    parser.add_argument("--summary", action="store_true", help="only count what --output has")
    options = parser.parse_args(arguments)
    equivalent, before = known(), verdicts(options.output)
    if options.summary:
        return summary(before, equivalent)
    jobs = again(before) if options.again else drawn(options)
    found = dict(before)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for part in () if options.list else COPIED:
            (shutil.copytree if (TOP / part).is_dir() else shutil.copy)(TOP / part, copy / part)
        for number, (name, mutation) in enumerate(jobs):
            key = called(mutation), mutation.line
            if options.list or key[0] in equivalent or (key in before and not options.again):
                why = equivalent.get(key[0]) or ("" if options.list else "known")
                print(f"{number + 1}/{len(jobs)} {name}: {mutation}{why and ': ' + why}", flush=True)
                continue
            place = copy / mutation.path
            place.write_text(mutation.apply((TOP / mutation.path).read_text(encoding="utf-8")), encoding="utf-8")
            by = notices(copy, tests_of(AREAS[name], mutation.path, TOP), options.seconds)
            shutil.copy2(TOP / mutation.path, place)
            print(f"{number + 1}/{len(jobs)} {name}: {mutation}: {by or 'LIVES'}", flush=True)
            found[key] = {"mutation": key[0], "line": key[1], "area": name, "by": by}
            if options.output:
                with open(options.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(found[key]) + "\n")
    return 0 if options.list else summary(found, equivalent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
