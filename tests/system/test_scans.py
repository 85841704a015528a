"""Networks of selective scans, on every rung: golden, machine and RTL."""

from __future__ import annotations

import numpy as np
import pytest

import scan_maker as maker
from hwgen.config import Config
from hwgen.levels import import_model
from hwgen.select import integers
from hwgen.sim.tb.graphs import random_images
from hwgen.sim.tb.scans import random_scan_graph

# As the windows of the ladder have it, so that it is compiled once.
CONFIG = Config(
    array_outputs=8, array_inputs=12, window_chunks=1, window_rows=2, acc_rows=32, select_rows=64, scan_states=2,
    narrow_weights=1, axi_bytes=8,
)  # fmt: skip


@pytest.mark.xdist_group("window 8x12")
@pytest.mark.parametrize("states", [4, 16])
def test_random_scans_with_stalls(states, climb):
    graph = random_scan_graph(states, width=40, states=states)
    climb({"": graph}, CONFIG, "", [random_images(graph, 1)], stall=100, seed=2)


@pytest.mark.xdist_group("window 8x12")
def test_vision_mamba(tmp_path, climb):
    """Two directions behind causal convolutions, gated."""
    graph = import_model(maker.write(tmp_path / "m.onnx", maker.network(maker.both)))
    images = np.random.default_rng(1).standard_normal((17, *maker.IMAGE)).astype(np.float32)
    integer = integers({"": graph}, {"image": images[1:]})
    climb(integer, CONFIG, "", [{"image": images[0]}], stall=60)
