"""The driver told to end: the exit code of the signal, and the simulator beside it ended with all that it started."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hwgen.host import __main__, multitask, self_test
from hwgen.sim.child import Child


@pytest.mark.parametrize("module", [__main__, self_test, multitask], ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    "number, code, said", [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "host: interrupted\n")], ids=["TERM", "INT"]
)
def test_a_signal_is_an_exit_code(capsys, monkeypatch, module, number, code, said):
    def interrupted(arguments):
        os.kill(os.getpid(), number)
        time.sleep(1)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module, "_main", interrupted)
    assert module.main([]) == code
    assert capsys.readouterr() == ("", said)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_simulator_that_still_compiles_ends_with_its_compilers(tmp_path, monkeypatch):
    (tmp_path / "slow_bench.py").write_text(
        "import os, sys\n"
        "from hwgen import processes\n"
        "from hwgen.sim.child import main\n\n\n"
        "def bench(folder, job):\n"
        "    processes.run(['sh', '-c', 'sleep 300 & echo $! $$ ' + str(os.getpid()) + ' > ' + job['pids'] + '; wait'])\n\n\n"
        "sys.exit(main(bench))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    written = tmp_path / "pids"

    def interrupt(self):
        end = time.monotonic() + 20
        while not written.exists() or len(written.read_text().split()) < 3:
            assert time.monotonic() < end
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(Child, "_said", interrupt)
    monkeypatch.setattr("hwgen.sim.child.COMPILE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        Child("slow_bench", {"pids": str(written)})
    for pid in written.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.filterwarnings("error")
def test_a_simulator_that_ends_at_once_leaves_no_thread_and_no_folder(tmp_path, monkeypatch):
    """Nor a thread that complains later, as one does in which `accept` waits for a socket that is closed."""
    (tmp_path / "ended_bench.py").write_text("raise SystemExit('no licence')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the simulator did not start: no licence"):
        Child("ended_bench", {})
    assert threading.active_count() == before and not list(temporary.iterdir())


def test_a_temporary_folder_of_any_length(tmp_path, monkeypatch):
    """A socket's path holds 108 bytes."""
    (tmp_path / "answering_bench.py").write_text(
        "import sys\n"
        "from hwgen.sim.child import commands, main\n\n\n"
        "def bench(folder, job):\n"
        "    for name, arguments, answer in commands(folder):\n"
        "        answer([name, *arguments])\n\n\n"
        "sys.exit(main(bench))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (long := tmp_path / ("long" * 40)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    child = Child("answering_bench", {})
    assert child.ask("read", 3) == ["read", 3]
    child.close()
    assert not list(long.iterdir())
