"""Full-size RTL on the zcu104 Config: cycles from the hardware's own counters, every output compared with golden.

    python tests/bench/full_size.py [MODELS | FILE.onnx ...] [KEY=VALUE ...]

MODELS: the folder of the real networks (default: shared/models beside the checkout); without it the seeded example
m3vit-tiny takes the place of the trained network (its routing is even), and ViT-small is left out. FILE.onnx: these instead,
calibrated and run with noise (from timm, say: vit_base_patch16_224). KEY=VALUE: Config fields.
Prints one table. Compiling the design takes minutes, once; then a run takes seconds for a million cycles.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwgen import example, run
from hwgen.boards import load
from hwgen.dram import of_board
from hwgen.files import write_npz
from hwgen.levels import import_model
from hwgen.quantise.calibrate import noise
from hwgen.steps import build

BATCH = 8


@dataclass
class Network:
    """A model with its calibration file and test images [images, C, H, W] by input name."""

    model: Path
    calibrate: Path
    images: dict[str, np.ndarray]


def m3vit_tiny(folder: Path, work: Path) -> Network:
    """The reference workload with trained weights and routing, or without the folder a random one of its shape."""
    if (folder / "m3vit_edge_task0.onnx").exists():
        with np.load(folder / "edge_images.npz") as file:
            calib, test = (file[name].astype(np.float32) / 256 for name in ("calib", "test"))
        write_npz(work / "edge_calib.npz", {"image": calib})
        return Network(folder / "m3vit_edge_task0.onnx", work / "edge_calib.npz", {"image": test[:BATCH]})
    model, calib, test = example.write("m3vit-tiny", work / "tiny.onnx")
    with np.load(test) as file:
        few = file["image"]
    return Network(model, calib, {"image": np.resize(few, (BATCH, *few.shape[1:]))})


def vit_small(folder: Path, work: Path) -> Network | None:
    """ViT-small 224, the shape of DeiT-Small, with random weights on photographs."""
    hollow = folder / "hollow" / "timm_vit_small_ts16_dyn.onnx"
    if not hollow.exists():
        return None
    command = [sys.executable, folder / "hollow.py", "fill", hollow, work / "small.onnx"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with np.load(folder / "photos224.npz") as file:
        write_npz(work / "small_calib.npz", {"image": file["calib"].astype(np.float32)})
        return Network(work / "small.onnx", work / "small_calib.npz", {"image": file["test"][:1].astype(np.float32)})


def noisy(model: Path, work: Path) -> Network:
    """Any model, on noise."""
    shapes = import_model(model).inputs
    write_npz(work / "noise.npz", {name: noise(shape) for name, shape in shapes.items()})
    images = {name: noise(shape, seed=1)[:1].astype(np.float32) for name, shape in shapes.items()}
    return Network(model, work / "noise.npz", images)


def measure(title: str, network: Network, work: Path, settings: dict[str, str], batch: int, dram: str) -> bool:
    """One row of the table; whether RTL and golden are equal."""
    built = build({"": network.model}, work / "bundle", calibrate=network.calibrate, settings=settings, batch=batch)
    bundle, config = run.open_bundle(work / "bundle"), built.config
    images = {name: array[:batch] for name, array in network.images.items()}
    golden = run.run(bundle, "golden", images)
    start = time.monotonic()
    rtl = run.run(bundle, "rtl", images, dram=dram)
    seconds = time.monotonic() - start
    same = all(np.array_equal(golden.outputs[name], rtl.outputs[name]) for name in golden.outputs)
    counters = rtl.counters[0]
    moved = sum(n for name, n in counters.items() if "beats" in name) * config.axi_bytes / batch
    memory = of_board(load("zcu104"), config)
    cells = (
        title,
        dram,
        f"{counters['cycles'] / batch:,.0f}",
        f"{counters['cycles'] / batch / config.clock_mhz / 1e3:.2f}",
        f"{counters['array_active'] / counters['cycles']:.1%}",
        f"{moved / 1e6:.1f}",
        f"{moved / memory.bytes_per_cycle / memory.open:,.0f}",
        "yes" if same else "NO",
        f"{seconds:.0f}",
    )
    print(f"| {' | '.join(cells)} |", flush=True)
    return same


def main(arguments: list[str]) -> None:
    settings = dict(a.split("=", 1) for a in arguments if "=" in a)
    files = [Path(a) for a in arguments if a.endswith(".onnx")]
    folders = [a for a in arguments if "=" not in a and not a.endswith(".onnx")]
    folder = Path(folders[0]) if folders else Path(__file__).resolve().parents[2].parent / "shared" / "models"
    print(
        "| network | DRAM | cycles an image | ms | array busy | MB moved | cycles of DRAM alone | = golden | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    same = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if files:
            sys.exit(not all([measure(f.stem, noisy(f, work), work, settings, 1, "board") for f in files]))
        tiny, small = m3vit_tiny(folder, work), vit_small(folder, work)
        for dram in ("board", "unlimited"):
            same.append(measure("M3ViT-tiny, one image", tiny, work, settings, 1, dram))
            same.append(measure(f"M3ViT-tiny, batch of {BATCH}", tiny, work, settings, BATCH, dram))
            if small is not None:
                same.append(measure("ViT-small 224, one image", small, work, settings, 1, dram))
    sys.exit(not all(same))


if __name__ == "__main__":
    main(sys.argv[1:])
