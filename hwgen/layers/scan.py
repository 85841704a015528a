"""Recurrences over tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import Builder, Layer, Ref


@dataclass(frozen=True)
class Scan(Layer):
    """A selective scan (Mamba, Gu & Dao 2023), tokens in the order of their rows, from states of zero:

    d[t, c] = softplus(steps[t, c]); h[t, c, n] = exp(d[t, c] * a[c, n]) * h[t - 1, c, n] + d[t, c] * b[t, n] * x[t, c]
    y[t, c] = sum over n of g[t, n] * h[t, c, n], plus skip[c] * x[t, c]

    x, steps [T, C], b, g [T, N], a [C, N], skip [C] -> [T, C].
    """

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, steps, b, g, a, skip = operands
        (count, channels), states = x.shape, b.shape[1]
        d = t.map("softplus", steps)
        decay = t.map("exp", t.map("mul", t.reshape(d, (count, channels, 1)), t.reshape(a, (1, channels, states))))
        fed = t.map("mul", t.reshape(t.map("mul", d, x), (count, channels, 1)), t.reshape(b, (count, 1, states)))
        state, rows = t.slice(fed, 0, 0, 1), []
        for i in range(count):
            if i:
                state = t.map("add", t.map("mul", t.slice(decay, 0, i, 1), state), t.slice(fed, 0, i, 1))
            rows.append(t.reshape(t.contract("acn,an->ac", state, t.slice(g, 0, i, 1)), (1, channels)))
        return t.map("add", t.concat(rows, 0), t.map("mul", x, t.reshape(skip, (1, channels))))
