"""Nodes of level L in the same graph: operators that define themselves in T by code that runs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .build import Builder
from .evaluate import evaluate
from .ir import BOOL, FLOAT, INT, Array, Op, Program, Ref


class Layer(Op):
    """A node of level L."""

    folds = False

    def define(self, t: Builder, *operands: Ref) -> Ref:
        """The same value, of `operands` (of any kind of node), by nodes of T."""
        raise NotImplementedError

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        return _inferred(self, tuple((r.shape, r.dtype) for r in operands))

    def compute(self, operands: list[Array], dtype: Any) -> Array:
        t = Builder(fold=False)
        kinds = {"i": INT, "b": BOOL}
        feed = {f"operand{i}": x for i, x in enumerate(operands)}
        refs = [t.input(name, x.shape, kinds.get(x.dtype.kind, FLOAT)) for name, x in feed.items()]
        return evaluate(Program({"y": self.define(t, *refs)}), feed, dtype)[0]["y"]


@lru_cache(4096)
def _inferred(layer: Layer, operands: tuple[tuple[tuple[int, ...], str], ...]) -> tuple[tuple[int, ...], str]:
    t = Builder(fold=False)
    result = layer.define(t, *(t.input(f"operand{i}", *operand) for i, operand in enumerate(operands)))
    return result.shape, result.dtype
