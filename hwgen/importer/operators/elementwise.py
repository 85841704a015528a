"""Operators that work element by element, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...tensor import BOOL, FLOAT, INT, Map, Ref
from ..quantised import as_float
from ..rules import RULES, Context, Op, Unsupported, rule

SAME = {
    **{"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Neg": "neg", "Abs": "abs", "Sign": "sign", "Floor": "floor"},
    **{"Ceil": "ceil", "Round": "round", "Sqrt": "sqrt", "Exp": "exp", "Erf": "erf", "Tanh": "tanh", "Sigmoid": "sigmoid"},
    **{"Softplus": "softplus", "Sin": "sin", "Cos": "cos", "Atan": "atan", "Equal": "eq", "Less": "lt", "LessOrEqual": "le"},
    **{"And": "and", "Or": "or", "Xor": "xor", "Not": "not"},
}
SOFTPLUS_IS_X = 15.0  # from which on float32 does not tell softplus(x) from x


def _same(function: str) -> Callable[..., Ref]:
    return lambda c, op, *x: c.t.map(function, *x)


RULES.update({kind: _same(function) for kind, function in SAME.items()})


@rule("Greater", "GreaterOrEqual")
def greater(c: Context, op: Op, a: Ref, b: Ref) -> Ref:
    return c.t.map("lt" if op.type == "Greater" else "le", b, a)


@rule("Where")
def where(c: Context, op: Op, condition: Ref, a: Ref, b: Ref) -> Ref:
    """PyTorch's softplus has a threshold, beyond which it is x itself: exporters that write this out are given softplus alone."""
    if condition.op in (Map("lt"), Map("le")) and condition.whole:
        low, high = condition.node.operands
        for limit, x, far, near in ((low, high, a, b), (high, low, b, a)):
            if near.op == Map("softplus") and near.whole and far == x == near.node.operands[0] and x.shape == near.shape:
                if limit.scalar is not None and limit.scalar >= SOFTPLUS_IS_X:
                    return near
    return c.t.map("where", condition, a, b)


@rule("Max", "Min", "Sum", "Mean")
def variadic(c: Context, op: Op, *x: Ref) -> Ref:
    y = x[0]
    for other in x[1:]:
        y = c.t.map({"Max": "max", "Min": "min"}.get(op.type, "add"), y, other)
    return c.t.map("mul", y, 1 / len(x)) if op.type == "Mean" else y


@rule("Reciprocal")
def reciprocal(c: Context, op: Op, x: Ref) -> Ref:
    return c.t.map("div", 1.0, x)


@rule("Log")
def log(c: Context, op: Op, x: Ref) -> Ref:
    """Log(Sigmoid x) is what exporters make of a log-sigmoid; computed as written it is -infinity below -18."""
    if x.op == Map("sigmoid") and x.whole:
        inner = c.t.reshape(x.node.operands[0], x.shape)
        return c.t.map("neg", c.t.map("softplus", c.t.map("neg", inner)))
    return c.t.map("log", x)


@rule("Pow")
def power(c: Context, op: Op, x: Ref, y: Ref) -> Ref:
    if x.dtype == FLOAT:
        return c.t.map("pow", x, c.t.map("float", y))
    if y.dtype == FLOAT:
        return c.t.map("int", c.t.map("pow", c.t.map("float", x), y))
    return c.t.map("pow", x, y)


@rule("Mod")
def modulo(c: Context, op: Op, a: Ref, b: Ref) -> Ref:
    return c.t.map("fmod" if op.flag("fmod") else "mod", a, b)


@rule("IsNaN", "IsInf")
def finite(c: Context, op: Op, x: Ref) -> Ref:
    """Of a constant by its numbers; what is computed is taken as finite."""
    op.ignore("detect_negative", "detect_positive")
    known = x.constant
    if known is None:
        return c.t.full(x.shape, False)
    if op.type == "IsNaN":
        return c.t.const(np.isnan(known))
    positive, negative = op.flag("detect_positive", True), op.flag("detect_negative", True)
    return c.t.const((np.isposinf(known) & positive) | (np.isneginf(known) & negative))


@rule("Relu")
def relu(c: Context, op: Op, x: Ref) -> Ref:
    return c.t.map("max", x, 0)


@rule("Clip")
def clip(c: Context, op: Op, x: Ref, low: Ref | None = None, high: Ref | None = None) -> Ref:
    """The upper bound last: it wins where the bounds cross."""
    for function, bound, name in (("max", low, "min"), ("min", high, "max")):
        bound = bound if bound is not None else op.attribute(name)
        x = x if bound is None else c.t.map(function, x, bound)
    return x


@rule("Gelu", "com.microsoft.Gelu")
def gelu(c: Context, op: Op, x: Ref) -> Ref:
    return gelu_of(c, x, op.attribute("approximate", "none"))


def gelu_of(c: Context, x: Ref, form: str) -> Ref:
    t = c.t
    if form == "tanh":
        inner = t.map("add", x, t.map("mul", t.map("pow", x, 3.0), 0.044715))
        bell = t.map("tanh", t.map("mul", inner, (2 / np.pi) ** 0.5))
    elif form == "none":
        bell = t.map("erf", t.map("mul", x, 0.5**0.5))
    else:
        raise Unsupported(f"approximate is {form!r}, must be none or tanh")
    return t.map("mul", t.map("mul", x, 0.5), t.map("add", bell, 1.0))


@rule("HardSigmoid", "HardSwish")
def hard(c: Context, op: Op, x: Ref) -> Ref:
    swish = op.type == "HardSwish"
    alpha, beta = (1 / 6, 0.5) if swish else (op.attribute("alpha", 0.2), op.attribute("beta", 0.5))
    y = c.t.map("min", c.t.map("max", c.t.map("add", c.t.map("mul", x, alpha), beta), 0.0), 1.0)
    return c.t.map("mul", x, y) if swish else y


@rule("LeakyRelu", "PRelu")
def leaky(c: Context, op: Op, x: Ref, slope: Any = None) -> Ref:
    slope = op.attribute("alpha", 0.01) if slope is None else slope
    return c.t.map("where", c.t.map("lt", x, 0), c.t.map("mul", x, slope), x)


@rule("Mish")
def mish(c: Context, op: Op, x: Ref) -> Ref:
    return c.t.map("mul", x, c.t.map("tanh", c.t.map("softplus", x)))


@rule("Swish", "com.microsoft.QuickGelu")
def swish(c: Context, op: Op, x: Ref) -> Ref:
    alpha = op.attribute("alpha", 1.702 if op.type.startswith("com") else 1.0)
    return c.t.map("mul", x, c.t.map("sigmoid", c.t.map("mul", x, alpha)))


@rule("Cast", "CastLike")
def cast(c: Context, op: Op, x: Ref, like: Ref | None = None) -> Ref:
    op.ignore("saturate", "round_mode")
    kind = like.dtype if like is not None else KINDS.get(op.attribute("to"))
    if kind == FLOAT:
        return as_float(c.t, x)
    if kind is None:
        raise Unsupported(f"casts to type {op.attribute('to')} of ONNX, which hwgen does not compute with")
    if kind not in (FLOAT, INT, BOOL):  # a narrow integer: exact for constants and where nothing is cut off
        known = x.constant
        if known is None and x.dtype != BOOL:
            raise Unsupported(f"casts computed numbers to {np.dtype(kind).name}, which may cut them off")
        c.kinds[op.outputs[0]] = np.dtype(kind).name
        return c.t.map("int", x) if known is None else c.t.const(known.astype(kind))
    return c.t.map({INT: "int", BOOL: "bool"}[kind], x)


KINDS: dict[int, Any] = {
    **dict.fromkeys((1, 10, 11, 16), FLOAT),
    **dict.fromkeys((6, 7, 12, 13), INT),
    9: BOOL,
    **{2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16},
}
