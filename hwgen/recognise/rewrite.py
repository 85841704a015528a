"""The pass driver: a program made again node by node, operands first, each by the first pattern that takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from ..tensor import Builder, Const, Node, Program, Ref
from .limits import beneath, is_limit, stands

Pattern = Callable[[Builder, Node], Ref | None]  # a node -> the same value in another form, of the node's shape


def rewrite(program: Program, patterns: Iterable[Pattern], past: bool = True) -> Program:
    """The same outputs; a pattern sees nodes whose operands are final, what it makes is not matched again.

    past: patterns look past limits between the steps of what may become one layer.
    """
    t = Builder()
    t.notes = program.notes
    nodes = list(program.nodes())
    readers = Counter(o.node for node in nodes for o in {o.node: o for o in node.operands}.values())
    readers.update(r.node for r in program.outputs.values())
    made: dict[Node, Ref] = {}
    bare: dict[Node, Ref] = {}  # of a quantised file: without such limits
    patterns = tuple(patterns)
    for node in nodes:
        if isinstance(node.op, Const):
            made[node] = node.ref
            continue
        t.name, t.source = node.name, node.source
        r = t.node(node.op, *(t.through(o.layout, bare.get(o.node, made[o.node])) for o in node.operands))
        found = next((y for p in patterns if (y := p(t, r.node)) is not None), None) if not isinstance(r.op, Const) else r
        made[node] = found or r
        if found is None and any(o.node in bare for o in node.operands):
            made[node] = t.node(node.op, *(t.through(o.layout, made[o.node]) for o in node.operands))
            bare[node] = r
        if past and is_limit(made[node]) and not stands(made[node].node.operands[0].node):
            bare[node] = beneath(t, bare.get(node, made[node]))
        t.readers[made[node].node] = max(readers[node], t.readers.get(made[node].node, 0))
        assert made[node].shape == node.shape, (node.op, node.shape, made[node].shape)
    return Program({name: t.through(r.layout, made[r.node]) for name, r in program.outputs.items()}, program.notes)


def relabel(r: Ref, name: str, source: str = "") -> Ref:
    """Give a node made by a pattern its readable name."""
    if name:
        object.__setattr__(r.node, "name", name)
    if source:
        object.__setattr__(r.node, "source", source)
    return r
