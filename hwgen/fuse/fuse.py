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

from . import (
    activation,
    attention,
    attention_ops,
    contrib,
    dispatch,
    einsum,
    elementwise,
    embedding,
    gate,
    moe_op,
    norm,
    picked,
    pooling,
    products,
    quantised,
    ragged,
)
from .constants import evaluate, output_shapes
from .emit import Context, finish
from .gathering import Packed, Picked, Sized
from .layout import MOVES, move
from .op import Finding, Op, Unsupported
from .sums import chained
from .symbols import (
    Activated,
    Array,
    Attended,
    Image,
    Lin,
    Noise,
    Norm,
    Opaque,
    Pooled,
    Probabilities,
    Product,
    Scores,
    Sum,
)
from .views import Const, Unknown, View, token_layout, whole

Rule = Callable[[Context, Op, list], Any]

HINTS = {
    **dict.fromkeys(quantised.INTEGER, quantised.HINT),
    **dict.fromkeys(("HardSwish", "Softplus", "Elu", "LeakyRelu", "Mish"), "use GELU, SiLU or ReLU as activation"),
    "CumSum": "limits how many tokens an expert takes: export without expert capacity",
    **dict.fromkeys(("If", "Loop", "Scan"), "export without control flow that depends on the image"),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), "use the class token or the mean of the tokens"),
    "FusedConv": "only the patch embedding may be a convolution",
    "Exp": "write attention and gates with Softmax",
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
    "Sqrt": norm.root,
    "Reciprocal": elementwise.reciprocal,
    "ReduceMean": pooling.mean,
    "GlobalAveragePool": pooling.global_average,
    "AveragePool": pooling.average,
    "LayerNormalization": norm.layer_norm,
    "com.microsoft.LayerNormalization": norm.layer_norm,
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), norm.rms_norm),
    "com.microsoft.SkipLayerNormalization": contrib.skip_layer_norm,
    "Erf": activation.erf,
    "Sigmoid": activation.sigmoid,
    "Swish": activation.swish,
    "com.microsoft.QuickGelu": activation.swish,
    "Relu": activation.relu,
    "Tanh": activation.tanh,
    "Gelu": activation.gelu_op,
    "com.microsoft.Gelu": activation.gelu_op,
    "com.microsoft.BiasGelu": contrib.bias_gelu,
    "com.microsoft.FastGelu": contrib.bias_gelu,
    "Cast": elementwise.cast,
    "CastLike": elementwise.cast_like,
    "Where": elementwise.select,
    "IsNaN": elementwise.never,
    "IsInf": elementwise.never,
    "BatchNormalization": elementwise.batch_norm,
    "Einsum": einsum.einsum,
    "Pad": embedding.pad,
    "MatMul": products.matmul,
    "Gemm": products.gemm,
    "com.microsoft.FusedMatMul": products.fused_matmul,
    "com.microsoft.FusedGemm": contrib.fused_gemm,
    "Softmax": attention.softmax,
    "Conv": embedding.conv,
    "Concat": embedding.concat,
    "Attention": attention_ops.attention_op,
    "com.microsoft.Attention": attention_ops.fused_attention,
    "com.microsoft.MultiHeadAttention": attention_ops.multi_head_attention,
    "com.microsoft.MoE": moe_op.moe,
    "TopK": gate.top_k,
    "ArgMax": gate.arg_max,
    "ReduceMax": gate.reduce_max,
    "ReduceSum": pooling.reduce_sum,
    **dict.fromkeys("Equal Greater Less GreaterOrEqual LessOrEqual".split(), gate.compare),
    "Not": gate.negation,
    "Clip": gate.bounded,
    "Max": gate.bounded,
    "OneHot": gate.one_hot,
    "NonZero": dispatch.non_zero,
    "GatherElements": dispatch.gather_elements,
    "ScatterElements": dispatch.scatter_elements,
    "ScatterND": dispatch.scatter,
}

# Operators whose rules take a constant in place of their first input; the others compute on it.
ANY_FIRST = frozenset(
    "Add Sub Mul Div Pow MatMul Einsum Equal Greater Less GreaterOrEqual LessOrEqual Max".split()
    + "Where Concat Attention CastLike GatherElements ScatterElements ScatterND".split()
    + [f"com.microsoft.{name}" for name in ("SkipLayerNormalization", "FusedMatMul", "MultiHeadAttention")]
)
# Operators that may take a constant of infinities for what it means.
MASKING = frozenset(
    "Where Max Clip Equal Greater Less GreaterOrEqual LessOrEqual ScatterElements ScatterND Attention".split()
    + ["com.microsoft.Attention", "com.microsoft.MultiHeadAttention"]
)
# Results that stand on their own: whatever went wrong before them, what follows is judged afresh.
SOLID = (Lin, Norm, Activated, Product, Probabilities, Attended, Sum, Pooled)


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
    ctx = Context(names=set(inputs), limits=ranges or {})
    values: dict[str, Any] = {name: Const(array, name) for name, array in constants.items()}
    for name, shape in inputs.items():
        values[name] = whole(Image(shape=shape[1:], name=name, source=name), shape)
        ctx.note_range(values[name], ctx.limits.get(name))
    found: list[tuple[Op, Finding]] = []
    makers: dict[str, Op] = {}
    _run_all(ctx, ops, values, makers, found)
    live = _live(ops, values, outputs)
    findings = [f for op, f in found if live.intersection(op.outputs)]
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
    return chained(graph.Graph(shapes, finish(ctx.nodes, made), made, ctx.ranges)), []


def _live(ops: Sequence[Op], values: Mapping[str, Any], outputs: Sequence[str]) -> set[str]:
    """Names of the values that the outputs depend on: not what is multiplied by zero, whose product is a constant."""
    live = set(outputs)
    for op in reversed(ops):
        used = [n for n in op.outputs if n in live]
        if any(not isinstance(values.get(n), Const) for n in used):
            live.update(n for n in op.inputs if n)
    return live


def _run_all(
    ctx: Context,
    ops: Sequence[Op],
    values: dict[str, Any],
    makers: dict[str, Op],
    found: list[tuple[Op, Finding]],
    whole: Op | None = None,
) -> None:
    """Run nodes in order; an If whose condition is known is the branch taken. Findings go to `found` with their node, or
    with the If around it (`whole`)."""
    for op in ops:
        makers.update(dict.fromkeys(op.outputs, op))
        condition = values.get(op.inputs[0]) if op.type == "If" else None
        if isinstance(condition, Const):
            body = op.attribute("then_branch" if condition.array.all() else "else_branch")
            inner = values | {name: Const(array, name) for name, array in body.constants.items()}
            _run_all(ctx, body.ops, inner, makers, found, whole or op)
            results = [inner[name] for name in body.outputs]
        else:
            findings: list[Finding] = []
            results = _run(ctx, op, [values[n] if n else None for n in op.inputs], findings)
            found += [(whole or op, f) for f in findings]
        for name, result in zip(op.outputs, results, strict=False):
            if name:
                values[name] = result
                ctx.note_range(result, ctx.limits.get(name))


def _output(ctx: Context, name: str, value: Any) -> graph.Output:
    if not isinstance(value, View):
        raise Unsupported(f"output {name!r} does not depend on the image")
    if len(value.shape) < 2 or value.shape[0] != 1:
        raise Unsupported(f"output {name!r} of shape {value.shape} has no batch axis")
    rows, transposed = value, False
    across = value.positions.reshape(value.shape[1], -1).T  # a feature map: channels before tokens
    if token_layout(value) is None and token_layout(View(value.sym, across.shape, across)) is not None:
        rows, transposed = replace(value, shape=across.shape, index=across), True
    try:
        return graph.Output(name, ctx.emit(rows), value.shape[1:], transposed)
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
    if isinstance(value, View) and (not isinstance(value.sym, SOLID) or _of_stand_ins(value.sym)):
        return replace(value, tainted=True)
    return replace(value, inner=_taint(value.inner)) if isinstance(value, Packed | Picked) else value


def _of_stand_ins(sym: Any) -> bool:
    return isinstance(sym, Sum) and isinstance(sym.a.sym, Opaque) and isinstance(sym.b.sym, Opaque)


def _apply(ctx: Context, op: Op, values: list) -> Any:
    present = [v for v in values if v is not None]
    if any(isinstance(v, Unknown) for v in present):
        raise _unsupported(op)
    if op.type in RANDOM:
        shape = op.attribute("shape") or present[0].shape
        return View(Noise(shape=tuple(shape), source=op.name), tuple(shape))
    counted = ragged.sized(op, values)
    if any(isinstance(v, Picked) for v in present) or picked.picks(op, values):
        return picked.run(ctx, op, values, _apply)
    if any(isinstance(v, Packed) for v in present):
        return ragged.run(ctx, op, values, _apply)
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
        if counted is not None:
            return [Sized(a, name, counted.mask) for a in arrays]
        return [Const(a, name) for a in arrays]
    if op.type in MOVES and isinstance(values[0], View):
        return [_moved(values[0], index) for index in move(op, values[0].positions, values)]
    if op.type in MOVES:
        raise Unsupported("its indices or shape are computed from the image", "export with static shapes")
    rule = RULES.get(op.type)
    if rule is None:
        raise _unsupported(op)
    _need_masks(op, values)
    if op.type not in ANY_FIRST and not isinstance(values[0], View):
        raise Unsupported("its first input is constant and another one is not")
    return rule(ctx, op, values)


def _need_masks(op: Op, values: list) -> None:
    """Raise Unsupported where a constant that holds infinities meets anything but attention scores."""
    scores = op.type in MASKING or any(isinstance(v, View) and isinstance(v.sym, Scores | Opaque) for v in values)
    for v in values if not scores else ():
        if isinstance(v, Const) and v.array.dtype.kind == "f" and np.isinf(v.array).any():
            raise Unsupported(f"its constant {v.name!r} holds infinity, which only an attention mask may")


def _unsupported(op: Op) -> Unsupported:
    return Unsupported("not supported", HINTS.get(op.type.rpartition(".")[2], ""))


def _moved(view: View, index: Array) -> View:
    straight = view.index is None and index.size == int(np.prod(view.shape)) and _in_order(index)
    return replace(view, shape=index.shape, index=None if straight else index)


def _in_order(index: Array) -> bool:
    flat = index.reshape(-1)
    return bool(np.array_equal(flat, np.arange(flat.size)))


# --- after a refusal ---------------------------------------------------------------------------------------------


def _stand_in(op: Op, values: list, recover: Any) -> list:
    """What the outputs of a refused node are taken for."""
    if recover is not None:
        return [_taint(recover)] + [Unknown()] * (len(op.outputs) - 1)
    shapes = output_shapes(op, [None if v is None or isinstance(v, Unknown | Packed | Picked) else v.shape for v in values])
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
