"""Layouts: where each element of a tensor stands in a flat buffer, as nested loops instead of index arrays.

An axis is a list of factors (size, stride), outer first, as in CuTe's layouts and in tiled-strided layouts. Reshape,
transpose, slice, expand, tile and sliding windows only regroup or scale factors, so they move no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

Array = np.ndarray
LARGEST = 1 << 28  # elements of a tensor: what is larger, no machine of today holds several of in float64
Factor = tuple[int, int]  # (size, stride in elements)
Axis = tuple[Factor, ...]  # outer factor first; () for an axis of length 1


class TooLarge(ValueError):
    """A tensor, or the work on a constant, beyond what a build can hold or wait for."""


def check_size(shape: tuple[int, ...], most: int = LARGEST, what: str = "a tensor") -> None:
    """Raise TooLarge for more elements than `most`."""
    if prod(shape) > most:
        raise TooLarge(f"{what} of {' x '.join(map(str, shape))} elements")


def _axis(size: int, stride: int) -> Axis:
    return ((size, stride),) if size != 1 else ()


def joined(factors: tuple[Factor, ...] | list[Factor]) -> list[Factor]:
    """The same loops with neighbours that continue each other made one: (a, s * b), (b, s) -> (a * b, s)."""
    merged: list[Factor] = []
    for size, stride in factors:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


@dataclass(frozen=True)
class Layout:
    """Element (i0, i1, ...) stands at `offset` + the sum of the axes' strides times the digits of its indices."""

    axes: tuple[Axis, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        """One form for one walk, so that equal layouts are equal objects."""
        object.__setattr__(self, "axes", tuple(tuple(joined(axis)) for axis in self.axes))

    @staticmethod
    def dense(shape: tuple[int, ...]) -> Layout:
        """Row-major order without gaps."""
        axes: list[Axis] = []
        stride = 1
        for size in reversed(shape):
            axes.append(_axis(size, stride))
            stride *= size
        return Layout(tuple(reversed(axes)))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(size for size, _ in axis) for axis in self.axes)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @cached_property
    def loops(self) -> list[Factor]:
        """All factors, outer first, those that continue each other joined."""
        return joined([f for axis in self.axes for f in axis])

    def whole(self, shape: tuple[int, ...]) -> bool:
        """Whether this shows a dense buffer of `shape` in its own order, each element once (perhaps regrouped)."""
        total = prod(shape)
        return self.offset == 0 and self.loops == ([(total, 1)] if total != 1 else [])

    def uniform(self) -> bool:
        """Whether every element is the same one."""
        return all(stride == 0 for axis in self.axes for _, stride in axis)

    def strides(self, axis: int) -> tuple[int, ...]:
        return tuple(stride for _, stride in self.axes[axis])

    def transpose(self, order: tuple[int, ...]) -> Layout:
        return Layout(tuple(self.axes[i] for i in order), self.offset)

    def reshape(self, shape: tuple[int, ...]) -> Layout | None:
        """The elements in the same order under another shape; None where no loops of whole sizes give that."""
        if 0 in shape:
            return Layout(tuple(_axis(size, 0) for size in shape))
        todo = list(self.loops)
        axes: list[Axis] = []
        for size in shape:
            axis: list[Factor] = []
            while size > 1:
                if not todo:
                    return None
                have, stride = todo[0]
                if size % have == 0:
                    axis.append(todo.pop(0))
                    size //= have
                elif have % size == 0:
                    axis.append((size, stride * (have // size)))
                    todo[0] = (have // size, stride)
                    size = 1
                else:
                    return None
            axes.append(tuple(axis))
        return Layout(tuple(axes), self.offset) if not todo else None

    def expand(self, shape: tuple[int, ...]) -> Layout:
        """Broadcast to `shape` by NumPy's rule. Raises ValueError where it does not."""
        own = self.shape
        lead = len(shape) - len(own)
        if lead < 0:
            raise ValueError(f"shape {own} does not broadcast to {shape}")
        axes = [_axis(size, 0) for size in shape[:lead]]
        for axis, have, size in zip(self.axes, own, shape[lead:], strict=True):
            if have not in (1, size):
                raise ValueError(f"shape {own} does not broadcast to {shape}")
            axes.append(axis if have == size else _axis(size, 0))
        return Layout(tuple(axes), self.offset)

    def tile(self, axis: int, times: int) -> Layout:
        """The axis `times` over."""
        axes = list(self.axes)
        axes[axis] = _axis(times, 0) + axes[axis]
        return Layout(tuple(axes), self.offset)

    def slice(self, axis: int, start: int, count: int, step: int = 1) -> Layout | None:
        """`count` indices of an axis from `start` on, `step` (may be negative) apart; None where its factors forbid it."""
        factors = self.axes[axis]
        size = prod(n for n, _ in factors)
        if (start, count, step) == (0, size, 1):
            return self
        if count < 0 or count and not (0 <= start < size and 0 <= start + (count - 1) * step < size):
            raise ValueError(f"{count} elements {step} apart from {start} on of {size}")
        if count == 0:
            return self._with(axis, _axis(0, 0), self.offset)
        if count == 1:
            offset, rest = self.offset, start
            for n, stride in reversed(factors):
                offset, rest = offset + rest % n * stride, rest // n
            return self._with(axis, (), offset)
        factors = tuple(joined(factors))
        if len(factors) == 1:
            stride = factors[0][1]
            return self._with(axis, _axis(count, stride * step), self.offset + start * stride)
        inner = prod(n for n, _ in factors[1:])
        if step == 1 and start % inner == 0 and count % inner == 0:
            stride = factors[0][1]
            return self._with(axis, _axis(count // inner, stride) + factors[1:], self.offset + start // inner * stride)
        first, last = start // inner, (start + count * step - step) // inner
        if first == last:  # all within one turn of the outer factor
            within = Layout((factors[1:],)).slice(0, start % inner, count, step)
            if within is not None:
                return self._with(axis, within.axes[0], self.offset + first * factors[0][1] + within.offset)
        return None

    def pick(self, axis: int, indices: Layout) -> Layout | None:
        """The axis walked by `indices`, loops over positions along it; None where it is no single loop."""
        factors = joined(self.axes[axis])
        if len(factors) > 1:
            return None
        step = factors[0][1] if factors else 0
        walked = tuple((n, s * step) for n, s in indices.axes[0])
        return self._with(axis, walked, self.offset + indices.offset * step)

    @staticmethod
    def of(positions: Array, most: int = 4) -> Layout | None:
        """The loops that give a list of integers; None where that needs more than `most` of them."""
        rest: Array = positions.reshape(-1)
        factors: list[Factor] = []
        while len(rest) > 1 and len(factors) < most:
            steps = np.diff(rest)
            same = np.flatnonzero(steps != steps[0])
            run = int(same[0]) + 1 if len(same) else len(rest)
            run = next(n for n in range(run, 0, -1) if len(rest) % n == 0)
            inner = np.arange(run) * steps[0]
            if run == 1 or (rest.reshape(-1, run) != rest[::run, None] + inner).any():
                return None
            factors.insert(0, (run, int(steps[0])))
            rest = rest[::run]
        return Layout((tuple(factors),), int(rest[0])) if len(rest) == 1 else None

    def window(self, axis: int, kernel: int, stride: int, dilation: int) -> Layout | None:
        """The axis replaced by two, (positions, kernel), of a sliding window; None where it is no single loop."""
        factors = joined(self.axes[axis])
        size = prod(n for n, _ in factors)
        if len(factors) > 1:
            return None
        step = factors[0][1] if factors else 0
        if min(kernel, stride, dilation) < 1 or dilation * (kernel - 1) >= size:
            raise ValueError(f"a window of {kernel} elements {dilation} apart, moved by {stride}, over {size}")
        positions = (size - dilation * (kernel - 1) - 1) // stride + 1
        axes = (*self.axes[:axis], _axis(positions, stride * step), _axis(kernel, dilation * step), *self.axes[axis + 1 :])
        return Layout(axes, self.offset)

    def diagonal(self, first: int, second: int) -> Layout | None:
        """Axes `first` and `second`, of one length, walked together as `first`; `second` is gone."""
        if self.shape[first] != self.shape[second]:
            raise ValueError(f"a diagonal of {self.shape[first]} by {self.shape[second]} elements")
        a, b = joined(self.axes[first]), joined(self.axes[second])
        if [n for n, _ in a] != [n for n, _ in b]:
            return None
        both = tuple((n, s + t) for (n, s), (_, t) in zip(a, b, strict=True))
        axes = [both if i == first else axis for i, axis in enumerate(self.axes) if i != second]
        return Layout(tuple(axes), self.offset)

    def through(self, inner: Layout) -> Layout | None:
        """This walk over the row-major elements of the tensor that `inner` shows, as a walk over inner's own buffer; None
        where its loops do not keep within those of `inner`."""
        if inner.offset == 0 and len(inner.loops) < 2 and (not inner.loops or inner.loops[0][1] == 1):
            return self
        flat = [f for axis in self.axes for f in axis]
        low = self.offset + sum((n - 1) * s for n, s in flat if s < 0)
        digits, weight, offset = [], 1, inner.offset
        for size, stride in reversed(inner.loops):
            digits.append((weight, size, stride))
            offset += low // weight % size * stride
            weight *= size
        top = {weight: low // weight % size for weight, size, _ in digits}
        axes: list[Axis] = []
        for axis in self.axes:
            factors: list[Factor] = []
            for n, s in axis:
                pieces: list[Factor] = [] if s else [(n, 0)]
                step = abs(s)
                while step and n > 1:
                    here = [d for d in digits if step % d[0] == 0 and step < d[0] * d[1]]
                    if not here:
                        return None
                    weight, size, stride = here[-1]
                    by = step // weight
                    count = n if (n - 1) * by < size else size // by
                    if n % count or (count < n and size % by):
                        return None
                    move = by * stride
                    if s < 0:
                        offset, move = offset + (count - 1) * move, -move
                    pieces.insert(0, (count, move))
                    top[weight] += (count - 1) * by
                    n, step = n // count, weight * size
                factors += pieces
            axes.append(tuple(factors))
        if any(top[weight] >= size for weight, size, _ in digits):
            return None  # sums of indices carry from one loop into the next
        return Layout(tuple(axes), offset)

    def apply(self, flat: Array) -> Array:
        """The tensor itself, out of a flat buffer: a view of it where NumPy has one."""
        loops = [f for axis in self.axes for f in axis]
        item = flat.itemsize
        sizes, strides = [n for n, _ in loops], [s * item for _, s in loops]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], sizes, strides, writeable=False)
        return view.reshape(self.shape)

    def positions(self) -> Array:
        """Where each element stands, int64 in the shape of the tensor. Raises TooLarge."""
        check_size(self.shape)
        grid = np.asarray(self.offset, np.int64)
        for size, stride in (f for axis in self.axes for f in axis):
            grid = grid[..., None] + np.arange(size, dtype=np.int64) * stride
        return grid.reshape(self.shape)

    def text(self) -> str:
        """`4:8.2:1,3:0@5`: axes by comma, factors size:stride by dot, then the offset unless it is 0."""
        axes = ",".join(".".join(f"{n}:{s}" for n, s in axis) or "1" for axis in self.axes)
        return axes + (f"@{self.offset}" if self.offset else "")

    @staticmethod
    def parse(text: str) -> Layout:
        """The inverse of `text`. Raises ValueError."""
        loops, _, offset = text.partition("@")
        axes: list[Axis] = []
        for axis in loops.split(",") if loops else []:
            factors = [f.split(":") for f in axis.split(".")] if axis != "1" else []
            axes.append(tuple((int(n), int(s)) for n, s in factors))
        return Layout(tuple(axes), int(offset or 0))

    def _with(self, axis: int, factors: Axis, offset: int) -> Layout:
        return Layout((*self.axes[:axis], factors, *self.axes[axis + 1 :]), offset)
