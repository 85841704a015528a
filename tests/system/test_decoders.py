"""Whole networks with decoders, several inputs and video, on every rung: golden, machine and RTL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

import decoder_maker as maker
from hwgen import graph as fg
from hwgen.boards import load
from hwgen.config import Config
from hwgen.dram import of_board
from hwgen.example.synthetic import Spec, images, model
from hwgen.levels import import_model
from hwgen.mapping import Mapping, choose
from hwgen.select import integers

# As the windows of the ladder have it, so that it is compiled once.
CONFIG = Config(
    array_outputs=8, array_inputs=12, window_chunks=1, window_rows=2, acc_rows=32, select_rows=64, scan_states=2,
    narrow_weights=1, axi_bytes=8,
)  # fmt: skip
MICRO = Spec((1, 8, 8), 4, 16, 2, 2, 32, 4, 16, 2, channels=8)
TASKS = {"segmentation": 3, "depth": 1}


@pytest.mark.xdist_group("window 8x12")
@pytest.mark.parametrize("task", TASKS)
def test_dense_heads(task, tmp_path, climb):
    """M3ViT (Fan et al. 2022): both tasks in one program, maps of the image's patches times 16; values in DRAM, in turns."""
    specs = {name: replace(MICRO, dense=name, classes=classes) for name, classes in TASKS.items()}
    graphs = {}
    for name, spec in specs.items():
        onnx.save(model(spec), tmp_path / f"{name}.onnx")
        graphs[name] = import_model(tmp_path / f"{name}.onnx")
    made = integers(graphs, {"image": images(MICRO, 8, seed=1)})
    image = {"image": images(MICRO, 1, seed=2)[0]}
    wanted = fg.outputs(graphs[task], fg.evaluate(graphs[task], image))[task]
    ladder = climb(made, CONFIG, task, [image], mapping=Mapping(spill=0.4, interleave=0.9))
    found = ladder.machine[0].outputs[task]
    assert wanted.shape == found.shape == (TASKS[task], 32, 32)
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()) > 20


@pytest.mark.xdist_group("window 8x12")
@pytest.mark.parametrize("form", maker.FORMS.values(), ids=maker.FORMS)
def test_whole_networks(form, tmp_path, climb):
    w = maker.Writer()
    inputs, outputs = form(w)
    graph = import_model(w.save(tmp_path / "m.onnx", inputs, outputs))  # compares with the ONNX model
    rng = np.random.default_rng(1)
    images = {name: rng.standard_normal((9, *shape)).astype(np.float32) for name, shape in inputs.items()}
    made = integers({"": graph}, {name: array[1:] for name, array in images.items()})
    image = {name: array[0] for name, array in images.items()}
    wanted = fg.outputs(graph, fg.evaluate(graph, image))
    mapping = choose(made, CONFIG, of_board(load("zcu104"), CONFIG)).mapping
    found = climb(made, CONFIG, "", [image], mapping=mapping).machine[0].outputs
    for name, values in wanted.items():
        assert 10 * np.log10(np.square(values).sum() / np.square(values - found[name]).sum()) > 20, name
