"""The command line: a thin layer over library functions of the same names. Exit codes are in `main`."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from . import doctor, progress
from .arguments import (
    USER_FAULT,
    parse,
    parse_labels,
    parse_models,
    parse_outputs,
    parse_settings,
    parse_shapes,
    parse_window,
)
from .errors import Mismatch, UserError
from .processes import stoppable

GOOD, FAILED, BUG, INTERRUPTED = 0, 1, 3, 130
POSIX = os.name == "posix"
# A full or closed disk, wherever it shows: no fault of hwgen.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. 0: good; 1: a check failed; 2: the user's input is at fault; 3: a fault of hwgen itself."""
    if hasattr(sys.stdout, "reconfigure"):  # names of files and layers that the terminal's character set has not
        sys.stdout.reconfigure(errors="backslashreplace")
    with stoppable():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    try:
        options = parse(arguments)
        if not POSIX and options.command != "doctor":
            raise UserError("this system has no file locks and process groups, which hwgen uses: on Windows run it in WSL")
        with progress.shown(often=getattr(options, "progress", False)):
            code = COMMANDS[options.command](options)
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
        _drop_output()
        return GOOD
    except OSError as error:
        no_folder = error.errno == errno.ENOENT and error.filename is None  # tempfile found none that can be written
        if error.errno not in REFUSED and not no_folder:
            return _fault()
        if error.filename is None:  # it may be stdout, which Python would try again
            _drop_output()
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"hwgen: error: {where}{error.strerror}", file=sys.stderr)
        return USER_FAULT
    except MemoryError as error:
        print(f"hwgen: error: not enough memory ({str(error) or 'of this machine'})", file=sys.stderr)
        return USER_FAULT
    except SystemExit as exit:  # argparse: --help, --version or an error already told
        return exit.code if isinstance(exit.code, int) else USER_FAULT
    except Exception:
        return _fault()


def _fault() -> int:
    traceback.print_exc()
    print("hwgen: this is a fault of hwgen, not of your input", file=sys.stderr)
    return BUG


def _drop_output() -> None:
    """What Python still holds of stdout goes nowhere, so that it does not fail on it once more at the end."""
    with suppress(OSError, ValueError):  # a stdout of somebody's own has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- commands ----------------------------------------------------------------------------------------------------


def _build(options) -> int:
    from . import report, steps

    models = parse_models(options.models)
    output = options.output or Path(next(iter(models.values())).stem + ".bundle")

    state = steps.build(
        models,
        output,
        board=options.board,
        calibrate=options.calibrate,
        settings=parse_settings(options.settings),
        batch=options.batch,
        search=options.explore,
        stop_after=options.stop_after,
        shapes=parse_shapes(options.shapes),
        outputs=parse_outputs(options.outputs),
        verify=options.verify,
        show=options.show,
        progress=lambda step, seconds, summary: progress.say(f"{step:10} {seconds:6.1f} s  {summary}"),
    )
    for warning in state.warnings:
        _warn(warning)
    if state.report:
        print(report.text(state.report))
    return GOOD


def _run(options) -> int:
    from . import api, perfetto, run
    from .files import check_writable, write_atomic, write_npz

    _check_engine(options)
    if options.trace is not None and options.engine != "rtl":
        raise UserError(f"--trace: the engine {options.engine} has no cycles; rtl has")
    for path in (options.output, options.trace):
        if path is not None:
            check_writable(path)
    bundle = api.Bundle(options.bundle)
    how = {"task": options.task, "limit": options.limit, "dram": options.dram, "warn": _warn}
    how |= {"waves": options.waves, "window": parse_window(options.cycles)}
    result = bundle.run(options.input, options.engine, **how)
    if options.output is not None:
        write_npz(options.output, result.outputs)
    if options.trace is not None:
        viewer = options.trace.name.endswith(perfetto.SUFFIX)
        write_atomic(options.trace, json.dumps(perfetto.events(result.trace) if viewer else result.trace).encode())
    summary = result.summary(bundle.config)
    print(json.dumps(summary) if options.json else run.text(summary))
    return GOOD


def _check_engine(options) -> None:
    """Raise UserError for an unknown engine, and for DRAM's limits with one that has none."""
    from . import run

    run.check_engine(options.engine)
    if options.dram == "unlimited" and options.engine != "rtl":
        raise UserError(f"--dram unlimited: the engine {options.engine} has no DRAM; rtl has")


def _compare(options) -> int:
    from dataclasses import asdict

    from . import api, compare
    from .files import check_writable, readable, write_atomic

    if options.html is not None:
        check_writable(options.html)
    how = {"task": options.task, "limit": options.limit, "sensitivity": options.sensitivity, "warn": _warn}
    with progress.work("compare"):
        found = api.Bundle(options.bundle).compare(options.model, options.input, distributions=options.html is not None, **how)
    if options.html is not None:
        from .pages import compare as compare_page

        page = compare_page.page(found, readable(options.model), readable(options.bundle))
        write_atomic(options.html, page.encode())
    print(json.dumps(_finite(asdict(found))) if options.json else compare.text(found))
    return GOOD


def _verify(options) -> int:
    from . import api
    from .files import check_writable, write_atomic

    _check_engine(options)
    if options.model is not None and options.min_snr is None:
        raise UserError(f"--model {options.model}: the float model for --min-snr DB")
    if options.junit is not None:
        check_writable(options.junit)
    labels = parse_labels(options.labels)
    found = api.Bundle(options.bundle).verify(
        options.input,
        options.engine,
        task=options.task,
        limit=options.limit,
        dram=options.dram,
        max_cycles=options.max_cycles,
        min_snr=options.min_snr,
        model=options.model,
        labels=labels.get("", labels) or None,
        min_accuracy=options.min_accuracy,
    )
    if options.junit is not None:
        write_atomic(options.junit, found.junit())
    print(json.dumps(found.to_dict()) if options.json else found)
    if found.passed:
        return GOOD
    names = ", ".join(check.name for check in found.failed)
    raise Mismatch(f"{len(found.failed)} of {len(found.checks)} checks failed: {names}")


def _check(options) -> int:
    from dataclasses import asdict

    from . import levels
    from .files import check_writable, write_atomic

    shapes, outputs = parse_shapes(options.shapes), parse_outputs(options.outputs)
    if options.board is not None and options.html is None:
        raise UserError(f"--board {options.board}: whose Config --html FILE.html shows; what is supported is so on every board")
    if options.html is not None:
        from .inspection import inspect

        check_writable(options.html)
        board = {} if options.board is None else {"board": options.board}
        with progress.work("check"):
            page, findings, cut = inspect(options.model, **board, shapes=shapes, outputs=outputs)
            write_atomic(options.html, page.encode())
    else:
        with progress.work("check"):
            findings = levels.check(options.model, shapes=shapes, outputs=outputs)
        cut = levels.proposal(options.model, findings, shapes=shapes) if findings and not outputs else None
    if options.json:
        nodes = [{k if k != "hint" else "nearest_form": v for k, v in asdict(f).items()} for f in findings]
        held = {"model": str(options.model), "supported": not findings, "findings": nodes}
        print(json.dumps(held | ({} if cut is None else {"cut": asdict(cut)})))
    else:
        for finding in findings:
            print(f"{finding.level}: {finding}")
        if cut is not None:
            print(f"{cut.nodes} of {cut.of} nodes build by themselves: --outputs {shlex.quote(','.join(cut.outputs))}")
    if findings:
        nodes = "1 node is" if len(findings) == 1 else f"{len(findings)} nodes are"
        raise UserError(f"{options.model}: {nodes} not supported")
    if not options.json:
        print(f"{options.model}: every node is supported")
    return GOOD


def _report(options) -> int:
    from . import api, report
    from .files import check_writable, write_atomic
    from .pages import report as report_page

    if options.checks is not None and options.html is None:
        raise UserError(f"--checks {options.checks}: shown on a page, with --html")
    if options.html is not None:
        check_writable(options.html)
    bundle = api.Bundle(options.bundle)
    found, trace = bundle.report(), None if options.trace is None else bundle.trace(options.trace)
    if options.html is not None:
        if found["report_version"] != report.REPORT_VERSION:
            wanted = f"version {found['report_version']}, a page needs {report.REPORT_VERSION}: build it again"
            raise UserError(f"{options.bundle}: its report is of {wanted}")
        checks = None if options.checks is None else _read_checks(options.checks)
        write_atomic(options.html, report_page.page(found, trace, checks).encode())
    measured = {} if trace is None else {"measured": trace}
    print(json.dumps(found | measured) if options.json else report.text(found, trace))
    return GOOD


def _read_checks(path: Path) -> dict:
    """What `hwgen verify --json` printed, from a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        checks = [{name: check[name] for name in ("name", "passed", "found")} for check in found["checks"]]
        return {name: found[name] for name in ("images", "engine", "task")} | {"checks": checks}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is not what `hwgen verify --json` prints") from None


def _synth(options) -> int:
    from . import api, synth

    bundle = api.Bundle(options.bundle)
    found = bundle.synth(options.unit, options.jobs, progress.say)
    print(json.dumps(found.to_dict() | {"config": bundle.config.to_dict()}) if options.json else synth.text(found))
    return GOOD


def _timing(options) -> int:
    from . import api, timing

    bundle = api.Bundle(options.bundle)
    found, clock = bundle.timing(options.unit, options.jobs, progress.say), bundle.config.clock_mhz
    print(json.dumps(found.to_dict(clock)) if options.json else timing.text(found, clock))
    return GOOD


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
        progress=progress.say,
    )
    print(json.dumps(made.to_dict()) if options.json else bitstream.text(made))
    return GOOD


def _disasm(options) -> int:
    from . import listing, run

    bundle = run.open_bundle(options.bundle)
    every = [*bundle.tasks, *bundle.together]
    for name in every if options.task is None else [run.choose_task(bundle, options.task)]:
        if name:
            print(f"task {name}")
        print(listing.instructions(run.instructions(bundle, name), run.origins(bundle, name)))
    return GOOD


def _package(options) -> int:
    from . import package

    output = options.output or options.bundle.with_suffix(".package")
    with progress.work("package"):
        names = package.package(options.bundle, output, options.bitstream, options.input)
    print(f"{output}: {len(names)} files; its README.md says what to do on the board")
    return GOOD


def _config(options) -> int:
    from dataclasses import asdict

    from . import boards, fields
    from .config import Config
    from .quantise.options import Quantisation

    board = boards.load(options.board)
    listed, current = fields.fields_of(Config) + fields.fields_of(Quantisation), board.make_config().to_dict()
    found = [asdict(f) | {"board": current.get(f.name)} for f in listed]
    print(json.dumps({"board": board.name, "fields": found}) if options.json else fields.table(listed, current, board.name))
    return GOOD


def _cache(options) -> int:
    from . import cache

    if options.older and not options.prune or not options.older >= 0:
        raise UserError(f"--older {options.older:g}: days, with --prune")
    removed, used = cache.prune(options.older) if options.prune else ([], [])
    listed = cache.entries()
    if options.json:
        kept = [{"kind": e.kind, "path": str(e.path), "bytes": e.size, "used": e.used} for e in listed]
        done = {"removed": len(removed), "removed_bytes": sum(e.size for e in removed), "in_use": len(used)}
        print(json.dumps({"directory": str(cache.directory()), "entries": kept} | (done if options.prune else {})))
        return GOOD
    if options.prune:
        note = f"; {len(used)} in use stay" if used else ""
        print(f"removed {len(removed)} entries, {sum(e.size for e in removed) / 1e6:.1f} MB{note}")
    print(cache.text(listed))
    return GOOD


def _boards(options) -> int:
    from . import boards

    print(json.dumps(boards.to_dict()) if options.json else boards.table())
    return GOOD


def _explore(options) -> int:
    from . import boards, explore, steps
    from .mapping import check_batch

    models, board = parse_models(options.models), boards.load(options.board)
    if options.workers is not None and options.cluster is not None:
        raise UserError("--workers: processes of this machine, which --cluster takes the place of")
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    if options.target_fps is not None and not (math.isfinite(options.target_fps) and options.target_fps > 0):
        raise UserError(f"--target-fps {options.target_fps}: must be a positive number")
    try:
        batches = tuple(check_batch(int(text)) for text in options.batch.split(","))
    except ValueError:
        raise UserError(f"--batch {options.batch}: whole numbers, with commas between them") from None
    how = {"shapes": parse_shapes(options.shapes), "outputs": parse_outputs(options.outputs)}
    state = steps.build(models, Path("unused"), board=options.board, stop_after="select", **how)
    with progress.work("explore", unit="Configs") as work:
        front = explore.explore(
            state.integers,
            board,
            batches=batches,
            target=options.target_fps,
            workers=options.workers or explore.default_workers(),
            cluster=options.cluster,
            progress=work.at,
        )
    best = explore.choose(front, options.target_fps)
    given = [word for text in options.shapes for word in ("--shape", text)]
    given += [word for text in options.outputs for word in ("--outputs", text)]
    line = explore.command(options.models, options.board, best, board, given)
    if options.json:
        points = [p.to_dict() for p in front]
        print(json.dumps({"board": board.name, "front": points, "choice": best.to_dict(), "command": line}))
        return GOOD
    print(explore.text(front, best))
    print(f"\n{line}")
    return GOOD


def _completion(options) -> int:
    from . import completion

    print(completion.script(options.shell))
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

    return GOOD if demo(options.images, options.keep, example=options.example) else FAILED


COMMANDS = {
    function.__name__.strip("_"): function
    for function in (
        _build, _run, _compare, _verify, _check, _report, _synth, _timing, _bitstream, _disasm, _package, _config, _cache,
        _boards, _explore, _completion, _doctor, _example, _demo,
    )
}


# --- output ------------------------------------------------------------------------------------------------------


def _warn(message: str) -> None:
    progress.say(f"hwgen: warning: {message}")


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
