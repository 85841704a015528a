"""Rules for linear layers, patch embedding, attention and concatenation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import gate, mixture
from .elementwise import add
from .emit import Context
from .op import Op, Unsupported
from .params import label_of, parent
from .symbols import (
    Array,
    Attended,
    Const,
    Embedding,
    Heads,
    Image,
    Lin,
    Mixture,
    Padded,
    Patches,
    Probabilities,
    Scores,
    Sym,
    View,
    broadcast,
    head_layout,
    need_rows,
    need_tensor,
    positions,
    token_layout,
    whole,
)


def matmul(ctx: Context, op: Op, values: list) -> View:
    """MatMul: a linear layer, attention scores, attention output or the weighting of experts."""
    a, b = values
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise Unsupported("multiplies a vector")
    if a.shape[-1] != b.shape[-2]:
        raise Unsupported(f"shapes {a.shape} and {b.shape} do not match")
    if isinstance(b, Const):
        return linear(ctx, op, a, b)
    if isinstance(a, Const):  # A B = (B' A')'
        return _transposed(linear(ctx, op, _transposed(b), Const(np.swapaxes(a.array, -1, -2), a.name)))
    if isinstance(a.sym, Probabilities):
        return _attended(op, a, b)
    if gate.is_part(a, b):
        return mixture.contract(ctx, a, b)
    return _scores(op, a, b)


def _transposed(view: View) -> View:
    index = np.swapaxes(view.positions, -1, -2)
    return replace(view, shape=index.shape, index=index)


def gemm(ctx: Context, op: Op, values: list) -> View:
    """Gemm: alpha * A' @ B' + beta * C."""
    a, b, c = (list(values) + [None])[:3]
    if op.attribute("transA", 0) or not isinstance(b, Const) or len(b.shape) != 2:
        raise Unsupported("is not tokens times a constant matrix")
    if op.attribute("transB", 0):
        b = Const(b.array.T, b.name)
    if a.shape[-1] != b.shape[0]:
        raise Unsupported(f"shapes {a.shape} and {b.shape} do not match")
    y = linear(ctx, op, replace(a, scale=a.scale * op.attribute("alpha", 1.0)), b)
    if c is None:
        return y
    if isinstance(c, Const):
        c = Const(c.array * np.float32(op.attribute("beta", 1.0)), c.name)
    return add(ctx, op, y, c)


def linear(ctx: Context, op: Op, x: View, w: Const) -> View:
    """x @ w, w [K, N], or [E, K, N] for a stack of experts."""
    x = ctx.settle(x)
    if isinstance(x.sym, Mixture):
        raise Unsupported(f"the mixture of experts is matched only in part: {mixture.missing(x.sym)}")
    need_tensor(x)
    weight = w.array.astype(np.float32)
    label = label_of(op, w)
    if int(np.prod(weight.shape[:-2])) != 1:
        return _expert_linear(ctx, op, x, weight, label)
    shape = (*np.broadcast_shapes(x.shape[:-2], weight.shape[:-2]), x.shape[-2], weight.shape[-1])
    layout = token_layout(x)
    if layout is None:
        raise Unsupported("multiplies a tensor that is not tokens by channels")
    rows, columns = layout
    n = shape[-1]
    spread = _spread(weight.reshape(weight.shape[-2:]).T, columns, x.sym.shape[-1], x.scale)
    if len(x.sym.shape) == 3:
        spread = np.broadcast_to(spread, (x.sym.shape[0], *spread.shape))
    sym = Lin(x=x.sym, weight=spread, shape=(*x.sym.shape[:-1], n), label=label, source=op.name)
    if x.index is None:
        return whole(sym, shape)
    return View(sym, shape, (rows.reshape(-1, 1) * n + positions((n,))).reshape(shape))


def _spread(weight: Array, columns: Array, width: int, scale: float) -> Array:
    """weight [.., N, K] for a tensor of `width` channels of which the K `columns` are multiplied."""
    weight = weight if scale == 1 else (weight * np.float32(scale))
    if np.array_equal(columns, np.arange(width)):
        return weight
    if len(np.unique(columns)) != len(columns):
        raise Unsupported("multiplies a channel twice")
    full = np.zeros((*weight.shape[:-1], width), np.float32)
    full[..., columns] = weight
    return full


def _expert_linear(ctx: Context, op: Op, x: View, weight: Array, label: str) -> View:
    """All experts at once: x [..., M, K] @ weight [..., K, N], whose leading axes are experts (or have one element)."""
    rank = max(len(x.shape), weight.ndim)
    weight = weight.reshape((1,) * (rank - weight.ndim) + weight.shape)
    own = [i for i in range(rank - 2) if weight.shape[i] > 1]
    rest = [i for i in range(rank - 1) if i not in own]
    sizes = tuple(weight.shape[i] for i in own)
    experts, k, n = int(np.prod(sizes)), *weight.shape[-2:]
    places = x.positions.reshape((1,) * (rank - len(x.shape)) + x.shape)
    target = tuple(weight.shape[i] if i in own else m for i, m in enumerate(places.shape))
    places = np.broadcast_to(places, target).transpose([*own, *rest, rank - 1])
    shape = places.shape[:-1]
    places = places.reshape(experts, -1, k)
    sym, rows, columns = _by_expert(ctx, x.sym, places)
    spread = _spread(np.swapaxes(weight.reshape(experts, k, n), 1, 2), columns, sym.shape[-1], x.scale)
    tokens = sym.shape[-2]
    result = Lin(x=sym, weight=spread, shape=(experts, tokens, n), label=label, source=op.name)
    index = (np.arange(experts)[:, None, None] * tokens + rows[:, None]) * n + np.arange(n)
    index = index.astype(np.int32).reshape(*shape, n)
    order = [*own, *rest, rank - 1]
    index = index.transpose([order.index(i) for i in range(rank)])
    return View(result, index.shape, index)


def _by_expert(ctx: Context, sym: Sym, places: Array) -> tuple[Sym, Array, Array]:
    """(tensor, rows [R], columns [K]) that every expert e reads at `places` [E, R, K] of `sym`.

    Where each expert reads columns of its own of a common linear layer, that becomes a stack of layers.
    """
    width, experts = sym.shape[-1], len(places)
    rows, columns = places[:, :, 0] // width, places[:, 0, :] % width
    if not np.array_equal(places, rows[..., None] * width + columns[:, None, :]):
        raise Unsupported("multiplies a tensor that is not tokens by channels")
    if len(sym.shape) == 3:
        rows = rows - np.arange(experts)[:, None] * sym.shape[-2]
    fits = len(sym.shape) == 2 or sym.shape[0] == experts
    if not fits or rows.min() < 0 or rows.max() >= sym.shape[-2] or (rows != rows[0]).any():
        raise Unsupported("the experts do not read the same tokens")
    if (columns != columns[0]).any():
        if len(sym.shape) != 2:
            raise Unsupported("the experts do not read the same channels")
        sym = mixture.split(ctx, sym, columns)
        columns = np.arange(columns.shape[1])[None]
    return sym, rows[0], columns[0]


# --- attention ---------------------------------------------------------------------------------------------------


def _scores(op: Op, a: View, b: View) -> View:
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    tq, d, tk = a.shape[-2], a.shape[-1], b.shape[-1]
    keys = np.swapaxes(b.positions, -1, -2)
    keys = broadcast(replace(b, shape=keys.shape, index=keys), (*lead, tk, d))
    q, k = head_layout(broadcast(a, (*lead, tq, d))), head_layout(keys)
    sym = Scores(q=q, k=k, shape=(len(q.columns), tq, tk), label=label_of(op), source=op.name)
    return View(sym, (*lead, tq, tk), scale=a.scale * b.scale)


def softmax(ctx: Context, op: Op, values: list) -> View:
    """Softmax: over attention scores, over the experts of a gate, or over the chosen logits."""
    x = values[0]
    axis = op.attribute("axis", -1 if op.opset >= 13 else 1) % len(x.shape)
    if axis != len(x.shape) - 1:
        raise Unsupported("is not taken along the last axis")
    if not isinstance(x.sym, Scores):
        return gate.soft_gate(ctx, x)
    if x.index is not None:
        raise Unsupported("is taken over rearranged attention scores")
    sym = Probabilities(scores=x.sym, scale=x.scale, shape=x.sym.shape, label=x.sym.label, source=op.name)
    return View(sym, x.shape)


def _attended(op: Op, p: View, v: View) -> View:
    if p.index is not None or p.scale != 1:
        raise Unsupported("multiplies rearranged or scaled attention probabilities")
    lead = np.broadcast_shapes(p.shape[:-2], v.shape[:-2])
    if lead != p.shape[:-2]:
        raise Unsupported("values have more heads than scores")
    values = head_layout(broadcast(v, (*lead, *v.shape[-2:])))
    heads, tq, _ = p.sym.shape
    d = v.shape[-1]
    label = label_of(op) or _common_parent(p.sym.scores.q, values)
    sym = Attended(probabilities=p.sym, v=values, shape=(tq, heads * d), label=label, source=op.name)
    index = positions((tq, heads, d)).transpose(1, 0, 2)
    return View(sym, (*lead, tq, d), index.reshape(*lead, tq, d), v.scale)


def _common_parent(q: Heads, v: Heads) -> str:
    label = parent(q.x.label)
    return label if label == parent(v.x.label) else ""


def attention_op(ctx: Context, op: Op, values: list) -> list[View]:
    """The Attention operator of opset 23: Q, K, V [1, heads, T, d] or [1, T, heads * d]; no mask, cache or soft cap."""
    q, k, v = values[:3]
    if any(x is not None for x in values[3:]) or op.attribute("is_causal", 0) or op.attribute("softcap", 0.0):
        raise Unsupported("has a mask, a cache or a soft cap", "export without attention mask", q)
    heads = op.attribute("q_num_heads", 0)
    flat = len(q.shape) == 3
    if flat:
        kv_heads = op.attribute("kv_num_heads", heads)
        q, k, v = _by_head(q, heads), _by_head(k, kv_heads), _by_head(v, kv_heads)
    if k.shape[1] != q.shape[1]:
        group = q.shape[1] // k.shape[1]
        k, v = (replace(x, index=np.repeat(x.positions, group, axis=1)) for x in (k, v))
        k, v = (replace(x, shape=x.index.shape) for x in (k, v))
    scale = op.attribute("scale", 1 / np.sqrt(q.shape[-1]))
    keys = np.swapaxes(k.positions, -1, -2)
    scores = _scores(op, q, replace(k, shape=keys.shape, index=keys))
    scores = replace(scores, scale=scores.scale * float(scale))
    p = View(Probabilities(scores=scores.sym, scale=scores.scale, shape=scores.sym.shape), scores.shape)
    y = _attended(op, p, v)
    if flat:
        index = y.positions.transpose(0, 2, 1, 3)
        index = index.reshape(index.shape[0], index.shape[1], -1)
        y = replace(y, shape=index.shape, index=index)
    return [y, None, None, None][: len(op.outputs)]


def _by_head(x: View, heads: int) -> View:
    index = x.positions.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    return replace(x, shape=index.shape, index=index)


def fused_attention(ctx: Context, op: Op, values: list) -> list[View]:
    """com.microsoft.Attention: x, one weight [K, 3 D] and bias [3 D] for q, k and v; no mask."""
    x, w, b = values[:3]
    heads = op.attribute("num_heads")
    if any(v is not None for v in values[3:]) or op.attribute("unidirectional", 0) or op.attribute("do_rotary", 0):
        raise Unsupported("has a mask or a cache", "export without attention mask", x)
    sizes = op.attribute("qkv_hidden_sizes") or [w.shape[-1] // 3] * 3
    y = linear(ctx, op, x, w)
    y = y if b is None else add(ctx, op, y, b)
    ends = np.cumsum(sizes)[:-1]
    q, k, v = (
        _by_head(replace(y, shape=part.shape, index=part), heads) for part in np.split(y.positions, ends, axis=-1)
    )
    scale = op.attribute("scale", 0.0) or float(1 / np.sqrt(q.shape[-1]))
    keys = np.swapaxes(k.positions, -1, -2)
    scores = _scores(op, q, replace(k, shape=keys.shape, index=keys))
    p = View(Probabilities(scores=scores.sym, scale=scale * scores.scale, shape=scores.sym.shape), scores.shape)
    out = _attended(op, p, v)
    index = out.positions.transpose(0, 2, 1, 3)
    index = index.reshape(index.shape[0], index.shape[1], -1)
    return [replace(out, shape=index.shape, index=index)] + [None] * (len(op.outputs) - 1)


# --- the embedding -----------------------------------------------------------------------------------------------


def conv(ctx: Context, op: Op, values: list) -> View:
    """Conv as patch embedding: kernel equals stride, nothing padded, whole patches."""
    x, w = values[0], values[1]
    if not isinstance(x.sym, Image) or x.index is not None or x.scale != 1:
        raise Unsupported("does not read the image", "only the patch embedding may be a convolution")
    if not isinstance(w, Const) or len(w.shape) != 4:
        raise Unsupported("its weight is not a constant [D, C, height, width]")
    if len(x.shape) != 4 or w.shape[1] != x.shape[1]:
        raise Unsupported(f"the image is {x.shape} but the weight is {w.shape}")
    d, _, ph, pw = w.shape
    h, width = x.shape[2:]
    # What goes on where a wrong convolution stands, so that the nodes after it can be judged.
    sym = Patches(image=x.sym, weight=w.array, bias=None, shape=((h // ph) * (width // pw), d), source=op.name)
    sym.label = label_of(op, w)
    index = positions((h // ph, width // pw, d)).transpose(2, 0, 1)[None]
    patches = View(sym, index.shape, index)
    strides = tuple(op.attribute("strides", [1, 1]))
    for name, value, wanted in (
        ("kernel_shape", tuple(op.attribute("kernel_shape", [ph, pw])), (ph, pw)),
        ("strides", strides, (ph, pw)),
        ("pads", tuple(op.attribute("pads", [0] * 4)), (0,) * 4),
        ("dilations", tuple(op.attribute("dilations", [1, 1])), (1, 1)),
        ("group", op.attribute("group", 1), 1),
        ("image remainder", (h % ph, width % pw), (0, 0)),
    ):
        if value != wanted:
            hint = "the patch embedding must cut the image into whole patches, kernel equal to stride"
            raise Unsupported(f"{name} is {value}, must be {wanted}", hint, patches)
    if op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported(f"auto_pad is {op.attribute('auto_pad')}", "export without padding", patches)
    if len(values) > 2 and values[2] is not None:
        if not isinstance(values[2], Const):
            raise Unsupported("its bias is not constant")
        sym.bias = values[2].array.astype(np.float32)
    return patches


def concat(ctx: Context, op: Op, values: list) -> View:
    """Concat: class token before patches, a constant after the channels, parts of one tensor, or experts stacked."""
    views = [v for v in values if isinstance(v, View)]
    axis = op.attribute("axis") % len(views[0].shape)
    last = len(views[0].shape) - 1
    if len(views) == len(values) and all(v.sym is views[0].sym and v.scale == views[0].scale for v in views):
        index = np.concatenate([v.positions for v in views], axis=axis)
        return replace(views[0], shape=index.shape, index=index)
    if len(views) == len(values) and all(v.shape[axis] == 1 for v in views):
        return _stack(ctx, views, axis)
    if len(views) == 1 and axis == last - 1:
        return _prepend(op, values, views[0])
    if len(views) == 1 and axis == last:
        return _pad(ctx, values, views[0])
    raise Unsupported("joins tensors in a way that is neither a class token nor a stack of experts")


def _prepend(op: Op, values: list, x: View) -> View:
    if values[-1] is not x or not isinstance(x.sym, Patches | Embedding) or x.scale != 1:
        raise Unsupported("joins constant tokens to something else than the patches, or after them")
    if not np.array_equal(need_rows(x).reshape(-1), np.arange(x.sym.shape[0])):
        raise Unsupported("joins constant tokens to rearranged patches")
    width = x.sym.shape[-1]
    tokens = np.concatenate([v.array.reshape(-1, width) for v in values[:-1]]).astype(np.float32)
    zeros = np.zeros_like(tokens)
    if isinstance(x.sym, Embedding):
        patches, prefix, position = x.sym.patches, x.sym.prefix, x.sym.position
    else:
        patches, prefix, position = x.sym, np.zeros((0, width), np.float32), np.zeros(x.sym.shape, np.float32)
    position = np.concatenate([zeros, position])
    prefix = np.concatenate([tokens, prefix])
    sym = Embedding(patches=patches, prefix=prefix, position=position, shape=position.shape, source=op.name)
    return whole(sym, (*x.shape[:-2], *position.shape))


def _pad(ctx: Context, values: list, x: View) -> View:
    x = ctx.plain(x)
    rows = need_rows(x)
    parts, place, at = [], None, 0
    for v in values:
        n = v.shape[-1]
        if v is not x and isinstance(v, Const):
            flat = v.array.reshape(-1, n)
            if (flat != flat[:1]).any():
                raise Unsupported("joins channels that differ from token to token")
            parts.append(flat[0])
        else:
            place = np.arange(at, at + n)
            parts.append(np.zeros(n, np.float32))
        at += n
    shape = (*x.sym.shape[:-1], at)
    sym = Padded(x=x.sym, place=place, constant=np.concatenate(parts), shape=shape, source=x.sym.source)
    return View(sym, (*x.shape[:-1], at), rows[..., None] * at + positions((at,)))


def _stack(ctx: Context, views: list[View], axis: int) -> View:
    views = [ctx.plain(v) for v in views]
    if any(len(v.sym.shape) != 2 or v.sym.shape != views[0].sym.shape for v in views):
        raise Unsupported("joins tensors that are not experts of one shape")
    sym = mixture.stacked([v.sym for v in views])
    size = int(np.prod(views[0].sym.shape))
    index = np.concatenate([v.positions + np.int32(e * size) for e, v in enumerate(views)], axis=axis)
    return View(sym, index.shape, index)
