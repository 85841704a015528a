"""The report as one HTML page without outside references: tables, and of each run a timeline of the units and a roofline."""

from __future__ import annotations

from html import escape

from .report_svg import roofline, timeline
from .timeline import CAUSES

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #1b1f24 }
table { border-collapse: collapse; margin: .6em 0 1.6em } td, th { padding: .25em .9em; border-bottom: 1px solid #d8dde3 }
td { text-align: right } td:first-child, th:first-child { text-align: left } .note { color: #5a6572 }
svg { width: 100%; height: auto; background: #f6f8fa } text { font: 12px system-ui, sans-serif; fill: #1b1f24 }
"""


def page(report: dict, trace: dict | None = None) -> str:
    """The HTML text of a report made by `report.make`. trace: measured runs, as `hwgen run --trace` writes them."""
    board, array = report["board"], report["array"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>hwgen: {escape(board['name'])}</title>",
        f"<style>{STYLE}</style><h1>Accelerator for {escape(board['description'])}</h1>",
        f"<p>{escape(board['part'])}, {report['clock_mhz']:g} MHz, array of {array['outputs']} × {array['inputs']} int8 "
        f"multipliers.</p><p class=note>{escape(report['note'])}.</p>",
        "<h2>Per image</h2>",
        _table(
            ["task", "cycles", "ms", "images/s", "array used", "M MAC", "MB moved", "mJ"],
            [_task_row(name, task) for name, task in report["tasks"].items()],
        ),
        "<h2>Resources</h2>",
        _table(
            ["resource", "used", "available", "share"],
            [
                [kind.upper(), f"{r['used']:,}", f"{r['available']:,}", f"{r['fraction']:.0%}"]
                for kind, r in report["resources"].items()
            ],
        ),
    ]
    bandwidth = report["dram"]["usable_bytes_per_cycle"]
    for name, task in report["tasks"].items():
        title = f"Estimate{' for ' + name if name else ''}: where the cycles go"
        parts += _run(title, task | {"cycles": task["run_cycles"], "busy": task["run_busy"]}, array, bandwidth)
    for i, run in enumerate(trace["runs"] if trace else ()):
        title = f"Measured, {trace['task'] + ', ' if trace['task'] else ''}run {i}, DRAM {trace['dram']}"
        parts += _run(title, run, array, trace["dram_bytes_per_cycle"])
    return "\n".join(parts) + "\n</html>\n"


def _run(title: str, run: dict, array: dict, bandwidth: float) -> list[str]:
    """The section of one run of a program, as timeline.breakdown gives it."""
    head = ["layer", "cycles", *CAUSES, "padding", "MAC/cycle", "MB"]
    rows = []
    for layer in run["layers"]:
        cells = [layer["cycles"], *(layer[cause] for cause in CAUSES), layer["padding"]]
        rate = layer["macs"] / max(1, layer["cycles"])
        moved = layer["dram_bytes"] / 1e6
        rows.append([layer["name"], *(f"{cell:,}" for cell in cells), f"{rate:,.0f}", f"{moved:.2f}"])
    return [
        f"<h2>{escape(title)}</h2>",
        timeline(run),
        roofline(run, array["macs_per_cycle"], bandwidth),
        "<p class=note>active: a row enters the array, padding of it without an operand; the others: none does, for want "
        "of a weight word, a tile, a scratchpad bank, a result, or for a step of the control logic.</p>",
        _table(head, rows),
    ]


def _task_row(name: str, task: dict) -> list[str]:
    return [
        name or "the network",
        f"{task['cycles']:,}",
        f"{task['milliseconds']:.3f}",
        f"{task['images_per_second']:,.1f}",
        f"{task['utilisation']:.1%}",
        f"{task['macs'] / 1e6:,.1f}",
        f"{sum(task['traffic_bytes'].values()) / 1e6:.2f}",
        f"{task['energy_estimate']['millijoule_per_image']:.2f}",
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
