"""What a bundle gave against what it should give: checks with a verdict each, for people, for JSON and as JUnit's XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any
from xml.etree import ElementTree

import numpy as np

from .compare import snr_db
from .errors import UserError

Array = np.ndarray
NOTHING = "no check was asked for: an engine beside golden, cycles, SNR or labels make one"


@dataclass(frozen=True)
class Check:
    """One thing that was asked for; `found` says what was there and what was wanted."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Verification:
    """All checks of one run of `images` images through `engine`; it prints as a table."""

    bundle: str
    engine: str
    task: str
    images: int
    seconds: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def to_dict(self) -> dict[str, Any]:
        """The `--json` object of `hwgen verify`."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{self.engine}: {self.images} images in {self.seconds:.1f} s"]
        lines += [f"{'ok    ' if c.passed else 'FAILED'}  {c.name:{width}}  {c.found}" for c in self.checks]
        return "\n".join(lines + ([] if self.checks else [NOTHING]))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def junit(self) -> bytes:
        """One test suite with a test case a check, as CI servers read it."""
        name = f"hwgen.{self.engine}" + (f".{self.task}" if self.task else "")
        counts = {"tests": str(len(self.checks)), "failures": str(len(self.failed)), "errors": "0", "skipped": "0"}
        time = f"{self.seconds:.3f}"
        top = ElementTree.Element("testsuites")
        suite = ElementTree.SubElement(top, "testsuite", {"name": name, "time": time, **counts})
        for check in self.checks:
            case = ElementTree.SubElement(suite, "testcase", classname=name, name=check.name)
            if not check.passed:
                ElementTree.SubElement(case, "failure", message=check.found)
            ElementTree.SubElement(case, "system-out").text = check.found
        text: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
        return text


def equal(outputs: Mapping[str, Array], golden: Mapping[str, Array]) -> list[Check]:
    """Each output [images, ...] bit for bit as golden gives it."""
    checks = []
    for name, wanted in golden.items():
        differ = outputs[name] != wanted
        found = "equal bit for bit"
        if differ.any():
            image = int(differ.reshape(len(differ), -1).any(axis=1).argmax())
            found = f"{int(differ.sum())} of {differ.size} values differ, the first in image {image}"
        checks.append(Check(f"{name} as golden", not differ.any(), found))
    return checks


def cycles(found: Sequence[int], most: int, measured: bool) -> Check:
    """The slowest image against a budget."""
    word = "" if measured else " by the cycle model"
    return Check("cycles", max(found) <= most, f"{max(found):,} an image{word}, at most {most:,}")


def snr(outputs: Mapping[str, Array], expected: Mapping[str, Array], least: float) -> list[Check]:
    """Signal-to-noise ratio in dB of each output over all images, against the float model's [images, ...]."""
    checks = []
    for name, found in outputs.items():
        wanted = np.asarray(expected[name])[: len(found)]
        if wanted.shape != found.shape or wanted.dtype.kind not in "fiu":
            ours, theirs = list(found.shape), list(wanted.shape)
            raise UserError(f"expected outputs {name!r}: shape {theirs} of {wanted.dtype}, must be {ours} of numbers")
        if not np.isfinite(wanted).all():
            raise UserError(f"expected outputs {name!r}: hold NaN or infinity")
        db = snr_db(wanted, found)
        checks.append(Check(f"{name} SNR", db >= least, f"{db:.2f} dB, at least {least:g}"))
    return checks


def accuracy(name: str, output: Array, labels: Array, least: float) -> Check:
    """Share of labels [images, ...] that the largest value along the last axis of `output` [images, ..., classes] hits."""
    labels = np.asarray(labels)[: len(output)]
    if labels.dtype.kind not in "iu" or labels.shape != output.shape[:-1]:
        wanted = ", ".join(str(n) for n in output.shape[:-1])
        raise UserError(
            f"labels of {name!r}: shape {list(labels.shape)} of {labels.dtype}, must be whole numbers [{wanted}]"
        )
    if labels.min() < 0 or labels.max() >= output.shape[-1]:
        raise UserError(
            f"labels of {name!r}: {labels.min()} to {labels.max()}, the output has {output.shape[-1]} classes"
        )
    hits, total = int((output.argmax(axis=-1) == labels).sum()), labels.size
    return Check(
        f"{name} accuracy", hits >= least * total, f"{hits} of {total} right ({hits / total:.2%}), at least {least:.2%}"
    )
