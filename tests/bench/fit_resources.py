"""Fits hwgen/resources/fitted.py to synthesised designs and says how far the estimate is from each.

    python tests/bench/fit_resources.py REPORT.json [REPORT.json ...] [--write]

REPORT.json: what `hwgen synth BUNDLE --json` prints, of several Configs of each family, small and large ones, so that the terms
can be told apart; with `--unit` it holds one unit. Coefficients are the non-negative least squares of relative errors. Units
that a family has no report of take ultrascale+'s coefficients. Needs SciPy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from hwgen import boards
from hwgen.config import Config
from hwgen.resources import fitted, logic

TARGET = Path(fitted.__file__)
HEAD = '''"""Coefficients of `logic.terms`, by family and unit: written by tests/bench/fit_resources.py, do not edit.

Synthesised by {tool}:
{source}.
"""

'''
INSTANCES: dict[str, Callable[[Config], int]] = {
    "mac_pair": lambda config: config.array_outputs // 2,
    "window_lane": lambda config: config.window_chunks * config.chunk * config.window_rows,
    "window_post": lambda config: config.chunk,
    "scan_element": lambda config: config.chunk,
    "scan_lane": lambda config: config.chunk * config.scan_states,
    "scan_sum": lambda config: config.chunk,
}
KINDS = {"lut": "LUTS", "ff": "FLIP_FLOPS"}


def samples(reports: list[dict], kind: str) -> dict[tuple[str, str], list[tuple]]:
    """(family, unit) -> [(terms, how much of `kind` all instances have)]."""
    found: dict[tuple[str, str], list[tuple]] = {}
    for report in reports:
        config, board = Config.from_dict(report["config"]), boards.load(report["board"])
        for unit, terms in logic.terms(config).items():
            if unit not in report["units"]:
                continue
            instances = INSTANCES.get(unit, lambda config: 1)(config)  # a report of one unit counts it once
            used = instances * report["units"][unit][kind]
            if kind == "lut":
                used -= logic.memory_luts(config, board, unit)
            found.setdefault((board.family, unit), []).append((terms, used))
    return found


def fit(reports: list[dict], kind: str) -> dict[str, dict[str, tuple[float, ...]]]:
    """Family -> unit -> coefficients. What two small designs cannot tell apart takes ultrascale+'s proportions."""
    table: dict[str, dict[str, tuple[float, ...]]] = {}
    found = samples(reports, kind)
    for family, unit in sorted(found, key=lambda key: (key[0] != "ultrascale+", key)):
        terms = np.array([t for t, _ in found[family, unit]], float)
        used = np.array([max(u, 1) for _, u in found[family, unit]], float)
        weights = 1 / np.maximum(used, 100)
        if len(used) >= terms.shape[1] or family == "ultrascale+":
            coefficients, _ = nnls(terms * weights[:, None], used * weights)
        else:
            like = terms @ np.array(table["ultrascale+"][unit])
            scale = (like * weights) @ (used * weights) / ((like * weights) @ (like * weights))
            coefficients = np.array(table["ultrascale+"][unit]) * scale
        table.setdefault(family, {})[unit] = tuple(float(f"{c:.5g}") for c in coefficients)
    return {family: table["ultrascale+"] | units for family, units in table.items()}


def _source(report: dict) -> str:
    """A line of the table's head: board, array, and the units unless all are there."""
    config = Config.from_dict(report["config"])
    units = report["units"] if set(report["units"]) != set(logic.terms(config)) else ["all units"]
    note = f" ({report['note']})" if "note" in report else ""  # added by hand where the design was not today's
    return f"{report['board']} {config.array_outputs} x {config.array_inputs}: {', '.join(units)}{note}"


def main(arguments: list[str]) -> None:
    reports = [json.loads(Path(a).read_text()) for a in arguments if a != "--write"]
    tables = {name: fit(reports, kind) for kind, name in KINDS.items()}
    for report in reports:
        config, board = Config.from_dict(report["config"]), boards.load(report["board"])
        if set(report["units"]) != set(logic.terms(config)):
            continue
        for kind, name in KINDS.items():
            estimate = sum(np.dot(tables[name][board.family][u], t) for u, t in logic.terms(config).items())
            if kind == "lut":
                estimate += sum(logic.memory_luts(config, board, unit) for unit in logic.terms(config))
            used = report["total"][kind]["used"]
            shape = f"{config.array_outputs} x {config.array_inputs}"
            print(
                f"{board.name:10} {shape:8} {kind:4} Yosys {used:>8,} estimate {estimate:>10,.0f} {estimate / used - 1:+.1%}"
            )
    if "--write" in arguments:
        text = HEAD.format(source=";\n".join(map(_source, reports)), tool=reports[0]["tool"])
        for name, table in tables.items():
            text += f"{name}: dict[str, dict[str, tuple[float, ...]]] = {{\n"
            for family, units in table.items():
                text += (
                    f'    "{family}": {{\n' + "".join(f'        "{u}": {c},\n' for u, c in units.items()) + "    },\n"
                )
            text += "}\n"
        TARGET.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
