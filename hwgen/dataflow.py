"""Which operation of an integer graph reads what which other one wrote."""

from __future__ import annotations

from .intgraph import IntGraph, View


def edges(graph: IntGraph) -> list[tuple[str, str]]:
    """(writer, reader) by names, each once, in the order of the readers. A queue of tokens is no value and makes none."""
    written: dict[str, list[tuple[View, str]]] = {}
    found: dict[tuple[str, str], None] = {}
    for op in graph.ops:
        for view in op.reads().values():
            for other, name in written.get(view.buffer, ()):
                if name != op.name and other.overlaps(view):
                    found[name, op.name] = None
        for view in op.writes().values():
            kept = [entry for entry in written.get(view.buffer, ()) if not view.covers(entry[0])]
            written[view.buffer] = [*kept, (view, op.name)]
    return list(found)
