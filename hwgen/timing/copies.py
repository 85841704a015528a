"""Drivers that the vendor's tool copies once it knows where their loads lie.

Vivado's placer replicates registers whose net has the attribute `max_fanout`, and registers and LUTs on long paths whose loads
lie far apart, each replica beside its cluster of loads (UG904, Physical Synthesis Phase and Fanout Optimization; UG912,
MAX_FANOUT; UG949, Use Physical Optimization). So designs of families whose tool does that are placed, drivers copied, and
placed again from where things lie, a few times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..boards import Board
from ..synth.netlist import Flat
from .arrival import arrivals, criticality, wires
from .detail import refine
from .graph import CLOCKS, Graph, assemble
from .place import place

PASSES = 2  # over long paths, behind one for the attribute
LEAST = 0.8  # of the longest path: shorter ones are left alone
REACH = 80.0  # tiles, width and height together, that the loads of a driver on a long path may take
MOST = 16  # copies of a driver in a pass

Sinks = list[tuple[int, str]]  # (cell, pin)


def place_with_copies(graph: Graph, flat: Flat, board: Board) -> tuple[Graph, np.ndarray]:
    """The graph with copies of its drivers, and where its cells lie."""
    xy = place(graph, board)
    if not graph.delays["ff"]["copies"]:
        return graph, xy
    limits = {flat.find(net): limit for net, limit in flat.max_fanout.items()}
    for number in range(PASSES + 1):
        wanted = _limited(graph, xy, limits) if number == 0 else _far(graph, xy)
        if wanted:
            graph, xy = _copied(graph, flat, xy, wanted, "for max_fanout" if number == 0 else "near far loads")
            xy = place(graph, board, xy)
    return graph, refine(graph, xy) if graph.delays["die"]["detail"] else xy


def _sinks(graph: Graph, nets: set[int]) -> dict[int, Sinks]:
    found: dict[int, Sinks] = {net: [] for net in nets}
    for index, cell in enumerate(graph.cells):
        for pin, bits in cell.inputs.items():
            if pin not in CLOCKS:
                for net in {bit for bit in bits if isinstance(bit, int)} & nets:
                    found[net].append((index, pin))
    return found


def _kind(graph: Graph, net: int) -> str:
    """The table of a net's driver, "" where its driver has other outputs too."""
    index = graph.driver.get(net)
    if index is None or sum(len(nets) for nets in graph.cells[index].outputs.values()) != 1:
        return ""
    return graph.delays.kind(graph.kinds[index])


def _clusters(graph: Graph, xy: np.ndarray, net: int, sinks: Sinks, most: int, reach: float) -> list[Sinks]:
    """Loads in groups of at most `most` cells that take no more than `reach` tiles, that of the driver's place first."""
    cells = np.array(sorted({cell for cell, _ in sinks}))
    todo: list[np.ndarray] = [cells]
    done: list[np.ndarray] = []
    while todo:
        group = todo.pop()
        extent = np.ptp(xy[group], axis=0)
        if len(group) <= most and (extent.sum() <= reach or len(todo) + len(done) + 1 >= MOST):
            done.append(group)
            continue
        order = group[np.argsort(xy[group, extent.argmax()], kind="stable")]
        todo += [order[: len(order) // 2], order[len(order) // 2 :]]
    driver = xy[graph.driver[net]]
    done.sort(key=lambda group: np.abs(xy[group].mean(axis=0) - driver).sum())
    label = {cell: k for k, group in enumerate(done) for cell in group.tolist()}
    return [[sink for sink in sinks if label[sink[0]] == k] for k in range(len(done))]


def _limited(graph: Graph, xy: np.ndarray, limits: Mapping[int, int]) -> dict[int, list[Sinks]]:
    """Net -> its loads in clusters, of the registers that may not drive so many."""
    nets = {net for net in limits if graph.fanout.get(net, 0) > limits[net] and _kind(graph, net) == "ff"}
    groups = {net: _clusters(graph, xy, net, s, limits[net], np.inf) for net, s in _sinks(graph, nets).items()}
    return {net: found for net, found in groups.items() if len(found) > 1}


def _far(graph: Graph, xy: np.ndarray) -> dict[int, list[Sinks]]:
    """Net -> its loads in clusters, of drivers on long paths."""
    wire = wires(graph, 1, xy)
    long = {a for a, _, _ in criticality(graph, arrivals(graph, wire), wire, LEAST)}
    nets = {net for net, index in graph.driver.items() if index in long and _kind(graph, net) in ("ff", "lut")}
    nets = {net for net in nets if graph.fanout.get(net, 0) > 1}
    groups = {net: _clusters(graph, xy, net, s, len(s), REACH) for net, s in _sinks(graph, nets).items()}
    return {net: found for net, found in groups.items() if len(found) > 1}


def _copied(
    graph: Graph, flat: Flat, xy: np.ndarray, wanted: Mapping[int, list[Sinks]], why: str
) -> tuple[Graph, np.ndarray]:
    cells, names, kinds, units = [*graph.cells], [*graph.names], [*graph.kinds], [*graph.units]
    places = [xy]
    notes = dict(graph.notes)
    for net, clusters in sorted(wanted.items()):
        index = graph.driver[net]
        (pin,) = graph.cells[index].outputs
        for k, sinks in enumerate(clusters[1:], 1):
            copied = flat.net()
            flat.names[copied] = graph.net_names.get(net, "")
            for sink, into in sinks:
                nets = [copied if other == net else other for other in cells[sink].inputs[into]]
                cells[sink] = replace(cells[sink], inputs={**cells[sink].inputs, into: nets})
            # A register that reads itself, as a counter, reads the first of them.
            cells.append(replace(graph.cells[index], outputs={pin: [copied]}))
            names.append(f"{names[index]}_copy_{k}")
            kinds.append(kinds[index])
            units.append(units[index])
            places.append(xy[[sink for sink, _ in sinks]].mean(axis=0)[None])
            note = f"{'registers' if graph.delays.kind(kinds[index]) == 'ff' else 'LUTs'} copied {why}"
            notes[note] = notes.get(note, 0) + 1
    return assemble(graph.delays, flat, names, kinds, units, cells, notes), np.concatenate(places)
