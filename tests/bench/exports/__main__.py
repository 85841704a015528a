"""What the exporters really write, network by network: does hwgen take the file, and how near is the golden model?

    python tests/bench/exports [REGEX] [--list | --table] [--keep FOLDER]

REGEX picks jobs by name, NETWORK:EXPORT[+REWRITE], such as "^timm_vit:" or "^moe_.*:dy"; --list names them all (over a
thousand; a few seconds each). --table prints docs/systems.md, of published systems. --keep leaves the files in FOLDER and
takes those that are there already. It needs torch, torchvision, timm, transformers, vit-pytorch and onnxscript, which hwgen
does not; onnxsim, onnxslim and onnxruntime for rewritten files.

One row for each file: "passed" with the golden model's signal-to-noise ratio against onnxruntime in dB, "refused" with
the reason, "no export" where the exporter itself failed, "FAULT" where hwgen did. Exit status 1 if there is a FAULT.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hwgen.errors import UserError
from hwgen.importer.reference import reference
from hwgen.levels import check, import_model, refusal
from hwgen.select import integers
from hwgen.sim import golden

try:
    import torch
    from exporters import EXPORTS, REWRITES, seeded
    from networks import NETWORKS, SIZE
    from systems import SHAPES, SYSTEMS
    from table import document
except ImportError as error:
    print(
        f"tests/bench/exports: {error}; it needs an environment with torch, timm, transformers and onnxscript",
        file=sys.stderr,
    )
    sys.exit(2)

IMAGES = 4
# Networks that go through all exports, and the opset from which TorchScript can export them: 14 for the fused attention.
PLAIN = {"timm_vit": 14, "attention_products": 13}
EXPORTED = "ts17-dyn", "ts14-dyn-raw", "dy18", "dy23-dyn"  # of every other network
REWRITTEN = {"ts17-dyn": ("slim", "all"), "dy18": ("extended", "transformers")}
SYSTEMS_EXPORTED = {"ts17": ("sim", "qdq"), "dy18": ("slim", "extended")}  # of systems.py, with their rewritings
REWRITTEN_IN_ALL_WAYS = "ts17", "ts17-dyn", "ts13-raw", "dy18", "dy18-dyn", "dy23"


@dataclass(frozen=True)
class Job:
    network: str
    export: str
    rewrite: str = ""

    @property
    def name(self) -> str:
        return f"{self.network}:{self.export}" + (f"+{self.rewrite}" if self.rewrite else "")

    def write(self, folder: Path) -> Path:
        """The file, made unless it is there."""
        path = folder / f"{re.sub(r'[:+]', '__', self.name)}.onnx"
        if path.exists():
            return path
        if self.rewrite:
            REWRITES[self.rewrite](Job(self.network, self.export).write(folder), path)
        else:
            torch.manual_seed(0)
            image = torch.randn(1, *SHAPES.get(self.network, (3, SIZE, SIZE)))
            maker = NETWORKS.get(self.network) or SYSTEMS[self.network]
            EXPORTS[self.export].write(seeded(maker()), image, path)
        return path


def jobs() -> Iterator[Job]:
    for network in NETWORKS:
        oldest = PLAIN.get(network)
        for export in EXPORTED if oldest is None else (n for n, e in EXPORTS.items() if e.opset >= oldest):
            yield Job(network, export)
            every = REWRITES if oldest and export in REWRITTEN_IN_ALL_WAYS else REWRITTEN.get(export, ())
            yield from (Job(network, export, rewrite) for rewrite in every)
    for network in SYSTEMS:
        for export, rewritten in SYSTEMS_EXPORTED.items():
            yield from (Job(network, export, rewrite) for rewrite in ("", *rewritten))


def judge(path: Path) -> tuple[str, str]:
    """(outcome, what to say of it) of check, import, quantisation and golden on one file."""
    try:
        findings = check(path)
        if findings:
            reason = refusal(path, findings).split("\n", 1)[1].strip()
            return "refused", reason.replace("\n  ", " | ")
        graph = import_model(path)
        rng = np.random.default_rng(7)

        def images(count):
            return {
                name: rng.uniform(-1.5, 1.5, (count, *shape)).astype(np.float32) for name, shape in graph.inputs.items()
            }

        quantised = integers({"": graph}, images(2 * IMAGES))[""]
        test = images(IMAGES)
        runs = [golden.run(quantised, {name: array[i] for name, array in test.items()}).outputs for i in range(IMAGES)]
        worst = min(
            _decibels(wanted, np.stack([outputs[name] for outputs in runs]))
            for name, wanted in reference(path, test).items()
        )
        return "passed", f"{worst:.1f} dB"
    except UserError as error:
        return "refused", str(error).removeprefix(f"{path}: ")
    except Exception as error:
        return "FAULT", f"{type(error).__name__}: {error}"


def _decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    wanted = wanted.astype(np.float64)
    return 10 * np.log10(np.square(wanted).sum() / np.square(got.reshape(wanted.shape) - wanted).sum())


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing to see of what is printed, by PyTorch's C++ too."""
    sys.stdout.flush()
    kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor, _ in kept:
            os.dup2(nowhere, descriptor)
        yield
    finally:
        sys.stdout.flush()
        for descriptor, copy in kept:
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def run(job: Job, folder: Path) -> tuple[str, str]:
    try:
        with silence():
            path = job.write(folder)
    except Exception as error:
        return "no export", f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    return judge(path)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python tests/bench/exports")
    parser.add_argument("regex", nargs="?", default="", help="jobs to run, by name")
    parser.add_argument("--list", action="store_true", help="only name the jobs")
    parser.add_argument("--table", action="store_true", help="print docs/systems.md")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder for the files")
    options = parser.parse_args(arguments)
    chosen = [job for job in jobs() if re.search(options.regex, job.name)]
    if options.list:
        print("\n".join(job.name for job in chosen))
        return 0
    warnings.filterwarnings("ignore")  # of the exporters, which are not on trial
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # which TorchScript cannot export
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.table:
            found = {job.name: job for job in jobs()}
            judged = cache(lambda name: " ".join(run(found[name], folder)).removeprefix("passed "))
            print(document(judged), end="")
            return 0
        for job in chosen:
            outcome, words = run(job, folder)
            outcomes[outcome] += 1
            print(f"{job.name:50} {outcome:9} {words[:300]}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "no job of that name")
    return 1 if outcomes["FAULT"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
