"""The float model itself, run by onnxruntime where it is installed, else by ONNX's own reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from hwgen.errors import UserError

from .load import Model, load

Array = np.ndarray
Runner = Callable[[dict[str, Array]], list[Array]]


def reference(path: str | Path | Model, images: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of the float model for all images, first axis = images, whatever batch the file was exported with.

    Of a quantised model, the float model is the one that it emulates, without its rounding of activations. `images`
    maps every input name to an array [n, C, H, W]; names that are no inputs are ignored. Raises UserError naming an
    input that is missing or has the wrong shape.
    """
    model = path if isinstance(path, Model) else load(path)
    count = _count(model, images)
    run = _runner(model)
    rows: list[list[Array]] = []
    for i in range(count):
        rows.append(run({name: np.asarray(images[name][i : i + 1]) for name in model.inputs}))
    return {name: np.concatenate([row[j] for row in rows]) for j, name in enumerate(model.outputs)}


def _count(model: Model, images: Mapping[str, Array]) -> int:
    counts = set()
    for name, shape in model.inputs.items():
        if name not in images:
            raise UserError(f"{model.path}: no array for input {name!r}; there are {sorted(images)}")
        got = np.shape(images[name])
        wanted = shape[1:]
        if len(got) != len(shape) or any(n is not None and n != m for n, m in zip(wanted, got[1:], strict=True)):
            readable = ", ".join("?" if n is None else str(n) for n in wanted)
            raise UserError(f"{model.path}: array {name!r} has shape {got}, must be (images, {readable})")
        counts.add(got[0])
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"{model.path}: the inputs hold {sorted(counts)} images, must be one number above 0")
    return counts.pop()


def _runner(model: Model) -> Runner:
    try:
        import onnxruntime
    except ImportError:
        return _slow_runner(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # warnings about the exporter's graph are not about the user's request
    try:
        if model.emulated is not None:  # else it makes integer products of dequantised weights
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        model_or_path = model.emulated or str(model.path)
        session = onnxruntime.InferenceSession(model_or_path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every kind of failure
        try:
            return _slow_runner(model)  # an onnxruntime older than the model's opset must not stop a build
        except UserError:
            raise UserError(f"{model.path}: onnxruntime cannot run it: {_brief(error)}") from None
    kinds = {
        i.name: np.float16 if "float16" in i.type else np.float64 if "double" in i.type else np.float32
        for i in session.get_inputs()
    }

    def run(feed: dict[str, Array]) -> list[Array]:
        try:
            return session.run(model.outputs, {n: a.astype(kinds[n]) for n, a in feed.items()})
        except Exception as error:
            raise UserError(f"{model.path}: onnxruntime cannot run it: {_brief(error)}") from None

    return run


def _slow_runner(model: Model) -> Runner:
    from onnx.reference import ReferenceEvaluator

    from .contrib import CONTRIB

    proto = onnx.load(model.path) if model.emulated is None else onnx.load_from_string(model.emulated)
    kinds = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in proto.graph.input}
    try:
        evaluator = ReferenceEvaluator(proto, new_ops=CONTRIB)
    except Exception as error:  # an operator that has no reference implementation
        raise UserError(
            f"{model.path}: only onnxruntime can run it (pip install onnxruntime): {_brief(error)}"
        ) from None

    def run(feed: dict[str, Array]) -> list[Array]:
        try:
            return evaluator.run(model.outputs, {n: a.astype(kinds[n]) for n, a in feed.items()})
        except Exception as error:
            raise UserError(f"{model.path}: ONNX's reference evaluator cannot run it: {_brief(error)}") from None

    return run


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
