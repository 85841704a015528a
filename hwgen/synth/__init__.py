"""Open synthesis of a design: cells per unit against the board, and the deepest logic between registers.

Each unit of the generated Verilog (`partition`) goes through Yosys by itself; shared ones go once and count as often as they
stand in the design. Results are kept in a cache folder by content, so that only what has changed is synthesised again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import processes
from ..boards import Board
from ..errors import UserError
from ..progress import work
from . import yosys
from .families import Family, family, resources
from .netlist import Netlist, paths, read
from .netlist import Path as LogicPath
from .partition import Unit, split, units

MAX_LEVELS = 6  # between registers, outside multipliers and memories
KINDS = ("lut", "ff", "dsp", "bram", "uram")


@dataclass
class Synthesis:
    """What Yosys made of a design. `units` maps a unit to its resources, `count` to how many of it the design has."""

    board: Board
    units: dict[str, dict[str, float]] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    cells: dict[str, Counter] = field(default_factory=dict)
    paths: list[LogicPath] = field(default_factory=list)

    @property
    def total(self) -> dict[str, int]:
        """Resources of all units, block RAM rounded up."""
        return {kind: -(-sum(self.count[u] * r[kind] for u, r in self.units.items()) // 1) for kind in KINDS}

    def to_dict(self, listed: int = 40) -> dict:
        """For `hwgen synth --json`: all paths of more than MAX_LEVELS as `offenders`, and the `listed` deepest."""
        return {
            "tool": yosys.version(),
            "board": self.board.name,
            "units": {
                name: {"count": self.count[name], **used, "cells": dict(sorted(self.cells[name].items()))}
                for name, used in self.units.items()
            },
            "total": {
                kind: {"used": int(used), "available": self.board.resources[kind]} for kind, used in self.total.items()
            },
            "max_levels": MAX_LEVELS,
            "deepest": self.paths[0].levels if self.paths else 0,
            "pairs": len(self.paths),
            "offenders": [path.to_dict() for path in self.paths if path.levels > MAX_LEVELS],
            "paths": [path.to_dict() for path in self.paths[:listed]],
        }


def synthesise(
    verilog: dict[str, str],
    board: Board,
    *,
    only: str | None = None,
    cache: Path | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Synthesis:
    """Synthesise the design `verilog` (file name -> text) for the board's family, `jobs` units at a time.

    only: name of a single unit. cache: folder for results. Raises UserError for an unknown unit, a family without open
    synthesis, or if Yosys is not installed.
    """
    kind = family(board.family, uram=board.resources["uram"] > 0)
    design = units(verilog, kind.defines)
    found = netlists(verilog, board, only=only, cache=cache, jobs=jobs, progress=progress)
    result = Synthesis(board, count=_instances(design) if only is None else {only: 1})
    for unit, netlist in found:
        cells = netlist.counts
        for child in design:
            cells.pop(child.module, None)
        result.cells[unit.name] = cells
        result.units[unit.name] = resources(kind, cells)
    result.paths = paths(kind, {unit.module: netlist for unit, netlist in found}, found[0][0].module)
    return result


def netlists(
    verilog: dict[str, str],
    board: Board,
    *,
    only: str | None = None,
    inside: bool = False,
    cache: Path | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[tuple[Unit, Netlist]]:
    """Every unit with its mapped netlist, each before those inside it; of a single one `only` itself, or with `inside` those
    in it too. Parameters and errors: see `synthesise`."""
    kind = family(board.family, uram=board.resources["uram"] > 0)
    yosys.tool()
    design = units(verilog, kind.defines)
    names = [u.name for u in design]
    if only is not None and only not in names:
        raise UserError(f"the design has no unit {only!r}; it has {', '.join(names)}")
    chosen = set(names) if only is None else {only}
    for unit in design:
        if inside and unit.name in chosen:
            chosen |= unit.instances.keys()
    wanted = [u for u in design if u.name in chosen]
    tell = progress or (lambda line: None)
    done = 0

    def one(unit: Unit) -> Netlist:
        nonlocal done
        begin = time.monotonic()
        netlist = _synthesise(unit, kind, cache)
        done += 1
        here.at(done)
        tell(f"{done}/{len(wanted)} {unit.name} {time.monotonic() - begin:.1f} s")
        return netlist

    with work("synthesis", len(wanted), "units") as here, ThreadPoolExecutor(jobs) as pool:
        try:
            return list(zip(wanted, pool.map(one, wanted), strict=True))
        except BaseException:  # the other units would go on, and leaving the pool waits for them
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end_all()
            raise


def _instances(design: list[Unit]) -> dict[str, int]:
    """How often each unit stands in the design."""
    count: Counter = Counter({design[0].name: 1})
    for unit in design:  # every unit comes before those inside it
        for child, times in unit.instances.items():
            count[child] += times * count[unit.name]
    return dict(count)


def netlist_verilog(verilog: dict[str, str], board_family: str, module: str, whole: bool = False) -> tuple[str, str]:
    """(mapped netlist of `module` as Verilog, simulation models of the family's small cells, without its multipliers).

    whole: with the units inside it, not only their ports.
    """
    kind = family(board_family)
    unit = next(u for u in units(verilog, kind.defines, top=module) if u.module == module)
    if whole:
        unit = replace(unit, source="".join(split("".join(verilog.values()), kind.defines).values()), instances={})
    with tempfile.TemporaryDirectory(prefix="hwgen-synth-") as name:
        folder = Path(name)
        (folder / "unit.v").write_text(unit.source)
        yosys.run(script(unit, kind) + "write_verilog -noattr mapped.v\n", folder)
        mapped = (folder / "mapped.v").read_text()
        return mapped, yosys.library(kind.models, mapped)


def script(unit: Unit, kind: Family) -> str:
    """The Yosys script of one unit: from `unit.v` to `unit.json`."""
    top = f"\\{unit.module}"
    # Yosys would drop the name, and the attribute with it, of a register that drives nothing but ports of other modules.
    keep = "setattr -set keep 1 w:* a:max_fanout %i\n" if "max_fanout" in unit.source else ""
    return f"read_verilog unit.v\n{keep}{kind.synth} -top {top}\nwrite_json unit.json\n"


def _synthesise(unit: Unit, kind: Family, cache: Path | None) -> Netlist:
    text = script(unit, kind)
    key = hashlib.sha256("\0".join((yosys.version(), text, unit.source)).encode()).hexdigest()[:24]
    kept = cache / f"{key}.json" if cache is not None else None
    if kept is not None and kept.is_file():
        return read(json.loads(kept.read_text()), unit.module)
    with tempfile.TemporaryDirectory(prefix="hwgen-synth-") as name:
        folder = Path(name)
        (folder / "unit.v").write_text(unit.source)
        yosys.run(text, folder)
        found = json.loads((folder / "unit.json").read_text())
    found["modules"] = {unit.module: found["modules"][unit.module]}  # not the vendor's library
    if kept is not None:
        cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{time.monotonic_ns()}")
        partial.write_text(json.dumps(found))
        partial.replace(kept)
    return read(found, unit.module)


def text(found: Synthesis, listed: int = 12) -> str:
    """The table that `hwgen synth` prints, with the `listed` deepest paths."""
    lines = [f"{'unit':22} {'of it':>5}" + "".join(f"{kind.upper():>10}" for kind in KINDS)]
    for name, used in found.units.items():
        lines.append(f"{name:22} {found.count[name]:>5}" + "".join(f"{used[kind]:>10,.10g}" for kind in KINDS))
    total, available = found.total, found.board.resources
    lines.append(f"{'all':22} {'':>5}" + "".join(f"{total[kind]:>10,.10g}" for kind in KINDS))
    lines.append(f"{found.board.name:22} {'':>5}" + "".join(f"{available[kind]:>10,}" for kind in KINDS))
    over = [kind.upper() for kind in KINDS if total[kind] > available[kind]]
    if over:
        lines += ["", f"warning: exceeds the part's {', '.join(over)}"]
    deep = sum(path.levels > MAX_LEVELS for path in found.paths)
    lines += ["", f"deepest logic, LUT levels ({deep} of {len(found.paths)} pairs of registers above {MAX_LEVELS}):"]
    lines += [f"{path.levels:>3}  {path.start} -> {path.end} ({path.count} bits)" for path in found.paths[:listed]]
    return "\n".join(lines)
