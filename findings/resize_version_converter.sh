#!/usr/bin/env bash
# onnx's version_converter: raising Resize from opset 10 to 11 changes what it computes
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# Resize of opset 10 takes its source at i / scale. That of opset 11 does so only with
# coordinate_transformation_mode="asymmetric"; its default is half_pixel. The converter writes no mode, so the raised
# model, which the checker accepts, interpolates elsewhere.
#
# Seen:
#     opset 10    0.0 0.5 1.0 1.5 2.0 2.5 3.0 3.0
#     raised      0.0 0.25 0.75 1.25 1.75 2.25 2.75 3.0    attributes: mode
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
from onnx import TensorProto, helper, numpy_helper, version_converter


def by_onnxruntime(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


node = helper.make_node("Resize", ["x", "scales"], ["y"], mode="linear")
scales = numpy_helper.from_array(np.array([1, 1, 1, 2], np.float32), "scales")
value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
graph = helper.make_graph([node], "g", [value("x", [1, 1, 1, 4])], [value("y", [1, 1, 1, 8])], [scales])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=5)
onnx.checker.check_model(model, full_check=True)
raised = version_converter.convert_version(model, 11)
onnx.checker.check_model(raised, full_check=True)
x = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)
before, after = (by_onnxruntime(m, x)[0].ravel() for m in (model, raised))
attributes = [a.name for n in raised.graph.node if n.op_type == "Resize" for a in n.attribute]
print("opset 10   ", *before)
print("raised     ", *after, "   attributes:", *attributes)
same = np.allclose(before, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]) and np.allclose(after, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
raise SystemExit(not (same and attributes == ["mode"]))
PYTHON
