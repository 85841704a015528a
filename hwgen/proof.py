"""The proof that a level computes what the file does, on seeded random images.

A file that rounds activations to a grid is proven in two steps: level T, which rounds as the file does, against the file;
the levels behind it, which keep of a grid the range alone, against T without the rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import graph
from . import tensor as ir
from .errors import UserError
from .importer.importer import import_program
from .importer.load import Model, load
from .importer.reference import Feed, runner

Array = np.ndarray
Level = ir.Program | graph.Graph

# Largest error against the file, in deviations of the output: float32 round-off through some dozen layers stays below
# 1e-4; a model that computes in 16 bit rounds more, and one that rounds to a grid may take the next step of it anywhere.
TOLERANCE = 2e-3
HALF_TOLERANCE = 5e-2
GRID_TOLERANCE = 5e-2  # of the root mean square: single elements of a grid mean nothing
SEEDS = (0, 1, 2)
FEW = 64  # elements of an output whose deviation one image does not tell
ROUND_OFF = 20  # times what float32 changes against float64 is round-off still, up to
MOST_ROUND_OFF = 0.02  # deviations


def confirm(model: Model | str | Path, level: Level, before: Mapping[str, Level] | None = None) -> None:
    """Raise UserError unless a level computes what the file does. before: the levels up to it, to name the one at fault.

    Where two experts tie, round-off may send a token to another one; so up to three images are tried.
    """
    model = model if isinstance(model, Model) else load(model)
    held = {**(before or {})}
    steps = [level]
    if model.quantised and not _is_tensor(level):
        steps.insert(0, held.get("tensor") or import_program(model)[0])
    for step in steps:
        error, output = difference(model, step, steps[0])
        if error > _tolerance(model, step):
            wrong = (n for n, v in held.items() if difference(model, v, steps[0])[0] > _tolerance(model, v))
            guilty = next(wrong, "")
            raise UserError(
                f"{model.path}: the graph was not understood (matched only in part): output {output!r} differs from the "
                f"ONNX model by {error:.3g} standard deviations" + (f", from level {guilty!r} on" if guilty else "")
            )


def difference(model: Model, level: Level, tensor: Level | None = None) -> tuple[float, str]:
    """(largest error of a level against the file, in deviations of the output; that output), on the best of three images.

    The first image that is within tolerance ends it. tensor: level T, against which what comes after it is held where the
    file rounds.
    """
    run = runner(model)
    if model.quantised and not _is_tensor(level):
        run = partial(evaluate, _unrounded(tensor if isinstance(tensor, ir.Program) else import_program(model)[0]))
    images = [_images(model, seed) for seed in SEEDS]
    expected = {0: run(images[0])}
    if any(a.size < FEW for a in expected[0].values()):
        expected |= {i: run(images[i]) for i in range(1, len(SEEDS))}
    best = (np.inf, next(iter(model.outputs)))
    for i, feed in enumerate(images):
        if i not in expected:
            expected[i] = run(feed)
        spread = {name: _deviation([e[name] for e in expected.values()]) for name in model.outputs}
        errors = _errors(model, level, feed, expected[i], spread)
        name = max(errors, key=errors.__getitem__)
        best = min(best, (errors[name], name))
        if best[0] <= _tolerance(model, level):
            break
    return best


def _is_tensor(level: Level) -> bool:
    return isinstance(level, ir.Program) and not any(isinstance(n.op, ir.Layer) for n in level.nodes())


def _unrounded(program: ir.Program) -> ir.Program:
    """Level T whose grids keep their ranges and lose their steps."""
    made: dict[ir.Node, ir.Node] = {}
    for n in program.nodes():
        op = ir.Map("float") if n.op == ir.Map("round") else n.op
        made[n] = ir.Node(op, tuple(ir.Ref(made[r.node], r.layout) for r in n.operands), n.shape, n.dtype)
    return ir.Program({name: ir.Ref(made[r.node], r.layout) for name, r in program.outputs.items()})


def evaluate(level: Level, images: Mapping[str, Array], dtype: Any = np.float32) -> dict[str, Array]:
    """A level's outputs for one image. The row graph's have no batch axis."""
    if isinstance(level, ir.Program):
        return ir.evaluate(level, dict(images), dtype)[0]
    shaped = {name: images[name].reshape(shape) for name, shape in level.inputs.items()}
    return graph.outputs(level, graph.evaluate(level, shaped, dtype))


def _images(model: Model, seed: int) -> Feed:
    """Inputs in the file's shapes: normal numbers; bytes where it wants integers, 0 or 1 where it wants a single one."""
    rng = np.random.default_rng(seed)
    feed = {}
    for name, shape in model.inputs.items():
        kind = model.kinds[name]
        if kind.kind == "f":
            feed[name] = rng.standard_normal(shape, np.float32)
        else:
            limit = 2 if kind.kind == "b" or np.prod(shape) == 1 else 128
            feed[name] = rng.integers(0, limit, shape).astype(kind)
    return feed


def _errors(
    model: Model, level: Level, images: Feed, expected: dict[str, Array], spread: dict[str, float]
) -> dict[str, float]:
    """Error of each output in its deviations; where that is too much, less what is round-off in this very computation."""
    got, grid = evaluate(level, images), model.quantised and _is_tensor(level)
    errors = {name: _error(grid, got.get(name), expected[name], spread[name]) for name in expected}
    if _tolerance(model, level) < max(errors.values()) < np.inf:
        exact = evaluate(level, images, np.float64)
        for name in errors:
            rounded = ROUND_OFF * _error(grid, got[name], exact[name], spread[name])
            errors[name] -= min(rounded, MOST_ROUND_OFF)
    return errors


def _tolerance(model: Model, level: Level) -> float:
    if model.quantised:  # between the steps of a layer, ranges end within a step of where the file has them
        return GRID_TOLERANCE
    return HALF_TOLERANCE if model.half else TOLERANCE


def _deviation(arrays: list[Array]) -> float:
    """Of an output over its elements and images; never below a thousandth of its size, which a constant output has."""
    flat = np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays])
    return max(float(flat.std()), 1e-3 * float(np.sqrt(np.mean(flat**2))), 1e-6)


def _error(grid: bool, got: Array | None, expected: Array, spread: float) -> float:
    if got is None or got.shape not in (expected.shape, expected.shape[1:]) or not np.isfinite(got).all():
        return float("inf")
    error = np.abs(got.reshape(-1) - expected.reshape(-1).astype(np.float64))
    largest = float(np.sqrt(np.mean(error**2)) if grid else error.max(initial=0.0)) / spread
    return largest if np.isfinite(largest) else float("inf")
