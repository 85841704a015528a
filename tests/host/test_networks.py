"""Whole networks through the driver on both simulated boards: several inputs, video, maps as outputs, tasks in turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

import decoder_maker as maker
from hwgen import run, steps
from hwgen.example.synthetic import Spec, images, model
from hwgen.host.accelerator import Accelerator
from hwgen.levels import import_model

# As tests/system/test_decoders.py has it, so that its simulation is compiled once.
SETTINGS = {
    "array_outputs": "8", "array_inputs": "12", "window_chunks": "1", "window_rows": "2", "acc_rows": "32", "select_rows": "64",
    "scan_states": "2", "narrow_weights": "1", "axi_bytes": "8",
}  # fmt: skip
TASKS = {"segmentation": 3, "depth": 1}


def agree(bundle, pictures):
    """Every task of a bundle, image by image in turns, on both devices against golden."""
    for device in ("sim", "rtl"):
        agree_on(device, bundle, pictures)


def agree_on(device, bundle, pictures):
    with Accelerator(bundle, device, say=None) as accelerator:
        golden = {task: run.run(accelerator.bundle, "golden", pictures, task).outputs for task in accelerator.tasks}
        for i in range(len(next(iter(pictures.values())))):
            for task in accelerator.tasks:
                found = accelerator({name: array[i : i + 1] for name, array in pictures.items()}, task=task)
                assert found.keys() == golden[task].keys()
                for name, values in golden[task].items():
                    np.testing.assert_array_equal(found[name], values[i : i + 1], f"{device}, {task}, image {i}, {name}")
                    assert values.std() > 0


@pytest.mark.xdist_group("window 8x12")
@pytest.mark.parametrize("form", maker.FORMS.values(), ids=maker.FORMS)
def test_whole_networks(form, tmp_path):
    w = maker.Writer()
    inputs, outputs = form(w)
    path = w.save(tmp_path / "m.onnx", inputs, outputs)
    rng = np.random.default_rng(1)
    pictures = {name: rng.standard_normal((10, *shape)).astype(np.float32) for name, shape in inputs.items()}
    steps.build({"": path}, tmp_path / "b", calibrate={n: a[2:] for n, a in pictures.items()}, settings=SETTINGS)
    agree(tmp_path / "b", {name: array[:2] for name, array in pictures.items()})


@pytest.mark.xdist_group("window 8x12")
def test_dense_heads_of_two_tasks(tmp_path):
    micro = Spec((1, 8, 8), 4, 16, 2, 2, 32, 4, 16, 2, channels=8)
    for name, classes in TASKS.items():
        onnx.save(model(replace(micro, dense=name, classes=classes)), tmp_path / f"{name}.onnx")
    models = {name: tmp_path / f"{name}.onnx" for name in TASKS}
    (name,) = import_model(models["depth"]).inputs
    steps.build(models, tmp_path / "b", calibrate={name: images(micro, 8, seed=1)}, settings=SETTINGS)
    agree(tmp_path / "b", {name: images(micro, 2, seed=2)})
