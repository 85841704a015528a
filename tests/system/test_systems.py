"""Parts of published systems that programs are made of in ways of their own, on every rung: golden, machine and RTL."""

from __future__ import annotations

import numpy as np
import pytest

import author_maker as authors
import systems_maker as maker
from hwgen.config import Config
from hwgen.levels import import_model
from hwgen.select import integers

# As the windows of the ladder have it, so that it is compiled once.
CONFIG = Config(
    array_outputs=8, array_inputs=12, window_chunks=1, window_rows=2, acc_rows=32, select_rows=64, scan_states=2,
    narrow_weights=1, axi_bytes=8,
)  # fmt: skip
FORMS = [
    *(maker.gated_experts, maker.sigmoid_experts, maker.gated_slots),  # gates of all experts for all tokens
    *(maker.embedded_boxes, maker.shuffled),  # sines of positions, rows that several readers ask for
    *(authors.neighbours, authors.features),
]


@pytest.mark.xdist_group("window 8x12")
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_parts(form, tmp_path, climb):
    graph = import_model(maker.write(tmp_path / "m.onnx", form))
    images = np.random.default_rng(1).standard_normal((17, *maker.IMAGE)).astype(np.float32)
    integer = integers({"": graph}, {"image": images[1:]})
    climb(integer, CONFIG, "", [{"image": images[0]}])
