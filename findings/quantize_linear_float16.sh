#!/usr/bin/env bash
# onnxruntime before 1.30: QuantizeLinear of half precision truncates
#
# Versions: onnx 1.23.2, onnxruntime 1.23.2 (the newest for Python 3.10) and, on Python 3.11 and later, 1.29.0; numpy 2.2.6.
# ONNX rounds half to even before it saturates. With float16 the CPU kernel drops the fraction, with float32 it rounds; 1.30.0 and
# 1.32.0 round both.
#
# Seen:
#     x        -1.75 -0.75 0.75 1.5 1.75
#     float16  -1 0 0 1 1
#     float32  -2 -1 1 2 2
#
# Exits with 0 while it is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
runtime="$("$folder/venv/bin/python" -c 'import sys; print("1.29.0" if sys.version_info >= (3, 11) else "1.23.2")')"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 "onnxruntime==$runtime" numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

x = np.array([-1.75, -0.75, 0.75, 1.5, 1.75])
print("x       ", *x)


def quantised(kind, element):
    constants = [helper.make_tensor("s", element, [], [1.0]), helper.make_tensor("z", TensorProto.INT8, [], [0])]
    image, grid = (helper.make_tensor_value_info(n, e, [5]) for n, e in (("x", element), ("y", TensorProto.INT8)))
    graph = helper.make_graph([helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], "g", [image], [grid], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x.astype(kind)})
    print(kind.__name__, "", *y)
    return y


half, single = quantised(np.float16, TensorProto.FLOAT16), quantised(np.float32, TensorProto.FLOAT)
raise SystemExit(not ((half == np.trunc(x)).all() and (single == np.round(x)).all()))
PYTHON
