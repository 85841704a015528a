"""Rules for rotary position embedding: x * cos + turned(x) * sin, turned by halves or by neighbours.

Step by step a tensor is known as a weighted sum of two elements of a linear layer; before attention it must be what
`graph.Rotate` computes. Columns of a head then stand pair by pair, for queries and keys alike, which no score notices.
"""

from __future__ import annotations

import numpy as np

from .op import Unsupported
from .symbols import Array, HeadNorm, Heads, Lin, Norm, Rotated, Sym, Weighted
from .views import View

CLOSE = 2e-3  # cosines and sines of a pair, squares of a rotation: models of 16 bits have rounded them
NO_ROTATION = "multiplies queries or keys by constants in a way that is no rotation"
HINT = "rotate pairs of channels by the same angles in every head: x * cos + rotate_half(x) * sin"


def weighted(view: View, factor: Array | float = 1.0) -> View:
    """`view` times `factor`, which differs from token to token. Raises Unsupported where no linear layer makes it."""
    base = base_of(view)
    if base is None:
        raise Unsupported("multiplies by a constant that differs from token to token", HINT)
    index, factors = _terms(view)
    factors = factors * np.asarray(np.broadcast_to(factor, view.shape), np.float32).reshape(-1)
    return _view(base, index, factors, view.shape, view.sym.source)


def base_of(view: View) -> Sym | None:
    """What a rotation may be about: the tensor whose elements a view holds, or a weighted sum of them."""
    sym = view.sym.x if isinstance(view.sym, Weighted) else view.sym
    return sym if isinstance(sym, Lin | Norm | HeadNorm) and len(sym.shape) == 2 else None


def joins(views: list[View]) -> bool:
    """Whether views are elements of one tensor with different factors."""
    bases = [base_of(v) for v in views]
    differ = any(isinstance(v.sym, Weighted) for v in views) or len({v.scale for v in views}) > 1
    return bases[0] is not None and all(b is bases[0] for b in bases) and differ


def join(views: list[View], axis: int) -> View:
    """Such views one behind the other on an axis."""
    parts = [_terms(v) for v in views]
    count = max(len(index) for index, _ in parts)
    shape = np.concatenate([np.empty(v.shape, bool) for v in views], axis=axis).shape
    joined = []
    for which, nothing in ((0, -1), (1, 0.0)):
        terms = []
        for t in range(count):
            arrays = [p[which][t] if t < len(p[0]) else np.full(v.shape, nothing) for p, v in zip(parts, views, strict=True)]
            terms.append(np.concatenate([a.reshape(v.shape) for a, v in zip(arrays, views, strict=True)], axis=axis).reshape(-1))
        joined.append(np.stack(terms))
    return _view(base_of(views[0]), joined[0].astype(np.int32), joined[1].astype(np.float32), shape, views[0].sym.source)


def add(a: View, b: View) -> View | None:
    """The sum of two views of one shape where it is again a weighted sum of one tensor's elements, else None."""
    if not (isinstance(a.sym, Weighted) or isinstance(b.sym, Weighted)) or base_of(a) is not base_of(b):
        return None
    (i, f), (j, g) = _terms(a), _terms(b)
    if len(i) + len(j) > 2:
        raise Unsupported("adds more than two elements of a tensor, times constants that differ from token to token", HINT)
    return _view(base_of(a), np.concatenate([i, j]), np.concatenate([f, g]), a.shape, b.sym.source)


def _terms(view: View) -> tuple[Array, Array]:
    """(index, factor) as of `Weighted`, of the view's elements: [terms, elements]."""
    at = view.positions.reshape(-1)
    if isinstance(view.sym, Weighted):
        return view.sym.index[:, at], view.sym.factor[:, at] * np.float32(view.scale)
    return at[None], np.full((1, at.size), view.scale, np.float32)


def _view(base: Sym, index: Array, factor: Array, shape: tuple[int, ...], source: str) -> View:
    return View(Weighted(x=base, index=index, factor=factor, shape=shape, label=base.label, source=source), shape)


# --- before attention --------------------------------------------------------------------------------------------


def heads_of(view: View) -> tuple[Heads, float]:
    """Queries or keys [.., T, d] that are a rotation of a tensor's heads, and a factor that they have beside it."""
    sym, (t, d) = view.sym, view.shape[-2:]
    width, at = sym.x.shape[-1], view.positions.reshape(-1, t, d)
    index, factor = sym.index[:, at], sym.factor[:, at]
    if len(index) == 1:
        index, factor = (np.concatenate([a, np.full_like(a, none)]) for a, none in ((index, -1), (factor, 0)))
    rows = np.where(index < 0, -1, index // width)
    columns = np.where(index < 0, -1, index % width)
    if (rows[:, :, -1, 0].max(axis=0) != rows[:, 0, -1, 0].max()).any():
        raise Unsupported("turns queries or keys within windows", "use rotary positions where every token attends to all")
    start = int(rows[0, 0, 0, 0])
    _need(start >= 0 and ((rows == start + np.arange(t)[:, None]) | (rows < 0)).all())
    # The terms of the last token, which has a position: one is an element itself, the other what it is turned with.
    for own, other in (columns[:, :, -1], columns[::-1, :, -1]):
        first = columns[0] == own[:, None]
        rest = np.where(first, columns[1], columns[0])
        if not (first | (columns[1] == own[:, None])).all() or not ((rest == other[:, None]) | (rest < 0)).all():
            continue
        partner = _partners(own, other)
        cos, sin = (np.where(which, factor[0], factor[1]) for which in (first, ~first))
        if np.allclose(cos, cos[..., partner], rtol=0, atol=CLOSE * np.abs(cos).max()):
            return _rotated(view, own, partner, cos, sin, start)
    raise Unsupported(NO_ROTATION, HINT)


def _partners(own: Array, other: Array) -> Array:
    """[d]: where in a head the element stands that an element is turned with."""
    place = {int(c): i for i, c in enumerate(own[0])}
    partner = np.array([place.get(int(c), -1) for c in other[0]])
    _need((partner >= 0).all() and (own[:, partner] == other).all())
    _need((partner[partner] == np.arange(len(partner))).all() and (partner != np.arange(len(partner))).all())
    return partner


def _rotated(view: View, own: Array, partner: Array, cos: Array, sin: Array, start: int) -> tuple[Heads, float]:
    """From factors [heads, T, d] of an element and of the one it is turned with."""
    gain = np.sqrt(cos.astype(np.float64) ** 2 + sin.astype(np.float64) ** 2)
    scale = float(np.median(gain))
    _need(scale > 0 and np.allclose(gain, scale, atol=CLOSE * scale))
    near = {"atol": CLOSE * scale, "rtol": 0}
    _need(np.allclose(cos, cos[:1], **near) and np.allclose(sin, sin[:1], **near))
    _need(np.allclose(cos, cos[..., partner], **near) and np.allclose(sin, -sin[..., partner], **near))
    firsts = np.flatnonzero(np.arange(len(partner)) < partner)
    order = np.stack([firsts, partner[firsts]], axis=1).reshape(-1)
    columns = own[:, order]
    sym = Rotated(
        x=view.sym.x,
        columns=columns,
        start=start,
        cos=cos[0][:, firsts] / np.float32(scale),
        sin=-sin[0][:, firsts] / np.float32(scale),
        order=order,
        shape=(cos.shape[1], columns.size),
        label=view.sym.label,
        source=view.sym.source,
    )
    return Heads(sym, np.arange(columns.size).reshape(columns.shape), 0, cos.shape[1]), scale


def _need(condition) -> None:
    if not condition:
        raise Unsupported(NO_ROTATION, HINT)


def same_order(q: Heads, k: Heads) -> bool:
    """Whether the columns of queries and keys stand in the same order, so that their products are those of the model."""
    orders = [h.x.order if isinstance(h.x, Rotated) else None for h in (q, k)]
    return (orders[0] is None) == (orders[1] is None) and (orders[0] is None or np.array_equal(*orders))
