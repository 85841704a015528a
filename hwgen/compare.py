"""Per-layer error of the integer graph against the float model, on given images, and where that error enters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

import numpy as np

from . import graph as fg
from . import numerics as num
from .distributions import Distribution, Watch, step_of
from .errors import UserError
from .intgraph import IntGraph

Array = np.ndarray
LIMIT_DB = 200.0  # stands for "no error at all", so that reports stay finite


@dataclass(frozen=True)
class Layer:
    """One value or output: signal-to-noise ratio in dB over all images, cosine of the angle between the two.

    own_db     the same of the error that the layer itself adds: against the float layer on the integer graph's inputs
    output_db  signal-to-noise ratio of the outputs if no other layer added an error (mean over outputs, first images)
    Both are None for outputs; output_db also for layers that no output hears of.
    """

    name: str
    kind: str
    snr_db: float
    cosine: float
    own_db: float | None = None
    output_db: float | None = None


@dataclass(frozen=True)
class Router:
    """Share of (token, slot) choices that float and integer router have in common."""

    name: str
    agreement: float


@dataclass(frozen=True)
class Comparison:
    """`layers` in execution order, `routers`, and the ONNX `outputs`; `images` were compared.

    `worst`: the layer whose own error is the largest in the outputs, None where no layer adds any. `distributions`: of the
    layers' values, where they were asked for.
    """

    images: int
    layers: list[Layer]
    routers: list[Router]
    outputs: list[Layer]
    worst: str | None
    distributions: tuple[Distribution, ...] = ()

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(text(self))}</pre>"


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

    @property
    def snr_db(self) -> float:
        if self.noise == 0.0:
            return LIMIT_DB
        return float(np.clip(10 * np.log10(max(self.signal, 1e-300) / self.noise), -LIMIT_DB, LIMIT_DB))

    @property
    def cosine(self) -> float:
        norm = np.sqrt(self.signal * self.other)
        return 1.0 if self.noise == 0.0 else float(self.product / norm) if norm else 0.0


def snr_db(reference: Array, found: Array) -> float:
    """Signal-to-noise ratio of `found` in dB, at most LIMIT_DB."""
    sums = _Sums()
    sums.add(reference, found)
    return sums.snr_db


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
    own: dict[str, _Sums] = field(default_factory=dict)
    spread: dict[str, dict[str, _Sums]] = field(default_factory=dict)  # layer -> output -> error that it alone causes
    routers: dict[str, _Shares] = field(default_factory=dict)
    outputs: dict[str, _Sums] = field(default_factory=dict)

    def output_db(self, name: str) -> float | None:
        found = [sums.snr_db for sums in self.spread.get(name, {}).values()]
        return float(np.mean(found)) if found else None


def compare(
    graph: fg.Graph,
    intgraph: IntGraph,
    images: dict[str, Array],
    run_golden: Callable,
    spread: int = 1,
    expected: dict[str, Array] | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Both models on all images. `images`: ONNX input name -> [n, C, H, W]; `run_golden`: `hwgen.sim.golden.run`.

    expected: the file's own outputs [n, ...] for them, which those of golden are held against in place of the graph's. watch: is
    shown every value, for the distributions.

    Compared are the values that `intgraph.trace` knows, in real units; a router's logits as softmax scores, and its
    choices. On the first `spread` images the error that each layer adds is followed through the float model to the
    outputs, one layer at a time. Raises UserError where the two are not the same network.
    """
    totals = _Totals()
    count = len(next(iter(images.values())))
    for i in range(count):
        image = {name: array[i] for name, array in images.items()}
        values, result = fg.evaluate(graph, image), run_golden(intgraph, image, trace=True)
        found = _real(graph, intgraph, values, result)
        _one(totals, graph, intgraph, values, found, result, {name: array[i] for name, array in (expected or {}).items()})
        if watch is not None:
            for name in found:
                watch.see(name, values[name], result.values[name])
        own = _own(totals, graph, values, found)
        if i < spread:
            _spread(totals, graph, values, own)
    kinds = {node.name: type(node).__name__ for node in graph.nodes}
    layers = [
        Layer(name, kinds[name], s.snr_db, s.cosine, totals.own[name].snr_db, totals.output_db(name))
        for name, s in totals.values.items()
    ]
    heard = [layer for layer in layers if layer.output_db is not None and layer.output_db < LIMIT_DB]
    return Comparison(
        count,
        layers,
        [Router(name, shares.common / shares.total) for name, shares in totals.routers.items()],
        [Layer(name, "output", s.snr_db, s.cosine) for name, s in totals.outputs.items()],
        min(heard, key=lambda layer: layer.output_db).name if heard else None,
        () if watch is None else watch.found(),
    )


def _real(graph: fg.Graph, intgraph: IntGraph, values: dict[str, Array], result) -> dict[str, Array]:
    """The traced values of golden in real units; logits with the constant per token that routing does not see."""
    logits = {node.logits for node in graph.nodes if isinstance(node, fg.Route)}
    found = {}
    for node in graph.nodes:
        if node.name in intgraph.trace:
            _same(node.name, values[node.name], result.values[node.name])
            real = result.values[node.name] * step_of(intgraph, node.name) + intgraph.offsets.get(node.name, 0.0)
            if node.name in logits:
                real = real + np.median(values[node.name] - real, axis=1, keepdims=True)
            found[node.name] = real
    return found


def _one(
    totals: _Totals, graph: fg.Graph, intgraph: IntGraph, values: dict[str, Array], found, result, outputs: dict[str, Array]
) -> None:
    logits = {node.logits for node in graph.nodes if isinstance(node, fg.Route)}
    for node in graph.nodes:
        if node.name in found:
            expected, real = values[node.name], found[node.name]
            if node.name in logits:
                expected, real = fg.softmax(expected), fg.softmax(real)
            else:  # a constant that both hold would hide the error
                offset = intgraph.offsets.get(node.name, 0.0)
                expected, real = expected - offset, real - offset
            totals.values.setdefault(node.name, _Sums()).add(expected, real)
        if isinstance(node, fg.Route) and node.logits in intgraph.trace:
            chosen, _ = num.route(result.values[node.logits], node.top_k, node.renormalise)
            totals.routers.setdefault(node.name, _Shares()).add(values[node.name][0], chosen)
    for name, expected in (outputs or fg.outputs(graph, values)).items():
        _same(name, expected, result.outputs[name])
        totals.outputs.setdefault(name, _Sums()).add(expected, result.outputs[name])


def _own(totals: _Totals, graph: fg.Graph, values: dict[str, Array], found: dict[str, Array]) -> dict[str, Array]:
    """What each traced value adds to the error: golden against the float nodes since the traced values before it."""
    own: dict[str, Array] = {}
    real = {name: values[name] for name in graph.inputs}
    for node in graph.nodes:
        value = fg.evaluate_node(node, real)
        if node.name in found:
            totals.own.setdefault(node.name, _Sums()).add(value, found[node.name])
            own[node.name] = found[node.name] - value
            value = found[node.name].astype(np.float32)
        real[node.name] = value
    return own


def _spread(totals: _Totals, graph: fg.Graph, values: dict[str, Array], own: dict[str, Array]) -> None:
    """The outputs of the float model where one value after the other has its own error added."""
    expected = fg.outputs(graph, values)
    for name, error in own.items():
        changed = {name: (values[name] + error).astype(values[name].dtype)}
        for node in graph.nodes:
            if any(operand in changed for operand in node.inputs):
                changed[node.name] = fg.evaluate_node(node, values | changed)
        for output, real in fg.outputs(graph, values | changed).items():
            if any(o.name == output and o.value in changed for o in graph.outputs):
                totals.spread.setdefault(name, {}).setdefault(output, _Sums()).add(expected[output], real)


def _same(name: str, expected: Array, found: Array) -> None:
    if expected.shape != found.shape:
        ours, theirs = list(expected.shape), list(found.shape)
        raise UserError(f"another network than the bundle's: {name!r} has shape {ours} in the model, {theirs} in the bundle")


def text(comparison: Comparison) -> str:
    """The comparison as a table for people."""
    rows = [*comparison.layers, *comparison.outputs]
    width = max(len(row.name) for row in rows)
    lines = [
        f"{comparison.images} images against the float model; own: the layer's own error, alone: outputs if only that existed",
        f"{'':{width}}  {'':10}  SNR dB   cosine  own dB  alone dB",
    ]
    for row in rows:
        more = "".join(" " * 8 if db is None else f"{db:8.1f}" for db in (row.own_db, row.output_db))
        lines.append(f"{row.name:{width}}  {row.kind:10}  {row.snr_db:6.1f}  {row.cosine:7.4f}{more}".rstrip())
    lines += [f"{router.name}: {router.agreement:.1%} of the expert choices agree" for router in comparison.routers]
    if comparison.worst is not None:
        lines.append(f"most of the error enters at {comparison.worst}")
    return "\n".join(lines)
