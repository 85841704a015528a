#!/usr/bin/env bash
# mypy with `python_version` below what the installed NumPy asks for: first overloads vanish, and correct calls are errors
#
# Versions: mypy 2.4.1, numpy 2.5.5 (which asks for Python 3.12) beside numpy 2.4.6.
# A library that supports Python 3.10 sets `python_version = "3.10"` for mypy. On Python 3.12 pip chooses NumPy 2.5, whose stubs
# import `override` from typing. That name exists from 3.12, so for mypy it is unknown, and the overload below it, the one
# for no argument at all, is dropped without a word about the stubs: `array.argmax()` "requires at least one argument".
#
# Seen:
#     numpy 2.4.6, python_version 3.11: no error
#     numpy 2.5.5, python_version 3.11: All overload variants of "argmax" of "ndarray" require at least one argument
#     numpy 2.5.5, python_version 3.12: no error
#
# Exits with 0 while it is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cd "$folder"
venv/bin/pip install --quiet --disable-pip-version-check mypy==2.4.1
cat > use.py <<'PYTHON'
import numpy as np

values: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]" = np.arange(3)
print(values.argmax())
PYTHON
site="$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
for case in 2.4.6:3.11:0 2.5.5:3.11:1 2.5.5:3.12:0; do
    IFS=: read -r numpy python errors <<< "$case"
    # Only the stubs are read, so the wheel may be for another Python than the one that runs.
    rm -rf "$site"/numpy "$site"/numpy-*
    venv/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --ignore-requires-python --python-version 3.12 --target "$site" "numpy==$numpy"
    venv/bin/mypy --no-incremental --python-version "$python" use.py > log && found=0 || found=1
    message="$(grep -o 'All overload variants of .* require at least one argument' log || echo "no error")"
    echo "numpy $numpy, python_version $python: $message"
    [ "$found" = "$errors" ] || { cat log; echo "changed"; exit 1; }
    [ "$found" = 0 ] || grep -q '"argmax".*require at least one argument' log || { cat log; echo "changed"; exit 1; }
done
