"""Attention, of all tokens or window by window, and rotary positions.

Tokens stand in the order of the windows between the layers that make queries, keys and values and the attention alone."""

from __future__ import annotations

import numpy as np

from .. import graph
from ..layers import Attention, Linear, Norm, Rotate
from ..recognise.limits import beneath, is_limit
from ..tensor import Const, Layout, Node, Ref
from .dense import reads_image
from .lower import GONE, Rows
from .moves import MOST_PARTS, made, value
from .operands import Operand
from .views import Array, Place, Unsupported

MOST_BESIDE = 4  # values side by side that a head's queries or keys are made of
MOST_VALUES = 512  # the same of all values, such as the tokens of a window that attends to windows (SepViT: Li et al. 2022)
NEVER = -1e4  # a score this far below the others has no probability left in any number format


def place(b: Rows, node: Node) -> Place:
    q = node.operands[0]
    windows, heads, count, _ = q.shape
    width = heads * node.operands[2].shape[3]
    if isinstance(q.node.op, Const) or b.lost(b.view(q)):
        return Place(windows * count, width)
    _, back = _queries(b, node)
    return Place(windows * count, width, back)


def _queries(b: Rows, node: Node) -> tuple[Operand, Array | None]:
    """(queries window by window; where each stands once the windows are put back in order, None: they are)."""
    q = node.operands[0]
    view = b.view(q).group([0, 2], [1, 3])
    (found,) = b.settled([view])
    once = found.rows == view.shape[0]
    return (found if once and q.shape[0] == 1 else b.kept(view)), found.order if once else None


def attention(b: Rows, node: Node, start: int, stop: int) -> str:
    return b.rows_of(node, start, stop, lambda: _whole(b, node))


def _whole(b: Rows, node: Node) -> str:
    q, k, v, *bias = node.operands
    windows, heads, queries, depth = q.shape
    views = {part: b.view(r) for part, r in (("q", q), ("k", k), ("v", v)) if not isinstance(r.node.op, Const)}
    if any(b.lost(view) for view in views.values()):
        return GONE
    if not {"k", "v"} <= views.keys():
        raise Unsupported("attends to constant tokens", "let tokens attend to tokens")
    if bias and bias[0].constant is None:
        b.refuse(bias[0].node, "computes a mask or bias of attention scores from the image", "export without attention mask")
        return GONE
    own = _bias(node, bias)
    flat = {part: view.group([0, 2], [1, 3]) for part, view in views.items()}
    sides = {part: b.kept(view) for part, view in flat.items()}
    if any(len(side.blocks) > heads * MOST_BESIDE for part, side in sides.items() if part != "v"):
        raise Unsupported("attends over channels instead of tokens", "let tokens attend to tokens")
    back = None
    if "q" in sides:
        sides["q"], back = _queries(b, node)
    if windows == 1:
        one, other = b.settled([flat["k"], flat["v"]])
        if one.rows == k.shape[2]:  # no key twice
            sides |= {"k": one, "v": other}
            own = own if own is None else own[..., _inverse(one.order, one.rows)]
        own = own if own is None or back is None else own[..., _inverse(back, len(back)), :]
    names, gains = {}, np.ones(heads)
    turned = next((sides[p] for p in "qk" if p in views and any(isinstance(s.op, Rotate) for s in views[p].sources)), None)
    pairs = None if turned is None else np.argsort(turned.blocks[0].parts[0][1])  # as they stand in a rotated value
    if pairs is not None:
        _put_in_order([side for part, side in sides.items() if part != "v"], pairs)
    for part, operand in sides.items():
        if part != "v" and [len(block.parts) for block in operand.blocks] == [1]:
            (source, columns) = operand.blocks[0].parts[0]
            source, gain = _alike_heads(b, source, heads)
            operand.blocks[0].parts, gains = [(source, columns)], gains * gain
        names[part] = _operand(b, node, part, operand)
    if "q" not in sides:
        names["q"] = _constant_queries(b, node, q)
    if own is not None:
        own = own[0] if windows == 1 or (own == own[:1]).all() else own
        own = b.intern(own) if own.any() else None
    factors = None if (gains == 1).all() else b.intern(gains)
    fields = {"heads": heads, "scale": float(node.op.scale), "bias": own, "windows": windows, "factors": factors}
    fields["balanced"] = any(isinstance(s.op, Const) for s in views["k"].sources)
    y = b.add(graph.Attention, node, node.name, "attention", **names, **fields)
    if windows == 1 or back is None:
        return y
    return made(b, graph.Gather, node, "gather", x=y, rows=_inverse(back, len(back)))


def _put_in_order(sides: list[Operand], pairs: Array) -> None:
    """Queries and keys in the order of rotated channels. What stands beside those, as positions of rows and columns do, is in
    blocks of its own, of the same widths on both sides."""
    widths = [[len(block.parts[0][1]) for block in side.blocks] for side in sides]
    turned = [len(columns) for side in sides for b in side.blocks for s, columns in b.parts if isinstance(s.op, Rotate)]
    if widths.count(widths[0]) < len(widths) or set(turned) != {len(pairs)}:
        raise Unsupported("turns some channels of queries and keys only", "rotate whole heads, in every head the same channels")
    for side in sides:
        for block in side.blocks:
            block.parts = [(s, columns[pairs] if len(columns) == len(pairs) else columns) for s, columns in block.parts]


def _inverse(order: Array | None, count: int) -> Array:
    """Which row of an operand is row i of its value."""
    return np.arange(count) if order is None else np.argsort(order).astype(np.int64)


def _bias(node: Node, bias: list[Ref]) -> Array | None:
    """What is added to the scores, [windows, heads, queries, keys]: at most zero in every row, as softmax does not see a
    constant."""
    if not bias:
        return None
    axes = tuple(axis if any(s for _, s in axis) else () for axis in bias[0].layout.axes)
    own = np.asarray(bias[0].move(Layout(axes, bias[0].layout.offset)).constant)
    if np.isnan(own).any():
        raise Unsupported("adds a mask or bias that holds NaN")
    own = np.maximum(own, NEVER).astype(np.float32)
    if own.shape[3] == 1:
        return None  # the same for all keys
    if (own <= NEVER).all(axis=-1).any() or (own > -NEVER).any():
        raise Unsupported("masks every key of a token, or adds a bias beyond the range of scores")
    q, k = node.operands[0], node.operands[1]
    own = own - own.max(axis=-1, keepdims=True)
    return np.broadcast_to(own, (own.shape[0], q.shape[1], q.shape[2], k.shape[2]))


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


def _operand(b: Rows, node: Node, part: str, operand: Operand) -> str:
    """A value of which columns that a layer makes are made by layers of their own, named after the attention."""
    for block in operand.blocks:
        for i, (source, columns) in enumerate(block.parts):
            if isinstance(source.op, Const):
                continue
            inner = b.columns(source, columns)
            inner = inner if is_limit(inner) or isinstance(inner.op, Rotate | Norm) else b.identity(inner)
            if inner is not source or isinstance(inner.op, Rotate):
                object.__setattr__(beneath(b.t, inner.ref).node, "name", f"{node.name}.{part}" if node.name else "")
            block.parts[i] = inner, np.arange(b.place(inner).width)
    return _of_gathered(b, operand) or value(b, node, operand, parts=MOST_VALUES if part == "v" else MOST_PARTS)


def _of_gathered(b: Rows, operand: Operand) -> str | None:
    """Rows of a linear layer in another order as the layer of its input in that order, which queries, keys and values share."""
    (block,) = operand.blocks if len(operand.blocks) == 1 else (None,)
    if block is None or operand.plain is not None or len(block.parts) != 1 or (block.picks < 0).any():
        return None
    inner, _ = block.parts[0]
    if not isinstance(inner.op, Linear) or reads_image(b, inner) or operand.rows > b.place(inner).rows:
        return None
    source = b.tokens(inner.operands[0])
    if source.gone or len(source.blocks) != 1:
        return None
    _, w, *bias = inner.operands
    x = value(b, inner, source.at(block.rows))
    weight, constant = b.array(w, "its weight"), b.array(bias[0], "its bias") if bias else None
    return b.add(graph.Linear, inner, inner.name, "linear", x=x, weight=weight, bias=constant)


def _constant_queries(b: Rows, node: Node, q: Ref) -> str:
    """Learned queries, which are the same for every image."""
    numbers = np.asarray(q.constant, np.float32)
    table = numbers.transpose(0, 2, 1, 3).reshape(q.shape[0] * q.shape[2], -1)
    return b.table(node, table)


# --- rotary positions ---


def rotate_place(b: Rows, node: Node) -> Place:
    x = node.operands[0]
    if b.lost(view := b.view(x)):
        return Place(x.shape[0], node.shape[1])
    (found,) = b.settled([view.group([0], [1, 2, 3])])
    return Place(found.rows, node.shape[1], found.order)


def rotate(b: Rows, node: Node, start: int, stop: int) -> str:
    x, cos, sin = node.operands
    heads = x.shape[1]
    (operand,) = b.settled([b.view(x).group([0], [1, 2, 3])])
    if operand.gone:
        return GONE
    order = np.arange(operand.rows) if operand.order is None else np.unique(operand.order, return_index=True)[1]
    if operand.rows != x.shape[0]:
        raise Unsupported("turns a token by several angles")
    source = operand.plain
    if source is None:
        name = value(b, node, operand, start, stop)
    else:
        inner, columns, first = source
        if b.place(inner).column is None:
            made_of = b.columns(inner, columns)
            if made_of is not inner:
                object.__setattr__(made_of, "name", f"{node.name}.linear" if node.name else "")
            inner = made_of
        elif not np.array_equal(columns, np.arange(b.place(inner).width)):
            inner = _paired(b, inner, columns)
        name = b.value(inner, first + start, first + stop)
    tables = {"cos": b.intern(b.array(cos)[order[start:stop]]), "sin": b.intern(b.array(sin)[order[start:stop]])}
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
