#!/usr/bin/env bash
# onnxscript: the optimiser takes an addition of up to 1e-8 for one of zero, so that PyTorch's exporter drops such an epsilon
#
# Versions: onnxscript 0.7.2, onnx 1.23.2, numpy 2.4.6.
# torch.onnx.export(dynamo=True) runs this optimiser by default. Its rule "x + 0 is x" compares the constant with an absolute
# tolerance of 1e-8 (a relative one of 1e-5), so an epsilon that keeps a divisor from zero is gone from the file. TorchScript's
# exporter, and dynamo's with optimize=False, keep it. T2T-ViT's performer adds 1e-8 to sums of exponentials that are smaller.
#
# Seen:
#     nodes before Add Div | behind Div
#     y before 0.1 0.090909086 | behind inf 1.0
#
# Exits with 0 while it is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxscript==0.7.2 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnx
import onnxscript
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

held = [numpy_helper.from_array(np.float32(1e-8), "epsilon"), numpy_helper.from_array(np.float32(1e-9), "x")]
nodes = [helper.make_node("Add", ["d", "epsilon"], ["sum"]), helper.make_node("Div", ["x", "sum"], ["y"])]
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
graph = helper.make_graph(nodes, "g", [value("d")], [value("y")], held)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
made = onnxscript.optimizer.optimize(model)
d = np.array([0, 1e-9], np.float32)
before, after = (ReferenceEvaluator(m).run(None, {"d": d})[0] for m in (model, made))
print("nodes before", *(n.op_type for n in model.graph.node), "| behind", *(n.op_type for n in made.graph.node))
print("y before", *before, "| behind", *after)
raise SystemExit(not (np.allclose(before, [0.1, 1 / 11]) and np.isinf(after[0]) and np.isclose(after[1], 1)))
PYTHON
