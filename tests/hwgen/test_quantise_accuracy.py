"""Accuracy against the float model and against onnxruntime's static int8 quantisation of the same file, same images.

`pytest -m slow -s tests/hwgen/test_quantise_accuracy.py` prints the numbers.
"""

import json
import logging

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hwgen.compare import compare
from hwgen.levels import import_model
from hwgen.select import integers
from hwgen.sim import golden

pytestmark = pytest.mark.slow
onnxruntime = pytest.importorskip("onnxruntime")
DIGITS = ("vit_digits", "vit_digits_dynamo", "m3vit_digits_digit", "m3vit_digits_parity", "m3vit_digits_2task")
EDGE = ("m3vit_edge_task0", "m3vit_edge_task1")
HOLLOW = ("timm_deit_tiny_ts17", "timm_deit_tiny_dy18", "hf_vit_tiny_ts17_dyn", "timm_vit_small_ts16_dyn")


def data(models, name):
    """(calibration images, test images)."""
    file = "edge_images" if name in EDGE else "digits" if name in DIGITS else "photos224"
    if file == "digits":
        with np.load(models / "digits_calib.npz") as calib, np.load(models / "digits_test.npz") as test:
            return calib["image"][:128], test["image"][:100]
    with np.load(models / f"{file}.npz") as images:
        calib, test = (images[part][:count].astype(np.float32) for part, count in (("calib", 17), ("test", 12)))
    return (calib / 256, test / 256) if name in EDGE else (calib[:8], test[:6])


def fill(source, target):
    """Draw the weights that a hollow graph notes, seeded by their place in the file."""
    model = onnx.load(source)
    note = json.loads(next(p.value for p in model.metadata_props if p.key == "hollow"))
    for i, (name, shape, dtype, mean, deviation) in enumerate(note):
        weights = np.random.default_rng([0, i]).normal(mean, deviation, shape).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    onnx.save(model, target)
    return target


def session(path, **options):
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = 4
    for name, value in options.items():
        setattr(chosen, name, value)
    return onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])


def outputs(runner, images):
    name, wanted = runner.get_inputs()[0].name, [o.name for o in runner.get_outputs()]
    rows = [runner.run(wanted, {name: image[None]}) for image in images]
    return {o: np.concatenate([row[i].reshape(1, -1) for row in rows]) for i, o in enumerate(wanted)}


class Images:
    def __init__(self, name, images):
        self.rest = iter({name: image[None]} for image in images)

    def get_next(self):
        return next(self.rest, None)


def static_int8(path, folder, images, per_channel):
    """onnxruntime's quantisation of a file with its defaults."""
    from onnxruntime.quantization import QuantFormat, quantize_static

    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # folds the casts of fp16 weights, which it needs
    whole, target = str(folder / "float.onnx"), str(folder / "int8.onnx")
    name = session(path, optimized_model_filepath=whole, graph_optimization_level=basic).get_inputs()[0].name
    logging.disable(logging.WARNING)
    try:
        quantize_static(whole, target, Images(name, images), quant_format=QuantFormat.QDQ, per_channel=per_channel)
    finally:
        logging.disable(logging.NOTSET)
    return session(target)


def error(expected, found):
    """Root mean square error over standard deviation."""
    return float(np.sqrt(np.square(expected.astype(np.float64) - found).mean()) / expected.std())


@pytest.mark.parametrize("name", (*DIGITS, *EDGE, *HOLLOW))
def test_never_worse_than_onnxruntime(models, tmp_path, name):
    path = models / f"{name}.onnx"
    if name in HOLLOW:
        path = fill(models / "hollow" / f"{name}.onnx", tmp_path / "filled.onnx")
    if not path.exists():
        pytest.skip(f"{name} is not here")
    calib, test = data(models, name)
    real = outputs(session(path), test)
    graph = import_model(path, confirmed=False)
    (image,) = graph.inputs
    integer = integers({"": graph}, {image: calib})[""]
    rows = [golden.run(integer, {image: one}).outputs for one in test]
    for per_channel in (False, True):
        theirs = outputs(static_int8(path, tmp_path, calib, per_channel), test)
        for output, expected in real.items():
            ours = error(expected, np.stack([row[output].ravel() for row in rows]))
            other = error(expected, theirs[output])
            kind = "per channel" if per_channel else "per tensor"
            print(f"{name} {output}: {ours:.4f}, onnxruntime {kind} {other:.4f}")
            assert ours <= other
            assert name not in DIGITS or -20 * np.log10(ours) >= 25


def test_two_tasks_in_one_bundle_at_full_size(models):
    """The reference workload, its shared layers calibrated together: final tokens and expert choices of both tasks."""
    paths = {name: models / f"{name}.onnx" for name in EDGE}
    if not all(path.exists() for path in paths.values()):
        pytest.skip("m3vit_edge is not here")
    calib, test = data(models, EDGE[0])
    graphs = {name: import_model(path) for name, path in paths.items()}
    for name, integer in integers(graphs, {"image": calib}).items():
        found = [compare(graphs[name], integer, {"image": one[None]}, golden.run, 0) for one in test]
        ratio = np.mean([one.outputs[0].snr_db for one in found])
        agreement = np.mean([router.agreement for one in found for router in one.routers])
        print(f"{name}, jointly built: {ratio:.2f} dB, {agreement:.1%} of the expert choices")
        assert ratio >= 21 and agreement >= 0.96
