"""Mixture of experts: route, add the experts' biases, then every expert gathers its tokens and scatters its result."""

from __future__ import annotations

from .. import graph as fg
from ..errors import UserError
from ..intgraph import Indirect, RouteTokens, RowMax, View
from ..numerics import GATE_BITS, STATIC_SHIFT
from .builder import ROW_UNIT, WIDE_MARGIN, Builder, Held, folded, gelu_scale, product, row_operand, static_product
from .plan import describe
from .scales import UNIT_ROW, quantise_weights, smallest_out_scale

GATE_STEP = 2.0 ** (STATIC_SHIFT - GATE_BITS)  # of the int8 gate scores that multiply the second biases


def _first(b: Builder, node: fg.Experts, e: int):
    return folded(b.held[node.x], node.w1[e], None if node.b1 is None else node.b1[e])


def _activation(b: Builder, node: fg.Experts) -> tuple[int, float]:
    """(gelu_shift, step) of the hidden layer, one for all experts."""
    first = [_first(b, node, e) for e in range(len(node.w1))]
    need = max(float(smallest_out_scale(weight, ROW_UNIT, bias).max()) for weight, bias in first)
    return gelu_scale(node, b.stats.hidden[node.name] * WIDE_MARGIN, need)


def experts_need(b: Builder, node: fg.Experts) -> float:
    """Smallest output step of `experts`."""
    _, scale = _activation(b, node)
    need = max(float(smallest_out_scale(w * scale, ROW_UNIT, None).max()) for w in node.w2)
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
    shift, step = _activation(b, node)
    hidden = [
        Held(b.buffer(f"{node.name}.hidden{i}", tokens, hidden_columns, scale=step), step, row_max=True)
        for i in range(min(2, count))
    ]
    for e in range(count):
        weight, bias = _first(b, node, e)
        first = quantise_weights(weight, ROW_UNIT, step, bias)
        second = quantise_weights(node.w2[e] * step, ROW_UNIT, scale, None)
        product(
            b,
            f"{node.name}.{e}.w1",
            hidden[e % 2].view,
            x,
            first,
            gelu=(node.approximate, shift),
            row_max=RowMax.ABS,
            expert=(route_name, e),
            indirect=Indirect.GATHER,
            source=node.source,
        )
        product(
            b,
            f"{node.name}.{e}.w2",
            out,
            hidden[e % 2],
            second,
            value,
            residual=out,
            expert=(route_name, e),
            indirect=Indirect.SCATTER,
            source=node.source,
        )
