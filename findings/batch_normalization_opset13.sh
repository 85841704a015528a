#!/usr/bin/env bash
# onnx's ReferenceEvaluator: BatchNormalization of opsets 9 to 13 normalises by a mean that the input has moved, as in training
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# With mean 0 and variance 1 an input of (1, 2, 3) is its own result. The reference evaluator takes a tenth of the input's own
# mean (momentum's default is 0.9) and variance below opset 14, where the operator had no attribute for training yet.
#
# Seen:
#     onnxruntime 1.0 2.0 3.0    ReferenceEvaluator 0.8136762 1.8307714 2.8478665
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


node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.0)
value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
held = [helper.make_tensor(n, TensorProto.FLOAT, [1], [v]) for n, v in (("s", 1.0), ("b", 0.0), ("m", 0.0), ("v", 1.0))]
graph = helper.make_graph([node], "g", [value("x", [1, 1, 3])], [value("y", [1, 1, 3])], held)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
x = np.array([[[1, 2, 3]]], np.float32)
right, wrong = by_onnxruntime(model, x)[0].ravel(), ReferenceEvaluator(model).run(None, {"x": x})[0].ravel()
print("onnxruntime", *right, "   ReferenceEvaluator", *wrong)
moved = (x.ravel() - 0.1 * x.mean()) / np.sqrt(0.9 + 0.1 * x.var())
raise SystemExit(not (np.allclose(right, x.ravel()) and np.allclose(wrong, moved)))
PYTHON
