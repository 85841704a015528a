"""The MoE operator of onnxruntime's domain: a whole mixture of experts in one node."""

from __future__ import annotations

import numpy as np

from .emit import Context
from .mixture import check_size
from .op import Op, Unsupported
from .params import label_of
from .symbols import Array, Gate, Mixed
from .views import Const, View, need_rows, need_tensor

ACTIVATIONS = {"gelu": "tanh", "relu": "relu", "silu": "sigmoid"}  # onnxruntime computes the tanh form of GELU


def moe(ctx: Context, op: Op, values: list) -> View:
    """com.microsoft.MoE: input, router logits, weights [E, H, D] and bias [E, H] of the first layer, then of the second."""
    x, logits, w1, b1, w2, b2 = (list(values) + [None] * 6)[:6]
    if any(v is not None for v in values[6:]):
        raise Unsupported("its experts have a gated activation", "use experts of linear, activation, linear")
    kind = op.attribute("activation_type", "relu")
    if kind not in ACTIVATIONS:
        raise Unsupported(f"its experts have {kind} as activation", "use GELU, SiLU or ReLU in experts")
    if op.attribute("use_sparse_mixer", 0):
        raise Unsupported("chooses experts by sparse mixing", "use the top-k of a softmax")
    if not all(v is None or isinstance(v, Const) for v in (w1, b1, w2, b2)):
        raise Unsupported("its weights are not constant")
    if isinstance(logits, View) and isinstance(logits.sym, Gate):
        raise Unsupported("takes the softmax of gate scores once more", "give it the router's logits")
    x, logits = ctx.plain(x), ctx.plain(logits)
    for part in (x, logits):
        need_tensor(part)
        rows = need_rows(part).reshape(-1)
        if len(part.sym.shape) != 2 or not np.array_equal(rows, np.arange(part.sym.shape[0])):
            raise Unsupported("does not route every token once, in order")
    experts, width = logits.sym.shape[-1], x.sym.shape[-1]
    first = _weights(w1.array, width, experts)
    second = _weights(w2.array, first.shape[1], experts)
    if second.shape[2] != first.shape[1] or first.shape[0] != experts or second.shape[0] != experts:
        raise Unsupported(f"weights of shapes {w1.shape} and {w2.shape} do not fit {experts} experts of {width} channels")
    top_k = int(op.attribute("k", 1))
    check_size(top_k, experts)
    sym = Mixed(
        logits=logits.sym,
        top_k=top_k,
        renormalise=bool(op.attribute("normalize_routing_weights", 0)),
        x=x.sym,
        w1=first,
        b1=None if b1 is None else b1.array.astype(np.float32),
        w2=second,
        b2=None if b2 is None else b2.array.astype(np.float32),
        form=ACTIVATIONS[kind],
        shape=(x.sym.shape[0], second.shape[1]),
        label=label_of(op, w1),
        source=op.name,
    )
    return View(sym, (*x.shape[:-1], second.shape[1]))


def _weights(array: Array, inputs: int, experts: int) -> Array:
    """[E, N, K] of a layer with `inputs` K; onnxruntime before 1.21 wrote [E, K, N]."""
    if array.ndim != 3 or array.shape[0] != experts:
        raise Unsupported(f"weights of shape {array.shape} are not one matrix for each of {experts} experts")
    old = array.shape[2] != inputs and array.shape[1] == inputs
    return (array.swapaxes(1, 2) if old else array).astype(np.float32)
