"""A simulator in a process of its own that does what it is told over a socket; between commands simulated time stands still."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection
from pathlib import Path

from hwgen import processes
from hwgen.errors import UserError
from hwgen.progress import work

SOCKET, JOB, LOG = "socket", "job.json", "child.log"
COMPILE_SECONDS = 1800  # that a simulator may take to compile a large design


class Child:
    """`python -m MODULE FOLDER` beside this process, with `job` in the folder; its cocotb side connects to the socket there.

    Raises RuntimeError where the simulator is missing, does not compile the design, or dies.
    """

    def __init__(self, module: str, job: dict):
        self._folder = tempfile.TemporaryDirectory(prefix="hwgen-cosim-")
        folder = self.path = Path(self._folder.name)
        (folder / JOB).write_text(json.dumps(job))
        listener = socket.socket(socket.AF_UNIX)
        with _short(folder) as place:
            listener.bind(f"{place}/{SOCKET}")
        listener.listen()
        with open(folder / LOG, "w") as log:
            command = [sys.executable, "-m", module, str(folder)]
            self._process = processes.start(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._connection: Connection | None = None
        try:
            with listener, work("starting the simulator"):  # its socket goes before the folder that holds it
                self._connection = self._accept(listener)
        except BaseException:
            self.close()
            raise

    def _accept(self, listener: socket.socket) -> Connection:
        """The child's connection. Raises RuntimeError with what it said when it ends without."""
        listener.settimeout(0.1)
        for _ in range(COMPILE_SECONDS * 10):
            try:
                found, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is None:
                    continue
                break
            found.setblocking(True)
            return Connection(found.detach())
        raise RuntimeError(f"the simulator did not start: {self._said()}")

    def _said(self) -> str:
        lines = (self.path / LOG).read_text(errors="replace").strip().splitlines()
        complaints = [line for line in lines if line.startswith("%")]  # of Verilator: the last one only counts the others
        return (complaints[:1] or lines[-1:] or [f"exit code {self._process.poll()}"])[0]

    def ask(self, *command):
        """The answer to a command."""
        try:
            self._connection.send(command)
            return self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the simulator has ended: {self._said()}") from None

    def close(self) -> None:
        """End the simulator."""
        if self._connection is not None:
            self._connection.close()  # it ends when its commands do
            self._connection = None
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        processes.end(self._process)
        self._folder.cleanup()


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A name of the folder for a socket's path, which 108 bytes must hold, however long TMPDIR is: of Linux."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        yield str(folder)
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        yield str(descriptors / str(number))
    finally:
        os.close(number)


def main(bench: Callable[[Path, dict], None]) -> int:
    """The child's main program: `bench` compiles and runs the job in the folder until its commands end. The exit code."""
    folder = Path(sys.argv[1])
    with processes.stoppable():
        try:
            bench(folder, json.loads((folder / JOB).read_text()))
        except (UserError, RuntimeError) as error:
            print(error, file=sys.stderr)
            return 1
        return 0


def commands(folder: Path) -> Iterator[tuple[str, list, Callable[[object], None]]]:
    """The cocotb side: what `Child.ask` asks, its arguments, and where the answer goes, until the connection closes."""
    with _short(folder) as place:
        client = Client(f"{place}/{SOCKET}", "AF_UNIX")
    with client as connection:
        while True:
            try:
                name, *arguments = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            yield name, arguments, connection.send
