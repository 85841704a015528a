"""The driver's devices: simulated boards over machine model and Verilog, the first also through PYNQ, and a real one.

The same tests run on all of them. A board is used where $HWGEN_BOARD_BUNDLE names the bundle of its bitstream.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from hwgen import run, steps
from hwgen.config import Config
from hwgen.host.bundle import Bundle
from hwgen.sim.device import open_device

CONFIG = Config(array_outputs=16, array_inputs=16)  # as tests/system: the compiled simulation is shared
ASSETS = Path(str(resources.files("hwgen.example"))) / "assets"
IMAGES = 4


def pytest_collection_modifyitems(items) -> None:
    """What needs the bundle goes to the worker of the system tests with the same Config: its Verilog is made once."""
    for item in items:
        if "digits_bundle" in getattr(item, "fixturenames", ()) and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("16x16"))


@dataclass
class Bench:
    """A device with the bundle that fits it. `engine`: where faults are injected, None on a board."""

    name: str
    device: object
    engine: object
    bundle: Bundle
    images: np.ndarray
    golden: dict[str, dict[str, np.ndarray]]  # by task and output

    @property
    def buffers(self) -> int:
        """Bytes that are allocated."""
        board = self.device if self.name != "pynq" else self.device._device.board
        return board.allocated


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory) -> Path:
    """The trained two-task network, a task per file, with its Verilog."""
    if named := os.environ.get("HWGEN_BOARD_BUNDLE"):
        return Path(named)
    path = tmp_path_factory.mktemp("driver") / "digits.bundle"
    models = {task: ASSETS / f"m3vit_digits_{task}.onnx" for task in ("digit", "parity")}
    settings = {name: str(value) for name, value in CONFIG.to_dict().items()}
    steps.build(models, path, calibrate=ASSETS / "digits_calib.npz", settings=settings)
    return path


@pytest.fixture(scope="session")
def digits(digits_bundle) -> tuple[Bundle, np.ndarray, dict]:
    """Bundle, images, golden outputs."""
    bundle = Bundle(digits_bundle)
    images = np.load(ASSETS / "digits_test.npz")["image"][:IMAGES]
    golden = {task: run.run(bundle, "golden", {"image": images}, task).outputs for task in bundle.tasks}
    return bundle, images, golden


def pynq_or_skip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PYNQ warns that this is no board
        return pytest.importorskip("pynq", reason="PYNQ is not installed here: pip install 'hwgen[board]'")


@pytest.fixture(
    scope="module",
    params=["machine", "rtl", "pynq", "board"],
)
def opened(request, digits) -> Iterator[Bench]:
    """A device, for a module's tests one after the other."""
    name = request.param
    if name == "board":
        if "HWGEN_BOARD_BUNDLE" not in os.environ:
            pytest.skip("no board: $HWGEN_BOARD_BUNDLE names no bundle")
        from hwgen.host.board import Board

        board = device = Board(digits[0])
        engine = None
    else:
        if name == "pynq":
            pynq_or_skip()
        board = device = open_device(digits[0], "rtl" if name == "rtl" else "machine")
        engine = board.engine
        if name == "pynq":
            from hwgen.host.board import Board
            from hwgen.sim.pynq_device import PynqDevice

            device = Board(digits[0], device=PynqDevice(board))
    yield Bench(name, device, engine, *digits)
    board.close()


@pytest.fixture
def bench(opened) -> Iterator[Bench]:
    """The device in the state it has after power-up."""
    if opened.engine is not None:
        opened.engine.fault(error=False, hold=False)
        opened.engine.reset()
    yield opened


@pytest.fixture
def faulty(bench) -> Bench:
    """A device into which faults can be injected."""
    if bench.engine is None:
        pytest.skip("faults are injected into simulated devices")
    return bench
