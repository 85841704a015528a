"""Single slices moved, where that shortens the longest paths.

Placement by wire length leaves a register anywhere between what drives it and what it drives, which is as long either way; a
tool that places by timing puts it where neither side is late. Vivado moves cells of paths that fail for that in its detailed
placement, and again in `phys_opt_design` (UG904, Physical Synthesis Optimizations, "placement optimization": "moves cells
to reduce delay on timing-critical nets"). Here what lies in a slice goes together, alone or with the few slices that it drives,
into regions that have room, if the longest path through it gets shorter. Multipliers and memories stay where they are.
"""

from __future__ import annotations

import numpy as np

from .arrival import arrivals, behind, wires
from .graph import Graph, Way
from .together import BLOCKS, slices

PASSES = 12
LEAST = 0.6  # of the longest path: slices on shorter ones are left alone
MOST = 80  # cells of what is moved
REGION = 2  # tiles, to a side, over which logic is counted
FULL = 0.9  # of a region's LUTs or flip-flops, beyond which nothing more goes there
STEPS = (0.25, 0.5, 0.75, 1.0)  # of the way to what lies at the other end of a long wire
GAIN = 2.0  # ps, below which a move is none

Place = list[float]  # column, row


def refine(graph: Graph, xy: np.ndarray) -> np.ndarray:
    """Where the cells lie after a few passes over the slices on long paths."""
    work = _Moves(graph, xy)
    for _ in range(PASSES):
        if not work.one():
            break
    return work.xy


class _Moves:
    def __init__(self, graph: Graph, xy: np.ndarray):
        self.graph, self.places, self.of_cell = graph, xy.tolist(), slices(graph).tolist()
        delays = graph.delays
        kinds = [delays.kind(kind) for kind in graph.kinds]
        self.block = [kind in BLOCKS for kind in kinds]
        self.members: list[list[int]] = [[] for _ in range(max(self.of_cell) + 1)]
        for cell, at in enumerate(self.of_cell):
            self.members[at].append(cell)
        self.nets: dict[int, list[int]] = {}  # slice -> nets that it drives
        for net, cell in graph.driver.items():
            self.nets.setdefault(self.of_cell[cell], []).append(net)
        self.ends: dict[int, list[Way]] = {}
        self.uses: dict[int, list[tuple[Way, int | None]]] = {}
        for end in graph.ends:
            self.ends.setdefault(end.cell, []).append(end)
            self.uses.setdefault(end.net, []).append((end, None))
        for out, ways in graph.ways.items():
            for way in ways:
                self.uses.setdefault(way.net, []).append((way, out))
        table = delays["die"]
        room = np.array([table["luts"], table["ffs"]]) * REGION * REGION * FULL
        size = [np.array([kind in ("lut", "lutram", "shift", "mux"), kind == "ff"], dtype=float) / room for kind in kinds]
        self.size = np.array([np.sum([size[cell] for cell in cells], axis=0) for cells in self.members])
        self.taken: dict[tuple[int, int], np.ndarray] = {}
        for at, cells in enumerate(self.members):
            self._take(at, self.places[cells[0]], 1.0)

    @property
    def xy(self) -> np.ndarray:
        return np.array(self.places)

    @staticmethod
    def _region(place: Place) -> tuple[int, int]:
        return int(place[0] // REGION), int(place[1] // REGION)

    def _take(self, at: int, place: Place, sign: float) -> None:
        region = self._region(place)
        self.taken[region] = self.taken.get(region, np.zeros(2)) + sign * self.size[at]

    def _fits(self, these: set[int], place: Place) -> bool:
        """Whether there is room; also where they all are already."""
        region = self._region(place)
        more = [self.size[at] for at in these if self._region(self.places[self.members[at][0]]) != region]
        return bool((self.taken.get(region, np.zeros(2)) + sum(more, np.zeros(2)) <= 1.0).all()) if more else True

    def one(self) -> int:
        """A pass; how many slices it moved. None beside one that this pass has moved, whose wires are not known then."""
        graph, of_cell = self.graph, self.of_cell
        wire = wires(graph, 1, self.places)
        self.found = found = arrivals(graph, wire)
        self.after = after = behind(graph, found, wire)
        self.wire = wire  # sees every move
        rank = {net: k for k, net in enumerate(found.order)}
        worst = max(found.needs, default=0.0)
        late: dict[int, float] = {}
        for net, ps in after.items():
            total = found.at.get(net, -np.inf) + ps
            if total >= LEAST * worst and net in graph.driver:
                for at in {of_cell[graph.driver[net]], *(of_cell[way.cell] for way, _ in self.uses.get(net, []))}:
                    late[at] = max(total, late.get(at, 0.0))
        moved: set[int] = set()
        for at, _ in sorted(late.items(), key=lambda item: (-item[1], item[0])):
            cells = self.members[at]
            if len(cells) > MOST or any(self.block[cell] for cell in cells):
                continue
            nets = sorted(self.nets.get(at, []), key=lambda net: rank.get(net, -1))
            if moved.isdisjoint(self._beside(cells, nets)) and self._move({at}, cells, nets):
                moved.add(at)
            elif at not in moved:
                moved |= self._with_sinks(at, rank, moved)
        return len(moved)

    def _with_sinks(self, at: int, rank: dict[int, int], moved: set[int]) -> set[int]:
        """Move a slice with all that its logic drives, where that is little, as a LUT with copies of registers: those moved."""
        uses = [way.cell for net in self.nets.get(at, []) if net not in self.graph.starts for way, _ in self.uses.get(net, [])]
        if len(uses) > MOST:
            return set()
        found = {at, *(self.of_cell[cell] for cell in uses)}
        cells = [cell for one in sorted(found) for cell in self.members[one]]
        if len(found) == 1 or len(cells) > MOST or any(self.block[cell] for cell in cells):
            return set()
        nets = sorted((net for one in found for net in self.nets.get(one, [])), key=lambda net: rank.get(net, -1))
        if moved.isdisjoint(self._beside(cells, nets) | found) and self._move(found, cells, nets):
            return found
        return set()

    def _beside(self, cells: list[int], nets: list[int]) -> set[int]:
        drivers = {self.graph.driver.get(net, -1) for cell in cells for net in self.graph.inputs(self.graph.cells[cell])}
        sinks = {way.cell for net in nets for way, _ in self.uses.get(net, [])}
        return {self.of_cell[cell] for cell in drivers | sinks if cell >= 0}

    def _move(self, these: set[int], cells: list[int], nets: list[int]) -> bool:
        """Move slices to one place, if the longest path through them gets shorter."""
        here = self.places[cells[0]]
        before, ends = self._cost(these, cells, nets, None)
        best, place = (before[0] - GAIN, before[1]), None
        for end in ends:
            for step in STEPS:
                there = [a + step * (b - a) for a, b in zip(here, self.places[end], strict=True)]
                if not self._fits(these, there):
                    continue
                cost, _ = self._cost(these, cells, nets, there)
                if cost < best:
                    best, place = cost, there
        if place is None:
            return False
        for at in these:
            self._take(at, self.places[self.members[at][0]], -1.0)
            self._take(at, place, 1.0)
        self._put(cells, place)
        return True

    def _put(self, cells: list[int], place: Place) -> None:
        for cell in cells:
            self.places[cell] = place

    def _cost(
        self, these: set[int], cells: list[int], nets: list[int], place: Place | None
    ) -> tuple[tuple[float, float], list[int]]:
        """((ps of the longest path through slices at a place, those of the wires that leave or enter them added up), the cells
        at the other ends of the latest of them). place: None where they are."""
        graph, found = self.graph, self.found
        kept = [self.places[cell] for cell in cells]
        if place is not None:
            self._put(cells, place)
        wire = self.wire
        ready: dict[int, float] = {}
        ranks = graph.delays["lut"]["delays"]
        totals: list[tuple[float, int]] = []
        for net in nets:
            own = graph.starts.get(net, -np.inf)
            late = []
            for way in graph.ways.get(net, []):
                late.append((ready.get(way.net, found.at.get(way.net, -np.inf)) + wire(way), way))
            if not late:
                ready[net] = own
                continue
            if graph.kinds[late[0][1].cell].startswith("LUT"):
                late.sort(key=lambda item: -item[0])
                arrived = [(t + ranks[min(i, len(ranks) - 1)], way) for i, (t, way) in enumerate(late)]
            else:
                arrived = [(t + way.ps, way) for t, way in late]
            ready[net] = max(own, max(t for t, _ in arrived))
            rest = self.after.get(net, -np.inf)
            totals += [(t + rest, graph.driver.get(way.net, -1)) for t, way in arrived if way.routed]
        for cell in cells:
            for end in self.ends.get(cell, []):
                t = ready.get(end.net, found.at.get(end.net, -np.inf)) + wire(end) + end.ps
                totals.append((t, graph.driver.get(end.net, -1) if end.routed else -1))
        for net in nets:
            for way, out in self.uses.get(net, []):
                if self.of_cell[way.cell] in these:
                    continue
                if out is None:
                    rest = way.ps
                else:
                    lut = graph.kinds[way.cell].startswith("LUT")
                    rest = (found.cell_ps[out] if lut else way.ps) + self.after.get(out, -np.inf)
                totals.append((ready[net] + wire(way) + rest, way.cell))
        for cell, before in zip(cells, kept, strict=True):
            self.places[cell] = before
        if not totals:
            return (0.0, 0.0), []
        totals.sort(key=lambda item: -item[0])
        others: list[int] = []
        for _, other in totals:
            if other >= 0 and self.of_cell[other] not in these and other not in others:
                others.append(other)
            if len(others) == 3:
                break
        return (totals[0][0], sum(t for t, _ in totals if t > -np.inf)), others
