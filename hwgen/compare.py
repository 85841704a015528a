"""Per-layer error of the integer graph against the float model, on given images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import graph as fg
from . import numerics as num
from .errors import UserError
from .intgraph import Convert, IntGraph, MatMul

Array = np.ndarray
LIMIT_DB = 200.0  # stands for "no error at all", so that reports stay finite


@dataclass(frozen=True)
class Layer:
    """One value or output: signal-to-noise ratio in dB over all images, cosine of the angle between the two."""

    name: str
    kind: str
    snr_db: float
    cosine: float


@dataclass(frozen=True)
class Router:
    """Share of (token, slot) choices that float and integer router have in common."""

    name: str
    agreement: float


@dataclass(frozen=True)
class Comparison:
    """`layers` in execution order, `routers`, and the ONNX `outputs`; `images` were compared."""

    images: int
    layers: list[Layer]
    routers: list[Router]
    outputs: list[Layer]


@dataclass
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    other: float = 0.0

    def add(self, reference: Array, found: Array) -> None:
        a, b = np.asarray(reference, np.float64).ravel(), np.asarray(found, np.float64).ravel()
        self.signal += float(a @ a)
        self.noise += float((a - b) @ (a - b))
        self.product += float(a @ b)
        self.other += float(b @ b)

    def layer(self, name: str, kind: str) -> Layer:
        if self.noise == 0.0:
            return Layer(name, kind, LIMIT_DB, 1.0)
        snr = 10 * np.log10(max(self.signal, 1e-300) / self.noise)
        norm = np.sqrt(self.signal * self.other)
        return Layer(name, kind, float(np.clip(snr, -LIMIT_DB, LIMIT_DB)), float(self.product / norm) if norm else 0.0)


@dataclass
class _Shares:
    common: int = 0
    total: int = 0

    def add(self, reference: Array, found: Array) -> None:
        self.common += int((reference[:, :, None] == found[:, None, :]).sum())
        self.total += reference.size


@dataclass
class _Totals:
    values: dict[str, _Sums] = field(default_factory=dict)
    routers: dict[str, _Shares] = field(default_factory=dict)
    outputs: dict[str, _Sums] = field(default_factory=dict)


def compare(graph: fg.Graph, intgraph: IntGraph, images: dict[str, Array], run_golden: Callable) -> Comparison:
    """Both models on all images. `images`: ONNX input name -> [n, C, H, W]; `run_golden`: `sim.golden.run`.

    Compared are the values that `intgraph.trace` knows, in real units; a router's logits as softmax scores, and its
    choices. Raises UserError where the two are not the same network.
    """
    totals = _Totals()
    count = len(next(iter(images.values())))
    for i in range(count):
        image = {name: array[i] for name, array in images.items()}
        _one(totals, graph, intgraph, fg.evaluate(graph, image), run_golden(intgraph, image, trace=True))
    kinds = {node.name: type(node).__name__ for node in graph.nodes}
    return Comparison(
        count,
        [sums.layer(name, kinds[name]) for name, sums in totals.values.items()],
        [Router(name, shares.common / shares.total) for name, shares in totals.routers.items()],
        [sums.layer(name, "output") for name, sums in totals.outputs.items()],
    )


def _one(totals: _Totals, graph: fg.Graph, intgraph: IntGraph, values: dict[str, Array], result) -> None:
    logits = {node.logits for node in graph.nodes if isinstance(node, fg.Route)}
    for node in graph.nodes:
        if node.name in intgraph.trace:
            _same(node.name, values[node.name], result.values[node.name])
            expected = values[node.name] - _offset(graph, intgraph, node)
            found = result.values[node.name] * _scale(intgraph, node.name)
            if node.name in logits:  # routing does not see a constant added to all logits of a token
                expected, found = fg.softmax(expected), fg.softmax(found)
            totals.values.setdefault(node.name, _Sums()).add(expected, found)
        if isinstance(node, fg.Route) and node.logits in intgraph.trace:
            chosen, _ = num.route(result.values[node.logits], node.top_k, node.renormalise)
            totals.routers.setdefault(node.name, _Shares()).add(values[node.name][0], chosen)
    for name, expected in fg.outputs(graph, values).items():
        _same(name, expected, result.outputs[name])
        totals.outputs.setdefault(name, _Sums()).add(expected, result.outputs[name])


def _same(name: str, expected: Array, found: Array) -> None:
    if expected.shape != found.shape:
        ours, theirs = list(expected.shape), list(found.shape)
        raise UserError(f"another network than the bundle's: {name!r} has shape {ours} in the model, {theirs} in the bundle")


def _scale(intgraph: IntGraph, name: str) -> float | Array:
    """Real value of a step, broadcastable to the view that holds the value."""
    view, _ = intgraph.trace[name]
    buffer = intgraph.buffers[view.buffer]
    if np.ndim(buffer.scale) == 0:
        return buffer.scale
    whole = np.broadcast_to(buffer.scale, (buffer.rows, buffer.cols))
    return whole[view.row : view.row + view.rows, view.col : view.col + view.cols]


def _offset(graph: fg.Graph, intgraph: IntGraph, node: fg.Node) -> float | Array:
    """What the float value holds beyond the integer one: attention leaves the bias of V to the output projection."""
    if not isinstance(node, fg.Attention):
        return 0.0
    v = graph.node(node.v)
    buffer = intgraph.trace[node.name][0].buffer
    products = [
        op
        for op in intgraph.ops
        if isinstance(op, MatMul) and op.out.buffer == buffer and op.x_convert == Convert.PROBABILITY
    ]
    if not isinstance(v, fg.Linear) or v.bias is None or any(np.any(op.bias) for op in products):
        return 0.0
    return v.bias


def text(comparison: Comparison) -> str:
    """The comparison as a table for people."""
    rows = [*comparison.layers, *comparison.outputs]
    width = max(len(row.name) for row in rows)
    lines = [f"{comparison.images} images against the float model", f"{'':{width}}  {'':10}  SNR dB   cosine"]
    lines += [f"{row.name:{width}}  {row.kind:10}  {row.snr_db:6.1f}  {row.cosine:7.4f}" for row in rows]
    lines += [f"{router.name}: {router.agreement:.1%} of the expert choices agree" for router in comparison.routers]
    return "\n".join(lines)
