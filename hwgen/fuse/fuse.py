"""Fusion: ONNX nodes in order -> `hwgen.graph.Graph`, or everything that stands in the way.

Each node runs on Syms (symbols.py) by the rule of its operator. A rule concludes only what holds, so a network is
either understood completely or refused; after a refusal the run goes on with a stand-in, to find all faults at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwgen import graph

from . import dispatch, elementwise, gate, products, quantised
from .constants import evaluate, output_shapes
from .emit import Context, finish
from .layout import MOVES, move
from .op import Finding, Op, Unsupported
from .symbols import (
    Activated,
    Array,
    Attended,
    Const,
    Image,
    Lin,
    Noise,
    Norm,
    Opaque,
    Packed,
    Probabilities,
    Unknown,
    Value,
    View,
    whole,
)

Rule = Callable[[Context, Op, list], Any]

HINTS = {
    **dict.fromkeys(quantised.INTEGER, quantised.HINT),
    **dict.fromkeys(("Relu", "Sigmoid", "HardSwish", "Softplus", "QuickGelu"), "use GELU as activation"),
    **dict.fromkeys(("If", "Loop", "Scan"), "export without control flow that depends on the image"),
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "MaxPool"), "use the class token: pooling is not supported"),
    "BatchNormalization": "use LayerNorm",
    "RMSNormalization": "use LayerNorm",
    "SimplifiedLayerNormalization": "use LayerNorm",
}
# Operators that models need on shapes and places only, where all is constant.
ARITHMETIC = frozenset(
    "Shape Size Floor Ceil Round Mod Range ConstantOfShape Max Min Abs And Or Not Less Greater".split()
)
RANDOM = frozenset(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"))


def _pair(rule: Callable) -> Rule:
    return lambda ctx, op, values: rule(ctx, op, *values)


RULES: dict[str, Rule] = {
    "Add": _pair(elementwise.add),
    "Sub": _pair(elementwise.subtract),
    "Mul": _pair(elementwise.multiply),
    "Div": _pair(elementwise.divide),
    "Pow": _pair(elementwise.power),
    "Neg": elementwise.negate,
    "Sqrt": elementwise.root,
    "Reciprocal": elementwise.reciprocal,
    "ReduceMean": elementwise.mean,
    "LayerNormalization": elementwise.layer_norm,
    "com.microsoft.LayerNormalization": elementwise.layer_norm,
    "com.microsoft.SkipLayerNormalization": elementwise.skip_layer_norm,
    "Erf": elementwise.erf,
    "Tanh": elementwise.tanh,
    "Gelu": elementwise.gelu_op,
    "com.microsoft.Gelu": elementwise.gelu_op,
    "com.microsoft.BiasGelu": elementwise.bias_gelu,
    "com.microsoft.FastGelu": elementwise.bias_gelu,
    "Cast": elementwise.cast,
    "CastLike": lambda ctx, op, values: values[0],
    "Where": elementwise.select,
    "MatMul": products.matmul,
    "Gemm": products.gemm,
    "Softmax": products.softmax,
    "Conv": products.conv,
    "Concat": products.concat,
    "Attention": products.attention_op,
    "com.microsoft.Attention": products.fused_attention,
    "TopK": gate.top_k,
    "ArgMax": gate.arg_max,
    "ReduceMax": gate.reduce_max,
    "ReduceSum": dispatch.reduce_sum,
    "Equal": gate.equal,
    "OneHot": gate.one_hot,
    "NonZero": dispatch.non_zero,
    "GatherElements": dispatch.gather_elements,
    "ScatterElements": dispatch.scatter_elements,
    "ScatterND": dispatch.scatter,
}

# Operators whose rules take a constant in place of their first input; the others compute on it.
ANY_FIRST = frozenset(
    "Add Sub Mul Div Pow MatMul Equal Where Concat GatherElements ScatterElements ScatterND".split()
    + ["com.microsoft.SkipLayerNormalization"]
)
# Results that stand on their own: whatever went wrong before them, what follows is judged afresh.
SOLID = (Lin, Norm, Activated, Probabilities, Attended, Value)


def fuse(
    ops: Sequence[Op],
    inputs: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Array],
    outputs: Sequence[str],
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[graph.Graph | None, list[Finding]]:
    """The ViT-level graph, or None and the nodes that prevent it.

    `inputs` maps input names to shapes with a batch axis of 1, `constants` initialiser names to arrays, `ranges` tensors
    of a quantised model to the smallest and largest value that they can hold.
    """
    ctx = Context(names=set(inputs))
    values: dict[str, Any] = {name: Const(array, name) for name, array in constants.items()}
    for name, shape in inputs.items():
        values[name] = whole(Image(shape=shape[1:], name=name, source=name), shape)
        ctx.note_range(values[name], (ranges or {}).get(name))
    findings: list[Finding] = []
    makers: dict[str, Op] = {}
    for op in ops:
        makers.update(dict.fromkeys(op.outputs, op))
        results = _run(ctx, op, [values[n] if n else None for n in op.inputs], findings)
        for name, result in zip(op.outputs, results, strict=False):
            if name:
                values[name] = result
                ctx.note_range(result, (ranges or {}).get(name))
    made = []
    for name in outputs:
        try:
            made.append(_output(ctx, name, values[name]))
        except Unsupported as no:
            if not findings:
                op = makers.get(name)
                findings.append(Finding(op.name if op else name, op.type if op else "output", no.reason, no.hint))
    if findings:
        return None, findings
    shapes = {name: shape[1:] for name, shape in inputs.items()}
    return graph.Graph(shapes, finish(ctx.nodes, made), made, ctx.ranges), []


def _output(ctx: Context, name: str, value: Any) -> graph.Output:
    if not isinstance(value, View):
        raise Unsupported(f"output {name!r} does not depend on the image")
    if len(value.shape) < 2 or value.shape[0] != 1:
        raise Unsupported(f"output {name!r} of shape {value.shape} has no batch axis")
    try:
        return graph.Output(name, ctx.emit(value), value.shape[1:])
    except Unsupported as no:
        raise Unsupported(f"output {name!r}: {no.reason}", no.hint) from None


def _run(ctx: Context, op: Op, values: list, findings: list[Finding]) -> list:
    """Results of one node; a refusal goes to `findings` unless an earlier one explains it."""
    tainted = any(v is not None and v.tainted for v in values)
    try:
        results = _try(ctx, op, values)
    except Unsupported as no:
        # An operator without rule is always at fault; a known one may only suffer from what came before.
        if not tainted or _unheard(op):
            findings.append(Finding(op.name, op.type, no.reason, no.hint))
        return _stand_in(op, values, no.recover)
    results = results if isinstance(results, list) else [results]
    return [_taint(r) if tainted else r for r in results]


def _try(ctx: Context, op: Op, values: list) -> Any:
    try:
        return _apply(ctx, op, values)
    except (ValueError, IndexError, TypeError) as error:  # NumPy's word for operands that do not fit
        shapes = ", ".join(str(getattr(v, "shape", "?")) for v in values if v is not None)
        raise Unsupported(f"its inputs of shapes {shapes} do not fit: {error}") from None


def _unheard(op: Op) -> bool:
    return op.type not in RULES and op.type not in MOVES | RANDOM | ARITHMETIC


def _taint(value: Any) -> Any:
    if isinstance(value, View) and not isinstance(value.sym, SOLID):
        return replace(value, tainted=True)
    return replace(value, inner=_taint(value.inner)) if isinstance(value, Packed) else value


def _apply(ctx: Context, op: Op, values: list) -> Any:
    present = [v for v in values if v is not None]
    if any(isinstance(v, Unknown) for v in present):
        raise _unsupported(op)
    if op.type in RANDOM:
        shape = op.attribute("shape") or present[0].shape
        return View(Noise(shape=tuple(shape), source=op.name), tuple(shape))
    if any(isinstance(v, Packed) for v in present):
        return _packed(ctx, op, values)
    if op.type == "Shape":
        shape = np.asarray(present[0].shape, np.int64)
        return Const(shape[op.attribute("start", 0) : op.attribute("end", len(shape))])
    if op.type == "Size":
        return Const(np.asarray(int(np.prod(present[0].shape)), np.int64))
    if all(isinstance(v, Const) for v in present):
        arrays = [None if v is None else v.array for v in values]
        if op.type.rpartition(".")[2] in quantised.INTEGER - quantised.LINEAR:
            raise _unsupported(op)
        arrays = [quantised.linear(op, arrays)] if op.type in quantised.LINEAR else evaluate(op, arrays)
        name = values[0].name if op.type in MOVES | quantised.LINEAR | {"Cast"} and values else ""
        return [Const(a, name) for a in arrays]
    if op.type in MOVES and isinstance(values[0], View):
        return [_moved(values[0], index) for index in move(op, values[0].positions, values)]
    if op.type in MOVES:
        raise Unsupported("its indices or shape are computed from the image", "export with static shapes")
    rule = RULES.get(op.type)
    if rule is None:
        raise _unsupported(op)
    if op.type not in ANY_FIRST and not isinstance(values[0], View):
        raise Unsupported("its first input is constant and another one is not")
    return rule(ctx, op, values)


def _unsupported(op: Op) -> Unsupported:
    return Unsupported("not supported", HINTS.get(op.type.rpartition(".")[2], ""))


def _moved(view: View, index: Array) -> View:
    straight = view.index is None and index.size == int(np.prod(view.shape)) and _in_order(index)
    return replace(view, shape=index.shape, index=None if straight else index)


def _in_order(index: Array) -> bool:
    flat = index.reshape(-1)
    return bool(np.array_equal(flat, np.arange(flat.size)))


# --- ragged tensors ----------------------------------------------------------------------------------------------


def _packed(ctx: Context, op: Op, values: list) -> Any:
    """Run a node on the full tensors behind ragged ones. Sound where every entry of the ragged axis stays by itself."""
    if op.type == "ScatterND":
        return dispatch.scatter(ctx, op, values)
    packed = [v for v in values if isinstance(v, Packed)]
    first = packed[0]
    if not all(dispatch.same_tokens(p, first) and p.axis == first.axis for p in packed):
        raise Unsupported("combines the tokens of different experts")
    inner = [v.inner if isinstance(v, Packed) else v for v in values]
    result = _apply(ctx, op, inner)
    result = result[0] if isinstance(result, list) and len(op.outputs) == 1 else result
    if isinstance(result, list):
        raise Unsupported("splits the tokens of one expert")
    return Packed(first.mask, result, _ragged_axis(op, values, inner, first, result))


def _ragged_axis(op: Op, values: list, inner: list, first: Packed, result: View | Const) -> int:
    n = first.mask.shape[0]
    if op.type in ("Gather", "GatherND") and values[0] is not first:
        depth = 0 if op.type == "GatherND" else op.attribute("axis", 0) % len(values[0].shape)
        return depth + len(first.inner.shape) + first.axis - len(result.shape)
    if op.type in MOVES and values[0] is first:
        # Where the coordinate along the ragged axis goes tells where the axis goes.
        shape = first.inner.shape
        line = [1] * len(shape)
        line[first.axis] = n
        coordinate = move(op, np.broadcast_to(np.arange(n).reshape(line), shape), inner)[0]
        for axis in range(-coordinate.ndim, 0):
            if coordinate.shape[axis] == n and (np.moveaxis(coordinate, axis, -1) == np.arange(n)).all():
                return axis
        raise Unsupported("rearranges the tokens of one expert")
    others = [v for v in values if v is not None and not isinstance(v, Packed)]
    if op.type in ("MatMul", "Gemm"):
        alone = values[0] is first and first.axis <= -2 and len(others) == len(values) - 1
    elif op.type in ("LayerNormalization", "Cast", "Gelu", "Erf", "Floor", "Sqrt", "Tanh", "Pow"):
        alone = first.axis < -1 or not op.type.startswith("Layer")
    else:
        alone = op.type in ("Add", "Sub", "Mul", "Div") or op.type.startswith("com.microsoft.")
        alone = alone and all(len(v.shape) < -first.axis or v.shape[first.axis] == 1 for v in others)
    if not alone:
        raise Unsupported("mixes the tokens of one expert")
    return first.axis


# --- after a refusal ---------------------------------------------------------------------------------------------


def _stand_in(op: Op, values: list, recover: Any) -> list:
    """What the outputs of a refused node are taken for."""
    if recover is not None:
        return [_taint(recover)] + [Unknown()] * (len(op.outputs) - 1)
    shapes = output_shapes(op, [None if v is None or isinstance(v, Unknown | Packed) else v.shape for v in values])
    data = next((v for v in values if isinstance(v, View)), None)
    if shapes[0] is None and _unheard(op) and data is not None:
        shapes[0] = data.shape  # most operators that ONNX cannot tell about (custom ones) keep the shape
    results = []
    for shape in shapes:
        if shape is None or len(shape) < 1:
            results.append(Unknown())
        elif data is not None and data.shape == shape and _unheard(op):
            results.append(replace(data, tainted=True))
        else:
            rows = int(np.prod(shape[:-1]))
            results.append(View(Opaque(shape=(rows, shape[-1]), source=op.name), shape, tainted=True))
    return results
