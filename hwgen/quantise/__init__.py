"""Quantisation: float graphs of one network's tasks -> level Q, by calibration data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..graph import Add, Graph, Linear, shapes
from ..qgraph import QGraph
from .calibrate import check_images, limited, noise, observe
from .legal import Legal, legal
from .lower import lower
from .narrow import narrow
from .options import Quantisation, check_patterns, patterns_of
from .plan import Plan, int8_only, plan, product_side
from .sensitive import wide_layers
from .shared import merge, signatures
from .streams import shared_scales

__all__ = ["Quantisation", "calibrated", "fresh_noise", "integers", "quantise"]

UNSEEN = 7, 8  # seeds of the noise by which layers are found that need more than int8


def quantise(
    graphs: dict[str, Graph], images: dict[str, np.ndarray] | None, options: Quantisation | None = None
) -> dict[str, QGraph]:
    """Level-Q graphs by task; layers that tasks share get the same integers.

    `graphs` by task name; `images`: ONNX input name -> [n, C, H, W], other arrays are ignored; None calibrates with
    seeded noise, after which accuracy is not to be trusted, unless the files are quantised and bring their scales.
    Raises UserError where an input's array is missing or has the wrong shape, and where the network holds something
    that the machine cannot do, or `options` name a layer that it has not.
    """
    options = options or Quantisation()
    return integers(calibrated(graphs, images, options), options)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What `quantise` knows of each task before it chooses integers: legal graphs with what images show, plans with their scales,
    the layers' signatures, and the images by which losses are judged."""

    forms: dict[str, Legal]
    plans: dict[str, Plan]
    keys: dict[str, dict[str, str]]
    given: dict[str, dict[str, np.ndarray]]


def calibrated(graphs: dict[str, Graph], images: dict[str, np.ndarray] | None, options: Quantisation) -> Calibrated:
    """As `quantise` begins; `min_snr` and `weights` of the options do not matter yet."""
    stats = {}
    for task, graph in graphs.items():
        data = images
        if data is None:
            data = {name: noise(shape, graph.ranges.get(name)) for name, shape in graph.inputs.items()}
        seen = observe(graph, check_images(graph, data), options.calibration)
        if images is None:  # noise does not tell which experts are popular
            seen = replace(seen, load={})
        stats[task] = limited(graph, seen, images is not None)
    stats = merge(graphs, stats)
    forms = {task: legal(graph, stats[task], images is not None) for task, graph in graphs.items()}
    plans = {task: plan(form.graph) for task, form in forms.items()}
    check_names(plans, options)
    graphs, stats = ({task: getattr(form, part) for task, form in forms.items()} for part in ("graph", "stats"))
    chosen = shared_scales(graphs, plans, stats)
    plans = {task: replace(known, scales=chosen[task]) for task, known in plans.items()}
    keys = {task: signatures(graph) for task, graph in graphs.items()}
    given = {task: fresh_noise(graph) if images is None else images for task, graph in graphs.items()}
    return Calibrated(forms, plans, keys, given)


def integers(known: Calibrated, options: Quantisation) -> dict[str, QGraph]:
    """Level-Q graphs by task of what is calibrated, with as many layers of 16 bits and of narrow weights as the options ask."""
    graphs, stats = ({task: getattr(form, part) for task, form in known.forms.items()} for part in ("graph", "stats"))
    wide = set()
    for task, graph in graphs.items():
        fused = int8_only(known.plans[task], shapes(graph))
        wide |= {known.keys[task][name] for name in wide_layers(graph, stats[task], known.given[task], fused, options.min_snr)}
    lowered = {}
    for task in graphs:
        names = {name for name, key in known.keys[task].items() if key in wide}
        lowered[task] = lower(known.forms[task], known.plans[task], task, options, names)
    return narrow(graphs, lowered, stats, known.given, options)


def fresh_noise(graph: Graph) -> dict[str, np.ndarray]:
    """Noise other than that which ranges were seen on."""
    drawn = ({n: noise(shape, graph.ranges.get(n), seed) for n, shape in graph.inputs.items()} for seed in UNSEEN)
    return {n: np.concatenate(parts) for n, *parts in zip(graph.inputs, *(d.values() for d in drawn), strict=True)}


def check_names(plans: dict[str, Plan], options: Quantisation) -> None:
    """Raise UserError for a pattern in the options that fits no layer to which it could apply."""
    linear: set[str] = set()
    for known in plans.values():
        for node in known.nodes.values():
            made = known.nodes[(product_side(known.nodes, node) or (node.b,))[0]] if isinstance(node, Add) else node
            if isinstance(made, Linear) and node.name in known.alone:
                linear.add(node.name)
    what = "linear layer whose result is stored or added"
    check_patterns(f"wide={options.wide}", patterns_of(options.wide), linear, what)
