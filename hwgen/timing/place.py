"""A coarse floorplan: where the cells of a design come to lie, in tiles.

Wire length is minimised as a sum of squares, each net pulled to its centre with a weight that makes the sum nearly linear
(Sigl, Doll, Johannes: Analytical placement: a linear or a quadratic objective function?, DAC 1991). Between two solutions
the cells are spread over the part, logic by the room of its tiles, multipliers and memories over the columns (ECP5: rows)
that hold their sites, and pulled towards where that puts them, a little more every round (as in Kim, Lee, Markov: SimPL,
ICCAD 2010). Wires on long paths pull more, as tools place by timing. A large design is placed in clusters first. Cells of
logic get no sites of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from ..boards import Board
from .arrival import arrivals, criticality, wires
from .graph import CLOCKS, Graph
from .together import cascades, slices

ROUNDS, COARSE_ROUNDS, FINE_ROUNDS = 12, 40, 8
STEPS, COARSE_STEPS = 30, 120  # of conjugate gradients in a round
CLUSTERS = 3000  # of a design that has more than ten times as many cells
TIMED = (4, 6, 8, 10)  # rounds before which paths are looked at
FINE_TIMED = (1, 3, 5)
AGAIN_ROUNDS, AGAIN_TIMED = 5, (0, 2)  # from where things lie
LEAST = 0.7  # of the longest path: wires on shorter ones are left alone
PULL, EXPONENT = 4.0, 6  # a wire on a path of share c pulls like PULL * c ** EXPONENT nets of two cells, a time each
HOLD = 10.0  # times that a multiplier or memory is pulled to its column more than logic is to its tiles
LEAF = 4  # cells of a box that is not cut any more
MOST_PINS = 3000  # of a net that still says where cells belong


@dataclass(frozen=True)
class _Timing:
    """Where paths are looked at: the graph, and which thing of the design each of its cells is in."""

    graph: Graph
    of_cell: np.ndarray


def die(graph: Graph, board: Board) -> tuple[float, float]:
    """(columns, rows) of the part, in tiles, a DSP or memory column counted as one."""
    table = graph.delays["die"]
    tiles = board.resources["lut"] / table["luts"]
    return tiles / table["rows"] * 1.2, float(table["rows"])


@dataclass(frozen=True)
class _Lines:
    """Where the sites of a kind of block are: in lines across an axis, at equal steps along the other one."""

    across: int  # the axis that tells the lines apart: 0 of columns, 1 of rows
    places: np.ndarray  # of the lines on it
    step: float  # tiles from a site to the next one


@dataclass
class _Design:
    """What is placed: nets and cells, or clusters of them."""

    nets: sparse.csr_matrix  # (nets, cells): 1 where a cell has a pin on the net
    mass: np.ndarray  # tiles of logic; of a multiplier or memory how many there are
    group: np.ndarray  # 0 logic, 1 multipliers, 2 block RAM, 3 UltraRAM
    port: np.ndarray  # how much the ports pull
    size: np.ndarray  # of the die
    anchor: np.ndarray  # where the ports are
    room: float  # share of the die that logic fills
    lines: dict[int, _Lines]
    chains: list[np.ndarray] | None = None  # multipliers on neighbouring sites; None: only the lines count, as of clusters


def place(graph: Graph, board: Board, start: np.ndarray | None = None) -> np.ndarray:
    """(cells, 2): column and row of every cell. start: where they lie already, roughly."""
    size, table = np.array(die(graph, board)), graph.delays["die"]
    kinds = [graph.delays.kind(kind) for kind in graph.kinds]
    group = np.array([{"dsp": 1, "bram": 2, "uram": 3}.get(kind, 0) for kind in kinds])
    mass = np.array([_area(kind, table) for kind in kinds])
    mass[group > 0] = 1.0
    mass = np.maximum(mass, 1e-6)
    room = mass[group == 0].sum() / (table["fill"] * size.prod())
    port = np.zeros(len(kinds))
    port[_at_ports(graph)] = 0.02
    lines = _lines(size, board, table)
    of_cell: np.ndarray = slices(graph) if table["detail"] else np.arange(len(kinds))
    design = _Design(_incidence(graph), mass, group, port, size, size * np.array(table["ports"]), room, lines)
    design = _joined(design, of_cell)
    if table["detail"]:
        design = replace(design, chains=[of_cell[chain] for chain in cascades(graph)])
    timing = _Timing(graph, of_cell)
    rng = np.random.default_rng(0)
    middle, things = size * 0.5, len(design.mass)
    if start is not None:
        weight = np.bincount(of_cell, mass)
        start = np.stack([np.bincount(of_cell, mass * start[:, axis]) / weight for axis in (0, 1)], axis=1)
        return _rounds(design, start, [0.1 * 1.5**i for i in range(AGAIN_ROUNDS)], STEPS, timing, AGAIN_TIMED)[of_cell]
    if things <= 10 * CLUSTERS:
        start = middle + 0.01 * size * rng.standard_normal((things, 2))
        pulls = [0.0001, *(0.003 * 1.6**i for i in range(ROUNDS - 1))]
        return _rounds(design, start, pulls, STEPS, timing, TIMED)[of_cell]
    label = _clusters(design, CLUSTERS)
    coarse = _joined(design, label)
    start = middle + 0.01 * size * rng.standard_normal((len(coarse.mass), 2))
    spread = _rounds(coarse, start, [0.0001, *(0.002 * 1.17**i for i in range(COARSE_ROUNDS - 1))], COARSE_STEPS)
    start = spread[label] + 0.3 * rng.standard_normal((things, 2))
    return _rounds(design, start, [0.03 * 1.5**i for i in range(FINE_ROUNDS)], STEPS, timing, FINE_TIMED)[of_cell]


def _lines(size: np.ndarray, board: Board, table: Mapping[str, Any]) -> dict[int, _Lines]:
    """Group -> the lines of its sites: those of the table, or as many columns as the part's count needs, spread evenly."""
    found = {}
    for g, name in ((1, "dsp"), (2, "bram"), (3, "uram")):
        sites = board.resources[name]
        if not sites:
            continue
        if name in table.get("lines", {}):
            places = np.array(table["lines"][name]) * size[1]
            found[g] = _Lines(1, places, size[0] * len(places) / sites)
        else:
            columns = -(-sites * table["pitch"][name] // size[1])
            found[g] = _Lines(0, (np.arange(columns) + 0.5) / columns * size[0], float(table["pitch"][name]))
    return found


def _rounds(
    design: _Design,
    xy: np.ndarray,
    pulls: list[float],
    steps: int,
    timing: _Timing | None = None,
    timed: tuple[int, ...] = (),
) -> np.ndarray:
    """Solve and spread in turn, pulled a little more every time to where the last spreading put things."""
    nets, urgent = design.nets, np.ones(design.nets.shape[0])
    target = xy if pulls[0] < 0.001 else _spread(design, xy)
    for number, pull in enumerate(pulls):
        if timing is not None and number in timed:
            more, weights = _pulls(timing, xy)
            nets, urgent = sparse.vstack([nets, more]).tocsr(), np.concatenate([urgent, weights])
        xy = _solve(nets, urgent, xy, target, pull, design, steps)
        target = _spread(design, xy)
    xy[design.group > 0] = target[design.group > 0]
    return xy


def _clusters(design: _Design, goal: int) -> np.ndarray:
    """Cell -> cluster: again and again the two that share most, for their size, become one; multipliers and memories only
    with their like."""
    label = np.arange(len(design.mass))
    level, most = design, design.mass[design.group == 0].sum() / goal * 3
    while len(level.mass) > goal:
        pins = np.asarray(level.nets.sum(axis=1)).ravel()
        few = level.nets[np.flatnonzero((pins > 1) & (pins <= 12))]
        shares = (few.T @ sparse.diags(1 / (np.asarray(few.sum(axis=1)).ravel() - 1)) @ few).tocoo()
        a, b = shares.row, shares.col
        both = level.mass[a] + level.mass[b]
        fits = (a != b) & (level.group[a] == level.group[b]) & (both <= np.where(level.group[a] > 0, 8, most))
        a, b = a[fits], b[fits]
        score = shares.data[fits] / both[fits] * (1 + 1e-3 * np.sin(np.minimum(a, b) * 7.0 + np.maximum(a, b)))
        order = np.lexsort((-score, a))
        a, b = a[order], b[order]
        first = np.flatnonzero(np.diff(a, prepend=-1))
        best = np.full(len(level.mass), -1)
        best[a[first]] = b[first]
        ones = np.flatnonzero((best >= 0) & (best[best] == np.arange(len(best))))
        into = np.arange(len(level.mass))
        into[ones] = np.minimum(ones, best[ones])
        kept, into = np.unique(into, return_inverse=True)
        if len(kept) > 0.97 * len(into):
            break
        level, label = _joined(level, into), into[label]
    return label


def _joined(design: _Design, label: np.ndarray) -> _Design:
    """The design with the cells of a label as one."""
    count = int(label.max()) + 1
    member = sparse.csr_matrix((np.ones(len(label)), (np.arange(len(label)), label)), shape=(len(label), count))
    nets = (design.nets @ member).tocsr()
    nets.data[:] = 1.0
    nets = nets[np.flatnonzero(np.diff(nets.indptr) > 1)]
    group = np.zeros(count, dtype=int)
    group[label] = design.group
    mass, port = member.T @ design.mass, member.T @ design.port
    return _Design(nets, mass, group, np.minimum(port, 0.2), design.size, design.anchor, design.room, design.lines)


def _area(kind: str, table: Mapping[str, Any]) -> float:
    """Tiles of logic that a cell takes."""
    if kind in ("lut", "mux", "lutram", "shift"):
        return float(1 / table["luts"])
    if kind == "carry":
        return float(table["luts"] / 2 / table["luts"] / 4)
    return float(0.5 / table["ffs"]) if kind == "ff" else 0.0


def _pulls(timing: _Timing, xy: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Nets of two things for the wires on long paths, and their weights."""
    graph, of_cell = timing.graph, timing.of_cell
    wire = wires(graph, 1, xy[of_cell])
    found = criticality(graph, arrivals(graph, wire), wire, LEAST)
    found = [pull for pull in found if of_cell[pull[0]] != of_cell[pull[1]]]
    cells = of_cell[np.array([pull[:2] for pull in found], dtype=np.int64).ravel()]
    ones, shape = np.ones(len(cells)), (len(found), len(xy))
    weights = PULL * np.array([pull[2] for pull in found]) ** EXPONENT
    return sparse.csr_matrix((ones, cells, np.arange(0, len(cells) + 1, 2)), shape=shape), weights


def _incidence(graph: Graph) -> sparse.csr_matrix:
    """(nets, cells): 1 where a cell has a pin on the net."""
    pins: dict[int, set[int]] = {}
    for index, cell in enumerate(graph.cells):
        for side in (cell.inputs, cell.outputs):
            for pin, nets in side.items():
                if pin not in CLOCKS:
                    for net in nets:
                        if isinstance(net, int):
                            pins.setdefault(net, set()).add(index)
    kept = [sorted(cells) for cells in pins.values() if 1 < len(cells) <= MOST_PINS]
    indices = np.array([i for cells in kept for i in cells], dtype=np.int64)
    pointers = np.cumsum([0] + [len(cells) for cells in kept])
    return sparse.csr_matrix((np.ones(len(indices)), indices, pointers), shape=(len(kept), len(graph.cells)))


def _at_ports(graph: Graph) -> list[int]:
    """Cells on a net that nothing in the design drives: the ports of its top."""
    return [
        index
        for index, cell in enumerate(graph.cells)
        if any(isinstance(net, int) and net not in graph.driver for net in graph.inputs(cell))
    ]


def _solve(
    nets: sparse.csr_matrix,
    urgent: np.ndarray,
    xy: np.ndarray,
    target: np.ndarray,
    pull: float,
    design: _Design,
    steps: int,
) -> np.ndarray:
    """The cells' places by conjugate gradients, from `xy` on."""
    pins = np.asarray(nets.sum(axis=1)).ravel()
    back = nets.T.tocsr()
    port, hold = design.port, np.where(design.group > 0, HOLD, 1.0)
    result = np.empty_like(xy)
    for axis in (0, 1):
        x = xy[:, axis]
        mean = (nets @ x) / pins
        extent = np.sqrt(np.maximum((nets @ (x * x)) / pins - mean * mean, 0)) + 1.0
        weight = urgent / (extent * np.sqrt(pins))
        degree = back @ weight
        fixed = pull * hold * np.maximum(degree, 0.1)
        diagonal = degree + fixed + port
        right = fixed * target[:, axis] + port * design.anchor[axis]

        def apply(v: np.ndarray, weight: np.ndarray = weight, diagonal: np.ndarray = diagonal) -> Any:
            return diagonal * v - back @ (weight / pins * (nets @ v))

        rest = right - apply(x)
        x = x.copy()
        step = rest / diagonal
        energy = rest @ step
        for _ in range(steps):
            if energy < 1e-12:
                break
            image = apply(step)
            size = energy / (step @ image)
            x += size * step
            rest -= size * image
            scaled = rest / diagonal
            before, energy = energy, rest @ scaled
            step = scaled + energy / before * step
        result[:, axis] = x
    return result


def _spread(design: _Design, xy: np.ndarray) -> np.ndarray:
    """Where the cells would lie if logic filled its part of the die evenly, in the order it has, and blocks lay on sites."""
    result = xy.copy()
    _even(design, result, np.flatnonzero(design.group == 0))
    for g, lines in design.lines.items():
        members = np.flatnonzero(design.group == g)
        if len(members) and design.chains is None:
            _on_lines(design, result, members, lines)
        elif len(members):
            _on_sites(design, result, members, lines)
    return result


def _even(design: _Design, result: np.ndarray, members: np.ndarray) -> None:
    """Spread logic over a box of the room it needs, around where it is: halves by area, again and again, each across the
    longer side of its box, so that what lies close together stays so in both directions."""
    if not len(members):
        return
    size, places, mass = design.size, result[members], design.mass[members]
    room_for = min(max(design.room, 1e-4), 1.0) * size.prod()
    across = min(np.sqrt(room_for), size[0])
    box = np.array([across, min(room_for / across, size[1])])
    corner = np.clip(np.average(places, axis=0, weights=mass) - box / 2, 0, size - box)
    low, high = corner[None], (corner + box)[None]  # of the boxes
    inside = np.zeros(len(members), dtype=int)  # member -> its box
    while len(members) > LEAF * len(low):
        axis = (high - low).argmax(axis=1)
        order = np.lexsort((places[np.arange(len(members)), axis[inside]], inside))
        filled = np.cumsum(mass[order])
        total = np.bincount(inside, mass, len(low))
        before = np.cumsum(total) - total
        second = (filled - mass[order] / 2 - before[inside[order]]) > total[inside[order]] / 2
        first_mass = np.bincount(inside[order], mass[order] * ~second, len(low))
        cut = low[np.arange(len(low)), axis]
        cut = cut + (high - low)[np.arange(len(low)), axis] * first_mass / np.maximum(total, 1e-12)
        low, high = np.repeat(low, 2, axis=0), np.repeat(high, 2, axis=0)
        high[np.arange(0, len(low), 2), axis] = cut
        low[np.arange(1, len(low), 2), axis] = cut
        halves = np.empty(len(members), dtype=int)
        halves[order] = second
        inside = 2 * inside + halves
    result[members] = (low[inside] + high[inside]) / 2


def _on_lines(design: _Design, result: np.ndarray, members: np.ndarray, lines: _Lines) -> None:
    """Put blocks on sites: on so many neighbouring lines that they lie closest together, each line in its order."""
    across, along = lines.across, 1 - lines.across
    length, total, most = design.size[along], design.mass[members].sum(), len(lines.places)
    apart = design.size[across] / most
    least = min(most, max(1, int(np.ceil(total * lines.step / length))))
    used = min(range(least, most + 1), key=lambda count: (count - 1) * apart + total * lines.step / count)
    middle = np.average(result[members, across], weights=design.mass[members])
    first = min(range(most - used + 1), key=lambda k: abs(lines.places[k : k + used].mean() - middle))
    order = members[np.argsort(result[members, across], kind="stable")]
    filled = np.cumsum(design.mass[order])
    line = np.minimum(((filled - design.mass[order] / 2) / total * used).astype(int), used - 1)
    for k in range(used):
        inside = order[line == k]
        if not len(inside):
            continue
        inside = inside[np.argsort(result[inside, along], kind="stable")]
        taken = design.mass[inside] * lines.step
        before = np.cumsum(taken) - taken / 2
        want = result[inside, along] - before  # two that do not overlap are in order here
        placed = (np.maximum.accumulate(want) + np.minimum.accumulate(want[::-1])[::-1]) / 2
        result[inside, along] = np.clip(placed, 0, max(length - taken.sum(), 0)) + before
        result[inside, across] = lines.places[first + k]


def _on_sites(design: _Design, result: np.ndarray, members: np.ndarray, lines: _Lines) -> None:
    """Put blocks on sites so that the squares of the ways they are moved add up to the least: cascades on neighbouring sites, and
    what is in none in groups of neighbours as large as the longest, so that neither takes the places of the other."""
    across, along = lines.across, 1 - lines.across
    count = max(int(design.size[along] / lines.step + 1e-6), -(-len(members) // len(lines.places)))
    sites = np.empty((len(lines.places), count, 2))
    sites[..., across] = lines.places[:, None]
    sites[..., along] = np.minimum((np.arange(count) + 0.5) * lines.step, design.size[along])
    free = np.ones(sites.shape[:2], dtype=bool)
    chains = [chain for chain in design.chains or [] if design.group[chain[0]] == design.group[members[0]]]
    single = np.setdiff1d(members, np.concatenate(chains)) if chains else members
    most = max((len(chain) for chain in chains), default=1)

    def seat(things: list[np.ndarray], slots: list[tuple[int, int]], length: int, count: int) -> None:
        """Put the first `count` things on runs of so many sites; the others only want theirs."""
        middles = np.array([sites[line, k : k + length].mean(axis=0) for line, k in slots])
        for thing, slot in zip(*_nearest(np.array([result[cells].mean(axis=0) for cells in things]), middles), strict=True):
            line, k = slots[slot]
            if thing < count:
                result[things[thing]] = sites[line, k : k + length]
                free[line, k : k + length] = False

    slots = _runs(free, most)
    groups = _groups(single, result, most) if most > 1 else []
    whole = [chain for chain in chains if len(chain) == most]
    if 0 < len(whole) + len(groups) <= len(slots):
        seat([*whole, *groups], slots, most, len(whole))
        chains = [chain for chain in chains if len(chain) < most]
    for length in sorted({len(chain) for chain in chains}, reverse=True):
        same = [chain for chain in chains if len(chain) == length]
        slots = _runs(free, length)
        if len(slots) < len(same):  # no room for as many: each block by itself
            single = np.concatenate([single, *same])
            continue
        seat(same, slots, length, len(same))
    if len(single):
        places = sites[free]
        things, slot = _nearest(result[single], places)
        result[single[things]] = places[slot]


def _nearest(wanted: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(things, places): each thing's place, by the least sum of squares."""
    things, slots = linear_sum_assignment(((wanted[:, None] - places[None]) ** 2).sum(axis=2))
    return things, slots


def _groups(cells: np.ndarray, places: np.ndarray, most: int) -> list[np.ndarray]:
    """Cells in as few groups of neighbours as hold at most so many each."""
    if len(cells) <= most:
        return [cells] if len(cells) else []
    half = -(-len(cells) // most) // 2 * most
    order = cells[np.argsort(places[cells, np.ptp(places[cells], axis=0).argmax()], kind="stable")]
    return _groups(order[:half], places, most) + _groups(order[half:], places, most)


def _runs(free: np.ndarray, length: int) -> list[tuple[int, int]]:
    """(line, first site) of as many runs of free sites as there are side by side."""
    found = []
    for line, sites in enumerate(free.tolist()):
        k = 0
        while k + length <= len(sites):
            if all(sites[k : k + length]):
                found.append((line, k))
                k += length
            else:
                k += 1
    return found
