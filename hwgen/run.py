"""Run a bundle on one of three engines: golden (integer graph), machine (program) or rtl (the generated Verilog)."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import boards, cache, energy, intgraph_io, isa, transfer
from .config import Config
from .dram import Dram, setting
from .errors import UserError
from .files import check_writable, write_atomic
from .graph import Graph
from .host.bundle import Bundle, BundleError
from .host.pack import INT8_MAX
from .importer.external import fingerprint
from .intgraph import IntGraph
from .progress import work
from .steps import GRAPH_FILE, REPORT_FILE
from .timeline import Span, Waves, breakdown
from .transfer import Images

ENGINES = ("golden", "machine", "rtl")
Progress = Callable[[int, int], None]
Cycles = Callable[[int, int, int], None]  # run, runs, cycles of this run so far
TRACE_VERSION = 2
MOST_OUTSIDE = 0.05  # share of an input's values beyond its calibrated range


@dataclass
class Run:
    """What an engine gave: `outputs` maps ONNX outputs to float32 [images, ...]; `counters` one dict per batch (rtl)."""

    engine: str
    task: str
    outputs: Images
    seconds: float = 0.0
    counters: list[dict[str, int]] = field(default_factory=list)
    batch: int = 1  # images that share a run of the program, and its cycles
    trace: dict | None = None  # where the cycles of each run went (rtl): `trace_of`

    def summary(self, config: Config) -> dict:
        """The `--json` object of `hwgen run`."""
        result = {
            "engine": self.engine,
            "task": self.task,
            "images": len(next(iter(self.outputs.values()))),
            "seconds": round(self.seconds, 3),
            "outputs": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in self.outputs.items()},
        }
        if self.counters:
            cycles = [c["cycles"] / self.batch for c in self.counters for _ in range(self.batch)][: result["images"]]
            busy = [c["array_active"] / c["cycles"] for c in self.counters for _ in range(self.batch)]
            result |= {
                "clock_mhz": config.clock_mhz,
                "batch": self.batch,
                "cycles": [round(c) for c in cycles],
                "images_per_second": round(config.clock_mhz * 1e6 * len(cycles) / sum(cycles), 3),
                "array_utilisation": [round(b, 4) for b in busy[: result["images"]]],
                "counters": self.counters,
                "energy_estimate": self._energy(config),
            }
        return result

    def _energy(self, config: Config) -> dict:
        """Estimated from the counters of all runs, those that a short last batch left empty included."""
        events, seconds = energy.Activity(), 0.0
        for c in self.counters:
            data = c.get("data_read_beats", 0) + c.get("data_write_beats", 0)
            weights = sum(value for name, value in c.items() if name.startswith("weight_beats"))
            events += energy.activity(
                config,
                cycles=c["cycles"],
                array_active=c["array_active"],
                weight_bytes=weights * config.axi_bytes,
                data_bytes=data * config.axi_bytes,
            )
            seconds += c["cycles"] / (config.clock_mhz * 1e6)
        images = len(self.counters) * self.batch
        joules = energy.estimate(events, seconds)
        per_image = {name: round(value * 1e3 / images, 6) for name, value in joules.items()}
        return {"note": energy.NOTE, "millijoule_per_image": per_image.pop("total"), "of_it": per_image}


def text(summary: dict) -> str:
    """The summary of a run for people."""
    shapes = ", ".join(f"{name} {o['shape']}" for name, o in summary["outputs"].items())
    lines = [f"{summary['engine']}: {summary['images']} images in {summary['seconds']:.1f} s: {shapes}"]
    if "cycles" in summary:
        for i, (cycles, busy) in enumerate(zip(summary["cycles"], summary["array_utilisation"], strict=True)):
            ms = cycles / summary["clock_mhz"] / 1e3
            lines.append(f"image {i}: {cycles:,} cycles, {ms:.3f} ms at {summary['clock_mhz']:g} MHz, array busy {busy:.1%}")
        millijoule = summary["energy_estimate"]["millijoule_per_image"]
        lines.append(f"energy, an estimate from these counters: {millijoule:.3f} mJ an image")
    return "\n".join(lines)


# --- what a bundle holds -----------------------------------------------------------------------------------------


def open_bundle(path: Path) -> Bundle:
    """A bundle whose hashes and Config are right. Raises UserError naming the file that is missing or damaged."""
    try:
        bundle = Bundle(path)
        config(bundle)
    except BundleError as error:
        raise UserError(str(error)) from None
    except UserError as error:
        raise UserError(f"{bundle.path / 'manifest.json'}: {error}") from None
    return bundle


def contents(bundle: Bundle) -> dict[str, bytes]:
    """Every file of a bundle by relative name, its manifest included."""
    return bundle.files | {name: (bundle.path / name).read_bytes() for name in ("manifest.json", "manifest.sha256")}


def config(bundle: Bundle) -> Config:
    """The Config that the bundle was built for."""
    return Config.from_dict(bundle.config)


def choose_task(bundle: Bundle, task: str | None) -> str:
    """The task to run, or of several with commas between the run of all of them.

    Raises UserError where the bundle has no such task or run, or several tasks and none is named.
    """
    try:
        return bundle.choose(task)
    except BundleError as error:
        raise UserError(str(error)) from None


def inputs(bundle: Bundle, task: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a task's ONNX inputs, without the batch axis."""
    return {entry["name"]: tuple(entry["shape"]) for entry in bundle.task(task)["inputs"]}


def instructions(bundle: Bundle, task: str) -> list[isa.Insn]:
    """The program of a task. Raises UserError where it is written in another instruction set than this hwgen's."""
    check_isa(bundle)
    program = bundle.task(task)["program"]
    start = program["offset_bytes"] - bundle.memory["regions"]["programs"]["offset"]
    try:
        return isa.disassemble(bundle.files["program.bin"][start : start + program["instructions"] * isa.WORD_BYTES])
    except ValueError as error:
        raise UserError(f"{bundle.path / 'program.bin'}: {error}") from None


def check_isa(bundle: Bundle) -> None:
    """Raise UserError unless the bundle's program is written in the instruction set of this hwgen."""
    if bundle.manifest.get("isa") != isa.fingerprint():
        version = bundle.manifest.get("tool", {}).get("version", "?")
        raise UserError(f"{bundle.path}: built by hwgen {version} for another instruction set; build it again")


def origins(bundle: Bundle, task: str) -> list[str]:
    """For each instruction the operation that it belongs to, as the report tells; "" where it belongs to none."""
    names = [""] * bundle.task(task)["program"]["instructions"]
    for entry in report_of(bundle)["tasks"][task]["operations"]:
        names[entry["index"]] = entry["of"]
    return names


def report_of(bundle: Bundle) -> dict:
    """The report that the build left in the bundle."""
    return json.loads(_file(bundle, REPORT_FILE))


def synthesis_cache() -> Path:
    """Where synthesised units and estimated clocks are kept."""
    return cache.directory() / "synth"


def clock_of(bundle: Bundle) -> dict:
    """Scenario -> MHz, where `hwgen timing` has looked at the bundle's Verilog before; else empty."""
    from . import timing

    found = timing.cached(verilog(bundle), boards.of_bundle(bundle.files, bundle.path), synthesis_cache())
    return {} if found is None else {scenario: round(found.mhz(scenario), 1) for scenario in timing.SCENARIOS}


def integer_graph(bundle: Bundle, task: str) -> IntGraph:
    """The integer graph of a task, which golden runs."""
    return intgraph_io.load(_file(bundle, GRAPH_FILE), str(bundle.path / GRAPH_FILE))[task]


def load_options(bundle: Bundle, task: str) -> dict[str, Any]:
    """How `importer.load` reads a task's ONNX file: the integer inputs that select it, the values that it was cut at."""
    entry = next(m for m in bundle.manifest["models"] if m["task"] == task)
    return {"fixed": entry.get("inputs", {}), "outputs": entry.get("outputs", [])}


def check_origin(bundle: Bundle, task: str, model: Path, graph: Graph, warn: Callable[[str], None]) -> None:
    """Whether `model`, imported as `graph`, can be compared with the bundle.

    Raises UserError where inputs or outputs differ; warns where the file is another one than was built.
    """
    entry = bundle.task(task)
    for what, ours, theirs in (
        ("inputs", {name: tuple(shape) for name, shape in graph.inputs.items()}, inputs(bundle, task)),
        ("outputs", {o.name for o in graph.outputs}, {slot["name"] for slot in entry["outputs"]}),
    ):
        if ours != theirs:
            raise UserError(f"{model}: its {what} {_plain(ours)} are not those of {bundle.path}, {_plain(theirs)}")
    built = next(m["sha256"] for m in bundle.manifest["models"] if m["task"] == task)
    if fingerprint(model) != built:
        warn(f"{model} is not the file that {bundle.path} was built from")


def _plain(names) -> str:
    if isinstance(names, dict):
        return ", ".join(f"{name} {list(shape)}" for name, shape in names.items())
    return ", ".join(sorted(names))


def _file(bundle: Bundle, name: str) -> bytes:
    if name not in bundle.files:
        raise UserError(f"{bundle.path}: holds no {name}")
    return bundle.files[name]


# --- engines -----------------------------------------------------------------------------------------------------


def check_engine(engine: str) -> None:
    """Raise UserError listing the engines unless this is one."""
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; there are {', '.join(ENGINES)}")


def run(
    bundle: Bundle,
    engine: str,
    images: Images,
    task: str = "",
    progress: Progress = lambda done, total: None,
    dram: str = "board",
    cycles: Cycles | None = None,
    waves: Waves | None = None,
) -> Run:
    """All images through one engine. images: ONNX input name -> [images, C, H, W], as `images.read` gives them.

    dram: the memory beside the RTL, a setting of `hwgen.dram`. cycles: told now and then how far the RTL is. waves: what of its
    signals to write, and where. Raises UserError for an unknown engine or setting or, with rtl, a missing simulator.
    """
    check_engine(engine)
    if waves is not None:
        check_waves(waves, engine)
    memory = setting(dram, boards.of_bundle(bundle.files, bundle.path), config(bundle))
    count = len(next(iter(images.values())))
    one_by_one = [{name: array[i] for name, array in images.items()} for i in range(count)]
    start, trace = time.monotonic(), None
    if engine == "golden":
        outputs, counters = _golden(bundle, task, one_by_one, progress), []
    elif engine == "machine":
        outputs, counters = _machine(bundle, task, one_by_one, progress), []
    else:
        try:
            outputs, counters, spans = _rtl(bundle, task, one_by_one, memory, cycles, waves)
        except RuntimeError:
            _machine(bundle, task, one_by_one[: bundle.batch], progress)  # which tells where the program is at fault
            raise
        trace = trace_of(bundle, task, dram, memory, counters, spans)
    stacked = {name: np.stack([image[name] for image in outputs]) for name in outputs[0]}
    return Run(engine, task, stacked, time.monotonic() - start, counters, bundle.batch, trace)


def check_waves(waves: Waves, engine: str) -> None:
    """Raise UserError where an engine has no such waves, or they cannot be written."""
    if engine != "rtl":
        raise UserError(f"--waves: the engine {engine} has no signals; rtl has")
    first, last = waves.cycles or (0, None)
    if first < 0 or (last is not None and last <= first):
        raise UserError(f"--cycles {first}:{'' if last is None else last}: the first must be at least 0 and lie before the last")
    check_writable(waves.path)


def outside(bundle: Bundle, task: str, images: Images) -> list[str]:
    """Of each input of which more than `MOST_OUTSIDE` of the values lie beyond what it was calibrated for: what to tell."""
    found = []
    for slot in {slot["name"]: slot for slot in bundle.task(task)["inputs"]}.values():
        reach = INT8_MAX * slot["step"]
        share = float((np.abs(images[slot["name"]] - slot["offset"]) > 1.01 * reach).mean())
        if share > MOST_OUTSIDE:
            low, high = slot["offset"] - reach, slot["offset"] + reach
            found.append(
                f"input {slot['name']!r}: {share:.0%} of the values lie outside {low:.4g} to {high:.4g}, for which the bundle "
                "was calibrated, and are cut: is it preprocessed as the calibration images were?"
            )
    return found


def _golden(bundle: Bundle, task: str, images: list[Images], progress: Progress) -> list[Images]:
    from .sim import golden

    graph, outputs = integer_graph(bundle, task), []
    weights = golden.operands(graph) if len(images) > 1 else None
    with work("golden", len(images), "images") as here:
        for i, image in enumerate(images):
            outputs.append(golden.run(graph, image, weights=weights).outputs)
            here.at(i + 1)
            progress(i + 1, len(images))
    return outputs


def _machine(bundle: Bundle, task: str, images: list[Images], progress: Progress) -> list[Images]:
    from .sim.machine import MachineFault

    instructions(bundle, task)
    entry, memory, dram = bundle.task(task), bundle.memory, bundle.dram()
    outputs: list[Images] = []
    with work("machine", len(images), "images") as here:
        for batch in transfer.batches(images, bundle.batch):
            try:
                outputs += transfer.on_machine(config(bundle), entry, dram, memory["data_base"], memory["weight_bases"], batch)
            except MachineFault as error:
                why = "no program that hwgen made for this machine"
                raise UserError(f"{bundle.path / 'program.bin'}: {why}: {error}") from None
            here.at(min(len(outputs), len(images)))
            progress(min(len(outputs), len(images)), len(images))
    return outputs[: len(images)]


def verilog(bundle: Bundle) -> dict[str, str]:
    """The design of a bundle: file name -> text."""
    return {name.removeprefix("rtl/"): data.decode() for name, data in bundle.files.items() if name.startswith("rtl/")}


def trace_of(
    bundle: Bundle, task: str, name: str, memory: Dram, counters: list[dict[str, int]], spans: list[list[Span]]
) -> dict:
    """The JSON object that `hwgen run --trace` writes: of each run where its cycles went (`timeline.breakdown`)."""
    shape, program, of = config(bundle), instructions(bundle, task), origins(bundle, task)
    return {
        "trace_version": TRACE_VERSION,
        "bundle": trace_key(bundle),
        "task": task,
        "batch": bundle.batch,
        "clock_mhz": shape.clock_mhz,
        "dram": name,
        "dram_bytes_per_cycle": round(memory.bytes_per_cycle, 3),
        "runs": [
            breakdown(program, of, seen, counted["cycles"], shape)
            for counted, seen in zip(counters, spans, strict=True)
        ],
    }


def trace_key(bundle: Bundle) -> str:
    """Tells which program a trace is of."""
    return hashlib.sha256(bundle.files["program.bin"]).hexdigest()[:16]


def read_trace(path: Path, bundle: Bundle) -> dict:
    """A trace that `hwgen run --trace` wrote for this bundle. Raises UserError for any other file."""
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        version = trace["trace_version"]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no trace that `hwgen run --trace` wrote") from None
    if version != TRACE_VERSION:
        raise UserError(f"{path}: trace version {version!r}, this hwgen reads {TRACE_VERSION}")
    if trace["bundle"] != trace_key(bundle):
        raise UserError(f"{path}: a trace of another program than that of {bundle.path}")
    return trace


def _rtl(
    bundle: Bundle, task: str, images: list[Images], dram: Dram, cycles: Cycles | None, waves: Waves | None
) -> tuple[list[Images], list[dict[str, int]], list[list[Span]]]:
    """Outputs of every image, counters and spans of every run."""
    from .sim import rtl

    cache.check()
    entry, memory, shape = bundle.task(task), bundle.memory, config(bundle)
    program = (entry["program"]["offset_bytes"] - memory["data_base"]) // shape.axi_bytes
    count, reads = entry["program"]["instructions"], transfer.reads(entry)
    batches = transfer.batches(images, bundle.batch)
    runs = [rtl.Run(transfer.writes(entry, batch), program, count, reads) for batch in batches]
    estimate = report_of(bundle)["tasks"][task]["cycles"]
    with work("rtl", estimate * len(runs), "cycles") as here:

        def told(run: int, of: int, count: int) -> None:
            here.at(estimate * run + min(count, estimate), note=f"run {run + 1} of {of}")
            if cycles is not None:
                cycles(run, of, count)

        results = _simulate(
            waves,
            verilog(bundle),
            shape,
            bundle.dram().tobytes(),
            runs,
            data_base=memory["data_base"],
            weight_bases=memory["weight_bases"],
            dram=dram,
            progress=told,
        )
    outputs = [image for result in results for image in transfer.outputs(entry, result.reads, bundle.batch)]
    return outputs[: len(images)], [_counters(result) for result in results], [result.spans for result in results]


def _simulate(waves: Waves | None, *design, **options) -> list[Any]:
    """`rtl.simulate`, and the waves in their file once all of them are there."""
    from .sim import rtl

    if waves is None:
        return rtl.simulate(*design, **options)
    with tempfile.TemporaryDirectory(prefix="hwgen-waves-") as folder:
        written = Path(folder) / "waves.fst"
        results = rtl.simulate(*design, **options, waves=replace(waves, path=written))
        longest, (first, _) = max(result.cycles for result in results), waves.cycles or (0, None)
        if first >= longest:
            raise UserError(f"--cycles {first}: the run ended after {longest:,} cycles, no file is written")
        with open(written, "rb") as file:
            write_atomic(waves.path, lambda to: shutil.copyfileobj(file, to))
    return results


def _counters(result) -> dict[str, int]:
    """The hardware counters by lower-case name; `cycles` joined from its halves."""
    wanted = ("ARRAY_", "STALL_", "BUSY_", "FINISHED_", "DATA_READ_", "DATA_WRITE_", "WEIGHT_BEATS")
    found = {name.lower(): value for name, value in result.registers.items() if name.startswith(wanted)}
    return {"cycles": result.cycles, **found}
