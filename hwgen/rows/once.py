"""Rows of one value that several readers ask for, made once.

Layers that treat rows alike are made for the rows that a reader needs, back to what mixes rows. Where the rows of two readers
overlap, such as those of neighbouring windows, they are made together and each reader takes its own of them. Where that saves
no product, each reader keeps its own: a norm that only matrices read has finer steps than one that sums read too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..graph import Activation, Clip, Graph, LayerNorm, Linear, Multiply, Node, Rows, Softmax, Step, shapes
from ..naming import claimed

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
    if all(span.first == name for name, span in spans.items()):
        return graph
    for node in graph.nodes:
        if isinstance(node, Rows):
            spans[node.name] = spans.get(node.x) or _Span(0, parts[node.x].stop, node.x, node.x)
    names = {node.name for node in graph.nodes}
    called = {name: name for name in graph.inputs}  # the value that a node's own became
    made: list[Node] = []
    ranges = dict(graph.ranges)

    def taken(name: str, start: int, stop: int) -> str:
        """A name for rows of a value, made where there is none."""
        span = spans[name]
        if (start, stop) == (span.start, span.stop):
            return span.name
        if (start, stop) == (parts[name].start, parts[name].stop):
            return called[name]
        made.append(Rows(claimed(f"{name}.rows", names), span.name, start - span.start, stop - span.start))
        return made[-1].name

    for node in graph.nodes:
        part, span = parts[node.name], spans[node.name]
        whole = (part.start, part.stop) == (span.start, span.stop)
        if span.first == node.name:
            span.name = span.name or claimed(f"{node.name}.all", names)
            less, more = part.start - span.start, span.stop - part.stop
            inputs = {}
            for x in dict.fromkeys(node.inputs):
                at = parts[x]
                along = not whole and at.stop - at.start == part.stop - part.start
                inputs[x] = taken(x, at.start - less, at.stop + more) if along else called[x]
            made.append(replace(node, name=span.name).reading(inputs))
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
    return tuple(id(a) if isinstance(a, np.ndarray) else a for a in node.parameters.values())


def _spans(graph: Graph, parts: dict[str, _Part]) -> dict[str, _Span]:
    """The rows that each node's are made with: of each value those together that overlap, where products are saved."""
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    together: dict[int, list[tuple[_Span, list[str]]]] = {}
    made = [(parts[node.name], node.name) for node in graph.nodes if not isinstance(node, Rows)]
    for part, name in sorted(made, key=lambda m: m[0].start):
        known = together.setdefault(part.of, [])
        if known and part.start < known[-1][0].stop:
            span, names = known[-1]
            span.stop = max(span.stop, part.stop)
            span.first = min(span.first, name, key=order.__getitem__)
            names.append(name)
        else:
            known.append((_Span(part.start, part.stop, name), [name]))
    worth = _worth(graph, parts, {of for of, spans in together.items() if any(len(names) > 1 for _, names in spans)})
    found: dict[str, _Span] = {}
    for of, spans in together.items():
        for span, names in spans:
            for name in sorted(names, key=order.__getitem__, reverse=True):
                part = parts[name]
                found[name] = span if of in worth else _Span(part.start, part.stop, name, name)
                if (part.start, part.stop) == (span.start, span.stop):
                    span.name = name
    return found


def _worth(graph: Graph, parts: dict[str, _Part], several: set[int]) -> set[int]:
    """Of the values that several nodes make the products, what they are made of row by row, and what is made of them."""
    ways = [(node, parts[node.name].of, [parts[x].of for x in node.inputs]) for node in graph.nodes if isinstance(node, BY_ROW)]
    behind = {of for node, of, _ in ways if isinstance(node, Linear) and of in several}
    before = set(behind)
    for _, of, inputs in ways:
        if of in several and behind.intersection(inputs):
            behind.add(of)
    for _, of, inputs in reversed(ways):
        if of in before | behind:
            before.update(several.intersection(inputs))
    return before | behind
