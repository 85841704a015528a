"""Networks that keep tokens by scores of their own, on every rung: golden, machine and RTL."""

from __future__ import annotations

import numpy as np
import pytest

import chosen_maker as chosen
from hwgen.config import Config
from hwgen.levels import import_model
from hwgen.select import integers

maker = chosen.maker
# As the windows of the ladder have it, so that it is compiled once.
CONFIG = Config(
    array_outputs=8, array_inputs=12, window_chunks=1, window_rows=2, acc_rows=32, select_rows=64, scan_states=2,
    narrow_weights=1, axi_bytes=8,
)  # fmt: skip


@pytest.mark.xdist_group("window 8x12")
@pytest.mark.parametrize("form", [maker.scored, maker.evit], ids=["linear score", "class attention"])
def test_token_dropping(form, tmp_path, climb):
    graph = import_model(maker.write(tmp_path / "m.onnx", form))
    images = np.random.default_rng(1).standard_normal((18, *maker.IMAGE)).astype(np.float32)
    integer = integers({"": graph}, {"image": images[2:]})
    climb(integer, CONFIG, "", [{"image": image} for image in images[:2]], stall=60)


@pytest.mark.xdist_group("window 8x12")
@pytest.mark.parametrize("form", [chosen.merged, chosen.regions, chosen.clusters, chosen.masked], ids=lambda f: f.__name__)
def test_choices(form, tmp_path, climb):
    """Merged tokens, routed windows, a centre for each token, masks: of an image as it comes, and of one without anything."""
    graph = import_model(chosen.write(tmp_path / "m.onnx", form))
    images = np.random.default_rng(1).standard_normal((17, *maker.IMAGE)).astype(np.float32)
    integer = integers({"": graph}, {"image": images[1:]})
    climb(integer, CONFIG, "", [{"image": images[0]}, {"image": np.zeros_like(images[0])}])
