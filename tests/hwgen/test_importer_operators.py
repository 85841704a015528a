"""Single operators in many forms: what the tensor IR computes is what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

import operator_maker as maker

pytest.importorskip("onnxruntime")
Const = maker.Const
RNG = np.random.default_rng(12)


def x(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.2, 3, shape).astype(np.float32)


def ints(low: int, high: int, *shape: int) -> np.ndarray:
    return RNG.integers(low, high, shape)


def bools(*shape: int) -> np.ndarray:
    return RNG.random(shape) < 0.5


def row(
    op, *operands, opset=18, outputs=1, judge="ort", tolerance=1e-5, domain="", since=(0, 0), before="evaluator", **attributes
):
    """Lists and numbers are constants of the file."""
    held = tuple(o if o is None or isinstance(o, np.ndarray | Const) else Const(np.asarray(o)) for o in operands)
    return maker.Case(op, held, attributes, opset, outputs, judge, tolerance, domain, since, before)


def c(array, dtype=None) -> Const:
    return Const(np.asarray(array, dtype))


def f(*numbers: float) -> Const:
    return Const(np.asarray(numbers[0] if len(numbers) == 1 else numbers, np.float32))


ELEMENTWISE = [
    *(row(op, x(2, 3, 4)) for op in "Abs Neg Sign Floor Ceil Round Exp Erf Tanh Sigmoid Softplus Sin Cos Atan Relu".split()),
    *(row(op, x(2, 3, 4)) for op in "Softsign HardSwish Elu Selu Celu ThresholdedRelu Shrink Mish".split()),
    *(row(op, x(2, 3, 4), opset=13) for op in "Elu Selu Celu ThresholdedRelu Shrink Softsign HardSigmoid LeakyRelu".split()),
    *(row(op, positive(2, 3, 4)) for op in "Sqrt Log Reciprocal".split()),
    *(row(op, x(2, 3, 4), x(3, 1)) for op in "Add Sub Mul Div Greater GreaterOrEqual Less LessOrEqual PRelu".split()),
    *(row(op, x(3, 4), x(4), x(2, 1, 4)) for op in "Mean Sum Max Min".split()),
    *(row(op, bools(2, 3), bools(3)) for op in "And Or Xor Equal".split()),
    row("Not", bools(3)),
    row("Equal", ints(0, 3, 2, 5), ints(0, 3, 5)),
    row("Div", ints(-9, 9, 4, 5), 4),
    row("Div", ints(-9, 9, 4, 5), -4),
    row("Mod", ints(-9, 9, 4, 5), 4),
    row("Mod", ints(-9, 9, 4, 5), -4),
    row("Mod", ints(-9, 9, 4, 5), -4, fmod=1),
    row("Mod", x(4, 5), f(0.7), fmod=1),
    row("Max", ints(-9, 9, 4, 5), 0),
    row("Pow", positive(3, 4), f(2.5)),
    row("Pow", x(3, 4), f(3.0)),
    row("Pow", x(3, 4), 2),
    row("Pow", ints(0, 5, 3, 4), 3),
    row("Pow", ints(0, 5, 3, 4), f(0.5)),
    row("Where", bools(2, 1, 4), x(3, 4), x(2, 3, 1)),
    row("Where", bools(4), ints(0, 9, 3, 4), 5),
    row("Clip", x(3, 4), f(-0.5), f(0.5)),
    row("Clip", x(3, 4), f(0.5), f(-0.5)),
    row("Clip", x(3, 4), None, f(0.5)),
    row("Clip", ints(-9, 9, 3, 4), -2, 3),
    row("Clip", x(3, 4), opset=13),
    row("Gelu", x(3, 4), opset=20),
    row("Gelu", x(3, 4), opset=20, approximate="tanh"),
    row("HardSigmoid", x(3, 4)),
    row("HardSigmoid", x(3, 4), alpha=1 / 6, beta=0.4),
    row("LeakyRelu", x(3, 4), alpha=0.3),
    row("Elu", x(3, 4), alpha=0.3),
    row("Celu", x(3, 4), alpha=2.0),
    row("Selu", x(3, 4), alpha=1.1, gamma=1.3),
    row("ThresholdedRelu", x(3, 4), alpha=0.3),
    row("Swish", x(3, 4), opset=24, alpha=1.3, since=(1, 24)),
    row("IsNaN", x(3, 4)),
    row("IsInf", x(3, 4), opset=20),
    row("IsInf", f(1, np.inf, -np.inf), detect_negative=0),
    row("Cast", x(3, 4), to=TensorProto.INT64),
    row("Cast", x(3, 4), to=TensorProto.BOOL),
    row("Cast", bools(3, 4), to=TensorProto.FLOAT),
    row("Cast", bools(3, 4), to=TensorProto.UINT8),
    row("Cast", c([1.5, 300.0], np.float32), to=TensorProto.INT32),
    row("CastLike", x(3, 4), 1),
]

MOVEMENT = [
    row("Identity", x(2, 3)),
    row("Dropout", x(2, 3), outputs=2),
    row("Dropout", x(2, 3), f(0.5), c(False)),
    row("Shape", x(2, 3, 4)),
    row("Shape", x(2, 3, 4), start=-2),
    row("Shape", x(2, 3, 4), start=1, end=-1),
    row("Size", x(2, 3, 4)),
    row("ConstantOfShape", [2, 3]),
    row("ConstantOfShape", [2, 3], value=numpy_helper.from_array(np.array([7]))),
    row("Range", 2, 11, 3),
    row("Range", f(0.0), f(1.0), f(0.125)),
    row("Reshape", x(2, 3, 4), [4, -1]),
    row("Reshape", x(2, 3, 4), [0, 2, 6]),
    row("Reshape", x(2, 0, 4), [0, 8], allowzero=1),
    row("Flatten", x(2, 3, 4), axis=2),
    row("Flatten", x(2, 3, 4), axis=-1),
    row("Flatten", x(2, 3, 4), axis=0),
    row("Transpose", x(2, 3, 4)),
    row("Transpose", x(2, 3, 4), perm=[2, 0, 1]),
    row("Squeeze", x(1, 3, 1)),
    row("Squeeze", x(1, 3, 1), [-1]),
    row("Squeeze", x(1, 3, 1), opset=11, axes=[0]),
    row("Unsqueeze", x(3, 4), [0, -1]),
    row("Unsqueeze", x(3, 4), opset=11, axes=[1, 2]),
    row("Expand", x(3, 1), [2, 1, 4]),
    row("Tile", x(2, 3), [2, 3]),
    row("Slice", x(5, 6), [1, 0], [4, 99], [0, 1], [2, 1]),
    row("Slice", x(5, 6), [-1], [-99], [1], [-2]),
    row("Slice", x(5, 6), [1], [-1]),
    row("Slice", x(5, 6), opset=9, starts=[1, 2], ends=[3, -1], axes=[1, 0]),
    row("Slice", x(5, 6), [4], [-7], [0], [-1]),
    row("Split", x(7, 2), outputs=3, num_outputs=3),
    row("Split", x(6, 2), outputs=3, opset=13),
    row("Split", x(2, 6), [1, 2, 3], outputs=3, axis=1),
    row("Split", x(2, 6), opset=11, split=[2, 4], outputs=2, axis=-1),
    row("Concat", x(2, 3), x(2, 1), f(*[[1.0], [2.0]]), axis=-1),
    row("Pad", x(2, 3), [0, 1, 2, 3]),
    row("Pad", x(2, 3), [1, 1, 0, 0], f(7.0)),
    row("Pad", x(4, 5), [1, -1, -2, 3], f(2.0)),
    row("Pad", x(4, 5), [2, -1, 1, 2], mode="reflect"),
    row("Pad", x(4, 5), [2, -1, 1, 2], mode="edge"),
    row("Pad", x(4, 5), [2, 1], None, [-1], mode="wrap", opset=19),
    row("Pad", x(2, 3, 4), [2, 1], f(0.0), [-1], opset=18),
    row("DepthToSpace", x(1, 12, 2, 3), blocksize=2),
    row("DepthToSpace", x(1, 12, 2, 3), blocksize=2, mode="CRD"),
    row("SpaceToDepth", x(2, 3, 4, 6), blocksize=2),
    row("Einsum", x(2, 3), x(3, 4), equation="ij, jk -> ki"),
    row("Einsum", x(2, 3), x(3, 4), equation="ij,jk"),
    row("Einsum", x(1, 1), x(1, 1), equation="ij,jk->ik"),
    row("Einsum", x(4, 1), x(1, 2), x(2, 1), equation="ij,jk,kj->ik"),
    row("Einsum", x(2, 1), x(1, 3), equation="ij,jk->k"),
    row("Einsum", x(4, 4, 3), equation="iij->ji"),
    row("Einsum", x(4, 4), equation="ii"),
    row("Einsum", x(2, 3, 4, 5), x(5, 6), equation="...ij,jk->...ik"),
    row("Einsum", x(2, 3, 4), x(1, 4, 5), equation="b...i,bij->...jb"),
    row("Einsum", x(2, 3), x(3, 4), x(4, 2), equation="ij,jk,kl->il"),
    row("Einsum", x(2, 3, 4), equation="ijk->k"),
    row("Einsum", x(1, 3), x(4, 3), equation="...i,...i->..."),
    row("Einsum", x(2, 3, 4), x(2, 5, 4), equation="bhd,bed->bhe"),
    row("MatMul", x(2, 1, 3, 4), x(5, 4, 6)),
    row("MatMul", x(4), x(2, 4, 3)),
    row("MatMul", x(2, 3, 4), x(4)),
    row("MatMul", x(4), x(4)),
    row("MatMul", ints(-5, 5, 2, 3), ints(-5, 5, 3, 4)),
    row("Gemm", x(3, 4), x(5, 4), x(5), transB=1, alpha=0.5, beta=2.0),
    row("Gemm", x(4, 3), x(4, 5), transA=1),
]

CONVOLUTIONS = [
    row("Conv", x(2, 3, 7, 8), x(4, 3, 3, 2), x(4), strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2]),
    row("Conv", x(1, 4, 7), x(6, 2, 3), group=2),
    row("Conv", x(1, 4, 6, 6), x(4, 1, 3, 3), group=4, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    row("Conv", x(1, 2, 4, 5, 6), x(3, 2, 2, 2, 2), strides=[2, 2, 2]),
    row("Conv", x(1, 2, 7, 7), x(3, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    row("Conv", x(1, 2, 6, 7), x(3, 2, 2, 4), auto_pad="SAME_LOWER", strides=[1, 3]),
    row("Conv", x(1, 2, 7, 7), x(3, 2, 3, 3), auto_pad="VALID"),
    row("Conv", x(1, 2, 7, 7), x(3, 2, 3, 3), auto_pad="SAME_UPPER", dilations=[2, 2], judge="evaluator"),
    row("ConvTranspose", x(1, 4, 5, 6), x(4, 3, 2, 2), x(3), strides=[2, 2]),
    row("ConvTranspose", x(2, 4, 5, 6), x(4, 3, 3, 3), x(3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    row("ConvTranspose", x(1, 4, 5, 6), x(4, 2, 3, 2), group=2, strides=[3, 1], dilations=[2, 2]),
    row("ConvTranspose", x(1, 2, 5), x(2, 3, 4), strides=[3], pads=[2, 1]),
    row("ConvTranspose", x(1, 2, 5, 6), x(2, 3, 3, 2), strides=[3, 2], dilations=[2, 1]),
    row("ConvTranspose", x(1, 2, 5, 5), x(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    row("ConvTranspose", x(1, 2, 5, 5), x(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    row("ConvTranspose", x(1, 2, 5, 5), x(2, 3, 3, 3), strides=[2, 2], auto_pad="VALID"),
    row("ConvTranspose", x(1, 2, 5, 5), x(2, 3, 3, 3), strides=[3, 3], output_shape=[15, 14]),
    row("ConvTranspose", x(1, 2, 5, 5), x(2, 3, 3, 3), strides=[2, 2], output_shape=[10, 9], auto_pad="SAME_UPPER"),
    row("ConvTranspose", x(1, 2, 5, 5), x(2, 3, 2, 2), strides=[3, 3], auto_pad="SAME_UPPER"),
    row("ConvTranspose", x(1, 2, 4, 4), x(2, 3, 1, 1), pads=[1, 1, 1, 1]),
    row("Col2Im", x(2, 3 * 4, 12), [4, 5], [2, 2]),
    row("Col2Im", x(1, 2 * 6, 8), [5, 6], [2, 3], strides=[1, 2], pads=[0, 1, 0, 1], dilations=[1, 2]),
]

K3 = {"kernel_shape": [3, 3]}
WIDE = {"kernel_shape": [40, 50], "strides": [40, 50], "pads": [1, 1, 0, 1], "ceil_mode": 1, "opset": 19}
POOLS = [
    row("MaxPool", x(1, 2, 7, 8), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    row("MaxPool", x(1, 2, 8, 8), kernel_shape=[3, 3], dilations=[2, 2]),
    row("MaxPool", x(1, 2, 9), kernel_shape=[3], strides=[2], ceil_mode=1),
    row("MaxPool", ints(-9, 9, 1, 2, 6, 6).astype(np.int8), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    *(row("MaxPool", x(1, 2, 7, 7), kernel_shape=[2, 2], strides=[2, 2], auto_pad=p) for p in ("SAME_UPPER", "SAME_LOWER")),
    *(row("MaxPool", x(1, 1, 6, 6), kernel_shape=[2, 2], strides=[s, s], pads=[p] * 4, ceil_mode=1) for s, p in ((2, 1), (3, 0))),
    row("MaxPool", x(1, 1, 6, 6), kernel_shape=[3, 3], strides=[3, 3], pads=[1] * 4, ceil_mode=1),
    row("AveragePool", x(1, 1, 5), kernel_shape=[4], strides=[3], ceil_mode=1, opset=19),
    *(
        row("AveragePool", x(1, 2, 7, 8), **K3, strides=[s, s], pads=[1, 0, 1, 1], count_include_pad=n, ceil_mode=m)
        for s in (1, 2, 3)
        for n in (0, 1)
        for m in (0, 1)
    ),
    row("AveragePool", x(1, 2, 8, 8), kernel_shape=[3, 2], dilations=[2, 3], opset=19, pads=[1, 1, 1, 1]),
    row("AveragePool", x(1, 2, 7, 7), kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    *(row("AveragePool", x(1, 2, 3, 2), count_include_pad=n, since=(n, 26), before="", **WIDE) for n in (0, 1)),
    row("MaxPool", x(1, 2, 3, 2), **WIDE),
    row("LpPool", x(1, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2]),
    row("LpPool", x(1, 2, 7, 7), kernel_shape=[2, 3], p=3, pads=[1, 1, 0, 1]),
    row("GlobalAveragePool", x(1, 2, 4, 5)),
    row("GlobalMaxPool", x(1, 2, 4, 5)),
    row("GlobalLpPool", x(1, 2, 4, 5), p=3),
]

REDUCTIONS = [
    *(row(f"Reduce{k}", positive(2, 3, 4), opset=13, axes=[1]) for k in "Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()),
    *(row(f"Reduce{k}", x(2, 3, 4), [0, -1], keepdims=0) for k in "Sum Mean Max Min Prod L1 L2 LogSumExp SumSquare".split()),
    *(row(f"Reduce{k}", x(2, 3, 4)) for k in "Sum Mean L2".split()),
    row("ReduceSum", x(2, 3), noop_with_empty_axes=1, since=(1, 24)),
    row("ReduceSum", x(2, 3), c([], np.int64), noop_with_empty_axes=1),
    row("ReduceSum", x(2, 3), c([], np.int64)),
    row("ReduceMax", ints(-9, 9, 2, 3), [1]),
    row("Softmax", x(2, 3, 4)),
    row("Softmax", x(2, 3, 4), axis=1),
    row("Softmax", x(2, 3, 4), opset=11),
    row("Softmax", x(2, 3, 4), axis=2, opset=12),
    row("LogSoftmax", x(2, 3, 4), axis=0),
    row("LogSoftmax", x(2, 3, 4), opset=11),
    row("Hardmax", x(2, 3, 4)),
    row("Hardmax", x(2, 3, 4), opset=11, axis=1),
    row("LayerNormalization", x(2, 3, 4), x(4), x(4)),
    row("LayerNormalization", x(2, 3, 4), x(3, 4), axis=1, epsilon=1e-3, outputs=3),
    row("RMSNormalization", x(2, 3, 4), x(4), opset=23, epsilon=1e-3),
    row("SimplifiedLayerNormalization", x(2, 3, 4), x(4), axis=-1, epsilon=1e-3),
    row("BatchNormalization", x(2, 3, 4, 5), *(f(*positive(3)) for _ in range(4)), epsilon=1e-3),
    row("InstanceNormalization", x(2, 3, 4, 5), x(3), x(3), epsilon=1e-3),
    row("GroupNormalization", x(2, 6, 4, 5), x(2), x(2), num_groups=2),
    row("GroupNormalization", x(2, 6, 4, 5), x(6), x(6), num_groups=3, opset=21),
    row("LpNormalization", np.concatenate([x(2, 3), np.zeros((1, 3), np.float32)]), p=1),
    row("LpNormalization", np.concatenate([x(2, 3), np.zeros((1, 3), np.float32)]), p=2),
    row("LpNormalization", x(2, 3), axis=0),
    row("MeanVarianceNormalization", x(2, 3, 4, 5), tolerance=1e-4),
    row("LRN", x(1, 7, 3, 3), size=3, alpha=0.1, beta=0.6, bias=1.5),
]

INDICES = [
    row("Gather", x(3, 4), [[2, -1], [0, 1]], axis=1),
    row("Gather", x(3, 4), 2),
    row("Gather", x(3, 4), ints(-3, 3, 2, 2)),
    row("Gather", x(2, 9), [[0, 1, 2], [2, 3, 4], [4, 5, 6]], axis=1),
    row("Gather", x(2, 6), [0, 0, 0, 2, 2, 2, 4, 4, 4], axis=1),
    row("Gather", x(2, 6), [5, 3, 4, 2, 3, 1], axis=1),
    row("Gather", x(4), c([], np.int64)),
    row("GatherElements", x(3, 4), ints(-4, 4, 2, 4), axis=1),
    row("GatherElements", x(3, 4), ints(-3, 3, 5, 2), axis=0),
    row("GatherElements", x(3, 4), [[1, 0], [2, 2]], axis=0),
    row("GatherND", x(3, 4, 5), ints(-3, 3, 2, 6, 2)),
    row("GatherND", x(3, 4, 5), [[0, 1], [2, -1]]),
    row("GatherND", x(2, 3, 4, 5), ints(0, 4, 2, 3, 2, 1), batch_dims=2),
    row("GatherND", x(2, 3, 4), ints(-3, 3, 2, 6, 2), batch_dims=1),
    row("ScatterND", x(4, 5), [[1], [3], [1]], x(3, 5)),
    row("ScatterND", x(4, 5), [[1, 0], [3, -2], [1, 1]], x(3)),
    row("ScatterND", x(4, 5), ints(0, 4, 6, 1), x(6, 5)),
    *(row("ScatterND", x(4, 5), ints(0, 4, 6, 1), x(6, 5), reduction=r) for r in "add mul max min".split()),
    row("ScatterND", x(4, 5), [[1], [3], [1]], x(3, 5), reduction="add"),
    row("ScatterElements", x(4, 5), ints(-4, 4, 6, 5), x(6, 5)),
    row("ScatterElements", x(4, 5), ints(0, 5, 3, 2), x(3, 2), axis=1),
    row("ScatterElements", x(4, 5), [[1, 0], [2, 2]], x(2, 2), axis=-1),
    *(row("ScatterElements", x(4, 5), ints(0, 4, 3, 5), x(3, 5), reduction=r) for r in "add mul max min".split()),
    row("TopK", x(3, 7), [3], outputs=2),
    row("TopK", ints(0, 3, 3, 7).astype(np.float32), [4], outputs=2, axis=0 - 1),
    row("TopK", x(7, 3), [2], outputs=2, axis=0, largest=0),
    row("TopK", ints(0, 9, 3, 7), [2], outputs=2),
    *(row(op, ints(0, 3, 3, 7).astype(np.float32), axis=1, select_last_index=s) for op in ("ArgMax", "ArgMin") for s in (0, 1)),
    row("ArgMax", x(3, 7), keepdims=0),
    row("OneHot", ints(-6, 7, 3), 5, f(0.0, 2.0)),
    row("OneHot", ints(0, 5, 2, 3), [5], c([1, 4]), axis=0),
    row("NonZero", c([[1, 0], [0, 3]])),
    row("Compress", x(3, 4), c([False, True, True]), axis=0),
    row("Compress", x(3, 4), c([False, True, True])),
    row("CumSum", x(3, 4), 1),
    row("CumSum", x(3, 4), 0, exclusive=1),
    row("CumSum", x(3, 4), -1, reverse=1),
    row("CumSum", ints(0, 9, 3, 4), 1, exclusive=1, reverse=1),
    row("Trilu", x(2, 3, 4)),
    row("Trilu", x(3, 4), -1, upper=0),
    row("Trilu", ints(0, 9, 3, 3), 1),
    row("Trilu", bools(3, 3), upper=0),
    row("EyeLike", x(3, 4), k=1),
    row("EyeLike", ints(0, 3, 3, 3)),
]

BACK = {"onesided": 1, "inverse": 1, "tolerance": 1e-4, "since": (1, 28)}
SIGNALS = [
    *(
        row("GridSample", x(2, 3, 5, 6), 1.3 * x(2, 4, 3, 2), mode=m, padding_mode=p, align_corners=a, opset=o, tolerance=1e-4)
        for o, modes in ((16, ("bilinear", "nearest", "bicubic")), (20, ("linear", "cubic")))
        for m in modes
        for p in ("zeros", "border", "reflection")
        for a in (0, 1)
    ),
    row("GridSample", x(1, 2, 4, 5, 3), x(1, 2, 3, 2, 3), opset=20),
    row("GridSample", x(1, 3, 5, 6), Const(np.append(x(1, 2, 2, 2), np.full((1, 1, 2, 2), 1e17, np.float32), axis=1)), opset=20),
    *(row("AffineGrid", x(2, 2, 3), [2, 3, 4, 5], opset=20, align_corners=a) for a in (0, 1)),
    row("AffineGrid", x(2, 3, 4), [2, 3, 4, 5, 3], opset=20),
    row("CenterCropPad", x(1, 3, 8, 7), [5, 9], axes=[2, 3]),
    *(row("DFT", x(1, 3, 14, p), axis=2, inverse=i, opset=17, tolerance=1e-4) for p in (1, 2) for i in (0, 1)),
    row("DFT", x(1, 14, 1), onesided=1, opset=17, tolerance=1e-4),
    row("DFT", x(1, 14, 5, 1), None, 1, onesided=1, opset=20, tolerance=1e-4),
    row("DFT", x(1, 14, 5, 1), 9, opset=20, tolerance=1e-4),
    *(row("DFT", x(1, 8, 2), n, opset=17, **BACK) for n in (None, 14, 15)),
    row("DFT", x(1, 3, 8, 2), None, -2, opset=20, **BACK),
]

MS = {"domain": "com.microsoft"}
LEFT = {"left_window_size": 1}
PAST = {"opset": 23, "outputs": 3}
QKV = x(2, 3, 4, 8), x(2, 3, 5, 8), x(2, 3, 5, 6)
SKIP = x(2, 3, 8), x(2, 3, 8), x(8), x(8), x(8)
UNSEEN = {"opset": 23, "since": (1, 28)}  # a row of the mask that sees nothing
SEEN = np.array([[1, 1, 0, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
FUSED = [
    *(row("Attention", *QKV, opset=23, is_causal=i) for i in (0, 1)),
    row("Attention", x(2, 4, 24), x(2, 5, 8), x(2, 5, 8), opset=23, q_num_heads=3, kv_num_heads=1, scale=0.3),
    row("Attention", *QKV, x(4, 5), opset=23),
    row("Attention", *QKV, Const(SEEN), **UNSEEN),
    row("Attention", *QKV, SEEN, **UNSEEN),
    *(
        row(*("Attention", *QKV, Const(np.where(SEEN, x(4, 5), low).astype("f"))), before=b, **UNSEEN)
        for low, b in ((-np.inf, "evaluator"), (np.finfo(np.float32).min, ""), (-1e4, "evaluator"))
    ),
    row("Attention", x(1, 2, 4, 8), x(1, 2, 5, 8), x(1, 2, 5, 6), opset=23, softcap=0.5),
    row("Attention", x(1, 2, 4, 8), x(1, 2, 4, 8), x(1, 2, 4, 6), None, x(1, 2, 2, 8), x(1, 2, 2, 6), is_causal=1, **PAST),
    *(
        row("Attention", x(1, 2, 4, 8), x(1, 2, 6, 8), x(1, 2, 6, 6), opset=25, judge="evaluator", is_causal=i, **sides)
        for i, sides in ((0, {**LEFT, "right_window_size": 1}), (1, LEFT), (0, {"right_window_size": 1}))
    ),
    row("Attention", x(1, 3, 2, 8), x(1, 3, 2, 8), x(1, 3, 2, 6), None, x(1, 3, 3, 8), x(1, 3, 3, 6), opset=23, outputs=3),
    row("RotaryEmbedding", x(2, 3, 4, 8), x(9, 4), x(9, 4), ints(0, 9, 2, 4), opset=23),
    row("RotaryEmbedding", x(2, 4, 24), x(2, 4, 4), x(2, 4, 4), opset=23, num_heads=3, interleaved=1),
    row("RotaryEmbedding", x(2, 4, 24), x(2, 4, 2), x(2, 4, 2), opset=23, num_heads=3, rotary_embedding_dim=4),
    row("RotaryEmbedding", x(2, 4, 24), [2], x(9, 4), x(9, 4), **MS),
    row("RotaryEmbedding", x(2, 3, 4, 8), ints(0, 9, 2, 4), x(9, 4), x(9, 4), interleaved=1, **MS),
    row("Attention", x(2, 5, 12), x(12, 36), x(36), num_heads=3, **MS),
    row("Attention", x(2, 5, 12), x(12, 36), x(36), Const(np.ones((2, 5), np.int32)), num_heads=3, unidirectional=1, **MS),
    row("Attention", x(1, 5, 12), x(12, 36), x(36), None, None, x(1, 3, 5, 5), num_heads=3, scale=0.5, **MS),
    row("MultiHeadAttention", x(2, 5, 12), x(2, 7, 12), x(2, 7, 6), x(30), num_heads=3, **MS),
    row("MultiHeadAttention", x(2, 5, 12), x(2, 3, 7, 4), x(2, 3, 7, 4), num_heads=3, **MS),
    row("MultiHeadAttention", x(2, 5, 12), x(2, 7, 12), x(2, 7, 12), None, None, x(1, 3, 5, 7), num_heads=3, scale=0.4, **MS),
    row("SkipLayerNormalization", *SKIP, outputs=4, epsilon=1e-3, since=(1, 30), before="", **MS),
    row("SkipLayerNormalization", x(2, 3, 8), x(2, 3, 8), x(8), None, epsilon=1e-3, **MS),
    row("SkipSimplifiedLayerNormalization", x(2, 3, 8), x(2, 3, 8), x(8), x(8), epsilon=1e-3, **MS),
    row("BiasGelu", x(2, 8), x(8), **MS),
    row("FastGelu", x(2, 8), x(8), **MS),
    row("FastGelu", x(2, 8), **MS),
    row("Gelu", x(2, 8), **MS),
    row("QuickGelu", x(2, 8), **MS),
    row("QuickGelu", x(2, 8), alpha=1.3, **MS),
    row("FusedMatMul", x(2, 3, 4), x(2, 5, 4), alpha=0.3, transB=1, **MS),
    row("FusedMatMul", x(4, 2, 3), x(4, 2, 5), transA=1, transBatchA=1, transBatchB=1, **MS),
    *(row("FusedGemm", x(3, 4), x(5, 4), x(5), transB=1, activation=a, **MS) for a in ("Relu", "Sigmoid", "Tanh")),
    row("FusedGemm", x(3, 4), x(4, 5), x(5), activation="LeakyRelu", activation_alpha=0.3, **MS),
    row("FusedConv", x(1, 2, 5, 5), x(3, 2, 3, 3), x(3), x(1, 3, 3, 3), activation="Relu", **MS),
    row("FusedConv", x(1, 2, 5, 5), x(3, 2, 3, 3), activation="Clip", activation_params=[-0.5, 0.7], **MS),
    row("FusedConv", x(1, 2, 5, 5), x(3, 2, 3, 3), activation="HardSigmoid", activation_params=[0.3, 0.4], **MS),
    row("SwiGLU", x(2, 3, 8), x(2, 3, 8), opset=28, alpha=1.3, judge="evaluator"),
    row("RMSNormalization", x(2, 3, 8), x(3, 8), axis=1, opset=24, since=(1, 24)),
]
MODES = "half_pixel pytorch_half_pixel half_pixel_symmetric align_corners asymmetric".split()
SIZES = ((5, 6), (9, 17), (1, 4), (7, 3), (10, 12))  # of [5, 6]; where ONNX's evaluator and onnxruntime differ, the latter
RESIZES = [
    *(
        row("Resize", x(1, 2, 5, 6), None, None, [1, 2, *to], mode=m, coordinate_transformation_mode=t, tolerance=3e-5)
        for to in SIZES
        for m in ("nearest", "linear", "cubic")
        for t in MODES
    ),
    *(
        row("Resize", x(1, 2, 5, 6), None, f(1, 1, *scales), mode=m, coordinate_transformation_mode=t, tolerance=3e-5)
        for scales in ((2.0, 2.0), (1.3, 0.7), (0.3, 1.1), (1.1, 1.1))
        for m in ("nearest", "linear", "cubic")
        for t in MODES
    ),
    *(
        row("Resize", x(1, 2, 9, 10), None, f(1, 1, 0.5, 1.4), mode="nearest", nearest_mode=n, coordinate_transformation_mode=t)
        for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for t in ("half_pixel", "asymmetric")
    ),
    *(
        row("Resize", x(1, 2, 9, 10), None, None, [1, 2, *to], mode=m, antialias=1, exclude_outside=e, cubic_coeff_a=a)
        for to in ((4, 7), (3, 15))
        for m, a in (("linear", -0.75), ("cubic", -0.5))
        for e in (0, 1)
    ),
    row("Resize", x(1, 2, 5, 6), None, f(1, 1, 1.7, 0.6), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    row("Resize", x(1, 2, 5, 6), None, f(2.0, 0.5), axes=[3, 2], mode="linear"),
    row("Resize", x(1, 2, 5, 6), None, None, [10, 18], axes=[2, 3], mode="linear", keep_aspect_ratio_policy="not_larger"),
    row("Resize", x(1, 2, 5, 6), None, None, [10, 18], axes=[2, 3], mode="nearest", keep_aspect_ratio_policy="not_smaller"),
    *(
        row(
            *("Resize", x(1, 2, 5, 6), f(0, 0, 0.2, 0.1, 1, 1, 0.9, 1.2), None, [1, 2, *to]),
            **{"mode": m, "extrapolation_value": 3.0, "coordinate_transformation_mode": "tf_crop_and_resize"},
        )
        for to in ((4, 7), (5, 6), (5, 9), (3, 6))
        for m in ("nearest", "linear", "cubic")
    ),
    row("Resize", x(1, 2, 5, 6), f(1, 1, 2, 2), opset=10),
    row("Resize", x(1, 2, 5, 6), f(1, 1, 2.4, 0.6), opset=10, mode="linear"),
    row("Resize", x(1, 2, 6, 6), f(1, 1, 0.5, 1.5), opset=10),
    row("Resize", x(1, 2, 5, 6), f(0), f(1, 1, 1.6, 2), opset=11, coordinate_transformation_mode="tf_half_pixel_for_nn"),
    row("Upsample", x(1, 2, 5, 6), f(1, 1, 2, 3), opset=9),
    row("Upsample", x(1, 2, 5, 6), f(1, 1, 2, 3), opset=9, mode="linear"),
    row("Resize", x(2, 4, 5), None, f(1, 1, 2), mode="linear"),
    row("Resize", x(1, 1, 3, 4, 5), None, f(1, 1, 2, 1.5, 2), mode="linear"),
    row("Resize", x(1, 1, 3, 4, 5), None, f(1, 1, 2, 1.5, 2)),
    row("Resize", ints(0, 255, 1, 2, 5, 6).astype(np.uint8), None, f(1, 1, 2, 2)),
    row("Resize", ints(-99, 99, 1, 2, 5, 6).astype(np.int8), None, f(1, 1, 2, 2), mode="nearest"),
    row("Resize", ints(-99, 99, 1, 2, 5, 6).astype(np.int8), None, f(1, 1, 2, 2), mode="linear"),
    row("Resize", ints(0, 255, 1, 2, 5, 6).astype(np.uint8), None, f(1, 1, 2, 2), mode="linear"),
]


CASES = [*FUSED, *RESIZES, *ELEMENTWISE, *MOVEMENT, *CONVOLUTIONS, *POOLS, *REDUCTIONS, *INDICES, *SIGNALS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_onnxruntime(case):
    maker.confirm(case)


def test_forms_that_onnxruntime_has_no_kernel_for():
    """Packed queries, keys and values, and convolutions of NHWC, are the same numbers as their plain forms."""
    q, k, v = x(2, 5, 12), x(2, 5, 12), x(2, 5, 12)
    plain = row("MultiHeadAttention", q, k, v, num_heads=3, **MS)
    wanted = maker.run(plain.proto(), plain.feed)[0]
    parts = [a.reshape(2, 5, 3, 4) for a in (q, k, v)]
    for operands in ([np.stack(parts, 3)], [q, np.stack(parts[1:], 3)]):
        maker.confirm(row("MultiHeadAttention", *operands, num_heads=3, judge=wanted, **MS))
    image, weight = x(1, 4, 5, 6), x(6, 2, 3, 3)
    plain = row("Conv", image, weight, group=2, pads=[1, 0, 1, 2])
    wanted = maker.run(plain.proto(), plain.feed)[0].transpose(0, 2, 3, 1)
    channels_last = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    maker.confirm(row("NhwcConv", channels_last, weight, group=2, pads=[1, 0, 1, 2], judge=wanted, **MS))


def test_windows_far_larger_than_a_map_have_the_taps_that_meet_it():
    """transformers pools EfficientNet's last map by a window as wide as its channels."""
    program = maker.lowered(row("AveragePool", x(1, 2, 3, 2), **WIDE).proto())
    assert max(np.prod(operand.shape) for node in program.nodes() for operand in node.operands) <= 2 * 4 * 4
