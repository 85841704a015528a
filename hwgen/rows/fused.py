"""Linear layers of resampled maps that stand side by side, as convolutions of one tap.

A linear layer reads each token in an int8 step of its own, for which the largest number of the token must be known. What makes a
join writes some of its columns at a time, so that a copy of the whole map by the array would have to find it: as many cycles as
a layer of the map's width. A convolution reads all tokens in one step, and its columns in steps that suit its weights.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Conv, Graph, Join, Linear, Node, Resample


def one_tap(graph: Graph) -> Graph:
    """The graph with such layers as convolutions, where they alone read the join."""
    made = {node.name: node for node in graph.nodes}
    kept = {o.value for o in graph.outputs} | set(graph.ranges)

    def changed(node: Node) -> Node:
        join = made.get(node.x) if isinstance(node, Linear) else None
        if not isinstance(node, Linear) or not isinstance(join, Join) or join.name in kept or len(graph.users(join.name)) > 1:
            return node
        maps = [side.resampling.made for side in map(made.get, join.xs) if isinstance(side, Resample)]
        if not maps:
            return node
        weight = node.weight.reshape(len(node.weight), 1, 1, -1)
        return Conv(node.name, node.x, weight, node.bias, maps[0], source=node.source)

    return replace(graph, nodes=[changed(node) for node in graph.nodes])
