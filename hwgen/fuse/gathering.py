"""Values of the ONNX graph that stand for what was gathered by expert: they hold it for all experts, or all tokens."""

from __future__ import annotations

from dataclasses import dataclass

from .views import Const, View


@dataclass(eq=False)
class Packed:
    """A ragged tensor: the entries of `inner` along `axis` (negative, from the right) where `mask` [n] holds."""

    mask: View
    inner: View | Const
    axis: int

    @property
    def tainted(self) -> bool:
        return self.inner.tainted


@dataclass(eq=False)
class Picked:
    """A tensor [*slots, ...] gathered by expert: inner[e, *slots, ...] for the expert e that `index` names for a slot.

    `index` is a view [*slots] of expert indices. In `inner` an axis of slots may have one element for all.
    """

    index: View
    inner: View | Const

    @property
    def tainted(self) -> bool:
        return self.inner.tainted

    @property
    def shape(self) -> tuple[int, ...]:
        return self.index.shape + self.inner.shape[1 + len(self.index.shape) :]


@dataclass(eq=False)
class Sized(Const):
    """A constant computed from the shape of a ragged tensor (see ragged.py), whose mask is `mask`."""

    mask: View | None = None
