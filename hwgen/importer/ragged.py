"""Ragged tensors: the rows that one expert gets, as many as a mask lets through, computed on full tensors under the mask.

NonZero of a computed mask of n elements gives the constant coordinates of all n and the mask. What a file computes on them
runs on the full tensor `Ragged.x`: the rule of each node runs once on stand-ins, to follow the ragged axis through the
nodes of T that it makes, and once on the tensors themselves. That is sound as long as every entry of the ragged axis stays
by itself and in order; `_through` and `follow` refuse all else. Scattering back is a `where` with the mask, summed over
the entries that fall on one place. How many entries there are stays a symbol (`Count`) in shapes, and becomes a sum over
the mask where it is computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..tensor import (
    BOOL,
    FLOAT,
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
from .rules import Array, Context, Op, Unsupported, rule

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
    each = [c.t.reshape(_number(c, n), (1,)) for n in v.items.reshape(-1)]
    return c.t.reshape(c.t.concat(each, 0), v.items.shape)


def _number(c: Context, n: Any) -> Ref:
    if not isinstance(n, Count):
        return c.t.const(np.int64(n))
    held = c.t.map("where", n.mask, c.t.const(np.int64(1)), c.t.const(np.int64(0)))
    return c.t.map("mul", c.t.reduce("sum", held, [0], keep=False), n.times)


# --- any node: run on full tensors, the ragged axis followed --------------------------------------------------------


def run(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Results of a node some of whose operands are no plain tensors; `full` is the rule for plain ones."""
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
        made = _list(run(c, op, [places[0].x, *x[1:]], full))
        return [Place(v, places[0].mask) for v in made]
    ragged = [v for v in x if isinstance(v, Ragged)]
    if not ragged:
        return full(c, op, x)
    one_mask(ragged)
    stand_in = [c.t.input(f"ragged {i}", v.x.shape, v.dtype) if isinstance(v, Ragged) else v for i, v in enumerate(x)]
    known: dict[Node, Axis] = {r.node: None for r in stand_in if isinstance(r, Ref)}
    known |= {r.node: (v.mask, v.axis) for r, v in zip(stand_in, x, strict=True) if isinstance(v, Ragged)}
    followed = [_of_ref(c, r, known) for r in _list(full(c, op, stand_in))]
    made = _list(full(c, op, [v.x if isinstance(v, Ragged) else v for v in x]))
    return [r if f is None else Ragged(r, *f) for r, f in zip(made, followed, strict=True)]


def one_mask(ragged: list[Ragged]) -> None:
    if any(v.mask != ragged[0].mask for v in ragged):
        raise Unsupported("combines the tokens of different experts")


def _list(made: Any) -> list[Any]:
    return list(made) if isinstance(made, list | tuple) else [made]


Axis = tuple[Ref, int] | None  # mask and ragged axis; None of what is not ragged


def _of_ref(c: Context, r: Ref | None, known: dict[Node, Axis]) -> Axis:
    if r is None:
        return None
    if r.node not in known:
        states = [_of_ref(c, operand, known) for operand in r.node.operands]
        known[r.node] = _through(r.node, states) if any(states) else None
    state = known[r.node]
    return None if state is None else follow(c, *state, r.node.shape, r.layout)


def _through(node: Node, states: list[Axis]) -> Axis:
    """The ragged axis of a node's value from those of its operands. Raises Unsupported where entries meet or move."""
    mask, axis = next(s for s in states if s)
    lone = all(s == (mask, axis) or s is None and not any(r.layout.strides(axis)) for r, s in _same_rank(node, states))
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
            *operands, result = op.letters
            (letter,) = {letters[s[1]] for letters, s in zip(operands, states, strict=True) if s} | set()
            if letter in result and all(
                letter not in letters or (s is None and not any(r.layout.strides(letters.index(letter)))) or s
                for letters, r, s in zip(operands, node.operands, states, strict=True)
            ):
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


def _same_rank(node: Node, states: list[Axis]) -> list[tuple[Ref, Axis]]:
    """Operands of the node's own rank, whose axes are the node's."""
    return [(r, s) for r, s in zip(node.operands, states, strict=True) if len(r.shape) == len(node.shape)]


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


@rule("NonZero")
def nonzero(c: Context, op: Op, x: Ref) -> Any:
    known = x.constant
    if known is not None:
        return c.t.const(np.array(np.nonzero(known)))
    n = x.layout.size
    if not x.shape or not n:
        raise Unsupported("of a tensor without axes or elements")
    mask = c.t.reshape(c.t.map("bool", x), (n,))
    places = np.arange(n)
    if n == 1:  # an axis of one element is invisible to layouts
        mask, places = c.t.concat([mask, c.t.const(np.array([False]))], 0), np.zeros(2, int)
    mask = c.t.copy(mask) if mask.layout.uniform() else mask
    return Ragged(c.t.const(np.array(np.unravel_index(places, x.shape))), mask, 1)


@special("NonZero")
def nonzero_of_ragged(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    (v,) = x
    if not isinstance(v, Ragged):
        return None
    if len(v.x.shape) != 1:
        raise Unsupported("of a tensor with a ragged axis among others")
    places = c.t.const(np.arange(v.x.layout.size)[None])
    return Place(Ragged(places, c.t.map("and", v.mask, c.t.map("bool", v.x)), 1), v.mask)


@rule("Compress")
def compress(c: Context, op: Op, x: Ref, condition: Ref) -> Any:
    axis = op.attribute("axis")
    x = c.t.reshape(x, (-1,)) if axis is None else x
    axis = (axis or 0) % len(x.shape)
    known = condition.constant
    if known is not None:
        return c.t.gather(x, c.t.const(np.flatnonzero(known)), axis)
    return Ragged(c.t.slice(x, axis, 0, condition.shape[0]), c.t.map("bool", condition), axis)


@special("Shape")
def shape(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    whole = x[0].shape if isinstance(x[0], Ragged) else list(x[0].items.shape)
    return sizes(c, whole[op.attribute("start", 0) : op.attribute("end", len(whole))])


@special("Size")
def size(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    return sizes(c, _times(*x[0].shape)) if isinstance(x[0], Ragged) else None


def _times(*numbers: Any) -> Any:
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
            return sizes(c, np.vectorize(_times, otypes=[object])(a, b))
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
    made = [np.array(r.constant) for r in _list(full(c, op, operands))]
    return [sizes(c, np.array([pool[i] for i in m.reshape(-1)], object).reshape(m.shape)) for m in made]


def _equal(a: Any, b: Any) -> bool | None:
    if a == b:
        return True
    number = b if isinstance(a, Count) else a
    return False if isinstance(number, int | np.integer) and number < 0 else None


@special("Reshape", "Expand")
def reshape(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """To a shape with a Count, of a tensor with its ragged axis; Expand also of one without."""
    data, target = x
    if not isinstance(data, Ragged) and not isinstance(target, Sizes):
        return None
    known = target.items if isinstance(target, Sizes) else c.array(target, "shape")
    wanted = c.t.const(target.full if isinstance(target, Sizes) else known)
    try:
        if not isinstance(data, Ragged):
            if op.type == "Reshape" or not isinstance(data, Ref):
                return None
            return _made_ragged(c, full(c, op, [data, wanted]), known)
        (made,) = _list(lifted(c, op, [data, wanted], full))
    except (ValueError, Unsupported):
        if isinstance(target, Sizes):
            raise
        raise Unsupported(f"{FROZEN[0]}: the shape {known.tolist()} does not fit other numbers", FROZEN[1]) from None
    given = known[made.axis - len(made.x.shape)] if len(known) >= len(made.x.shape) - made.axis else -1
    if isinstance(given, Count):
        if Count(given.mask, given.times) != count(made.mask):
            raise Unsupported("gives a ragged axis the number of other tokens")
    elif given not in (-1, 0) and not (op.type == "Expand" and given == 1):
        raise Unsupported(f"{FROZEN[0]}: the shape {known.tolist()} does not fit other numbers", FROZEN[1])
    return made


def _made_ragged(c: Context, made: Any, target: Array) -> Ragged:
    """A full tensor of the shape `target`, which has one Count."""
    axes = [i - len(target) for i, n in enumerate(target) if isinstance(n, Count)]
    (made,) = _list(made)
    if len(axes) != 1:
        raise Unsupported("makes a tensor with two ragged axes")
    held = target[axes[0]]
    mask = c.t.expand(c.t.reshape(held.mask, (-1, 1)), (held.mask.layout.size, held.times))
    return Ragged(made, c.t.reshape(mask, (-1,)), axes[0] % len(made.shape))


@special("ConstantOfShape")
def constant_of_shape(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    return _made_ragged(c, full(c, op, [c.t.const(x[0].full)]), x[0].items)


@special("Range")
def range_(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """0 .. count: the places of an expert's tokens among themselves."""
    start, limit, step = x
    if not isinstance(limit, Sizes) or not all(
        isinstance(v, Ref) and v.scalar == n for v, n in ((start, 0), (step, 1))
    ):
        raise Unsupported("counts by the number of tokens of an expert other than from 0 by 1")
    held = limit.items.reshape(-1)[0]
    return Place(Ragged(c.t.const(np.arange(held.full)), held.mask, 0), held.mask) if held.times == 1 else None


@special("Slice")
def slice_(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Along the ragged axis only the whole of it; between computed places of another one: a mask."""
    data = x[0]
    if not isinstance(data, Ragged):
        return computed_slice(c, op, x)
    if op.opset < 10:
        return None
    given: list[Any] = [None if v is None else v.items if isinstance(v, Sizes) else c.array(v, "the range") for v in x[1:]]
    starts, ends, axes, steps = [*given, None, None][:4]
    axes = np.arange(len(starts)) if axes is None else axes % len(data.x.shape)
    steps = np.ones_like(axes) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        whole = end == count(data.mask) if isinstance(end, Count) else end >= data.x.shape[data.axis]
        if axis == data.axis and (not whole or start != 0 or step != 1):
            raise Unsupported("drops tokens of one expert") if isinstance(end, Count) else Unsupported(*FROZEN)
    rest = axes != data.axis
    return (
        lifted(c, op, [data, *(sizes(c, v[rest]) for v in (starts, ends, axes, steps))], full) if rest.any() else data
    )


def between(c: Context, x: Ref, axis: int, start: Ref, end: Ref) -> Ragged:
    """The entries start .. end of an axis, computed numbers that may count from behind."""
    n = x.shape[axis]
    place = c.t.const(np.arange(n))
    low, high = (c.t.map("where", c.t.map("lt", v, 0), c.t.map("add", v, n), v) for v in (start, end))
    return Ragged(x, c.t.map("and", c.t.map("le", low, place), c.t.map("lt", place, high)), axis)


def computed_slice(c: Context, op: Op, x: Sequence[Any]) -> Any:
    """A Slice or Split of a plain tensor by computed numbers, along one axis; None where they are constants."""
    data, numbers = x[0], [plain(c, v) for v in x[1:]]
    if not isinstance(data, Ref) or all(v is None or v.constant is not None for v in numbers):
        return None
    if op.type == "Split":
        axis = op.attribute("axis", 0) % len(data.shape)
        ends = [c.t.const(np.int64(0))]
        for i in range(len(op.outputs)):
            ends.append(c.t.map("add", ends[-1], c.t.reshape(c.t.slice(numbers[0], 0, i, 1), ())))
        return [between(c, data, axis, a, b) for a, b in zip(ends, ends[1:], strict=False)]
    starts, ends, axes, steps = [*numbers, None, None][:4]
    if starts.shape != (1,) or steps is not None and steps.scalar != 1:
        raise Unsupported("slices several axes, or by steps, at computed places")
    axis = 0 if axes is None else c.ints(axes, "axes")[0] % len(data.shape)
    return between(c, data, axis, c.t.reshape(starts, ()), c.t.reshape(ends, ()))


@special("Concat")
def concat(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Behind each other along the ragged axis: the masks too."""
    ragged = [v for v in x if isinstance(v, Ragged)]
    if not ragged or any(isinstance(v, Sizes | Place) for v in x):
        return None
    axis = op.attribute("axis") % len(ragged[0].x.shape)
    if any(v.axis != axis for v in ragged):
        return None
    masks = [v.mask if isinstance(v, Ragged) else c.t.full((v.shape[axis],), np.bool_(True)) for v in x]
    return Ragged(c.t.concat([v.x if isinstance(v, Ragged) else v for v in x], axis), c.t.concat(masks, 0), axis)


NEUTRAL = {"Sum": 0, "SumSquare": 0, "L1": 0, "L2": 0, "Mean": 0, "Prod": 1, "Max": -np.inf, "Min": np.inf}


@special(*(f"Reduce{kind}" for kind in NEUTRAL))
def reduce(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Over the tokens of an expert: those of others made neutral."""
    data = x[0]
    if not isinstance(data, Ragged):
        return None
    given = c.argument(op, x, 1, "axes")
    axes = range(len(data.x.shape)) if given is None or not given.size else given.reshape(-1) % len(data.x.shape)
    if data.axis not in axes:
        return None
    kind = op.type[6:]
    if data.dtype != FLOAT and kind in ("Max", "Min"):
        raise Unsupported("is the largest or smallest integer of an expert's tokens")
    neutral = c.t.const(np.asarray(NEUTRAL[kind], np.float32 if data.dtype == FLOAT else np.int64))
    (made,) = _list(full(c, op, [c.t.map("where", along(c, data.mask, data.x, data.axis), data.x, neutral), *x[1:]]))
    if kind == "Mean":
        share = c.t.map("div", float(data.x.shape[data.axis]), c.t.map("float", _number(c, count(data.mask))))
        made = c.t.map("mul", made, share)
    return made


def along(c: Context, mask: Ref, x: Ref, axis: int) -> Ref:
    """The mask in the shape of x."""
    return c.t.expand(c.t.reshape(mask, [-1 if i == axis else 1 for i in range(len(x.shape))]), x.shape)


# --- there and back ------------------------------------------------------------------------------------------------


@special("Gather", "GatherND", "GatherElements")
def gather(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    data, index = x
    if isinstance(index, Place):
        axis = op.attribute("axis", 0) if op.type != "GatherND" else 0
        if not isinstance(data, Ragged) or data.mask != index.mask or data.axis != axis % len(data.x.shape):
            raise Unsupported("computes with the place of a token among those of its expert")
        return run(c, op, [data.x, index.x], full) if isinstance(index.x, Ragged) else full(c, op, [data.x, index.x])
    return lifted(c, op, [data, within(c, index)], full) if isinstance(index, Ragged) else None


def within(c: Context, index: Ragged) -> Ragged:
    """A computed index whose entries that do not count are 0, so that all are in range."""
    if index.x.constant is not None:
        return index
    return Ragged(c.t.map("where", along(c, index.mask, index.x, index.axis), index.x, 0), index.mask, index.axis)


@special("ScatterND", "ScatterElements", "Scatter")
def scatter(c: Context, op: Op, x: list[Any], full: Plain) -> Any:
    """Rows of one expert put to, or added to, their places in a full tensor."""
    data, index, updates = x
    if isinstance(data, Ragged | Place) or not isinstance(index, Ragged):
        return None
    if not isinstance(updates, Ragged):
        raise Unsupported("puts other rows to the places of an expert's tokens")
    one_mask([index, updates])
    t, reduction = c.t, op.attribute("reduction", "none")
    if op.type == "ScatterND":
        if len(index.x.shape) != 2 or index.axis != 0 or updates.axis != 0:
            raise Unsupported("puts rows to places that are no list")
        depth = index.x.shape[1]
        places = c.t.full((index.x.shape[0],), np.int64(0))
        for i, n in enumerate(data.shape[:depth]):
            column = _positive(c, t.reshape(t.slice(index.x, 1, i, 1), (-1,)), n)
            places = t.map("add", t.map("mul", places, n), column)
        rows = t.reshape(data, (-1, *data.shape[depth:]))
        return t.reshape(put(c, rows, places, updates.x, index.mask, reduction), data.shape)
    axis = op.attribute("axis", 0) % len(data.shape)
    if index.axis != axis or updates.axis != axis:
        raise Unsupported(MIXES)
    others = [i for i in range(len(data.shape)) if i != axis]
    order = [axis, *others]
    rows, wide, updated = (t.transpose(v, order) for v in (data, index.x, updates.x))
    wide = _positive(c, wide, data.shape[axis])
    if wide.shape[1:] == rows.shape[1:] and _of_rows(wide):
        for i in range(1, len(wide.shape)):
            wide = t.slice(wide, i, 0, 1)
        made = put(c, rows, t.reshape(wide, (-1,)), updated, index.mask, reduction)
    else:
        made = _put_aside(c, rows, wide, updated, index.mask, reduction)
    return t.transpose(made, [order.index(i) for i in range(len(order))])


def _of_rows(index: Ref) -> bool:
    """Whether all elements of a row have one index."""
    known = index.constant
    if known is None:
        return not any(any(index.layout.strides(i)) for i in range(1, len(index.shape)))
    flat = known.reshape(len(known), -1)
    return bool((flat == flat[:, :1]).all())


def _positive(c: Context, index: Ref, n: int) -> Ref:
    known = index.constant
    if known is None:
        return c.t.map("where", c.t.map("lt", index, 0), c.t.map("add", index, n), index)
    if known.size and (known.min() < -n or known.max() >= n):
        raise Unsupported(f"index {int(known.max())} of {n}")
    return index if not known.size or known.min() >= 0 else c.t.const(np.where(known < 0, known + n, known))


def put(c: Context, rows: Ref, places: Ref, updates: Ref, mask: Ref, reduction: str) -> Ref:
    """rows [m, ..] with updates [n, ..] at `places` [n] where `mask` [n] holds; equally many for each row where constant."""
    t, m, n = c.t, *rows.shape[:1], *places.shape
    known: Array = np.full(n, m) if places.constant is None else places.numbers
    hits = np.bincount(known, minlength=m)
    if len(hits) > m or reduction not in ("none", "add") or not hits.all() or hits.min() != hits.max():
        wide = t.expand(t.reshape(places, (-1, *[1] * (len(rows.shape) - 1))), updates.shape)
        return _put_aside(c, rows, wide, updates, mask, reduction)
    each = int(hits[0])

    def grouped(x: Ref) -> Ref:
        """[n, ..] -> [m, each, ..], the updates of one row in their order."""
        rest = x.shape[1:]
        if np.array_equal(known, np.arange(n) // each):
            return t.reshape(x, (m, each, *rest))
        if np.array_equal(known, np.arange(n) % m):
            return t.transpose(t.reshape(x, (each, m, *rest)), (1, 0, *range(2, len(rest) + 2)))
        return t.gather(x, t.const(np.argsort(known, kind="stable").reshape(m, each)), 0)

    masks = grouped(t.expand(t.reshape(mask, (-1, *[1] * (len(rows.shape) - 1))), updates.shape))
    updates = grouped(updates)
    if reduction == "add":
        return t.map("add", rows, t.reduce("sum", t.map("where", masks, updates, _zero(updates)), [1], keep=False))
    for i in range(each):
        held, new = (t.reshape(t.slice(v, 1, i, 1), rows.shape) for v in (masks, updates))
        rows = t.map("where", held, new, rows)
    return rows


def _zero(x: Ref) -> Any:
    return False if x.dtype == BOOL else 0


def _put_aside(c: Context, rows: Ref, index: Ref, updates: Ref, mask: Ref, reduction: str) -> Ref:
    """By a scatter along axis 0 whose updates that do not count go to one more row."""
    t, m, rank = c.t, rows.shape[0], len(rows.shape)
    padded = t.pad(rows, [0] * rank, [1] + [0] * (rank - 1))
    index = t.map("where", along(c, mask, index, 0), index, m)
    return t.slice(t.scatter(padded, index, updates, 0, reduction), 0, 0, m)
