"""Maps resampled along one axis and then along the other: both at once, where the weights are of few kinds."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Node, Resample
from ..resampling import Resampling

MOST_KINDS = 64  # of weights: instructions for a map, and rows of parameters
MOST_TAPS = 16  # tokens that one is made of


def at_once(graph: Graph) -> Graph:
    """The graph with such pairs of nodes as one."""
    made: dict[str, Node] = {}
    kept = {o.value for o in graph.outputs} | set(graph.ranges)
    for node in graph.nodes:
        first = made.get(node.x) if isinstance(node, Resample) else None
        if isinstance(node, Resample) and isinstance(first, Resample) and first.name not in kept:
            both = _both(first, node)
            if both is not None and len(graph.users(first.name)) == 1:
                del made[first.name]
                node = both
        made[node.name] = node
    return replace(graph, nodes=list(made.values()))


def _both(first: Resample, then: Resample) -> Resample | None:
    a, b = first.resampling, then.resampling
    if a.made != b.size:
        return None
    if a.across.moves_nothing and b.down.moves_nothing:
        whole = Resampling(a.down, b.across)
    elif a.down.moves_nothing and b.across.moves_nothing:
        whole = Resampling(b.down, a.across)
    else:
        return None
    return replace(then, x=first.x, resampling=whole) if whole.kinds <= MOST_KINDS and whole.taps <= MOST_TAPS else None
