"""Quantisation: float graphs of one network's tasks -> integer graphs, by calibration data."""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from ..graph import Add, Experts, Graph, Linear
from ..intgraph import IntGraph
from .calibrate import check_images, limited, noise, observe
from .lower import lower, stream_scale
from .options import Quantisation, unmatched
from .plan import describe, plan, product_side
from .scales import ScaleTooSmall
from .shared import merge

__all__ = ["Quantisation", "quantise"]
MOST_TRIES = 100  # of a step for the residual stream: a product of the stream itself may ask for a larger one each time


def quantise(
    graphs: dict[str, Graph], images: dict[str, np.ndarray] | None, options: Quantisation | None = None
) -> dict[str, IntGraph]:
    """Integer graphs by task; layers that tasks share get the same integers.

    `graphs` by task name; `images`: ONNX input name -> [n, C, H, W], other arrays are ignored; None calibrates with
    seeded noise, after which accuracy is not to be trusted, unless the files are quantised and bring their scales.
    Raises UserError where an input's array is missing or has the wrong shape, and where the network holds something
    that the machine cannot do, or `options` name a layer that it has not.
    """
    options = options or Quantisation()
    check_names(graphs, options)
    stats = {}
    for task, graph in graphs.items():
        data = images
        if data is None:
            data = {name: noise(shape, graph.ranges.get(name)) for name, shape in graph.inputs.items()}
        stats[task] = limited(graph, observe(graph, check_images(graph, data), options.calibration), images is not None)
    stats = merge(graphs, stats)
    scale = max(stream_scale(graph, stats[task]) for task, graph in graphs.items())
    for _ in range(MOST_TRIES):
        try:
            return {task: lower(graph, stats[task], scale, task, options) for task, graph in graphs.items()}
        except ScaleTooSmall as error:
            fault, scale = error, error.scale * (1 + 1e-9)
    raise UserError(f"{describe(fault.node)}: its weights are too large for the residual stream")


def check_names(graphs: dict[str, Graph], options: Quantisation) -> None:
    """Raise UserError for a pattern in the options that fits no layer to which it could apply."""
    linear: set[str] = set()
    experts: set[str] = set()
    for graph in graphs.values():
        known = plan(graph)
        for node in known.nodes.values():
            made = known.nodes[product_side(known.nodes, node)[0]] if isinstance(node, Add) else node
            if isinstance(made, Experts):
                experts.update((node.name, made.name))
            elif isinstance(made, Linear) and node.name in known.alone:
                linear.add(node.name)
    for field, names, what in (
        ("wide", linear, "linear layer whose result is stored or added"),
        ("narrow_experts", experts, "layer of experts"),
    ):
        for pattern in unmatched(getattr(options, field), names):
            some = f", for example {min(names)!r}" if names else ""
            raise UserError(f"--set {field}={getattr(options, field)}: {pattern!r} is no {what}{some}")
