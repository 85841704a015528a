"""What several test files share."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hwgen.cli import main

# Before NumPy is imported: the matrices are small, and several workers would fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A shell starts what runs in its background with SIGINT ignored, nohup with SIGHUP, and the children of the tests would too.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_collection_finish() -> None:
    """What is loaded by then stays: builds collect garbage several times, and would go through all of it each time."""
    gc.freeze()


@pytest.fixture(scope="session")
def models() -> Path:
    """Folder of the real networks, which stands beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "models"
    if not folder.is_dir():
        pytest.skip("the real networks are not beside this checkout")
    return folder


@pytest.fixture
def command_line(capsys):
    """command_line(main) runs a command line in this process: (exit code, stdout, stderr)."""

    def of(main) -> Callable[..., tuple[int, str, str]]:
        def run(*arguments) -> tuple[int, str, str]:
            capsys.readouterr()
            code = main([str(a) for a in arguments])
            captured = capsys.readouterr()
            return code, captured.out, captured.err

        return run

    return of


@pytest.fixture
def hwgen(command_line):
    """`hwgen` in this process, see `command_line`."""
    return command_line(main)
