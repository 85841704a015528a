"""Rows of one value that several readers ask for, made once.

Layers that treat rows alike are made for the rows that a reader needs, back to what mixes rows. Where the rows of two readers
overlap, such as those of neighbouring windows, they are made together and each reader takes its own of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..graph import Activation, Clip, Graph, LayerNorm, Linear, Multiply, Node, Rows, Softmax, Step, shapes

BY_ROW = (Activation, Clip, LayerNorm, Linear, Multiply, Softmax, Step)  # that make each row of that row of what they read


@dataclass(frozen=True)
class _Part:
    """Rows start..stop of a value; `of` numbers the ways in which values are made."""

    of: int
    start: int
    stop: int


@dataclass(eq=False)
class _Span:
    """Rows start..stop of a value that are made together, by the name of the node that makes them all, if there is one."""

    start: int
    stop: int
    first: str  # the first node that makes some of them
    name: str = ""


def once(graph: Graph) -> Graph:
    """The graph with rows made once."""
    parts = _parts(graph)
    spans = _spans(graph, parts)
    if len(graph.nodes) == sum(map(len, spans.values())) + sum(isinstance(node, Rows) for node in graph.nodes):
        return graph
    names = {node.name for node in graph.nodes}
    called = {name: name for name in graph.inputs}  # the value that a node's own became
    made: list[Node] = []
    ranges = dict(graph.ranges)

    def taken(name: str, start: int, stop: int) -> str:
        """A name for rows of a value, made where there is none."""
        span = _of(spans, replace(parts[name], start=start, stop=stop))
        if (start, stop) == (span.start, span.stop):
            return span.name
        if (start, stop) == (parts[name].start, parts[name].stop):
            return called[name]
        made.append(Rows(_free(f"{name}.rows", names), span.name, start - span.start, stop - span.start))
        return made[-1].name

    for node in graph.nodes:
        part = parts[node.name]
        span = _of(spans, part)
        whole = (part.start, part.stop) == (span.start, span.stop)
        if span.first == node.name:
            span.name = span.name or _free(f"{node.name}.all", names)
            less, more = part.start - span.start, span.stop - part.stop
            inputs = {}
            for x in dict.fromkeys(node.inputs):
                at = parts[x]
                along = not whole and at.stop - at.start == part.stop - part.start
                inputs[x] = taken(x, at.start - less, at.stop + more) if along else called[x]
            made.append(_reading(replace(node, name=span.name), inputs))
            if node.name in ranges:
                ranges[span.name] = ranges[node.name]
        called[node.name] = span.name if whole else node.name
        if not whole:
            made.append(Rows(node.name, span.name, part.start - span.start, part.stop - span.start, source=node.source))
    outputs = [replace(o, value=called[o.value]) for o in graph.outputs]
    read = {x for node in made for x in node.inputs} | {o.value for o in outputs}
    made = [node for node in made if not isinstance(node, Rows) or node.name in read]
    kept = {node.name for node in made} | graph.inputs.keys()
    return replace(graph, nodes=made, outputs=outputs, ranges={name: r for name, r in ranges.items() if name in kept})


def _parts(graph: Graph) -> dict[str, _Part]:
    """What rows of what each value is."""
    known = shapes(graph)
    ways: dict[object, int] = {}
    parts = {name: _Part(ways.setdefault(name, len(ways)), 0, shape[0]) for name, shape in graph.inputs.items()}
    for node in graph.nodes:
        rows = known[node.name][0]
        if isinstance(node, Rows):
            x = parts[node.x]
            parts[node.name] = _Part(x.of, x.start + node.start, x.start + node.stop)
        elif isinstance(node, BY_ROW):
            x, *more = (parts[name] for name in node.inputs)
            own = [(y.of, y.start - x.start) if y.stop - y.start == rows else y for y in more]
            limits = tuple(a.tobytes() for a in graph.ranges.get(node.name, ()))
            way = (type(node), x.of, *own, _constants(node), limits)
            parts[node.name] = _Part(ways.setdefault(way, len(ways)), x.start, x.stop)
        else:
            parts[node.name] = _Part(ways.setdefault(node.name, len(ways)), 0, rows)
    return parts


def _constants(node: Node) -> tuple[object, ...]:
    """What a node is beside its name and what it reads; arrays by identity, since the lowering keeps equal ones once."""
    held = [getattr(node, f.name) for f in fields(node) if not f.metadata.get("value") and f.name not in ("name", "source")]
    return tuple(id(a) if isinstance(a, np.ndarray) else a for a in held)


def _spans(graph: Graph, parts: dict[str, _Part]) -> dict[int, list[_Span]]:
    """The rows of each value, those together that overlap."""
    spans: dict[int, list[_Span]] = {}
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    found = [(parts[node.name], node.name) for node in graph.nodes if not isinstance(node, Rows)]
    for part, name in sorted(found, key=lambda f: f[0].start):
        known = spans.setdefault(part.of, [])
        if known and part.start < known[-1].stop:
            known[-1].stop = max(known[-1].stop, part.stop)
            known[-1].first = min(known[-1].first, name, key=order.__getitem__)
        else:
            known.append(_Span(part.start, part.stop, name))
    for part, name in reversed(found):
        span = _of(spans, part)
        if (part.start, part.stop) == (span.start, span.stop):
            span.name = name
    return spans


def _of(spans: dict[int, list[_Span]], part: _Part) -> _Span:
    return next(s for s in spans[part.of] if s.start <= part.start and part.stop <= s.stop)


def _free(name: str, names: set[str]) -> str:
    """`name`, or one like it that no value has; it is taken then."""
    free, i = name, 2
    while free in names:
        free, i = f"{name}_{i}", i + 1
    names.add(free)
    return free


def _reading(node: Node, inputs: dict[str, str]) -> Node:
    """A node that reads other values."""
    held = {f.name: getattr(node, f.name) for f in fields(node) if f.metadata.get("value")}
    read: dict[str, Any] = {k: tuple(inputs[x] for x in v) if isinstance(v, tuple) else inputs[v] for k, v in held.items()}
    return replace(node, **read)
