"""Operators that are attention as a whole, and rotary positions: of ONNX from opset 23 on and of onnxruntime's optimiser."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ...tensor import BOOL, Ref
from ..rules import Array, Context, Op, Unsupported, rule
from .reductions import softmax_of

LOWEST = float(np.finfo(np.float32).min)


def by_head(c: Context, x: Ref, heads: int) -> Ref:
    """[batch, tokens, heads * d] -> [batch, heads, tokens, d]."""
    n, tokens, width = x.shape
    return c.t.transpose(c.t.reshape(x, (n, tokens, heads, width // heads)), (0, 2, 1, 3))


def side_by_side(c: Context, x: Ref) -> Ref:
    """The inverse of `by_head`."""
    n, heads, tokens, width = x.shape
    return c.t.reshape(c.t.transpose(x, (0, 2, 1, 3)), (n, tokens, heads * width))


def attend(
    c: Context, q: Ref, k: Ref, v: Ref, scale: float, bias: Ref | None, seen: Array | None = None, cap: float = 0.0
) -> Ref:
    """softmax(q @ k.T * scale + bias) @ v, all [batch, heads, tokens, d]; fewer heads of k and v serve groups of q's heads.

    bias: added to the scores, or which keys to look at; a query that looks at none gives zeros. seen [tokens, keys]: the
    keys that each query may look at. cap: scores are brought below it by a tanh.
    """
    t, shape = c.t, (*q.shape[:3], k.shape[2])
    if q.shape[1] != k.shape[1]:
        k, v = (_repeated(c, x, q.shape[1]) for x in (k, v))
    scores = t.map("mul", t.matmul(q, t.transpose(k, (0, 1, 3, 2))), scale)
    if cap:
        scores = t.map("mul", t.map("tanh", t.map("mul", scores, 1 / cap)), cap)
    open_to: Ref | None = None
    if bias is not None:
        missing = shape[3] - bias.shape[-1]
        if missing and bias.shape[-1] != 1:
            raise Unsupported(f"has a mask of {bias.shape[-1]} keys for {shape[3]}")
        if bias.dtype == BOOL:
            open_to, bias = bias, None
        else:
            scores = t.map("add", scores, bias)
            if bias.constant is not None and (bias.constant <= LOWEST).any():
                open_to = t.const(bias.constant > LOWEST)
    if seen is not None:
        open_to = t.const(seen) if open_to is None else t.map("and", open_to, t.const(seen))
    if open_to is None:
        return t.matmul(softmax_of(c, scores, [3]), v)
    y = t.matmul(softmax_of(c, t.map("where", open_to, scores, LOWEST), [3]), v)
    looks = t.map("bool", t.reduce("max", t.map("int", open_to), [len(open_to.shape) - 1]))
    return t.map("where", looks, y, 0.0)


def _repeated(c: Context, x: Ref, heads: int) -> Ref:
    n, own, *rest = x.shape
    wide = c.t.expand(c.t.reshape(x, (n, own, 1, *rest)), (n, own, heads // own, *rest))
    return c.t.reshape(wide, (n, heads, *rest))


def _near(q: Ref, k: Ref, causal: bool, left: int = -1, right: int = -1, past: int = 0) -> Array | None:
    """Which keys [tokens, keys] lie in a query's window; bounds of -1 are none. A causal query looks at no later key."""
    distance = np.arange(k.shape[2]) - np.arange(past, past + q.shape[2])[:, None]
    right = 0 if causal else right
    if left < 0 and right < 0:
        return None
    return ((distance >= -left) | (left < 0)) & ((distance <= right) | (right < 0))


def _scale(op: Op, q: Ref) -> float:
    return float(op.attribute("scale") or q.shape[-1] ** -0.5)


@rule("Attention")
def attention(c: Context, op: Op, q: Ref, k: Ref, v: Ref, mask: Ref | None = None, *rest: Ref | None) -> list[Any]:
    """Of opset 23: q, k, v [batch, heads, tokens, d] or [batch, tokens, heads * d]; keys and values may follow past ones."""
    op.ignore("softmax_precision", "qk_matmul_output_mode")
    if any(r is not None for r in rest[2:]):
        raise Unsupported("has lengths of sequences")
    flat, heads = len(q.shape) == 3, op.attribute("q_num_heads", 0)
    kv_heads = op.attribute("kv_num_heads", heads)
    if flat:
        q, k, v = by_head(c, q, heads), by_head(c, k, kv_heads), by_head(c, v, kv_heads)
    keys, values = (*rest, None, None)[:2]
    past = keys.shape[2] if keys is not None else 0
    if keys is not None and values is not None:
        k, v = c.t.concat([keys, k], 2), c.t.concat([values, v], 2)
    left, right = op.attribute("left_window_size", -1), op.attribute("right_window_size", -1)
    seen = _near(q, k, op.flag("is_causal"), left, right, past)
    y = attend(c, q, k, v, _scale(op, q), mask, seen, op.attribute("softcap", 0.0))
    return [side_by_side(c, y) if flat else y, k, v][: len(op.outputs)]


@rule("com.microsoft.Attention")
def fused_attention(
    c: Context, op: Op, x: Ref, weight: Ref, bias: Ref | None = None, mask: Ref | None = None, *rest: Ref | None
) -> Ref:
    """x [batch, tokens, D] by one weight [D, 3 D] for q, k and v."""
    past, added = (*rest, None, None)[:2]
    op.ignore("past_present_share_buffer", "rotary_embedding_dim", "mask_filter_value")
    if past is not None or op.flag("do_rotary"):
        raise Unsupported("has a cache or rotary positions")
    _all_open(c, mask, x.shape[1])
    heads = op.attribute("num_heads")
    sizes = op.attribute("qkv_hidden_sizes") or [weight.shape[-1] // 3] * 3
    y = c.t.matmul(x, weight)
    y = y if bias is None else c.t.map("add", y, bias)
    q, k, v = (by_head(c, c.t.slice(y, 2, sum(sizes[:i]), n), heads) for i, n in enumerate(sizes))
    seen = _near(q, k, op.flag("unidirectional"))
    return side_by_side(c, attend(c, q, k, v, _scale(op, q), added, seen))


@rule("com.microsoft.MultiHeadAttention")
def multi_head_attention(c: Context, op: Op, *x: Ref | None) -> Ref:
    """q, k, v [batch, tokens, D] or [batch, heads, tokens, d]; k and v also packed into the operand before them, [batch,
    tokens, heads, 3 or 2, d]. One bias [3 D] for all."""
    q, k, v, bias, mask, added, *past = (*x, *[None] * 6)[: max(6, len(x))]
    op.ignore("mask_filter_value")
    if q is None or any(p is not None for p in past):
        raise Unsupported("has a cache")
    heads = op.attribute("num_heads")
    if k is None:
        q, k, v = (_packed(c, q, i) for i in range(3))
    elif v is None:
        k, v = (_packed(c, k, i) for i in range(2))
    if bias is not None and any(len(r.shape) == 4 for r in (q, k, v)):
        raise Unsupported("has a bias for operands that are split into heads already")
    widths = [r.shape[-1] for r in (q, k, v)]
    parts = []
    for i, r in enumerate((q, k, v)):
        r = r if bias is None else c.t.map("add", r, c.t.slice(bias, 0, sum(widths[:i]), widths[i]))
        parts.append(by_head(c, r, heads) if len(r.shape) == 3 else r)
    q, k, v = parts
    _all_open(c, mask, k.shape[2])
    seen = _near(q, k, op.flag("unidirectional"))
    return side_by_side(c, attend(c, q, k, v, _scale(op, q), added, seen))


def _packed(c: Context, x: Ref, i: int) -> Ref:
    """Part i of [batch, tokens, heads, parts, d], as [batch, tokens, heads * d]."""
    if len(x.shape) != 5:
        raise Unsupported("keys and values are missing")
    n, tokens, heads, _, width = x.shape
    return c.t.reshape(c.t.slice(x, 3, i, 1), (n, tokens, heads * width))


def _all_open(c: Context, mask: Ref | None, keys: int) -> None:
    """A mask that keeps all keys, or as many as there are, is none."""
    if mask is None:
        return
    known = c.array(mask, "the mask")
    if not (known == keys).all() if known.ndim == 1 else not known.all():
        raise Unsupported("has a mask of keys")


@rule("RotaryEmbedding")
def rotary(c: Context, op: Op, x: Ref, cos: Ref, sin: Ref, place: Ref | None = None) -> Ref:
    """cos and sin [batch, tokens, half], or [places, half] from which `place` [batch, tokens] chooses."""
    if place is not None:
        cos, sin = c.t.gather(cos, place, 0), c.t.gather(sin, place, 0)
    return _rotated(c, op, x, cos, sin)


@rule("com.microsoft.RotaryEmbedding")
def fused_rotary(c: Context, op: Op, x: Ref, place: Ref, cos: Ref, sin: Ref) -> Ref:
    """place: [batch, tokens], or the place of the first token."""
    op.ignore("is_packed_batching")
    if op.attribute("scale", 1.0) != 1.0:
        raise Unsupported("scales its positions")
    if place.shape == (1,):
        tokens = x.shape[1] if len(x.shape) == 3 else x.shape[2]
        place = c.t.map("add", c.t.const(np.arange(tokens).reshape(1, tokens)), place)
    heads = op.attribute("num_heads", 0)
    if len(x.shape) == 3 and not heads and not op.attribute("rotary_embedding_dim", 0):
        op.attributes["num_heads"] = x.shape[2] // (2 * cos.shape[1])
    return _rotated(c, op, x, c.t.gather(cos, place, 0), c.t.gather(sin, place, 0))


def _rotated(c: Context, op: Op, x: Ref, cos: Ref, sin: Ref) -> Ref:
    """Pairs of the first elements of each head, side by side or half a part apart, turned by the angle of their place."""
    t, flat, heads = c.t, len(x.shape) == 3, op.attribute("num_heads", 0)
    y = by_head(c, x, heads) if flat else x
    width = op.attribute("rotary_embedding_dim", 0) or y.shape[3]
    half, shape = width // 2, (*y.shape[:3], width)
    turned, rest = t.slice(y, 3, 0, width), t.slice(y, 3, width, y.shape[3] - width)
    apart = op.flag("interleaved")
    a, b = (t.slice(turned, 3, i if apart else i * half, half, 2 if apart else 1) for i in (0, 1))
    cos, sin = (t.reshape(r, (r.shape[0], 1, *r.shape[1:])) for r in (cos, sin))
    real = t.map("sub", t.map("mul", a, cos), t.map("mul", b, sin))
    other = t.map("add", t.map("mul", a, sin), t.map("mul", b, cos))
    if apart:
        both = [t.reshape(r, (*r.shape, 1)) for r in (real, other)]
        turned = t.reshape(t.concat(both, 4), shape)
    else:
        turned = t.concat([real, other], 3)
    y = t.concat([turned, rest], 3) if prod(rest.shape) else turned
    return side_by_side(c, y) if flat else y
