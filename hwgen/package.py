"""`hwgen package`: a bundle, the driver, a self-test and a notebook as one folder that is copied to the board."""

from __future__ import annotations

import hashlib
import io
import json
import re
from importlib.resources import files as resource_files
from pathlib import Path

import numpy as np

from . import run
from .errors import UserError
from .files import check_replaceable, replace_folder
from .host.bundle import Bundle
from .host.self_test import BUNDLE, DRIVER, IMAGES, array_name
from .images import read
from .notebook import notebook
from .version import __version__

MARK = "hwgen-package.json"
BITSTREAM = "hwgen"
SELF_TEST_IMAGES = 4
NOISE_STEPS = 100  # of the input quantiser, around its offset

README = """\
# {name} for {board}

Everything that the board needs to run this network: bundle, driver, self-test, notebook. Made by hwgen {version}.

    sudo python3 -m pip install .          # once, in this folder, on the board's PYNQ image
    sudo python3 -m host.self_test         # here: bit for bit against what the simulation gave
    sudo pynq get-notebooks                # puts {overlay}/notebooks into the notebook folder
    sudo python3 -m host {overlay}/bundle IN.npz --output OUT.npz{task}

Installed, it is one package, `{overlay}`: others of hwgen stand beside it. The driver in it is `{overlay}.driver`, everywhere
(`python3 -m {overlay}.driver.self_test`); `host` is its short name in this folder.

{bitstream}
"""
WITH_BITSTREAM = "The bitstream `{overlay}/hwgen.bit` with its `hwgen.hwh` is part of this package."
WITHOUT_BITSTREAM = """\
This package was made without a bitstream. Vivado 2022.2 or later makes it:

    vivado -mode batch -source {overlay}/bundle/vivado/build.tcl

and `hwgen.bit` and `hwgen.hwh`, which it leaves in the current folder, belong into `{overlay}/`."""
PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{project}"
version = "{version}"
description = "{name}, an accelerator made by hwgen, for PYNQ"
dependencies = ["numpy"]

[project.entry-points."pynq.notebooks"]
{project} = "{overlay}.notebooks"

[tool.setuptools]
packages = ["{overlay}", "{overlay}.{driver}", "{overlay}.notebooks"]

[tool.setuptools.package-data]
"*" = ["**/*"]
"""
OVERLAY = '''\
"""An accelerator made by hwgen: `open()` gives the driver."""

from pathlib import Path

from .{driver}.accelerator import Accelerator

FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER / "bundle"


def open(device=None, **options) -> Accelerator:
    """The accelerator on the board, or on a simulated one; see driver/accelerator.py."""
    return Accelerator(BUNDLE, device, **options)
'''
HOST = '''\
"""The driver's short name in this folder, as `python -m host`; it stands in {overlay}, and pip installs that alone."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "{overlay}" / "{driver}")]
'''


def package(path: Path, output: Path, bitstream: Path | None = None, images: Path | None = None) -> list[str]:
    """Write the deployment package of the bundle `path` to the folder `output`; returns the names of its files.

    bitstream: a .bit with its .hwh beside it. images: an .npz whose first images the self-test takes; without it, seeded
    noise in the inputs' range. Raises UserError; the folder appears complete or not at all.
    """
    check_replaceable(output, _is_package, "package")
    bundle = run.open_bundle(path)
    name = ", ".join(dict.fromkeys(Path(model["file"]).stem for model in bundle.manifest["models"]))
    project = "hwgen-" + (re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "network")
    overlay = project.replace("-", "_")
    contents = {f"{overlay}/{BUNDLE}/{file}": data for file, data in run.contents(bundle).items()}
    contents |= {f"{overlay}/{DRIVER}/{file}": data for file, data in _driver().items()}
    if bitstream is not None:
        contents |= {f"{overlay}/{BITSTREAM}{part}": _read(bitstream.with_suffix(part)) for part in (".bit", ".hwh")}
    contents[f"{overlay}/{IMAGES}"] = _self_test(bundle, images)
    note = WITHOUT_BITSTREAM if bitstream is None else WITH_BITSTREAM
    task = "" if bundle.tasks == [""] else f" --task {bundle.tasks[0]}"
    values = {"name": name, "board": bundle.manifest["board"], "version": __version__, "project": project}
    values |= {"overlay": overlay, "driver": DRIVER}
    texts = {
        "README.md": README.format(bitstream=note.format(**values), task=task, **values),
        "pyproject.toml": PYPROJECT.format(**values),
        f"{overlay}/__init__.py": OVERLAY.format(**values),
        "host/__init__.py": HOST.format(**values),
        f"{overlay}/notebooks/__init__.py": "",
        f"{overlay}/notebooks/{overlay}.ipynb": notebook(name, bundle.manifest["board"], overlay),
    }
    contents |= {file: text.encode() for file, text in texts.items()}
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(contents.items())}
    mark = {"format": "hwgen-package", "tool": {"name": "hwgen", "version": __version__}, "files": hashes}
    contents[MARK] = (json.dumps(mark, indent=1) + "\n").encode()
    replace_folder(output, contents, _is_package, "package")
    return sorted(contents)


def _is_package(path: Path) -> bool:
    return (path / MARK).is_file()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a bitstream is a .bit with its .hwh beside it") from None


def _driver() -> dict[str, bytes]:
    """The modules of the driver."""
    found = {entry.name: entry.read_bytes() for entry in resource_files("hwgen.host").iterdir() if entry.name.endswith(".py")}
    return dict(sorted(found.items()))


def _self_test(bundle: Bundle, images: Path | None) -> bytes:
    """The .npz of the self-test: inputs and golden's outputs of every task."""
    arrays: dict[str, np.ndarray] = {}
    for task in bundle.tasks:
        if images is None:
            given = _noise(bundle, task)
        else:
            given = read(images, run.inputs(bundle, task), SELF_TEST_IMAGES, bundle.types(task))
        outputs = run.run(bundle, "golden", given, task).outputs
        for kind, group in (("in", given), ("out", outputs)):
            arrays |= {array_name(task, kind, name): array for name, array in group.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _noise(bundle: Bundle, task: str) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    for slot in bundle.task(task)["inputs"]:
        if slot["name"] not in found:
            steps = rng.uniform(-NOISE_STEPS, NOISE_STEPS, (SELF_TEST_IMAGES, *slot["shape"]))
            values, kind = slot["offset"] + slot["step"] * steps, np.dtype(slot["type"])
            if kind.kind in "iu":
                values = np.clip(np.round(values), np.iinfo(kind).min, np.iinfo(kind).max)
            found[slot["name"]] = ((values > 0) if kind.kind == "b" else values).astype(np.float32)
    return found
