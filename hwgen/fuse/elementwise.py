"""Rules for operators that work element by element, of which exporters also build LayerNorm, GELU and gates."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import numpy as np

from . import dispatch, gate, gated, mixture, rotary
from .activation import DIGITS, ROUTER, poly, polynomial
from .attention import add_bias
from .emit import Context
from .heads import NEVER
from .norm import normalised, rms_normalised, root_of, variance_to
from .op import Op, Unsupported
from .params import label_of, parent, scaled
from .symbols import (
    Activated,
    Array,
    Centred,
    Embedding,
    Image,
    Lin,
    Mean,
    Mixed,
    Mixture,
    Noise,
    Norm,
    Patches,
    Phi,
    Poly,
    Pooled,
    Scores,
    SlotSum,
    Square,
    Sum,
    Sym,
    TopIndices,
    TopValues,
    Unmasked,
    Variance,
    Weighted,
)
from .views import Const, View, broadcast, by_key, same_elements, uniform, whole

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
        (x, p), (y, q) = polynomial(a), polynomial(b)
        if x is y and same_elements(a, b):
            return a.of(poly(x, {n: p.get(n, 0) + q.get(n, 0) for n in p | q}), 1.0)
    turned = rotary.add(a, b)
    if turned is not None:
        return turned
    if Scores in (type(a.sym), type(b.sym)):
        scores = a if isinstance(a.sym, Scores) else b
        raise Unsupported("adds a mask that is computed from the image", "export without attention mask", scores)
    for x, y in ((a, b), (b, a)):
        if not _product(ctx, x) and isinstance(y.sym, Sum) and y.index is None:
            first, second = (replace(v, shape=shape, scale=v.scale * y.scale) for v in (y.sym.a, y.sym.b))
            if _product(ctx, first) and _product(ctx, second):  # x + (first + second), as parallel branches leave it
                return add(ctx, op, add(ctx, op, x, first), second)
    ctx.emit(a), ctx.emit(b)  # refused here, where it is, if at all
    label = label_of(op)
    label = f"{label}.add" if label else ""
    return whole(Sum(a=a, b=b, shape=(int(np.prod(shape[:-1])), shape[-1]), label=label, source=op.name), shape)


def _product(ctx: Context, view: View) -> bool:
    """Whether the machine makes the tensor by products, which can be added to a stored tensor as they come out."""
    return isinstance(ctx.settle(view).sym, Lin | Mixed)


def _done(ctx: Context, view: View) -> bool:
    return not isinstance(ctx.settle(view).sym, Mixture)


def _add_constant(ctx: Context, op: Op, a: View, c: Array, const: Const) -> View:
    if not np.any(c):
        return a
    value = uniform(c)
    if isinstance(a.sym, Scores):
        return add_bias(a, c.astype(np.float32))
    match a.sym:
        case Image() if a.index is None:
            return _each_channel(a, 1.0, c / np.float32(a.scale))
        case Variance(epsilon=eps, power=1) as sym if value is not None:
            total = eps + value / a.scale
            return a.of(replace(sym, epsilon=total))
        case Phi(x=x, form=form, offset=offset) as sym if value is not None:
            return a.of(Phi(x=x, form=form, offset=offset + value / a.scale, shape=sym.shape))
        case Poly() if value is not None:
            x, terms = polynomial(a)
            return a.of(poly(x, terms | {0: terms.get(0, 0) + value}), 1.0)
        case SlotSum() if value is not None and 0 < value <= TINY:
            return a
        case Lin() | Norm() | Patches() | Embedding() | Sum() | Pooled() | Activated(shape=(_, _)):
            sym = _shifted(a.sym, a.positions.reshape(-1), c.reshape(-1) / np.float32(a.scale))
            sym.label = label_of(op, const) or sym.label
            return a.of(sym)
    if _is_sigmoid(a):
        raise Unsupported("adds a constant to sigmoids, as routers do that score experts by them", ROUTER)
    raise Unsupported("adds a constant to a tensor that no linear layer makes")


def _shifted(sym: Sym, where: Array, c: Array) -> Sym:
    """sym plus `c` at the flat positions `where`: as bias if the same in every row, else as a table of positions."""
    width = sym.shape[-1]
    columns = where % width
    if isinstance(sym, Lin) and len(sym.shape) == 3:
        columns = where // (sym.shape[1] * width) * width + columns
    per_column = None
    if isinstance(sym, Lin | Norm | Patches):
        size = width * (sym.shape[0] if len(sym.shape) == 3 else 1)
        per_column = by_key(c.astype(np.float32), columns, size, 0.0)
    if per_column is not None:
        if isinstance(sym, Norm):
            return replace(sym, beta=sym.beta + per_column)
        per_column = per_column.reshape(sym.weight.shape[:-1] if isinstance(sym, Lin) else -1)
        return replace(sym, bias=per_column if sym.bias is None else sym.bias + per_column)
    table = by_key(c.astype(np.float32), where, int(np.prod(sym.shape)), 0.0)
    if table is None or len(sym.shape) != 2:
        raise Unsupported("adds a constant that differs from view to view of one tensor")
    table = table.reshape(sym.shape)
    if isinstance(sym, Embedding):
        return replace(sym, position=sym.position + table)
    prefix = np.zeros((0, width), np.float32)
    return Embedding(x=sym, prefix=prefix, position=table, shape=sym.shape, label=parent(sym.label), source=sym.source)


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
                gelu = Activated(x=value, form=form, slope=phi.slope, shape=phi.shape, label=label, source=op.name)
                return x.of(gelu, 2 * x.scale * y.scale)
            case Centred(x=value) as centred, Variance(x=of, power=-0.5, centred=True) if value is of:
                return normalised(op, x, y, centred, y.sym.epsilon)
            case Sym() as value, Variance(x=of, power=-0.5, centred=False) if value is of:
                return rms_normalised(op, x, y)
    if gate.is_part(a, b):
        return mixture.multiply(ctx, a, b)
    for x, y in ((a, b), (b, a)):
        scored = mixture.sigmoid_gated(x, y)
        if scored is not None:
            return scored
    if _centred(a) and _centred(b) and a.sym.x is b.sym.x and same_elements(a, b):
        return a.of(Square(x=a.sym.x, shape=a.sym.shape), a.scale * b.scale)
    (x, p), (y, q) = polynomial(a), polynomial(b)
    if x is y and same_elements(a, b):
        terms: dict[int, float] = {}
        for n, c in p.items():
            for m, d in q.items():
                terms[n + m] = terms.get(n + m, 0.0) + c * d
        return a.of(poly(x, terms), 1.0)
    for x, y in ((a, b), (b, a)):
        if _is_sigmoid(x) and isinstance(y.sym, Lin):
            hint = "gate by SiLU, GELU or ReLU (SwiGLU, GEGLU, ReGLU)"
            raise Unsupported("multiplies a linear layer by sigmoids: a GLU", hint, y)
    return gated.product(ctx, op, a, b)


def _is_sigmoid(a: View) -> bool:
    return isinstance(a.sym, Phi) and a.sym.form == "sigmoid" and a.sym.offset == 1


def _centred(a: View) -> bool:
    return isinstance(a.sym, Centred) and a.sym.gain is None


def _multiply_constant(op: Op, a: View, c: Array, const: Const) -> View | Const:
    value = uniform(c)
    if value == 0:
        return Const(np.zeros(a.shape, np.float32))
    if value is not None:
        return replace(a, scale=a.scale * value)
    if isinstance(a.sym, Image) and a.index is None:
        return _each_channel(a, c, 0.0)
    if isinstance(a.sym, Weighted):
        return rotary.weighted(a, c)
    width = a.sym.shape[-1]
    keys = a.positions % width
    size = width
    if isinstance(a.sym, Lin) and len(a.sym.shape) == 3:
        keys = a.positions // (a.sym.shape[1] * width) * width + keys
        size *= a.sym.shape[0]
    factor = by_key(c.reshape(-1).astype(np.float32), keys.reshape(-1), size, 1.0)
    if factor is None:
        return rotary.weighted(a, c)
    if isinstance(a.sym, Centred):
        return a.of(replace(a.sym, gain=factor if a.sym.gain is None else a.sym.gain * factor))
    sym = scaled(a.sym, factor.reshape(a.sym.weight.shape[:-1]) if isinstance(a.sym, Lin) else factor)
    if isinstance(sym, Norm):
        sym.label, sym.source = label_of(op, const) or sym.label, sym.source or op.name
    return a.of(sym)


def _each_channel(a: View, factor: Array | float, term: Array | float) -> View:
    """Pixels of an image times `factor` plus `term`, arrays of the image's shape, the same throughout a channel."""
    sym = a.sym
    channels = sym.shape[0]
    factor, term = (np.broadcast_to(np.float32(x), a.shape).reshape(channels, -1) for x in (factor, term))
    if (factor != factor[:, :1]).any() or (term != term[:, :1]).any():
        raise Unsupported("changes the pixels of a channel differently")
    gain = np.ones(channels, np.float32) if sym.gain is None else sym.gain
    offset = np.zeros(channels, np.float32) if sym.offset is None else sym.offset
    return a.of(replace(sym, gain=gain * factor[:, 0], offset=offset * factor[:, 0] + term[:, 0]))


def divide(ctx: Context, op: Op, a, b) -> View | Const:
    if isinstance(b, Const):
        if not np.all(b.array):
            raise Unsupported("divides by zero")
        return multiply(ctx, op, a, Const(np.float32(1) / b.array.astype(np.float32), b.name))
    if isinstance(b.sym, Variance) and b.sym.power == 0.5:
        return multiply(ctx, op, a, b.of(variance_to(b.sym, -0.5), 1 / b.scale))
    if isinstance(a, View) and isinstance(a.sym, TopValues | Mixture) and isinstance(b.sym, SlotSum):
        return gate.renormalised(a, b)
    one = gate.by_itself(a, b) if isinstance(a, View) else None
    if one is not None:
        return one
    raise Unsupported("divides by a computed tensor in a way that is no LayerNorm or gate")


def power(ctx: Context, op: Op, a, b) -> View:
    exponent = uniform(b.array) if isinstance(b, Const) else None
    if exponent in (2, 3) and isinstance(a, View):
        square = multiply(ctx, op, a, a)
        return square if exponent == 2 else multiply(ctx, op, square, a)
    if exponent in (0.5, -0.5) and isinstance(a, View):
        return root_of(a, exponent)
    raise Unsupported("is not a square, a cube or a square root")


def reciprocal(ctx: Context, op: Op, values: list) -> View:
    return divide(ctx, op, Const(np.ones((), np.float32)), values[0])


def negate(ctx: Context, op: Op, values: list) -> View:
    return replace(values[0], scale=-values[0].scale)


# --- the rest ----------------------------------------------------------------------------------------------------


def cast(ctx: Context, op: Op, values: list) -> View:
    """A change of floating point width changes nothing here; expert indices and masks may become numbers."""
    to_float = op.attribute("to") in (1, 10, 11, 16)
    if not to_float and not isinstance(values[0].sym, TopIndices | Mixture | Unmasked):
        raise Unsupported("rounds a computed tensor to integers")
    return values[0]


def never(ctx: Context, op: Op, values: list) -> Const:
    """IsNaN, IsInf: the machine's numbers are finite."""
    return Const(np.zeros(values[0].shape, bool))


def batch_norm(ctx: Context, op: Op, values: list) -> View:
    """BatchNormalization in inference: a factor and a term for every channel, which stand on axis 1."""
    x, *parameters = values[:5]
    if not all(isinstance(p, Const) for p in parameters) or op.attribute("training_mode", 0):
        raise Unsupported("its parameters are not constant", "export the model in inference mode")
    gamma, beta, average, variance = (p.array.astype(np.float64) for p in parameters)
    factor = gamma / np.sqrt(variance + op.attribute("epsilon", 1e-5))
    shape = (1, -1, *[1] * (len(x.shape) - 2))
    y = multiply(ctx, op, x, Const(factor.astype(np.float32).reshape(shape)))
    return add(ctx, op, y, Const((beta - average * factor).astype(np.float32).reshape(shape)))


def cast_like(ctx: Context, op: Op, values: list) -> View | Const:
    """To the type of a computed tensor, which is floating point."""
    x = values[0]
    return Const(x.array.astype(np.float32), x.name) if isinstance(x, Const) else x


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
        for kept, other, open_ in ((a, b, condition.array), (b, a, ~condition.array.astype(bool))):
            if isinstance(kept, View) and isinstance(kept.sym, Scores) and isinstance(other, Const):
                if np.all(other.array <= NEVER):
                    shape = shape_of(condition, a, b)
                    return add_bias(broadcast(kept, shape), np.broadcast_to(np.where(open_, 0.0, NEVER), shape))
    view = next((v for v in (a, b) if isinstance(v, View)), None)
    raise Unsupported("masks a computed tensor", "export without attention mask", view)
