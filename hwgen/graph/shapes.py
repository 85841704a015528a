"""Shapes of the values of a graph, and whether it is well formed."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from .. import patches, walks
from .evaluate import FORMS
from .nodes import (
    Activation,
    Add,
    Attention,
    Clip,
    Combine,
    Conv,
    Dispatch,
    Embed,
    Experts,
    Gather,
    Graph,
    Hard,
    Join,
    LayerNorm,
    Linear,
    Mean,
    Multiply,
    Node,
    PatchEmbed,
    Product,
    Ratio,
    Received,
    Resample,
    Rotate,
    Route,
    Rows,
    Scan,
    Select,
    SlotExperts,
    Softmax,
    Stack,
    Step,
    Transpose,
    Window,
)


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shape of every value (of `Route`: its experts array). Raises ValueError naming the node whose operands misfit."""
    known: dict[str, tuple[int, ...]] = dict(graph.inputs)
    for node in graph.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise ValueError(f"{node.name}: reads {missing[0]!r}, which no earlier node makes")
        if node.name in known:
            raise ValueError(f"{node.name}: a value of this name exists already")
        try:
            known[node.name] = _shape(node, *(known[name] for name in node.inputs))
        except ValueError as error:
            raise ValueError(f"{node.name} ({type(node).__name__}): {error}") from None
    for output in graph.outputs:
        if output.value not in known:
            raise ValueError(f"output {output.name!r}: no node makes {output.value!r}")
        if np.prod(known[output.value]) != np.prod(output.shape):
            raise ValueError(f"output {output.name!r}: {known[output.value]} does not reshape to {output.shape}")
    return known


def verify(graph: Graph) -> None:
    """Raise ValueError unless the graph is well formed: names, order, shapes, finite constants."""
    shapes(graph)
    for node in graph.nodes:
        for f in fields(node):
            constant = getattr(node, f.name)
            if isinstance(constant, np.ndarray) and not np.isfinite(constant).all():
                raise ValueError(f"{node.name}: {f.name} holds NaN or infinity")


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _positions(node: Conv | Window, x: tuple[int, ...], kernel: tuple[int, int]) -> int:
    """Positions of a window that slides over a map x [height * width, C]."""
    _need(node.size[0] * node.size[1] == x[0], f"a map of {node.size} of x {x}")
    _need(
        min(*kernel, *node.stride, *node.dilation) > 0 and min(node.pads) >= 0,
        f"kernel {kernel}, {node.stride}, {node.dilation}, {node.pads}",
    )
    walk = walks.window(node.size, kernel, node.stride, node.pads, node.dilation)
    _need(min(walk.loops) > 0, f"a map of {node.size} is smaller than the kernel {kernel}")
    if isinstance(node, Window) and node.form != "weighted" and not (node.form == "mean" and node.count_pads):
        _need(bool((walk.x_rows() >= 0).any(axis=0).all()), "a window lies beyond the map")
    return walk.rows


def _shape(node: Node, *s: tuple[int, ...]) -> tuple[int, ...]:
    match node:
        case PatchEmbed(weight=w, bias=b):
            _need(len(s[0]) == len(node.patch), f"image {s[0]} against weight {w.shape}")
            _need(b is None or b.shape == w.shape[:1], "bias shape")
            count = patches.count(s[0], node.patch, node.stride, node.pads)
            _need(count > 0, f"image {s[0]} is smaller than a patch {node.patch}")
            return count, w.shape[0]
        case Embed(prefix=prefix, position=position):
            fits = prefix.shape[1] == position.shape[1] == s[0][1] and s[0][0] + len(prefix) <= len(position)
            _need(fits, f"x {s[0]}, prefix {prefix.shape}, position {position.shape}")
            return position.shape
        case LayerNorm(gamma=g, beta=b, heads=h):
            fits = g.shape == b.shape and s[0][1] % h == 0 and g.shape in ((s[0][1] // h,), (s[0][1],))
            _need(fits, f"x {s[0]} against gamma {g.shape}, beta {b.shape}, {h} heads")
            return s[0]
        case Linear(weight=w, bias=b):
            _need(s[0][1] == w.shape[1], f"x {s[0]} against weight {w.shape}")
            _need(b is None or b.shape == w.shape[:1], "bias shape")
            return s[0][0], w.shape[0]
        case Activation(form=form, slope=slope):
            _need(form in FORMS and slope > 0, f"form={form!r}, slope={slope}")
            return s[0]
        case Clip(low=low, high=high):
            _need(low < high, f"limits {low} and {high}")
            return s[0]
        case Attention(heads=h, bias=bias, windows=w, factors=factors):
            _need(s[0][1] == s[1][1] and s[1][0] == s[2][0], f"q {s[0]}, k {s[1]}, v {s[2]}")
            _need(s[0][1] % h == 0 and s[2][1] % h == 0, f"{h} heads do not divide the width")
            _need(w > 0 and s[0][0] % w == 0 and s[1][0] % w == 0, f"{w} windows do not divide q {s[0]}, k {s[1]}")
            alike = (h, s[0][0] // w, s[1][0] // w)
            _need(bias is None or bias.shape == alike or (w > 1 and bias.shape == (w, *alike)), "bias shape")
            _need(factors is None or factors.shape == (h,) and (factors > 0).all(), f"factors {factors} of {h} heads")
            return s[0][0], s[2][1]
        case Resample(resampling=resampling):
            _need(resampling.size[0] * resampling.size[1] == s[0][0], f"a map of {resampling.size} of x {s[0]}")
            return resampling.made[0] * resampling.made[1], s[0][1]
        case Gather(rows=rows):
            fits = rows.ndim == 1 and rows.size > 0 and rows.dtype.kind == "i" and -1 <= rows.min() and rows.max() < s[0][0]
            _need(fits, f"rows {rows.dtype}{rows.shape} of x {s[0]}")
            return len(rows), s[0][1]
        case Select(first=first, count=count):
            _need(1 in s[1] and s[1][0] * s[1][1] == s[0][0], f"scores {s[1]} of x {s[0]}")
            _need(count > 0 and 0 <= first <= s[0][0] - count, f"rows {first}..{first + count} of {s[0][0]}")
            return count, s[0][1]
        case Scan(rates=rates, skip=skip):
            fits = s[0] == s[1] and s[2] == (s[0][0], 2 * rates.shape[1]) and rates.shape[0] == s[0][1] and skip.shape == s[0][1:]
            _need(fits, f"x {s[0]}, steps {s[1]}, mix {s[2]} against rates {rates.shape}, skip {skip.shape}")
            _need(bool((rates <= 0).all()), "states that grow")
            return s[0]
        case Hard(place=place):
            _need(0 <= place < s[0][0], f"place {place} of {s[0][0]}")
            return s[0]
        case Step():
            return s[0]
        case Received():
            return 1, s[0][1]
        case Join():
            _need(len(s) > 1 and len({rows for rows, _ in s}) == 1, f"side by side {s}")
            return s[0][0], sum(columns for _, columns in s)
        case Stack():
            _need(len(s) > 1 and len({columns for _, columns in s}) == 1, f"one below the other {s}")
            return sum(rows for rows, _ in s), s[0][1]
        case Conv(weight=w, bias=b):
            _need(w.ndim == 4 and w.shape[3] == s[0][1], f"x {s[0]} against weight {w.shape}")
            _need(b is None or b.shape == w.shape[:1], "bias shape")
            return _positions(node, s[0], (w.shape[1], w.shape[2])), w.shape[0]
        case Window(kernel=kernel, weight=w, bias=b, form=form):
            _need(form in ("weighted", "mean", "max"), f"form={form!r}")
            fits = (w is None and b is None) if form != "weighted" else w is not None and w.shape == (*kernel, s[0][1])
            _need(fits and (b is None or b.shape == s[0][1:]), "weight or bias shape")
            return _positions(node, s[0], kernel), s[0][1]
        case Multiply() if s[1][0] in (1, s[0][0]) and s[1][1] and s[0][1] % s[1][1] == 0:
            return s[0]
        case Add() | Multiply():
            _need(s[0] == s[1], f"{s[0]} and {s[1]}")
            return s[0]
        case Rotate(cos=cos, sin=sin, heads=h):
            fits = cos.shape == sin.shape and (cos.shape[0], 2 * h * cos.shape[1]) == s[0]
            _need(fits, f"x {s[0]} in {h} heads against cos {cos.shape}, sin {sin.shape}")
            return s[0]
        case Route(top_k=k):
            _need(1 <= k <= s[0][1], f"top {k} of {s[0][1]} experts")
            return s[0][0], k
        case Experts(w1=w1, b1=b1, w2=w2, b2=b2):
            _need(node.form in FORMS and node.slope > 0, f"form={node.form!r}, slope={node.slope}")
            e, h, d = w1.shape
            _need(s[0][1] == d and w2.shape == (e, w2.shape[1], h), f"x {s[0]}, w1 {w1.shape}, w2 {w2.shape}")
            _need(b1 is None or b1.shape == (e, h), "b1 shape")
            _need(b2 is None or b2.shape == (e, w2.shape[1]), "b2 shape")
            return s[0][0], w2.shape[1]
        case Dispatch(weight=w):
            _need(s[0][1] == w.shape[1] and s[0][0] == s[1][0], f"keys {s[0]}, x {s[1]}, weight {w.shape}")
            return w.shape[0], s[1][1]
        case SlotExperts(w1=w1, b1=b1, w2=w2, b2=b2):
            e, h, d = w1.shape
            _need(node.form in FORMS and node.slope > 0, f"form={node.form!r}, slope={node.slope}")
            _need(s[0][1] == d and w2.shape == (e, w2.shape[1], h), f"x {s[0]}, w1 {w1.shape}, w2 {w2.shape}")
            _need(s[0][0] % e == 0, f"{s[0][0]} slots for {e} experts")
            _need(b1 is None or b1.shape == (e, h), "b1 shape")
            _need(b2 is None or b2.shape == (e, w2.shape[1]), "b2 shape")
            return s[0][0], w2.shape[1]
        case Combine(weight=w, bias=b):
            _need(s[0][1] == w.shape[1] and s[1][0] == w.shape[0], f"x {s[0]}, y {s[1]}, weight {w.shape}")
            _need(b is None or b.shape == w.shape[:1], "bias shape")
            return s[0][0], s[1][1]
        case Product(scale=scale):
            _need(scale > 0, f"scale {scale}")
            _need(s[0][1] == s[1][1], f"{s[0]} times the transpose of {s[1]}")
            return s[0][0], s[1][0]
        case Transpose():
            return s[0][1], s[0][0]
        case Ratio(epsilon=epsilon):
            _need(s[0][1] > 1 and epsilon >= 0, f"x {s[0]}, epsilon {epsilon}")
            return s[0][0], s[0][1] - 1
        case Softmax():
            return s[0]
        case Rows(start=a, stop=b):
            _need(0 <= a < b <= s[0][0], f"rows {a}..{b} of {s[0][0]}")
            return b - a, s[0][1]
        case Mean(start=a, stop=b):
            _need(0 <= a < b <= s[0][0], f"rows {a}..{b} of {s[0][0]}")
            return 1, s[0][1]
    raise ValueError("unknown node type")
