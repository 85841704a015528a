"""Ragged tensors: the rows that one expert gets, as many as a mask lets through, computed on full tensors under the mask.

NonZero of a computed mask of n elements gives the constant coordinates of all n and the mask. What a file computes on them
runs on the full tensor `Ragged.x`: the rule of each node runs once on stand-ins, to follow the ragged axis through the
nodes of T that it makes, and once on the tensors themselves. That is sound as long as every entry of the ragged axis stays
by itself and in order; `_through` and `follow` refuse all else. Scattering back is a `where` with the mask, summed over
the entries that fall on one place. How many entries there are stays a symbol (`Count`) in shapes, and becomes a sum over
the mask where it is computed with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..tensor import (
    Concat,
    Contract,
    Copy,
    Gather,
    Layout,
    Map,
    Node,
    Pad,
    Reduce,
    Ref,
    Scatter,
    TopK,
)
from .rules import Array, Context, Op, Unsupported

Plain = Callable[[Context, Op, list[Any]], Any]
FROZEN = (
    "the export froze how many tokens each expert got in its example",
    "export with dynamic shapes, or run every expert on all tokens",
)
MIXES = "mixes the tokens of one expert"


@dataclass(frozen=True)
class Ragged:
    """The entries of `x` along `axis` for which `mask` [n] holds, in their order."""

    x: Ref
    mask: Ref
    axis: int

    @property
    def dtype(self) -> str:
        return self.x.dtype

    @property
    def shape(self) -> list[Any]:
        """With a `Count` for the ragged axis."""
        return [count(self.mask) if i == self.axis else n for i, n in enumerate(self.x.shape)]


@dataclass(frozen=True)
class Count:
    """`times` the number of elements of `mask` that hold; `full` where all do."""

    mask: Ref
    times: int = 1

    @property
    def full(self) -> int:
        return self.mask.layout.size * self.times


@dataclass(frozen=True, eq=False)
class Sizes:
    """An integer tensor with a `Count` among its elements (NumPy's objects)."""

    items: Array

    @property
    def full(self) -> Array:
        numbers = [n.full if isinstance(n, Count) else n for n in self.items.reshape(-1)]
        return np.array(numbers, np.int64).reshape(self.items.shape)


@dataclass(frozen=True)
class Place:
    """Where an entry stands among those that `mask` lets through, of which `x` (plain or ragged) is where among all."""

    x: Any
    mask: Ref


def count(mask: Ref) -> Count:
    """Repeated elements (loops of stride 0) counted by a factor, so that equal numbers are equal objects."""
    (factors,) = mask.layout.axes
    kept = tuple(f for f in factors if f[1])
    times = prod(size for size, stride in factors if not stride)
    return Count(mask.move(Layout((kept,), mask.layout.offset)), times)


def sizes(c: Context, items: Any) -> Any:
    """A tensor of integers and Counts: a constant where there is no Count."""
    array = np.array(items, object)
    return Sizes(array) if any(isinstance(n, Count) for n in array.reshape(-1)) else c.t.const(array.astype(np.int64))


def plain(c: Context, v: Any) -> Any:
    """Sizes as numbers computed from the masks; anything else as it is."""
    if not isinstance(v, Sizes):
        return v
    each = [c.t.reshape(number(c, n), (1,)) for n in v.items.reshape(-1)]
    return c.t.reshape(c.t.concat(each, 0), v.items.shape)


def number(c: Context, n: Any) -> Ref:
    if not isinstance(n, Count):
        return c.t.const(np.int64(n))
    held = c.t.map("where", n.mask, c.t.const(np.int64(1)), c.t.const(np.int64(0)))
    return c.t.map("mul", c.t.reduce("sum", held, [0], keep=False), n.times)


# --- any node: run on full tensors, the ragged axis followed --------------------------------------------------------


def run(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Results of a node some of whose operands are no plain tensors; `full` is the rule for plain ones."""
    if not all(v is None or isinstance(v, Ref | Ragged | Sizes | Place) for v in x):
        raise Unsupported("takes a sequence of tensors")
    special = SPECIAL.get(op.type)
    made = special(c, op, x, full) if special else None
    if made is None and any(isinstance(v, Sizes) for v in x):
        made = _moved_sizes(c, op, x, full)
    return lifted(c, op, x, full) if made is None else made


def lifted(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """By the rule for plain tensors, on full ones."""
    x = [plain(c, v) for v in x]
    places = [v for v in x if isinstance(v, Place)]
    if places:
        if op.type not in MOVES or x[0] is not places[0] or len(places) > 1:
            raise Unsupported("computes with the place of a token among those of its expert")
        moved = run(c, op, [places[0].x, *x[1:]], full)
        return [Place(v, places[0].mask) for v in listed(moved)]
    ragged = [v for v in x if isinstance(v, Ragged)]
    if not ragged:
        return full(c, op, x)
    one_mask(ragged)
    stand_in = [c.t.input(f"ragged {i}", v.x.shape, v.dtype) if isinstance(v, Ragged) else v for i, v in enumerate(x)]
    known: dict[Node, Axis] = {r.node: None for r in stand_in if isinstance(r, Ref)}
    known |= {r.node: (v.mask, v.axis) for r, v in zip(stand_in, x, strict=True) if isinstance(v, Ragged)}
    followed = [_of_ref(c, r, known) for r in listed(full(c, op, stand_in))]
    made = listed(full(c, op, [v.x if isinstance(v, Ragged) else v for v in x]))
    return [Ragged(r, *f) if f else _still(r, ragged[0]) for r, f in zip(made, followed, strict=True)]


def one_mask(ragged: list[Ragged]) -> None:
    if any(v.mask != ragged[0].mask for v in ragged):
        raise Unsupported("combines the tokens of different experts")


def _still(r: Any, v: Ragged) -> Any:
    """What became one number everywhere, as x * 0 does, keeps the ragged axis of what it was made of."""
    return Ragged(r, v.mask, v.axis) if isinstance(r, Ref) and r.shape == v.x.shape else r


def listed(made: Any) -> list[Any]:
    return list(made) if isinstance(made, list | tuple) else [made]


Axis = tuple[Ref, int] | None  # mask and ragged axis; None of what is not ragged


def _of_ref(c: Context, r: Any, known: dict[Node, Axis]) -> Axis:
    if r is None:
        return None
    if not isinstance(r, Ref):
        raise Unsupported(MIXES)
    if r.node not in known:
        states = [_of_ref(c, operand, known) for operand in r.node.operands]
        known[r.node] = _through(r.node, states) if any(states) else None
    state = known[r.node]
    return None if state is None else follow(c, *state, r.node.shape, r.layout)


def _through(node: Node, states: list[Axis]) -> Axis:
    """The ragged axis of a node's value from those of its operands. Raises Unsupported where entries meet or move."""
    mask, axis = next(s for s in states if s)
    pairs = list(zip(node.operands, states, strict=True))
    if any(s and s[0] != mask for s in states):
        raise Unsupported(MIXES)
    lone = all(s == (mask, axis) if s else _same(r, axis) for r, s in pairs if len(r.shape) == len(node.shape))
    match node.op:
        case Map() | Copy() if lone:
            return mask, axis
        case Reduce(_, axes) if axis not in axes:
            return mask, axis
        case Concat(along) | TopK(along) | Scatter(along) if lone and axis != along:
            return mask, axis
        case Pad(before, after) if not before[axis] and not after[axis]:
            return mask, axis
        case Contract() as op:
            *own, result = op.letters
            found = {letters[s[1]] for letters, s in zip(own, states, strict=True) if s}
            letter = found.pop()
            still = [not s and letter in at and not _same(r, at.index(letter)) for at, (r, s) in zip(own, pairs, strict=True)]
            if not found and letter in result and not any(still):
                return mask, result.index(letter)
        case Gather(along, elements):
            data, index = states
            if elements and (lone and axis != along or data is None and axis == along):
                return mask, axis
            if not elements and data is None:
                return mask, along + axis
            if not elements and index is None and axis != along:
                return mask, axis if axis < along else axis + len(node.operands[1].shape) - 1
    raise Unsupported(MIXES)


def _same(r: Ref, axis: int) -> bool:
    """Whether all entries along an axis are the same."""
    return not any(r.layout.strides(axis))


def follow(c: Context, mask: Ref, axis: int, shape: tuple[int, ...], layout: Layout) -> tuple[Ref, int]:
    """(mask, ragged axis) of what `layout` shows of a dense value of `shape` whose axis `axis` is ragged.

    Every loop of the layout is cut at the borders of the ragged coordinate: what walks along it must walk all of it in
    order, in one axis. Loops that leave it alone may stand before, within and behind: they repeat the mask.
    """
    inner, whole = prod(shape[axis + 1 :]), prod(shape[axis:])
    walks: list[list[tuple[int, bool]]] = []  # of each axis the loops: size, and whether it walks along the coordinate
    next_stride, rest = whole, layout.offset % inner
    for factors in layout.axes:
        walks.append([])
        for size, stride in _cut(factors, (whole, inner)):
            along = inner <= stride < whole
            walks[-1].append((size, along))
            if along and stride * size != next_stride:
                raise Unsupported("rearranges the tokens of one expert")
            next_stride = stride if along else next_stride
            rest += (size - 1) * stride if 0 < stride < inner else 0
    found = [i for i, loops in enumerate(walks) if any(along for _, along in loops)]
    if len(found) != 1 or next_stride != inner or rest >= inner or layout.offset // inner % shape[axis]:
        raise Unsupported("rearranges the tokens of one expert")
    loops = walks[found[0]]
    cut = c.t.reshape(mask, [size if along else 1 for size, along in loops])
    return c.t.reshape(c.t.expand(cut, [size for size, _ in loops]), (-1,)), found[0]


def _cut(factors: Any, borders: tuple[int, ...]) -> list[tuple[int, int]]:
    """Loops with none that crosses a border, outer first."""
    found = []
    for size, stride in factors:
        for border in borders:
            if 0 < stride < border <= (size - 1) * stride:
                if border % stride or size * stride % border:
                    raise Unsupported("rearranges the tokens of one expert")
                found.append((size * stride // border, border))
                size = border // stride
        if stride < 0 and -stride >= borders[-1]:
            raise Unsupported("rearranges the tokens of one expert")
        found.append((size, stride))
    return found


# --- nodes whose operands or results have lengths of their own ------------------------------------------------------

SPECIAL: dict[str, Callable[[Context, Op, list[Any], Plain], Any]] = {}
MOVES = "Identity Cast Reshape Transpose Squeeze Unsqueeze Flatten Slice Gather Split Expand Tile Concat".split()


def special(*types: str) -> Callable[[Any], Any]:
    """Register what comes before `lifted` for nodes with operands that are no plain tensors; None of it: go on."""

    def register(function: Any) -> Any:
        SPECIAL.update(dict.fromkeys(types, function))
        return function

    return register


def product(*numbers: Any) -> Any:
    """A product of integers with at most one Count."""
    counts = [n for n in numbers if isinstance(n, Count)]
    number = prod(int(n) for n in numbers if not isinstance(n, Count))
    if len(counts) > 1:
        raise Unsupported("multiplies numbers of tokens")
    return Count(counts[0].mask, counts[0].times * number) if counts and number else number


def _moved_sizes(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Movement, products and comparisons of sizes; None where their numbers are needed.

    Movement runs the plain rule on numbers of the elements.
    """
    if op.type in ("Mul", "Equal") and all(isinstance(v, Sizes) or v.constant is not None for v in x):
        a, b = np.broadcast_arrays(*(v.items if isinstance(v, Sizes) else v.constant.astype(object) for v in x))
        if op.type == "Mul":
            return sizes(c, np.vectorize(product, otypes=[object])(a, b))
        equal = np.vectorize(_equal, otypes=[object])(a, b)
        return None if (equal == None).any() else c.t.const(equal.astype(bool))  # noqa: E711  elementwise
    moved = {"Concat": range(len(x)), "Where": (1, 2)}.get(op.type, (0,) if op.type in MOVES else ())
    if not moved or any(isinstance(v, Sizes) != (i in moved) and isinstance(v, Sizes) for i, v in enumerate(x)):
        return None
    if op.type == "Cast" and op.attribute("to") not in (6, 7):  # a 32- or 64-bit integer
        return None
    if any(not isinstance(v, Sizes) and v is not None and getattr(v, "constant", None) is None for v in x):
        return None
    pool: list[Any] = []
    operands = list(x)
    for i in moved:
        items = x[i].items if isinstance(x[i], Sizes) else x[i].constant
        operands[i] = c.t.const(np.arange(len(pool), len(pool) + items.size).reshape(items.shape))
        pool += list(items.reshape(-1))
    made = [np.array(r.constant) for r in listed(full(c, op, operands))]
    return [sizes(c, np.array([pool[i] for i in m.reshape(-1)], object).reshape(m.shape)) for m in made]


def _equal(a: Any, b: Any) -> bool | None:
    """Unknown between a number of tokens and one that it may be."""
    if a == b or not isinstance(a, Count) and not isinstance(b, Count):
        return bool(a == b)
    number = b if isinstance(a, Count) else a
    return False if isinstance(number, int | np.integer) and number < 0 else None


def along(c: Context, mask: Ref, x: Ref, axis: int) -> Ref:
    """The mask in the shape of x."""
    return c.t.expand(c.t.reshape(mask, [-1 if i == axis else 1 for i in range(len(x.shape))]), x.shape)
