"""onnxruntime's operator that holds a whole mixture of experts."""

from __future__ import annotations

from typing import Any

from ...layers import Experts, Router
from ...tensor import Ref
from ..rules import Context, Op, Unsupported, rule

ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu"}  # onnxruntime computes the tanh form of GELU


@rule("com.microsoft.MoE")
def moe(c: Context, op: Op, x: Ref, logits: Ref, w1: Ref, b1: Ref | None = None, *rest: Ref | None) -> Any:
    """Tokens, router logits, weights [E, H, K] and bias [E, H] of the first layer, then of the second."""
    w2, b2, *more = [*rest, None][:1] + [*rest, None, None][1:]
    kind = op.attribute("activation_type", "relu")
    if any(m is not None for m in more) or kind not in ACTIVATIONS:
        what = kind if kind not in ACTIVATIONS else "a gated activation"
        raise Unsupported(f"its experts have {what}", "use experts of linear, activation, linear, with GELU, SiLU or ReLU")
    if op.attribute("use_sparse_mixer", 0):
        raise Unsupported("chooses experts by sparse mixing", "use the top-k of a softmax")
    t, width, experts = c.t, x.shape[-1], logits.shape[-1]
    first = _weights(c, w1, width, experts)
    second = _weights(c, w2, first.shape[1], experts)
    biases = [t.full((experts, w.shape[1]), 0.0) if b is None else b for w, b in ((first, b1), (second, b2))]
    router = Router(int(op.attribute("k", 1)), bool(op.attribute("normalize_routing_weights", 0)))
    gates = router.define(t, t.reshape(logits, (-1, experts)))
    layer = Experts(ACTIVATIONS[kind], 0.0 if kind == "relu" else 1.0)
    y = layer.define(t, t.reshape(x, (-1, width)), gates, first, biases[0], second, biases[1])
    return t.reshape(y, (*x.shape[:-1], second.shape[1]))


def _weights(c: Context, w: Ref | None, inputs: int, experts: int) -> Ref:
    """[E, N, K] of a layer with `inputs` K; onnxruntime before 1.21 wrote [E, K, N]."""
    if w is None or len(w.shape) != 3 or w.shape[0] != experts or inputs not in w.shape[1:]:
        shape = "nothing" if w is None else list(w.shape)
        raise Unsupported(f"weights of shape {shape} are not one matrix of {inputs} inputs for each of {experts} experts")
    return w if w.shape[2] == inputs else c.t.transpose(w, (0, 2, 1))
