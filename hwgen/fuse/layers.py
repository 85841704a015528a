"""The layers of experts: many of one form as a stack, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .op import Unsupported
from .symbols import Activated, Array, Lin, Product, Sym
from .views import View

if TYPE_CHECKING:
    from .emit import Context

GATED_EXPERT, GATED_HINT = "an expert is a gated MLP (SwiGLU, GEGLU)", "in experts use linear, GELU, linear"


def stacked(branches: list[Sym]) -> Sym:
    """Branches of one form, expert by expert, as one stack of experts."""
    first = branches[0]
    if all(b is first for b in branches) and not isinstance(first, Lin | Activated):
        return first
    common = {"shape": (len(branches), *first.shape), "label": first.label, "source": first.source}
    if all(type(b) is Lin and len(b.shape) == 2 and b.shape == first.shape for b in branches):
        if len({b.weight.shape for b in branches}) == 1:
            zero = np.zeros(first.weight.shape[0], np.float32)
            bias = None
            if any(b.bias is not None for b in branches):
                bias = np.stack([zero if b.bias is None else b.bias for b in branches])
            shared = all(b.x is first.x for b in branches) and not isinstance(first.x, Activated)
            x = first.x if shared else stacked([b.x for b in branches])
            return Lin(x=x, weight=np.stack([b.weight for b in branches]), bias=bias, **common)
    if all(type(b) is Activated and (b.form, b.slope) == (first.form, first.slope) for b in branches):
        return Activated(x=stacked([b.x for b in branches]), form=first.form, slope=first.slope, **common)
    if any(isinstance(b, Product) for b in branches):
        raise Unsupported(GATED_EXPERT, GATED_HINT)
    raise Unsupported("the experts do not have one form")


def single_stack(ctx: Context, view: View, experts: int) -> View:
    """The output of the only expert as a stack of one; any other view as it is."""
    if experts != 1 or not isinstance(view.sym, Lin) or len(view.sym.shape) != 2:
        return view
    view = ctx.plain(view)
    return view.of(ctx.once(("single",), view.sym, lambda: stacked([view.sym])))


def split(ctx: Context, sym: Sym, columns: Array) -> Sym:
    """A stack [E, T, K] of the columns [E, K] that each expert has in one layer of all of them."""

    def make() -> Sym:
        shape = (len(columns), sym.shape[0], columns.shape[1])
        common = {"shape": shape, "label": sym.label, "source": sym.source}
        if isinstance(sym, Activated):
            return Activated(x=split(ctx, sym.x, columns), form=sym.form, slope=sym.slope, **common)
        if isinstance(sym, Lin):
            bias = None if sym.bias is None else sym.bias[columns]
            return Lin(x=sym.x, weight=sym.weight[columns], bias=bias, **common)
        raise Unsupported("the experts do not read the same channels")

    return ctx.once(("split", columns.tobytes()), sym, make)


def same_layers(a: Sym, b: Sym) -> bool:
    """True where two experts' layers are one, though an exporter wrote them twice."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Lin):
        same = np.array_equal(a.weight, b.weight) and (a.bias is None) == (b.bias is None)
        return same and (a.bias is None or np.array_equal(a.bias, b.bias)) and same_layers(a.x, b.x)
    return isinstance(a, Activated) and (a.form, a.slope) == (b.form, b.slope) and same_layers(a.x, b.x)


def nothing(sym: Sym) -> Sym:
    """Layers of the same form whose weights are zero."""
    if isinstance(sym, Activated):
        return replace(sym, x=nothing(sym.x))
    if not isinstance(sym, Lin):
        raise Unsupported("an expert is not linear, activation, linear", "only experts of two linear layers are supported")
    inner = nothing(sym.x) if isinstance(sym.x, Activated) else sym.x
    return replace(sym, x=inner, weight=0 * sym.weight, bias=None if sym.bias is None else 0 * sym.bias)
