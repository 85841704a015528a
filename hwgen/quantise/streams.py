"""Which values share a scale: sums and what they are added to, as far as their ranges agree. A forward analysis.

A sum has the scale of its operand, so a chain of them (a residual stream) costs no operation but the products. Where
ranges part by more than NEIGHBOURS the sum takes a scale of its own, and its operand is brought there first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import graph as fg
from .builder import WIDE_MARGIN, epsilon_need, wide_scale
from .calibrate import Stats
from .plan import Plan, product_side
from .shared import signatures

NEIGHBOURS = 32.0  # an int16 step for values so much larger is still finer than an int8 step of the smaller ones
OWN = fg.Clip | fg.Multiply | fg.Activation | fg.Attention | fg.Product  # their steps hang on something else


@dataclass
class _Stretch:
    """Values with one scale: largest and smallest magnitude among them, least step, and the stretch it branches from."""

    low: float
    high: float
    need: float = 0.0
    before: _Stretch | None = None

    def scale(self) -> float:
        """Steps of neighbours are powers of two of each other, so that bringing one to the other is exact."""
        wanted = max(wide_scale(self.high), self.need)
        if self.before is None:
            return wanted
        first = self.before.scale()
        return float(first * 2.0 ** np.ceil(np.log2(wanted / first)))


def shared_scales(graphs: dict[str, fg.Graph], plans: dict[str, Plan], stats: dict[str, Stats]) -> dict[str, dict[str, float]]:
    """By task, the scale of each sum and of what it is added to; equal layers of tasks get equal ones."""
    stretches: dict[str, _Stretch] = {}
    found: dict[str, dict[str, str]] = {}
    for task, graph in graphs.items():
        keys, known = signatures(graph), plans[task]
        found[task] = {}

        def join(name: str, before: str | None, magnitude: float, keys=keys, known=known, task=task) -> None:
            key = found[task].setdefault(name, keys[name])
            stretch = stretches.get(key)
            if stretch is None:
                stretch = stretches.get(keys[before]) if before else None
                low, high = (min(stretch.low, magnitude), max(stretch.high, magnitude)) if stretch else (0.0, 0.0)
                if stretch is None or high > NEIGHBOURS * low > 0:
                    stretch = _Stretch(magnitude, magnitude, before=stretch)
                stretches[key] = stretch
            stretch.low, stretch.high = min(stretch.low, magnitude), max(stretch.high, magnitude)
            stretch.need = max(stretch.need, epsilon_need(known, name))

        def peak(name: str, seen=stats[task].values) -> float:
            return float(seen[name].magnitude().max()) * seen[name].room

        for node in known.nodes.values():
            if isinstance(node, fg.Embed):
                join(node.name, None, peak(node.name))
            elif isinstance(node, fg.Clip) and node.x in found[task]:
                join(node.name, node.x, peak(node.name))
            elif isinstance(node, fg.Add):
                product, stored = product_side(known.nodes, node) or (node.b, node.a)
                root = known.roots[stored]
                if root not in found[task] and not isinstance(known.nodes.get(root), OWN):
                    join(root, None, peak(root))
                join(node.name, root if root in found[task] else None, max(peak(node.name), peak(product) / WIDE_MARGIN))
    return {task: {name: stretches[key].scale() for name, key in names.items()} for task, names in found.items()}
