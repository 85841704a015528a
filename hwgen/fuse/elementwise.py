"""Rules for operators that work element by element, and for the LayerNorm and GELU that exporters build from them."""

from __future__ import annotations

from dataclasses import replace
from math import isclose, pi, sqrt

import numpy as np

from . import dispatch, gate, mixture
from .emit import Context
from .op import Op, Unsupported, constant_argument
from .params import label_of, parent, scaled
from .symbols import (
    Activated,
    Array,
    Centred,
    Const,
    Embedding,
    Lin,
    Mean,
    Mixture,
    Noise,
    Norm,
    Patches,
    Phi,
    Poly,
    Scores,
    SlotSum,
    Square,
    Sym,
    TopIndices,
    TopValues,
    Unmasked,
    Value,
    Variance,
    View,
    broadcast,
    by_key,
    need_rows,
    need_tensor,
    same_elements,
    uniform,
    whole,
)

# Exporters write the constants of GELU with few or many digits.
DIGITS = 1e-4
# Some models guard a division by the sum of the chosen scores, which is at least 1/64, with such an epsilon.
TINY = 1e-6


def shape_of(*values) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*(v.shape for v in values))
    except ValueError:
        raise Unsupported(f"shapes {' and '.join(str(v.shape) for v in values)} do not broadcast") from None


# --- addition ----------------------------------------------------------------------------------------------------


def add(ctx: Context, op: Op, a, b) -> View | Const:
    """Sum of two values, at least one of them a View."""
    shape = shape_of(a, b)
    if isinstance(a, Const):
        a, b = b, a
    if isinstance(b, Const):
        return _add_constant(ctx, op, broadcast(a, shape), np.broadcast_to(b.array, shape), b)
    a, b = broadcast(a, shape), broadcast(b, shape)
    if isinstance(a.sym, Noise) or isinstance(b.sym, Noise):
        raise Unsupported("adds random noise", "export the model in inference mode")
    if a.sym is b.sym and same_elements(a, b):
        both = a.scale + b.scale
        return replace(a, scale=both) if both else Const(np.zeros(shape, np.float32))
    if isinstance(a.sym, Mixture) and isinstance(b.sym, Mixture) and not (_done(ctx, a) and _done(ctx, b)):
        return mixture.add(a, b)
    if isinstance(a.sym, Poly) or isinstance(b.sym, Poly):
        (x, p), (y, q) = _polynomial(a), _polynomial(b)
        if x is y and same_elements(a, b):
            return a.of(_poly(x, {n: p.get(n, 0) + q.get(n, 0) for n in p | q}), 1.0)
    if Scores in (type(a.sym), type(b.sym)):
        scores = a if isinstance(a.sym, Scores) else b
        raise Unsupported("adds a mask or bias to attention scores", "export without attention mask", scores)
    names = ctx.emit(a), ctx.emit(b)
    return whole(Value(shape=(int(np.prod(shape[:-1])), shape[-1]), name=ctx.add(names, op), source=op.name), shape)


def _done(ctx: Context, view: View) -> bool:
    return not isinstance(ctx.settle(view).sym, Mixture)


def _add_constant(ctx: Context, op: Op, a: View, c: Array, const: Const) -> View:
    if not np.any(c):
        return a
    value = uniform(c)
    if isinstance(a.sym, Scores):
        raise Unsupported("adds a mask or bias to attention scores", "export without attention mask", a)
    match a.sym:
        case Variance(x=x, epsilon=eps, power=1) as sym if value is not None:
            total = eps + value / a.scale
            return a.of(Variance(x=x, epsilon=total, power=1, shape=sym.shape))
        case Phi(x=x, form=form, offset=offset) as sym if value is not None:
            return a.of(Phi(x=x, form=form, offset=offset + value / a.scale, shape=sym.shape))
        case Poly() if value is not None:
            x, terms = _polynomial(a)
            return a.of(_poly(x, terms | {0: terms.get(0, 0) + value}), 1.0)
        case SlotSum() if value is not None and 0 < value <= TINY:
            return a
        case Lin() | Norm() | Patches() | Embedding():
            sym = _shifted(a.sym, a.positions.reshape(-1), c.reshape(-1) / np.float32(a.scale))
            sym.label = label_of(op, const) or sym.label
            return a.of(sym)
    raise Unsupported("adds a constant to a tensor that no linear layer makes")


def _shifted(sym: Sym, where: Array, c: Array) -> Sym:
    """sym plus `c` at the flat positions `where`: as bias if the same in every row, else as position embedding."""
    width = sym.shape[-1]
    columns = where % width
    if isinstance(sym, Lin) and len(sym.shape) == 3:
        columns = where // (sym.shape[1] * width) * width + columns
    per_column = None
    if not isinstance(sym, Embedding):
        size = width * (sym.shape[0] if len(sym.shape) == 3 else 1)
        per_column = by_key(c.astype(np.float32), columns, size, 0.0)
    if per_column is not None:
        if isinstance(sym, Norm):
            return replace(sym, beta=sym.beta + per_column)
        per_column = per_column.reshape(sym.weight.shape[:-1] if isinstance(sym, Lin) else -1)
        return replace(sym, bias=per_column if sym.bias is None else sym.bias + per_column)
    table = by_key(c.astype(np.float32), where, int(np.prod(sym.shape)), 0.0)
    if table is None or not isinstance(sym, Patches | Embedding):
        raise Unsupported("adds a constant that differs from token to token after the first layer")
    table = table.reshape(sym.shape)
    if isinstance(sym, Embedding):
        return replace(sym, position=sym.position + table)
    prefix = np.zeros((0, width), np.float32)
    return Embedding(
        patches=sym, prefix=prefix, position=table, shape=sym.shape, label=parent(sym.label), source=sym.source
    )


def subtract(ctx: Context, op: Op, a, b) -> View | Const:
    if isinstance(a, View) and isinstance(b, View) and isinstance(b.sym, Mean):
        shape = shape_of(a, b)
        a, b = broadcast(ctx.plain(a), shape), broadcast(b, shape)
        if a.sym is b.sym.x and np.array_equal(a.positions // a.sym.shape[-1], b.positions) and b.scale == 1:
            return a.of(Centred(x=a.sym, shape=a.sym.shape))
    if isinstance(b, Const):
        return add(ctx, op, a, Const(-b.array, b.name))
    return add(ctx, op, a, replace(b, scale=-b.scale))


# --- multiplication ----------------------------------------------------------------------------------------------


def multiply(ctx: Context, op: Op, a, b) -> View | Const:
    """Product of two values, at least one of them a View."""
    shape = shape_of(a, b)
    if isinstance(a, Const):
        a, b = b, a
    if isinstance(b, Const):
        return _multiply_constant(op, broadcast(a, shape), np.broadcast_to(b.array, shape), b)
    a, b = broadcast(a, shape), broadcast(b, shape)
    if isinstance(a.sym, Noise) or isinstance(b.sym, Noise):
        return a if isinstance(a.sym, Noise) else b
    for x, y in ((a, b), (b, a)):
        match x.sym, y.sym:
            case Sym() as value, Phi(x=inner, form=form, offset=offset) as phi if (
                value is inner and isclose(offset, 1, rel_tol=DIGITS) and same_elements(x, y)
            ):
                label = label_of(op) or (parent(value.label) + ".act").lstrip(".")
                gelu = Activated(x=value, form=form, shape=phi.shape, label=label, source=op.name)
                return x.of(gelu, 2 * x.scale * y.scale)
            case Centred(x=value) as centred, Variance(x=of, power=-0.5) if value is of:
                return _normalised(op, x, y, centred, y.sym.epsilon)
    if gate.is_part(a, b):
        return mixture.multiply(ctx, a, b)
    if isinstance(a.sym, Centred) and isinstance(b.sym, Centred) and a.sym.x is b.sym.x and same_elements(a, b):
        return a.of(Square(x=a.sym.x, shape=a.sym.shape), a.scale * b.scale)
    (x, p), (y, q) = _polynomial(a), _polynomial(b)
    if x is y and same_elements(a, b):
        terms: dict[int, float] = {}
        for n, c in p.items():
            for m, d in q.items():
                terms[n + m] = terms.get(n + m, 0.0) + c * d
        return a.of(_poly(x, terms), 1.0)
    raise Unsupported("multiplies two computed tensors in a way that is no GELU, LayerNorm or gate weighting")


def _multiply_constant(op: Op, a: View, c: Array, const: Const) -> View | Const:
    value = uniform(c)
    if value == 0:
        return Const(np.zeros(a.shape, np.float32))
    if value is not None:
        return replace(a, scale=a.scale * value)
    width = a.sym.shape[-1]
    keys = a.positions % width
    size = width
    if isinstance(a.sym, Lin) and len(a.sym.shape) == 3:
        keys = a.positions // (a.sym.shape[1] * width) * width + keys
        size *= a.sym.shape[0]
    factor = by_key(c.reshape(-1).astype(np.float32), keys.reshape(-1), size, 1.0)
    if factor is None:
        raise Unsupported("multiplies by a constant that differs from token to token")
    sym = scaled(a.sym, factor.reshape(a.sym.weight.shape[:-1]) if isinstance(a.sym, Lin) else factor)
    if isinstance(sym, Norm):
        sym.label, sym.source = label_of(op, const) or sym.label, sym.source or op.name
    return a.of(sym)


def divide(ctx: Context, op: Op, a, b) -> View | Const:
    if isinstance(b, Const):
        if not np.all(b.array):
            raise Unsupported("divides by zero")
        return multiply(ctx, op, a, Const(np.float32(1) / b.array.astype(np.float32), b.name))
    if isinstance(b.sym, Variance) and b.sym.power == 0.5:
        return multiply(ctx, op, a, b.of(_variance(b.sym, -0.5), 1 / b.scale))
    if isinstance(a, View) and isinstance(a.sym, TopValues | Mixture) and isinstance(b.sym, SlotSum):
        return gate.renormalised(a, b)
    if isinstance(a, View) and isinstance(b.sym, TopValues) and a.sym is b.sym and b.sym.shape[1] == 1:
        one = SlotSum(logits=b.sym.logits, slots=1, shape=b.sym.shape)  # the sum over one slot, which optimisers drop
        return gate.renormalised(a, b.of(one))
    raise Unsupported("divides by a computed tensor in a way that is no LayerNorm or gate")


# --- LayerNorm ---------------------------------------------------------------------------------------------------


def mean(ctx: Context, op: Op, values: list) -> View:
    """ReduceMean over channels: a step of LayerNorm."""
    x = values[0]
    axes = constant_argument(op, values, 1, "axes")
    if axes is None or [int(n) % len(x.shape) for n in np.atleast_1d(axes)] != [len(x.shape) - 1]:
        raise Unsupported("averages over tokens", "use the class token: mean pooling is not supported")
    shape = x.shape[:-1] + ((1,) if op.attribute("keepdims", 1) else ())
    if not isinstance(x.sym, Square):
        x = ctx.plain(x)
        need_tensor(x)
    rows = need_rows(x).reshape(shape)
    if isinstance(x.sym, Square):
        return View(Variance(x=x.sym.x, epsilon=0.0, power=1, shape=(*x.sym.shape[:-1], 1)), shape, rows, x.scale)
    return View(Mean(x=x.sym, shape=(*x.sym.shape[:-1], 1)), shape, rows)


def power(ctx: Context, op: Op, a, b) -> View:
    exponent = uniform(b.array) if isinstance(b, Const) else None
    if exponent in (2, 3) and isinstance(a, View):
        square = multiply(ctx, op, a, a)
        return square if exponent == 2 else multiply(ctx, op, square, a)
    if exponent in (0.5, -0.5) and isinstance(a, View):
        return _root(a, exponent)
    raise Unsupported("is not a square, a cube or a square root")


def _root(a: View, exponent: float) -> View:
    if not (isinstance(a.sym, Variance) and a.sym.power == 1 and a.scale == 1):
        raise Unsupported("takes the root of something that is no variance")
    return a.of(_variance(a.sym, exponent))


def _variance(sym: Variance, exponent: float) -> Variance:
    return Variance(x=sym.x, epsilon=sym.epsilon, power=exponent, shape=sym.shape)


def root(ctx: Context, op: Op, values: list) -> View:
    return _root(values[0], 0.5)


def reciprocal(ctx: Context, op: Op, values: list) -> View:
    return divide(ctx, op, Const(np.ones((), np.float32)), values[0])


def negate(ctx: Context, op: Op, values: list) -> View:
    return replace(values[0], scale=-values[0].scale)


def _normalised(op: Op, x: View, y: View, centred: Centred, epsilon: float) -> View:
    if not np.array_equal(x.positions // centred.shape[-1], y.positions):
        raise Unsupported("normalises by the variance of another row")
    width = centred.shape[-1]
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    norm = Norm(x=centred.x, gamma=ones, beta=zeros, epsilon=epsilon, shape=centred.shape, source=op.name)
    norm.label = label_of(op)
    return x.of(norm, x.scale * y.scale)


def layer_norm(ctx: Context, op: Op, values: list) -> View:
    """The LayerNormalization operator."""
    x = ctx.plain(values[0])
    if op.attribute("axis", -1) % len(x.shape) != len(x.shape) - 1:
        raise Unsupported("normalises over more than the channels")
    need_tensor(x)
    gamma, beta = values[1], values[2] if len(values) > 2 else None
    if not isinstance(gamma, Const) or not (beta is None or isinstance(beta, Const)):
        raise Unsupported("its scale or bias is not constant")
    need_rows(x)
    width = x.shape[-1]
    g = np.broadcast_to(gamma.array, (width,)).astype(np.float32)
    b = np.broadcast_to(0 if beta is None else beta.array, (width,)).astype(np.float32)
    epsilon = float(op.attribute("epsilon", 1e-5))
    label = label_of(op, gamma, *([] if beta is None else [beta]))
    norm = Norm(x=x.sym, gamma=g, beta=b, epsilon=epsilon, shape=x.sym.shape, label=label, source=op.name)
    return x.of(norm)


def skip_layer_norm(ctx: Context, op: Op, values: list) -> list:
    """com.microsoft.SkipLayerNormalization: y = LayerNorm(input + skip + bias), and the sum as fourth output."""
    a, b, gamma, beta, bias = (list(values) + [None] * 5)[:5]
    if bias is not None:
        if not isinstance(a, View) or not isinstance(a.sym, Lin):
            a, b = b, a
        a = add(ctx, op, a, bias)
    total = add(ctx, op, a, b)
    normalised = layer_norm(ctx, op, [total, gamma, beta])
    return [normalised, None, None, total][: len(op.outputs)]


# --- GELU --------------------------------------------------------------------------------------------------------


def _polynomial(view: View) -> tuple[Sym, dict[int, float]]:
    if isinstance(view.sym, Poly):
        return view.sym.x, {n: c * view.scale for n, c in view.sym.terms.items()}
    return view.sym, {1: view.scale}


def _poly(x: Sym, terms: dict[int, float]) -> Poly:
    return Poly(x=x, terms={n: c for n, c in terms.items() if c}, shape=x.shape)


def erf(ctx: Context, op: Op, values: list) -> View:
    x = values[0]
    if isinstance(x.sym, Poly) or not isclose(x.scale, sqrt(0.5), rel_tol=DIGITS):
        raise Unsupported("is not the erf(x / sqrt 2) of a GELU")
    return x.of(Phi(x=x.sym, form="none", shape=x.sym.shape), 1.0)


def tanh(ctx: Context, op: Op, values: list) -> View:
    x, terms = _polynomial(values[0])
    c = sqrt(2 / pi)
    expected = {1: c, 3: 0.044715 * c}
    if terms.keys() != expected.keys() or any(not isclose(terms[n], expected[n], rel_tol=DIGITS) for n in terms):
        raise Unsupported("is not the tanh of a GELU", "use GELU as activation", values[0])
    return values[0].of(Phi(x=x, form="tanh", shape=x.shape), 1.0)


def gelu(ctx: Context, op: Op, x: View, form: str) -> View:
    x = ctx.plain(x)
    need_tensor(x)
    label = label_of(op) or (parent(x.sym.label) + ".act").lstrip(".")
    return x.of(Activated(x=x.sym, form=form, shape=x.sym.shape, label=label, source=op.name))


def gelu_op(ctx: Context, op: Op, values: list) -> View:
    form = op.attribute("approximate", "none")
    if form not in ("none", "tanh"):
        raise Unsupported(f"approximate={form!r}")
    return gelu(ctx, op, values[0], form)


def bias_gelu(ctx: Context, op: Op, values: list) -> View:
    """com.microsoft.BiasGelu and FastGelu (the tanh form), whose bias may be absent."""
    x = values[0] if len(values) < 2 or values[1] is None else add(ctx, op, values[0], values[1])
    return gelu(ctx, op, x, "tanh" if op.type.endswith("FastGelu") else "none")


# --- the rest ----------------------------------------------------------------------------------------------------


def cast(ctx: Context, op: Op, values: list) -> View:
    """A change of floating point width changes nothing here; expert indices and masks may become numbers."""
    to_float = op.attribute("to") in (1, 10, 11, 16)
    if not to_float and not isinstance(values[0].sym, TopIndices | Mixture | Unmasked):
        raise Unsupported("rounds a computed tensor to integers")
    return values[0]


def select(ctx: Context, op: Op, values: list) -> View | Const:
    """Where: a constant choice, or a mask of the tokens of one expert."""
    condition, a, b = values
    if isinstance(condition, View) and isinstance(condition.sym, Mixture | Unmasked):
        return dispatch.where(ctx, condition, a, b)
    if isinstance(condition, Const):
        choice = uniform(condition.array)
        if choice is not None:
            chosen, shape = a if choice else b, shape_of(condition, a, b)
            if isinstance(chosen, View):
                return broadcast(chosen, shape)
            return Const(np.broadcast_to(chosen.array, shape), chosen.name)
    view = next((v for v in (a, b) if isinstance(v, View)), None)
    raise Unsupported("masks a computed tensor", "export without attention mask", view)
