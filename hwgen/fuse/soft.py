"""Soft mixtures of experts (Puigcerver et al. 2023): every slot of an expert is a weighted mean of all tokens, and every
token a weighted mean of all slots. Both weightings are attention with constant queries or keys.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .emit import Context
from .op import Unsupported
from .symbols import Activated, Array, Dispatched, Gate, Lin, SlotWeights, SoftMixed, Sym
from .views import View, need_tensor


def over_tokens(ctx: Context, x: View, axis: int) -> View | None:
    """Softmax of a linear layer along `axis` where that runs over all tokens; None where it does not."""
    if not isinstance(x.sym, Lin) or len(x.sym.shape) != 2 or x.shape[axis] != x.sym.shape[0] or x.sym.shape[0] == 1:
        return None
    x = ctx.plain(x)
    tokens, width = x.sym.shape
    places = np.moveaxis(x.positions, axis, -1).reshape(-1, tokens)
    if not (np.sort(places // width, axis=1) == np.arange(tokens)).all() or (places % width != places[:, :1] % width).any():
        return None
    return x.of(SlotWeights(logits=x.sym, shape=x.sym.shape))


def of_slots(views: list[View]) -> bool:
    """True where all views are outputs of experts on slots."""
    return all(isinstance(v.sym, Lin) and isinstance(_root(v.sym), Dispatched) for v in views)


def contract(ctx: Context, a: View, b: View) -> View | None:
    """Matrix product [.., M, K] @ [.., K, N] where it is one of the two weightings; else None."""
    for p, q, swapped in ((a, b, False), (_transposed(b), _transposed(a), True)):
        y = None
        if isinstance(p.sym, SlotWeights):
            y = _dispatched(ctx, p, q)
        elif isinstance(p.sym, Gate) and isinstance(q.sym, Lin) and isinstance(_root(q.sym), Dispatched):
            y = _combined(ctx, p, q)
        if y is not None:
            return _transposed(y) if swapped else y
    return None


def _transposed(view: View) -> View:
    index = np.swapaxes(view.positions, -1, -2)
    return replace(view, shape=index.shape, index=index)


def _root(sym: Sym) -> Sym:
    """What experts of two layers read."""
    return sym.x.x.x if isinstance(sym.x, Activated) and isinstance(sym.x.x, Lin) else sym


def _both(p: View, q: View) -> tuple[Array, Array]:
    """Places [.., M, K] of p and [.., K, N] of q with the same leading axes."""
    lead = np.broadcast_shapes(p.shape[:-2], q.shape[:-2])
    return np.broadcast_to(p.positions, (*lead, *p.shape[-2:])), np.broadcast_to(q.positions, (*lead, *q.shape[-2:]))


def _dispatched(ctx: Context, p: View, q: View) -> View:
    """Slots: softmax over the tokens, times the tokens."""
    q = ctx.plain(q)
    need_tensor(q)
    weights, tokens = _both(p, q)
    slots, width = p.sym.shape[1], q.sym.shape[-1]
    token, slot = weights // slots, weights[..., 0] % slots
    wanted = token[..., :1, :, None] * width + np.arange(width)
    whole = (np.sort(token, axis=-1) == np.arange(p.sym.shape[0])).all() and (token == token[..., :1, :]).all()
    if p.scale != 1 or len(q.sym.shape) != 2 or not whole or not np.array_equal(tokens[..., None, :, :], wanted):
        raise Unsupported("weights something else than all tokens, channels in order")

    def make() -> Dispatched:
        logits = p.sym.logits
        sym = Dispatched(keys=logits.x, x=q.sym, weight=logits.weight, shape=(slots, width), source=logits.source)
        sym.label = logits.label
        return sym

    sym = ctx.once(("dispatched", id(q.sym)), p.sym.logits, make)
    index = slot[..., None] * width + np.arange(width)
    return View(sym, index.shape, index)


def _combined(ctx: Context, p: View, q: View) -> View:
    """Tokens: softmax over all slots, times the experts' outputs."""
    q = ctx.plain(q)
    experts = 1 if len(q.sym.shape) == 2 else q.sym.shape[0]
    weights, outputs = _both(p, q)
    slots, width = p.sym.shape[1], q.sym.shape[-1]
    token, slot = weights[..., 0] // slots, weights[..., :1, :] % slots
    if p.scale != 1 or q.sym.shape[-2] != slots or slots % experts or weights.shape[-1] != slots:
        raise Unsupported(f"combines {q.shape[-2]} rows by the scores of {slots} slots")
    own = slot // (slots // experts) * (slots * width) + slot * width
    wanted = own[..., 0, :, None] + np.arange(width)
    every = (np.sort(slot, axis=-1) == np.arange(slots)).all() and np.array_equal(weights, token[..., None] * slots + slot)
    if not every or not np.array_equal(outputs, wanted):
        raise Unsupported("does not give every expert as many slots, one after another")

    def make() -> SoftMixed:
        sym = SoftMixed(logits=p.sym.logits, outputs=q.sym, shape=(p.sym.shape[0], width), source=q.sym.source)
        sym.label = _root(q.sym).label
        return sym

    sym = ctx.once(("combined", id(q.sym)), p.sym.logits, make)
    index = token[..., None] * width + np.arange(width)
    return View(sym, index.shape, index)
