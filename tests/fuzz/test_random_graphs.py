"""Random networks, written in many forms: each is built and right, or refused; never an exception, never silently wrong."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest

IN_A_RUN, BLOCK = 200, 20
LEAST = 0.6  # of the networks must be built
MANY, PARTS = 10_000, 4  # parts, so that several workers share them

sys.path.insert(0, str(Path(__file__).parent))
try:
    judge = importlib.import_module("judge")
finally:
    sys.path.pop(0)


def check(first: int, count: int, folder: Path) -> Counter[str]:
    """Verdicts on the networks of some seeds, counted; none may be bad."""
    verdicts = [judge.timed(seed, folder) for seed in range(first, first + count)]
    bad = [f"{v.seed}: {v.kind}: {', '.join(v.parts)}: {v.text}" for v in verdicts if not v.good]
    assert not bad, "\n".join(bad)
    return Counter(v.kind for v in verdicts)


@pytest.mark.parametrize("first", range(0, IN_A_RUN, BLOCK))
def test_random_graphs(first, tmp_path):
    found = check(first, BLOCK, tmp_path)
    assert found["right"] >= BLOCK // 3, found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_many_random_graphs(tmp_path, part):
    """From other seeds than those above; of many, the share that is built is a number that means something."""
    found: Counter[str] = Counter()
    begin, count = IN_A_RUN + part * MANY // PARTS, MANY // PARTS
    bad = []
    for first in range(begin, begin + count, BLOCK):
        try:
            found += check(first, BLOCK, tmp_path)
        except AssertionError as error:  # the others are asked too
            bad.append(str(error))
    assert not bad, "\n".join(bad)
    assert found["right"] >= LEAST * found.total(), found
