"""Which layers have weights of fewer bits, and what these are.

Linear layers and experts whose int8 matrices are known take others on coarser grids (`feedback`), which level Q holds as int8
as before: the memory image finds the grids and stores them in fewer bits. Layers that tasks share stay the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..isa import Convert
from ..numerics import ACC_MAX, INT8_MAX, NARROW_BITS
from .calibrate import Stats
from .feedback import narrowed
from .legal import is_identity
from .options import INT8_BITS, Quantisation, check_patterns
from .sensitive import TRIED, Network
from .shared import signatures

Array = np.ndarray
Key = TypeVar("Key", bound=Hashable)
HIGH = ".high"  # behind the name of a layer, of the product of the high bytes where its operands have 16 bits
ROWS = 4096  # of a layer's input in an image that are looked at, at most
EVERY, OTHERS = 0.005, 8  # of a token's weight: what experts learn of every so manyth token of others, for want of their own
FEW = 3  # images by which the loss of a layer is estimated
AS_TRIED = 5  # bits of the estimate
A_BIT = 3.2  # times the noise power: 5 dB, less than 6 as groups of small numbers lose nothing to int8's own steps
LOSS = 0.12  # of the noise that the network has with int8 weights: 0.5 dB, by estimates that are cautious


@dataclass(frozen=True)
class _Use:
    """Where a layer stands: node of the float graph of a task, and of level Q."""

    task: str
    node: fg.Linear | fg.Experts
    made: q.Product | q.Experts


@dataclass(eq=False)
class _Layer:
    """A layer wherever it stands: its int8 matrices, and the inputs of each, with the weight of every row."""

    matrices: list[Array]
    uses: list[_Use] = field(default_factory=list)
    inputs: list[list[tuple[Array, Array]]] = field(default_factory=list)
    made: dict[int, list[Array]] = field(default_factory=dict)

    def narrow(self, bits: int) -> list[Array]:
        """Its matrices in codes of so many bits; with 8 as they are."""
        if bits == INT8_BITS:
            return self.matrices
        if bits not in self.made:
            self.made[bits] = [_safe(w, narrowed(w, _moments(x), bits)) for w, x in zip(self.matrices, self.inputs, strict=True)]
        return self.made[bits]


def _moments(inputs: list[tuple[Array, Array]]) -> Array:
    """Mean of x.T @ x over weighted rows."""
    total = sum((x * weight[:, None]).T @ x for x, weight in inputs)
    return np.asarray(total, np.float64) / max(sum(float(weight.sum()) for _, weight in inputs), 1e-30)


def _safe(old: Array, new: Array) -> Array:
    """The new weights, unless a sum of them could leave the accumulator."""
    return new if int(np.abs(new.astype(np.int64)).sum(axis=1).max()) * INT8_MAX <= ACC_MAX else old


def narrow(
    graphs: dict[str, fg.Graph],
    lowered: dict[str, q.QGraph],
    stats: dict[str, Stats],
    images: dict[str, dict[str, Array]],
    options: Quantisation,
) -> dict[str, q.QGraph]:
    """The level-Q graphs with weights as `options.weights` says; `images` for calibration, by task.

    Raises UserError where a pattern in the options fits no layer that may have narrow weights.
    """
    if options.plain_weights:
        return lowered
    layers = _layers(graphs, lowered)
    every = {name for layer in layers.values() for name in _names(layer)}
    what = "linear layer or layer of experts whose weights can be narrow"
    check_patterns(f"weights={options.weights}", [pattern for pattern, _ in options.bits_by_layer if pattern], every, what)
    asked = {key: options.bits_of(_names(layer)) for key, layer in layers.items()}
    layers = {key: layer for key, layer in layers.items() if asked[key] != INT8_BITS}
    if not layers:
        return lowered
    _observe(graphs, lowered, layers, images)
    free = {key: layer for key, layer in layers.items() if not asked[key]}
    chosen = asked | _chosen(graphs, lowered, free, stats, images)
    changed: dict[tuple[str, str], q.Node] = {}
    for key, layer in layers.items():
        new = layer.narrow(chosen[key])
        changed |= {(use.task, use.made.name): _with(use.made, new) for use in layer.uses}
    return {
        task: replace(graph, nodes=[changed.get((task, node.name), node) for node in graph.nodes])
        for task, graph in lowered.items()
    }


def _names(layer: _Layer) -> set[str]:
    """What a layer may be called in the options."""
    return {name for use in layer.uses for name in (use.node.name, use.made.name)}


def _layers(graphs: dict[str, fg.Graph], lowered: dict[str, q.QGraph]) -> dict[object, _Layer]:
    """Linear layers that stand in one product with all their inputs, and experts; equal ones of all tasks as one.

    Not routers: a token that goes to another expert is worse than what any weight loses.
    """
    found: dict[object, _Layer] = {}
    for task, graph in graphs.items():
        keys, nodes = signatures(graph), {node.name: node for node in graph.nodes}
        routers = {node.logits for node in graph.nodes if isinstance(node, fg.Route)}
        split = {made.layer.removesuffix(HIGH) for made in lowered[task].nodes if made.layer.endswith(HIGH)}
        for made in lowered[task].nodes:
            node = nodes.get(made.layer)
            matrices = _matrices(node, made)
            if matrices and made.layer not in split | routers and np.ndim(lowered[task].values[made.x.value].scale) < 2:
                key = keys[made.layer], tuple(hashlib.sha256(w.tobytes()).digest() for w in matrices)
                found.setdefault(key, _Layer(matrices)).uses.append(_Use(task, node, made))
    return found


def _matrices(node: fg.Node | None, made: q.Node) -> list[Array]:
    """The int8 matrices [N, K] that the node of level Q has of the layer: of each expert the first, then the second; or none."""
    match node, made:
        case fg.Linear(), q.Product(convert=Convert.ROW, walk=None):
            same = isinstance(made.matrix.w, np.ndarray) and made.matrix.w.shape == node.weight.shape
            return [made.matrix.w] if same and not is_identity(node) else []
        case fg.Experts(), q.Experts():
            return [m.w for pair in zip(made.first, made.second, strict=True) for m in pair if m is not None]
    return []


def _with(made: q.Node, matrices: list[Array]) -> q.Node:
    """The node with other matrices."""
    if isinstance(made, q.Product):
        return replace(made, matrix=replace(made.matrix, w=matrices[0]))
    left = iter(matrices)
    first, second = [], []
    for one, other in zip(made.first, made.second, strict=True):
        first.append(replace(one, w=next(left)))
        second.append(None if other is None else replace(other, w=next(left)))
    return replace(made, first=tuple(first), second=tuple(second))


# --- inputs --------------------------------------------------------------------------------------------------------------


def _observe(
    graphs: dict[str, fg.Graph],
    lowered: dict[str, q.QGraph],
    layers: dict[object, _Layer],
    images: dict[str, dict[str, Array]],
) -> None:
    """Fill in the inputs of the layers' matrices."""
    for layer in layers.values():
        layer.inputs = [[] for _ in layer.matrices]
    for task, graph in graphs.items():
        here = [(layer, use) for layer in layers.values() for use in layer.uses if use.task == task]
        count = len(next(iter(images[task].values()))) if here else 0
        for i in range(count):
            values = fg.evaluate(graph, {name: images[task][name][i] for name in graph.inputs})
            for layer, use in here:
                held = lowered[task].values[use.made.x.value]
                x = values[use.node.x]
                x = x[:: -(-len(x) // ROWS)]
                steps = ((x - (0.0 if held.offset is None else held.offset)) / held.scale).astype(np.float32)
                if isinstance(use.node, fg.Linear):
                    layer.inputs[0].append((steps, np.ones(len(x), np.float32)))
                else:
                    _observe_experts(layer, use, x, steps, values[use.node.routing], len(values[use.node.x]))


def _observe_experts(layer: _Layer, use: _Use, x: Array, steps: Array, routing: tuple[Array, Array], rows: int) -> None:
    """Tokens weigh as much as the square of their gate score, and next to nothing with experts that others chose."""
    node, every = use.node, -(-rows // ROWS)
    experts, gates = (part[::every] for part in routing)
    at = iter(layer.inputs)
    for e in range(len(node.w1)):
        weight = (np.square(gates, dtype=np.float32) * (experts == e)).sum(axis=1)
        some = (weight > 0) | (np.arange(len(weight)) % OTHERS == 0)
        weight = weight[some] + EVERY
        next(at).append((steps[some], weight))
        if use.made.second[e] is not None:
            hidden = x[some] @ node.w1[e].T + (0.0 if node.b1 is None else node.b1[e])
            next(at).append((fg.FORMS[node.form](hidden, node.slope).astype(np.float32), weight))


# --- choice --------------------------------------------------------------------------------------------------------------


def _chosen(
    graphs: dict[str, fg.Graph],
    lowered: dict[str, q.QGraph],
    layers: dict[object, _Layer],
    stats: dict[str, Stats],
    images: dict[str, dict[str, Array]],
) -> dict[object, int]:
    """Bits of the weights of each layer such that the outputs lose LOSS at most, by an estimate on calibration images.

    Noise powers add up, nearly: bits are taken where a byte less costs the outputs least.
    """
    if not layers or len(layers) * max(len(graph.nodes) for graph in graphs.values()) > TRIED:
        return dict.fromkeys(layers, INT8_BITS)
    loss = dict.fromkeys(layers, 0.0)
    for task, graph in graphs.items():
        network = Network(graph, stats[task], images[task])
        kept = network.kept({node.name for node in graph.nodes}, FEW)
        for key, layer in layers.items():
            own = {}
            for use in layer.uses:
                if use.task == task:
                    scale = lowered[task].values[use.made.x.value].scale
                    own[use.node.name] = _float(use.node, scale, layer.matrices, layer.narrow(AS_TRIED))
            loss[key] = max(loss[key], network.noise(own, FEW) * 10 ** (kept / 10))
    return fewest_bits(loss, {key: sum(w.size for w in layer.matrices) for key, layer in layers.items()})


def fewest_bits(loss: Mapping[Key, float], sizes: Mapping[Key, int]) -> dict[Key, int]:
    """Bits of the weights of each layer: where a byte less costs least they are taken first, until LOSS is reached.

    loss: of the outputs, in parts of their noise, where this layer alone has AS_TRIED bits. sizes: weights.
    """
    bits, room = dict.fromkeys(loss, INT8_BITS), LOSS
    steps = []
    for key in loss:
        before, at = 0.0, INT8_BITS
        for fewer in sorted(NARROW_BITS, reverse=True):
            lost = loss[key] * A_BIT ** (AS_TRIED - fewer)
            steps.append(((lost - before) / (sizes[key] * (at - fewer)), len(steps), key, fewer, lost - before))
            before, at = lost, fewer
    stopped = set()
    for _, _, key, fewer, more in sorted(steps, key=lambda step: step[:2]):
        if key not in stopped and more <= room:
            bits[key], room = fewer, room - more
        else:
            stopped.add(key)
    return bits


def _float(node: fg.Linear | fg.Experts, scale: float | Array, old: list[Array], new: list[Array]) -> fg.Node:
    """The float layer with what new int8 weights change; `scale`: of its input."""
    if isinstance(node, fg.Linear):
        return replace(node, weight=_moved(node.weight, scale, old[0], new[0]))
    w1, w2, left = node.w1.copy(), node.w2.copy(), iter(zip(old, new, strict=True))
    for e in range(len(w1)):
        w1[e] = _moved(w1[e], scale, *next(left))
        if np.any(w2[e]):
            w2[e] = _moved(w2[e], 1.0, *next(left))
    return replace(node, w1=w1, w2=w2)


def _moved(weight: Array, scale: float | Array, old: Array, new: Array) -> Array:
    """Float weights [N, K] with the difference of their int8 ones, whose step is what fits them best."""
    whole = old.astype(np.float64)
    step = (weight * scale * whole).sum(axis=1) / np.maximum(np.square(whole).sum(axis=1), 1e-30)
    return (weight + (new - whole) * step[:, None] / scale).astype(weight.dtype)
