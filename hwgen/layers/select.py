"""Rows chosen by computed scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..tensor import Builder, Layer, Ref
from .norm import Softmax


@dataclass(frozen=True)
class Select(Layer):
    """Rows first .. first + count of x in the order of their scores, best first, ties to the lower row: x [N, C], scores [N] ->
    [count, C]."""

    first: int
    count: int

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, scores = operands
        best = t.topk(scores, self.first + self.count, 0)
        return t.gather(x, t.slice(best, 0, self.first, self.count), 0)


@dataclass(frozen=True)
class Hard(Layer):
    """1 where a column has its best element but for `place` better ones, else 0, ties to the lower row: x [R, C] -> [R, C]."""

    place: int = 0

    def define(self, t: Builder, *operands: Ref) -> Ref:
        (x,) = operands
        best = t.slice(t.topk(x, self.place + 1, 0), 0, self.place, 1)
        return t.map("float", t.map("eq", best, t.const(np.arange(x.shape[0])[:, None])))


@dataclass(frozen=True)
class Received(Layer):
    """What each key receives of one query's attention, over all heads: sum over h of softmax(scale * k[h] q[h]), q [H, K],
    k [H, N, K] -> [N]."""

    scale: float

    def define(self, t: Builder, *operands: Ref) -> Ref:
        scores = t.map("mul", t.contract("hk,hnk->hn", *operands), self.scale)
        return t.reduce("sum", Softmax().define(t, scores), [0], keep=False)
