"""Mixture of experts: route, add the experts' biases, then every expert gathers its tokens and scatters its result."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..numerics import GATE_BITS, STATIC_SHIFT
from ..qgraph import UNIT_ROW, Ref
from .builder import LOGIT_RANGE, LOGIT_SCALE, ROW_UNIT, WIDE_MARGIN, Builder, Held, folded, moved
from .hidden import Form, activated, form_of, second_biases
from .plan import describe
from .scales import quantise_weights, smallest_out_scale

GATE_STEP = 2.0 ** (STATIC_SHIFT - GATE_BITS)  # of the int8 gate scores that multiply the second biases


def _first(b: Builder, node: fg.Experts, e: int):
    return folded(b.held[node.x], node.w1[e], None if node.b1 is None else node.b1[e])


def _form(b: Builder, node: fg.Experts) -> Form:
    """The activation, the same of all experts."""
    first = [_first(b, node, e) for e in range(len(node.w1))]
    need = max(float(smallest_out_scale(weight, ROW_UNIT, bias).max()) for weight, bias in first)
    return form_of(node.form, node.slope, b.stats.hidden[node.name] * WIDE_MARGIN, need)


def experts_need(b: Builder, node: fg.Experts) -> float:
    """Smallest output step of `experts`."""
    form = _form(b, node)
    biases = second_biases(node, form)
    need = max(float(smallest_out_scale(w * form.scale, ROW_UNIT, None).max()) for w in node.w2)
    if biases is not None:
        need = max(need, float(smallest_out_scale(biases.T, GATE_STEP, None, UNIT_ROW).max()))
    return need


def _by_popularity(b: Builder, logits: str) -> tuple[int, ...]:
    """Experts in the order in which the calibration images use them, most of them first: the weights of the first ones are
    streamed before the router has spoken, and in vain for an image that has no token for them."""
    if logits not in b.stats.load:
        return ()  # no images that tell
    images, tokens, _ = b.stats.load[logits]
    return tuple(int(e) for e in np.lexsort((-tokens, -images)))  # stable: equal ones as they are numbered


def _typical(b: Builder, logits: str, order: tuple[int, ...]) -> tuple[int, ...]:
    """In which proportion a calibration image's tokens choose the experts: as unevenly as one image does, which their mean does
    not show, the first of `order` most."""
    return tuple(int(b.stats.load[logits][2][order.index(e)]) for e in range(len(order)))


def experts(b: Builder, node: fg.Experts, add: Ref, scale: float, value: str) -> Held:
    """Emit `add` plus the experts' result, in steps of `scale`, as the float value `value`."""
    route = b.plan.nodes[node.routing]
    if not isinstance(route, fg.Route):
        raise UserError(f"{describe(node)}: {node.routing!r} is not a routing")
    logits = b.held[route.logits]
    if not logits.common or logits.scale != LOGIT_SCALE:
        peak = float(b.stats.values[route.logits].magnitude().max())
        if peak > LOGIT_RANGE:
            raise UserError(f"{describe(route)}: logits of {peak:g}, the machine holds +-{LOGIT_RANGE:.1f}")
        logits = moved(b, route.logits, LOGIT_SCALE)
    order = _by_popularity(b, route.logits)
    loads = _typical(b, route.logits, order)
    queues = q.Route(b.name(route.name), logits.ref, route.top_k, route.renormalise, loads, source=route.source)
    chosen = b.emit(queues, logits.ref.rows, route.top_k)
    form = _form(b, node)
    biases = second_biases(node, form)
    first, second = [], []
    for e in range(len(node.w1)):
        weight, bias = _first(b, node, e)
        w2 = node.w2[e] * form.scale
        first.append(activated(weight, bias, form))
        # An expert without weights adds its bias at most, which goes with the gates.
        second.append(quantise_weights(w2, ROW_UNIT, scale, None) if np.any(w2) else None)
    made = q.Experts(
        b.name(value),
        b.held[node.x].ref,
        chosen,
        add,
        tuple(first),
        tuple(second),
        (form.table, form.shift),
        form.scale,
        None if biases is None else quantise_weights(biases.T, GATE_STEP, scale, None, UNIT_ROW),
        order=order,
        layer=node.name,
        source=node.source,
    )
    return Held(b.emit(made, *b.shapes[node.name], scale, value=value), scale)
