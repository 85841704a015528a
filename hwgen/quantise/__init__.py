"""Quantisation: float graphs of one network's tasks -> integer graphs, by calibration data."""

from __future__ import annotations

import numpy as np

from ..graph import Graph
from ..intgraph import IntGraph
from .calibrate import check_images, limited, noise, observe
from .lower import lower, stream_scale
from .scales import ScaleTooSmall
from .shared import merge

__all__ = ["quantise"]


def quantise(graphs: dict[str, Graph], images: dict[str, np.ndarray] | None) -> dict[str, IntGraph]:
    """Integer graphs by task; layers that tasks share get the same integers.

    `graphs` by task name; `images`: ONNX input name -> [n, C, H, W], other arrays are ignored; None calibrates with
    seeded noise, after which accuracy is not to be trusted, unless the files are quantised and bring their scales.
    Raises UserError where an input's array is missing or has the wrong shape, and where the network holds something
    that the machine cannot do.
    """
    stats = {}
    for task, graph in graphs.items():
        data = images
        if data is None:
            data = {name: noise(shape, graph.ranges.get(name)) for name, shape in graph.inputs.items()}
        stats[task] = limited(graph, observe(graph, check_images(graph, data)), images is not None)
    stats = merge(graphs, stats)
    scale = max(stream_scale(graph, stats[task]) for task, graph in graphs.items())
    while True:
        try:
            return {task: lower(graph, stats[task], scale, task) for task, graph in graphs.items()}
        except ScaleTooSmall as error:
            scale = error.scale * (1 + 1e-9)
