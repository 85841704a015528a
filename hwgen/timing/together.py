"""What lies together however a design is placed: cells that share a slice, cascades of multipliers."""

from __future__ import annotations

import numpy as np

from .graph import Graph

BLOCKS = ("dsp", "bram", "uram")


def slices(graph: Graph) -> np.ndarray:
    """Cell -> number of what it lies in: a flip-flop beside the LUT or carry in front of it, wide multiplexers and carry chains
    with their LUTs. Wires inside have no delay of their own, so their ends must not lie apart."""
    above = list(range(len(graph.cells)))
    block = [graph.delays.kind(kind) in BLOCKS for kind in graph.kinds]

    def find(cell: int) -> int:
        while above[cell] != cell:
            above[cell] = above[above[cell]]
            cell = above[cell]
        return cell

    def join(a: int | None, b: int | None) -> None:
        if a is not None and b is not None and not block[a] and not block[b]:
            a, b = find(a), find(b)
            above[max(a, b)] = min(a, b)

    for out, ways in graph.ways.items():
        for way in ways:
            join(way.cell, graph.driver.get(out))
            if not way.routed:
                join(way.cell, graph.driver.get(way.net))
    for end in graph.ends:
        if not end.routed:
            join(end.cell, graph.driver.get(end.net))
    return np.unique([find(cell) for cell in range(len(above))], return_inverse=True)[1]


def cascades(graph: Graph) -> list[list[int]]:
    """Multipliers whose sums go from one to the next by the wires of their column, in its order: neighbours on it."""
    after: dict[int, int] = {}
    for index, cell in enumerate(graph.cells):
        before = {graph.driver.get(net) for net in cell.inputs.get("PCIN", ()) if isinstance(net, int)}
        for driver in before - {None, index}:
            after[driver] = index  # type: ignore[index]
    found = []
    for head in sorted(after.keys() - set(after.values())):
        chain = [head]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        found.append(chain)
    return found
