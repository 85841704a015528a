"""The pass driver: a program made again node by node, operands first, each by the first pattern that takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..tensor import Builder, Const, Node, Program, Ref

Pattern = Callable[[Builder, Node], Ref | None]  # a node -> the same value in another form, of the node's shape


def rewrite(program: Program, patterns: Iterable[Pattern]) -> Program:
    """The same outputs; a pattern sees nodes whose operands are final, what it makes is not matched again."""
    t = Builder()
    made: dict[Node, Ref] = {}
    patterns = tuple(patterns)
    for node in program.nodes():
        if isinstance(node.op, Const):
            made[node] = node.ref
            continue
        t.name, t.source = node.name, node.source
        r = t.node(node.op, *(t.through(o.layout, made[o.node]) for o in node.operands))
        if not isinstance(r.op, Const):
            r = next((y for p in patterns if (y := p(t, r.node)) is not None), r)
        assert r.shape == node.shape, (node.op, node.shape, r.shape)
        made[node] = r
    return Program({name: t.through(r.layout, made[r.node]) for name, r in program.outputs.items()}, program.notes)


def relabel(r: Ref, name: str, source: str = "") -> Ref:
    """Give a node made by a pattern its readable name."""
    if name:
        object.__setattr__(r.node, "name", name)
    if source:
        object.__setattr__(r.node, "source", source)
    return r
