#!/usr/bin/env bash
# onnx's ReferenceEvaluator: AveragePool with ceil_mode returns values that stand nowhere in its input
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# A window of 4 with stride 4 over 1 1 1 1 1.8: the second window holds one element, 1.8, and its mean is 1.8.
# onnxruntime says so. The reference evaluator says 1.0. Opsets 11, 19 and 22 alike.
#
# Seen:
#     onnxruntime 1.0 1.8    ReferenceEvaluator 1.0 1.0
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


node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[4], strides=[4], ceil_mode=1)
value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
graph = helper.make_graph([node], "g", [value("x", [1, 1, 5])], [value("y", [1, 1, 2])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
x = np.array([[[1, 1, 1, 1, 1.8]]], np.float32)
right, wrong = by_onnxruntime(model, x)[0].ravel(), ReferenceEvaluator(model).run(None, {"x": x})[0].ravel()
print("onnxruntime", *right, "   ReferenceEvaluator", *wrong)
raise SystemExit(not (np.allclose(right, [1, 1.8]) and np.allclose(wrong, [1, 1])))
PYTHON
