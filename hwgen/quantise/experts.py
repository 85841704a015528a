"""Mixture of experts: route, add the experts' biases, then every expert gathers its tokens and scatters its result."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from ..errors import UserError
from ..intgraph import Convert, Indirect, MatMul, RouteTokens, RowMax, RowScale, View
from ..numerics import GATE_BITS, STATIC_SHIFT
from .builder import ROW_UNIT, WIDE_MARGIN, Builder, folded, gelu_scale, row_operand
from .plan import describe
from .scales import UNIT_ROW, quantise_weights, smallest_out_scale

GATE_STEP = 2.0 ** (STATIC_SHIFT - GATE_BITS)  # of the int8 gate scores that multiply the second biases


def _first(b: Builder, node: fg.Experts, e: int):
    return folded(b.held[node.x], node.w1[e], None if node.b1 is None else node.b1[e])


def _activation(b: Builder, node: fg.Experts) -> tuple[int, float]:
    """(gelu_shift, step) of the hidden layer, one for all experts."""
    need = max(float(smallest_out_scale(w, ROW_UNIT, bias).max()) for w, bias in (_first(b, node, e) for e in range(len(node.w1))))
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
        b.emit(
            MatMul(
                b.op_name(f"{node.name}.bias"),
                out,
                dense,
                q.w,
                col_mult=q.col_mult,
                bias=q.bias,
                row_mult=UNIT_ROW,
                shift=q.shift,
                residual=out,
                source=node.source,
            )
        )
    shift, step = _activation(b, node)
    hidden = [b.buffer(f"{node.name}.hidden{i}", tokens, hidden_columns, scale=step) for i in range(min(2, count))]
    for e in range(count):
        weight, bias = _first(b, node, e)
        first = quantise_weights(weight, ROW_UNIT, step, bias)
        second = quantise_weights(node.w2[e] * step, ROW_UNIT, scale, None)
        b.emit(
            MatMul(
                b.op_name(f"{node.name}.{e}.w1"),
                hidden[e % 2],
                x.view,
                first.w,
                x_convert=Convert.ROW,
                col_mult=first.col_mult,
                bias=first.bias,
                row_scale=RowScale.CONVERTED,
                shift=first.shift,
                gelu=(node.approximate, shift),
                row_max=RowMax.ABS,
                expert=(route_name, e),
                indirect=Indirect.GATHER,
                source=node.source,
            )
        )
        b.emit(
            MatMul(
                b.op_name(f"{node.name}.{e}.w2"),
                out,
                hidden[e % 2],
                second.w,
                x_convert=Convert.ROW,
                col_mult=second.col_mult,
                bias=second.bias,
                row_scale=RowScale.CONVERTED,
                shift=second.shift,
                residual=out,
                expert=(route_name, e),
                indirect=Indirect.SCATTER,
                source=node.source,
            ),
            value,
        )
