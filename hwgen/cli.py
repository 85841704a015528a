"""The command line: a thin layer over library functions of the same names. Exit codes are in `main`."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from . import __version__, doctor
from .errors import Mismatch, UserError

GOOD, FAILED, USER_FAULT, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. 0: good; 1: a check failed; 2: the user's input is at fault; 3: a fault of hwgen itself."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set signal handlers
        return _main(arguments)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _main(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame) -> None:
    """Leave as an exception does, so that files half-written are removed."""
    raise SystemExit(TERMINATED)


def _main(arguments: list[str] | None) -> int:
    try:
        options = parser().parse_args(arguments)
        code = options.command(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"hwgen: error: {_line(error)}", file=sys.stderr)
        return USER_FAULT
    except Mismatch as error:
        print(f"hwgen: mismatch: {_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("hwgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except SystemExit as exit:  # argparse: --help, --version or an error already told
        return exit.code if isinstance(exit.code, int) else USER_FAULT
    except Exception:
        traceback.print_exc()
        print("hwgen: this is a fault of hwgen, not of your input", file=sys.stderr)
        return BUG


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str):
        print(f"hwgen: error: {message} ({self.prog} --help tells more)", file=sys.stderr)
        raise SystemExit(USER_FAULT)


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = _Parser(prog="hwgen", description="FPGA accelerators for Vision Transformers, generated from ONNX.")
    top.add_argument("--version", action="version", version=f"hwgen {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__.strip("_"), help=description, description=description)
        sub.set_defaults(command=function)
        return sub

    sub = command(_build, "ONNX to bundle: program, weights, Verilog, report")
    sub.add_argument("models", nargs="+", metavar="[TASK=]MODEL.onnx", help="one model, or several tasks of one network")
    sub.add_argument("--board", default="zcu104", metavar="NAME", help="default: %(default)s")
    sub.add_argument("-o", "--output", type=Path, metavar="BUNDLE", help="default: the first model's name with .bundle")
    sub.add_argument("--calibrate", type=Path, metavar="DATA.npz", help="images that set the scales")
    what = "a field of Config or Quantisation"
    sub.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help=what)
    sub.add_argument("--batch", type=int, default=1, metavar="N", help="images that share a run, and the experts' weights")
    sub.add_argument("--explore", action="store_true", help="search the Config even where the board stores one that fits")
    sub.add_argument("--stop-after", metavar="STEP", help="end after this step; no bundle is written")

    sub = command(_run, "run a bundle: golden model, machine model or simulated RTL")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("--engine", required=True, metavar="golden|machine|rtl")
    sub.add_argument("--input", type=Path, required=True, metavar="IN.npz", help="one array per ONNX input")
    sub.add_argument("--output", type=Path, metavar="OUT.npz", help="one float32 array per ONNX output")
    _selection(sub)
    sub.add_argument("--dram", default="board", metavar="board|unlimited", help="the memory beside the RTL")
    sub.add_argument("--trace", type=Path, metavar="FILE.json", help="rtl: when each instruction ran, where the cycles went")
    sub.add_argument("--progress", action="store_true", help="tell how far it is even where stderr is no terminal")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command(_compare, "per-layer error of a bundle against its float model")
    sub.add_argument("model", type=Path, metavar="MODEL.onnx")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("--input", type=Path, required=True, metavar="IN.npz")
    sub.add_argument(
        "--sensitivity", action="store_true", help="follow each layer's own error to the outputs on all images, not one"
    )
    _selection(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command(_check, "what of a model is supported, what is not, and why")
    sub.add_argument("model", type=Path, metavar="MODEL.onnx")

    sub = command(_report, "estimated cycles, images per second, resources, traffic, energy of a bundle")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("--trace", type=Path, metavar="FILE.json", help="measured runs, from hwgen run --trace")
    sub.add_argument("--html", type=Path, metavar="FILE.html", help="write the page with timeline and roofline there")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    for function, what in (
        (_synth, "resources and logic depth of a bundle's Verilog, by open synthesis (Yosys)"),
        (_timing, "the clock of a bundle's Verilog on its board's part, estimated from open data (needs Yosys)"),
    ):
        sub = command(function, what)
        sub.add_argument("bundle", type=Path, metavar="BUNDLE")
        sub.add_argument("--unit", metavar="NAME", help="only this unit, as the table names it")
        sub.add_argument("--jobs", type=int, default=1, metavar="N", help="units at a time; default: %(default)s")
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command(_bitstream, "a bundle's bitstream for a board of Lattice's ECP5, by open tools (Yosys, nextpnr)")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE.bit", help="default: the bundle's name with .bit")
    sub.add_argument("--seed", type=int, default=1, metavar="N", help="of the placement; default: %(default)s")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command(_disasm, "the program of a bundle, readable")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("--task", metavar="T")

    sub = command(_package, "a bundle with driver, self-test and notebook as a folder for the board")
    sub.add_argument("bundle", type=Path, metavar="BUNDLE")
    sub.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: the bundle's name with .package")
    sub.add_argument("--bitstream", type=Path, metavar="FILE.bit", help="with its .hwh beside it")
    sub.add_argument("--input", type=Path, metavar="IN.npz", help="images of the self-test; default: seeded noise")

    sub = command(_boards, "the known boards")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")

    sub = command(_explore, "search the Configs of a board for a network: estimated cycles against resources")
    sub.add_argument("models", nargs="+", metavar="[TASK=]MODEL.onnx", help="one model, or several tasks of one network")
    sub.add_argument("--board", default="zcu104", metavar="NAME", help="default: %(default)s")
    sub.add_argument("--target-fps", type=float, metavar="F", help="choose the smallest Config that gives F images a second")
    sub.add_argument("--batch", default="1", metavar="N,...", help="images that share a run; of several each is tried")
    sub.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each processor)")
    sub.add_argument("--cluster", metavar="tcp://HOST:PORT", help="a Dask cluster's scheduler, instead of processes")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command(_doctor, "what this machine lacks, and the command that installs it")

    sub = command(_example, "write an example network with its images")
    sub.add_argument("name", metavar="NAME", nargs="?", help="without it: list the examples")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE.onnx")

    sub = command(_demo, "build the trained example, simulate its RTL and compare with the float model")
    sub.add_argument("--images", type=int, default=4, metavar="N", help="default: %(default)s")
    sub.add_argument("--keep", type=Path, metavar="FOLDER", help="leave model, images and bundle there")
    return top


def _selection(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--task", metavar="T", help="needed where the bundle holds several")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N images")


# --- commands ----------------------------------------------------------------------------------------------------


def _build(options) -> int:
    from . import build, report

    models = parse_models(options.models)
    output = options.output or Path(next(iter(models.values())).stem + ".bundle")

    def progress(step: str, seconds: float, summary: str) -> None:
        print(f"{step:10} {seconds:6.1f} s  {summary}", file=sys.stderr, flush=True)

    state = build.build(
        models,
        output,
        board=options.board,
        calibrate=options.calibrate,
        settings=parse_settings(options.settings),
        batch=options.batch,
        search=options.explore,
        stop_after=options.stop_after,
        progress=progress,
    )
    for warning in state.warnings:
        _warn(warning)
    if state.report:
        print(report.text(state.report))
    return GOOD


def _run(options) -> int:
    from . import run
    from .files import check_writable, read_images, write_atomic, write_npz

    run.check_engine(options.engine)
    if options.trace is not None and options.engine != "rtl":
        raise UserError(f"--trace: the engine {options.engine} has no cycles; rtl has")
    for path in (options.output, options.trace):
        if path is not None:
            check_writable(path)
    bundle = run.open_bundle(options.bundle)
    task = run.choose_task(bundle, options.task)
    images = read_images(options.input, run.inputs(bundle, task), _limit(options))
    show, cycles = _counter(options.engine, options.progress)
    result = run.run(bundle, options.engine, images, task, show, options.dram, cycles)
    if options.output is not None:
        write_npz(options.output, result.outputs)
    if options.trace is not None:
        write_atomic(options.trace, json.dumps(result.trace).encode())
    summary = result.summary(run.config(bundle))
    print(json.dumps(summary) if options.json else run.text(summary))
    return GOOD


def _compare(options) -> int:
    from dataclasses import asdict

    from sim import golden

    from . import compare, run
    from .files import read_images
    from .frontend import import_model

    bundle = run.open_bundle(options.bundle)
    task = run.choose_task(bundle, options.task)
    graph, integers = import_model(options.model), run.integer_graph(bundle, task)
    run.check_origin(bundle, task, options.model, graph, warn=_warn)
    images = read_images(options.input, run.inputs(bundle, task), _limit(options))
    count = len(next(iter(images.values())))
    found = compare.compare(graph, integers, images, golden.run, count if options.sensitivity else 1)
    print(json.dumps(_finite(asdict(found))) if options.json else compare.text(found))
    return GOOD


def _check(options) -> int:
    from .frontend import check

    findings = check(options.model)
    for finding in findings:
        print(finding)
    if findings:
        nodes = "1 node is" if len(findings) == 1 else f"{len(findings)} nodes are"
        raise UserError(f"{options.model}: {nodes} not supported")
    print(f"{options.model}: every node is supported")
    return GOOD


def _report(options) -> int:
    from . import report, report_html, run
    from .files import check_writable, write_atomic

    if options.html is not None:
        check_writable(options.html)
    bundle = run.open_bundle(options.bundle)
    found = report.at_clock(run.report_of(bundle), run.clock_of(bundle))
    trace = None if options.trace is None else run.read_trace(options.trace, bundle)
    if options.html is not None:
        write_atomic(options.html, report_html.page(found, trace).encode())
    measured = {} if trace is None else {"measured": trace}
    print(json.dumps(found | measured) if options.json else report.text(found, trace))
    return GOOD


def _synth(options) -> int:
    from . import synth

    config, found = _synthesised(options, synth.synthesise)
    print(json.dumps(found.to_dict() | {"config": config.to_dict()}) if options.json else synth.text(found))
    return GOOD


def _timing(options) -> int:
    from . import timing

    config, found = _synthesised(options, timing.estimate)
    print(json.dumps(found.to_dict(config.clock_mhz)) if options.json else timing.text(found, config.clock_mhz))
    return GOOD


def _synthesised(options, function):
    """(the bundle's Config, what a function of Verilog and board makes of it), with the options they share."""
    from . import boards, run

    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs} must be at least 1")
    bundle = run.open_bundle(options.bundle)
    board, cache = boards.of_bundle(bundle.files, bundle.path), run.synthesis_cache()
    shared = {"only": options.unit, "cache": cache, "jobs": options.jobs}
    progress = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    return run.config(bundle), function(run.verilog(bundle), board, progress=progress, **shared)


def _bitstream(options) -> int:
    from . import bitstream, boards, run
    from .files import check_writable

    bundle = run.open_bundle(options.bundle)
    output = options.output or options.bundle.with_suffix(".bit")
    if output.suffix != ".bit":
        raise UserError(f"-o {output}: the name of a bitstream ends in .bit, its reports stand beside it")
    check_writable(output)
    made = bitstream.bitstream(
        run.verilog(bundle),
        run.config(bundle),
        boards.of_bundle(bundle.files, bundle.path),
        output,
        seed=options.seed,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(made.to_dict()) if options.json else bitstream.text(made))
    return GOOD


def _disasm(options) -> int:
    from . import report, run

    bundle = run.open_bundle(options.bundle)
    for name in bundle.tasks if options.task is None else [run.choose_task(bundle, options.task)]:
        if name:
            print(f"task {name}")
        print(report.listing(run.instructions(bundle, name), run.origins(bundle, name)))
    return GOOD


def _package(options) -> int:
    from . import package

    output = options.output or options.bundle.with_suffix(".package")
    names = package.package(options.bundle, output, options.bitstream, options.input)
    print(f"{output}: {len(names)} files; its README.md says what to do on the board")
    return GOOD


def _boards(options) -> int:
    from . import boards

    print(json.dumps(boards.to_dict()) if options.json else boards.table())
    return GOOD


def _explore(options) -> int:
    from . import boards, build, explore
    from .planner import check_batch

    models, board = parse_models(options.models), boards.load(options.board)
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    if options.target_fps is not None and not (math.isfinite(options.target_fps) and options.target_fps > 0):
        raise UserError(f"--target-fps {options.target_fps}: must be a positive number")
    try:
        batches = tuple(check_batch(int(text)) for text in options.batch.split(","))
    except ValueError:
        raise UserError(f"--batch {options.batch}: whole numbers, with commas between them") from None
    state = build.build(models, Path("unused"), board=options.board, stop_after="quantise")
    front = explore.explore(
        state.integers,
        board,
        batches=batches,
        target=options.target_fps,
        workers=options.workers or explore.default_workers(),
        cluster=options.cluster,
        progress=_counter("explore", True, "Config")[0],
    )
    best = explore.choose(front, options.target_fps)
    line = explore.command(options.models, options.board, best, board)
    if options.json:
        points = [p.to_dict() for p in front]
        print(json.dumps({"board": board.name, "front": points, "choice": best.to_dict(), "command": line}))
        return GOOD
    print(explore.text(front, best))
    print(f"\n{line}")
    return GOOD


def _doctor(options) -> int:
    text, good = doctor.examine()
    print(text)
    return GOOD if good else FAILED


def _example(options) -> int:
    from .example import EXAMPLES, write

    if options.name is None:
        for name, example in EXAMPLES.items():
            print(f"{name:20} {example.description}")
        return GOOD
    if options.output is None:
        raise UserError("example: name the file to write with -o FILE.onnx")
    for path in write(options.name, options.output):
        print(path)
    return GOOD


def _demo(options) -> int:
    if options.images < 1:
        raise UserError(f"--images {options.images}: must be at least 1")
    from .demo import demo

    return GOOD if demo(options.images, options.keep) else FAILED


# --- options -----------------------------------------------------------------------------------------------------


def parse_models(texts: list[str]) -> dict[str, Path]:
    """Task name -> file from MODEL or TASK=MODEL texts. Raises UserError for a bad, missing or doubled task name."""
    if len(texts) == 1 and ("=" not in texts[0] or Path(texts[0]).exists()):
        return {"": Path(texts[0])}
    models: dict[str, Path] = {}
    for text in texts:
        task, equals, path = text.partition("=")
        if not equals:
            raise UserError(f"{text}: several models are several tasks, written TASK=MODEL.onnx")
        if not TASK_NAME.fullmatch(task):
            raise UserError(f"{text}: {task!r} is no task name (letters, digits, _ . -)")
        if task in models:
            raise UserError(f"{text}: task {task!r} is named twice")
        if not path:
            raise UserError(f"{text}: task {task!r} names no file")
        models[task] = Path(path)
    return models


def parse_settings(texts: list[str]) -> dict[str, str]:
    """Config field -> text from `--set KEY=VALUE`."""
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set {text}: written as KEY=VALUE")
        settings[key] = value
    return settings


def _limit(options) -> int | None:
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be at least 1")
    return options.limit


def _counter(engine: str, always: bool, what: str = "image"):
    """Progress on a terminal, or `always`; else nothing: functions for images done and for cycles simulated."""
    if not (always or sys.stderr.isatty()):
        return lambda done, total: None, None
    begin, ended = ("\r", "") if sys.stderr.isatty() else ("", "\n")
    first: list[tuple[float, int]] = []  # when the first count came: compiling is over

    def images(done: int, total: int) -> None:
        print(f"{begin}{engine}: {what} {done} of {total}", end="\n" if done == total else ended, file=sys.stderr, flush=True)

    def cycles(run: int, runs: int, count: int) -> None:
        if not count:
            first[:] = []
        first.append((time.monotonic(), count))
        elapsed = first[-1][0] - first[0][0]
        rate = f", {(count - first[0][1]) / elapsed:,.0f} cycles/s" if elapsed else ""
        print(f"{begin}{engine}: run {run + 1} of {runs}, {count:,} cycles{rate}", end=ended, file=sys.stderr, flush=True)

    return images, cycles


def _warn(message: str) -> None:
    print(f"hwgen: warning: {message}", file=sys.stderr)


def _finite(value):
    """JSON knows no infinity: null instead."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(error: Exception) -> str:
    """The message on one line, whatever a library put into it."""
    return " ".join(str(error).split())
