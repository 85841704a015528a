"""The report as one HTML page without outside references: the tables, and for each task a timeline of the units."""

from __future__ import annotations

from html import escape

from .isa import INSNS, Unit

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #1b1f24 }
table { border-collapse: collapse; margin: .6em 0 1.6em } td, th { padding: .25em .9em; border-bottom: 1px solid #d8dde3 }
td { text-align: right } td:first-child, th:first-child { text-align: left } .note { color: #5a6572 }
svg { width: 100%; height: auto; background: #f6f8fa } text { font: 12px system-ui, sans-serif; fill: #1b1f24 }
"""
COLOURS = {"load": "#4c78a8", "weights": "#72b7b2", "matmul": "#e45756", "vector": "#eeca3b", "store": "#54a24b"}
WIDTH, LEFT, ROW = 1060, 70, 26
UNIT_OF = {insn.__name__: insn.unit.name.lower() for insn in INSNS.values() if insn.unit is not None}


def page(report: dict) -> str:
    """The HTML text of a report made by `report.make`."""
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
    for name, task in report["tasks"].items():
        parts += [f"<h2>Timeline{' of ' + escape(name) if name else ''}</h2>", _timeline(task)]
    return "\n".join(parts) + "\n</html>\n"


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


def _timeline(task: dict) -> str:
    """One lane per unit, a bar per instruction; the tool tip names the operation."""
    units = [unit.name.lower() for unit in Unit]
    scale = (WIDTH - LEFT - 10) / task["cycles"]
    marks = []
    for i, unit in enumerate(units):
        busy = task["unit_busy_cycles"][unit] / task["cycles"]
        marks.append(f"<text x=4 y={i * ROW + 17}>{unit} {busy:.0%}</text>")
    for entry in task["operations"]:
        unit = UNIT_OF[entry["insn"]]
        x, width = LEFT + 20 + entry["start"] * scale, max(0.3, (entry["end"] - entry["start"]) * scale)
        tip = escape(f"{entry['insn']} {entry['of']}: {entry['start']:,} to {entry['end']:,}")
        marks.append(
            f"<rect x={x:.1f} y={units.index(unit) * ROW + 4} width={width:.1f} height={ROW - 8} fill='{COLOURS[unit]}' "
            f"fill-opacity=.7><title>{tip}</title></rect>"
        )
    height = len(units) * ROW + 22
    marks.append(f"<text x={LEFT + 20} y={height - 5}>0</text>")
    marks.append(f"<text x={WIDTH} y={height - 5} text-anchor=end>{task['cycles']:,} cycles</text>")
    return f"<svg viewBox='0 0 {WIDTH + 20} {height}'>{''.join(marks)}</svg>"
