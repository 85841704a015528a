"""The report as a page: tables that sort, and of each run a timeline that zooms, a roofline, the load of experts."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from .. import parts
from ..isa import Unit
from ..timeline import CAUSES
from . import data, render, svg

UNITS = [unit.name.lower() for unit in Unit]
ENERGY_COLOURS = {"mac": "matmul", "ram": "vector", "dram": "dram", "clock": "store", "static": "other"}


def page(report: dict, trace: dict | None = None, checks: dict | None = None) -> str:
    """The HTML text of a report made by `report.make`.

    trace: measured runs, as `hwgen run --trace` writes them. checks: the JSON object of `hwgen verify`, where accuracy is known.
    """
    array, bandwidth = report["array"], report["dram"]["usable_bytes_per_cycle"]
    runs, graphs = [], []
    for name, task in report["tasks"].items():
        title = f"Estimate{' for ' + name if name else ''}: where the cycles go"
        note = "Estimated as if every expert had as many tokens; a trace of the simulated Verilog tells."
        made = _run(len(runs), title, task | {"cycles": task["run_cycles"], "busy": task["run_busy"]}, array, bandwidth, note)
        runs.append(made)
        graphs.append((f"The network{', task ' + name if name else ''}", _graph(made["parts"], task)))
    for i, run in enumerate(trace["runs"] if trace else ()):
        title = f"Measured, {trace['task'] + ', ' if trace['task'] else ''}run {i}, DRAM {trace['dram']}"
        note = "Tokens that the router sent to each expert in this run."
        runs.append(_run(len(runs), title, run, array, trace["dram_bytes_per_cycle"], note))
    return render(
        "report.html",
        title=f"hwgen: {', '.join(report['models']) or report['board']['name']}",
        **{k: report[k] for k in ("board", "array", "batch", "note", "tasks", "resources", "resources_accuracy", "models")},
        version=report["version"],
        config=report["config"],
        clock=report["clock_mhz"],
        checks=checks,
        causes=CAUSES,
        energy={name: _energy(task["energy_estimate"]) for name, task in report["tasks"].items()},
        energy_note=next(iter(report["tasks"].values()))["energy_estimate"]["note"],
        runs=runs,
        graphs=graphs,
    )


def _energy(estimate: dict) -> list[tuple[str, float, float, str]]:
    """What it goes into, millijoule, share of all, colour."""
    of_it = {key.removeprefix("of_it_"): value for key, value in estimate.items() if key.startswith("of_it_")}
    total = sum(of_it.values()) or 1.0
    return [(what, mj, mj / total, ENERGY_COLOURS.get(what, "bank")) for what, mj in of_it.items()]


def _run(number: int, title: str, run: dict, array: dict, bandwidth: float, note: str) -> dict[str, Any]:
    """One run of a program, as timeline.breakdown gives it, for the template."""
    listed = parts.parts(run)
    for row in listed:
        row["name"] = ".".join(filter(None, (row["block"], row["part"])))
    loads = {block: tokens for block, tokens in parts.experts(run).items() if len(tokens) > 1}
    return {
        "id": f"run{number}",
        "title": title,
        "timeline": _timeline(run),
        "roofline": svg.roofline(listed, array["macs_per_cycle"], bandwidth),
        "rows": _rows(listed, array["macs_per_cycle"]),
        "experts": svg.load(loads) if loads else "",
        "experts_note": note,
        "parts": listed,
    }


def _rows(listed: list[dict], macs_per_cycle: int) -> list[dict[str, Any]]:
    """The table of parts, each block's sum above its parts."""
    total = sum(row["cycles"] for row in listed) or 1
    sums = [name for name in listed[0] if isinstance(listed[0][name], (int, float)) and name not in ("start", "end")]
    rows = []
    for block in dict.fromkeys(row["block"] for row in listed):
        inside = [row for row in listed if row["block"] == block]
        if block and len(inside) > 1:
            rows.append({name: sum(row[name] for row in inside) for name in sums} | {"name": block, "sum": True})
        rows += [row | {"sum": False} for row in inside]
    for row in rows:
        row["share"] = row["cycles"] / total
        row["rate"] = row["macs"] / max(1, row["cycles"])
        row["padding"] = max(0, round(row["active"] - row["macs"] / macs_per_cycle))
    return rows


def _timeline(run: dict) -> Markup:
    """What the page's script draws: a bar [start, cycles, name] per instruction and unit, the array's with a cause."""
    names = list(dict.fromkeys(f"{entry['insn']} {entry['of']}" for entry in run["operations"]))
    number = {name: i for i, name in enumerate(names)}
    bars: list[list[list[int]]] = [[] for _ in UNITS]
    array: list[list[int]] = []
    for entry in run["operations"]:
        name = number[f"{entry['insn']} {entry['of']}"]
        bars[UNITS.index(entry["unit"])].append([entry["start"], entry["end"] - entry["start"], name])
        at = entry.get("issued", 0) + 1
        for cause in CAUSES:  # backwards from its last row: its rows, then what they waited for
            if spent := entry.get(cause):
                at -= spent
                array.append([at, spent, name, CAUSES.index(cause)])
    busy = [run["causes"]["active"], *(run["busy"][unit] for unit in UNITS)]
    shares = [f"{cycles / run['cycles']:.0%}" for cycles in busy]
    return data({
        "cycles": run["cycles"], "units": UNITS, "causes": CAUSES, "names": names, "bars": bars, "array": array, "shares": shares,
    })  # fmt: skip


def _graph(listed: list[dict], task: dict) -> Markup:
    edges = parts.links((tuple(edge) for edge in task["edges"]), parts.places(task["operations"]))
    return svg.graph(listed, edges)
