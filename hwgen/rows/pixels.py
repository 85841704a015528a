"""Products of which only the host reads the result: the longer value as rows.

Masks are products of a few queries and many pixels (MaskFormer: Cheng et al. 2021). Rows of the first value stream past those of
the second, which the array holds: pixels may come block by block, and the few queries stay. The host turns the result.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Product, shapes


def pixels_as_rows(graph: Graph) -> Graph:
    """The graph with such products turned."""
    known = shapes(graph)
    read = {name for node in graph.nodes for name in node.inputs} | graph.ranges.keys()
    given = {output.value for output in graph.outputs} - read
    turned = {
        node.name: replace(node, a=node.b, b=node.a)
        for node in graph.nodes
        if isinstance(node, Product) and node.name in given and known[node.b][0] > known[node.a][0]
    }
    outputs = [replace(o, transposed=not o.transposed) if o.value in turned else o for o in graph.outputs]
    return replace(graph, nodes=[turned.get(node.name, node) for node in graph.nodes], outputs=outputs)
