"""Random chains of operators on the rows of one expert: T equals the file, or the file is refused; never another answer."""

from __future__ import annotations

import numpy as np
import pytest

import test_importer_ragged as forms
from hwgen.importer.importer import import_program
from hwgen.importer.load import load
from hwgen.tensor import evaluate, verify

onnxruntime = pytest.importorskip("onnxruntime")
T, D = forms.T, forms.D

SHAPES = [[-1, D], [-1], [-1, 2, 4], [0, 2, -1], [1, -1, D], [2, -1]]
# name -> (moe, value, its rank, an axis, random numbers) -> (value, rank)
STEPS = {
    "scale": lambda m, x, n, a, r: (m.op("Mul", x, m.w.normal(1)), n),
    "columns": lambda m, x, n, a, r: (m.op("Mul", x, m.w.normal(D)), n),
    "matmul": lambda m, x, n, a, r: (m.op("MatMul", x, m.w.normal(D, D)), n),
    "softmax": lambda m, x, n, a, r: (m.op("Softmax", x, axis=a), n),
    "sum": lambda m, x, n, a, r: (m.op("ReduceSum", x, [a], keepdims=1), n),
    "mean": lambda m, x, n, a, r: (m.op("ReduceMean", x, [a], keepdims=1), n),
    "max": lambda m, x, n, a, r: (m.op("ReduceMax", x, [a], keepdims=0), n - 1),
    "slice": lambda m, x, n, a, r: (m.op("Slice", x, [int(r.integers(0, 2))], [1 << 40], [a]), n),
    "concat": lambda m, x, n, a, r: (m.op("Concat", x, m.op("Neg", x), axis=a), n),
    "expand": lambda m, x, n, a, r: (m.op("Expand", x, [2] + [1] * n), n + 1),
    "tile": lambda m, x, n, a, r: (m.op("Tile", x, [1] * (n - 1) + [2]), n),
    "gather": lambda m, x, n, a, r: (m.op("Gather", x, [1, 0], axis=a), n),
    "topk": lambda m, x, n, a, r: (m.op("TopK", x, [1], outputs=2, axis=a)[0], n),
    "cumsum": lambda m, x, n, a, r: (m.op("CumSum", x, np.int64(a)), n),
    "flatten": lambda m, x, n, a, r: (m.op("Flatten", x, axis=int(r.integers(0, n + 1))), 2),
    "transpose": lambda m, x, n, a, r: (m.op("Transpose", x, perm=r.permutation(n).tolist()), n),
    "reshape": lambda m, x, n, a, r: reshaped(m, x, SHAPES[r.integers(0, 6)]),
    "unsqueeze": lambda m, x, n, a, r: (m.op("Unsqueeze", x, [int(r.integers(0, n + 1))]), n + 1),
    "nothing": lambda m, x, n, a, r: (m.op("Where", m.op("Greater", x, 0.1), x, m.op("Mul", x, 0.0)), n),
    "share": lambda m, x, n, a, r: (m.op("Div", x, m.op("Add", m.op("ReduceSum", m.op("Abs", x), [0], keepdims=1), 1.0)), n),
    "number": lambda m, x, n, a, r: (m.op("Mul", x, m.op("Cast", length(m, x), to=1)), n),
    "range": lambda m, x, n, a, r: (m.op("Gather", x, m.op("Range", np.int64(0), length(m, x), np.int64(1)), axis=0), n),
    "fewer": lambda m, x, n, a, r: (m.op("Gather", x, some(m, x, n), axis=0), n),
}


def reshaped(m, x, shape):
    return m.op("Reshape", x, shape), len(shape)


def length(m, x):
    return m.op("Squeeze", m.op("Gather", m.op("Shape", x), [0], axis=0), [0])


def some(m, x, rank):
    score = m.op("ReduceSum", x, list(range(1, rank)), keepdims=0) if rank > 1 else x
    return m.op("Squeeze", m.op("NonZero", m.op("Greater", score, 0.2)), [0])


def network(path, seed):
    rng, moe = np.random.default_rng(seed), forms.Moe(2, seed=seed)
    x, rank = moe.op("Gather", moe.tokens, forms.places(moe, 1)[0]), 2
    for _ in range(rng.integers(1, 6)):
        if rank:
            step = STEPS[list(STEPS)[rng.integers(len(STEPS))]]
            x, rank = step(moe, x, rank, int(rng.integers(-rank, rank)), rng)
    total = moe.op("Mul", moe.op("ReduceSum", moe.op("Sin", x), keepdims=0), 0.1)
    flat = moe.op("Concat", moe.op("Reshape", moe.op("Tanh", x), [-1]), np.float32([-5]), axis=0)
    return moe.save(path, moe.op("Mul", moe.tokens, moe.op("Add", total, moe.op("ReduceMax", flat, keepdims=0))))


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_equal_or_refused(tmp_path, start):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    taken = 0
    for seed in range(start, start + 10):
        path = network(tmp_path / "m.onnx", seed)
        program, findings = import_program(load(path))
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception:  # no network: an axis of another length
            continue
        if findings:
            continue
        verify(program)
        taken += 1
        for i in range(4):
            image = np.random.default_rng(i).standard_normal((1, 1, 2, 2 * T)).astype(np.float32)
            try:
                (expected,) = session.run(None, {"image": image})
            except Exception:  # the largest of no numbers, a number of tokens that a constant does not fit
                continue
            (found,) = evaluate(program, {"image": image})[0].values()
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=f"seed {seed}, image {i}")
    assert taken >= 3
