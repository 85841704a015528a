"""`hwgen demo`: a trained network from ONNX to simulated hardware, its answers beside the float model's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from . import report, run, steps
from .errors import UserError
from .example import EXAMPLES, write
from .files import read_npz
from .importer.reference import reference

NAME = "m3vit-digits"  # where the user names none
SETTINGS = {"array_outputs": "16", "array_inputs": "16"}  # small enough to compile and simulate in minutes


def demo(images: int, keep: Path | None = None, say=print, example: str = NAME) -> bool:
    """Write, build, simulate and compare; True if RTL and golden agree bit for bit.

    images: how many test images. keep: folder that receives model, images and bundle, which otherwise vanish. example: a
    name of `hwgen example`; UserError where there is none.
    """
    if example not in EXAMPLES:
        raise UserError(f"unknown example {example!r}; known are {', '.join(EXAMPLES)}")
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="hwgen-demo-") as folder:
            return demo(images, Path(folder), say, example)
    keep.mkdir(parents=True, exist_ok=True)
    model, calibration, test = write(example, keep / f"{example}.onnx")
    say(f"{example}: {EXAMPLES[example].description}, as ONNX")

    say("\nbuilding for a zcu104 with a small array ...")
    target = keep / f"{example}.bundle"
    state = steps.build(
        {"": model},
        target,
        calibrate=calibration,
        settings=SETTINGS,
        progress=lambda step, seconds, summary: say(f"  {step:10} {seconds:5.1f} s  {summary}"),
    )
    say("")
    say(report.text(state.report))

    data = read_npz(test)
    picked = {"image": data["image"][:images]}
    expected = reference(model, picked)
    bundle = run.open_bundle(target)
    golden = run.run(bundle, "golden", picked)
    say(f"\nsimulating the Verilog, {len(picked['image'])} images (the first run compiles it, a minute or two) ...")
    rtl = run.run(bundle, "rtl", picked)

    labels = {name.removeprefix("label_"): values for name, values in data.items() if name.startswith("label_")}
    names = list(expected)
    header = "".join(f"   {name + ':':>9} {'true':>5} {'float':>5} {'RTL':>4}" for name in names)
    say(f"\nimage{header} {'cycles':>11} {'ms':>7}  array busy")
    for i, counters in enumerate(rtl.counters):
        answers = ""
        for name in names:
            true = labels[name][i] if name in labels else "-"
            answers += f"{'':12} {true!s:>5} {expected[name][i].argmax():>5} {rtl.outputs[name][i].argmax():>4}"
        milliseconds = counters["cycles"] / (state.config.clock_mhz * 1e3)
        busy = counters["array_active"] / counters["cycles"]
        say(f"{i:>5}{answers} {counters['cycles']:>11,} {milliseconds:>7.3f} {busy:>11.1%}")
    same = all(np.array_equal(golden.outputs[name], rtl.outputs[name]) for name in names)
    error = max(float(np.abs(expected[name] - rtl.outputs[name]).max()) for name in names)
    say(f"\nRTL against the integer model: {'every output equal, bit for bit' if same else 'OUTPUTS DIFFER'}")
    say(f"RTL against the float model: largest difference of a logit {error:.3f}")
    return same
