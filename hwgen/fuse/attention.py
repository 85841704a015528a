"""Rules for the parts of attention: scores, their bias, softmax, and the weighted sum of values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import gate, rotary, soft
from .emit import Context
from .heads import NEVER, head_layout, need_same_windows
from .op import Op, Unsupported
from .params import label_of, parent
from .symbols import Array, Attended, Heads, Lin, Probabilities, Scores, Weighted
from .views import Const, View, broadcast, positions


def scores_of(op: Op, a: View | Const, b: View) -> View:
    """a @ b: queries [.., Tq, d] times transposed keys [.., d, Tk]. Queries may be one constant token."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    tq, d, tk = a.shape[-2], a.shape[-1], b.shape[-1]
    keys = np.swapaxes(b.positions, -1, -2)
    keys = broadcast(replace(b, shape=keys.shape, index=keys), (*lead, tk, d))
    k, k_scale = _heads(keys)
    if isinstance(a, Const):
        a = _constant_query(a, k)
    q, q_scale = _heads(broadcast(a, (*lead, tq, d)))
    need_same_windows(q, k)
    if not rotary.same_order(q, k):
        raise Unsupported("rotates queries and keys differently", rotary.HINT)
    cut = () if q.windows is None else (len(q.windows),)
    sym = Scores(q=q, k=k, shape=(*cut, len(q.columns), tq, tk), label=label_of(op), source=op.name)
    return View(sym, (*lead, tq, tk), scale=a.scale * b.scale * q_scale * k_scale)


def _heads(view: View) -> tuple[Heads, float]:
    return rotary.heads_of(view) if isinstance(view.sym, Weighted) else (head_layout(view), 1.0)


def _constant_query(a: Const, k: Heads) -> View:
    """A learned query is a linear layer whose weight is zero: any token times zero plus the query as bias."""
    if a.shape[-2] != 1:
        raise Unsupported("several queries that do not come from the image", "use one learned query or a class token")
    tokens = k.x.x if isinstance(k.x, Lin) else k.x
    d = a.shape[-1]
    query = np.broadcast_to(a.array, (*a.shape[:-2], 1, d)).astype(np.float32).reshape(-1)
    weight = np.zeros((len(query), tokens.shape[-1]), np.float32)
    sym = Lin(x=tokens, weight=weight, bias=query, shape=(tokens.shape[0], len(query)), source=k.x.source)
    return View(sym, a.shape, positions(a.shape))  # row 0


def add_bias(scores: View, c: Array) -> View:
    """Scores plus a constant: a mask or a relative position bias. What is the same for all keys changes nothing."""
    if scores.index is not None:
        raise Unsupported("adds a mask or bias to rearranged attention scores")
    if np.isnan(c).any():
        raise Unsupported("adds a mask or bias that holds NaN")
    c = np.maximum(c, NEVER)
    if (c <= NEVER).all(axis=-1).any() or (c > -NEVER).any():
        raise Unsupported("masks every key of a token, or adds a bias beyond the range of scores")
    c = c - c.max(axis=-1, keepdims=True)
    if not np.any(c) or scores.scale <= 0:
        if scores.scale <= 0:
            raise Unsupported("adds a bias to scores with a negative scale")
        return scores
    bias = (c / scores.scale).astype(np.float32).reshape(scores.sym.shape)
    old = scores.sym.bias
    return scores.of(replace(scores.sym, bias=bias if old is None else old + bias))


def softmax(ctx: Context, op: Op, values: list) -> View:
    """Softmax: over attention scores, over the experts of a gate, over the chosen logits, or over tokens for a slot."""
    x = values[0]
    axis = op.attribute("axis", -1 if op.opset >= 13 else 1) % len(x.shape)
    slots = soft.over_tokens(ctx, x, axis)
    if slots is not None:
        return slots
    if axis != len(x.shape) - 1:
        raise Unsupported("is not taken along the last axis")
    return probabilities(op, x) if isinstance(x.sym, Scores) else gate.soft_gate(ctx, x)


def probabilities(op: Op, x: View) -> View:
    """Softmax of scores over keys."""
    if x.index is not None:
        raise Unsupported("is taken over rearranged attention scores")
    sym = Probabilities(scores=x.sym, scale=x.scale, shape=x.sym.shape, label=x.sym.label, source=op.name)
    return View(sym, x.shape)


def attended(op: Op, p: View, v: View) -> View:
    """Probabilities times values [.., Tk, d]."""
    if p.index is not None or p.scale != 1:
        raise Unsupported("multiplies rearranged or scaled attention probabilities")
    lead = np.broadcast_shapes(p.shape[:-2], v.shape[:-2])
    if lead != p.shape[:-2]:
        raise Unsupported("values have more heads than scores")
    values = head_layout(broadcast(v, (*lead, *v.shape[-2:])))
    need_same_windows(p.sym.scores.q, values)
    *_, heads, tq, _ = p.sym.shape
    d, windows = v.shape[-1], values.windows
    tokens = tq if windows is None else windows.size
    label = label_of(op) or _common_parent(p.sym.scores.q, values)
    sym = Attended(probabilities=p.sym, v=values, shape=(tokens, heads * d), label=label, source=op.name)
    index = positions((tokens, heads, d))
    index = index.transpose(1, 0, 2) if windows is None else index[windows].transpose(0, 2, 1, 3)
    return View(sym, (*lead, tq, d), index.reshape(*lead, tq, d), v.scale)


def _common_parent(q: Heads, v: Heads) -> str:
    label = parent(q.x.label)
    return label if label == parent(v.x.label) else ""
