"""The proof that a level computes what the file does, on seeded random images of several amplitudes.

Where the two differ by more than a tolerance, the level is computed in float64, and in float32 of images changed by a few
units in the last place: how far those lie apart is what round-off does to this image. An image on which it decides the
output, as where two experts tie or a softmax is steep, tells nothing; every other image must agree.

A file that rounds activations to a grid is proven in three steps: level T, which rounds as the file does, against the file;
the levels behind it against T, both without ranges and steps; and with ranges, of which those levels keep only the ones that
limit a value of theirs, again, less strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import graph
from . import tensor as ir
from .errors import UserError
from .importer.importer import import_program
from .importer.load import Model, load
from .importer.quantised import read_grid
from .importer.reference import Feed, runner

Array = np.ndarray
Level = ir.Program | graph.Graph
Run = Callable[[Feed], dict[str, Array]]

# Of the images: small ones leave a steep softmax flat, large ones reach the bounds of a Clip.
AMPLITUDES, SEEDS = (1.0, 0.1, 10.0), (0, 1, 2)
IMAGES = [(amplitude, (i + turn) % len(SEEDS)) for turn in SEEDS for i, amplitude in enumerate(AMPLITUDES)]
FEW = 64  # elements of an output whose deviation one image does not tell
NOISES = 5  # times the round-off seen is round-off still


@dataclass(frozen=True)
class Rule:
    """How strictly one is held against the other; errors in deviations of the output.

    error: allowed beside round-off. change: of `draws` images, relative, by which round-off is measured. noise: round-off
    beyond which an image tells nothing. largest: the error is that of the worst element, else the root of the mean square.
    passes, fails: images that are enough for a verdict.
    """

    error: float
    change: float = 3e-7
    draws: int = 8
    noise: float = 2e-3
    largest: bool = True
    passes: int = 3
    fails: int = 1


FLOAT = Rule(5e-5)  # right levels of some dozen layers stay below 1e-5
HALF = Rule(2e-2, change=5e-4, noise=2e-2)  # the file computes in 16 bit
# Any element may take the next step of its grid, and move others to theirs: in the file, and not where round-off is measured.
GRID = Rule(1e-3, change=6e-8, draws=4, noise=1e-2, largest=False, fails=5)
HALF_GRID = Rule(2e-2, change=5e-4, draws=4, noise=5e-2, largest=False, fails=5)  # both
# Constants of an activation may be rounded, to a grid too: with a sqrt 2 half a percent off a GELU is a GELU still.
ROUNDED = Rule(1e-2)
# Ranges between the steps of a layer are dropped: many an image exceeds those, the best is held to this.
RANGES = Rule(3e-2, noise=0.0, passes=1)


@dataclass(frozen=True)
class Difference:
    """The largest error of a level, in deviations of the output that has it, and what round-off may explain of it."""

    error: float
    allowed: float
    output: str

    @property
    def wrong(self) -> bool:
        return not self.error <= self.allowed


def confirm(model: Model | str | Path, level: Level, before: Mapping[str, Level] | None = None) -> None:
    """Raise UserError unless a level computes what the file does. before: the levels up to it, to name the one at fault."""
    model = model if isinstance(model, Model) else load(model)
    held = {**(before or {})}
    tensor = held.get("tensor")
    if model.quantised and not _is_tensor(level):
        tensor = held["tensor"] = tensor or import_program(model)[0]
        confirm(model, tensor)
    found = difference(model, level, tensor)
    if found.wrong:
        guilty = next((n for n, v in held.items() if difference(model, v, tensor).wrong), "")
        raise UserError(
            f"{model.path}: the graph was not understood (matched only in part): output {found.output!r} differs from the "
            f"ONNX model by {found.error:.3g} standard deviations" + (f", from level {guilty!r} on" if guilty else "")
        )


def difference(model: Model, level: Level, tensor: Level | None = None) -> Difference:
    """A level against the file; where that rounds to grids, what lies behind level T (`tensor`) against that."""
    exact = ROUNDED if tensor is not None and not _is_tensor(level) and getattr(tensor, "notes", {}).get("rounded") else FLOAT
    if not model.quantised:
        return _compared(model, level, runner(model), HALF if model.half else exact)
    if _is_tensor(level):
        return _compared(model, level, runner(model), HALF_GRID if model.half else GRID)
    first = tensor if isinstance(tensor, ir.Program) else import_program(model)[0]
    bare = _compared(model, _without(level), partial(evaluate, _without(first)), exact)
    return bare if bare.wrong else _compared(model, level, partial(evaluate, _without(first, ranges=True)), RANGES)


def _compared(model: Model, level: Level, run: Run, rule: Rule) -> Difference:
    """The largest difference on images that tell something; without such an image, that on the best of the others."""
    passed: list[Difference] = []
    failed: list[Difference] = []
    untold: list[Difference] = []
    for amplitude, seed in IMAGES:
        feed = _images(model, seed, amplitude)
        wanted = run(feed)
        small = any(a.size < FEW for a in wanted.values())
        more = [run(_images(model, other, amplitude)) for other in SEEDS if other != seed] if small else []
        spread = {name: _deviation([e[name] for e in [wanted, *more]]) for name in model.outputs}
        found, tells = _judged(level, feed, wanted, spread, rule)
        (untold if not tells else failed if found.wrong else passed).append(found)
        if len(passed) == rule.passes or len(failed) == rule.fails:
            break
    if len(failed) == rule.fails or len(failed) > len(passed):
        return max(failed, key=lambda d: d.error)
    return max(passed, key=lambda d: d.error) if passed else min(untold, key=lambda d: d.error)


def _judged(
    level: Level, feed: Feed, wanted: dict[str, Array], spread: dict[str, float], rule: Rule
) -> tuple[Difference, bool]:
    """(the difference for one image, whether that image tells something)."""

    def errors(got: dict[str, Array], right: dict[str, Array]) -> dict[str, float]:
        return {n: _error(rule.largest, got.get(n), right[n], spread[n]) for n in wanted}

    got = evaluate(level, feed)
    error = errors(got, wanted)
    worst = max(error, key=error.__getitem__)
    found = Difference(error[worst], rule.error, worst)
    finite = all(np.isfinite(a).all() for a in wanted.values())
    if not found.wrong or not finite or not rule.noise or not _fits(got.get(worst), wanted[worst]):
        return found, finite and (not found.wrong or rule.noise > 0)
    exact = evaluate(level, feed, np.float64)
    error = {n: min(e, error[n]) for n, e in errors(exact, wanted).items()}
    rng = np.random.default_rng(0)
    noise = errors(got, exact)
    for _ in range(rule.draws):
        changed = {n: _changed(a, rule.change, rng) for n, a in feed.items()}
        noise = {n: max(e, noise[n]) for n, e in errors(evaluate(level, changed), exact).items()}
    allowed = {n: rule.error + NOISES * min(e, rule.noise) for n, e in noise.items()}
    worst = max(error, key=lambda n: error[n] / allowed[n])
    return Difference(error[worst], allowed[worst], worst), max(noise.values()) <= rule.noise


def _changed(array: Array, by: float, rng: np.random.Generator) -> Array:
    return array * rng.uniform(1 - by, 1 + by, array.shape).astype(np.float32) if array.dtype.kind == "f" else array


def _is_tensor(level: Level) -> bool:
    return isinstance(level, ir.Program) and not any(isinstance(n.op, ir.Layer) for n in level.nodes())


def _without(level: Level, ranges: bool = False) -> Level:
    """A level of a quantised file whose grids have no steps; without `ranges`, no bounds either."""
    if isinstance(level, graph.Graph):
        nodes = [
            replace(n, low=-np.inf, high=np.inf) if isinstance(n, graph.Clip) and n.name in level.ranges else n
            for n in level.nodes
        ]
        return replace(level, nodes=nodes, ranges={})
    t = ir.Builder()
    made: dict[ir.Node, ir.Ref] = {}
    for n in level.nodes():
        x = [t.through(r.layout, made[r.node]) for r in n.operands]
        grid = read_grid(n.ref) if not ranges and isinstance(n.op, ir.Map) and n.op.function in ("mul", "min") else None
        if grid is not None and grid[0].constant is None:
            made[n] = t.through(grid[0].layout, made[grid[0].node])
        elif n.op == ir.Map("round") or (not ranges and getattr(n.op, "step", 0)):
            made[n] = x[0]
        else:
            made[n] = n.ref if isinstance(n.op, ir.Const) else t.node(n.op, *x)
    return ir.Program({name: t.through(r.layout, made[r.node]) for name, r in level.outputs.items()})


def evaluate(level: Level, images: Mapping[str, Array], dtype: Any = np.float32) -> dict[str, Array]:
    """A level's outputs for one image. The row graph's have no batch axis."""
    if isinstance(level, ir.Program):
        return ir.evaluate(level, dict(images), dtype)[0]
    shaped = {name: images[name].reshape(shape) for name, shape in level.inputs.items()}
    return graph.outputs(level, graph.evaluate(level, shaped, dtype))


def _images(model: Model, seed: int, amplitude: float) -> Feed:
    """Inputs in the file's shapes: normal numbers times the amplitude; bytes where it wants integers, up to a tenth of them
    for the small amplitude; 0 or 1 where it wants a single one."""
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for name, shape in model.inputs.items():
        kind = model.kinds[name]
        if kind.kind == "f":
            feed[name] = np.float32(amplitude) * rng.standard_normal(shape, np.float32)
        else:
            most = 256 if kind == np.uint8 else 128
            limit = 2 if kind.kind == "b" or np.prod(shape) == 1 else int(most * min(amplitude, 1))
            feed[name] = rng.integers(0, limit, shape).astype(kind)
    return feed


def _deviation(arrays: list[Array]) -> float:
    """Of an output over its elements and images; never below a thousandth of its size, which a constant output has."""
    flat = np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays])
    return max(float(flat.std()), 1e-3 * float(np.sqrt(np.mean(flat**2))), 1e-6)


def _fits(got: Array | None, expected: Array) -> bool:
    """Whether it has the shape that the file gives, with the batch axis or without."""
    return got is not None and got.shape in (expected.shape, expected.shape[1:])


def _error(largest: bool, got: Array | None, expected: Array, spread: float) -> float:
    if got is None or not _fits(got, expected) or not np.isfinite(got).all():
        return float("inf")
    error = np.abs(got.reshape(-1) - expected.reshape(-1).astype(np.float64))
    found = float(error.max(initial=0.0) if largest else np.sqrt(np.mean(error**2))) / spread
    return found if np.isfinite(found) else float("inf")
