"""Rules for the product of two computed tensors: gated linear units such as SwiGLU."""

from __future__ import annotations

import numpy as np

from .emit import Context
from .op import Op, Unsupported
from .params import label_of, parent
from .symbols import TENSORS, Activated, Image, Product
from .views import View, positions, token_layout, whole


def product(ctx: Context, op: Op, a: View, b: View) -> View:
    """a * b, of one shape, both tokens by channels. Raises Unsupported for anything else."""
    a, b = ctx.settle(a), ctx.settle(b)
    for x in (a, b):
        if not isinstance(x.sym, TENSORS) or isinstance(x.sym, Image):
            raise Unsupported("multiplies two computed tensors in a way that is no GELU, LayerNorm or gate weighting")
        if len(x.sym.shape) != 2:
            raise Unsupported("multiplies the hidden layers of experts: gated experts", "use linear, GELU, linear in experts")
    layouts = token_layout(a), token_layout(b)
    if None in layouts or a.sym.shape[0] != b.sym.shape[0]:
        raise Unsupported("multiplies two tensors that are not tokens by channels")
    (rows, a_columns), (b_rows, b_columns) = layouts
    if not np.array_equal(rows, b_rows):
        raise Unsupported("multiplies a token by another one")
    parts = [ctx.columns(x.sym, columns) for x, columns in ((a, a_columns), (b, b_columns))]
    shape = parts[0].shape
    label = label_of(op) or parent(next((p.label for p in parts if isinstance(p, Activated)), ""))
    sym = Product(a=parts[0], b=parts[1], shape=shape, label=f"{label}.gated" if label else "", source=op.name)
    ctx.emit(whole(sym))  # refused here, where it is, if at all
    if np.array_equal(rows.reshape(-1), np.arange(shape[0])):
        return View(sym, a.shape, scale=a.scale * b.scale)
    return View(sym, a.shape, rows[..., None] * shape[1] + positions((shape[1],)), a.scale * b.scale)
