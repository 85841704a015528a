"""Told to end, or in want of room: one line or none, the exit code, no process and no folder left."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.back import verilog

from hwgen import boards, processes, steps, synth
from hwgen.errors import Terminated
from hwgen.example import write

TOP = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds: a loaded machine starts processes late


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def pids(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def gone(file: Path, count: int) -> bool:
    return len(pids(file)) == count and not any(map(alive, pids(file)))


@pytest.fixture
def script(tmp_path):
    """script(code) starts Python code beside this process, with an empty temporary folder and an empty cache."""
    started = []

    def run(code: str, **options) -> subprocess.Popen:
        for name in ("temporary", "cache"):
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "script.py").write_text(textwrap.dedent(code))
        environment = {**os.environ, "PYTHONPATH": str(TOP), "TMPDIR": str(tmp_path / "temporary")}
        environment["HWGEN_CACHE"] = str(tmp_path / "cache")
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py"],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            **options,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a failed test has left too
        process.wait()
        process.stdout.close()
        process.stderr.close()


# --- children ------------------------------------------------------------------------------------------------------

FAMILY = "sleep 300 & echo $! >> pids; echo $$ >> pids; wait"  # a child with a child of its own, as make has


def test_a_childs_children_end_with_it(tmp_path):
    with pytest.raises(Terminated), processes.child(["sh", "-c", FAMILY], cwd=tmp_path):
        until(lambda: len(pids(tmp_path / "pids")) == 2)
        raise Terminated(143)
    until(lambda: gone(tmp_path / "pids", 2))


def test_a_child_that_does_not_listen_is_ended_by_force(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    with processes.child(["sh", "-c", "trap '' TERM; " + FAMILY], cwd=tmp_path):
        until(lambda: len(pids(tmp_path / "pids")) == 2)
    until(lambda: gone(tmp_path / "pids", 2))


def test_what_ends_by_itself_leaves_nothing_behind(tmp_path):
    assert processes.run(["sh", "-c", "sleep 300 & echo $! >> pids; exit 7"], cwd=tmp_path) == 7
    until(lambda: gone(tmp_path / "pids", 1))


def test_a_signal_while_a_child_starts_waits_until_it_is_known(tmp_path, monkeypatch):
    class Late(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options)
            if command != ["sleep", "300"]:
                return
            (tmp_path / "pids").write_text(str(self.pid))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    monkeypatch.setattr(subprocess, "Popen", Late)
    with pytest.raises(Terminated), processes.stoppable():
        processes.run(["sleep", "300"])
        time.sleep(PATIENCE)
    assert gone(tmp_path / "pids", 1)


def test_children_end_when_their_parent_is_killed(script, tmp_path):
    process = script(f"from hwgen import processes\nprocesses.run(['sh', '-c', {FAMILY!r}])\n")
    until(lambda: len(pids(tmp_path / "pids")) == 2)
    time.sleep(0.2)
    process.kill()
    until(lambda: gone(tmp_path / "pids", 2))


def test_children_of_threads_end_too(hwgen, tmp_path, monkeypatch):
    def one(unit, kind, cache):
        processes.run(["sh", "-c", FAMILY], cwd=tmp_path)

    names = [SimpleNamespace(name=f"u{i}", instances={}) for i in range(6)]
    monkeypatch.setattr(synth, "units", lambda verilog, defines: names)
    monkeypatch.setattr(synth.yosys, "tool", lambda: "pyosys")
    monkeypatch.setattr(synth, "_synthesise", one)
    monkeypatch.setattr("hwgen.boards.table", lambda: synth.netlists({}, boards.load("zcu104"), jobs=2))

    def soon():
        until(lambda: len(pids(tmp_path / "pids")) == 4)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=soon).start()
    assert hwgen("boards") == (143, "", "")
    until(lambda: gone(tmp_path / "pids", 4))


def test_a_signal_is_not_lost_while_another_thread_has_started_a_child(monkeypatch):
    """It finds that one is being started, and is put off; before it is written down, the thread looks whether one was."""
    starting, put_off = threading.Event(), threading.Event()

    class Asked(set):
        def add(self, number):
            put_off.set()
            time.sleep(0.5)
            super().add(number)

    class Slow(subprocess.Popen):
        def __init__(self, command, **options):
            if command == ["sleep", "0"]:
                starting.set()
                put_off.wait(PATIENCE)
            super().__init__(command, **options)

    monkeypatch.setattr(processes, "_asked", Asked())
    monkeypatch.setattr(subprocess, "Popen", Slow)
    thread = threading.Thread(target=processes.run, args=(["sleep", "0"],))
    with pytest.raises(Terminated), processes.stoppable():
        thread.start()
        assert starting.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    thread.join(PATIENCE)
    assert not thread.is_alive() and not processes._asked


@pytest.mark.parametrize(
    "number, code, said", [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "hwgen: interrupted\n")]
)
def test_a_search_in_processes_ends_at_once(script, tmp_path, number, code, said):
    """SIGINT goes to all of them, as a terminal sends it."""
    process = script(
        """
        import sys, time
        from hwgen import boards, cli
        from hwgen.explore import workers

        def first(graphs, board, job):
            time.sleep(0.1)

        def search():
            with workers.crew({}, boards.load("zcu104"), 2, None, lambda done, jobs: None) as run:
                run([300.0] * 40)

        if __name__ == "__main__":
            workers.evaluate, workers._evaluate, workers.WORTH_SECONDS = first, time.sleep, 0.5
            boards.table = search
            sys.exit(cli.main(["boards"]))
        """,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    started = until(lambda: len(found := children.read_text().split()) >= 3 and found)  # two and the resource tracker
    time.sleep(1)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, "", said)
    until(lambda: not any(alive(int(pid)) for pid in started))


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, code, said", [("TERM", 143, ""), ("INT", 130, "hwgen: interrupted\n"), ("HUP", 129, "")]
)
def test_ending_a_compilation_leaves_no_process_and_no_folder(script, tmp_path, number, code, said):
    """Verilator's place is taken by a script that starts what make would start."""
    pytest.importorskip("cocotb_tools")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "verilator").write_text(f"#!/bin/sh\ncd {tmp_path}\n{FAMILY}\n")
    (tools / "verilator").chmod(0o755)
    process = script(
        f"""
        import os, sys, tempfile
        from pathlib import Path
        from hwgen import boards, cli
        from hwgen.sim import simulators

        def compile():
            with tempfile.TemporaryDirectory() as folder:
                simulators.run_bench({{"t.v": "module t; endmodule"}}, "t", "none", Path(folder))

        simulators.verilator_environment = lambda: {{"PATH": "{tools}" + os.pathsep + os.environ["PATH"]}}
        boards.table = compile
        sys.exit(cli.main(["boards"]))
        """
    )
    until(lambda: len(pids(tmp_path / "pids")) == 2)
    process.send_signal(getattr(signal, f"SIG{number}"))
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, "", said)
    until(lambda: gone(tmp_path / "pids", 2))  # SIGKILL takes a moment
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [p.suffix for p in (tmp_path / "cache" / "sim").iterdir()] == [".lock"]


@pytest.mark.slow
def test_ending_a_real_compilation(script, tmp_path):
    pytest.importorskip("cocotb_tools")
    write("m3vit-micro", tmp_path / "m.onnx")
    process = script(
        """
        import sys
        from hwgen.cli import main

        small = ["--set", "array_outputs=8", "--set", "array_inputs=8", "--calibrate", "m_calib.npz"]
        assert main(["build", "m.onnx", "-o", "m.bundle", *small]) == 0
        sys.exit(main(["run", "m.bundle", "--engine", "rtl", "--input", "m_test.npz"]))
        """,
    )

    def compilers() -> list[str]:
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
        return [line for line in listed.splitlines() if "cc1plus" in line and str(tmp_path) in line]

    end = time.monotonic() + 300
    while not compilers():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "Traceback" not in err
    assert not compilers()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [p.suffix for p in (tmp_path / "cache" / "sim").iterdir()] == [".lock"]


def test_an_interrupted_build_prints_one_line_and_writes_nothing(hwgen, tmp_path, monkeypatch):
    write("m3vit-micro", tmp_path / "m.onnx")

    def interrupted(build):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setitem(__import__("hwgen.steps").steps.STEPS, "quantise", interrupted)
    before = sorted(tmp_path.iterdir())
    code, out, err = hwgen("build", tmp_path / "m.onnx", "-o", tmp_path / "m.bundle")
    assert (code, out, err.splitlines()[-1]) == (130, "", "hwgen: interrupted") and "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_signal_that_a_finaliser_swallows_comes_again(hwgen, monkeypatch):
    class Held:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    def table():
        Held()
        time.sleep(PATIENCE)

    monkeypatch.setattr("hwgen.boards.table", table)
    assert hwgen("boards") == (143, "", "")


def test_a_second_signal_does_not_disturb_the_cleaning_up(hwgen, tmp_path, monkeypatch):
    def table():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PATIENCE)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            (tmp_path / "cleaned").touch()

    monkeypatch.setattr("hwgen.boards.table", table)
    assert hwgen("boards") == (143, "", "")
    assert (tmp_path / "cleaned").exists()


# --- room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["build", "m.onnx", "-o", "new.bundle"], ["run", "m.bundle", "--output", "o.npz"]])
def test_a_full_disk_is_one_line(hwgen, tmp_path, monkeypatch, command):
    """A limit on the size of files stands for the full disk: what is written so far goes, and the message names the file."""
    monkeypatch.chdir(tmp_path)
    model, calibration, test = write("m3vit-micro", tmp_path / "m.onnx")
    small = ["--set", "array_outputs=8", "--set", "array_inputs=8", "--calibrate", str(calibration)]
    assert hwgen("build", model, *small)[0] == 0
    options = small if command[0] == "build" else ["--engine", "golden", "--input", str(test)]
    before = sorted(tmp_path.iterdir())
    code = "import sys; from hwgen.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *command, *options],
        env={**os.environ, "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("cannot be written (File too large)"), (
        done.stderr
    )
    assert "Traceback" not in done.stderr and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_under_yosys_is_one_line(hwgen, tmp_path, monkeypatch, words):
    """Which makes the Verilog, and says it within a traceback of its own."""

    def full(*_, **__):
        raise verilog.YosysError(f"Traceback:\n  ...\nError: {os.strerror(words)} (os error {words})")

    monkeypatch.setenv("HWGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verilog, "_convert_rtlil_text", full)
    steps.verilog.cache_clear()
    model, *_ = write("m3vit-micro", tmp_path / "m.onnx")
    small = ["--set", "array_outputs=8", "--set", "array_inputs=8"]
    code, _, err = hwgen("build", model, "-o", tmp_path / "b", *small)
    assert code == 2 and "Traceback" not in err and not (tmp_path / "b").exists()
    assert os.strerror(words) in err.splitlines()[-1] and "temporary files" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    code = "import sys; from hwgen.cli import main; sys.exit(main(['boards']))"
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (done.returncode, done.stderr) == (2, "hwgen: error: No space left on device\n")


def test_a_cache_that_cannot_be_written_is_told_before_the_work(hwgen, tmp_path, monkeypatch):
    model, calibration, test = write("m3vit-micro", tmp_path / "m.onnx")
    small = ["--set", "array_outputs=8", "--set", "array_inputs=8", "--calibrate", calibration]
    bundle = tmp_path / "m.bundle"
    assert hwgen("build", model, *small, "-o", bundle)[0] == 0
    (tmp_path / "file").touch()
    run = ["run", bundle, "--engine", "rtl", "--input", test]
    monkeypatch.setenv("HWGEN_CACHE", str(tmp_path / "file" / "cache"))
    code, _, err = hwgen(*run)
    assert code == 2 and err.count("\n") == 1 and "cannot be written (Not a directory); set HWGEN_CACHE" in err
    monkeypatch.setenv("HWGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hwgen.cache.shutil.disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    code, _, err = hwgen(*run)
    assert code == 2 and err.count("\n") == 1 and "300 MB are needed to compile a simulation, 5 MB are free" in err
    assert hwgen("run", bundle, "--engine", "golden", "--input", test)[0] == 0
    assert np.load(test)["image"].shape[0] == 4
