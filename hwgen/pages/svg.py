"""Pictures as SVG that take their colours from the page's style: a roofline, the load of experts, a graph of parts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

Key = tuple[str, str]
LABELS = 12  # points of a roofline that carry their name: those with the most cycles


def svg(width: float, height: float, marks: Iterable[str], label: str) -> Markup:
    """A picture of its marks; `label` says to those who do not see it what it shows."""
    body = "".join(marks)
    return Markup(
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role=img '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f"<text x={x:.1f} y={y:.1f} {more}>{escape(words)}</text>"


def roofline(rows: Sequence[Mapping[str, Any]], macs_per_cycle: int, bytes_per_cycle: float) -> Markup | str:
    """Products a cycle of each part over its products per byte of DRAM, under the roof of array and bandwidth.

    After Williams, Waterman and Patterson, Roofline (CACM 2009). bytes_per_cycle: 0 without a limit. "" without points.
    """
    points = [
        (r["macs"] / r["dram_bytes"], r["macs"] / r["cycles"], r)
        for r in rows
        if r["macs"] and r["dram_bytes"] and r["cycles"] > 0
    ]
    if not points:
        return ""
    ridge = macs_per_cycle / bytes_per_cycle if bytes_per_cycle else points[0][0]
    low = math.floor(math.log2(min(ridge, *(x for x, _, _ in points)))) - 1
    high = math.ceil(math.log2(max(ridge, *(x for x, _, _ in points)))) + 1
    top = math.log2(macs_per_cycle)
    floor = min(math.floor(math.log2(min(y for _, y, _ in points))), math.floor(top) - 3)
    width, height, left, bottom = 1000, 440, 80, 400

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (math.log2(x) - low) / (high - low) * (width - left - 20)
        return across, 30 + (top - math.log2(y)) / (top - floor) * (bottom - 40)

    marks = []
    for e in range(low, high + 1, max(1, (high - low) // 10)):
        x, _ = place(2.0**e, 1)
        marks += [f"<line class=axis x1={x:.1f} x2={x:.1f} y1=30 y2={bottom} />", text(x, bottom + 16, f"{2.0**e:g}")]
    for e in range(floor, math.floor(top) + 1, max(1, (math.floor(top) - floor) // 6)):
        _, y = place(1, 2.0**e)
        marks += [f"<line class=axis x1={left} x2={width} y1={y:.1f} y2={y:.1f} />", text(30, y + 4, f"{2.0**e:g}")]
    roof = [place(2.0**low, macs_per_cycle), place(2.0**high, macs_per_cycle)]
    if bytes_per_cycle:
        start = max(2.0**low, 2.0**floor / bytes_per_cycle)
        roof = [place(start, start * bytes_per_cycle), place(ridge, macs_per_cycle), roof[1]]
        x, y = roof[0]
        marks.append(text(x + 12, y - 24, f"DRAM, {bytes_per_cycle:.1f} bytes a cycle", "class=quiet"))
    marks.append(f'<polyline class=roof points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in roof)}" />')
    marks.append(text(roof[-2][0], roof[-1][1] - 8, f"array, {macs_per_cycle:,} products a cycle", "class=quiet"))
    marks += [text(4, 16, "products a cycle"), text(width - 10, height - 6, "products per byte of DRAM", 'text-anchor="end"')]
    named = sorted(points, key=lambda point: -point[2]["cycles"])[:LABELS]
    taken: list[tuple[float, float]] = []
    for x, y, r in sorted(points, key=lambda point: -point[2]["cycles"]):
        across, down = place(x, y)
        tip = f"{r['name']}: {y:,.0f} products a cycle, {x:,.1f} per byte, {r['cycles']:,} cycles"
        marks.append(f"<circle class=dot cx={across:.1f} cy={down:.1f} r=4><title>{escape(tip)}</title></circle>")
        free = all(abs(across - a) > 150 or abs(down - b) > 13 for a, b in taken)
        if free and any(r is other for _, _, other in named):
            taken.append((across, down))
            right = across > width - 200
            marks.append(text(across + (-7 if right else 7), down + 4, r["name"], 'text-anchor="end"' if right else ""))
    return svg(width, height, marks, "Roofline: products a cycle of each part over its products per byte of DRAM")


def load(experts: Mapping[str, Mapping[int, int]]) -> Markup:
    """Tokens of each expert as bars, a row of them for each layer of experts."""
    width, left, row = 1000, 220, 54
    marks = []
    for i, (name, tokens) in enumerate(experts.items()):
        most, base = max(1, *tokens.values()), i * row + row - 14
        step = (width - left) / len(tokens)
        marks.append(text(4, base, f"{name}: {sum(tokens.values()):,}, at most {max(tokens.values()):,}"))
        for j, (expert, count) in enumerate(tokens.items()):
            high = (row - 20) * count / most
            marks.append(
                f"<rect class=bar x={left + j * step:.1f} y={base - high:.1f} width={max(1.0, step - 2):.1f} height={high:.1f}>"
                f"<title>{escape(name)}, expert {expert}: {count:,} tokens</title></rect>"
            )
            if step > 14:
                marks.append(text(left + j * step, base + 11, str(expert), "class=quiet"))
    return svg(width, len(experts) * row, marks, "Tokens of each expert")


def histogram(real: Sequence[int], integer: Sequence[int], reach: float, limits: Sequence[float], label: str) -> Markup:
    """Counts of two kinds in bins from -reach to reach: the first as bars, the second as a line; `limits` as dashed lines.

    Heights are square roots of shares, so that tails are seen.
    """
    width, height = 260.0, 54.0
    step = width / len(real)

    def tall(counts: Sequence[int]) -> list[float]:
        most = max(1, *counts)
        return [(height - 4) * math.sqrt(n / most) for n in counts]

    bars = "".join(f"M{i * step:.1f} {height:.0f}v{-h:.1f}h{step:.1f}v{h:.1f}z" for i, h in enumerate(tall(real)) if h)
    line = " ".join(f"{(i + 0.5) * step:.1f},{height - h:.1f}" for i, h in enumerate(tall(integer)))
    marks = [f'<path class=bar d="{bars}" />', f'<polyline class=trail points="{line}" />']
    for at in limits:
        x = (at + reach) / (2 * reach) * width
        marks.append(f"<line class=grid x1={x:.1f} x2={x:.1f} y1=0 y2={height:.0f} />")
    return svg(width, height, marks, label)


def graph(rows: Sequence[Mapping[str, Any]], edges: Iterable[tuple[Key, Key]]) -> Markup:
    """Parts as boxes, a band for each block, edges for the values that flow between them.

    rows: as `parts.parts` gives them. A part stands right of those of its block that it reads.
    """
    edges = list(edges)
    keys = [(r["block"], r["part"]) for r in rows]
    known = set(keys)
    column: dict[Key, int] = {}
    read: dict[Key, list[Key]] = defaultdict(list)
    for a, b in edges:
        if a[0] == b[0]:
            read[b].append(a)
    blocks: dict[str, list[Key]] = defaultdict(list)
    for key in keys:
        column[key] = max((column[a] for a in read[key] if a in column), default=-1) + 1
        blocks[key[0]].append(key)
    wide, gap, tall, head = 128, 22, 26, 130
    place: dict[Key, tuple[float, float]] = {}
    marks, y = [], 10.0
    for block, inside in blocks.items():
        used: dict[int, int] = {}
        for key in inside:
            depth = used.get(column[key], 0)
            used[column[key]] = depth + 1
            place[key] = (head + column[key] * (wide + gap), y + depth * (tall + 6))
        deep = max(used.values())
        marks.append(text(6, y + 17, block or "network", "font-weight=600"))
        y += deep * (tall + 6) + 14
    width = max(x for x, _ in place.values()) + wide + 20
    for a, b in edges:
        if a in known and b in known:
            (x1, y1), (x2, y2) = place[a], place[b]
            if a[0] == b[0] and x2 > x1:
                start, end = (x1 + wide, y1 + tall / 2), (x2, y2 + tall / 2)
                bend = (start[0] + gap / 2, start[1], end[0] - gap / 2, end[1])
            else:
                start, end = (x1 + wide / 2, y1 + tall), (x2 + wide / 2, y2)
                bend = (start[0], start[1] + 20, end[0], end[1] - 20)
            numbers = " ".join(f"{n:.0f}" for n in (*bend, *end))
            marks.append(f'<path class=edge d="M{start[0]:.0f} {start[1]:.0f}C{numbers}" />')
    most = max((r["cycles"] for r in rows), default=0) or 1
    for r in rows:
        x, top = place[r["block"], r["part"]]
        area = f'x={x:.0f} y={top:.0f} width={wide} height={tall} rx=4'
        name = r["part"] or r["block"]
        short = name if len(name) <= 19 else "…" + name[-18:]
        marks.append(
            f'<g><title>{escape(r["name"])}: {r["cycles"]:,} cycles of the array</title><rect class=box {area} />'
            f'<rect class=heat {area} style="fill-opacity:{0.7 * math.sqrt(r["cycles"] / most):.2f}" />'
            f"{text(x + 6, top + 17, short)}</g>"
        )
    return svg(width, y, marks, "Parts of the network and the values between them")
