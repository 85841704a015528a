"""Elementwise layers of one value."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, pi, sqrt

from ..tensor import Builder, Layer, Ref


@dataclass(frozen=True)
class Activation(Layer):
    """y = form(x), element by element. `slope` is the a of:

    gelu        x * (1 + erf(x / sqrt 2)) / 2                       (Hendrycks & Gimpel 2016)
    gelu_tanh   x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    silu        x * sigmoid(a x): SiLU with 1, QuickGELU with 1.702
    relu        max(x, a x): ReLU with 0, LeakyReLU otherwise
    relu6       min(max(x, 0), 6)
    sigmoid, tanh, exp, softplus, hardsigmoid (max(0, min(1, x / 6 + 1/2))), hardswish (x hardsigmoid(x)),
    mish (x tanh(softplus(x))), elu (x, below zero a (exp(x) - 1)), abs, sin, cos
    positive, nonnegative (1 where x > 0, where x >= 0, else 0)
    """

    form: str
    slope: float = 1.0

    def define(self, t: Builder, *operands: Ref) -> Ref:
        (x,) = operands
        m, a = t.map, self.slope
        match self.form:
            case "gelu":
                return m("mul", m("mul", x, 0.5), m("add", m("erf", m("mul", x, sqrt(0.5))), 1.0))
            case "gelu_tanh":
                inner = m("mul", m("add", x, m("mul", m("mul", m("mul", x, x), x), 0.044715)), sqrt(2 / pi))
                return m("mul", m("mul", x, 0.5), m("add", m("tanh", inner), 1.0))
            case "silu":
                return m("mul", x, m("sigmoid", m("mul", x, a)))
            case "relu":
                return m("add", m("max", x, 0.0), m("mul", m("min", x, 0.0), a)) if a else m("max", x, 0.0)
            case "relu6":
                return m("min", m("max", x, 0.0), 6.0)
            case "hardsigmoid":
                return m("max", m("min", m("add", m("mul", x, 1 / 6), 0.5), 1.0), 0.0)
            case "hardswish":
                return m("mul", x, Activation("hardsigmoid").define(t, x))
            case "mish":
                return m("mul", x, m("tanh", m("softplus", x)))
            case "positive":
                return m("float", m("lt", 0.0, x))
            case "nonnegative":
                return m("float", m("le", 0.0, x))
            case "elu":
                return m("add", m("max", x, 0.0), m("mul", m("sub", m("exp", m("min", x, 0.0)), 1.0), a))
        return m(self.form, x)


@dataclass(frozen=True)
class Clip(Layer):
    """y = min(max(x, low), high). `step` above 0: what a quantised file's format, of that step, lets the readers of x see; its
    rounding is left out, as hwgen rounds by itself."""

    low: float = -inf
    high: float = inf
    step: float = 0.0

    def define(self, t: Builder, *operands: Ref) -> Ref:
        return t.map("min", t.map("max", operands[0], self.low), self.high)
