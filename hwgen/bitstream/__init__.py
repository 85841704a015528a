"""A bitstream made entirely with open tools: Yosys, nextpnr-ecp5 and ecppack, from a bundle's Verilog and a shell around it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ..boards import Board
from ..config import Config
from ..errors import Mismatch
from ..files import write_atomic
from ..progress import work
from ..rtl.shell.shell import ShellTiming, emit_shell
from ..synth import families, yosys
from ..synth.partition import split
from . import nextpnr, report
from .pll import pll
from .target import bit_cycles, lpf, target

SHELL_FILE = "shell.v"


@dataclass(frozen=True)
class Bitstream:
    """What was made: the files beside the bitstream, by kind, and its timing."""

    board: str
    files: dict[str, Path]
    timing: report.Timing
    seconds: dict[str, float]
    tools: tuple[str, ...]

    def to_dict(self) -> dict:
        """For `hwgen bitstream --json`."""
        files = {kind: str(path) for kind, path in self.files.items()}
        seconds = {step: round(s, 1) for step, s in self.seconds.items()}
        return {"board": self.board, "tools": self.tools, "files": files, "seconds": seconds, **self.timing.to_dict()}


def sources(verilog: dict[str, str], config: Config, board: Board) -> dict[str, str]:
    """The whole design, file name -> Verilog: the bundle's, the shell, the board's pins. Raises UserError for a board or a
    Config that it does not serve."""
    found = target(board)
    clock = pll(found.oscillator_mhz, config.clock_mhz).clock_mhz(found.oscillator_mhz)
    bit_cycles(found, clock)
    top = resources.files("hwgen.rtl_templates").joinpath(f"{found.top}.v").read_text(encoding="utf-8")
    return {**verilog, SHELL_FILE: emit_shell(config, ShellTiming(clock, found.baud)), f"{found.top}.v": top}


def script(top: str, parameters: dict[str, int]) -> str:
    """The Yosys script from `design.v` to `design.json`."""
    setting = " ".join(f"-set {name} {value}" for name, value in parameters.items())
    kind = families.family("ecp5")
    return f"read_verilog design.v\nchparam {setting} {top}\n{kind.synth} -top {top} -json design.json\n"


def bitstream(
    verilog: dict[str, str],
    config: Config,
    board: Board,
    output: Path,
    *,
    seed: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Bitstream:
    """Make the bitstream `output` of the machine `verilog` (file name -> text) at `config.clock_mhz`, its reports beside it:
    OUTPUT.json (nextpnr's), OUTPUT.log, OUTPUT.lpf.

    seed: of the placement. Raises UserError for a board or Config that the flow does not serve or where a tool is missing,
    Mismatch where the clock is not reached: then there are reports, but no bitstream.
    """
    found = target(board)
    tools = (nextpnr.version(), yosys.version())
    device = nextpnr.device(board.part)
    dividers = pll(found.oscillator_mhz, config.clock_mhz)
    clock = dividers.clock_mhz(found.oscillator_mhz)
    design = sources(verilog, config, board)
    files = {kind: output.with_suffix(f".{kind}") for kind in ("json", "log", "lpf")}
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="hwgen-bitstream-") as name:
        folder = Path(name)

        def step(name: str, run: Callable[[], None]) -> None:
            begin = time.monotonic()
            progress(name)
            with work(name):
                run()
            seconds[name] = time.monotonic() - begin
            progress(f"{name}: {seconds[name]:.0f} s")

        (folder / "design.v").write_text("".join(split("".join(design.values())).values()))
        (folder / "pins.lpf").write_text(lpf(found))
        arguments = [device, "--package", found.package, "--speed", str(found.speed), "--json", "design.json"]
        arguments += [
            "--lpf",
            "pins.lpf",
            "--textcfg",
            "design.config",
            "--report",
            "report.json",
            "--freq",
            f"{clock:g}",
        ]
        arguments += ["--seed", str(seed), "--timing-allow-fail", "--threads", "1"]
        step("synthesis", lambda: yosys.run(script(found.top, dividers.parameters()), folder))
        step("place and route", lambda: nextpnr.run("nextpnr_ecp5", arguments, folder, folder / "pnr.log", progress))
        timing = report.read(json.loads((folder / "report.json").read_text()), clock)
        for kind, made in (("json", "report.json"), ("log", "pnr.log"), ("lpf", "pins.lpf")):
            write_atomic(files[kind], (folder / made).read_bytes())
        if not timing.met:
            raise Mismatch(
                f"place and route reaches {timing.reached_mhz:.2f} MHz, not the {clock:g} of the bundle: another --seed, or a"
                f" build with  --set clock_mhz={int(timing.reached_mhz)};  {files['json']} holds the paths"
            )
        pack = ["--compress", "design.config", "design.bit"]
        step("packing", lambda: nextpnr.run("ecppack", pack, folder, folder / "pack.log"))
        write_atomic(output, (folder / "design.bit").read_bytes())
    return Bitstream(board.name, {"bitstream": output, **files}, timing, seconds, tools)


def text(made: Bitstream) -> str:
    """What `hwgen bitstream` prints."""
    return f"{made.files['bitstream']}: {made.files['bitstream'].stat().st_size:,} bytes\n" + report.text(made.timing)
