"""Einsum of two tensors as a matrix product: axes are moved so that MatMul's rules apply; of one, as a transposition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .emit import Context
from .op import Op, Unsupported
from .products import matmul
from .symbols import Const, View


def einsum(ctx: Context, op: Op, values: list) -> View:
    """An axis that both operands and the result have is a batch axis; one that only the operands have is summed."""
    terms, _, result = op.attribute("equation").replace(" ", "").partition("->")
    inputs = terms.split(",")
    if "." in terms or not result or any(len(set(t)) != len(t) for t in (*inputs, result)):
        raise Unsupported("has an equation with an ellipsis, a repeated axis or no result")
    if len(inputs) == 1 and sorted(inputs[0]) == sorted(result):
        return _axes(values[0], inputs[0], result)
    if len(inputs) != 2:
        raise Unsupported("is neither a product of two tensors nor a transposition")
    (left, right), (a, b) = inputs, values
    batch = "".join(n for n in result if n in left and n in right)
    rows = "".join(n for n in result if n in left and n not in right)
    columns = "".join(n for n in result if n in right and n not in left)
    summed = "".join(n for n in left if n in right and n not in result)
    if len(batch + rows + summed) != len(left) or len(batch + columns + summed) != len(right) or not summed:
        raise Unsupported("sums over an axis of one operand only, or over none")
    size = {n: d for t, v in ((left, a), (right, b)) for n, d in zip(t, v.shape, strict=True)}

    def sizes(axes: str) -> tuple[int, ...]:
        return tuple(size[n] for n in axes)

    def flat(axes: str) -> int:
        return int(np.prod(sizes(axes)))

    # Summed axes in the order of the tensor that was computed: a constant can be rearranged freely.
    a = _shaped(_axes(a, left, batch + rows + summed), (*sizes(batch), flat(rows), flat(summed)))
    b = _shaped(_axes(b, right, batch + summed + columns), (*sizes(batch), flat(summed), flat(columns)))
    if isinstance(a, Const) and not isinstance(b, Const):
        a, b, rows, columns = _swapped(b), _swapped(a), columns, rows
    y = _shaped(matmul(ctx, op, [a, b]), sizes(batch + rows + columns))
    return _axes(y, batch + rows + columns, result)


def _axes(x: View | Const, order: str, wanted: str) -> View | Const:
    axes = [order.index(n) for n in wanted]
    if isinstance(x, Const):
        return Const(x.array.transpose(axes), x.name)
    if axes == sorted(axes):
        return x
    index = x.positions.transpose(axes)
    return replace(x, shape=index.shape, index=index)


def _swapped(x: View | Const) -> View | Const:
    letters = "abcdefgh"[: len(x.shape)]
    return _axes(x, letters, letters[:-2] + letters[-1] + letters[-2])


def _shaped(x: View | Const, shape: tuple[int, ...]) -> View | Const:
    if isinstance(x, Const):
        return Const(x.array.reshape(shape), x.name)
    return replace(x, shape=shape, index=None if x.index is None else x.index.reshape(shape))
