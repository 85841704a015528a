"""A coarse floorplan: where the cells of a design come to lie, in tiles.

Wire length is minimised as a sum of squares, each net pulled to its centre with a weight that makes the sum nearly linear
(Sigl, Doll, Johannes: Analytical placement: a linear or a quadratic objective function?, DAC 1991). Between two solutions
the cells are spread over the part, logic by the room of its tiles, multipliers and memories each over their own sites, and
pulled towards where that puts them, a little more every round (as in Kim, Lee, Markov: SimPL, ICCAD 2010). Wires on long
paths pull more, as tools place by timing. No cell gets a site of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from ..boards import Board
from .arrival import arrivals, criticality, wires
from .graph import CLOCKS, Graph

ROUNDS = 12
TIMED = (4, 6, 8, 10)  # rounds before which paths are looked at
LEAST = 0.7  # of the longest path: wires on shorter ones are left alone
PULL, EXPONENT = 4.0, 6  # a wire on a path of share c pulls like PULL * c ** EXPONENT nets of two cells, a time each
STEPS = 30  # of conjugate gradients in a round
MOST_PINS = 3000  # of a net that still says where cells belong


def die(graph: Graph, board: Board) -> tuple[float, float]:
    """(columns, rows) of the part, in tiles, a DSP or memory column counted as one."""
    table = graph.delays["die"]
    tiles = board.resources["lut"] / table["luts"]
    return tiles / table["rows"] * 1.2, float(table["rows"])


def place(graph: Graph, board: Board) -> np.ndarray:
    """(cells, 2): column and row of every cell."""
    width, height = die(graph, board)
    table = graph.delays["die"]
    kinds = [graph.delays.kind(kind) for kind in graph.kinds]
    area = np.array([_area(kind, table) for kind in kinds])
    group = np.array([{"dsp": 1, "bram": 2, "uram": 3}.get(kind, 0) for kind in kinds])
    nets = _incidence(graph)
    urgent = np.ones(nets.shape[0])
    count = len(kinds)
    rng = np.random.default_rng(0)
    size = np.array([width, height])
    xy = size * (0.5 + 0.01 * rng.standard_normal((count, 2)))
    port = np.zeros(count)
    port[_at_ports(graph)] = 0.02
    anchor = size * np.array(table["ports"])
    room = {0: area[group == 0].sum() / (table["fill"] * width * height)}
    for g, name in ((1, "dsp"), (2, "bram"), (3, "uram")):
        room[g] = (group == g).sum() / max(board.resources[name], 1) / table["packed"]
    target, pull = xy, 1e-4
    for number in range(ROUNDS):
        if number in TIMED:
            pulls, weights = _pulls(graph, xy)
            nets, urgent = sparse.vstack([nets, pulls]).tocsr(), np.concatenate([urgent, weights])
        xy = _solve(nets, urgent, xy, target, pull, port, anchor)
        target = _spread(xy, area, group, room, size)
        pull = 0.003 if pull < 0.003 else pull * 1.6
    return xy


def _area(kind: str, table: Mapping[str, Any]) -> float:
    """Tiles of logic that a cell takes."""
    if kind in ("lut", "mux", "lutram", "shift"):
        return float(1 / table["luts"])
    if kind == "carry":
        return float(table["luts"] / 2 / table["luts"] / 4)
    return float(0.5 / table["ffs"]) if kind == "ff" else 0.0


def _pulls(graph: Graph, xy: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Nets of two cells for the wires on long paths, and their weights."""
    wire = wires(graph, 1, xy)
    found = [pull for pull in criticality(graph, arrivals(graph, wire), wire, LEAST) if pull[0] != pull[1]]
    cells = np.array([pull[:2] for pull in found], dtype=np.int64).ravel()
    ones, shape = np.ones(len(cells)), (len(found), len(graph.cells))
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
    port: np.ndarray,
    anchor: np.ndarray,
) -> np.ndarray:
    """The cells' places by conjugate gradients, from `xy` on."""
    pins = np.asarray(nets.sum(axis=1)).ravel()
    back = nets.T.tocsr()
    result = np.empty_like(xy)
    for axis in (0, 1):
        x = xy[:, axis]
        mean = (nets @ x) / pins
        extent = np.sqrt(np.maximum((nets @ (x * x)) / pins - mean * mean, 0)) + 1.0
        weight = urgent / (extent * np.sqrt(pins))
        degree = back @ weight
        fixed = pull * np.maximum(degree, 0.1) + port
        diagonal = degree + fixed
        right = fixed * target[:, axis] - port * target[:, axis] + port * anchor[axis]

        def apply(v: np.ndarray, weight: np.ndarray = weight, diagonal: np.ndarray = diagonal) -> Any:
            return diagonal * v - back @ (weight / pins * (nets @ v))

        rest = right - apply(x)
        x = x.copy()
        step = rest / diagonal
        energy = rest @ step
        for _ in range(STEPS):
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


def _spread(
    xy: np.ndarray, area: np.ndarray, group: np.ndarray, room: dict[int, float], size: np.ndarray
) -> np.ndarray:
    """Where the cells would lie if each kind filled its part of the die evenly, in the order they have."""
    result = xy.copy()
    for g, share in room.items():
        members = np.flatnonzero(group == g)
        if not len(members):
            continue
        weight = np.maximum(area[members] if g == 0 else np.ones(len(members)), 1e-6)
        room_for = min(max(share, 1e-4), 1.0) * size.prod()
        across = min(np.sqrt(room_for), size[0])
        box = np.array([across, min(room_for / across, size[1])])
        corner = np.clip(np.average(xy[members], axis=0, weights=weight) - box / 2, 0, size - box)
        columns = max(1, round(np.sqrt(len(members) * box[0] / box[1])))
        order = members[np.argsort(xy[members, 0], kind="stable")]
        mass = np.cumsum(np.maximum(area[order] if g == 0 else np.ones(len(order)), 1e-6))
        column = np.minimum((mass / mass[-1] * columns).astype(int), columns - 1)
        result[order, 0] = corner[0] + box[0] * mass / mass[-1]
        for c in range(columns):
            inside = order[column == c]
            if len(inside):
                inside = inside[np.argsort(xy[inside, 1], kind="stable")]
                filled = np.cumsum(np.maximum(area[inside] if g == 0 else np.ones(len(inside)), 1e-6))
                result[inside, 1] = corner[1] + box[1] * (filled - filled[0] / 2) / filled[-1]
    return result
