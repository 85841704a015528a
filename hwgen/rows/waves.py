"""Sines and cosines of what lies within one turn, by products: a polynomial, since the machine has no table of them.

Detectors compute positions this way: a box's numbers, which a sigmoid limits, times many frequencies (DAB-DETR: Liu et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import graph
from ..layers import Activation, Clip, Linear, Scale, Select, Softmax
from ..tensor import Concat, Copy, Gather, Map, Node, Pad, Ref
from .moves import value
from .operands import Operand
from .views import Unsupported

if TYPE_CHECKING:
    from .lower import Rows

MOST = 2 * np.pi + 1e-3  # from the least argument to the largest: beyond it terms cancel that 16 bits do not hold
NEAR = 3e-6  # what the polynomial may be off by: as much as sums of floats are, for the proof against the file
DEGREE = 14
LIMITS = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "sin": (-1.0, 1.0), "cos": (-1.0, 1.0)}
Bounds = tuple[float, float]


def wave(b: Rows, node: Node, operand: Operand, start: int, stop: int) -> str:
    """sin or cos of rows of an operand: p(z) = even(z z) + z odd(z z), z from -1 to 1 over the range of the argument."""
    function = node.op.form
    low, high = bounds(node.operands[0])
    if not high - low <= MOST:
        raise Unsupported(f"is {function} of what may span more than one turn", "limit what it reads, as a sigmoid does")
    middle, half = (low + high) / 2, max((high - low) / 2, NEAR)
    parts = coefficients(function, middle, half)
    x, shape = value(b, node, operand, start, stop), (stop - start, operand.width)

    def number(of: float) -> np.ndarray:
        return np.full(shape, of, np.float32)

    def times(one: str, other: str) -> str:
        return b.add(graph.Multiply, node, "", "multiply", a=one, b=other)

    z = b.plus(node, b.times(node, x, number(1 / half)), number(-middle / half))
    square = times(z, z) if max(map(len, parts)) > 1 else ""
    made = []
    for odd, (first, *rest) in enumerate(reversed(part) if part else (0.0,) for part in parts):
        if not parts[odd]:
            continue
        y = b.table(node, number(first)) if not rest else b.plus(node, b.times(node, square, number(first)), number(rest.pop(0)))
        for c in rest:
            y = b.plus(node, times(y, square), number(c))
        made.append(times(y, z) if odd else y)
    return made[0] if len(made) == 1 else b.add(graph.Add, node, "", function, a=made[0], b=made[1])


def coefficients(function: str, middle: float, half: float) -> tuple[list[float], list[float]]:
    """Of even and odd powers of z, of the function of middle + half * z; none where all are next to nothing."""

    def of(z: np.ndarray) -> np.ndarray:
        return np.asarray({"sin": np.sin, "cos": np.cos}[function](middle + half * z))

    grid = np.linspace(-1, 1, 257)
    for degree in range(1, DEGREE + 1):
        found = np.polynomial.Chebyshev.interpolate(of, degree).convert(kind=np.polynomial.Polynomial)
        if np.abs(found(grid) - of(grid)).max() < NEAR:
            break
    even, odd = ([float(c) for c in found.coef[k::2]] for k in range(2))
    return even if max(map(abs, even)) > NEAR or not odd else [], odd if max(map(abs, odd), default=0.0) > NEAR else []


def bounds(r: Ref) -> Bounds:
    """Between which numbers all elements of a value lie, whatever the image."""
    if (numbers := r.constant) is not None:
        return float(np.min(numbers)), float(np.max(numbers))
    op, operands = r.op, r.node.operands
    if isinstance(op, Activation):
        return LIMITS.get(op.form, (0.0, np.inf) if op.form == "relu" and not op.slope else (-np.inf, np.inf))
    if isinstance(op, Softmax):
        return 0.0, 1.0
    if isinstance(op, Clip):
        low, high = bounds(operands[0])
        return max(low, op.low), min(high, op.high)
    if isinstance(op, Copy | Gather | Select):
        return bounds(operands[0])
    if isinstance(op, Concat | Pad):
        return _hull([*map(bounds, operands), *([(op.value, op.value)] if isinstance(op, Pad) else [])])
    if isinstance(op, Map):
        return _of_map(op.function, list(map(bounds, operands)))
    if isinstance(op, Scale):
        return _sum(_times(bounds(operands[0]), bounds(operands[1])), bounds(operands[2]))
    if isinstance(op, Linear) and operands[1].constant is not None:
        return _of_linear(*operands)
    return -np.inf, np.inf


def _of_map(function: str, of: list[Bounds]) -> Bounds:
    if function == "neg":
        return -of[0][1], -of[0][0]
    if function == "add":
        return _sum(*of)
    if function == "sub":
        return _sum(of[0], (-of[1][1], -of[1][0]))
    if function == "mul":
        return _times(*of)
    if function == "div" and (of[1][0] > 0 or of[1][1] < 0):
        return _times(of[0], (1 / of[1][1], 1 / of[1][0]))
    return -np.inf, np.inf


def _of_linear(x: Ref, w: Ref, *bias: Ref) -> Bounds:
    low, high = bounds(x)
    if not np.isfinite([low, high]).all():
        return -np.inf, np.inf
    weight, term = np.asarray(w.constant, np.float64), np.asarray(bias[0].constant, np.float64) if bias else 0.0
    up, down = np.maximum(weight, 0).sum(axis=1), np.minimum(weight, 0).sum(axis=1)
    return float((up * low + down * high + term).min()), float((up * high + down * low + term).max())


def _sum(a: Bounds, b: Bounds) -> Bounds:
    return a[0] + b[0], a[1] + b[1]


def _times(a: Bounds, b: Bounds) -> Bounds:
    corners = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(corners), max(corners)


def _hull(of: Sequence[Bounds]) -> Bounds:
    return min(low for low, _ in of), max(high for _, high in of)
