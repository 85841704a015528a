"""Whole-accelerator simulation: the generated Verilog beside a DRAM model, run by cocotb."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from hwgen import isa, registers
from hwgen.config import Config
from hwgen.dram import Dram
from hwgen.timeline import Span, Waves

from . import simulators, trace
from .dram import plusargs

TRACE_FILE, PROGRESS_FILE = "trace.txt", "progress.txt"
BENCH_WORDS_MIN = 1 << 22  # the memory's size is a parameter of the compiled bench: 64 MB, so that most networks share a build


@dataclass(frozen=True)
class Run:
    """One start of the accelerator: memory writes before, registers to set, memory to read after it halts."""

    writes: list[tuple[int, bytes]]  # (byte offset, data), whole beats
    program: int  # first instruction, beats from the data base
    instructions: int
    reads: list[tuple[int, int]]  # (byte offset, length)


@dataclass(frozen=True)
class RunResult:
    """What the accelerator left: the memory that was asked for, every readable register, when each instruction ran."""

    reads: list[bytes]
    registers: dict[str, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)

    @property
    def cycles(self) -> int:
        return self.registers["CYCLES_LO"] | self.registers["CYCLES_HI"] << 32


@contextmanager
def _watched(path: Path, runs: int, progress: Callable[[int, int, int], None] | None) -> Iterator[None]:
    """Meanwhile tell `progress` what the bench writes to `path`: run and cycles."""
    if progress is None:
        yield
        return
    path.unlink(missing_ok=True)
    over = threading.Event()

    def watch() -> None:
        told = None
        while not over.wait(1.0):
            numbers = path.read_text().split() if path.exists() else []
            if len(numbers) == 2 and numbers != told:
                told = numbers
                progress(int(numbers[0]), runs, int(numbers[1]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def simulate(
    verilog: dict[str, str],
    config: Config,
    image: bytes,
    runs: list[Run],
    *,
    data_base: int = 0,
    weight_bases: list[int],
    dram: Dram,
    simulator: str = "verilator",
    timeout_cycles: int = 20_000_000,
    workdir: Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    waves: Waves | None = None,
) -> list[RunResult]:
    """Run the design `verilog` (file name -> text, top module hwgen_top) on the memory `image`, once per `Run`.

    Byte addresses are offsets into `image`. progress(run, runs, cycles of this run) is called about once a second, from
    another thread, once the design is compiled. waves: what to write of all signals, by a simulation that is compiled apart.
    Raises RuntimeError when the accelerator reports an error or does not halt within `timeout_cycles`, with its status
    registers in the message.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="hwgen-sim-") as temporary:
            return simulate(
                verilog, config, image, runs, data_base=data_base, weight_bases=weight_bases, dram=dram,
                simulator=simulator, timeout_cycles=timeout_cycles, workdir=Path(temporary), progress=progress, waves=waves,
            )  # fmt: skip
    beat = config.axi_bytes
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "dram.bin").write_bytes(memory_file(image, beat))
    settings = {"DATA_BASE": data_base, **{f"WEIGHT_BASE{p}": base for p, base in enumerate(weight_bases)}}
    job = {
        "beat": beat,
        "timeout": timeout_cycles,
        "config_hash": registers.config_hash(config),
        "settings": settings,
        "runs": [
            {
                "writes": [[offset, base64.b64encode(data).decode()] for offset, data in run.writes],
                "program": run.program,
                "instructions": run.instructions,
                "reads": run.reads,
            }
            for run in runs
        ],
    }
    (workdir / "job.json").write_text(json.dumps(job))
    with _watched(workdir / PROGRESS_FILE, len(runs), progress):
        run_bench(
            verilog,
            config,
            len(image),
            "hwgen.sim.tb.bench",
            workdir,
            simulator=simulator,
            plusargs=(f"+dram={workdir / 'dram.bin'}", f"+trace={workdir / TRACE_FILE}", *plusargs(dram), *_window(waves)),
            waves=None if waves is None else waves.path,
        )
    report = json.loads((workdir / "result.json").read_text())
    if "error" in report:
        raise RuntimeError(f"{simulator}: {report['error']}")
    events = trace.split((workdir / TRACE_FILE).read_text())
    results = []
    for run, result, seen in zip(runs, report["runs"], events, strict=True):
        at = data_base + run.program * beat
        program = isa.disassemble(image[at : at + run.instructions * isa.WORD_BYTES])
        reads = [base64.b64decode(data) for data in result["reads"]]
        results.append(RunResult(reads, result["registers"], trace.spans(seen, program)))
    return results


def _window(waves: Waves | None) -> list[str]:
    """What `tb/waves.v` is told of the cycles to write."""
    if waves is None or waves.cycles is None:
        return []
    first, last = waves.cycles
    return [f"+waves_from={first}"] + ([] if last is None else [f"+waves_to={last}"])


def memory_file(image: bytes, beat: int) -> bytes:
    """Contents of a file that $fread puts into the bench's memory: it fills a word from its most significant byte."""
    memory = np.zeros(-(-len(image) // beat) * beat, np.uint8)
    memory[: len(image)] = np.frombuffer(image, np.uint8)
    return memory.reshape(-1, beat)[:, ::-1].tobytes()


def run_bench(
    verilog: dict[str, str],
    config: Config,
    size: int,
    module: str,
    workdir: Path,
    *,
    simulator: str = "verilator",
    plusargs: tuple[str, ...] = (),
    waves: Path | None = None,
) -> None:
    """The design beside at least `size` bytes of memory, driven by cocotb's test `module`, which finds `workdir` in
    $HWGEN_BENCH. Raises as `simulators.run_bench`."""
    beat, ports = config.axi_bytes, config.weight_ports
    bench = resources.files("hwgen.sim").joinpath("tb")
    sources = dict(verilog)
    for name in ("dram.v", "axi_rules.v", "trace.v", "tb.v", *(["waves.v"] if waves is not None else [])):
        sources[name] = bench.joinpath(name).read_text()
    simulators.run_bench(
        sources,
        "tb",
        module,
        workdir,
        simulator=simulator,
        parameters={
            "BYTES": beat,
            "WORDS": max(BENCH_WORDS_MIN, 1 << (-(-size // beat) - 1).bit_length()),
            "BURST": config.burst_beats,
            "OUTSTANDING": config.outstanding,
        },
        defines={"WEIGHT_PORTS": ports, **{f"WEIGHT_PORT_{p}": 1 for p in range(1, ports)}},
        plusargs=plusargs,
        waves=waves,
        environment={"HWGEN_BENCH": str(workdir), "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "")},
    )
