#!/usr/bin/env bash
# onnx's ReferenceEvaluator: LpNormalization with p = 1 divides by the sum, not by the sum of magnitudes
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# The 1-norm of (1, -2, 3) is 6. onnxruntime divides by 6, the reference evaluator by 1 - 2 + 3 = 2.
#
# Seen:
#     onnxruntime 0.16666667 -0.33333334 0.5    ReferenceEvaluator 0.5 -1.0 1.5
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


node = helper.make_node("LpNormalization", ["x"], ["y"], p=1, axis=-1)
value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
graph = helper.make_graph([node], "g", [value("x", [1, 3])], [value("y", [1, 3])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
x = np.array([[1, -2, 3]], np.float32)
right, wrong = by_onnxruntime(model, x)[0].ravel(), ReferenceEvaluator(model).run(None, {"x": x})[0].ravel()
print("onnxruntime", *right, "   ReferenceEvaluator", *wrong)
raise SystemExit(not (np.allclose(right, x / 6) and np.allclose(wrong, x / 2)))
PYTHON
