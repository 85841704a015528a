"""Depthwise convolutions: a window for each channel, of a kernel of any height."""

from __future__ import annotations

from typing import Any

from .. import graph
from ..tensor import Node
from .lower import Rows
from .views import Array, Unsupported

MOST_TAPS = 64  # of a kernel: what the machine weights in one instruction
MOST_KERNEL = 63  # taps along an axis that a walk holds
MOST_DILATION = 63  # tokens from one tap of a window to the next, where taps may lie beyond the map


def check_walk(kernel: tuple[int, ...], fields: dict[str, Any], tall: bool = True) -> None:
    """Raises Unsupported for what no walk of the machine's holds. tall: a kernel of any height can be cut."""
    sides = kernel[1:] if tall else kernel
    if max(sides) > MOST_KERNEL:
        raise Unsupported(f"convolves with {max(sides)} taps along an axis", f"use a kernel of at most {MOST_KERNEL}")
    far = max(d for d, n in zip(fields["dilation"], kernel, strict=True) if n > 1) if max(kernel) > 1 else 0
    if far > MOST_DILATION and any(fields["pads"]):
        raise Unsupported(f"convolves taps {far} apart over a border", f"use a dilation of at most {MOST_DILATION}")


def depthwise(b: Rows, node: Node, x: str, taps: Array, bias: Array | None, fields: dict[str, Any]) -> str:
    """A window with weights `taps` [height, width, C]; a kernel of more than the machine takes as a sum of parts of it, each
    over the rows of the map that it meets."""
    height, width, _ = taps.shape
    check_walk(taps.shape[:2], fields)
    if height * width <= MOST_TAPS and height <= MOST_KERNEL:
        own = {"form": "weighted", "kernel": (height, width), "weight": b.intern(taps), "bias": bias, **fields}
        return b.add(graph.Window, node, node.name, "window", x=x, **own)
    (rows, across), (top, left, bottom, right) = fields["size"], fields["pads"]
    (stride, _), (dilation, _) = fields["stride"], fields["dilation"]
    places = (rows + top + bottom - dilation * (height - 1) - 1) // stride + 1
    each, total = min(MOST_TAPS // width, MOST_KERNEL), ""
    for first in range(0, height, each):
        part = taps[first : first + each]
        start = first * dilation - top  # row of the map under the first position's first tap
        stop = start + (places - 1) * stride + (len(part) - 1) * dilation + 1
        low, high = max(start, 0), min(stop, rows)
        if low >= high:
            continue  # only zeros
        seen = x if (low, high) == (0, rows) else b.add(graph.Rows, node, "", "rows", x=x, start=low * across, stop=high * across)
        own = {"form": "weighted", "kernel": part.shape[:2], "weight": b.intern(part), "bias": None if total else bias}
        own |= fields | {"size": (high - low, across), "pads": (low - start, left, stop - high, right)}
        made = b.add(graph.Window, node, node.name and f"{node.name}.{first}", "window", x=seen, **own)
        total = made if not total else b.add(graph.Add, node, node.name, "add", a=total, b=made)
    return total
