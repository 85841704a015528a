"""Rules for activations and for the steps from which exporters build them."""

from __future__ import annotations

from math import isclose, pi, sqrt

from .emit import Context
from .op import Op, Unsupported
from .params import label_of, parent
from .symbols import Activated, Phi, Poly, Sym, TopValues
from .views import View, need_tensor

# Exporters write the constants of GELU with few or many digits, or in 16 bit; the check against the file judges them.
DIGITS = 4e-3
ROUTER = "score experts by a softmax over all of them or over the chosen"


def polynomial(view: View) -> tuple[Sym, dict[int, float]]:
    if isinstance(view.sym, Poly):
        return view.sym.x, {n: c * view.scale for n, c in view.sym.terms.items()}
    return view.sym, {1: view.scale}


def poly(x: Sym, terms: dict[int, float]) -> Poly:
    return Poly(x=x, terms={n: c for n, c in terms.items() if c}, shape=x.shape)


def sigmoid(ctx: Context, op: Op, values: list) -> View:
    """Sigmoid, one factor of SiLU (Swish) and of QuickGELU."""
    x = values[0]
    if isinstance(x.sym, TopValues):
        raise Unsupported("weights experts by the sigmoid of their logits", ROUTER)
    if isinstance(x.sym, Poly) or x.scale <= 0:
        raise Unsupported("is not the sigmoid of x * sigmoid(a * x)", "use GELU as activation", x)
    return x.of(Phi(x=x.sym, form="sigmoid", offset=1.0, slope=x.scale, shape=x.sym.shape), 0.5)


def swish(ctx: Context, op: Op, values: list) -> View:
    """Swish of opset 24 and com.microsoft.QuickGelu: x * sigmoid(alpha * x)."""
    alpha = float(op.attribute("alpha", 1.702 if op.type.endswith("QuickGelu") else 1.0))
    return activation(ctx, op, values[0], "sigmoid", alpha)


def relu(ctx: Context, op: Op, values: list) -> View:
    return activation(ctx, op, values[0], "relu")


def erf(ctx: Context, op: Op, values: list) -> View:
    x = values[0]
    if isinstance(x.sym, Poly) or not isclose(x.scale, sqrt(0.5), rel_tol=DIGITS):
        raise Unsupported("is not the erf(x / sqrt 2) of a GELU")
    return x.of(Phi(x=x.sym, form="none", shape=x.sym.shape), 1.0)


def tanh(ctx: Context, op: Op, values: list) -> View:
    x, terms = polynomial(values[0])
    c = sqrt(2 / pi)
    expected = {1: c, 3: 0.044715 * c}
    if terms.keys() != expected.keys() or any(not isclose(terms[n], expected[n], rel_tol=DIGITS) for n in terms):
        raise Unsupported("is not the tanh of a GELU", "use GELU as activation", values[0])
    return values[0].of(Phi(x=x, form="tanh", shape=x.shape), 1.0)


def activation(ctx: Context, op: Op, x: View, form: str, slope: float = 1.0) -> View:
    x = ctx.plain(x)
    need_tensor(x)
    label = label_of(op) or (parent(x.sym.label) + ".act").lstrip(".")
    return x.of(Activated(x=x.sym, form=form, slope=slope, shape=x.sym.shape, label=label, source=op.name))


def gelu_op(ctx: Context, op: Op, values: list) -> View:
    form = op.attribute("approximate", "none")
    if form not in ("none", "tanh"):
        raise Unsupported(f"approximate={form!r}")
    return activation(ctx, op, values[0], form)


