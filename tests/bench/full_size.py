"""Full-size RTL: M3ViT-tiny with real routing on the zcu104 Config, cycles from the hardware's own counters.

    python tests/bench/full_size.py [MODELS] [KEY=VALUE ...]

MODELS: the folder with m3vit_edge_task0.onnx and edge_images.npz (default: shared/models beside the checkout); without
it the seeded example m3vit-tiny runs, whose routing is even. KEY=VALUE: Config fields. Compiling takes minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hwgen import example, run
from hwgen.boards import load
from hwgen.build import build
from hwgen.dram import of_board
from hwgen.files import write_npz


def network(folder: Path, work: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """(ONNX file, calibration file, one test image per input)."""
    if (folder / "m3vit_edge_task0.onnx").exists():
        with np.load(folder / "edge_images.npz") as file:
            calib, test = (file[name].astype(np.float32) / 256 for name in ("calib", "test"))
        write_npz(work / "calib.npz", {"image": calib})
        return folder / "m3vit_edge_task0.onnx", work / "calib.npz", {"image": test[:1]}
    model, calib, test = example.write("m3vit-tiny", work / "tiny.onnx")
    with np.load(test) as file:
        return model, calib, {"image": file["image"][:1]}


def main(arguments: list[str]) -> None:
    settings = dict(a.split("=", 1) for a in arguments if "=" in a)
    folders = [a for a in arguments if "=" not in a]
    folder = Path(folders[0]) if folders else Path(__file__).resolve().parents[2].parent / "shared" / "models"
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model, calib, images = network(folder, work)
        built = build({"": model}, work / "bundle", calibrate=calib, settings=settings)
        bundle = run.open_bundle(work / "bundle")
        golden = run.run(bundle, "golden", images)
        start = time.monotonic()
        rtl = run.run(bundle, "rtl", images)
        seconds = time.monotonic() - start
    same = all(np.array_equal(golden.outputs[name], rtl.outputs[name]) for name in golden.outputs)
    counters = rtl.counters[0]
    board = load("zcu104")
    limit = counters_bytes(counters, built.config) / of_board(board, built.config).bytes_per_cycle
    print(f"{model.name} on {board.name}, array {built.config.array_outputs} x {built.config.array_inputs}")
    print(f"RTL equal to golden       {'yes' if same else 'NO'}")
    print(f"cycles, one image         {counters['cycles']:,} ({counters['cycles'] / built.config.clock_mhz / 1e3:.3f} ms)")
    print(f"array active              {counters['array_active']:,} ({counters['array_active'] / counters['cycles']:.1%})")
    print(f"rows waiting for weights  {counters['stall_weights']:,}")
    print(f"limit by DRAM traffic     {limit:,.0f}")
    print(f"compile and simulate      {seconds:.0f} s")
    sys.exit(not same)


def counters_bytes(counters: dict[str, int], config) -> int:
    """Bytes that crossed all ports."""
    beats = sum(value for name, value in counters.items() if "beats" in name)
    return beats * config.axi_bytes


if __name__ == "__main__":
    main(sys.argv[1:])
