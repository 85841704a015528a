#!/usr/bin/env bash
# onnxruntime: GridSample far outside with padding_mode "border" gives twice the border's pixel at 1e7, and 0 at 1e9
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# Places outside are moved to the border, so that every coordinate from 1 on samples the same pixel. onnxruntime takes the two
# neighbours of the place as it was given and their weights in float32: near 1e7 that holds whole pixels alone, so both weights
# are 1, and near 1e9 both are 0.
#
# Seen, on a map of ones whose samples are all 1:
#     coordinate   1 1000 1e+07 1e+09
#     onnxruntime  1.0 1.0 2.0 0.0
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

value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
node = helper.make_node("GridSample", ["x", "grid"], ["y"], padding_mode="border")
graph = helper.make_graph([node], "g", [value("x", [1, 1, 3, 4]), value("grid", [1, 1, 4, 2])], [value("y", [1, 1, 1, 4])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
places = np.array([1, 1e3, 1e7, 1e9], np.float32)
grid = np.stack([places, np.full(4, 0.1, np.float32)], axis=-1).reshape(1, 1, 4, 2)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
found = session.run(None, {"x": np.ones((1, 1, 3, 4), np.float32), "grid": grid})[0].ravel()
print("coordinate  ", *(f"{p:g}" for p in places))
print("onnxruntime ", *found)
raise SystemExit(not (np.allclose(found[:2], 1) and np.allclose(found[2:], [2, 0])))
PYTHON
