"""A histogram as SVG, for where there is no plotting library."""

from __future__ import annotations

from html import escape

import numpy as np

WIDTH, HEIGHT, MARGIN, BINS = 720, 280, 44, 40


def histogram(values, title: str, unit: str, device) -> str:
    """How often each range of `values` came. device: says in the title whether it is simulated."""
    values = np.asarray(values, np.float64)
    low, high = values.min(), values.max()
    room = max(abs(high), 1e-12) * 0.005  # simulated runs may all take equally long
    counts, edges = np.histogram(values, BINS, (low - room, high + room))
    label = f"{title}, {device.name}" + (" (simulated)" if device.simulated else "")
    width, height, top = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN, max(int(counts.max()), 1)
    bar = width / BINS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{MARGIN}" y="20">{escape(label)}</text>',
    ]
    for i, count in enumerate(counts):
        tall = height * count / top
        parts.append(
            f'<rect x="{MARGIN + i * bar:.1f}" y="{MARGIN + height - tall:.1f}" width="{bar - 1:.1f}" '
            f'height="{tall:.1f}" fill="#1f5fa8"/>'
        )
    below = MARGIN + height + 16
    parts += [
        f'<text x="{MARGIN}" y="{below}">{edges[0]:.4g} {escape(unit)}</text>',
        f'<text x="{MARGIN + width}" y="{below}" text-anchor="end">{edges[-1]:.4g} {escape(unit)}</text>',
        f'<text x="{MARGIN - 6}" y="{MARGIN + 10}" text-anchor="end">{top}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
