"""Static timing analysis: when every net is ready, how late every register's input is, and the ways that make it so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..synth.netlist import group
from .graph import Graph, Way


@dataclass(frozen=True)
class Stage:
    """A piece of a path: a wire and the cell behind it. `net_ps`, `cell_ps`; fan-out and tiles of the wire."""

    cell: str
    kind: str
    pin: str
    net_ps: float
    cell_ps: float
    fanout: int = 0
    tiles: float = 0.0


@dataclass(frozen=True)
class TimingPath:
    """From a register to a register: picoseconds that a period needs, without the clock's own."""

    ps: float
    start: str
    end: str
    unit: str
    stages: tuple[Stage, ...]
    count: int = 1  # bits that have as long a path between the same two, within 1 ps


@dataclass
class Arrivals:
    """Of one scenario: picoseconds at every net, the way each came by, and what every end needs of a period."""

    at: dict[int, float] = field(default_factory=dict)
    by: dict[int, Way] = field(default_factory=dict)
    cell_ps: dict[int, float] = field(default_factory=dict)
    needs: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # nets, each after those it waits for


Wire = Callable[[Way], float]


def wires(graph: Graph, scenario: int, xy: np.ndarray | list[list[float]]) -> Wire:
    """The delay of a way's wire. xy: where the cells lie; a list is looked at again at every call."""
    net, carry, out = graph.delays.net, graph.delays["carry"], graph.chain_outs
    leave, chained = carry["leave"], [kind.startswith(tuple(carry["types"])) for kind in graph.kinds]
    block = [graph.delays.kind(kind) in ("dsp", "bram", "uram") for kind in graph.kinds]
    driver, fanout, rows = graph.driver, graph.fanout, xy if isinstance(xy, list) else xy.tolist()

    def wire(way: Way) -> float:
        if not way.routed:
            return 0.0
        before = driver.get(way.net)
        if before is None:
            return 0.0
        a, b = rows[before], rows[way.cell]
        tiles = abs(a[0] - b[0]) + abs(a[1] - b[1])
        ps = net(scenario, tiles, fanout.get(way.net, 1), block[before] or block[way.cell])
        return ps + (carry["chain_out"] if way.net in out else leave) if chained[before] else ps

    return wire


def arrivals(graph: Graph, wire: Wire) -> Arrivals:
    """Longest arrivals. A loop of logic is cut where it is met: the net there waits for what comes from outside the loop."""
    found = Arrivals(at=dict(graph.starts))
    ranks = graph.delays["lut"]["delays"]
    at, ways = found.at, graph.ways

    def settle(net: int) -> None:
        late = [(at.get(w.net, -math.inf) + wire(w), w.ps, w) for w in ways[net]]
        if graph.kinds[ways[net][0].cell].startswith("LUT"):
            late.sort(key=lambda item: -item[0])
            late = [(t, ranks[min(i, len(ranks) - 1)], w) for i, (t, _, w) in enumerate(late)]
        ready, ps, way = max(late, key=lambda item: item[0] + item[1])
        own = graph.starts.get(net, -math.inf)  # a memory's output may start a path and pass one on
        at[net] = max(own, ready + ps)
        found.by[net] = way if ready + ps >= own else Way(net, 0.0, way.cell, "", False)
        found.cell_ps[net] = ps

    open_nets: set[int] = set()
    cut: list[int] = []
    for root in ways:
        stack = [root]
        while stack:
            net = stack[-1]
            if net in found.by or net not in ways:
                stack.pop()
                continue
            before = [w.net for w in ways[net] if w.net in ways and w.net not in found.by]
            missing = [other for other in before if other not in open_nets]
            if missing and net not in open_nets:
                open_nets.add(net)
                stack += missing
                continue
            if any(other != net for other in before):
                cut.append(net)
            open_nets.discard(net)
            settle(net)
            found.order.append(net)
            stack.pop()
    for net in cut:
        settle(net)
    found.needs = [at.get(end.net, -math.inf) + wire(end) + end.ps for end in graph.ends]
    return found


def criticality(graph: Graph, found: Arrivals, wire: Wire, least: float) -> list[tuple[int, int, float]]:
    """(driving cell, driven cell, length of the longest path over this wire as a fraction of the longest of all) of the wires
    where that is at least `least`."""
    worst = max(found.needs, default=1.0)
    result = []

    def seen(way: Way, ps: float) -> None:
        share = (found.at.get(way.net, -math.inf) + ps) / worst
        if way.routed and share >= least and way.net in graph.driver:
            result.append((graph.driver[way.net], way.cell, share))

    behind(graph, found, wire, seen)
    return result


def behind(
    graph: Graph, found: Arrivals, wire: Wire, seen: Callable[[Way, float], None] = lambda way, ps: None
) -> dict[int, float]:
    """Net -> ps of the longest way from it to an end. seen: told every way, and the longest over it from its net on."""
    longest: dict[int, float] = {}

    def pass_on(way: Way, ps: float) -> None:
        longest[way.net] = max(ps, longest.get(way.net, -math.inf))
        seen(way, ps)

    for end in graph.ends:
        pass_on(end, wire(end) + end.ps)
    for net in reversed(found.order):
        if net in longest:
            lut = graph.kinds[graph.ways[net][0].cell].startswith("LUT")
            for way in graph.ways[net]:
                pass_on(way, wire(way) + (found.cell_ps[net] if lut else way.ps) + longest[net])
    return longest


def _back(found: Arrivals, net: int) -> Iterator[tuple[int, Way]]:
    """The ways back from a net to where its path starts, each net once."""
    seen: set[int] = set()
    while net in found.by and found.by[net].net != net and net not in seen:
        seen.add(net)
        yield net, found.by[net]
        net = found.by[net].net


def worst_paths(graph: Graph, found: Arrivals, wire: Wire, xy: np.ndarray, count: int) -> list[TimingPath]:
    """The longest path between every two groups of registers, the `count` longest of these, longest first."""
    order = np.argsort(-np.array(found.needs), kind="stable")
    seen: dict[tuple[str, str], int] = {}
    kept: list[tuple[float, Way, tuple[str, str]]] = []
    for index in order[: 400 * count]:
        ps, end = found.needs[index], graph.ends[index]
        if not math.isfinite(ps):
            break
        start = end.net
        for _, way in _back(found, end.net):
            start = way.net
        key = (group(_net(graph, start)), group(_register(graph, end.cell)))
        if key in seen:
            seen[key] += ps > kept[[k[2] for k in kept].index(key)][0] - 1
        elif len(kept) < count:
            seen[key] = 1
            kept.append((ps, end, key))
    return [_path(graph, found, wire, xy, ps, end, key, seen[key]) for ps, end, key in kept]


def _path(
    graph: Graph, found: Arrivals, wire: Wire, xy: np.ndarray, ps: float, end: Way, key: tuple[str, str], count: int
) -> TimingPath:
    stages = [_stage(graph, wire, xy, end, end.ps)]
    net = end.net
    for at, way in _back(found, end.net):
        stages.append(_stage(graph, wire, xy, way, found.cell_ps[at]))
        net = way.net
    driver = graph.driver.get(net)
    if driver is not None:
        stages.append(Stage(graph.names[driver], graph.kinds[driver], "clock", 0.0, graph.starts.get(net, 0.0)))
    return TimingPath(ps, key[0], key[1], graph.units[end.cell], tuple(reversed(stages)), count)


def _stage(graph: Graph, wire: Wire, xy: np.ndarray, way: Way, ps: float) -> Stage:
    before = graph.driver.get(way.net)
    tiles = float(np.abs(xy[before] - xy[way.cell]).sum()) if before is not None and way.routed else 0.0
    fanout = graph.fanout.get(way.net, 0) if way.routed else 0
    return Stage(graph.names[way.cell], graph.kinds[way.cell], way.pin, wire(way), ps, fanout, tiles)


def _net(graph: Graph, net: int) -> str:
    driver = graph.driver.get(net)
    return graph.net_names.get(net) or (graph.names[driver] if driver is not None else "port")


def _register(graph: Graph, cell: int) -> str:
    """What a register is called: by the net it drives."""
    outputs = [net for nets in graph.cells[cell].outputs.values() for net in nets if isinstance(net, int)]
    return next((graph.net_names[net] for net in outputs if graph.net_names.get(net)), "") or graph.names[cell]
