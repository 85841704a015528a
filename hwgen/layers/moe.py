"""Mixtures of experts: a router gives each token a weight for each expert, of which most are zero."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce

from ..tensor import Builder, Layer, Ref
from .activation import Activation
from .norm import Softmax


@dataclass(frozen=True)
class Router(Layer):
    """Logits [T, E] -> weights [T, E]: zero but for the `top_k` largest logits of a token; ties go to the lower index.

    score: "softmax" over all experts (Shazeer et al. 2017) or "sigmoid" of each (DeepSeek-V3, 2024). Where `renormalise`,
    the chosen scores are divided by their sum, which for softmax is the same as a softmax over the chosen logits (Mixtral).
    """

    top_k: int
    renormalise: bool = False
    score: str = "softmax"

    def define(self, t: Builder, *operands: Ref) -> Ref:
        (logits,) = operands
        scores = Softmax().define(t, logits) if self.score == "softmax" else t.map("sigmoid", logits)
        best, every = t.topk(logits, self.top_k), t.const(range(logits.shape[1]))
        hot = [t.map("float", t.map("eq", t.slice(best, 1, i, 1), every)) for i in range(self.top_k)]
        chosen = t.map("mul", scores, reduce(partial(t.map, "add"), hot))
        return t.map("div", chosen, t.reduce("sum", chosen, [-1])) if self.renormalise else chosen


@dataclass(frozen=True)
class Experts(Layer):
    """y[t] = sum over e of gates[t, e] * (act(x[t] @ w1[e].T + b1[e]) @ w2[e].T + b2[e]); act: `Activation` of form and slope.

    x [T, K], gates [T, E], w1 [E, H, K], b1 [E, H], w2 [E, D, H], b2 [E, D] -> [T, D]. `gated`: w1 [E, 2 H, K] and b1
    [E, 2 H] hold two layers, and the hidden is act(first) * second (SwiGLU, Shazeer 2020). This is computed for all tokens;
    what of it is needed, the zeros of `gates` say, and `hwgen.rows` makes lists of rows of them.
    """

    form: str
    slope: float = 1.0
    gated: bool = False

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, gates, *weights = operands
        each = t.expand(t.reshape(x, (1, *x.shape)), (gates.shape[1], *x.shape))
        return t.contract("te,etd->td", gates, _networks(t, self, each, *weights))


@dataclass(frozen=True)
class Dispatch(Layer):
    """Slots of a soft mixture of experts (Puigcerver et al. 2023): softmax over the tokens of logits [T, N], times x [T, K]:
    -> [N, K]."""

    def define(self, t: Builder, *operands: Ref) -> Ref:
        logits, x = operands
        return t.contract("nt,tk->nk", Softmax().define(t, t.transpose(logits, (1, 0))), x)


@dataclass(frozen=True)
class SlotExperts(Layer):
    """Expert e on rows e * S .. (e + 1) * S of x [E * S, K], with weights as in `Experts`: -> [E * S, D]."""

    form: str
    slope: float = 1.0
    gated: bool = False

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, w1, *rest = operands
        y = _networks(t, self, t.reshape(x, (w1.shape[0], -1, x.shape[1])), w1, *rest)
        return t.reshape(y, (x.shape[0], -1))


@dataclass(frozen=True)
class Combine(Layer):
    """Softmax over the slots of logits [T, N], times y [N, D]: -> [T, D]."""

    def define(self, t: Builder, *operands: Ref) -> Ref:
        logits, y = operands
        return t.contract("tn,nd->td", Softmax().define(t, logits), y)


def _networks(t: Builder, op: Experts | SlotExperts, x: Ref, w1: Ref, b1: Ref, w2: Ref, b2: Ref) -> Ref:
    """Expert e on x[e]: x [E, T, K] -> [E, T, D]."""

    def linear(x: Ref, w: Ref, b: Ref) -> Ref:
        return t.map("add", t.contract("etk,ehk->eth", x, w), t.reshape(b, (b.shape[0], 1, b.shape[1])))

    hidden, act = linear(x, w1, b1), Activation(op.form, op.slope)
    if op.gated:
        width = hidden.shape[2] // 2
        first, second = (t.slice(hidden, 2, i * width, width) for i in range(2))
        return linear(t.map("mul", act.define(t, first), second), w2, b2)
    return linear(act.define(t, hidden), w2, b2)
