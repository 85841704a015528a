"""A thousand images in a row: every answer right, buffers and memory flat."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from itertools import cycle

import numpy as np
import pytest

from hwgen import boards, registers
from hwgen.config import Config
from hwgen.dram import UNLIMITED
from hwgen.host.accelerator import Accelerator
from hwgen.host.bundle import Bundle
from hwgen.host.errors import InputError
from hwgen.intgraph import IntGraph
from hwgen.mapping import choose, mapped
from hwgen.program import write_bundle
from hwgen.sim import golden
from hwgen.sim.device import open_device
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

CONFIG = Config(
    array_outputs=8, array_inputs=8, banks=2, acc_rows=32, bank_words=512, scale_entries=512, queue_entries=64,
    norm_columns=64, weight_words=64, weight_ports=1, max_experts=8,
)  # fmt: skip
SHAPE = Shape(patches=(2, 2), patch=(1, 2), heads=1, head=12, layers=1, hidden=16, experts=3, top_k=2, classes=3)
IMAGES, DIFFERENT, TRACED = 1000, 7, 750
GROWTH = 200 * 128  # bytes of Python objects that 200 images may leave: NumPy keeps some tens of bytes an image, a run kilobytes
RESIDENT_GROWTH = 8 << 20  # bytes of the process; what the tracing itself takes is in it


def make(path, batch: int = 1) -> tuple[IntGraph, Bundle]:
    """Graph and bundle of a small random network; the bundle holds neither Verilog nor report."""
    graph = random_graph(5, SHAPE)
    program = mapped({"": graph}, CONFIG, choose({"": graph}, CONFIG, UNLIMITED, batch).mapping, batch)
    files = {boards.BOARD_FILE: boards.to_json(boards.load("zcu104"))}
    write_bundle(path / "b", program, models=[], board="zcu104", registers=registers.manifest(CONFIG), files=files)
    return graph, Bundle(path / "b")


def test_thousand_images(tmp_path):
    graph, bundle = make(tmp_path)
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


def test_batches(tmp_path):
    """A program that takes three images a run: eight images are three runs, the last one short."""
    graph, bundle = make(tmp_path, batch=3)
    assert bundle.batch == 3
    pool = [random_images(graph, seed) for seed in range(8)]
    images = {name: np.stack([image[name] for image in pool]) for name in pool[0]}
    with Accelerator(bundle, open_device(bundle, "machine"), say=None) as accelerator:
        jobs = list(accelerator.stream(images))
        found = accelerator(images)
        with pytest.raises(InputError, match="4 images in one run; the bundle's program takes 3"):
            accelerator.submit({name: array[:4] for name, array in images.items()})
    assert [job.count for job in jobs] == [3, 3, 2]
    for i, image in enumerate(pool):
        for name, values in golden.run(graph, image).outputs.items():
            np.testing.assert_array_equal(found[name][i], values)
            np.testing.assert_array_equal(jobs[i // 3].outputs[name][i % 3], values)
