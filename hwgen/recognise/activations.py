"""Activations by what they compute: any elementwise function of one value, compared with the known ones on a grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.special import expit

from ..layers import Activation, Clip
from ..tensor import Builder, Concat, Node, Ref
from .limits import beneath
from .match import constant, elementwise, is_map, layer, pointwise, scalar_of, sources
from .names import label, parent
from .rewrite import relabel

Array = np.ndarray
GRID = np.concatenate([np.linspace(-8, 8, 641), np.linspace(-40, 40, 81), [-1e4, -1e3, 1e3, 1e4]])
# Largest difference that is no other function: an eighth of an int8 step where the largest value is 4, 4 / 127 / 8. Files
# hold the constants of GELU in 16 bit, with few digits or on the grid of an 8-bit tensor.
CLOSE = 0.004
ROUNDED = 1e-3  # share of that from which on the file's function is another one than ours: a sqrt 2 in 16 bit gives 0.02
CURVED = ("gelu", "gelu_tanh", "silu", "hardswish", "mish", "elu")
PLAIN = ("relu", "relu6", "hardsigmoid", "sigmoid", "tanh", "softplus", "exp", "abs", "sin", "cos")
SMALL = 1e-6  # a number that keeps a sigmoid from zero, not one that limits it
GUESSED = {"silu", "relu", "elu"}  # whose slope is read off the function


@lru_cache(64)
def _known(form: str, slope: float) -> Array:
    from ..tensor.evaluate import apply

    return apply(Activation(form, slope), [GRID], np.float64)


def nearest(values: Array, forms: tuple[str, ...]) -> tuple[Activation, float] | None:
    """The nearest activation and its largest difference, in multiples of what is allowed."""
    best: tuple[Activation, float] | None = None
    at = {x: float(values[int(np.argmin(np.abs(GRID - x)))]) for x in (-1.0, 1.0)}
    for form in forms:
        slope = 1.0
        if form == "silu":
            if not 0.5 < at[1.0] < 1:
                continue
            slope = float(np.log(at[1.0] / (1 - at[1.0])))
            slope = next((s for s in (1.0, 1.702) if abs(slope - s) < 1e-3), round(slope, 6))
        elif form in GUESSED:
            slope = -at[-1.0] if form == "relu" else -at[-1.0] / (1 - np.exp(-1))
            slope = round(float(slope), 6) + 0.0
            if not (0 <= slope < 0.99 if form == "relu" else 0.05 < slope < 4):
                continue
        known = _known(form, slope)
        with np.errstate(all="ignore"):
            error = np.abs(values - known) / (CLOSE * np.maximum(1, np.abs(known) / 4))
        error = np.where(known == values, 0, error)
        worst = float(np.max(error)) if not np.isnan(error).any() else np.inf
        if worst <= 1 and (best is None or worst < best[1]):
            best = Activation(form, slope), worst
    return best


def _match(t: Builder, node: Node, forms: tuple[str, ...], factor: Callable[[Array], float] | None = None) -> Ref | None:
    """The layer of one of `forms` that a node is, times a number where `factor` finds one in its values on GRID."""
    if not is_map(node) or node.dtype != "f" or not _bends(node):
        return None
    for source in sources(node):
        if source.shape != node.shape or source.dtype != "f":
            continue
        values = elementwise(node, source, GRID)
        if values is None or np.shape(values) != GRID.shape:
            continue
        times = 1.0 if factor is None else factor(values)
        found = nearest(values / times, forms) if np.isfinite(times) and times != 0 else None
        if found is None:
            continue
        if found[1] > ROUNDED:
            t.notes["rounded"] = True
        y = t.node(found[0], source.node.ref)
        relabel(y, label(t.source) or f"{parent(source.node.name)}.act".lstrip("."))
        return t.through(source.layout, y if factor is None else t.map("mul", y, times))
    return None


def _bends(node: Node, depth: int = 8) -> bool:
    """Whether a function that is not linear is among the last steps."""
    if not pointwise(node) or is_map(
        node, "erf", "tanh", "sigmoid", "softplus", "exp", "max", "min", "where", "abs", "sin", "cos"
    ):
        return pointwise(node)
    return depth > 0 and (layer(node, Activation, Clip) or any(_bends(r.node, depth - 1) for r in node.operands))


def curved(t: Builder, node: Node) -> Ref | None:
    """GELU, SiLU and others, from the whole of their steps."""
    return _match(t, node, CURVED)


def scaled(t: Builder, node: Node) -> Ref | None:
    """GELU, SiLU and others times a number, as where the half of a GELU was folded into the weights that read it. All of them
    are x itself far above zero."""
    far = float(GRID[-1])
    return _match(t, node, CURVED, lambda values: round(float(values[-1]) / far, 6)) if is_map(node, "mul", "div") else None


def leaky(t: Builder, node: Node) -> Ref | None:
    """ReLU with a slope below zero, before a number that multiplies is part of a linear layer."""
    if not is_map(node, "where", "max", "add", "sub", "mul", "div"):
        return None
    found = _match(t, node, ("relu",))
    return found if found is not None and layer(found, Activation) and found.node.op.slope else None


def plain(t: Builder, node: Node) -> Ref | None:
    """ReLU and what is left of elementwise functions of one value."""
    return _match(t, node, PLAIN)


def undone(t: Builder, node: Node) -> Ref | None:
    """The inverse of a sigmoid behind a sigmoid, kept from infinity by bounds: the value itself, within the bounds. So
    detectors refine the places that a layer before them gave, also those of several layers side by side."""
    if not is_map(node, "log"):
        return None
    for source in sources(node):
        if source.shape != node.shape:
            continue
        if (limits := _limits(elementwise(node, source, GRID))) is not None:
            t.notes["rounded"] = True  # in single precision 1 - sigmoid has few digits left near its end
            return t.through(source.layout, t.node(Clip(*limits), source.node.ref))
        if isinstance(source.op, Concat) and (y := _undone_parts(t, node, source)) is not None:
            return y
    return None


def _undone_parts(t: Builder, node: Node, source: Ref) -> Ref | None:
    """`undone` of a join of sigmoids and constants."""
    limits = _limits(elementwise(node, source, expit(GRID)))
    if limits is None or not all(is_map(r, "sigmoid") or constant(r) for r in source.node.operands):
        return None
    parts = []
    for r in source.node.operands:
        if (numbers := r.constant) is not None:
            found = np.asarray(elementwise(node, source, np.asarray(numbers, np.float64)), np.float32)
            parts.append(t.const(found))
        else:
            x = t.through(r.layout, r.node.operands[0])
            parts.append(t.through(x.layout, t.node(Clip(*limits), x.node.ref)))
    t.notes["rounded"] = True
    return t.through(source.layout, t.concat(parts, source.op.axis))


def _limits(values: Array | None) -> tuple[float, float] | None:
    """(low, high) where values on GRID are those of min(max(x, low), high), zero between the bounds."""
    if values is None or np.shape(values) != GRID.shape:
        return None
    low, high = float(np.min(values)), float(np.max(values))
    if not low < 0 < high or not np.isfinite([low, high]).all() or np.abs(values - np.clip(GRID, low, high)).max() > CLOSE:
        return None
    return low, high


def over_sigmoid(t: Builder, node: Node) -> Ref | None:
    """What is divided by a sigmoid or an exponential: 1 / sigmoid(x) is 1 + exp(-x), and needs no division. So detectors
    compare the size of a box with that of another."""
    if not is_map(node, "div"):
        return None
    x, under = node.operands
    if not is_map(under, "sigmoid", "exp"):
        return None
    y = t.map("exp", t.map("neg", t.through(under.layout, under.node.operands[0])))
    return t.map("mul", x, t.map("add", y, 1.0) if is_map(under, "sigmoid") else y)


def log_sigmoid(t: Builder, node: Node) -> Ref | None:
    """log(sigmoid(x)), which PyTorch's exporters write for logsigmoid: -softplus(-x), without infinity far below zero; also of a
    sigmoid that is kept from zero by a small number."""
    if not is_map(node, "log"):
        return None
    inner, least = beneath(t, node.operands[0]), 0.0
    if (found := scalar_of(inner, "max")) is not None and 0 < found[1] < SMALL:
        inner, least = beneath(t, found[0]), found[1]
    if not is_map(inner, "sigmoid"):
        return None
    x = t.through(inner.layout, inner.node.operands[0])
    y = t.map("neg", t.map("softplus", t.map("neg", x)))
    return t.map("max", y, float(np.log(least))) if least else y


def clip(t: Builder, node: Node) -> Ref | None:
    """min(max(x, low), high), either of them or both."""
    low, high, r = -np.inf, np.inf, node.ref
    while node.dtype == "f":
        inner = (-np.inf, np.inf)
        if (found := scalar_of(r, "max")) is not None:
            inner = (found[1], np.inf)
        elif (found := scalar_of(r, "min")) is not None:
            inner = (-np.inf, found[1])
        elif layer(r, Clip) and r.whole and not r.node.op.step:
            inner, found = (r.node.op.low, r.node.op.high), (t.through(r.layout, r.node.operands[0]), 0.0)
        if found is None or not found[0].whole:
            break
        low, high, r = *(min(max(bound, low), high) for bound in inner), found[0]
    return None if r.node is node else t.through(r.layout, t.node(Clip(float(low), float(high)), r.node.ref))
