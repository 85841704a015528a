"""What a build tells its user: estimated cycles, images per second, traffic, energy and resources, as JSON and as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from . import cost, energy, isa, resources, timeline
from .boards import Board
from .counts import data_beats
from .dram import of_board
from .program import Program
from .version import __version__

REPORT_VERSION = 2
SHOWN = 5  # spilled values that the text names


def make(
    program: Program, board: Board, models: Sequence[str] = (), edges: Mapping[str, Sequence[tuple[str, str]]] | None = None
) -> dict:
    """The report of a scheduled program as one JSON object (`report.json` in the bundle).

    models: names of the files. edges: of each task which operation reads what which other one wrote.
    """
    config = program.config
    memory = of_board(board, config)
    used = resources.table(config, board)
    return {
        "report_version": REPORT_VERSION,
        "version": __version__,
        "models": list(models),
        "config": config.to_dict(),
        "board": {"name": board.name, "part": board.part, "description": board.description},
        "clock_mhz": config.clock_mhz,
        "batch": program.batch,
        "array": {"outputs": config.array_outputs, "inputs": config.array_inputs, "macs_per_cycle": config.macs_per_cycle},
        "dram": {
            "bytes": program.size,
            "weight_bytes": sum(len(stripe) for stripe in program.stripes),
            "usable_bytes_per_cycle": round(memory.bytes_per_cycle, 3),
        },
        "note": "cycles, energy and resources are estimates; `hwgen run --engine rtl` measures cycles, `hwgen synth` resources",
        "tasks": {
            name: _task(task, config, memory, program.batch) | {"edges": [list(e) for e in (edges or {}).get(name, ())]}
            for name, task in program.tasks.items()
        },
        "resources": used,
        "resources_accuracy": resources.ACCURACY,
        "over_budget": sorted(kind for kind, r in used.items() if r["fraction"] > 1),
    }


def _task(task, config, memory, batch: int) -> dict:
    """Numbers per image, but `run_cycles` and those of timeline.breakdown: they are of one run, which takes a batch."""
    result = cost.estimate(task.instructions, config, memory, task.queues)
    cycles = max(1, round(result.cycles / batch))
    seconds = cycles / (config.clock_mhz * 1e6)
    macs, active = round(result.macs / batch), round(result.array_active / batch)
    moved = {"weights": result.weight_bytes, "read": result.read_bytes, "written": result.write_bytes}
    moved = {name: round(total / batch) for name, total in moved.items()}
    events = energy.activity(
        config,
        cycles=cycles,
        array_active=active,
        weight_bytes=moved["weights"],
        data_bytes=moved["read"] + moved["written"],
    )
    joules = energy.estimate(events, seconds)
    kinds: dict[str, int] = {}
    for insn in task.instructions:
        kinds[type(insn).__name__] = kinds.get(type(insn).__name__, 0) + 1
    spent = timeline.breakdown(task.instructions, task.origins, result.spans, result.cycles, config)
    return {
        "estimate": True,
        "cycles": cycles,
        "run_cycles": spent["cycles"],
        "milliseconds": round(seconds * 1e3, 6),
        "images_per_second": round(1 / seconds, 3),
        "macs": macs,
        "utilisation": round(macs / (cycles * config.macs_per_cycle), 4),
        "array_active_cycles": active,
        "stall_weights_cycles": round(spent["causes"]["dram"] / batch),
        "unit_busy_cycles": {unit: round(busy / batch) for unit, busy in spent["busy"].items()},
        "instructions": dict(sorted(kinds.items())),
        "traffic_bytes": moved,
        **({"spilled_bytes": spilled} if (spilled := _spilled(task, config, batch)) else {}),
        "energy_estimate": {
            "note": energy.NOTE,
            "millijoule_per_image": round(joules["total"] * 1e3, 6),
            **{f"of_it_{name}": round(value * 1e3, 6) for name, value in joules.items() if name != "total"},
        },
        "run_busy": spent["busy"],
        "causes": spent["causes"],
        "layers": spent["layers"],
        "operations": spent["operations"],
    }


def _spilled(task, config, batch: int) -> dict[str, dict[str, int]]:
    """Bytes an image that each spilled value is read and written: of traffic_bytes, the part of values in DRAM."""
    moved: dict[str, dict[str, int]] = {}
    for insn, name in zip(task.instructions, task.origins, strict=True):
        if isinstance(insn, (isa.Load, isa.Store)) and (found := re.fullmatch(r"(.+)\.(?:fetch|spill)\d+", name)):
            way = "read" if isinstance(insn, isa.Load) else "written"
            entry = moved.setdefault(found[1], {"read": 0, "written": 0})
            entry[way] += data_beats(insn, config) * config.axi_bytes
    return {name: {way: round(total / batch) for way, total in entry.items()} for name, entry in moved.items()}


def at_clock(report: dict, clock: dict[str, float]) -> dict:
    """The report with its times at the clock that "likely" allows, where `hwgen timing` found less than the bundle's.

    clock: scenario -> MHz, empty where nothing was estimated. Cycles stay: a slower machine waits no longer for DRAM.
    """
    if not clock:
        return report
    mhz = min(report["clock_mhz"], clock["likely"])
    slower = report["clock_mhz"] / mhz
    tasks = {
        name: task
        | {
            "milliseconds": round(task["milliseconds"] * slower, 6),
            "images_per_second": round(task["images_per_second"] / slower, 3),
        }
        for name, task in report["tasks"].items()
    }
    return report | {"tasks": tasks, "clock_estimate_mhz": clock, "clock_of_times_mhz": mhz}


def _clock(report: dict) -> list[str]:
    """What is known of the clock, and a warning where the bundle's is above it."""
    clock = report.get("clock_estimate_mhz")
    if not clock:
        return ["", "clock: not looked at; `hwgen timing` estimates it, which takes a synthesis"]
    lines = ["", "estimated clock: " + ", ".join(f"{scenario} {mhz:g} MHz" for scenario, mhz in clock.items())]
    if clock["likely"] < report["clock_mhz"]:
        lines.append(f"warning: the bundle's {report['clock_mhz']:g} MHz is above it; times are at {clock['likely']:g} MHz")
    return lines


def text(report: dict, trace: dict | None = None) -> str:
    """The table that ends a build and that `hwgen report` prints; with a `trace` the measured layers too."""
    array, board = report["array"], report["board"]
    lines = [
        f"{board['name']} ({board['part']}), {report['clock_mhz']:g} MHz, array {array['outputs']} x {array['inputs']}",
        "",
        f"{'estimate per image':20} {'cycles':>12} {'ms':>9} {'images/s':>10} {'array':>7} {'MMAC':>9} {'MB moved':>9} {'mJ':>8}",
    ]
    for name, task in report["tasks"].items():
        moved = sum(task["traffic_bytes"].values()) / 1e6
        lines.append(
            f"{_called(name):20} {task['cycles']:>12,} {task['milliseconds']:>9.3f} "
            f"{task['images_per_second']:>10,.1f} {task['utilisation']:>7.1%} {task['macs'] / 1e6:>9,.1f} {moved:>9.2f} "
            f"{task['energy_estimate']['millijoule_per_image']:>8.2f}"
        )
    for name, task in report["tasks"].items():
        values = task.get("spilled_bytes", {})
        if values:
            total = sum(sum(entry.values()) for entry in values.values()) / 1e6
            most = sorted(values.items(), key=lambda item: -sum(item[1].values()))[:SHOWN]
            named = ", ".join(f"{value} {sum(entry.values()) / 1e6:.2f}" for value, entry in most)
            whose = f"task {name}, " if name else ""
            more = ", ..." if len(values) > SHOWN else ""
            lines.append(f"{whose}{len(values)} values spilled to DRAM, {total:.2f} of the MB moved: {named}{more}")
    lines += ["", f"{'estimated resources':20} {'used':>12} {'available':>9} {'':>10}  ({resources.ACCURACY})"]
    for kind, r in report["resources"].items():
        if r["available"] or r["used"]:
            share = f"{r['fraction']:.0%}" if r["available"] else "none there"
            lines.append(f"{kind.upper():20} {r['used']:>12,} {r['available']:>9,} {share:>10}")
    lines += _clock(report)
    if over := exceeded(report):
        lines += ["", f"warning: estimated to exceed the part's {over}"]
    if trace is not None:
        lines += _measured(report, trace)
    return "\n".join(lines)


def exceeded(report: dict) -> str:
    """The resources of which a report estimates more than the part has, in words; "" where all fit."""
    return ", ".join(kind.upper() for kind in report["over_budget"])


def _called(task: str) -> str:
    """A run of several tasks is named by all of them, with commas between."""
    return f"task{'s' * (',' in task)} {task}" if task else "the network"


def _measured(report: dict, trace: dict) -> list[str]:
    """The layers of the runs of a trace, beside the estimate, which takes all experts for equally busy."""
    head = "".join(f"{cause:>9}" for cause in (*timeline.CAUSES, "padding"))
    estimates = report["tasks"][trace["task"]]["layers"]
    lines = []
    for i, run in enumerate(trace["runs"]):
        title = f"measured, run {i}, DRAM {trace['dram']}"
        lines += ["", f"{title:44} {'cycles':>9} {'estimate':>9}{head}"]
        for layer, estimate in zip(run["layers"], estimates, strict=True):
            spent = "".join(f"{layer[cause]:>9,}" for cause in (*timeline.CAUSES, "padding"))
            lines.append(f"{layer['name'][-44:]:44} {layer['cycles']:>9,} {estimate['cycles']:>9,}{spent}")
        total = "".join(f"{run['causes'][cause]:>9,}" for cause in timeline.CAUSES)
        padding = sum(layer["padding"] for layer in run["layers"])
        estimated = report["tasks"][trace["task"]]["run_cycles"]
        lines.append(f"{'all':44} {run['cycles']:>9,} {estimated:>9,}{total}{padding:>9,}")
    return lines
