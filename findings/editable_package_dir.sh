#!/usr/bin/env bash
# setuptools: in an editable install, PYTHONPATH picks the package of another checkout, but not its remapped subpackages
#
# Version: setuptools 80.9.0.
# With [tool.setuptools.package-dir] a folder of the repository becomes a subpackage (here "parts" is "thing.parts"). An
# editable install puts a finder for it behind the ordinary path search. A second checkout (a git worktree, say) that comes
# first on PYTHONPATH is then found for "thing", whose own modules are the second's, while "thing.parts" comes from the
# checkout that is installed: one process runs two versions of one package, without a word.
#
# Seen:
#     thing second, thing.own second, thing.parts first
#
# Exits with 0 while it is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check setuptools==80.9.0
for checkout in first second; do
    mkdir -p "$folder/$checkout/thing" "$folder/$checkout/parts"
    for module in thing/__init__ thing/own parts/__init__; do echo "checkout = '$checkout'" > "$folder/$checkout/$module.py"; done
    cat > "$folder/$checkout/pyproject.toml" <<'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "thing"
version = "1"

[tool.setuptools]
packages = ["thing", "thing.parts"]

[tool.setuptools.package-dir]
"thing.parts" = "parts"
TOML
done
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation -e "$folder/first"
cd "$folder"
PYTHONPATH="$folder/second" "$folder/venv/bin/python" - <<'PYTHON'
import thing
import thing.own
import thing.parts

found = thing.checkout, thing.own.checkout, thing.parts.checkout
print("thing {}, thing.own {}, thing.parts {}".format(*found))
raise SystemExit(found != ("second", "second", "first"))
PYTHON
