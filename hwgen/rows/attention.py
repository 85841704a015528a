"""Attention and rotary positions. Windows are masks: the machine adds a constant to scores anyhow, so that it costs the
scores of all pairs of tokens, for networks of some hundred tokens."""

from __future__ import annotations

import numpy as np

from .. import graph
from ..layers import Attention, Linear, Norm, Rotate
from ..recognise.limits import beneath, is_limit
from ..tensor import Const, Layout, Node, Ref
from .lower import GONE, Rows
from .views import Array, Place, Unsupported, View, span

NEVER = -1e4  # a score this far below the others has no probability left in any number format
MOST_TOKENS = 1024  # of windows: their scores are computed among all tokens
SMALLER = f"windows are computed as masks over all tokens, at most {MOST_TOKENS}: use a smaller image or larger patches"


def _side(b: Rows, r: Ref) -> tuple[View, Array, Array]:
    """(view, rows [W, T], columns [H, D]) of queries, keys or values [W, H, T, D]."""
    view = b.view(r)
    w, h, n, d = view.shape
    rows, columns = np.broadcast_to(view.rows[:, 0, :, 0], (w, n)), np.broadcast_to(view.columns[0, :, 0, :], (h, d))
    if (view.rows != rows[:, None, :, None]).any() or (view.columns != columns[None, :, None, :]).any():
        raise Unsupported("an operand of attention is not tokens by channels", "split the channels of tokens into heads")
    return view, rows, columns


def place(b: Rows, node: Node) -> Place:
    q = node.operands[0]
    windows, heads, count, _ = q.shape
    width = heads * node.operands[2].shape[3]
    if isinstance(q.node.op, Const):
        return Place(windows * count, width)
    view = b.view(q)
    if b.missing(view.node):
        return Place(windows * count, width)
    _, rows, _ = _side(b, q)
    _, order = span(rows.reshape(-1))
    return Place(windows * count, width, order)


def attention(b: Rows, node: Node, start: int, stop: int) -> str:
    return b.rows_of(node, start, stop, lambda: _whole(b, node))


def _whole(b: Rows, node: Node) -> str:
    q, k, v, *bias = node.operands
    windows, heads, queries, depth = q.shape
    if any(b.missing(b.view(r).node) for r in (q, k, v) if not isinstance(r.node.op, Const)):
        return GONE
    sides = {name: _side(b, r) for name, r in (("q", q), ("k", k), ("v", v)) if not isinstance(r.node.op, Const)}
    if not {"k", "v"} <= sides.keys():
        raise Unsupported("attends to constant tokens", "let tokens attend to tokens")
    keys, values = sides["k"][1], sides["v"][1]
    first, v_first = _range(keys), _range(values)
    if not np.array_equal(keys - first, values - v_first):
        raise Unsupported("attends to keys and values of different tokens")
    at = np.arange(windows * queries).reshape(windows, queries)
    if "q" in sides:
        at = sides["q"][1]
        at = at - at.min()
    tokens = windows * queries, int(keys.max()) - first + 1
    if bias and bias[0].constant is None:
        b.refuse(bias[0].node, "computes a mask or bias of attention scores from the image", "export without attention mask")
        return GONE
    full = _bias(node, bias, at, keys - first, tokens)
    names, gains = {}, np.ones(heads)
    turned = next((s[2] for p, s in sides.items() if p != "v" and isinstance(s[0].node.op, Rotate)), None)
    order = None if turned is None else np.argsort(turned, axis=1)  # pairs side by side, as they stand in a rotated value
    for part, (view, rows, columns) in sides.items():
        columns = columns if part == "v" or order is None else np.take_along_axis(columns, order, axis=1)
        if part != "v":
            view.node, gain = _alike_heads(b, view.node, heads)
            gains = gains * gain
        names[part] = _operand(b, node, part, view, columns, rows)
    scale = float(node.op.scale)
    if "q" not in sides:
        names["q"] = _constant_queries(b, node, q, sides["k"][0], int(keys.min()))
    factors = None if (gains == 1).all() else b.intern(gains)
    fields = {"heads": heads, "scale": scale, "bias": None if full is None else b.intern(full), "factors": factors}
    return b.add(graph.Attention, node, node.name, "attention", **names, **fields)


def _range(rows: Array) -> int:
    """The first of the rows of all windows, which leave none between them out."""
    known = np.unique(rows)
    if len(known) != known[-1] - known[0] + 1:
        raise Unsupported("attends to tokens with others between them", "let tokens attend to all tokens, or to a range of them")
    return int(known[0])


def _bias(node: Node, bias: list[Ref], rows: Array, keys: Array, tokens: tuple[int, int]) -> Array | None:
    """What is added to the scores, [heads, queries, keys]: at most zero in every row, as softmax does not see a constant."""
    windows, heads = node.operands[0].shape[:2]
    own: Array = np.zeros((1, 1, 1, 1), np.float32)
    if bias:
        axes = tuple(axis if any(s for _, s in axis) else () for axis in bias[0].layout.axes)
        own = np.asarray(bias[0].move(Layout(axes, bias[0].layout.offset)).constant)
        own = np.maximum(own, NEVER).astype(np.float32)
        if np.isnan(own).any():
            raise Unsupported("adds a mask or bias that holds NaN")
        if own.shape[3] == 1:
            own = np.zeros((1, 1, 1, 1), np.float32)  # the same for all keys
        if (own <= NEVER).all(axis=-1).any() or (own > -NEVER).any():
            raise Unsupported("masks every key of a token, or adds a bias beyond the range of scores")
        own = own - own.max(axis=-1, keepdims=True)
    if windows == 1:
        if not own.any():
            return None
        if tokens[1] != keys.size or tokens[0] != rows.size:
            raise Unsupported("attends to some keys twice")
        full = np.empty((heads, *tokens), np.float32)
        full[:, rows[0][:, None], keys[0]] = own[0]
        return full
    if max(tokens) > MOST_TOKENS:
        raise Unsupported(f"attends within windows of {max(tokens)} tokens", SMALLER)
    full = np.full((heads, *tokens), NEVER, np.float32)
    own = np.broadcast_to(own, (windows, heads, rows.shape[1], keys.shape[1]))
    for w in range(windows):
        full[:, rows[w][:, None], keys[w]] = own[w]
    return full


def _alike_heads(b: Rows, node: Node, heads: int) -> tuple[Node, Array]:
    """A norm of each head whose gains differ by one positive factor for each (Swin V2, Liu et al. 2022), with those of the
    first head for all, and the factors [heads]; any other value as it is."""
    at, one = b.place(node), np.ones(heads)
    if not isinstance(node.op, Norm) or at.column is None or at.width != heads * node.shape[1]:
        return node, one
    x, *given = node.operands
    head = at.column // node.shape[1]
    tables = []
    for r in given:
        whole = np.broadcast_to(b.array(r), node.shape)
        first = np.stack([whole[np.argmax(head == h)] for h in range(heads)])
        if (whole != first[head]).any():
            return node, one
        tables.append(first)
    both = np.concatenate(tables, axis=1).astype(np.float64)  # a factor is that of gain and bias
    factors = (both @ both[0]) / max(float(both[0] @ both[0]), 1e-30)
    if (both == both[0]).all() or (factors <= 0).any() or not np.allclose(both, factors[:, None] * both[0], rtol=1e-6, atol=0):
        return node, one
    b.t.name, b.t.source = node.name, node.source
    return b.t.node(node.op, x, *(b.t.const(table[:1]) for table in tables)).node, factors


def _operand(b: Rows, node: Node, part: str, view: View, columns: Array, rows: Array) -> str:
    flat = columns.reshape(-1)
    inner, place = view.node, b.place(view.node)
    whole = np.array_equal(flat, np.arange(place.width))
    if place.column is None and not isinstance(inner.op, Rotate):
        inner = b.columns(inner, flat)
        inner = inner if is_limit(inner) else b.identity(inner)
    elif not whole:
        what = (
            "rotates queries and keys differently"
            if isinstance(inner.op, Rotate)
            else "uses some channels of normalised queries or keys"
        )
        raise Unsupported(what, "rotate pairs of channels by the same angles in every head")
    if inner is not view.node or isinstance(inner.op, Rotate):
        object.__setattr__(beneath(b.t, inner.ref).node, "name", f"{node.name}.{part}" if node.name else "")
    return b.value(inner, int(rows.min()), int(rows.max()) + 1)


def _constant_queries(b: Rows, node: Node, q: Ref, keys: View, first: int) -> str:
    """A learned query is a linear layer whose weight is zero: any token times zero plus the query as bias."""
    windows, heads, count, depth = q.shape
    if windows * count != 1:
        raise Unsupported("several queries that do not come from the image", "use one learned query or a class token")
    source, at = keys.node, first
    if isinstance(source.op, Linear) and not isinstance(source.operands[0].node.op, Const):
        source, start, _ = b.tokens(source.operands[0])
        at += start
    weight = np.zeros((heads * depth, b.place(source).width), np.float32)
    bias = np.ascontiguousarray(q.constant, np.float32).reshape(-1)
    name = b.value(source, at, at + 1)
    return b.add(
        graph.Linear, node, f"{node.name}.q" if node.name else "", "linear", x=name, weight=b.intern(weight), bias=b.intern(bias)
    )


# --- rotary positions ---


def rotate_place(b: Rows, node: Node) -> Place:
    x = node.operands[0]
    view = b.view(x)
    if b.missing(view.node):
        return Place(x.shape[0], node.shape[1])
    return Place(x.shape[0], node.shape[1], span(np.broadcast_to(view.rows, view.shape)[:, 0, 0, 0])[1])


def rotate(b: Rows, node: Node, start: int, stop: int) -> str:
    x, cos, sin = node.operands
    tokens, heads, pairs, _ = x.shape
    view = b.view(x).map(lambda a: a)
    rows, columns = view.rows[:, 0, 0, 0], view.columns[0].reshape(-1)
    first = int(rows.min())
    inner = view.node
    if b.place(inner).column is None:
        inner = b.columns(inner, columns)
        if inner is not view.node:
            object.__setattr__(inner, "name", f"{node.name}.linear" if node.name else "")
    elif not np.array_equal(columns, np.arange(b.place(inner).width)):
        inner = _paired(b, inner, columns)
    name = b.value(inner, first + start, first + stop)
    order = np.argsort(rows)[start:stop]
    tables = {"cos": b.intern(b.array(cos)[order]), "sin": b.intern(b.array(sin)[order])}
    return b.add(graph.Rotate, node, node.name, "rotate", x=name, heads=heads, **tables)


def _paired(b: Rows, norm: Node, columns: Array) -> Node:
    """A norm of each head with the channels of a head in another order."""
    x, *tables = norm.operands
    depth = norm.shape[1]
    order = columns[:depth] % depth
    if not np.array_equal(columns.reshape(-1, depth) % depth, np.broadcast_to(order, (len(columns) // depth, depth))):
        raise Unsupported("turns normalised heads differently", "rotate pairs of channels by the same angles in every head")
    index = b.t.const(order)
    b.t.name, b.t.source = norm.name, norm.source
    parts = [b.t.gather(b.t.expand(r, (r.shape[0], depth)), index, 1) for r in (x, *tables)]
    return b.t.node(norm.op, *parts).node


KINDS = {Attention: (place, attention), Rotate: (rotate_place, rotate)}
