"""Layers over groups of elements: norms and softmax."""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import Builder, Layer, Ref


@dataclass(frozen=True)
class Norm(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, over the elements of each row: x [R, C] -> [R, C].

    gamma, beta [1 or R, 1 or C]. A row is what is normalised together: a token (LayerNorm), a head of a token, a channel of
    a map (InstanceNorm), a group of channels (GroupNorm). Not `centred` it is RMSNorm, x / sqrt(mean of squares + epsilon)
    * gamma + beta; an L2 norm is that with gamma = 1 / sqrt(C) and the square of its least length / C as epsilon.
    """

    epsilon: float
    centred: bool = True

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, gamma, beta = operands
        if self.centred:
            x = t.map("sub", x, t.reduce("mean", x, [1]))
        square = t.reduce("mean", t.map("mul", x, x), [1])
        y = t.map("div", x, t.map("sqrt", t.map("add", square, self.epsilon)))
        return t.map("add", t.map("mul", y, gamma), beta)


@dataclass(frozen=True)
class Softmax(Layer):
    """y = exp(x - max) / sum of exp(x - max), over the last axis."""

    def define(self, t: Builder, *operands: Ref) -> Ref:
        (x,) = operands
        e = t.map("exp", t.map("sub", x, t.reduce("max", x, [-1])))
        return t.map("div", e, t.reduce("sum", e, [-1]))


@dataclass(frozen=True)
class Length(Layer):
    """y = sqrt(sum of squares) along `axis` of x [R, C]: of each column [1, C] with 0, of each row [R, 1] with 1."""

    axis: int

    def define(self, t: Builder, *operands: Ref) -> Ref:
        (x,) = operands
        return t.map("sqrt", t.reduce("sum", t.map("mul", x, x), [self.axis]))
