"""Full-size networks on the zcu104 Config: cycles from the hardware's own counters, every output compared with golden.

    python tests/bench/full_size.py [MODELS | FILE.onnx ...] [--only REGEX] [--estimate] [KEY=VALUE ...]

MODELS: the folder of the real networks (default: shared/models beside the checkout); without it the seeded example
m3vit-tiny takes the place of the trained network (its routing is even), and the networks of others are left out. FILE.onnx: these
instead, calibrated and run with noise (from timm, say: vit_base_patch16_224). --only: of the titles that the table has.
--estimate: by the cycle model, without RTL: minutes instead of hours. --machine: the same, the functional machine's outputs
compared with golden, and golden with the float model. KEY=VALUE: Config fields. Whole networks with decoders, and video, are
exported where torch and transformers are (tests/bench/exports/whole.py), and left out where not.
Prints one table. Compiling the design takes minutes, once; then a run takes a minute for a million cycles.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hwgen import example, run
from hwgen import graph as fg
from hwgen.boards import load
from hwgen.compare import snr_db
from hwgen.dram import of_board
from hwgen.files import write_npz
from hwgen.levels import import_model
from hwgen.quantise.calibrate import noise
from hwgen.steps import build

BATCH = 8
WIDE = (
    "timm_swin_tiny", "timm_convnext_tiny", "timm_maxvit_tiny", "timm_crossvit_15_240", "timm_pvt_v2_b1", "hf_cvt_13",
    "timm_tiny_vit_5m", "timm_efficientformer_l1", "timm_efficientvit_m5", "timm_efficientvit_b1", "timm_mobilevit_s",
    "timm_poolformer_s12", "hf_segformer_b0",
)  # fmt: skip
WHOLE = (
    "upernet_swin_t_512", "segformer_b0_512x1024", "dpt_small_384", "vivit_small_16f", "detr_r18_512", "maskformer_swin_t_384",
    "evit_deit_small",
)  # fmt: skip
COLUMNS = ("network", "DRAM", "cycles an image", "ms", "array busy", "MB moved", "cycles of DRAM alone", "= golden", "seconds")


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
    return of_example("m3vit-tiny", work)


def of_example(name: str, work: Path) -> Network:
    model, calib, test = example.write(name, work / f"{name}.onnx")
    with np.load(test) as file:
        few = {key: file[key] for key in import_model(model).inputs}
    return Network(model, calib, {key: np.resize(array, (BATCH, *array.shape[1:])) for key, array in few.items()})


def filled(hollow: Path, work: Path) -> Path:
    """A file without weights, with random ones."""
    path = work / hollow.name
    command = [sys.executable, hollow.parents[1] / "hollow.py", "fill", hollow, path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def vit_small(folder: Path, work: Path) -> Network:
    """ViT-small 224, the shape of DeiT-Small, with random weights on photographs."""
    model = filled(folder / "hollow" / "timm_vit_small_ts16_dyn.onnx", work)
    with np.load(folder / "photos224.npz") as file:
        write_npz(work / "small_calib.npz", {"image": file["calib"].astype(np.float32)})
        return Network(model, work / "small_calib.npz", {"image": file["test"][:1].astype(np.float32)})


def noisy(model: Path, work: Path) -> Network:
    """Any model, on noise."""
    shapes = import_model(model).inputs
    write_npz(work / "noise.npz", {name: noise(shape) for name, shape in shapes.items()})
    images = {name: noise(shape, seed=1)[:1].astype(np.float32) for name, shape in shapes.items()}
    return Network(model, work / "noise.npz", images)


def exported(name: str, work: Path) -> Path:
    """A whole network by PyTorch's exporter."""
    script = Path(__file__).parent / "exports" / "whole.py"
    subprocess.run([sys.executable, "-W", "ignore", script, work / f"{name}.onnx", name], check=True, stdout=subprocess.DEVNULL)
    return work / f"{name}.onnx"


def row(cells: tuple[str, ...]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def measure(title: str, network: Network, work: Path, options: argparse.Namespace, batch: int, dram: str) -> bool:
    """One row of the table; whether RTL and golden are equal."""
    made = {"": network.model}
    start = time.monotonic()
    last = {"stop_after": "report"} if options.estimate else {}
    built = build(made, work / "bundle", calibrate=network.calibrate, settings=options.settings, batch=batch, **last)
    config, memory = built.config, of_board(load("zcu104"), built.config)
    images = {name: array[:batch] for name, array in network.images.items()}
    start = time.monotonic()
    same, equal, counters = True, "not run", {}
    if not options.estimate:
        bundle = run.open_bundle(work / "bundle")
        golden = run.run(bundle, "golden", images)
        found = run.run(bundle, "machine", images) if options.machine else run.run(bundle, "rtl", images, dram=dram)
        same = all(np.array_equal(golden.outputs[name], found.outputs[name]) for name in golden.outputs)
        equal, counters = "yes" if same else "NO", found.counters[0] if found.counters else {}
        if options.machine:
            equal += f", {worst(network, images, golden.outputs):.1f} dB of float"
    if options.estimate or options.machine:
        (task,) = built.report["tasks"].values()
        cycles, active = (batch * task[key] for key in ("cycles", "array_active_cycles"))
        moved = batch * sum(task["traffic_bytes"].values())
    else:
        cycles, active = counters["cycles"], counters["array_active"]
        moved = sum(n for name, n in counters.items() if "beats" in name) * config.axi_bytes
    row((
        title, dram, f"{cycles / batch:,.0f}", f"{cycles / batch / config.clock_mhz / 1e3:.2f}", f"{active / cycles:.1%}",
        f"{moved / batch / 1e6:.1f}", f"{moved / batch / memory.bytes_per_cycle / memory.open:,.0f}", equal,
        f"{time.monotonic() - start:.0f}",
    ))  # fmt: skip
    return same


def worst(network: Network, images: dict[str, np.ndarray], golden: dict[str, np.ndarray]) -> float:
    """dB of the float model that the worst output keeps on the first image."""
    graph = import_model(network.model)
    wanted = fg.outputs(graph, fg.evaluate(graph, {name: array[0] for name, array in images.items()}))
    return min(snr_db(values, golden[name][0]) for name, values in wanted.items())


def networks(folder: Path, work: Path) -> dict[str, tuple[Callable[[], Network], int, tuple[str, ...]]]:
    """Title -> (what makes the network, images a run, memories)."""
    both, board = ("board", "unlimited"), ("board",)
    found = {
        "M3ViT-tiny, one image": (lambda: m3vit_tiny(folder, work), 1, both),
        f"M3ViT-tiny, batch of {BATCH}": (lambda: m3vit_tiny(folder, work), BATCH, both),
    }
    if (folder / "hollow").exists():
        found["ViT-small 224, one image"] = lambda: vit_small(folder, work), 1, both
    for head in ("depth", "segmentation"):
        found[f"M3ViT-tiny with its head for {head}"] = lambda head=head: of_example(f"m3vit-{head}", work), 1, board
    for name in WIDE:
        if (hollow := folder / "wide" / f"{name}_ts17.onnx").exists():
            found[name] = lambda hollow=hollow: noisy(filled(hollow, work), work), 1, board
    if find_spec("torch") and find_spec("transformers"):
        found |= {name: (lambda name=name: noisy(exported(name, work), work), 1, board) for name in WHOLE}
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODELS | FILE.onnx | KEY=VALUE")
    parser.add_argument("--only", default="", metavar="REGEX")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--estimate", action="store_true")
    engine.add_argument("--machine", action="store_true")
    options = parser.parse_args(arguments)
    options.settings = dict(a.split("=", 1) for a in options.names if "=" in a)
    files = [Path(a) for a in options.names if a.endswith(".onnx")]
    folders = [Path(a) for a in options.names if "=" not in a and not a.endswith(".onnx")]
    folder = (folders or [Path(__file__).resolve().parents[2].parent / "shared" / "models"])[0]
    row(COLUMNS)
    print(f"|{'---|' * len(COLUMNS)}")
    same = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        jobs = {f.stem: (lambda f=f: noisy(f, work), 1, ("board",)) for f in files} or networks(folder, work)
        for title, (make, batch, memories) in jobs.items():
            if not re.search(options.only, title):
                continue
            network = make()
            for dram in memories[: 1 if options.estimate or options.machine else None]:
                same.append(measure(title, network, work, options, batch, dram))
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
