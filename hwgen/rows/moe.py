"""Mixtures of experts as lists of rows.

Down to level L an expert is computed for every token, and the router's weights, most of which are zero, say what of that is
needed. Here, late and once, these masks become row lists: `Route` makes them, k experts and scores for each token, and
`Experts` computes an expert on the tokens of its list only. Nothing before this pass knows which rows there will be.
"""

from __future__ import annotations

import numpy as np

from .. import graph
from ..layers import Activation, Combine, Dispatch, Experts, Linear, Router, SlotExperts
from ..numerics import MAX_EXPERTS, MAX_TOP_K
from ..recognise.routers import ROUTER
from ..tensor import Node, Ref
from .dense import like_input, whole_place
from .lower import Rows
from .views import Array, Place, Unsupported

PLAIN = "in experts use linear, activation, linear"


def experts_place(b: Rows, node: Node) -> Place:
    """The rows of the tokens, in their order, which must be that of the logits."""
    x, gates, *_ = node.operands
    router = gates.node.op
    if not isinstance(router, Router) or not gates.whole:
        raise Unsupported("weights experts by something that no router makes")
    place = like_input(b, node)
    _alike(b, x, gates.node.operands[0])
    if router.score != "softmax" and gates.shape[1] > 1:
        raise Unsupported(f"weights experts by the {router.score} of their logits", ROUTER)
    if router.top_k > MAX_TOP_K or gates.shape[1] > MAX_EXPERTS:
        most = f"at most the best {MAX_TOP_K} of at most {MAX_EXPERTS} are supported"
        raise Unsupported(f"combines the best {router.top_k} of {gates.shape[1]} experts, {most}")
    return place


def _alike(b: Rows, x: Ref, logits: Ref) -> None:
    (one, first, order), (other, start, turned) = b.tokens(x), b.tokens(logits)
    if b.missing(one) or b.missing(other):
        return
    same = np.array_equal(order, turned) if order is not None and turned is not None else order is turned
    if not same:
        raise Unsupported("routes tokens in another order than it computes them")


def experts(b: Rows, node: Node, start: int, stop: int) -> str:
    return b.rows_of(node, start, stop, lambda: _experts(b, node))


def _experts(b: Rows, node: Node) -> str:
    x, gates, *parts = node.operands
    weights = _weights(b, node, parts)
    router = gates.node.op
    logits, first, _ = b.tokens(gates.node.operands[0])
    logits = b.identity(logits)
    top_k = router.top_k
    if router.score == "sigmoid":  # sigmoid(l) is the softmax of l and 0: a second expert, chosen too, gives zero
        logits, top_k = _with_nothing(b, logits), 2
        weights |= {k: _padded(b, w) for k, w in weights.items() if isinstance(w, np.ndarray)}
    name = b.value(logits, first, first + gates.shape[0])
    key = logits, first, top_k, router.renormalise
    if key not in b.routes:
        label = f"{logits.name}.route" if logits.name else ""
        chosen = {"logits": name, "top_k": top_k, "renormalise": router.renormalise}
        b.routes[key] = b.add(graph.Route, logits, label, "route", **chosen)
    inner, start, _ = b.tokens(x)
    tokens = b.value(inner, start, start + x.shape[0])
    return b.add(graph.Experts, node, node.name, "experts", x=tokens, routing=b.routes[key], **weights)


def _weights(b: Rows, node: Node, parts: list[Ref]) -> dict[str, object]:
    act: Activation = node.op.act
    form = {"gelu": "none", "gelu_tanh": "tanh", "silu": "sigmoid", "relu": "relu"}.get(act.form)
    if node.op.gated:
        raise Unsupported("an expert is a gated MLP (SwiGLU, GEGLU)", PLAIN)
    if form is None or (form == "relu" and act.slope) or (form == "sigmoid" and act.slope <= 0):
        raise Unsupported(f"an expert's activation is {act.form}, which the machine has no table for", PLAIN)
    names = dict(zip(("w1", "b1", "w2", "b2"), parts, strict=True))
    arrays = {k: None if r.scalar == 0 and k[0] == "b" else b.array(r, "an expert's weight") for k, r in names.items()}
    return arrays | {"form": form, "slope": act.slope if form == "sigmoid" else 1.0}


def _padded(b: Rows, array: Array) -> Array:
    return b.intern(np.concatenate([array, 0 * array]))


def _with_nothing(b: Rows, logits: Node) -> Node:
    """A linear layer of one column with a second one, which is zero."""
    x, *parts = logits.operands
    b.t.name, b.t.source = logits.name, logits.source
    return b.t.node(Linear(), x, *(b.t.const(np.concatenate([p.constant, 0 * p.constant])) for p in parts)).node


def router(b: Rows, node: Node, start: int, stop: int) -> str:
    raise Unsupported("uses the weights of a router elsewhere than on the outputs of experts")


# --- soft mixtures ---


def _scores(b: Rows, logits: Ref) -> tuple[Node, str, Array, Array | None]:
    """(linear layer, its input, weight, bias) of the logits of slots."""
    inner, first, _ = b.tokens(logits)
    inner = b.identity(inner)
    x, weight, *bias = inner.operands
    source, start, _ = b.tokens(x)
    keys = b.value(source, start + first, start + first + logits.shape[0])
    return inner, keys, b.array(weight), b.array(bias[0]) if bias else None


def dispatch(b: Rows, node: Node, start: int, stop: int) -> str:
    logits, x = node.operands
    _alike(b, x, logits)
    inner, keys, weight, _ = _scores(b, logits)
    source, first, _ = b.tokens(x)
    label = f"{inner.name}.dispatch" if inner.name else ""
    tokens = b.value(source, first, first + x.shape[0])
    return b.rows_of(node, start, stop, lambda: b.add(graph.Dispatch, inner, label, "dispatch", keys=keys, x=tokens, weight=weight))


def slot_experts(b: Rows, node: Node, start: int, stop: int) -> str:
    x, *parts = node.operands
    weights = _weights(b, node, parts)
    return b.rows_of(
        node, start, stop, lambda: b.add(graph.SlotExperts, node, node.name, "experts", x=b.value(x.node), **weights)
    )


def combine(b: Rows, node: Node, start: int, stop: int) -> str:
    logits, y = node.operands

    def make() -> str:
        outputs = b.value(y.node)
        inner, keys, weight, bias = _scores(b, logits)
        label = f"{inner.name}.combine" if inner.name else ""
        return b.add(graph.Combine, node, label, "combine", x=keys, y=outputs, weight=weight, bias=bias)

    return b.rows_of(node, start, stop, make)


KINDS = {
    Router: (whole_place, router),
    Experts: (experts_place, experts),
    Dispatch: (whole_place, dispatch),
    SlotExperts: (whole_place, slot_experts),
    Combine: (like_input, combine),
}
