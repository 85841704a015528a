"""Mixtures of experts as lists of rows.

Down to level L an expert is computed for every token, and the router's weights, most of which are zero, say what of that is
needed. Here, late and once, these masks become row lists: `Route` makes them, k experts and scores for each token, and
`Experts` computes an expert on the tokens of its list only. Nothing before this pass knows which rows there will be.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import graph
from ..layers import Activation, Combine, Dispatch, Experts, Linear, Router, SlotExperts
from ..numerics import MAX_EXPERTS, MAX_TOP_K
from ..recognise.limits import beneath, is_limit
from ..tensor import Node, Ref
from .dense import like_input, whole_place
from .elementwise import form_of
from .lower import GONE, Rows
from .moves import value
from .operands import Operand
from .views import Array, Place, Unsupported


def router_place(b: Rows, node: Node) -> Place:
    op, experts = node.op, node.shape[1]
    assert isinstance(op, Router)
    if op.top_k > MAX_TOP_K or experts > MAX_EXPERTS:
        most = f"at most the best {MAX_TOP_K} of at most {MAX_EXPERTS} are supported"
        raise Unsupported(f"combines the best {op.top_k} of {experts} experts, {most}")
    return whole_place(b, node)


def router(b: Rows, node: Node, start: int, stop: int) -> str:
    raise Unsupported("uses the weights of a router elsewhere than on the outputs of experts")


def experts_place(b: Rows, node: Node) -> Place:
    """The rows of the tokens, in their order, which must be that of the logits."""
    x, gates, *_ = node.operands
    if isinstance(gates.op, Router):
        if not gates.whole:
            raise Unsupported("weights experts by some of the weights of a router")
        b.place(gates.node)
        _alike(b, x, gates.node.operands[0])
    return b.place(_by_layers(b, node)) if _dense(node) else like_input(b, node)


def _alike(b: Rows, x: Ref, logits: Ref) -> None:
    """Row i of x and of the logits are of one token. Their first rows may differ: each is cut out of its own value.
    Raises Unsupported."""
    one, other = b.tokens(x), b.tokens(logits)
    if one.gone or other.gone:
        return
    order, turned = one.order, other.order
    same = np.array_equal(order, turned) if order is not None and turned is not None else order is turned
    if not same:
        raise Unsupported("routes tokens in another order than it computes them")


def _dense(node: Node) -> bool:
    """Whether experts are computed for all tokens."""
    return node.op.gated or not isinstance(node.operands[1].op, Router)


def _by_layers(b: Rows, node: Node) -> Node:
    """Experts as layers of all tokens: what no token of an expert is has a gate of zero. The gates of a `Router`, each as often
    as its expert has hidden channels, are what experts without weights add, their biases."""

    def made() -> Node:
        x, gates, w1, b1, w2, b2 = node.operands
        count, outputs, width = w2.shape
        b.t.name, b.t.source = node.name, node.source

        def by_gates(table: Ref) -> Ref:
            if not isinstance(gates.op, Router):
                return b.t.node(Linear(), gates, b.t.transpose(table, (1, 0)))
            none = ((count, 1, x.shape[1]), (count, 1), (count, table.shape[1], 1))
            return b.t.node(Experts("relu", 0.0), x, gates, *(b.t.const(np.zeros(n, np.float32)) for n in none), table)

        hidden = _hidden(b, node, x, w1, b1)
        hidden = b.t.map("mul", hidden, by_gates(b.t.const(np.repeat(np.eye(count, dtype=np.float32), width, axis=1))))
        y = b.t.node(Linear(), hidden, b.t.reshape(b.t.transpose(w2, (1, 0, 2)), (outputs, count * width)))
        return (y if b2.scalar == 0 else b.t.map("add", y, by_gates(b2))).node

    return b.once("by layers", node, made)


def _hidden(b: Rows, node: Node, x: Ref, w1: Ref, b1: Ref) -> Ref:
    """What experts side by side have between their layers: act(first), gated times another; w1 [E, H or 2 H, K], b1 [E, ..]."""
    parts = 2 if node.op.gated else 1
    count, width = w1.shape[0], w1.shape[1] // parts
    layers = []
    for part in range(parts):
        weight = b.t.reshape(b.t.slice(w1, 1, part * width, width), (count * width, w1.shape[2]))
        bias = b.t.reshape(b.t.slice(b1, 1, part * width, width), (count * width,))
        layers.append(b.t.node(Linear(), x, weight, *(() if b1.scalar == 0 else (bias,))))
    first = b.t.node(Activation(node.op.form, node.op.slope), layers[0])
    return b.t.map("mul", first, layers[1]) if node.op.gated else first


def _gated_slots(b: Rows, node: Node) -> Ref:
    """The slots of gated experts, one expert's below the other's."""

    def made() -> Ref:
        x, *weights = node.operands
        b.t.name, b.t.source = node.name, node.source
        slots, outputs = x.shape[0] // weights[0].shape[0], list[Ref]()
        for e in range(weights[0].shape[0]):
            w1, b1, w2, b2 = (b.t.slice(w, 0, e, 1) for w in weights)
            hidden = _hidden(b, node, b.t.slice(x, 0, e * slots, slots), w1, b1)
            outputs.append(b.t.node(Linear(), hidden, *(b.t.reshape(w, w.shape[1:]) for w in (w2, b2))))
        return b.t.concat(outputs, 0)

    return b.once("gated", node, made)


def experts(b: Rows, node: Node, start: int, stop: int) -> str:
    if _dense(node):
        return b.value(_by_layers(b, node), start, stop)
    return b.rows_of(node, start, stop, lambda: _experts(b, node))


def _experts(b: Rows, node: Node) -> str:
    x, gates, *parameters = node.operands
    op = gates.node.op
    if b.missing(gates.node) or not isinstance(op, Router):
        return GONE
    weights, form = _weights(b, node, parameters)
    logits, first = _made_by(b, b.tokens(gates.node.operands[0]))
    top_k = op.top_k
    logits = logits if is_limit(logits) and op.score != "sigmoid" else b.identity(logits)
    if op.score == "sigmoid":  # sigmoid(l) is the softmax of l and 0: a second expert, chosen too, gives zero
        logits, top_k = _with_nothing(b, logits), 2
        weights = {k: None if w is None else b.intern(np.concatenate([w, 0.0 * w])) for k, w in weights.items()}
    stop = first + gates.shape[0]
    name = b.value(logits, first, stop)
    key = logits, first, stop, top_k, op.renormalise
    if key not in b.routes:
        made = beneath(b.t, logits.ref).node.name
        label = f"{made}.route" if made else ""
        b.routes[key] = b.add(graph.Route, logits, label, "route", logits=name, top_k=top_k, renormalise=op.renormalise)
    tokens = value(b, node, b.tokens(x))
    return b.add(graph.Experts, node, node.name, "experts", x=tokens, routing=b.routes[key], **weights, **form)


def _made_by(b: Rows, operand: Operand) -> tuple[Node, int]:
    """(the layer of these columns, first row) of logits."""
    source = operand.plain
    if source is None:
        raise Unsupported("routes tokens in another order than it computes them")
    return b.columns(source[0], source[1]), source[2]


def _weights(b: Rows, node: Node, parameters: list[Ref]) -> tuple[dict[str, Array | None], dict[str, Any]]:
    """(arrays, activation) as the row graph's nodes have them."""
    op = node.op
    assert isinstance(op, Experts | SlotExperts)
    names = dict(zip(("w1", "b1", "w2", "b2"), parameters, strict=True))
    arrays = {k: None if r.scalar == 0 and k[0] == "b" else b.array(r, "an expert's weight") for k, r in names.items()}
    return arrays, form_of(Activation(op.form, op.slope), "has in its experts")


def _with_nothing(b: Rows, logits: Node) -> Node:
    """A linear layer of one column with a second one, which is zero."""
    x, *parts = logits.operands
    b.t.name, b.t.source = logits.name, logits.source
    return b.t.node(Linear(), x, *(b.t.concat([p, b.t.map("mul", p, 0.0)], 0) for p in parts)).node


# --- soft mixtures ---


def _scores(b: Rows, logits: Ref) -> tuple[Node, str, Array, Array | None]:
    """(linear layer, its input, weight, bias) of the logits of slots."""
    inner, first = _made_by(b, b.tokens(logits))
    inner = b.identity(inner)
    x, weight, *bias = inner.operands
    keys = value(b, inner, b.tokens(x), first, first + logits.shape[0])
    return inner, keys, b.array(weight), b.array(bias[0]) if bias else None


def dispatch(b: Rows, node: Node, start: int, stop: int) -> str:
    logits, x = node.operands
    _alike(b, x, logits)
    inner, keys, weight, _ = _scores(b, logits)
    label = f"{inner.name}.dispatch" if inner.name else ""
    fields = {"keys": keys, "x": value(b, node, b.tokens(x)), "weight": weight}
    return b.rows_of(node, start, stop, lambda: b.add(graph.Dispatch, inner, label, "dispatch", **fields))


def slot_experts(b: Rows, node: Node, start: int, stop: int) -> str:
    x, *parts = node.operands
    if node.op.gated:
        return value(b, node, b.tokens(_gated_slots(b, node)), start, stop)
    weights, form = _weights(b, node, parts)
    made = {**weights, **form}
    return b.rows_of(node, start, stop, lambda: b.add(graph.SlotExperts, node, node.name, "experts", x=b.value(x.node), **made))


def combine(b: Rows, node: Node, start: int, stop: int) -> str:
    logits, y = node.operands

    def make() -> str:
        outputs = b.value(y.node)
        inner, keys, weight, bias = _scores(b, logits)
        label = f"{inner.name}.combine" if inner.name else ""
        return b.add(graph.Combine, node, label, "combine", x=keys, y=outputs, weight=weight, bias=bias)

    return b.rows_of(node, start, stop, make)


KINDS = {
    Router: (router_place, router),
    Experts: (experts_place, experts),
    Dispatch: (whole_place, dispatch),
    SlotExperts: (whole_place, slot_experts),
    Combine: (like_input, combine),
}
