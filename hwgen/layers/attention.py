"""Attention and the rotation of its queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import Builder, Layer, Ref


@dataclass(frozen=True)
class Attention(Layer):
    """y[w, i, h] = sum over j of softmax over j of (scale * q[w, h, i] . k[w, h, j] + bias[w, h, i, j]) * v[w, h, j].

    q [W, H, I, D], k [W, H, J, D], v [W, H, J, E], bias [W, H, I, J], constant or computed, or absent -> [W * I, H * E]:
    tokens by channels, heads side by side. Windows w and heads h are both axes over which nothing is shared; what a window
    or a head is, the operands' layouts say: windows of a map, shifted or dilated ones, channels as tokens.
    """

    scale: float

    def define(self, t: Builder, *operands: Ref) -> Ref:
        from .norm import Softmax

        q, k, v, *bias = operands
        scores = t.map("mul", t.contract("whid,whjd->whij", q, k), self.scale)
        scores = t.map("add", scores, bias[0]) if bias else scores
        y = t.contract("whij,whje->wihe", Softmax().define(t, scores), v)
        return t.reshape(y, (y.shape[0] * y.shape[1], -1))


@dataclass(frozen=True)
class Rotate(Layer):
    """Rotary position (RoFormer, Su et al. 2021): each pair of channels turned by its token's angle.

    x [T, H, P, 2], cos and sin [T, P] -> [T, H * P * 2]: (x0, x1) becomes (x0 cos - x1 sin, x1 cos + x0 sin).
    """

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, cos, sin = operands
        rows, heads, pairs, _ = x.shape
        a, b = (t.reshape(t.slice(x, 3, i, 1), (rows, heads, pairs)) for i in range(2))
        c, s = (t.reshape(r, (rows, 1, pairs)) for r in (cos, sin))
        first = t.map("sub", t.map("mul", a, c), t.map("mul", b, s))
        second = t.map("add", t.map("mul", b, c), t.map("mul", a, s))
        both = t.concat([t.reshape(r, (*r.shape, 1)) for r in (first, second)], 3)
        return t.reshape(both, (rows, heads * pairs * 2))
