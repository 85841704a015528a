"""Integer grids in T: the one form of nodes in which a quantised value stands, made by `grid` and read by `read_grid`.

    grid(x) = mul(min(max(round(div(x, scale)), low), high), scale)

A zero point is folded into the bounds (low = smallest integer - zero point), so it is what QuantizeLinear followed by
DequantizeLinear computes. Between the two stands int(add(.., zero point)), which `real` takes away again, also behind
movement, Clip, Relu, Max and Min of the integers. The product by a scale of 1 and the addition of 0 are not there. All
numbers are as onnxruntime computes them without optimisation: a division, round half to even.

A scale from the image (DynamicQuantizeLinear) has the form that `read_dynamic` reads; integer products are computed in
floating point, of integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tensor import FLOAT, INT, Builder, Concat, Const, Contract, Map, Node, Pad, Reduce, Ref

Array = np.ndarray


def clip(t: Builder, x: Ref, low: Any, high: Any) -> Ref:
    """min(max(x, low), high), one pair of bounds where x is clipped already."""
    inner = read_clip(x)
    if inner is not None and np.size(low) == np.size(high) == 1:
        y, least, most = inner
        if least.size == most.size == 1 and float(least) <= float(high) and float(low) <= float(most):
            x, low, high = y, np.maximum(least, low), np.minimum(most, high)
    for function, bound in (("max", low), ("min", high)):
        if np.isfinite(bound).all():
            x = t.map(function, x, t.const(np.asarray(bound, np.float32)))
    return x


def grid(t: Builder, x: Ref, scale: Any, low: Any, high: Any) -> Ref:
    """x rounded to multiples of `scale` from `low` to `high` of them; all three broadcast against x."""
    s = t.const(np.asarray(scale, np.float32))
    return t.map("mul", clip(t, t.map("round", t.map("div", x, s)), low, high), s)


def read_grid(r: Ref) -> tuple[Ref, Array, Array, Array] | None:
    """(x, scale, low, high) of a value on a constant grid, x in the shape of `r`; arrays of one element or broadcast to it."""
    scaled = _constant(r, "mul")
    clipped = read_clip(scaled[0] if scaled else r)
    rounded = _operand(clipped[0], "round") if clipped else None
    if clipped is None or rounded is None:
        return None
    divided = _constant(rounded, "div")
    x, divisor = divided or (rounded, np.array(1, np.float32))
    scale = scaled[1] if scaled else np.array(1, np.float32)
    return (x, scale, *clipped[1:]) if np.array_equal(scale, divisor) else None


def read_clip(r: Ref) -> tuple[Ref, Array, Array] | None:
    """(x, low, high) of min(max(x, low), high)."""
    above = _constant(r, "min")
    below = _constant(above[0], "max") if above else None
    return (below[0], below[1], above[1]) if above and below else None


def read_dynamic(r: Ref) -> tuple[Ref, Ref, Ref] | None:
    """(x, scale, zero point) of sub(min(max(add(round(div(x, scale)), zero), 0), 255), zero): what DynamicQuantizeLinear
    makes of x, its zero point subtracted; times `scale`, it is x itself to half a step."""
    if not isinstance(r.op, Map) or r.op.function != "sub":
        return None
    value, zero = (_through(r, i) for i in (0, 1))
    clipped = read_clip(value) if value is not None and zero is not None else None
    if clipped is None or not isinstance(clipped[0].op, Map) or clipped[0].op.function != "add":
        return None
    rounded, added = (_through(clipped[0], i) for i in (0, 1))
    divided = _operand(rounded, "round") if rounded is not None and added == zero else None
    if divided is None or not isinstance(divided.op, Map) or divided.op.function != "div":
        return None
    x, scale = (_through(divided, i) for i in (0, 1))
    return (x, scale, zero) if x is not None and scale is not None and zero is not None else None


def _through(r: Ref, i: int) -> Ref | None:
    """Operand `i` of an elementwise node, moved as `r` moves the node."""
    operand = r.node.operands[i]
    layout = r.layout.through(operand.layout)
    return None if layout is None else operand.move(layout)


def _operand(r: Ref, function: str) -> Ref | None:
    """The first operand, where `r` shows the elementwise `function`."""
    return _through(r, 0) if isinstance(r.op, Map) and r.op.function == function else None


def _constant(r: Ref, function: str) -> tuple[Ref, Array] | None:
    """(x, constant) where `r` shows `function` of x and a constant."""
    x = _operand(r, function)
    other = _through(r, 1) if x is not None and len(r.node.operands) == 2 else None
    if x is None or other is None or not isinstance(other.op, Const):
        return None
    numbers = other.numbers.reshape(-1)[:1].reshape(()) if other.layout.uniform() else other.numbers
    return x, numbers


def scaled(t: Builder, x: Ref, scale: Ref) -> Ref:
    """Integers in floating point times their scale: a grid; where they were rounded by another scale, a grid times a factor."""
    clipped = read_clip(x)
    rounded = _operand(clipped[0], "round") if clipped else None
    divided = _constant(rounded, "div") if rounded is not None else None
    if divided is None or divided[1].size != 1 or scale.scalar in (None, float(divided[1])):
        return t.map("mul", x, scale)
    step = float(divided[1])
    return t.map("mul", t.map("mul", x, step), (scale.scalar or 0.0) / step)


# --- integers ---------------------------------------------------------------------------------------------------------


def integral(node: Node, depth: int = 8) -> bool:
    """Whether all numbers of a floating point node are integers by the way it is made."""
    if node.dtype != FLOAT or not depth:
        return node.dtype == INT
    match node.op:
        case Const(array):
            return bool((array == np.rint(array)).all())
        case Map("round" | "floor" | "ceil"):
            return True
        case Pad(value=value) if value != np.rint(value):
            return False
        case (
            Map("max" | "min" | "add" | "sub" | "mul" | "neg" | "float")
            | Contract()
            | Reduce("sum" | "max" | "min")
            | Concat()
            | Pad()
        ):
            return all(integral(r.node, depth - 1) for r in node.operands)
    return False


def as_float(t: Builder, q: Ref) -> Ref:
    """Integers in floating point, without the way there and back where they came from there."""
    inner = _operand(q, "int") if q.dtype == INT else None
    return inner if inner is not None and inner.dtype == FLOAT and integral(inner.node) else t.map("float", q)


def real(t: Builder, q: Ref, zero: Ref | None) -> Ref:
    """Integers minus their zero point, in floating point."""
    if q.constant is not None:
        return t.map("float", q if zero is None else t.map("sub", t.map("int", q), t.map("int", zero)))
    offset = 0.0
    if zero is not None:
        if zero.scalar is None:  # of a scale from the image, or one for each channel
            return t.map("sub", as_float(t, q), as_float(t, zero))
        offset = zero.scalar
    for function in ("max", "min"):
        bounded = _constant(q, function) if q.dtype == INT else None
        if bounded is not None and bounded[1].size == 1:
            bound, inner = float(bounded[1]) - offset, real(t, bounded[0], zero)
            return clip(t, inner, *((bound, np.inf) if function == "max" else (-np.inf, bound)))
    x = as_float(t, q)
    added = _constant(x, "add")
    return added[0] if added is not None and (added[1] == offset).all() else t.map("sub", x, offset)
