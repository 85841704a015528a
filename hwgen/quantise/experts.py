"""Mixture of experts: route, add the experts' biases, then every expert gathers its tokens and scatters its result."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from ..errors import UserError
from ..intgraph import Indirect, RouteTokens, View
from ..numerics import GATE_BITS, STATIC_SHIFT
from .builder import ROW_UNIT, WIDE_MARGIN, Builder, Held, folded, product, row_operand, static_product
from .hidden import Form, activated, form_of
from .options import matches
from .plan import describe
from .scales import UNIT_ROW, four_bits, quantise_weights, smallest_out_scale

GATE_STEP = 2.0 ** (STATIC_SHIFT - GATE_BITS)  # of the int8 gate scores that multiply the second biases


def _first(b: Builder, node: fg.Experts, e: int):
    return folded(b.held[node.x], node.w1[e], None if node.b1 is None else node.b1[e])


def _form(b: Builder, node: fg.Experts) -> Form:
    """The activation, the same of all experts."""
    first = [_first(b, node, e) for e in range(len(node.w1))]
    need = max(float(smallest_out_scale(weight, ROW_UNIT, bias).max()) for weight, bias in first)
    return form_of(node, node.form, node.slope, b.stats.hidden[node.name] * WIDE_MARGIN, need)


def experts_need(b: Builder, node: fg.Experts) -> float:
    """Smallest output step of `experts`."""
    form = _form(b, node)
    need = max(float(smallest_out_scale(w * form.scale, ROW_UNIT, None).max()) for w in node.w2)
    if node.b2 is not None:
        need = max(need, float(smallest_out_scale(node.b2.T, GATE_STEP, None, UNIT_ROW).max()))
    return need


def experts(b: Builder, node: fg.Experts, out: View, scale: float, value: str) -> None:
    """Add the experts' result, in steps of `scale`, to what `out` holds."""
    route = b.plan.nodes[node.routing]
    if not isinstance(route, fg.Route):
        raise UserError(f"{describe(node)}: {node.routing!r} is not a routing")
    x = row_operand(b, node.x)
    logits = b.held[route.logits].view
    count, hidden_columns, _ = node.w1.shape
    tokens = x.view.rows
    dense = None if node.b2 is None else b.buffer(f"{node.name}.gates", tokens, count, scale=2.0**-GATE_BITS)
    route_name = b.op_name(route.name)
    b.emit(RouteTokens(route_name, logits, route.top_k, route.renormalise, dense, route.source))
    if dense is not None:
        q = quantise_weights(node.b2.T, GATE_STEP, scale, None, UNIT_ROW)
        static_product(b, f"{node.name}.bias", out, dense, q, residual=out, source=node.source)
    form = _form(b, node)
    step = form.scale
    hidden = [
        Held(b.buffer(f"{node.name}.hidden{i}", tokens, hidden_columns, scale=step), step, row_max=True)
        for i in range(min(2, count))
    ]
    narrow = any(matches(b.options.narrow_experts, name) for name in (node.name, value))
    for e in range(count):
        if not np.any(node.w2[e]):  # it adds its bias at most, which is in already
            continue
        weight, bias = _first(b, node, e)
        w2 = node.w2[e] * step
        if narrow:
            weight, w2 = four_bits(weight), four_bits(w2)
        second = quantise_weights(w2, ROW_UNIT, scale, None)
        where = {"expert": (route_name, e), "source": node.source}
        activated(b, f"{node.name}.{e}.w1", hidden[e % 2].view, x, weight, bias, form, indirect=Indirect.GATHER, **where)
        product(
            b,
            f"{node.name}.{e}.w2",
            out,
            hidden[e % 2],
            second,
            value,
            residual=out,
            indirect=Indirect.SCATTER,
            **where,
        )
