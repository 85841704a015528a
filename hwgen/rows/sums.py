"""Sums as the machine does them: it adds the result of a product to what is stored already.

So x + (routed + shared) becomes (x + routed) + shared, where all but one addend are products.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hwgen.graph import Add, Experts, Graph, Linear, Node


def chained(graph: Graph) -> Graph:
    """The graph with nested sums as chains."""
    nodes, partial = _chains(graph)
    return replace(
        graph, nodes=nodes, ranges={name: limits for name, limits in graph.ranges.items() if name not in partial}
    )


def _chains(graph: Graph) -> tuple[list[Node], set[str]]:
    """The nodes with nested sums as chains, wherever an Add has no product for an operand.

    What is no product then joins the chain by itself: the sum of two such would be in steps of the residual stream, and
    no multiplier brings those back into the stream.

    Also the names of the sums inside a chain, which are not the sums that had these names before.
    """
    nodes, outputs = graph.nodes, graph.outputs
    made: dict[str, Any] = {node.name: node for node in nodes}
    read: dict[str, int] = {}
    for name in [*(name for node in nodes for name in node.inputs), *(o.value for o in outputs)]:
        read[name] = read.get(name, 0) + 1

    def inner(name: str) -> bool:
        return isinstance(made.get(name), Add) and read[name] == 1

    def product(name: str) -> bool:
        return isinstance(made.get(name), Linear | Experts)

    def terms(name: str) -> list[str]:
        node = made[name]
        return [t for part in (node.a, node.b) for t in (terms(part) if inner(part) else [part])]

    def parts(name: str) -> list[Add]:
        node = made[name]
        return [*(add for part in (node.a, node.b) if inner(part) for add in parts(part)), node]

    absorbed = {part for node in nodes if isinstance(node, Add) for part in (node.a, node.b) if inner(part)}
    chains: dict[str, list[Node]] = {}
    dropped: set[str] = set()
    for node in nodes:
        if not isinstance(node, Add) or node.name in absorbed:
            continue
        adds, leaves = parts(node.name), terms(node.name)
        if all(product(add.a) or product(add.b) for add in adds):
            continue
        stored = next((t for t in leaves if not product(t)), leaves[0])
        rest = [t for i, t in enumerate(leaves) if i != leaves.index(stored)]
        chain: list[Node] = []
        for add, term in zip(adds, rest, strict=True):
            chain.append(replace(add, a=stored, b=term))
            stored = add.name
        chains[node.name] = chain
        dropped.update(add.name for add in adds)
    partial = {add.name for chain in chains.values() for add in chain[:-1]}
    return [n for node in nodes for n in chains.get(node.name, [] if node.name in dropped else [node])], partial
