"""Accuracy beside onnxruntime's static int8 of the same file: golden and QDQ against float, in dB, the worst output's.

    python tests/bench/static_int8.py [--images CALIB.npz] [--set KEY=VALUE] FILE.onnx [FILE.onnx ...]

Both are calibrated with the same images, seeded noise unless `--images` are given, and held against the float network on
others: other noise, or the second half of the images. onnxruntime quantises as its documents advise: graph optimised
first, weights and activations int8, weights per channel, activations by their smallest and largest value.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from hwgen import graph as fg
from hwgen.errors import UserError
from hwgen.levels import import_model
from hwgen.quantise import Quantisation, quantise
from hwgen.quantise.calibrate import noise
from hwgen.select import select
from hwgen.sim import golden

Array = np.ndarray
Values = dict[str, Array]  # [n, ...]


def decibels(wanted: Values, found: Values) -> float:
    """Signal to noise of the worst output, over all images."""
    errors = [(np.square(y).sum(), np.square(y - found[name]).sum()) for name, y in wanted.items()]
    return min(10 * float(np.log10(signal / max(error, 1e-30))) for signal, error in errors)


class Images(CalibrationDataReader):
    """Calibration images one by one, as onnxruntime reads them."""

    def __init__(self, images: Values):
        count = len(next(iter(images.values())))
        self.left = iter([{name: data[i : i + 1] for name, data in images.items()} for i in range(count)])

    def get_next(self) -> Values | None:
        return next(self.left, None)


def runtime(path: Path, images: Values) -> Values:
    """The outputs of a file by onnxruntime, without their batch axis."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    runs = [session.run(names, feed) for feed in iter(Images(images).get_next, None)]
    return {name: np.stack([np.asarray(run[i][0], np.float64) for run in runs]) for i, name in enumerate(names)}


def of_runtime(path: Path, calibration: Values, images: Values) -> float:
    """What onnxruntime's static int8 of the file keeps."""
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            Images(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        return decibels(runtime(path, images), runtime(quantised, images))


def of_hwgen(graph: fg.Graph, calibration: Values | None, images: Values, options: Quantisation) -> float:
    """What golden keeps."""
    machine = select(quantise({"": graph}, calibration, options)[""])
    wanted: dict[str, list[Array]] = {o.name: [] for o in graph.outputs}
    found: dict[str, list[Array]] = {o.name: [] for o in graph.outputs}
    for i in range(len(next(iter(images.values())))):
        image = {name: data[i] for name, data in images.items()}
        for name, value in fg.outputs(graph, fg.evaluate(graph, image)).items():
            wanted[name].append(value)
        for name, value in golden.run(machine, image).outputs.items():
            found[name].append(value)
    return decibels(*({name: np.stack(runs) for name, runs in outputs.items()} for outputs in (wanted, found)))


def line(path: Path, given: Values | None, options: Quantisation) -> str:
    """Both of a file."""
    graph = import_model(path)
    if given is None:
        calibration = {name: noise(shape, graph.ranges.get(name)) for name, shape in graph.inputs.items()}
        images = {name: noise(shape, graph.ranges.get(name), seed=1) for name, shape in graph.inputs.items()}
    else:
        half = len(given[next(iter(graph.inputs))]) // 2
        calibration = {name: given[name][:half] for name in graph.inputs}
        images = {name: given[name][half:] for name in graph.inputs}
    begin = time.monotonic()
    ours = of_hwgen(graph, None if given is None else calibration, images, options)
    took = time.monotonic() - begin
    try:
        theirs = of_runtime(path, calibration, images)
    except Exception as error:  # of onnxruntime: the file's own accuracy is still of interest
        return f"hwgen {ours:5.1f} dB in {took:.1f} s; onnxruntime fails: {str(error).splitlines()[0][:100]}"
    return f"hwgen {ours:5.1f} dB, onnxruntime {theirs:5.1f} dB in {took:.1f} s{'' if ours >= theirs else '; BELOW'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="npz of calibration images, by names of inputs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the quantisation")
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    options = Quantisation.from_texts(dict(setting.split("=", 1) for setting in arguments.set))
    given = None if arguments.images is None else dict(np.load(arguments.images, allow_pickle=False))
    for path in arguments.files:
        try:
            said = line(path, given, options)
        except UserError as error:
            said = f"refused: {error}"
        print(f"{path.name}: {said}", flush=True)


if __name__ == "__main__":
    main()
