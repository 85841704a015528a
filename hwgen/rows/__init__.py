"""L -> row graph (`hwgen.graph`), as far as today's machine goes; the rest are findings of the level `select`."""

from __future__ import annotations

from .. import graph
from ..errors import Finding
from ..layers import Activation
from ..recognise.match import is_map
from ..tensor import Map, Program, Ref
from . import attention, dense, moe
from .lower import GONE, Rows
from .sums import chained
from .views import Unsupported

CURVES = ("atan", "cos", "erf", "exp", "log", "sigmoid", "sin", "softplus", "sqrt", "tanh")
KINDS = {**dense.KINDS, **attention.KINDS, **moe.KINDS}

__all__ = ["KINDS", "lower"]


def lower(program: Program) -> tuple[graph.Graph | None, list[Finding]]:
    """The row graph, or None and everything that it cannot hold."""
    b = Rows(program, KINDS)
    order = {name: i for i, name in enumerate(b.kinds)}
    sums = [n for n in program.nodes() if is_map(n, "add") and n.dtype == "f" and len(n.shape) == 2]
    for node in sorted(sums, key=lambda n: order.get(n.source, 0)):  # in the file's order, not that of its outputs
        b.value(node)
    outputs = []
    for name, r in program.outputs.items():
        try:
            outputs.append(_output(b, name, r))
        except Unsupported as no:
            b.refuse(r.node, f"output {name!r}: {no.reason}", no.hint)
    if b.findings:  # what was refused needs no operands; functions among them that nothing can hold are told all the same
        for node in program.nodes():
            if isinstance(node.op, Activation):
                b.value(node)
            elif isinstance(node.op, Map) and node.op.function in CURVES:
                b.place(node)
    stand_in = any(op.name.startswith("?") for op in program.inputs())
    if b.findings or stand_in or any(o.value == GONE for o in outputs):
        return None, list(b.findings)
    shapes = {op.name: tuple(op.shape[1:]) for op in program.inputs()}
    return chained(graph.Graph(shapes, b.nodes, outputs, b.ranges)), []


def _output(b: Rows, name: str, r: Ref) -> graph.Output:
    shape = tuple(r.shape)
    if len(shape) > 1 and shape[0] != 1:
        raise Unsupported(f"its shape {list(shape)} has no batch axis")
    if r.node.shape == () or r.constant is not None:
        raise Unsupported("it does not depend on the image")
    inner = shape[1:] if len(shape) > 1 else shape
    view = b.view(r)
    if b.missing(view.node):
        return graph.Output(name, GONE, inner)
    rows = view.map(lambda a: a.reshape(-1, shape[-1]))
    across = view.map(lambda a: a.reshape(shape[1], -1).T) if len(shape) > 2 else rows
    flat = (rows.rows == rows.rows[:, :1]).all() and (rows.columns == rows.columns[:1]).all()
    transposed = not flat and (across.rows == across.rows[:, :1]).all()
    node, first, order = b.of_columns(across if transposed else rows)
    if order is not None:
        raise Unsupported("gives tokens in another order", "keep the tokens in order outside the windows of attention")
    count = (across if transposed else rows).rows.shape[0]
    return graph.Output(name, b.value(node, first, first + count), inner, bool(transposed))
