"""Operators that are attention as a whole: the one of opset 23 and those of onnxruntime's optimiser."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .attention import add_bias, attended, probabilities, scores_of
from .elementwise import add
from .emit import Context
from .op import Op, Unsupported
from .products import linear
from .views import Const, View


def attention_op(ctx: Context, op: Op, values: list) -> list:
    """The Attention operator of opset 23: Q, K, V [1, heads, T, d] or [1, T, heads * d]; no cache or soft cap."""
    q, k, v, mask = (list(values) + [None] * 4)[:4]
    if any(x is not None for x in values[4:]) or op.attribute("is_causal", 0) or op.attribute("softcap", 0.0):
        raise Unsupported("has a cache, a causal mask or a soft cap", "export without attention mask", _view(q, k))
    heads = op.attribute("q_num_heads", 0)
    flat = len(q.shape) == 3
    if flat:
        kv_heads = op.attribute("kv_num_heads", heads)
        q, k, v = by_head(q, heads), by_head(k, kv_heads), by_head(v, kv_heads)
    y = attend(op, q, k, v, float(op.attribute("scale") or 1 / np.sqrt(q.shape[-1])), mask)
    return [side_by_side(y) if flat else y, None, None, None][: len(op.outputs)]


def fused_attention(ctx: Context, op: Op, values: list) -> list:
    """com.microsoft.Attention: x, one weight [K, 3 D] and bias [3 D] for q, k and v; no mask."""
    x, w, b, mask, past, bias = (list(values) + [None] * 6)[:6]
    if past is not None or op.attribute("unidirectional", 0) or op.attribute("do_rotary", 0):
        raise Unsupported("has a cache, a causal mask or rotary positions", "export without attention mask", x)
    _need_open(mask, x)
    heads = op.attribute("num_heads")
    sizes = op.attribute("qkv_hidden_sizes") or [w.shape[-1] // 3] * 3
    y = linear(ctx, op, x, w)
    y = y if b is None else add(ctx, op, y, b)
    ends = np.cumsum(sizes)[:-1]
    q, k, v = (
        by_head(replace(y, shape=part.shape, index=part), heads) for part in np.split(y.positions, ends, axis=-1)
    )
    out = attend(op, q, k, v, op.attribute("scale", 0.0) or float(1 / np.sqrt(q.shape[-1])), bias)
    return [side_by_side(out)] + [None] * (len(op.outputs) - 1)


def multi_head_attention(ctx: Context, op: Op, values: list) -> list:
    """com.microsoft.MultiHeadAttention: q, k, v [1, T, D] or [1, heads, T, d], k and v also packed into the inputs
    before them ([1, T, heads, 3 | 2, d]), with one bias [3 D] for all."""
    q, k, v, b, mask, bias, *past = list(values) + [None] * (6 - len(values))
    if any(p is not None for p in past) or op.attribute("unidirectional", 0):
        raise Unsupported("has a cache or a causal mask", "export without attention mask", q)
    _need_open(mask, q)
    heads = op.attribute("num_heads")
    if k is None:
        q, k, v = (_packed(q, i) for i in range(3))
    elif v is None:
        k, v = (_packed(k, i) for i in range(2))
    if b is not None:
        if not isinstance(b, Const):
            raise Unsupported("its bias is not constant")
        ends = np.cumsum([int(np.prod(x.shape)) // x.shape[1 if len(x.shape) == 3 else 2] for x in (q, k)])
        parts = zip((q, k, v), np.split(b.array.reshape(-1), ends), strict=True)
        q, k, v = (add(ctx, op, x, Const(part, b.name)) if len(x.shape) == 3 else x for x, part in parts)
    q, k, v = (by_head(x, heads) if len(x.shape) == 3 else x for x in (q, k, v))
    out = attend(op, q, k, v, op.attribute("scale", 0.0) or float(1 / np.sqrt(q.shape[-1])), bias)
    return [side_by_side(out)] + [None] * (len(op.outputs) - 1)


def attend(op: Op, q: View | Const, k: View, v: View, scale: float, bias: Const | None) -> View:
    """softmax(q @ k.T * scale + bias) @ v, all [1, heads, T, d]; fewer heads of k and v serve groups of q's heads."""
    if k.shape[1] != q.shape[1]:
        group = q.shape[1] // k.shape[1]
        k, v = (replace(x, index=np.repeat(x.positions, group, axis=1)) for x in (k, v))
        k, v = (replace(x, shape=x.index.shape) for x in (k, v))
    keys = np.swapaxes(k.positions, -1, -2)
    scores = scores_of(op, q, replace(k, shape=keys.shape, index=keys))
    scores = replace(scores, scale=scores.scale * scale)
    if bias is not None:
        if not isinstance(bias, Const):
            raise Unsupported("has a mask or bias that is computed from the image")
        array = bias.array
        if array.dtype == bool:
            array = np.where(array, 0.0, -np.inf)
        scores = add_bias(scores, np.broadcast_to(array, scores.shape))
    return attended(op, probabilities(op, scores), v)


def by_head(x: View | Const, heads: int) -> View | Const:
    """[1, T, heads * d] -> [1, heads, T, d]."""
    if isinstance(x, Const):
        return Const(x.array.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3), x.name)
    index = x.positions.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    return replace(x, shape=index.shape, index=index)


def side_by_side(y: View) -> View:
    """[1, heads, T, d] -> [1, T, heads * d]."""
    index = y.positions.transpose(0, 2, 1, 3)
    index = index.reshape(index.shape[0], index.shape[1], -1)
    return replace(y, shape=index.shape, index=index)


def _packed(x: View, i: int) -> View:
    """Part i of [1, T, heads, parts, d], as [1, T, heads * d]."""
    if len(x.shape) != 5:
        raise Unsupported("keys and values are missing")
    index = x.positions[:, :, :, i]
    index = index.reshape(*index.shape[:2], -1)
    return replace(x, shape=index.shape, index=index)


def _need_open(mask: Const | View | None, x: View) -> None:
    """A mask that keeps all keys is none."""
    if mask is None:
        return
    if not isinstance(mask, Const) or len(mask.shape) < 2 or not np.all(mask.array):
        raise Unsupported("has a mask", "export without attention mask", x)


def _view(*values: View | Const) -> View | None:
    return next((v for v in values if isinstance(v, View)), None)
