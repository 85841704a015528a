"""Seconds of every build step, and of one image on golden, machine and onnxruntime, for the reference workload M3ViT-tiny.

    python tests/bench/engines.py [IMAGES] [KEY=VALUE ...]

IMAGES: how many to run (default 3). KEY=VALUE: Config fields that replace those of the zcu104.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from hwgen import example, run
from hwgen.files import read_npz
from hwgen.steps import build


def main(arguments: list[str]) -> None:
    settings = dict(a.split("=", 1) for a in arguments if "=" in a)
    count = int(next((a for a in arguments if "=" not in a), 3))
    with tempfile.TemporaryDirectory() as folder:
        model, calibration, test = example.write("m3vit-tiny", Path(folder) / "tiny.onnx")
        build(
            {"": model},
            Path(folder) / "tiny.bundle",
            calibrate=calibration,
            settings=settings,
            progress=lambda step, seconds, summary: print(
                f"{step:12} {seconds:8.2f} s            {summary}", flush=True
            ),
        )
        bundle = run.open_bundle(Path(folder) / "tiny.bundle")
        images = {name: read_npz(test)[name][:count] for name in run.inputs(bundle, "")}
        seconds = onnxruntime_seconds(model, images)
        results = {engine: run.run(bundle, engine, images) for engine in ("golden", "machine")}
    print(f"{'onnxruntime':12} {seconds:8.3f} s an image   float32, {count} images")
    for engine, result in results.items():
        taken = len(next(iter(result.outputs.values())))
        print(f"{engine:12} {result.seconds / taken:8.3f} s an image   {taken} images")
    golden, machine = (result.outputs for result in results.values())
    print("equal" if all(np.array_equal(golden[name], machine[name]) for name in golden) else "DIFFERENT")


def onnxruntime_seconds(model: Path, images: dict[str, np.ndarray]) -> float:
    """Of an image in the float model, after one to warm up."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    one_by_one = [
        {name: array[i : i + 1] for name, array in images.items()} for i in range(len(next(iter(images.values()))))
    ]
    session.run(None, one_by_one[0])
    start = time.monotonic()
    for feed in one_by_one:
        session.run(None, feed)
    return (time.monotonic() - start) / len(one_by_one)


if __name__ == "__main__":
    main(sys.argv[1:])
