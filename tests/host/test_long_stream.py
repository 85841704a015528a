"""A thousand images in a row: every answer right, buffers and memory flat."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from itertools import cycle

import numpy as np
import pytest

from host.accelerator import Accelerator
from host.bundle import Bundle
from hwgen import registers
from hwgen.config import Config
from hwgen.program import write_bundle
from hwgen.schedule import schedule
from sim import golden
from sim.device import open_device
from sim.tb.graphs import Shape, random_graph, random_images

CONFIG = Config(
    array_outputs=8, array_inputs=8, banks=2, acc_rows=32, bank_words=512, scale_entries=512, queue_entries=64,
    norm_columns=64, weight_words=64, weight_ports=1, max_experts=8,
)  # fmt: skip
SHAPE = Shape(patches=(2, 2), patch=(1, 2), heads=1, head=12, layers=1, hidden=16, experts=3, top_k=2, classes=3)
IMAGES, DIFFERENT, TRACED = 1000, 7, 750
GROWTH = 8 * 1024  # bytes of Python objects that 200 images may leave behind
RESIDENT_GROWTH = 8 << 20  # bytes of the process; what the tracing itself takes is in it


@pytest.fixture
def bundle(tmp_path):
    graphs = {"": random_graph(5, SHAPE)}
    program = schedule(graphs, CONFIG)
    write_bundle(tmp_path / "b", program, models=[], board="zcu104", registers=registers.manifest(CONFIG))
    return graphs[""], Bundle(tmp_path / "b")


def test_thousand_images(bundle):
    graph, bundle = bundle
    pool = [random_images(graph, seed) for seed in range(DIFFERENT)]
    expected = [golden.run(graph, image).outputs for image in pool]
    order = [i for i, _ in zip(cycle(range(DIFFERENT)), range(IMAGES), strict=False)]
    images = {name: np.stack([pool[i][name] for i in order]) for name in pool[0]}
    device = open_device(bundle, "machine")
    with Accelerator(bundle, device, say=None) as accelerator:
        allocated, sizes, resident = device.allocated, [], []
        try:
            for at, (job, i) in enumerate(zip(accelerator.stream(images), order, strict=True), 1):
                for name, values in expected[i].items():
                    np.testing.assert_array_equal(job.outputs[name][0], values)
                assert device.allocated == allocated
                if at == TRACED:  # not from the start: it doubles the time
                    tracemalloc.start()
                if at in (TRACED + 50, IMAGES):
                    gc.collect()
                    sizes.append(tracemalloc.get_traced_memory()[0])
                if at in (50, IMAGES):
                    resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        finally:
            tracemalloc.stop()
    assert sizes[1] - sizes[0] < GROWTH
    assert resident[1] - resident[0] < RESIDENT_GROWTH
    assert device.allocated == 0


def test_groups_of_images(bundle):
    """A program that takes several images: `stream` groups them; the last group may be short."""
    _, bundle = bundle
    bundle.manifest["batch"] = 3
    sizes = []

    class Recording:
        """Stands where the accelerator submits; answers with what it was given."""

        def __init__(self, arrays, task):
            self.count = len(next(iter(arrays.values())))
            sizes.append(self.count)
            self.outputs = {"y": np.full((self.count, 1), len(sizes))}

        def wait(self):
            return self

        def abandon(self):
            pass

    with Accelerator(bundle, open_device(bundle, "machine"), say=None) as accelerator:
        accelerator._submit = Recording
        image = next(iter(random_images(random_graph(5, SHAPE), 1).values()))
        assert [job.count for job in accelerator.stream(np.stack([image] * 8))] == sizes == [3, 3, 2]
