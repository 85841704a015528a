#!/usr/bin/env bash
# onnxruntime: Sigmoid in float32 is exactly 0 at and below -18, so Log(Sigmoid(x)) is -infinity
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# PyTorch exports log-sigmoid as Log(Sigmoid(x)). The logarithm of sigmoid(-18) is -18.00000002, and float32 holds
# sigmoid(-18) = 1.5e-8 easily; onnxruntime's CPU kernel gives 0 there, and is 0.16 off at -15. The reference evaluator
# is right.
#
# Seen:
#     x            -10 -15 -17 -18 -20
#     onnxruntime  -10.000242 -14.843774 -16.230066 -inf -inf
#     evaluator    -10.000046 -15.0 -17.0 -18.0 -20.0
#
# Exits with 0 while it is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def by_onnxruntime(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Log", ["s"], ["y"])]
value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
graph = helper.make_graph([*nodes], "g", [value("x", [5])], [value("y", [5])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
x = np.array([-10, -15, -17, -18, -20], np.float32)
theirs, exact = by_onnxruntime(model, x)[0], ReferenceEvaluator(model).run(None, {"x": x})[0]
print("x           ", *x.astype(int))
print("onnxruntime ", *theirs)
print("evaluator   ", *exact)
raise SystemExit(not (np.isneginf(theirs[3:]).all() and theirs[1] - x[1] > 0.1 and np.allclose(exact, x, atol=1e-3)))
PYTHON
