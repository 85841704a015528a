"""Which layers read and weigh with more than int8: those whose rounding the outputs hear too much of, by calibration images.

An estimate in float: what a layer multiplies is rounded as lowering will round it, everything else is exact. A network
whose outputs keep enough (`min_snr` of the options) is left as it is, and so is one to which wide layers do not bring WORTH:
where softmax has to tell nearly equal scores of some hundreds apart, noise of a thousandth of an image is enough to change
the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .. import graph as fg
from ..numerics import INT8_MAX
from .builder import static_room
from .calibrate import Stats, centre
from .legal import is_identity

Array = np.ndarray
Layer = fg.Conv | fg.PatchEmbed | fg.Linear
Make = Callable[[fg.Node, dict[str, Array]], tuple[fg.Node, dict[str, Array]]]
MORE = 8.0  # dB that wide layers are to reach beyond what is the least
CLOSE = 0.25  # of the noise that no wide layer helps against, which int8 layers may add beyond that
WORTH = 3.0  # dB
TRIED = 100_000  # layers times nodes of the network, beyond which trying each by itself takes minutes: neighbours go together
SURE = 3.0  # dB more, with which FEW images tell that it is enough
MOST, FEW = 8, 2  # images that are tried: with many layers rounded, with one


def wide_layers(graph: fg.Graph, stats: Stats, images: dict[str, Array], fused: set[str], least: float) -> set[str]:
    """Layers of the graph that are to have both operands in 16 bits, and attentions whose queries and keys are to, and what
    these are made of.

    `fused`: layers that only int8 can be. `least`: dB of the worst output, below which layers are made wide; never with 0.
    """
    if not least:
        return set()
    network = Network(graph, stats, images)
    free = [n.name for n in graph.nodes if isinstance(n, Layer | fg.Attention) and n.name not in fused and not is_identity(n)]
    every = {n.name for n in graph.nodes}
    if not free or network.kept(every, FEW) >= least + SURE:
        return set()
    if (now := network.kept(every)) >= least:
        return set()
    best = network.kept(every - set(free))
    if best < now + WORTH:
        return set()
    # Noise powers add up, nearly: the layers that stay in int8 are those of the least, as many as leave what is
    # wanted, or else nearly what the best leaves.
    left, lowest = (10 ** (-db / 10) for db in (least + MORE, best))
    room = max(left - lowest, lowest * CLOSE)
    tried = min(len(free), max(TRIED // len(every), 1))
    groups = [free[len(free) * i // tried : len(free) * (i + 1) // tried] for i in range(tried)]
    names = [set(group).union(*(network.sides.get(name, set()) for name in group)) for group in groups]
    loss = np.array([10 ** (-network.kept(group, FEW) / 10) for group in names])
    order = np.argsort(loss, kind="stable")
    return {name for i in order[int(np.searchsorted(np.cumsum(loss[order]), room)) :] for name in groups[i]}


class Network:
    """A float graph whose layers round what they multiply, or not."""

    def __init__(self, graph: fg.Graph, stats: Stats, images: dict[str, Array]):
        self.graph, self.stats, self.rounded = graph, stats, {}
        count = min(MOST, len(next(iter(images.values()))))
        self.images = [{name: images[name][i] for name in graph.inputs} for i in range(count)]
        self.values: list[dict[str, Array]] = []
        self.sides = {n.name: self._sides(n) for n in graph.nodes if isinstance(n, fg.Attention)}

    def kept(self, names: set[str], images: int = MOST) -> float:
        """Signal to noise of the worst output, in dB, if the nodes of these names round what they multiply: queries and keys
        only where their attention does."""
        names = names - {side for name, sides in self.sides.items() if name not in names for side in sides}

        def rounding(node: fg.Node, values: dict[str, Array]) -> tuple[fg.Node, dict[str, Array]]:
            return self._rounding(node, values) if node.name in names else (node, {})

        first = {n.name for n in self.graph.nodes if n.name in names and isinstance(n, Layer | fg.Attention | fg.Window)}
        powers = self._powers(first, rounding, images)
        return min(10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30))) for signal, noise in powers)

    def _sides(self, node: fg.Attention) -> set[str]:
        """The layers that make queries and keys for this attention alone."""
        made, found = {n.name: n for n in self.graph.nodes}, set()
        for name in {node.q, node.k} - {node.v}:
            while isinstance(at := made.get(name), fg.Rotate | fg.LayerNorm) and len(self.graph.users(name)) == 1:
                name = at.x
            if isinstance(at, fg.Linear) and len(self.graph.users(name)) == 1:
                found.add(name)
        return found

    def noise(self, changed: dict[str, fg.Node], images: int = MOST) -> float:
        """Noise of the worst output, as a share of its power, with these nodes in the place of those of their names."""
        powers = self._powers(set(changed), lambda node, _: (changed.get(node.name, node), {}), images)
        return max(noise / max(signal, 1e-30) for signal, noise in powers)

    def _powers(self, first: set[str], make: Make, images: int) -> list[tuple[float, float]]:
        """(signal, noise) of each output if `make` gives the nodes and operands of those that are `first` to differ and of what
        reads them."""
        for image in self.images[len(self.values) : images]:
            self.values.append(fg.evaluate(self.graph, image))
        powers = {o.name: (0.0, 0.0) for o in self.graph.outputs}
        for exact in self.values[:images]:
            wanted = fg.outputs(self.graph, exact)
            values, changed = dict(exact), set()
            for node in self.graph.nodes:
                if node.name in first or changed & set(node.inputs):
                    node, operands = make(node, values)
                    values[node.name] = fg.evaluate_node(node, values | operands)
                    changed.add(node.name)
            for name, found in fg.outputs(self.graph, values).items():
                signal, noise = powers[name]
                signal += float(np.square(wanted[name], dtype=np.float64).sum())
                powers[name] = signal, noise + float(np.square(wanted[name] - found, dtype=np.float64).sum())
        return list(powers.values())

    def _rounding(self, node: fg.Node, values: dict[str, Array]) -> tuple[fg.Node, dict[str, Array]]:
        """The node with rounded weights, and its rounded operands."""
        ranges = self.stats.values
        match node:
            case fg.Linear() if not is_identity(node):
                x = values[node.x]
                return self._weights(node), {node.x: _rounded(x, np.abs(x).max(axis=1, keepdims=True) / INT8_MAX)}
            case fg.Conv():
                reach = static_room(ranges[node.x]) * ranges[node.x].magnitude().max()
                return self._weights(node), {node.x: _rounded(values[node.x], reach / INT8_MAX)}
            case fg.PatchEmbed():
                pixels = ranges[node.image]
                step, middle = float(pixels.high[0] - pixels.low[0]) / 2 / INT8_MAX, float(pixels.low[0] + pixels.high[0]) / 2
                return self._weights(node), {node.image: _rounded(values[node.image] - middle, step) + middle}
            case fg.Attention():
                operands = {}
                for name, groups in ((node.q, node.heads), (node.k, node.heads), (node.v, values[node.v].shape[1])):
                    middle = centre(ranges[name], name != node.k)
                    peak = ranges[name].magnitude(middle).reshape(groups, -1).max(axis=1) * self.stats.reach(name)
                    step = np.repeat(peak / INT8_MAX, len(middle) // groups)
                    operands[name] = _rounded(values[name] - middle, step) + middle
                return node, operands
            case fg.Window(weight=weight) if weight is not None:
                return replace(node, weight=_rounded(weight, np.abs(weight).max(axis=(0, 1)) / INT8_MAX)), {}
        return node, {}

    def _weights(self, node: Layer) -> fg.Node:
        """The layer with weights in int8 steps of each output channel."""
        if node.name not in self.rounded:
            flat = node.weight.reshape(len(node.weight), -1)
            rounded = _rounded(flat, np.abs(flat).max(axis=1, keepdims=True) / INT8_MAX)
            self.rounded[node.name] = replace(node, weight=rounded.reshape(node.weight.shape))
        return self.rounded[node.name]


def _rounded(x: Array, step: Array | float) -> Array:
    """Whole int8 steps; nothing where the step is zero."""
    step = np.maximum(step, 1e-30)
    return (np.clip(np.rint(x / step), -INT8_MAX, INT8_MAX) * step).astype(x.dtype)
