"""What hwgen makes of a random network: right, refused, a fault of hwgen's, or silently wrong."""

from __future__ import annotations

import copy
import importlib.util
import re
import signal
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from forms import rewritten
from grids import quantised
from networks import Network, network
from writer import rounded

from hwgen import cost, levels, steps
from hwgen.compare import snr_db
from hwgen.errors import UserError
from hwgen.mapping.search import Choice, candidates, choose, piece_candidates
from hwgen.schedule import attempt
from hwgen.sim import golden

_spec = importlib.util.spec_from_file_location("system", Path(__file__).parents[1] / "system" / "conftest.py")
system = importlib.util.module_from_spec(_spec)
sys.modules["system"] = system  # its dataclasses look there
_spec.loader.exec_module(system)

CALIBRATION, TEST = 32, 3  # images; of 16 that are each brighter or darker as a whole, all may be dark
LEAST_DB = 15.0  # of golden against the file: below it an answer is wrong ...
ROUNDED_DB = 20.0  # ... where the file with its weights rounded to int8, on images disturbed a little, keeps so much
DISTURBED, DISTURBED_DB = 8, 36.0  # times; the noise that int8 layers make anyway: a router near a tie falls over by it too
CHOOSING, CHOOSING_DB = {"selected", "experts"}, 30.0  # what picks tokens or experts: after some layers noise has grown
BOARDS = (
    {"array_outputs": 8, "array_inputs": 8, "banks": 4, "bank_words": 8192, "window_chunks": 1, "weight_words": 256,
     "select_rows": 256, "scan_states": 2},
    {"array_outputs": 16, "array_inputs": 16, "banks": 4, "bank_words": 4096, "window_chunks": 1, "weight_words": 512,
     "select_rows": 512, "scan_states": 4},
    {"array_outputs": 12, "array_inputs": 20, "banks": 2, "bank_words": 4096, "window_chunks": 3, "weight_words": 512,
     "select_rows": 256, "scan_states": 3},
)  # fmt: skip; the last divides neither tokens nor widths


CHECKED = 4  # one of so many networks is given to `check`, too, and to the search for the fastest mapping
QUANTISED, REWRITTEN, OUTSIDE = 0.12, 0.6, 0.05  # shares of networks on grids, in another form, with their data beside them
UNKNOWN_TO_ONNXRUNTIME = ": onnxruntime cannot run it"  # as convolutions in double precision
# What hwgen says of a level that it made itself: not well formed, or another computation than the file's. Where they lie closer
# than DISTANT deviations the proof is strict: a function that is nearly the one it was taken for, or round-off.
OWN_FAULT = re.compile(r": (level \w+: (?!.*too many$)|the graph was not understood.* by (\S+) standard deviations)")
DISTANT = 1e-2
SECONDS = 60  # of CPU, for one network


class TooLong(BaseException):
    """A network that did not end in time; no library takes it for its own."""


@dataclass(frozen=True)
class Verdict:
    """kind: "right", "refused", "fault" (an exception that is no UserError, or a level that hwgen itself finds wrong), "wrong",
    "machine" (differs from golden), "check" (which says another thing than the build), "form" (refused for how it is
    written), "slow"."""

    seed: int
    kind: str
    text: str
    parts: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return self.kind in ("right", "refused")


def timed(seed: int, folder: Path, seconds: int = SECONDS) -> Verdict:
    """`judge`, given up after so many seconds of CPU."""

    def over(signum, frame):
        raise TooLong

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return judge(seed, folder)
    except TooLong:
        return Verdict(seed, "slow", f"over {seconds} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judge(seed: int, folder: Path) -> Verdict:
    """The verdict on the network of a seed; files go to `folder`."""
    net = network(seed)
    rng = np.random.default_rng((seed, 3))
    if rng.random() < QUANTISED:
        images = net.images(CALIBRATION, seed)
        on_grids = quantised(net.model, rng, lambda model: list(_run(model, [images])[0].values()))
        net = replace(net, model=on_grids, parts=[*net.parts, "grids"], before=net.model)
    path = folder / f"{seed}.onnx"
    file = net.model
    if rng.random() < REWRITTEN:
        file, forms = rewritten(file, rng)
        net.parts.extend(forms)
    outside = rng.random() < OUTSIDE
    if outside:
        file = copy.deepcopy(file)  # which is changed when its data goes beside it
    onnx.save(file, path, save_as_external_data=outside, location=f"{seed}.data", size_threshold=0)
    try:
        kind, text = _judged(net, path, seed)
        if kind == "refused" and file is not net.model and not text.startswith(UNKNOWN_TO_ONNXRUNTIME):
            plain = folder / f"{seed}_plain.onnx"
            onnx.save(net.model, plain)
            if levels.check(path) and not levels.check(plain):
                kind, text = "form", f"refused in this form only: {text}"
    except Exception:
        kind, text = "fault", traceback.format_exc()
    return Verdict(seed, kind, text, tuple(net.parts))


def _judged(net: Network, path: Path, seed: int) -> tuple[str, str]:
    try:
        return _built(net, path, seed)
    except UserError as error:
        text = str(error).replace(str(path), "")
        own = OWN_FAULT.match(text)
        return "fault" if own and float(own[2] or "inf") >= DISTANT else "refused", text


def _built(net: Network, path: Path, seed: int) -> tuple[str, str]:
    settings = {name: str(value) for name, value in BOARDS[seed % len(BOARDS)].items()}
    calibrate, test = net.images(CALIBRATION, seed), net.images(TEST, seed + 1)
    checked = seed % CHECKED == 0
    findings = levels.check(path) if checked else []
    try:
        with mock.patch.object(steps, "choose", choose if checked else _drawn(seed)):
            state = steps.build(
                {"": path}, path.with_suffix(".bundle"), calibrate=calibrate, settings=settings, stop_after="schedule"
            )
    except UserError as error:
        if checked and bool(findings) != ("not supported" in str(error)):
            return "check", f"check finds {len(findings)}, build: {error}"
        raise
    if findings:
        return "check", f"check finds {findings[0]}, build nothing"
    if len(state.program.tasks) != 1:
        return "fault", f"tasks {list(state.program.tasks)}"
    graph = state.integers[""]
    images = [{name: array[i] for name, array in test.items()} for i in range(TEST)]
    found = [golden.run(graph, image).outputs for image in images]
    machine = system.run_machine(state.program, "", images[0]).outputs
    for name, values in found[0].items():
        if not np.array_equal(machine[name], values):
            return "machine", f"output {name!r}: {int((machine[name] != values).sum())} of {values.size} values differ"
    wanted = _run(net.model, [test])[0]
    noise = CHOOSING_DB if CHOOSING & set(net.parts) else DISTURBED_DB
    best = _run(rounded(net.model), [test, *_disturbed(test, seed, noise)])
    best += [] if net.before is None else _run(net.before, [test])  # an image with other grids, or none, may choose otherwise
    texts, wrong = [], False
    for name in wanted:
        got = np.stack([f[name] for f in found]).reshape(wanted[name].shape)
        db, limit = snr_db(wanted[name], got), min(snr_db(wanted[name], near[name]) for near in best)
        wrong |= not db >= LEAST_DB and limit >= ROUNDED_DB
        texts.append(f"{name} {db:.1f} dB, {limit:.1f} with rounded weights and disturbed images")
    return "wrong" if wrong else "right", "; ".join(texts)


def _drawn(seed: int):
    """In the place of `mapping.choose`: of what it tries where there is room, one at random that fits, fast or not."""

    def drawn(graphs, config, memory, batch=1):
        tried = [*candidates(batch), *piece_candidates()]
        for k in np.random.default_rng((seed, 4)).permutation(len(tried)):
            made = {task: tried[k].apply(graph, config, batch) for task, graph in graphs.items()}
            program = attempt(made, config)
            if not isinstance(program, UserError):
                runs = {name: cost.estimate(task.instructions, config, memory) for name, task in program.tasks.items()}
                return Choice(tried[k], runs, made)
        return choose(graphs, config, memory, batch)

    return drawn


def _disturbed(images: dict[str, np.ndarray], seed: int, noise_db: float) -> list[dict[str, np.ndarray]]:
    """The images with such a noise, DISTURBED times."""
    rng = np.random.default_rng((seed, 2))
    part = 10 ** (-noise_db / 20)
    return [
        {n: (a + rng.normal(0, a.std() * part, a.shape)).astype(np.float32) for n, a in images.items()}
        for _ in range(DISTURBED)
    ]


def _run(model: onnx.ModelProto, several: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Outputs of the file in their order, [images, ...], on each of several sets of images."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    found = []
    for images in several:
        count = len(next(iter(images.values())))
        rows = [session.run(names, {n: a[i : i + 1] for n, a in images.items()}) for i in range(count)]
        found.append({name: np.stack(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})
    return found
