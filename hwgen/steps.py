"""The build: named steps from ONNX files to a bundle, each leaving one artefact on the `Build`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    agreement,
    boards,
    cache,
    dataflow,
    explore,
    files,
    images,
    intgraph_io,
    levels,
    leveltext,
    listing,
    registers,
    report,
    tensor,
)
from .config import Config
from .dram import of_board
from .errors import UserError
from .files import readable
from .graph import Graph, without_range
from .importer.external import fingerprint
from .intgraph import IntGraph
from .mapping import Mapping, check_batch, choose, name_of, search, together
from .pages import report as report_page
from .program import Program, check_target, write_bundle
from .progress import work
from .qgraph import QGraph
from .quantise.options import Quantisation
from .schedule import schedule

GRAPH_FILE = "graph.bin"
REPORT_FILE = "report.json"
FEW_IMAGES = 4  # fewer do not show the ranges of values
NOISE_WARNING = "no --calibrate data: calibrated with seeded noise, do not trust the accuracy"


@dataclass
class Build:
    """The state of a build: what was asked for, then one artefact per step.

    config: what `--set` made of the board's, `fixed` if it named a field of it; step `configure` may take another one that
    `explore` chooses, and always does so with `search`.
    """

    models: dict[str, Path]  # task name -> ONNX file; the name is "" where there is one task
    output: Path
    board: boards.Board
    config: Config
    calibrate: images.Held | None = None  # what sets the scales; seeded noise without it
    quantisation: Quantisation = Quantisation()
    batch: int = 1  # images that one run of the program takes
    fixed: bool = False
    search: bool = False
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of inputs, as `importer.load` takes them
    outputs: tuple[str, ...] = ()  # values that the files are to end in, instead of their own outputs
    verify: bool = False  # the program on the machine model against golden
    numbers: dict[str, dict[str, int]] = field(default_factory=dict)  # task name -> integer inputs that select it
    compiled: dict[str, levels.Compiled] = field(default_factory=dict)  # T, L and rows, until the graphs are proven
    graphs: dict[str, Graph] = field(default_factory=dict)
    images: dict[str, np.ndarray] | None = None
    quantised: dict[str, QGraph] = field(default_factory=dict)
    integers: dict[str, IntGraph] = field(default_factory=dict)
    mapping: Mapping | None = None
    joint: dict[str, IntGraph] = field(default_factory=dict)  # all tasks of one image as one run, where they fit the Config
    mapped: dict[str, IntGraph] = field(default_factory=dict)
    program: Program | None = None
    verilog: dict[str, str] = field(default_factory=dict)
    report: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def _import(build: Build) -> str:
    sizes = {} if build.calibrate is None else images.shapes(build.calibrate)
    options = {"shapes": build.shapes, "like": sizes, "outputs": build.outputs}
    models = dict(build.models)
    build.models = {}
    for task, path in models.items():
        for name, compiled in levels.tasks(path, **options).items():
            task_name = ".".join(filter(None, (task, name)))
            build.models[task_name], build.numbers[task_name] = path, compiled.numbers
            build.compiled[task_name] = compiled
    programs = {task: compiled.complete("tensor") for task, compiled in build.compiled.items()}
    return ", ".join(f"{_called(build, task)}: {len(t.nodes())} nodes" for task, t in programs.items())


def _called(build: Build, task: str) -> str:
    return readable(build.models[task]) + "".join(f" {name}={value}" for name, value in build.numbers[task].items())


def _recognise(build: Build) -> str:
    for task, compiled in build.compiled.items():
        build.graphs[task] = compiled.complete("rows")
        levels.confirm(compiled.model, build.graphs[task], compiled.levels)
    return ", ".join(f"{_called(build, task)}: {len(graph.nodes)} operations" for task, graph in build.graphs.items())


def _calibrate(build: Build) -> str:
    if build.calibrate is None:
        missing = {task: len(without_range(graph)) for task, graph in build.graphs.items()}
        if not any(missing.values()):
            return "the scales of the quantised model"
        partly = [f"{build.models[task]}: {n} values have no scale in the file; " for task, n in missing.items() if n]
        quantised = any(graph.ranges for graph in build.graphs.values())
        build.warnings.append((partly[0] if quantised else "") + NOISE_WARNING)
        return "seeded noise"
    build.images = images.read(build.calibrate, common_inputs(build.graphs), types=common_types(build.graphs))
    count = len(next(iter(build.images.values())))
    if count < FEW_IMAGES:
        build.warnings.append(_few(build, count))
    return f"{count} images of {images.called(build.calibrate)}"


def _few(build: Build, count: int) -> str:
    """What calibration on so few images is likely to miss."""
    from .quantise.calibrate import check_images, unseen

    what = "what others hold beyond it is cut"
    if count > 1:
        share = max(unseen(graph, check_images(graph, build.images)) for graph in build.graphs.values())
        what = f"{share:.2%} of the values of one half of them lie beyond what the other half holds, and such are cut"
    return f"calibrated on {count} image{'s' if count > 1 else ''}: {what}; take some dozens"


def _quantise(build: Build) -> str:
    from .accuracy import accurate, told

    made = accurate(build.graphs, build.images, build.quantisation)
    build.quantised = made.graphs
    build.warnings += dict.fromkeys(warning for graph in build.quantised.values() for warning in graph.warnings)
    build.warnings += told(made, build.quantisation, build.images)
    text = f"{sum(len(graph.nodes) for graph in build.quantised.values())} integer operations"
    if build.quantisation.min_snr:
        text += f", {made.worst:.1f} dB of the float model"
    if made.before is not None:
        text += f" by more layers with 16 bits, {made.before:.1f} without"
    return text


def _select(build: Build) -> str:
    from .select import select

    build.integers = {task: select(graph) for task, graph in build.quantised.items()}
    return f"{sum(len(graph.ops) for graph in build.integers.values())} operations of the machine"


def _configure(build: Build) -> str:
    """The Config: the one that was set, else the board's own if the network fits it, else the one that explore chooses."""
    name, why = build.board.name, "--explore asks for it"
    if not build.search:
        if build.fixed or build.board.config:
            try:
                _map(build)
                if over := explore.excess(build.config, build.board):
                    advice = explore.advise(build.integers, build.board, build.config, build.batch)
                    build.warnings.append(f"the Config is too large for {name}, {over}; {advice}")
                return "as it was set" if build.fixed else f"the Config stored with {name}"
            except UserError as error:
                if build.fixed:
                    advice = explore.advise(build.integers, build.board, build.config, build.batch)
                    raise UserError(f"{error}; {advice}") from None
                why = f"the network does not fit the Config stored with {name} ({error})"
        else:
            why = f"{name} stores no Config"
    points = explore.explore(build.integers, build.board, batches=(build.batch,), workers=explore.default_workers())
    best = explore.choose(points)
    build.config = best.config
    _map(build)
    c = build.config
    return (
        f"explored, as {why}: array {c.array_outputs} x {c.array_inputs}, scratchpad {c.banks} x {c.bank_words}, of "
        f"{len(points)} on the front the fastest; limited by {best.binds}; the same by "
        f"{' '.join(explore.settings(c, build.board))}"
    )


def _map(build: Build) -> None:
    memory = of_board(build.board, build.config)
    found = choose(build.integers, build.config, memory, build.batch)
    build.mapping, build.mapped = found.mapping, found.graphs


def _map_together(build: Build) -> None:
    """The run of all tasks; none where only each of them by itself fits the Config."""
    if len(build.integers) < 2:
        return
    joint = {name_of(list(build.integers)): together(build.integers)}
    found = search(joint, build.config, of_board(build.board, build.config), build.batch)
    if not isinstance(found, UserError):
        build.joint = joint
        build.mapped = build.mapped | found.graphs


def _schedule(build: Build) -> str:
    assert build.mapping is not None
    _map_together(build)
    build.program = schedule(build.mapped, build.config)
    for name in build.joint:
        build.program.tasks[name].together = tuple(build.integers)
    count = sum(len(task.instructions) for task in build.program.tasks.values())
    said = [build.mapping.text(build.batch)] + [f"tasks {name} in one run, too" for name in build.joint]
    if build.verify:
        said.append(agreement.check(build.program, build.integers | build.joint, build.images))
    return f"{count} instructions, {build.program.size / 1e6:.2f} MB of DRAM; {', '.join(said)}"


RTL_SOURCES = ("rtl", "config.py", "isa", "latency.py", "memories.py", "numerics.py", "registers.py")


@lru_cache(maxsize=8)
def verilog(config: Config) -> dict[str, str]:
    """File name -> Verilog of the machine. The longest step of a build: it is kept by Config and by what makes it."""
    here = Path(__file__).parent
    sources = [p for name in RTL_SOURCES for p in [here / name, *sorted((here / name).rglob("*.py"))] if p.is_file()]
    sources += sorted(p for p in resource_files("hwgen.rtl_templates").iterdir() if p.name.endswith(".v"))
    digest = hashlib.sha256(json.dumps([config.to_dict(), version("amaranth")], sort_keys=True).encode())
    for path in sources:
        digest.update(path.read_bytes())
    kept = cache.directory() / "verilog" / f"{digest.hexdigest()[:32]}.json.gz"
    try:
        return json.loads(gzip.decompress(kept.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        pass  # not kept yet, or not to be read
    from .rtl.top import emit

    made = emit(config)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(kept, gzip.compress(json.dumps(made).encode(), 1, mtime=0))
    except (OSError, UserError):
        pass  # a cache that cannot be written costs time only
    return made


def _rtl(build: Build) -> str:
    build.verilog = dict(verilog(build.config))
    return f"{sum(text.count(chr(10)) for text in build.verilog.values())} lines of Verilog"


def _report(build: Build) -> str:
    edges = {task: dataflow.edges(graph) for task, graph in build.mapped.items()}
    names = list(dict.fromkeys(readable(path) for path in build.models.values()))
    build.report = report.make(build.program, build.board, names, edges)
    return f"{max(build.report['tasks'][task]['cycles'] for task in build.integers):,} cycles estimated"


def _bundle(build: Build) -> str:
    from . import vendor

    contents = {f"rtl/{name}": text for name, text in build.verilog.items()}
    contents |= vendor.scripts(build.config, build.board, list(contents))
    contents[GRAPH_FILE] = intgraph_io.save(build.integers | build.joint)
    contents[boards.BOARD_FILE] = boards.to_json(build.board)
    contents[REPORT_FILE] = json.dumps(build.report, indent=1, allow_nan=False) + "\n"
    contents["report.html"] = report_page.page(build.report)
    hashes = [
        {
            "task": task,
            "file": readable(path),
            "sha256": fingerprint(path),
            "inputs": build.numbers[task],
            "outputs": list(build.outputs),
        }
        for task, path in build.models.items()
    ]
    write_bundle(
        build.output,
        build.program,
        models=hashes,
        board=build.board.name,
        registers=registers.manifest(build.config),
        quantisation=build.quantisation.to_dict(),
        files=contents,
    )
    return str(build.output)


STEPS: dict[str, Callable[[Build], str]] = {
    "import": _import,
    "recognise": _recognise,
    "calibrate": _calibrate,
    "quantise": _quantise,
    "select": _select,
    "configure": _configure,
    "schedule": _schedule,
    "rtl": _rtl,
    "report": _report,
    "bundle": _bundle,
}
# The compiler's levels: name -> (letter, step that makes it, its text by task).
LEVELS: dict[str, tuple[str, str, Callable[[Build], dict[str, str]]]] = {
    "tensor": ("T", "import", lambda b: {task: tensor.text(c.levels["tensor"]) for task, c in b.compiled.items()}),
    "layers": ("L", "recognise", lambda b: {task: tensor.text(c.levels["layers"]) for task, c in b.compiled.items()}),
    "rows": ("R", "recognise", lambda b: {task: leveltext.text(graph) for task, graph in b.graphs.items()}),
    "integers": ("Q", "quantise", lambda b: {task: leveltext.text(graph) for task, graph in b.quantised.items()}),
    "machine": ("M", "select", lambda b: {task: leveltext.text(graph) for task, graph in b.integers.items()}),
    "program": ("P", "schedule", lambda b: {task: listing.text(b.program, task) for task in b.program.tasks}),
}


def level(name: str) -> str:
    """A level's name, from it or its letter. Raises UserError."""
    for known, (letter, _, _) in LEVELS.items():
        if name in (known, letter):
            return known
    raise UserError(f"unknown level {name!r}; the levels are {', '.join(f'{v[0]} ({k})' for k, v in LEVELS.items())}")


def _last_step(name: str | None) -> str | None:
    """The step that --stop-after names, itself or by the level that it makes."""
    if name is None or name in STEPS:
        return name
    if name in LEVELS or name in {letter for letter, _, _ in LEVELS.values()}:
        return LEVELS[level(name)][1]
    raise UserError(f"unknown step {name!r}; the steps are {', '.join(STEPS)}, the levels {', '.join(LEVELS)}")


def build(
    models: dict[str, Path],
    output: Path,
    *,
    board: str = "zcu104",
    calibrate: images.Held | None = None,
    settings: dict[str, str] | None = None,
    batch: int = 1,
    search: bool = False,
    stop_after: str | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    outputs: Sequence[str] = (),
    verify: bool = False,
    show: str | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[str, float, str], None] = lambda step, seconds, summary: None,
) -> Build:
    """Run the steps in order and return what they left; without `stop_after` the bundle is at `output`.

    models: task name -> ONNX file. calibrate: an .npz, a folder of images, or arrays by input name. settings: fields of
    Config or Quantisation, as texts. batch: images that share a run. search: let `explore` choose the Config even where the
    board stores one that fits. stop_after: a step, or the level that it makes. shapes: of inputs whose sizes the file
    leaves open. outputs: values that the files are to end in, instead of their own outputs. verify: compare the program on
    the machine model with golden, on one calibration image, and raise agreement.Disagreement where they differ. show: the
    level that is handed to `say` as text. progress: called after each step with its name, its seconds and a line on its
    artefact. Raises UserError, before any long work where it can.
    """
    stop_after = _last_step(stop_after)
    shown = None if show is None else level(show)
    order = list(STEPS)
    if shown and stop_after and order.index(LEVELS[shown][1]) > order.index(stop_after):
        raise UserError(f"--print {show}: level {shown} is made by step {LEVELS[shown][1]}, behind {stop_after}")
    if verify and stop_after and order.index(stop_after) < order.index("schedule"):
        raise UserError(f"--verify: the program is made by step schedule, behind {stop_after}")
    for path in models.values():
        if not path.is_file():
            raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if isinstance(calibrate, Path) and not calibrate.exists():
        raise UserError(f"{calibrate}: no such file")
    chosen = boards.load(board)
    config, quantisation, fixed = _settings(chosen, settings or {})
    if search and fixed:
        raise UserError(f"--explore chooses the Config, and --set {fixed[0]} fixes it: one of them only")
    state = Build(
        dict(models), Path(output), chosen, config, calibrate, quantisation, check_batch(batch), bool(fixed), search,
        dict(shapes or {}), tuple(outputs), verify,
    )
    if stop_after in (None, "bundle"):
        check_target(state.output)
    for name, step in STEPS.items():
        start = time.monotonic()
        with work(name):
            summary = step(state)
        progress(name, time.monotonic() - start, summary)
        if shown and LEVELS[shown][1] == name:
            for task, text in LEVELS[shown][2](state).items():
                say((f"task {task}\n" if task else "") + text.rstrip("\n"))
        if done := {"recognise": (state.compiled,), "select": (state.graphs, state.quantised)}.get(name):
            for held in done:  # no later step reads it
                held.clear()
            _release()
        if name == stop_after:
            break
    return state


def _release() -> None:
    """Give freed memory back to the system: what the import's proof leaves in the C heap, Python's objects cannot use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def _settings(board: boards.Board, settings: dict[str, str]) -> tuple[Config, Quantisation, list[str]]:
    """What `--set` texts name, each field where it belongs; and the fields of Config among them."""
    chosen = {name: text for name, text in settings.items() if name in Quantisation.names()}
    rest = {name: text for name, text in settings.items() if name not in chosen}
    known = board.make_config().to_dict()
    for name in rest:
        if name not in known:
            ours, theirs = ", ".join(sorted(known)), ", ".join(sorted(Quantisation.names()))
            raise UserError(f"--set {name}: Config has no such field; it has {ours}; Quantisation has {theirs}")
    return board.make_config(rest), Quantisation.from_texts(chosen), list(rest)


def common_types(graphs: dict[str, Graph]) -> dict[str, str]:
    """Types of the inputs that are no floats. Raises UserError where two tasks want different ones under one name."""
    return _common(graphs, Graph.type_of, "is")


def common_inputs(graphs: dict[str, Graph]) -> dict[str, tuple[int, ...]]:
    """Inputs of all tasks with their shapes. Raises UserError where two tasks want different shapes under one name."""
    shapes = _common(graphs, lambda graph, name: list(graph.inputs[name]), "has shape")
    return {name: tuple(shape) for name, shape in shapes.items()}


def _common(graphs: dict[str, Graph], of: Callable[[Graph, str], Any], what: str) -> dict[str, Any]:
    """What every input of all tasks has. Raises UserError where two tasks want different things under one name."""
    found: dict[str, Any] = {}
    for task, graph in graphs.items():
        for name in graph.inputs:
            if (own := of(graph, name)) != found.setdefault(name, own):
                raise UserError(f"task {task!r}: input {name!r} {what} {own}, another task's {found[name]}")
    return found
