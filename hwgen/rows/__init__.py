"""L -> row graph (`hwgen.graph`), as far as today's machine goes; the rest are findings of the level `select`."""

from __future__ import annotations

import numpy as np

from .. import graph
from ..errors import Finding
from ..layers import Activation
from ..recognise.match import is_map
from ..tensor import Map, Program, Ref
from . import attention, dense, elementwise, lengths, maps, moe, products, reductions, scans, selection
from .apart import split
from .beside import beside
from .commuted import commuted
from .fused import one_tap
from .head_norms import heads_apart
from .lower import GONE, Make, Rows, Where
from .means import by_windows
from .moves import value
from .once import once
from .pixels import pixels_as_rows
from .resampled import at_once
from .sums import chained
from .turned import turned_at_once
from .views import Unsupported, View
from .wide import one_by_one

CURVES = ("atan", "cos", "erf", "exp", "log", "sigmoid", "sin", "softplus", "sqrt", "tanh")
_LAYERS = (dense, elementwise, lengths, maps, reductions, attention, moe, products, scans, selection)
KINDS: dict[type, tuple[Where, Make]] = {kind: how for module in _LAYERS for kind, how in module.KINDS.items()}

__all__ = ["KINDS", "lower"]


def lower(program: Program) -> tuple[graph.Graph | None, list[Finding]]:
    """The row graph, or None and everything that it cannot hold."""
    program = split(program)
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
        return None, sorted(b.findings, key=lambda f: order.get(f.node, 0))
    types = {name: kind for name, kind in program.notes.get("types", {}).items() if name in b.shapes}
    made = once(graph.Graph(b.shapes, b.nodes, outputs, b.ranges, types))
    made = chained(one_by_one(one_tap(commuted(at_once(beside(pixels_as_rows(made)))))))
    return by_windows(turned_at_once(heads_apart(made))), []


def _output(b: Rows, name: str, r: Ref) -> graph.Output:
    shape = tuple(r.shape)
    if len(shape) > 1 and shape[0] != 1:
        raise Unsupported(f"its shape {list(shape)} has no batch axis")
    if r.node.shape == () or r.constant is not None:
        raise Unsupported("it does not depend on the image")
    inner = shape[1:] if len(shape) > 1 else shape
    view = b.view(r)
    if b.lost(view):
        return graph.Output(name, GONE, inner)
    axes = list(range(len(shape)))
    turned = len(shape) > 2 and _channels_first(view)
    if turned:
        flat = view.group(axes[:1] + axes[2:], [1])
    elif shape[-1] > 1 and (np.broadcast_to(view.columns, shape) == view.columns.flat[0]).all():  # a map of one channel
        flat = view.group(axes, [])
    else:
        split = _rows_first(view)
        flat = view.group(axes[:split], axes[split:])
    return graph.Output(name, value(b, r.node, b.kept(flat)), inner, turned)


def _rows_first(view: View) -> int:
    """How many of the axes come before those along which columns alone change, such as the pixels of a query's mask; all but the
    last one where there is no such place."""
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    last = len(view.shape) - 1
    split = next((i for i in range(1, last) if (columns != np.take(columns, [0], axis=i)).any()), last)
    behind = rows.reshape(*view.shape[:split], -1)
    return split if (behind == behind[..., :1]).all() else last


def _channels_first(view: View) -> bool:
    """Whether columns change along axis 1, of which the rows are the same, and not along the last one."""
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    return bool((rows == rows[:, :1]).all() and (rows != rows[..., :1]).any() and (columns == columns[..., :1]).all())
