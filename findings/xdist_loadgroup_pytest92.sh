#!/usr/bin/env bash
# pytest-xdist with pytest 9.2: `--dist loadgroup` ignores xdist_group, without a word
#
# Versions: pytest 9.2.0 beside 9.1.1, pytest-xdist 3.8.0.
# Tests that are marked with one xdist_group should all run in one worker. With pytest 9.2.0 they are dealt out as with
# `--dist load`: no warning, all tests pass, and what a group shares (a server, a compiled simulation) is made once a worker,
# at the same time.
#
# Seen:
#     pytest 9.1.1: 8 tests of one group in 1 worker
#     pytest 9.2.0: 8 tests of one group in 2 workers
#
# Exits with 0 while it is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/test_group.py" <<'PYTHON'
import os
import time

import pytest


@pytest.mark.xdist_group("shared")
@pytest.mark.parametrize("number", range(8))
def test_group(number):
    time.sleep(0.2)
    with open(f"worker_{os.environ['PYTEST_XDIST_WORKER']}", "a") as file:
        file.write(f"{number}\n")
PYTHON
python3 -m venv "$folder/venv"
cd "$folder"
for case in 9.1.1:1 9.2.0:2; do
    version="${case%:*}"
    venv/bin/pip install --quiet --disable-pip-version-check "pytest==$version" pytest-xdist==3.8.0
    rm -f worker_*
    venv/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py > log || { cat log; exit 1; }
    [ "$(cat worker_* | wc -l)" = 8 ] || { cat log; exit 1; }
    workers="$(ls worker_* | wc -l)"
    echo "pytest $version: 8 tests of one group in $workers worker$([ "$workers" = 1 ] || echo s)"
    [ "$workers" = "${case#*:}" ] || { echo "changed"; exit 1; }
done
