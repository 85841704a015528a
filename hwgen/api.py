"""What `import hwgen` offers: build, check, inspect and Bundle, NumPy in and out; the command line is a layer over it."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from . import boards, compare, files, images, inspection, levels, program, report, run, steps, verify
from .arguments import check_task
from .config import Config
from .distributions import Watch
from .errors import Finding, UserError
from .importer.external import everything
from .importer.load import load, read
from .importer.reference import reference
from .run import Cycles, Progress, Run
from .timeline import Waves

Array = np.ndarray
Model = Any  # a path, an onnx.ModelProto, or the bytes of a file
Tell = Callable[[str], None]
MODEL_FILE = "model.onnx"  # what a model is called that came without a file


def build(
    model: Model | Mapping[str, Model],
    output: str | Path | None = None,
    *,
    board: str | Path = "zcu104",
    calibrate: Any = None,
    settings: Mapping[str, Any] | None = None,
    batch: int = 1,
    explore: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = (),
    verify: bool = False,
    progress: Callable[[str, float, str], None] = lambda step, seconds, summary: None,
) -> Bundle:
    """The bundle of an ONNX model for a board.

    model: a path, an onnx.ModelProto or the bytes of a file; a dict of task names to several that share weights. output:
    the folder to write; without it the bundle lives in a temporary one as long as the object (`Bundle.save` keeps it).
    calibrate: images that set the scales, anything that `Bundle.run` takes; without them seeded noise does, and a warning
    says so. settings: fields of Config or Quantisation, as `--set` takes them. batch: images that share a run. explore:
    search the Config even where the board stores one that fits. shapes: of inputs whose sizes the file leaves open, with
    the batch axis. outputs: values of the model to end in, instead of its own outputs. verify: run the program on one
    calibration image, and raise agreement.Disagreement unless it gives what golden gives. progress: called after each step with
    its name, its seconds and a line on its artefact. Raises UserError, before any long work where it can.
    """
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    for task in models if isinstance(model, Mapping) else ():
        check_task(task)
    with ExitStack() as stack:
        paths = {task: stack.enter_context(model_file(given)) for task, given in models.items()}
        folder = None
        if output is None:
            folder = tempfile.mkdtemp(prefix="hwgen-bundle-")
            undo = stack.enter_context(ExitStack())
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            output = Path(folder) / f"{next(iter(paths.values())).stem}.bundle"
        state = steps.build(
            paths,
            Path(output),
            board=str(board),
            calibrate=None if calibrate is None else images.collect(calibrate),
            settings={name: _text(value) for name, value in (settings or {}).items()},
            batch=batch,
            search=explore,
            shapes=dict(shapes or {}),
            outputs=outputs,
            verify=verify,
            progress=progress,
        )
        for message in state.warnings:
            warnings.warn(message, stacklevel=2)
        bundle = Bundle(output)
        if folder is not None:
            undo.pop_all()
            weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)
        return bundle


def check(
    model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None, outputs: Sequence[str] = ()
) -> list[Finding]:
    """Every node of a model that cannot be built, with level, reason and what helps; empty if all can be.

    shapes, outputs: as `build` takes them.
    """
    with model_file(model) as path:
        return levels.check(path, shapes=dict(shapes or {}), outputs=outputs)


def inspect(
    model: Model,
    board: str | Path = "zcu104",
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = (),
    calibrate: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """A page (HTML) on every node of a model: where it goes, what it costs on the board, whether the whole fits.

    Arguments as in `build`; without `calibrate` seeded noise sets the scales, which costs no cycle. Raises UserError for a file
    that cannot be read; what is not supported or does not fit is on the page.
    """
    given = None if calibrate is None else images.collect(calibrate)
    texts = {name: _text(value) for name, value in (settings or {}).items()}
    with model_file(model) as path:
        made = inspection.inspect(
            path, str(board), shapes=shapes or {}, outputs=outputs, calibrate=given, settings=texts
        )
        return made.page


class Bundle:
    """A bundle that was checked: every file against its hash, the Config against this hwgen."""

    def __init__(self, path: str | Path):
        """Open the bundle directory `path`. Raises UserError naming the file that is missing or damaged."""
        self._held = run.open_bundle(Path(path))

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._held.path

    @property
    def manifest(self) -> dict[str, Any]:
        """The JSON object: Config, memory and register map, tasks, inputs and outputs, hashes."""
        return self._held.manifest

    @property
    def config(self) -> Config:
        return run.config(self._held)

    @property
    def board(self) -> boards.Board:
        """The board that it was built for."""
        return boards.of_bundle(self._held.files, self.path)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks; one "" where the model has one. Several with commas between name a run of all of them."""
        return self._held.tasks

    def inputs(self, task: str | None = None) -> dict[str, tuple[int, ...]]:
        """Input names with shapes, without the batch axis. task: needed where the bundle holds several, here and below."""
        return run.inputs(self._held, run.choose_task(self._held, task))

    def outputs(self, task: str | None = None) -> list[str]:
        """Names of the outputs."""
        return self._held.outputs(run.choose_task(self._held, task))

    def verilog(self) -> dict[str, str]:
        """The design: file name -> text."""
        return run.verilog(self._held)

    # --- what can be done with it ---------------------------------------------------------------------------------

    def run(
        self,
        source: Any,
        engine: str = "golden",
        *,
        task: str | None = None,
        limit: int | None = None,
        dram: str = "board",
        progress: Progress = lambda done, total: None,
        cycles: Cycles | None = None,
        waves: str | Path | None = None,
        window: tuple[int, int | None] | None = None,
        warn: Tell = warnings.warn,
    ) -> Run:
        """All images through an engine: golden, machine or rtl. `outputs` of the result: name -> float32 [images, ...].

        source: an .npz with an array [images, ...] for each input, a folder of images, a dict of such arrays, one array for
        a network of one input, or an iterable of dicts or arrays. limit: only the first so many images. dram: the memory
        beside the RTL, board or unlimited. progress: told images done and in all; cycles: run, runs and cycles of the RTL.
        waves: an FST file for all signals of the RTL; window: only these cycles of every run, first and last (not in it).
        warn: told where images lie outside the range that the bundle was calibrated for.
        Raises UserError.
        """
        run.check_engine(engine)
        seen = None if waves is None else Waves(Path(waves), window)
        if seen is not None:
            run.check_waves(seen, engine)
        elif window is not None:
            raise UserError("--cycles: a window of --waves FILE.fst")
        task = run.choose_task(self._held, task)
        given = images.read(source, run.inputs(self._held, task), check_limit(limit), self._held.types(task))
        for message in run.outside(self._held, task, given):
            warn(message)
        return run.run(self._held, engine, given, task, progress, dram, cycles, seen)

    def compare(
        self,
        model: Model,
        source: Any,
        *,
        task: str | None = None,
        limit: int | None = None,
        sensitivity: bool = False,
        distributions: bool = False,
        warn: Tell = warnings.warn,
    ) -> compare.Comparison:
        """The error of every layer against the float model that it was built from, on images as `run` takes them.

        sensitivity: follow each layer's own error to the outputs on all images, not on one. distributions: how the values of
        each layer lie on the grid that the array reads them on, too. warn: told where `model` is
        another file than was built. Raises UserError.
        """
        from .sim import golden

        task, held = run.choose_task(self._held, task), images.collect(source, check_limit(limit))
        if task not in self.tasks:
            raise UserError(f"{self.path}: {task!r} is a run of several tasks: compare one with its model")
        how: dict[str, Any] = run.load_options(self._held, task) | {"like": images.shapes(held)}
        with model_file(model) as path:
            graph, integers = levels.import_model(path, **how), run.integer_graph(self._held, task)
            run.check_origin(self._held, task, path, graph, warn)
            given = images.read(held, run.inputs(self._held, task), limit, self._held.types(task))
            expected = reference(load(path, **how), given)
        count = len(next(iter(given.values())))
        watch = Watch(integers) if distributions else None
        return compare.compare(graph, integers, given, golden.run, count if sensitivity else 1, expected, watch)

    def verify(
        self,
        source: Any,
        engine: str = "golden",
        *,
        task: str | None = None,
        limit: int | None = None,
        dram: str = "board",
        max_cycles: int | None = None,
        min_snr: float | None = None,
        model: Model | None = None,
        labels: Any = None,
        min_accuracy: float | None = None,
        progress: Progress = lambda done, total: None,
        cycles: Cycles | None = None,
    ) -> verify.Verification:
        """Run images and check what comes out; `passed` of the result says whether all of it is as it should be.

        engine: machine and rtl are held against golden, bit for bit. max_cycles: an image may take, measured with rtl, else
        by the cycle model. min_snr: dB of every output against the float model: `model`, or else the arrays in `source`
        that are named as the outputs. labels: the name of an array in `source` or the array, or a dict of output names to
        such; with min_accuracy, the share from 0 to 1 that must be right. The rest as in `run`. Raises UserError.
        """
        run.check_engine(engine)
        if (labels is None) != (min_accuracy is None):
            raise UserError("labels and min_accuracy: one needs the other")
        _check_number("max_cycles", max_cycles, 1, math.inf)
        _check_number("min_snr", min_snr, -math.inf, math.inf)
        _check_number("min_accuracy", min_accuracy, 0, 1)
        task, held = run.choose_task(self._held, task), images.collect(source, check_limit(limit))
        given = images.read(held, run.inputs(self._held, task), limit, self._held.types(task))
        answers = {} if labels is None else self._labels(task, labels, held)
        expected = None if min_snr is None else self._expected(task, model, given, held)
        count = len(next(iter(given.values())))
        about = (str(self.path), engine, task, count)
        try:
            found = run.run(self._held, engine, given, task, progress, dram, cycles)
        except RuntimeError as error:  # the simulated hardware stopped with an error, or does not halt
            return verify.Verification(*about, 0.0, (verify.Check(engine, False, str(error)),))
        checks: list[verify.Check] = []
        if engine != "golden":
            checks += verify.equal(found.outputs, run.run(self._held, "golden", given, task).outputs)
        if max_cycles is not None:
            measured = found.summary(self.config).get("cycles")
            estimate = run.report_of(self._held)["tasks"][task]["cycles"]
            checks.append(verify.cycles(measured or [estimate], max_cycles, measured is not None))
        if expected is not None and min_snr is not None:
            checks += verify.snr(found.outputs, expected, min_snr)
        if min_accuracy is not None:
            checks += [verify.accuracy(name, found.outputs[name], a, min_accuracy) for name, a in answers.items()]
        return verify.Verification(*about, round(found.seconds, 3), tuple(checks))

    def report(self) -> dict[str, Any]:
        """Estimated cycles, images a second, traffic, energy and resources; at the clock that `timing` found, if it ran."""
        return report.at_clock(run.report_of(self._held), run.clock_of(self._held))

    def trace(self, path: str | Path) -> dict[str, Any]:
        """Measured runs that `hwgen run --trace` wrote for this bundle. Raises UserError for any other file."""
        return run.read_trace(Path(path), self._held)

    def synth(self, unit: str | None = None, jobs: int = 1, progress: Tell = lambda line: None) -> Any:
        """Resources and logic depth of the Verilog by Yosys; see hwgen.synth. unit: only this one; jobs: units at a time."""
        from . import synth

        return self._by_units(synth.synthesise, unit, jobs, progress)

    def timing(self, unit: str | None = None, jobs: int = 1, progress: Tell = lambda line: None) -> Any:
        """The clock of the Verilog on the board's part, from open data; see hwgen.timing. Options as in `synth`."""
        from . import timing

        return self._by_units(timing.estimate, unit, jobs, progress)

    def save(self, path: str | Path) -> Bundle:
        """Write a copy to the folder `path`, complete or not at all; returns the bundle that is there."""
        program.save_bundle(Path(path), run.contents(self._held))
        return Bundle(path)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _by_units(self, function: Callable[..., Any], unit: str | None, jobs: int, progress: Tell) -> Any:
        if jobs < 1:
            raise UserError(f"--jobs {jobs} must be at least 1")
        cache = run.synthesis_cache()
        return function(self.verilog(), self.board, progress=progress, only=unit, cache=cache, jobs=jobs)

    def _labels(self, task: str, labels: Any, held: images.Held) -> dict[str, Array]:
        """Output name -> labels, which may be named in place of given."""
        outputs = self.outputs(task)
        if not isinstance(labels, Mapping):
            if len(outputs) > 1:
                raise UserError(
                    f"{self.path}: has outputs {', '.join(outputs)}: say whose labels they are, OUTPUT=NAME"
                )
            labels = {outputs[0]: labels}
        for name in labels:
            if name not in outputs:
                raise UserError(f"{self.path}: has no output {name!r} for labels; it has {', '.join(outputs)}")
        return {name: _array(held, x) if isinstance(x, str) else np.asarray(x) for name, x in labels.items()}

    def _expected(self, task: str, model: Model | None, given: dict[str, Array], held: images.Held) -> dict[str, Array]:
        """What the float model gives."""
        if model is not None:
            if task not in self.tasks:
                raise UserError(f"{self.path}: {task!r} is a run of several tasks: no model has all of their outputs")
            with model_file(model) as path:
                return reference(load(path, **run.load_options(self._held, task), like=images.shapes(held)), given)
        outputs = self.outputs(task)
        if missing := [name for name in outputs if name not in images.shapes(held)]:
            what = f"the float model's output {missing[0]!r}"
            raise UserError(f"{images.called(held)}: holds no array of {what}: put it there, or give the model")
        return {name: _array(held, name) for name in outputs}

    def __repr__(self) -> str:
        return f"hwgen.Bundle({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """A notebook shows what it is and what it is estimated to do."""
        text = escape(report.text(self.report()))
        return f"<b>{escape(files.readable(self.path))}</b> for {escape(self.board.description)}<pre>{text}</pre>"


@contextmanager
def model_file(model: Model) -> Iterator[Path]:
    """The path of a model; one that came without a file is written to a temporary one meanwhile."""
    if isinstance(model, (str, os.PathLike)):
        yield Path(model)
        return
    data = bytes(model) if isinstance(model, (bytes, bytearray, memoryview)) else None
    if data is None:
        if not hasattr(model, "SerializeToString"):
            raise UserError(f"a model is a path, an onnx.ModelProto or bytes, not {type(model).__name__}")
        try:
            data = model.SerializeToString(deterministic=True)
        except Exception:  # of protobuf, by version: a message holds 2 GB at most
            raise UserError(
                "the ModelProto is larger than 2 GB: save it with external data and give the path"
            ) from None
    with tempfile.TemporaryDirectory(prefix="hwgen-model-") as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(data)
        try:
            for tensor, what in everything(read(path)):
                if tensor.data_location == tensor.EXTERNAL:
                    raise UserError(f"{path}: {what} stands in a file beside the model: give the model's path")
            yield path
        except UserError as error:  # the caller knows of no such folder
            error.args = (str(error).replace(str(path), MODEL_FILE), *error.args[1:])
            raise


def check_limit(limit: int | None) -> int | None:
    """The limit, if it is one. Raises UserError."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    return limit


def _array(held: images.Held, name: str) -> Array:
    """An array of the user's images that is no input."""
    if isinstance(held, Path):
        return files.read_npz(held, [name])[name]
    if name not in held:
        raise UserError(f"{images.GIVEN}: hold no array {name!r}; there are {', '.join(held)}")
    return held[name]


def _check_number(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (math.isfinite(value) and least <= value <= most):
        wanted = (
            f"from {least:g} to {most:g}"
            if most < math.inf
            else f"at least {least:g}"
            if least > -math.inf
            else "finite"
        )
        raise UserError(f"{name}={value}: must be {wanted}")


def _text(value: Any) -> str:
    """A setting as `--set` takes it: lists are names with commas between."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
