"""Level Q -> level M: every node becomes operations of the machine on virtual buffers (`hwgen.intgraph`).

Decided here: which buffer a value lies in (where a sum may take the place of its operand), which rows keep their maxima for
a conversion, what is copied for that, how heads and experts take turns. No number of level Q changes.
"""

from __future__ import annotations

import numpy as np

from ..graph import Graph
from ..intgraph import IntGraph, Output
from ..intgraph_checks import verify
from ..qgraph import QGraph
from ..quantise import Quantisation, quantise
from .nodes import Selection

__all__ = ["integers", "select"]


def integers(
    graphs: dict[str, Graph], images: dict[str, np.ndarray] | None, options: Quantisation | None = None
) -> dict[str, IntGraph]:
    """Machine graphs by task of what `hwgen.quantise` makes of float graphs; arguments and errors are those of `quantise`."""
    return {task: select(graph) for task, graph in quantise(graphs, images, options).items()}


def select(graph: QGraph) -> IntGraph:
    """The verified machine graph of a level-Q graph."""
    s = Selection(graph)
    for i, node in enumerate(graph.nodes):
        s.select(node, i)
    outputs = [
        Output(o.name, s.view(o.x), float(graph.values[o.x.value].scale), tuple(o.shape), o.transposed) for o in graph.outputs
    ]
    traced = {name: ref for name, ref in graph.trace.items() if ref.value in s.done}
    trace = {name: (s.view(ref, done=True), s.done[ref.value][1]) for name, ref in traced.items()}
    held = {name: graph.values[ref.value].offset for name, ref in traced.items()}
    offsets = {name: np.asarray(offset) for name, offset in held.items() if offset is not None}
    found = IntGraph(s.buffers, s.ops, outputs, graph.task, trace, offsets)
    verify(found)
    return found
