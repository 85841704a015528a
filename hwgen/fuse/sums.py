"""Sums of several layers, one after the other: x + (routed + shared) becomes (x + routed) + shared.

The machine adds the result of a product to what is stored already, so every Add needs a product as one of its operands.
"""

from __future__ import annotations

from dataclasses import replace

from hwgen.graph import Add, Experts, Linear, Node, Output


def chained(nodes: list[Node], outputs: list[Output]) -> list[Node]:
    """The nodes with nested sums as chains, wherever one operand of every Add in the chain is then a product."""
    made = {node.name: node for node in nodes}
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
        if not all(product(t) for t in rest):
            continue
        chain = []
        for add, term in zip(adds, rest, strict=True):
            chain.append(replace(add, a=stored, b=term))
            stored = add.name
        chains[node.name] = chain
        dropped.update(add.name for add in adds)
    return [n for node in nodes for n in chains.get(node.name, [] if node.name in dropped else [node])]
