"""Values of the ONNX graph: constants, and views of Syms.

All that Reshape, Transpose, Split, Slice, Gather, Squeeze, Expand, ... do is move index arrays, so every exporter's way of
writing the same idea ends in the same Sym, and what a rule concludes holds by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .op import Unsupported
from .symbols import (
    TENSORS,
    Activated,
    Array,
    ChosenLogits,
    Gate,
    Image,
    Joined,
    Lin,
    Mixture,
    Probabilities,
    Renormalised,
    Scores,
    SlotSum,
    Sym,
    TopIndices,
    TopValues,
    Unmasked,
    Weighted,
)


@dataclass(eq=False)
class Const:
    """A known array; `name` of the initialiser it comes from, where there is one."""

    array: Array
    name: str = ""
    tainted = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(eq=False)
class View:
    """scale * sym.flat[index]; index None: all of sym in order. `tainted`: an unsupported node is behind it."""

    sym: Sym
    shape: tuple[int, ...]
    index: Array | None = None
    scale: float = 1.0
    tainted: bool = field(default=False)

    @property
    def positions(self) -> Array:
        return positions(self.shape) if self.index is None else self.index

    def of(self, sym: Sym, scale: float | None = None) -> View:
        """The same elements of another Sym of the same shape."""
        return replace(self, sym=sym, scale=self.scale if scale is None else scale)


@dataclass(eq=False)
class Unknown:
    """A value of unknown shape behind an unsupported node."""

    tainted = True


def positions(shape: tuple[int, ...]) -> Array:
    """0, 1, 2, ... in `shape`."""
    return np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)


def whole(sym: Sym, shape: tuple[int, ...] | None = None) -> View:
    return View(sym, sym.shape if shape is None else shape)


def reshaped(view: View, shape: tuple[int, ...]) -> View:
    return replace(view, shape=shape, index=None if view.index is None else view.index.reshape(shape))


def broadcast(view: View, shape: tuple[int, ...]) -> View:
    """The view repeated to `shape` by the rules of NumPy."""
    if view.shape == shape:
        return view
    if int(np.prod(view.shape)) == int(np.prod(shape)):
        return reshaped(view, shape)
    return replace(view, shape=shape, index=np.broadcast_to(view.positions, shape))


def same_elements(a: View, b: View) -> bool:
    """True where two views of one shape read the same positions of their Syms."""
    if a.shape != b.shape:
        return False
    return (a.index is None and b.index is None) or bool(np.array_equal(a.positions, b.positions))


def token_layout(view: View) -> tuple[Array, Array] | None:
    """(rows, columns) where view[..., c] is column columns[c] of row rows[...] of its Sym; None for other layouts."""
    width = view.sym.shape[-1]
    if not view.shape or view.shape[-1] == 0:
        return None
    if view.index is None and view.shape[-1] == width:
        return positions(view.shape[:-1]), np.arange(width)
    flat = view.positions.reshape(-1, view.shape[-1])
    rows, columns = flat[:, 0] // width, flat[0] % width
    if not np.array_equal(flat, rows[:, None] * width + columns):
        return None
    return rows.reshape(view.shape[:-1]), columns


def need_rows(view: View) -> Array:
    """Rows of a view that shows whole rows of its Sym, channels in order."""
    layout = token_layout(view)
    if layout is None and len(view.shape) > 1 and len(view.sym.shape) == 2:
        row = view.positions.reshape(-1, view.shape[-1])[0] // view.sym.shape[1]
        if row[0] != row[-1] and len(np.unique(view.positions)) == view.positions.size == int(np.prod(view.sym.shape)):
            hint = "keep one grid of tokens from the patch embedding to the end"
            raise Unsupported("joins the channels of several tokens in one (patch merging)", hint)
    if layout is None or not np.array_equal(layout[1], np.arange(view.sym.shape[-1])):
        raise Unsupported("its input is not tokens by channels with the channels in order")
    return layout[0]


def need_tensor(view: View) -> Sym:
    """The Sym of a view, which must be a tensor that the machine computes, not a step towards one."""
    if not isinstance(view.sym, TENSORS):
        raise Unsupported(f"reads {describe(view.sym)}")
    return view.sym


def describe(sym: Sym) -> str:
    """What a Sym is, for a message."""
    match sym:
        case Gate():
            return "a softmax over channels"
        case Scores() | Probabilities():
            return "attention scores"
        case Image():
            return "pixels"
        case Weighted():
            return "a tensor multiplied by a constant that differs from token to token"
        case Joined():
            return "channels of several tensors side by side"
        case Lin(shape=(_, _, _)) | Activated(shape=(_, _, _)):
            return "the outputs of all experts"
        case Mixture():
            return "a mixture of experts that is matched only in part"
        case TopValues() | TopIndices() | SlotSum() | Renormalised() | ChosenLogits() | Unmasked():
            return "the choice of a gate"
    return f"the result of {sym.source!r}" if sym.source else f"an intermediate result ({type(sym).__name__})"


def by_key(values: Array, key: Array, size: int, absent: float) -> Array | None:
    """v [size] with values == v[key] everywhere, `absent` where no key points; None where there is no such v."""
    v = np.full(size, absent, values.dtype)
    v[key] = values
    return v if np.array_equal(v[key], values) else None


def uniform(array: Array) -> float | None:
    """The one value an array holds throughout, if so."""
    if array.size == 0:
        return None
    first = array.flat[0]
    return float(first) if array.size == 1 or bool((array == first).all()) else None
