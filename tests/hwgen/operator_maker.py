"""Files of one operator, lowered and compared with what onnxruntime or ONNX's reference evaluator computes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hwgen.importer.importer import import_program
from hwgen.importer.load import Model
from hwgen.tensor import Program, evaluate, verify

Array = np.ndarray


@dataclass(frozen=True)
class Const:
    """An operand that the file holds."""

    array: Any


@dataclass
class Case:
    """One node. x: arrays that are inputs, `Const`s, None where absent. judge: "ort", "evaluator" or the right numbers.

    since: the onnxruntime from which on it has this right, Python 3.10 has 1.23; an older one does not judge. before: who does
    then; "" where nobody can.
    """

    op: str
    x: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1
    judge: Any = "ort"
    tolerance: float = 1e-5
    domain: str = ""
    since: tuple[int, int] = (0, 0)
    before: str = "evaluator"

    def __str__(self) -> str:
        parts = [f"{k}={v}" for k, v in self.attributes.items() if not isinstance(v, onnx.TensorProto)]
        shapes = ["c" if isinstance(x, Const) else "-" if x is None else "x".join(map(str, x.shape)) for x in self.x]
        return f"{self.op}-{self.opset} {' '.join(shapes)} {' '.join(parts)}".replace("'", "")

    def proto(self) -> onnx.ModelProto:
        names = ["" if x is None else f"x{i}" for i, x in enumerate(self.x)]
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, "node", domain=self.domain, **self.attributes)
        inputs, constants = [], []
        for name, x in zip(names, self.x, strict=True):
            if isinstance(x, Const):
                constants.append(numpy_helper.from_array(np.asarray(x.array), name))
            elif x is not None:
                inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape))
        made = [helper.make_empty_tensor_value_info(o) for o in outputs]
        graph = helper.make_graph([node], "one", inputs, made, constants)
        opsets = [helper.make_opsetid("", self.opset)] + [helper.make_opsetid(self.domain, 1)] * bool(self.domain)
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    @property
    def feed(self) -> dict[str, Array]:
        return {f"x{i}": x for i, x in enumerate(self.x) if isinstance(x, np.ndarray)}


def graph(nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, ...]], outputs: list[str], opset: int = 18, **constants):
    """A model of several nodes with inputs of floating point."""
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs.items()]
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    made = [helper.make_empty_tensor_value_info(o) for o in outputs]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "several", infos, made, held), opset_imports=opsets, ir_version=10)


def model_of(proto: onnx.ModelProto) -> Model:
    """As the loader gives it, without its wish for a batch of 1."""
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    inputs = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in proto.graph.input}
    kinds = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in proto.graph.input}
    opsets = {o.domain: o.version for o in proto.opset_import}
    return Model(Path("one.onnx"), proto.graph, constants, opsets, inputs, kinds, [o.name for o in proto.graph.output])


def lowered(proto: onnx.ModelProto) -> Program:
    program, findings = import_program(model_of(proto))
    assert not findings, [str(f) for f in findings]
    verify(program)
    return program


def run(proto: onnx.ModelProto, feed: dict[str, Array], judge: str = "ort") -> list[Array]:
    if judge == "evaluator":
        return ReferenceEvaluator(proto).run(None, feed)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


def onnxruntime_version() -> tuple[int, int]:
    import onnxruntime

    major, minor = onnxruntime.__version__.split(".")[:2]
    return int(major), int(minor)


def confirm(case: Case) -> Program:
    """Lowered, evaluated and equal: shapes, kinds, and numbers within `tolerance` of the largest one."""
    if isinstance(case.judge, str) and case.judge == "ort" and onnxruntime_version() < case.since:
        if not case.before:
            pytest.skip(f"onnxruntime {'.'.join(map(str, onnxruntime_version()))} has {case.op} wrong in this form")
        case = replace(case, judge=case.before)
    proto = case.proto()
    program = lowered(proto)
    got = list(evaluate(program, case.feed)[0].values())
    wanted = run(proto, case.feed, case.judge) if isinstance(case.judge, str) else [np.asarray(case.judge)]
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == w.shape, f"{case}: {g.shape} for {w.shape}"
        assert g.dtype.kind == w.dtype.kind.replace("u", "i"), f"{case}: {g.dtype} for {w.dtype}"
        if w.dtype.kind == "f":
            finite = np.isfinite(w)
            size = np.abs(w[finite]).max(initial=1.0)
            np.testing.assert_allclose(g[finite], w[finite], rtol=0, atol=case.tolerance * size, err_msg=str(case))
            assert ((g == w) | finite | (np.isnan(g) & np.isnan(w)) | (np.abs(g) > 3e38)).all(), str(case)
        else:
            np.testing.assert_array_equal(g, w, err_msg=str(case))
    return program
