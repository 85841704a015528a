"""Random networks through build, golden and machine; verdicts as JSON lines and a count of each.

    python tests/fuzz [--first SEED] [--count N] [--output VERDICTS.jsonl] [--seconds LIMIT]

Exit code 1: some network ended in an exception, in an answer that is silently wrong, in a machine that differs from golden,
was refused for how it is written, was judged otherwise by `check` than by the build, or took more than LIMIT seconds of CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from judge import SECONDS, timed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    options = parser.parse_args(arguments)
    kinds: Counter[str] = Counter()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first, options.first + options.count):
            verdict = timed(seed, Path(folder), options.seconds)
            kinds[verdict.kind] += 1
            bad += not verdict.good
            if not verdict.good:
                print(f"{seed}: {verdict.kind}: {', '.join(verdict.parts)}: {verdict.text}", flush=True)
            if options.output:
                with open(options.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(verdict)) + "\n")
            for path in Path(folder).iterdir():
                path.unlink()
    print(", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
