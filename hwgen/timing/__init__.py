"""A clock from open data: static timing analysis of a design's mapped netlist, with public delays and a coarse floorplan.

Delays of cells are facts (`*.toml`, each with its source); those of wires are an estimate, so there are three: optimistic,
likely and pessimistic. Paths from ports and to ports are not looked at: the shells around the machine register them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import synth
from ..boards import Board
from ..files import write_atomic
from ..progress import work
from ..synth.netlist import Flat, Netlist
from ..synth.partition import unit_name
from .arrival import Arrivals, TimingPath, arrivals, wires, worst_paths
from .copies import place_with_copies
from .data import FILES, SCENARIOS, Delays, delays
from .graph import Graph, build

VERSION = 4  # of the method: results of another one are not taken from the cache
LISTED = 10
LIKELY = SCENARIOS.index("likely")


@dataclass
class Estimate:
    """What a design's clock is estimated at. `needs`: scenario -> ps of the worst path with the clock's own uncertainty;
    `units`: unit -> the same of the paths that end in it, by scenario; `paths`: the worst in "likely"."""

    board: str
    unit: str
    cells: int
    needs: dict[str, float] = field(default_factory=dict)
    units: dict[str, list[float]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)  # cell type -> ps of its own shortest period
    paths: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def mhz(self, scenario: str) -> float:
        """The clock that a scenario allows."""
        return 1e6 / max([self.needs[scenario], *self.limits.values()])

    def slack(self, scenario: str, clock_mhz: float) -> float:
        """ps left of a period."""
        return 1e6 / clock_mhz - max([self.needs[scenario], *self.limits.values()])

    def to_dict(self, clock_mhz: float) -> dict[str, Any]:
        """For `hwgen timing --json`: MHz, worst paths with their stages, slack by unit at `clock_mhz`."""
        period = 1e6 / clock_mhz
        return {
            "board": self.board,
            "unit": self.unit,
            "cells": self.cells,
            "clock_mhz": clock_mhz,
            "mhz": {scenario: round(self.mhz(scenario), 1) for scenario in SCENARIOS},
            "slack_ps": {scenario: round(self.slack(scenario, clock_mhz)) for scenario in SCENARIOS},
            "unit_slack_ps": {
                name: {s: round(period - ps) for s, ps in zip(SCENARIOS, needs, strict=True)}
                for name, needs in sorted(self.units.items(), key=lambda item: -item[1][LIKELY])
            },
            "cell_limits_ps": self.limits,
            "paths": self.paths["likely"],
            "paths_pessimistic": self.paths["pessimistic"],
            "modelled": self.notes,
        }


def estimate(
    verilog: dict[str, str],
    board: Board,
    *,
    only: str | None = None,
    cache: Path | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Estimate:
    """Estimate the design `verilog` (file name -> text) on a board's part, or its unit `only` with what is inside it.

    cache: folder for synthesised units and for results. Raises UserError for an unknown unit, a family without delays or
    open synthesis, or if Yosys is not installed.
    """
    table = delays(board.family)
    if cache is not None and (kept := cached(verilog, board, cache, only)) is not None:
        return kept
    found = synth.netlists(verilog, board, only=only, inside=True, cache=cache, jobs=jobs, progress=progress)
    with work("timing"):
        result = analyse({unit.module: net for unit, net in found}, found[0][0].module, board, table, progress)
    result.unit = only or ""
    if cache is not None:
        target = _target(verilog, board, cache, only)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, json.dumps(asdict(result)).encode())
    return result


def cached(verilog: dict[str, str], board: Board, cache: Path, only: str | None = None) -> Estimate | None:
    """What `estimate` has found before, if anything. It needs no synthesis."""
    target = _target(verilog, board, cache, only)
    return Estimate(**json.loads(target.read_text())) if target.is_file() else None


def _target(verilog: dict[str, str], board: Board, cache: Path, only: str | None) -> Path:
    name = FILES.get(board.family, "")
    data = files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8") if name else ""
    parts = [
        str(VERSION),
        only or "",
        board.part,
        json.dumps(board.resources),
        data,
        *map("\0".join, sorted(verilog.items())),
    ]
    return cache / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.timing.json"


def analyse(
    netlists: dict[str, Netlist],
    top: str,
    board: Board,
    table: Delays,
    progress: Callable[[str], None] | None = None,
) -> Estimate:
    """The estimate of mapped netlists (module -> netlist) from `top` down."""
    tell = progress or (lambda line: None)
    flat = Flat(netlists)
    flat.add(top, "")
    graph = build(table, flat)
    tell(f"{len(graph.cells)} cells, {len(graph.ends)} ends of paths")
    graph, xy = place_with_copies(graph, flat, board)
    tell("floorplan")
    result = Estimate(board.name, "", len(graph.cells), notes=dict(sorted(graph.notes.items())))
    for kind in sorted(set(graph.kinds)):
        inside = table.tables.get(table.kind(kind), {}).get("inside", 0)
        if inside:
            result.limits[kind] = inside
    for scenario, name in enumerate(SCENARIOS):
        wire = wires(graph, scenario, xy)
        found = arrivals(graph, wire)
        _units(result, graph, found, table.clock(scenario), scenario)
        result.needs[name] = max(found.needs, default=0.0) + table.clock(scenario)
        worst = worst_paths(graph, found, wire, xy, LISTED)
        result.paths[name] = [_path(path, table.clock(scenario)) for path in worst]
        tell(name)
    return result


def _units(result: Estimate, graph: Graph, found: Arrivals, clock: float, scenario: int) -> None:
    for end, ps in zip(graph.ends, found.needs, strict=True):
        if math.isfinite(ps):
            needs = result.units.setdefault(unit_name(graph.units[end.cell]), [0.0] * len(SCENARIOS))
            needs[scenario] = max(needs[scenario], ps + clock)


def _path(path: TimingPath, clock: float) -> dict[str, Any]:
    stages = [
        {
            **asdict(stage),
            "net_ps": round(stage.net_ps),
            "cell_ps": round(stage.cell_ps),
            "tiles": round(stage.tiles, 1),
        }
        for stage in path.stages
    ]
    return {
        "ps": round(path.ps + clock),
        "from": path.start,
        "to": path.end,
        "unit": unit_name(path.unit),
        "bits": path.count,
        "stages": stages,
    }


def text(found: Estimate, clock_mhz: float) -> str:
    """What `hwgen timing` prints."""
    period = 1e6 / clock_mhz
    what = f"{found.board}{f', unit {found.unit}' if found.unit else ''}"
    lines = [f"{found.cells:,} cells on {what}; slack at {clock_mhz:g} MHz", ""]
    lines.append(f"{'':24}" + "".join(f"{s:>14}" for s in SCENARIOS))
    lines.append(f"{'clock, MHz':24}" + "".join(f"{found.mhz(s):>14.1f}" for s in SCENARIOS))
    lines.append(f"{'slack, ns':24}" + "".join(f"{found.slack(s, clock_mhz) / 1e3:>14.2f}" for s in SCENARIOS))
    lines += ["", "slack of the paths that end in a unit, ns:"]
    for name, needs in sorted(found.units.items(), key=lambda item: -item[1][LIKELY]):
        lines.append(f"{name[-24:]:24}" + "".join(f"{(period - ps) / 1e3:>14.2f}" for ps in needs))
    lines += ["", "worst paths in likely: wire (fan-out, tiles) + cell, ps:"]
    for path in found.paths["likely"]:
        lines.append(f"{path['ps']:>6}  {path['from']} -> {path['to']} ({path['bits']} bits, {path['unit']})")
        pieces = [_stage(stage) for stage in path["stages"]]
        lines.append(f"        {'; '.join(pieces)}")
    if found.notes:
        lines += ["", "modelled as the vendor's tool would have it:"]
        lines += [f"{count:>6}  {note}" for note, count in found.notes.items()]
    if found.needs["likely"] > period:
        lines += ["", f"warning: {clock_mhz:g} MHz is above what likely allows, {found.mhz('likely'):.1f} MHz"]
    return "\n".join(lines)


def _stage(stage: dict[str, Any]) -> str:
    wire = f"{stage['net_ps']} ({stage['fanout']}, {stage['tiles']:.0f}) + " if stage["fanout"] else ""
    return f"{wire}{stage['cell_ps']} {stage['kind']}{'' if stage['pin'] == 'clock' else '.' + stage['pin']}"
