"""The reference workload at full size, in RTL on the zcu104 Config: minutes of compiling, so marked slow."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen import boards
from hwgen.levels import import_model
from hwgen.mapping import Mapping
from hwgen.select import integers

pytestmark = pytest.mark.slow


def test_m3vit_edge_both_tasks_on_zcu104(models, climb):
    """Real weights and routing: golden = machine = RTL; switching task moves only what the routing of the task asks for."""
    paths = {f"task{i}": models / f"m3vit_edge_task{i}.onnx" for i in range(2)}
    with np.load(models / "edge_images.npz") as file:
        calib, test = (file[name].astype(np.float32) / 256 for name in ("calib", "test"))
    graphs = integers({task: import_model(path, confirmed=False) for task, path in paths.items()}, {"image": calib})
    for task in graphs:
        config, images = boards.load("zcu104").make_config(), [{"image": test[0]}]
        ladder = climb(graphs, config, task, images, mapping=Mapping(row_tiles=2))  # what the search chooses
        assert 250_000 < ladder.rtl[0].cycles < 550_000
