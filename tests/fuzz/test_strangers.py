"""Files that strangers changed end well or in one clear line: a few in every run, many under a fuzzer that looks at what runs."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FEW, SECONDS = 8, 600

sys.path.insert(0, str(Path(__file__).parent))
try:
    strangers = importlib.import_module("strangers")
    importlib.import_module("networks")
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("kind", strangers.TARGETS)
def test_a_few(kind):
    rng = random.Random(1)
    for _ in range(FEW):
        data = rng.randbytes(rng.choice([8, 16, 40]))
        try:
            strangers.one(kind, data)
        except Exception as error:
            raise AssertionError(f"{kind}: {data!r}") from error


@pytest.mark.slow
@pytest.mark.parametrize("kind", strangers.TARGETS)
def test_ten_minutes_of_atheris(tmp_path, kind):
    if find_spec("atheris") is None:
        pytest.skip("no atheris")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, strangers.__file__, kind, f"-max_total_time={SECONDS}", "-timeout=60", "-rss_limit_mb=4096"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
