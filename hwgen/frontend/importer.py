"""The whole way from a file to the ViT-level graph, and the proof that it was understood."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwgen import graph
from hwgen.errors import UserError
from hwgen.fuse import Finding, fuse

from .canonical import image_shapes, operators
from .load import Model, load
from .reference import reference

# Largest error against the ONNX model, in standard deviations of the output: float32 round-off through some dozen
# layers stays below 1e-4; a model that computes in 16 bit rounds more.
TOLERANCE = 2e-3
HALF_TOLERANCE = 5e-2
SEEDS = (0, 1, 2)
NAMED = 5  # nodes that a refusal names for each fault; `check` lists all


def check(path: str | Path) -> list[Finding]:
    """Every node that hwgen cannot build; empty if it can build all. Raises UserError if the file cannot be read."""
    return _fuse(load(path))[1]


def import_model(path: str | Path, confirmed: bool = True) -> graph.Graph:
    """ONNX file -> ViT-level graph, checked against the ONNX model on a random image unless `confirmed` is False.

    Raises UserError naming every node that is unsupported or matched only in part.
    """
    model = load(path)
    result, findings = _fuse(model)
    if findings:
        raise UserError(refusal(model.path, findings))
    try:
        graph.verify(result)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if confirmed:
        confirm(model, result)
    return result


def refusal(path: str | Path, findings: list[Finding]) -> str:
    """One message for all findings, nodes with the same fault together, the first few of them by name."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for f in findings:
        groups.setdefault((f.op, f.reason, f.hint), []).append(f.node)
    lines = [f"{path}: {len(findings)} node{'s' if len(findings) > 1 else ''} not supported"]
    for (op, reason, hint), nodes in groups.items():
        advice = f" ({hint})" if hint else ""
        more = f" and {len(nodes) - NAMED} more (`hwgen check` lists them)" if len(nodes) > NAMED else ""
        lines.append(f"  {op}: {reason}{advice}: {', '.join(nodes[:NAMED])}{more}")
    return "\n".join(lines)


def confirm(path_or_model: str | Path | Model, result: graph.Graph) -> None:
    """Raise UserError unless the graph computes what the ONNX model computes, on one seeded random image.

    Where two experts tie, round-off may send a token to another one; so up to three images are tried.
    """
    model = path_or_model if isinstance(path_or_model, Model) else load(path_or_model)
    tolerance = HALF_TOLERANCE if model.half else TOLERANCE
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        images = {name: rng.standard_normal((1, *shape), np.float32) for name, shape in result.inputs.items()}
        expected = reference(model, images)
        values = graph.evaluate(result, {name: image[0] for name, image in images.items()})
        got = graph.outputs(result, values)
        errors = {name: _error(got[name], expected[name][0]) for name in got}
        worst = max(errors, key=errors.__getitem__)
        if errors[worst] <= tolerance:
            return
    raise UserError(
        f"{model.path}: the graph was not understood (matched only in part): output {worst!r} differs "
        f"from the ONNX model by {errors[worst]:.3g} standard deviations"
    )


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    if got.shape != expected.shape:
        return float("inf")
    error = float(np.abs(got - expected.astype(np.float64)).max() / (expected.astype(np.float64).std() + 1e-6))
    return error if np.isfinite(error) else float("inf")


def _fuse(model: Model) -> tuple[graph.Graph | None, list[Finding]]:
    return fuse(operators(model), image_shapes(model), model.constants, model.outputs, model.ranges)
