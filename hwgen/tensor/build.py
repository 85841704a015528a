"""Making tensor IR: equal nodes once, constants folded, movement in layouts.

A `Builder` never guesses: what it simplifies is equal for all numbers (x + 0, x * 1), or is arithmetic on constants.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from math import prod
from typing import Any

import numpy as np

from .evaluate import apply
from .ir import (
    BOOL,
    FLOAT,
    INT,
    Array,
    Concat,
    Const,
    Contract,
    Copy,
    Gather,
    Input,
    Map,
    Node,
    Op,
    Pad,
    Reduce,
    Ref,
    Scatter,
    TopK,
)
from .layout import Layout, TooLarge, check_size

FOLD_LIMIT = 1 << 27  # elements of a constant that folding may make
FOLD_WORK = 1 << 35  # products that folding may compute: about a minute
FOLD_PIECE = 1 << 30  # products between which a signal is heard: a second or two
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _contracted(op: Contract, operands: tuple[Ref, ...]) -> np.ndarray:
    """A product of constants, piece by piece along the longest axis of the result. Raises TooLarge."""
    letters = op.letters
    sizes = dict(zip(letters[0] + letters[1], operands[0].shape + operands[1].shape, strict=True))
    if (work := prod(sizes.values())) > FOLD_WORK:
        raise TooLarge(f"a product of constants of {' x '.join(map(str, sizes.values()))} terms")
    longest = max(letters[2], key=lambda letter: sizes[letter], default="")
    pieces = min(-(-work // FOLD_PIECE), sizes.get(longest, 1))
    numbers = [r.numbers for r in operands]
    if pieces <= 1:
        return apply(op, numbers)
    axes = [part.find(longest) for part in letters[:2]]
    cut = [[x] * pieces if axis < 0 else np.array_split(x, pieces, axis) for x, axis in zip(numbers, axes, strict=True)]
    return np.concatenate([apply(op, list(piece)) for piece in zip(*cut, strict=True)], letters[2].index(longest))


def wrapped(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises ValueError where there is none such."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    return axis % rank


class Builder:
    """Nodes of one program. `source` and `name` are given to the nodes made from now on.

    fold: evaluate nodes whose operands are all constants. pixels: inputs of integers whose `float` is an input of floating
    point of the same name; what reads their integers still reads integers. `notes`: those of the program that is made. `readers`:
    where a program is made again, of a node that stands for one of it how many read that one.
    """

    def __init__(self, fold: bool = True, pixels: Container[str] = ()):
        self.fold = fold
        self.pixels = pixels
        self.notes: dict[str, Any] = {}
        self.readers: dict[Node, int] = {}
        self.source = ""
        self.name = ""
        self._made: dict[Any, Node] = {}
        self._constants: dict[Any, Node] = {}

    # --- leaves ---

    def input(self, name: str, shape: tuple[int, ...], dtype: str = FLOAT) -> Ref:
        return self.node(Input(name, tuple(shape), dtype))

    def const(self, value: Any, name: str = "") -> Ref:
        """A constant; floating point becomes float32 unless it is float64, integers int64."""
        array = np.asarray(value)
        if array.dtype.kind == "f" and array.dtype != np.float64 or array.dtype.kind not in "fiub":
            array = array.astype(np.float32)
        elif array.dtype.kind in "iu":
            array = array.astype(np.int64)
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 4096 else (id(array), name)
        if key not in self._constants:
            op = Const(array)
            shape, dtype = op.infer()
            self._constants[key] = Node(op, (), shape, dtype, name, self.source)
        return self._constants[key].ref

    def full(self, shape: tuple[int, ...], value: Any) -> Ref:
        """One number everywhere, without storing it more than once."""
        r = self.const(value)
        return r.move(r.layout.expand(tuple(shape)))

    # --- nodes ---

    def node(self, op: Op, *operands: Ref, name: str = "") -> Ref:
        """The value of `op`: a node made before where there is an equal one. Raises ValueError where operands misfit,
        TooLarge where it has too many elements."""
        shape, dtype = op.infer(*operands)
        check_size(shape)
        constant = operands and all(isinstance(r.op, Const) for r in operands)
        if self.fold and constant and op.folds:
            return self._folded(op, operands, shape)
        key = (op, operands)
        if key not in self._made:
            self._made[key] = Node(op, operands, shape, dtype, name or self.name, self.source)
        return self._made[key].ref

    def _folded(self, op: Op, operands: tuple[Ref, ...], shape: tuple[int, ...]) -> Ref:
        if isinstance(op, Map) and all(r.layout.uniform() for r in operands):
            one = [r.numbers.reshape(()) if r.layout.size else np.zeros(()) for r in map(_single, operands)]
            return self.full(shape, _tidy(apply(op, one), op, operands))
        for size in (shape, *(r.shape for r in operands)):
            check_size(size, FOLD_LIMIT, "a constant")
        name = next((r.node.name for r in operands if r.node.name), "")
        found = _contracted(op, operands) if isinstance(op, Contract) else apply(op, [r.numbers for r in operands])
        return self.const(_tidy(found, op, operands), name)

    def map(self, function: str, *operands: Any) -> Ref:
        """Elementwise, with NumPy's broadcasting; numbers may be operands."""
        kind = next((x.dtype for x in operands if isinstance(x, Ref) and x.dtype != BOOL), FLOAT)
        refs = [x if isinstance(x, Ref) else self._number(x, kind) for x in operands]
        shape = np.broadcast_shapes(*(r.shape for r in refs))
        refs = [r.move(r.layout.expand(shape)) for r in refs]
        return self._simpler(function, refs, shape) or self.node(Map(function), *refs)

    def _number(self, value: Any, kind: str) -> Ref:
        dtype = {FLOAT: np.float32, INT: np.int64, BOOL: np.bool_}[kind]
        if isinstance(value, bool):
            dtype = np.bool_
        return self.const(np.asarray(value, dtype))

    def _simpler(self, function: str, x: list[Ref], shape: tuple[int, ...]) -> Ref | None:
        if function == "where" and (choice := x[0].scalar) is not None:
            return x[1] if choice else x[2]
        if function == "where" and x[1] == x[2]:
            return x[1]
        if function in ("float", "int", "bool") and x[0].dtype == {"float": FLOAT, "int": INT, "bool": BOOL}[function]:
            return x[0]
        if function == "float" and isinstance(x[0].op, Input) and x[0].op.name in self.pixels:
            return self.input(x[0].op.name, x[0].op.shape).move(x[0].layout)
        if function == "sub" and x[0] == x[1]:
            return self.full(shape, self._number(0, x[0].dtype).constant)
        if function in ("add", "mul") and x[0].scalar is not None and x[1].scalar is None:
            x = [x[1], x[0]]
        if function in ("add", "sub", "mul", "div") and (number := x[1].scalar) is not None and x[0].scalar is None:
            if number == (1 if function in ("mul", "div") else 0):
                return x[0]
            if function == "mul" and number == 0:
                return self.full(shape, x[1].numbers.reshape(-1)[0] if x[1].layout.size else 0)
        if function == "pow" and x[1].scalar == 2:
            return self.map("mul", x[0], x[0])
        if function == "pow" and x[1].scalar == 0.5:
            return self.map("sqrt", x[0])
        if function == "pow" and x[1].scalar == 1:
            return x[0]
        return None

    def reduce(self, function: str, x: Ref, axes: Iterable[int], keep: bool = True) -> Ref:
        """Over `axes` (negative ones from behind), which are dropped without `keep`. "mean" is a sum times a factor."""
        rank = len(x.shape)
        axes = tuple(sorted(wrapped(int(a), rank) for a in axes))
        count = prod(x.shape[a] for a in axes)
        y = x if count == 1 else self._of_parts(function, x, axes)
        y = y or self.node(Reduce("sum" if function == "mean" else function, axes), x)
        if function == "mean" and count != 1:
            y = self.map("mul", y, 1.0 / count)
        return y if keep else self.reshape(y, [n for i, n in enumerate(x.shape) if i not in axes])

    def _of_parts(self, function: str, x: Ref, axes: tuple[int, ...]) -> Ref | None:
        """The sum or mean over an axis on which values of length 1 were joined, as their sum."""
        joined = isinstance(x.op, Concat) and axes == (x.op.axis,) and x.whole and x.shape == x.node.shape
        if not joined or function not in ("sum", "mean") or any(r.shape[axes[0]] != 1 for r in x.node.operands):
            return None
        total, *rest = x.node.operands
        for part in rest:
            total = self.map("add", total, part)
        return total

    def contract(self, spec: str, a: Ref, b: Ref) -> Ref:
        """A product summed over nothing is elementwise with one number everywhere, or with a constant along axes of both."""
        first, second, result = Contract(spec).letters
        sizes = dict(zip(first + second, a.shape + b.shape, strict=True))
        if all(sizes[c] == 1 for c in sizes if c not in result):

            def aligned(x: Ref, own: str) -> Ref:
                order = [c for c in result if c in own] + [c for c in own if c not in result]
                y = self.transpose(x, [own.index(c) for c in order])
                y = self.reshape(y, [sizes[c] if c in own else 1 for c in result])
                return self.expand(y, [sizes[c] for c in result])

            for x, own, other in ((a, first, b), (b, second, a)):
                if x.constant is None and (number := other.scalar) is not None:
                    return self.map("mul", aligned(x, own), number)
            # With a sum, if only of one number, it is a layer of as many outputs.
            shared = any(c in first and c in second and sizes[c] > 1 for c in result)
            if shared and (a.constant is None) != (b.constant is None) and set(first + second) == set(result):
                return self.map("mul", aligned(a, first), aligned(b, second))
        return self.node(Contract(spec), a, b)

    def matmul(self, a: Ref, b: Ref) -> Ref:
        """NumPy's matmul: last two axes, the others broadcast."""
        column, row = len(b.shape) == 1, len(a.shape) == 1
        a = self.reshape(a, (1, *a.shape)) if row else a
        b = self.reshape(b, (*b.shape, 1)) if column else b
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        letters = LETTERS[3 : 3 + len(lead)]
        first = "".join(c for c, n in zip(letters[len(lead) - len(a.shape) + 2 :], a.shape, strict=False))
        second = "".join(c for c, n in zip(letters[len(lead) - len(b.shape) + 2 :], b.shape, strict=False))
        a, first = self._unbroadcast(a, first, lead, letters)
        b, second = self._unbroadcast(b, second, lead, letters)
        both = [c if c in first or c in second else None for c in letters]
        kept = "".join(c for c in both if c)
        y = self.contract(f"{first}ab,{second}bc->{kept}ac", a, b)
        shape = (*lead, *(() if row else (a.shape[-2],)), *(() if column else (b.shape[-1],)))
        return self.reshape(y, shape)

    def _unbroadcast(self, x: Ref, own: str, lead: tuple[int, ...], letters: str) -> tuple[Ref, str]:
        """Without the leading axes of length 1, which broadcast: the letters of those that stay."""
        kept = [i for i, n in enumerate(x.shape[:-2]) if n != 1]
        return self.reshape(x, [x.shape[i] for i in kept] + list(x.shape[-2:])), "".join(own[i] for i in kept)

    def concat(self, parts: list[Ref], axis: int) -> Ref:
        axis = wrapped(axis, len(parts[0].shape))
        parts = [p for p in parts if p.shape[axis]] or parts[:1]
        return parts[0] if len(parts) == 1 else self._side_by_side(parts, axis) or self.node(Concat(axis), *parts)

    def _side_by_side(self, parts: list[Ref], axis: int) -> Ref | None:
        """Parts of one value in even steps, as one walk through it."""
        first, step = parts[0], parts[1].layout.offset - parts[0].layout.offset
        for i, part in enumerate(parts):
            if part != first.move(Layout(first.layout.axes, first.layout.offset + i * step)):
                return None
        axes = list(first.layout.axes)
        axes[axis] = ((len(parts), step), *axes[axis])
        return first.move(Layout(tuple(axes), first.layout.offset))

    def pad(self, x: Ref, before: list[int], after: list[int], value: float = 0.0) -> Ref:
        if not any(before) and not any(after):
            return x
        return self.node(Pad(tuple(before), tuple(after), float(value)), x)

    def gather(self, x: Ref, index: Ref, axis: int, elements: bool = False) -> Ref:
        """By a layout where the index is a constant made of loops; negative constants count from behind."""
        axis = wrapped(axis, len(x.shape))
        known = index.constant
        if known is not None:
            known = np.where(known < 0, known + x.shape[axis], known)
            if known.size and (known.min() < 0 or known.max() >= x.shape[axis]):
                raise ValueError(f"index {int(known.max())} of {x.shape[axis]}")
            if elements and x.shape[axis] == 1 and known.shape == x.shape:
                return x
            index = self.const(known)
            if elements and x.shape[axis] == 1:
                return self.expand(x, index.shape)
            if elements and known.size and (walk := Layout.of(_places(known, axis, x.shape))) is not None:
                return self.reshape(self.pick(self.reshape(x, (x.layout.size,)), 0, walk), known.shape)
            walk = Layout.of(known) if known.size and not elements else None
            if walk is not None:
                return self.reshape(self.pick(x, axis, walk), (*x.shape[:axis], *known.shape, *x.shape[axis + 1 :]))
        return self.node(Gather(axis, elements), x, index)

    def scatter(self, x: Ref, index: Ref, updates: Ref, axis: int, reduction: str = "none") -> Ref:
        """By a gather where the indices are constants, the last one wins or none meets another."""
        op = Scatter(wrapped(axis, len(x.shape)), reduction)
        known, shape, _ = index.constant, *op.infer(x, index, updates)
        if known is None or not known.size or reduction not in ("none", "add"):
            return self.node(op, x, index, updates)
        flat = _places(np.where(known < 0, known + shape[op.axis], known), op.axis, shape)
        if reduction == "add" and len(np.unique(flat)) != flat.size:
            return self.node(op, x, index, updates)
        writer = np.full(prod(shape), -1)
        order = np.moveaxis(np.arange(flat.size).reshape(flat.shape), op.axis, 0).reshape(-1)
        writer[flat.reshape(-1)[order]] = order  # NumPy, too, keeps the last
        new = self.gather(self.reshape(updates, (flat.size,)), self.const(np.maximum(writer, 0)), 0)
        new, written = self.reshape(new, shape), self.const((writer >= 0).reshape(shape))
        return self.map("where", written, new if reduction == "none" else self.map("add", x, new), x)

    def topk(self, x: Ref, count: int, axis: int = -1, largest: bool = True) -> Ref:
        if x.shape[wrapped(axis, len(x.shape))] == count == 1:
            return self.full(x.shape, np.int64(0))
        return self.node(TopK(wrapped(axis, len(x.shape)), count, largest), x)

    def copy(self, x: Ref) -> Ref:
        """Dense, as a node of its own where the layout is not dense already."""
        return x if x.whole else self.node(Copy(), x)

    # --- movement ---

    def reshape(self, x: Ref, shape: tuple[int, ...] | list[int]) -> Ref:
        """Raises ValueError where the number of elements differs. One length may be -1."""
        wanted = [int(n) for n in shape]
        if -1 in wanted:
            rest = -prod(wanted)
            wanted[wanted.index(-1)] = x.layout.size // rest if rest else 0
        if prod(wanted) != x.layout.size or min(wanted, default=0) < 0:
            raise ValueError(f"{list(x.shape)} does not reshape to {list(shape)}")
        layout = x.layout.reshape(tuple(wanted))
        return x.move(layout) if layout is not None else self.reshape(self.copy(x), wanted)

    def through(self, layout: Layout, x: Ref) -> Ref:
        """What `layout` shows of the row-major elements of x."""
        moved = layout.through(x.layout)
        return x.move(moved) if moved is not None else self.copy(x).move(layout)

    def transpose(self, x: Ref, order: tuple[int, ...] | list[int]) -> Ref:
        return x.move(x.layout.transpose(tuple(wrapped(int(i), len(x.shape)) for i in order)))

    def expand(self, x: Ref, shape: tuple[int, ...] | list[int]) -> Ref:
        return x.move(x.layout.expand(tuple(int(n) for n in np.broadcast_shapes(x.shape, tuple(shape)))))

    def slice(self, x: Ref, axis: int, start: int, count: int, step: int = 1) -> Ref:
        axis = wrapped(axis, len(x.shape))
        layout = x.layout.slice(axis, int(start), int(count), int(step))
        return x.move(layout) if layout is not None else self.slice(self.copy(x), axis, start, count, step)

    def pick(self, x: Ref, axis: int, indices: Layout) -> Ref:
        """The positions `indices` along an axis, in the cheapest way there is."""
        loops = indices.axes[0]
        if len(loops) < 2 and all(stride for _, stride in loops):
            return self.slice(x, axis, indices.offset, indices.size, loops[0][1] if loops else 1)
        layout = x.layout.pick(axis, indices)
        return x.move(layout) if layout is not None else self.pick(self.copy(x), axis, indices)

    def tile(self, x: Ref, times: list[int]) -> Ref:
        layout = x.layout
        for axis, n in enumerate(times):
            layout = layout.tile(axis, int(n)) if n != 1 else layout
        return x.move(layout)

    def window(self, x: Ref, axis: int, kernel: int, stride: int = 1, dilation: int = 1) -> Ref:
        """[.., n, ..] -> [.., positions, kernel, ..], sliding."""
        layout = x.layout.window(axis, kernel, stride, dilation)
        return x.move(layout) if layout is not None else self.window(self.copy(x), axis, kernel, stride, dilation)

    def diagonal(self, x: Ref, first: int, second: int) -> Ref:
        layout = x.layout.diagonal(first, second)
        return x.move(layout) if layout is not None else self.diagonal(self.copy(x), first, second)


def _single(r: Ref) -> Ref:
    return r.move(Layout((), r.layout.offset))


def _tidy(value: Array, op: Op, operands: tuple[Ref, ...]) -> Array:
    """In the kind that the node has: `float` of integers is float32."""
    _, kind = op.infer(*operands)
    if kind != FLOAT:
        return np.asarray(value, np.int64 if kind == INT else np.bool_)
    double = value.dtype == np.float64 and any(r.numbers.dtype == np.float64 for r in operands)
    return np.asarray(value, np.float64 if double else np.float32)


def _places(index: Array, axis: int, shape: tuple[int, ...]) -> Array:
    """Row-major positions in a tensor of `shape` of the elements that `index` names along an axis, each for its own place."""
    total = np.zeros(index.shape, np.int64)
    for i, n in enumerate(index.shape):
        own = index if i == axis else np.arange(n).reshape([n if j == i else 1 for j in range(index.ndim)])
        total += own * prod(shape[i + 1 :])
    return total
