"""Einsum of two tensors as a matrix product: axes moved and merged, MatMul's rule, axes moved back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .emit import Context
from .op import Op, Unsupported
from .products import matmul
from .views import Const, View, reshaped


@dataclass(frozen=True)
class Terms:
    """Letters of the axes of both operands and of the result."""

    a: str
    b: str
    out: str


def einsum(ctx: Context, op: Op, values: list) -> View:
    """Any Einsum of two tensors that sums over shared axes only, or a transposition of one."""
    if len(values) == 1:
        return _transposed(op, values[0])
    terms = terms_of(op, values)
    a, b = values
    shared = [c for c in terms.a if c in terms.b]
    batch = [c for c in shared if c in terms.out]
    summed = [c for c in shared if c not in terms.out]
    left = [c for c in terms.a if c not in terms.b]
    right = [c for c in terms.b if c not in terms.a]
    if any(c not in terms.out for c in left + right):
        raise Unsupported("sums over an axis of one tensor alone")
    sizes = _sizes(terms, a.shape, b.shape)
    if isinstance(a, Const):  # (a b)' = b' a': MatMul takes the constant as its second operand
        a, b, left, right, terms = b, a, right, left, Terms(terms.b, terms.a, terms.out)

    def size(letters: list[str]) -> int:
        return int(np.prod([sizes[c] for c in letters], dtype=np.int64))

    lead = tuple(sizes[c] for c in batch)
    x = _arranged(a, terms.a, [*batch, *left, *summed], sizes, (*lead, size(left), size(summed)))
    y = _arranged(b, terms.b, [*batch, *summed, *right], sizes, (*lead, size(summed), size(right)))
    product = matmul(ctx, op, [x, y])
    order = [*batch, *left, *right]
    shape = tuple(sizes[c] for c in order)
    if "".join(order) == terms.out:
        return reshaped(product, shape)
    index = product.positions.reshape(shape).transpose([order.index(c) for c in terms.out])
    return replace(product, shape=index.shape, index=index)


def _transposed(op: Op, x: View) -> View:
    terms, _, out = op.attribute("equation").replace(" ", "").partition("->")
    if "." in terms or sorted(terms) != sorted(out) or len(set(out)) != len(x.shape):
        raise Unsupported("is neither a product of two tensors nor a transposition")
    index = x.positions.transpose([terms.index(c) for c in out])
    return replace(x, shape=index.shape, index=x.index if terms == out else index)


def terms_of(op: Op, values: list) -> Terms:
    """The letters of an Einsum of two tensors."""
    if len(values) != 2:
        raise Unsupported(f"multiplies {len(values)} tensors at once")
    return _terms(op.attribute("equation"), *(len(v.shape) for v in values))


def _terms(equation: str, a_rank: int, b_rank: int) -> Terms:
    """The equation with letters in place of `...`, and with the result that ONNX implies where none is written."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    a, b = left.split(",")
    if "." in equation:
        ranks = [rank - len(term.replace("...", "")) if "." in term else 0 for term, rank in ((a, a_rank), (b, b_rank))]
        free = [c for c in "ZYXWVUTSRQ" if c not in equation][: max(ranks)]
        hidden = "".join(free)
        a, b = (t.replace("...", hidden[len(hidden) - n :]) for t, n in zip((a, b), ranks, strict=True))
        out = out.replace("...", hidden)
    if not arrow:
        once = sorted(c for c in set(a + b) if (a + b).count(c) == 1)
        out = "".join(once)
    if any(len(set(t)) != len(t) for t in (a, b, out)):
        raise Unsupported("takes a diagonal")
    if len(a) != a_rank or len(b) != b_rank:
        raise Unsupported(f"the equation {equation!r} does not fit tensors of {a_rank} and {b_rank} axes")
    return Terms(a, b, out)


def _sizes(terms: Terms, a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for letter, n in [*zip(terms.a, a, strict=True), *zip(terms.b, b, strict=True)]:
        if sizes.setdefault(letter, n) != n:
            raise Unsupported(f"axis {letter!r} has {sizes[letter]} and {n} elements")
    return sizes


def _arranged(value: View | Const, term: str, order: list[str], sizes: dict[str, int], shape: tuple[int, ...]) -> View | Const:
    axes = [term.index(c) for c in order]
    if isinstance(value, Const):
        return Const(value.array.transpose(axes).reshape(shape), value.name)
    if axes == sorted(axes):
        return reshaped(value, shape)
    return replace(value, shape=shape, index=value.positions.transpose(axes).reshape(shape))
