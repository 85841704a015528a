"""The interpreter of the tensor IR: what every kind of node computes, in NumPy. It is the definition of the IR."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
from scipy.special import erf, expit

from .ir import (
    BOOL,
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
    Program,
    Reduce,
    Ref,
    Scatter,
    TopK,
    reached,
)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind != "i":
        return np.asarray(a / b)
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient))


FUNCTION: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "mod": np.mod,
    "fmod": np.fmod,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "erf": erf,
    "tanh": np.tanh,
    "sigmoid": expit,
    "softplus": lambda x: np.logaddexp(x, 0),
    "sin": np.sin,
    "cos": np.cos,
    "atan": np.arctan,
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
    "where": np.where,
    "float": lambda x: x,  # the evaluator gives it the type it computes in
    "int": lambda x: np.trunc(x) if x.dtype.kind == "f" else x,
    "bool": lambda x: x != 0,
}
REDUCTION: dict[str, Callable[..., Array]] = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}
SCATTER = {"add": np.add.at, "mul": np.multiply.at, "max": np.maximum.at, "min": np.minimum.at}


def evaluate(
    program: Program,
    inputs: dict[str, Array],
    dtype: Any = np.float32,
    keep: Iterable[Node] = (),
    given: dict[Node, Array] | None = None,
) -> tuple[dict[str, Array], dict[Node, Array]]:
    """(outputs by name, values of the nodes in `keep`), floating point computed in `dtype`.

    inputs: by name, in the shapes of the `Input` nodes. A value is forgotten after its last reader. `given`: values of
    nodes that are not computed, so that the program is cut there.
    """
    keep, given = set(keep), given or {}
    refs = {f"{i}": n.ref for i, n in enumerate(keep)}
    everything = reached([r.node for r in program.outputs.values()] + [r.node for r in refs.values()], given)
    left: dict[Node, int] = {}
    for node in everything:
        if node in given:
            continue
        for r in node.operands:
            left[r.node] = left.get(r.node, 0) + 1
    for r in program.outputs.values():
        left[r.node] = left.get(r.node, 0) + 1
    values: dict[Node, Array] = {}
    for node in everything:
        if node in given:
            values[node] = _typed(np.reshape(given[node], node.shape), node.dtype, dtype)
            continue
        operands = [_show(r, values, dtype) for r in node.operands]
        values[node] = _typed(_compute(node, operands, inputs, dtype), node.dtype, dtype)
        for r in node.operands:
            left[r.node] -= 1
            if not left[r.node] and r.node not in keep:
                values.pop(r.node, None)
    outputs = {name: _show(r, values, dtype) for name, r in program.outputs.items()}
    return outputs, {node: values[node] for node in keep}


def apply(op: Any, operands: list[Array], dtype: Any = np.float32) -> Array:
    """What one kind of node makes of arrays."""
    return np.asarray(_apply(op, operands, dtype))


def _show(r: Ref, values: dict[Node, Array], dtype: Any) -> Array:
    value = values[r.node]
    return value.reshape(r.shape) if r.whole else r.layout.apply(value.reshape(-1))


def _typed(value: Array, kind: str, dtype: Any) -> Array:
    wanted = {INT: np.int64, BOOL: np.bool_}.get(kind, dtype)
    return np.ascontiguousarray(value, wanted).reshape(np.shape(value))


def _compute(node: Node, operands: list[Array], inputs: dict[str, Array], dtype: Any) -> Array:
    if isinstance(node.op, Input):
        return np.asarray(inputs[node.op.name]).reshape(node.shape)
    return np.asarray(_apply(node.op, operands, dtype))


def _apply(op: Op, x: list[Array], dtype: Any) -> Any:
    match op:
        case Const(array):
            return array
        case Map(function):
            with np.errstate(all="ignore"):
                return FUNCTION[function](*x)
        case Reduce(function, axes):
            return REDUCTION[function](x[0], axis=axes, keepdims=True)
        case Contract():
            return contract(op, *x)
        case Pad(before, after, value):
            return np.pad(x[0], list(zip(before, after, strict=True)), constant_values=value)
        case Concat(axis):
            return np.concatenate(x, axis=axis)
        case Gather(axis, elements):
            return np.take_along_axis(x[0], x[1], axis) if elements else np.take(x[0], x[1], axis=axis)
        case Scatter():
            return _scatter(op, *x)
        case TopK(axis, count, largest):
            order = np.argsort(-x[0] if largest else x[0], axis=axis, kind="stable")
            return np.take(order, np.arange(count), axis=axis)
        case Copy():
            return x[0]
    return op.compute(x, dtype)


def contract(op: Contract, a: Array, b: Array) -> Array:
    """Through matrix products: batch, rows, columns and summed indices each made one axis."""
    first, second, result = op.letters
    size = dict(zip(first, a.shape, strict=True)) | dict(zip(second, b.shape, strict=True))
    for letter in set(first + second) - set(result):  # summed over in one operand only
        if letter not in second:
            a, first = a.sum(axis=first.index(letter)), first.replace(letter, "")
        elif letter not in first:
            b, second = b.sum(axis=second.index(letter)), second.replace(letter, "")
    batch = [c for c in result if c in first and c in second]
    rows = [c for c in result if c in first and c not in second]
    columns = [c for c in result if c in second and c not in first]
    summed = [c for c in first if c in second and c not in result]

    def matrix(x: Array, letters: str, *groups: list[str]) -> Array:
        x = x.transpose([letters.index(c) for group in groups for c in group])
        return np.asarray(x).reshape([prod(size[c] for c in group) for group in groups])

    product: Array = matrix(a, first, batch, rows, summed) @ matrix(b, second, batch, summed, columns)
    order = batch + rows + columns
    product = product.reshape([size[c] for c in order])
    return np.transpose(product, [order.index(c) for c in result])


def _scatter(op: Scatter, x: Array, index: Array, updates: Array) -> Array:
    y = np.array(x)
    place: list[Array] = list(np.indices(index.shape, sparse=True))
    place[op.axis] = index
    if op.reduction != "none":
        SCATTER[op.reduction](y, tuple(place), updates)
        return y
    for i in range(index.shape[op.axis]):  # the last one wins
        at = [np.take(np.broadcast_to(p, index.shape), i, axis=op.axis) for p in place]
        y[tuple(at)] = np.take(updates, i, axis=op.axis)
    return y
