"""Maps resampled along one axis and then along the other: both at once, where the weights are of few kinds.

Where they are of many, such as of a map made eight times as large, every row of the made map would be many short instructions,
and rows of fewer tokens one after the other take less. Down comes first then: a band of the made map is made of what that makes
of the same rows, where all of its width would be made again for every band.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Node, Resample
from ..resampling import Resampling, same

MOST_KINDS = 32  # of weights: instructions for a map, and rows of parameters
MOST_TAPS = 16  # tokens that one is made of


def at_once(graph: Graph) -> Graph:
    """The graph with such pairs of nodes as one."""
    made: dict[str, Node] = {}
    kept = {o.value for o in graph.outputs} | set(graph.ranges)
    for node in graph.nodes:
        first = made.get(node.x) if isinstance(node, Resample) else None
        if isinstance(node, Resample) and isinstance(first, Resample) and first.name not in kept:
            if len(graph.users(first.name)) == 1:
                node = _joined(made, first, node)
        made[node.name] = node
    return replace(graph, nodes=list(made.values()))


def _joined(made: dict[str, Node], first: Resample, then: Resample) -> Resample:
    """What stands in the place of `then`; takes `first` out of what is made, or puts it the other way round."""
    a, b = first.resampling, then.resampling
    if a.made != b.size:
        return then
    across_first = a.down.moves_nothing and b.across.moves_nothing
    if across_first:
        down, across = b.down, a.across
    elif a.across.moves_nothing and b.down.moves_nothing:
        down, across = a.down, b.across
    else:
        return then
    whole = Resampling(down, across)
    if whole.kinds <= MOST_KINDS and whole.taps <= MOST_TAPS:
        del made[first.name]
        return replace(then, x=first.x, resampling=whole)
    if across_first and down.outputs * across.tokens <= down.tokens * across.outputs:
        made[first.name] = replace(first, resampling=Resampling(down, same(across.tokens)))
        return replace(then, resampling=Resampling(same(down.outputs), across))
    return then
