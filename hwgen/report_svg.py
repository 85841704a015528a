"""Pictures of a run as SVG: what every unit does when, and how near each layer comes to what array and DRAM allow."""

from __future__ import annotations

import math
from html import escape

from .isa import INSNS, Unit
from .timeline import CAUSES

COLOURS = {"load": "#4c78a8", "weights": "#72b7b2", "matmul": "#e45756", "vector": "#eeca3b", "store": "#54a24b"}
CAUSE_COLOURS = {
    "active": "#54a24b", "dram": "#4c78a8", "tile": "#f2a541", "bank": "#b279a2", "depend": "#e45756", "other": "#9d9da1",
}  # fmt: skip
WIDTH, LEFT, ROW = 1060, 90, 26
UNIT_OF = {insn.__name__: insn.unit.name.lower() for insn in INSNS.values() if insn.unit is not None}


def timeline(run: dict) -> str:
    """One lane per unit, a bar per instruction, the tool tip its operation; above them the array's cycles by cause.

    run: as timeline.breakdown gives it.
    """
    units = [unit.name.lower() for unit in Unit]
    scale = (WIDTH - LEFT - 10) / run["cycles"]
    array = run["causes"]["active"] / run["cycles"]
    marks = [f"<text x=4 y=17>array {array:.0%}</text>"]
    for i, unit in enumerate(units, 1):
        marks.append(f"<text x=4 y={i * ROW + 17}>{unit} {run['busy'][unit] / run['cycles']:.0%}</text>")

    def bar(lane: int, start: float, end: float, colour: str, tip: str) -> str:
        x, width = LEFT + 20 + start * scale, max(0.3, (end - start) * scale)
        return (
            f"<rect x={x:.1f} y={lane * ROW + 4} width={width:.1f} height={ROW - 8} fill='{colour}' fill-opacity=.75>"
            f"<title>{escape(tip)}</title></rect>"
        )

    for entry in run["operations"]:
        unit = UNIT_OF[entry["insn"]]
        tip = f"{entry['insn']} {entry['of']}: {entry['start']:,} to {entry['end']:,}"
        marks.append(bar(units.index(unit) + 1, entry["start"], entry["end"], COLOURS[unit], tip))
        at = entry.get("issued", 0) + 1
        for cause in CAUSES:  # backwards from its last row: its rows, then what they waited for
            if spent := entry.get(cause):
                marks.append(bar(0, at - spent, at, CAUSE_COLOURS[cause], f"{entry['of']}: {cause} {spent:,}"))
                at -= spent
    height = (len(units) + 1) * ROW + 22
    marks.append(f"<text x={LEFT + 20} y={height - 5}>0</text>")
    for i, cause in enumerate(CAUSES):
        marks.append(f"<text x={LEFT + 150 + 90 * i} y={height - 5} fill='{CAUSE_COLOURS[cause]}'>■ {cause}</text>")
    marks.append(f"<text x={WIDTH} y={height - 5} text-anchor=end>{run['cycles']:,} cycles</text>")
    return f"<svg viewBox='0 0 {WIDTH + 20} {height}'>{''.join(marks)}</svg>"


def roofline(run: dict, macs_per_cycle: int, bytes_per_cycle: float) -> str:
    """Products a cycle of each layer over its products per byte of DRAM, under the roof of array and bandwidth.

    After Williams, Waterman and Patterson, Roofline (CACM 2009). bytes_per_cycle: 0 without a limit.
    """
    points = [
        (layer["macs"] / layer["dram_bytes"], layer["macs"] / layer["cycles"], layer)
        for layer in run["layers"]
        if layer["macs"] and layer["dram_bytes"] and layer["cycles"] > 0
    ]
    if not points:
        return ""
    ridge = macs_per_cycle / bytes_per_cycle if bytes_per_cycle else points[0][0]
    low = math.floor(math.log2(min(ridge, *(x for x, _, _ in points)))) - 1
    high = math.ceil(math.log2(max(ridge, *(x for x, _, _ in points)))) + 1
    top = math.log2(macs_per_cycle)
    floor = min(math.floor(math.log2(min(y for _, y, _ in points))), math.floor(top) - 3)
    height, right = 300, 560

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (math.log2(x) - low) / (high - low) * (right - LEFT)
        return across, 20 + (top - math.log2(y)) / (top - floor) * (height - 50)

    roof = [place(2.0**high, macs_per_cycle)]
    if bytes_per_cycle:
        start = max(2.0**low, 2.0**floor / bytes_per_cycle)
        roof = [place(start, start * bytes_per_cycle), place(ridge, macs_per_cycle), *roof]
    else:
        roof = [place(2.0**low, macs_per_cycle), *roof]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in roof)
    marks = [f"<polyline points='{line}' fill=none stroke='#1b1f24'/>"]
    for x, y, layer in points:
        across, down = place(x, y)
        tip = f"{layer['name']}: {y:,.0f} products a cycle, {x:,.1f} per byte"
        marks.append(
            f"<circle cx={across:.1f} cy={down:.1f} r=4 fill='#e45756' fill-opacity=.6><title>{escape(tip)}</title></circle>"
        )
    marks.append(f"<text x=4 y=16>{macs_per_cycle:,} products a cycle</text>")
    marks += [f"<text x={place(2.0**e, 1)[0]:.0f} y={height - 5}>{2.0**e:g}</text>" for e in range(low, high, 2)]
    marks.append(f"<text x={right + 10} y={height - 5}>products per byte of DRAM</text>")
    return f"<svg viewBox='0 0 {WIDTH + 20} {height}'>{''.join(marks)}</svg>"
