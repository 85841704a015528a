"""Which nodes of one or several graphs are the same layer, by their constants: those are calibrated together.

Tasks share layers, and a graph with two task heads holds some layers twice. If all uses of a layer have the same
statistics they get the same integers, so the weights need to be stored only once.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .. import graph as fg
from .calibrate import Range, Stats


def signatures(graph: fg.Graph) -> dict[str, str]:
    """For each node a text that is equal for the same layer wherever it stands, and hardly ever for another.

    A layer is told by its constants, a LayerNorm also by the layers that read it (untrained ones all look alike), a
    node without constants by the nodes it reads, as is one that only copies, scales or resamples: those are all alike.
    Routers are left out: a task's own gate must not part what tasks share.
    """
    found: dict[str, str] = {name: name for name in graph.inputs}
    shapes = fg.shapes(graph)
    routers = {node.logits for node in graph.nodes if isinstance(node, fg.Route)}
    for node in graph.nodes:
        operands = [found[name] for name in node.inputs]
        if isinstance(node, fg.PatchEmbed | fg.Linear | fg.Embed | fg.Experts | fg.Conv) and not _moves(node):
            operands = []
        columns = str(shapes[node.name][1])  # of a transposed value, or a product of two: as many as one had rows
        found[node.name] = _digest(type(node).__name__, columns, *operands, *_constants(node))
    for node in graph.nodes:
        if isinstance(node, fg.LayerNorm):
            readers = {found[user.name] for user in graph.users(node.name) if user.name not in routers}
            found[node.name] = _digest("LayerNorm", *_constants(node), *sorted(readers))
    return found


def _moves(node: fg.Node) -> bool:
    """Whether a linear layer has weights that nobody trained: few for each output, as copies and gains have."""
    if not isinstance(node, fg.Linear):
        return False
    return int(np.count_nonzero(node.weight, axis=1).max(initial=0)) <= max(1, node.weight.shape[1] // 4)


def _constants(node: fg.Node) -> list[str]:
    parts = []
    for name, constant in node.parameters.items():
        if isinstance(constant, np.ndarray):
            data = np.ascontiguousarray(constant, np.float32)
            parts.append(f"{name}{data.shape}{hashlib.sha256(data.tobytes()).hexdigest()}")
        else:
            parts.append(f"{name}={constant}")
    return parts


def _digest(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def merge(graphs: dict[str, fg.Graph], stats: dict[str, Stats]) -> dict[str, Stats]:
    """The statistics by task, with those of equal nodes (and of equally named inputs) merged."""
    keys = {task: signatures(graph) for task, graph in graphs.items()}
    values: dict[str, Range] = {}
    chosen: dict[str, Range] = {}
    load: dict[str, np.ndarray] = {}
    covered: dict[str, np.ndarray] = {}
    scores: dict[str, np.ndarray] = {}
    peaks: dict[str, dict[str, float]] = {"hidden": {}, "below": {}, "above": {}}
    for task, s in stats.items():
        for merged, part in ((values, s.values), (chosen, s.chosen)):
            for name, seen in part.items():
                key = keys[task][name]
                merged[key] = merged[key].merge(seen) if key in merged else seen
        for name, part in s.load.items():
            key = keys[task][name]
            load[key] = part + load.get(key, 0)
        for most, arrays in ((covered, s.covered), (scores, s.scores)):
            for name, part in arrays.items():
                key = keys[task][name]
                most[key] = np.maximum(part, most.get(key, 0.0))
        for kind, largest in peaks.items():
            for name, peak in getattr(s, kind).items():
                key = keys[task][name]
                largest[key] = max(peak, largest.get(key, 0.0))
    every = {"values": values, "chosen": chosen, "load": load, "covered": covered, "scores": scores, **peaks}
    return {
        task: Stats(**{kind: {name: found[keys[task][name]] for name in getattr(s, kind)} for kind, found in every.items()})
        for task, s in stats.items()
    }
