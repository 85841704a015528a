"""Pooling: one number of several rows."""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import Builder, Layer, Ref


@dataclass(frozen=True)
class Pool(Layer):
    """y[r, c] = mean (or max) over k of x[r, k, c]: x [R, K, C] -> [R, C].

    R = 1 is the mean of all tokens; the K of a row may be any walk, such as a sliding window.
    """

    form: str  # "mean" or "max"

    def define(self, t: Builder, *operands: Ref) -> Ref:
        return t.reduce(self.form, operands[0], [1], keep=False)
