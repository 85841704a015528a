"""What `hwgen example NAME` can write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..errors import UserError
from ..files import write_atomic, write_npz
from .synthetic import DEPTH, MICRO, SEGMENTATION, TINY, Spec, images, model


@dataclass(frozen=True)
class Example:
    """A network that can be written: what it is, and the function that writes it to a path."""

    description: str
    write: Callable[[Path], list[Path]]


def beside(path: Path, what: str) -> Path:
    """FILE_calib.npz, FILE_test.npz beside FILE.onnx."""
    return path.with_name(f"{path.stem}_{what}.npz")


def _trained(asset: str) -> Callable[[Path], list[Path]]:
    def write(path: Path) -> list[Path]:
        assets = files(__package__).joinpath("assets")
        pairs = [(path, asset), (beside(path, "calib"), "digits_calib.npz"), (beside(path, "test"), "digits_test.npz")]
        for target, name in pairs:
            write_atomic(target, assets.joinpath(name).read_bytes())
        return [target for target, _ in pairs]

    return write


def _seeded(spec: Spec) -> Callable[[Path], list[Path]]:
    def write(path: Path) -> list[Path]:
        write_atomic(path, model(spec).SerializeToString(deterministic=True))
        calib, test = beside(path, "calib"), beside(path, "test")
        write_npz(calib, {"image": images(spec, 4, seed=1)})
        write_npz(test, {"image": images(spec, 4, seed=2)})
        return [path, calib, test]

    return write


EXAMPLES = {
    "m3vit-digits": Example(
        "trained MoE ViT on handwritten digits, two tasks (digit, parity) in one graph", _trained("m3vit_digits_2task.onnx")
    ),
    "m3vit-digits-digit": Example("the same network, task digit alone", _trained("m3vit_digits_digit.onnx")),
    "m3vit-digits-parity": Example("the same network, task parity alone", _trained("m3vit_digits_parity.onnx")),
    "vit-digits": Example("trained dense ViT on the same digits", _trained("vit_digits.onnx")),
    "swin-digits": Example("trained hierarchical ViT with shifted windows on the same digits", _trained("swin_digits.onnx")),
    "hybrid-digits": Example(
        "trained hybrid of depthwise and dense convolutions and attention on the same digits", _trained("hybrid_digits.onnx")
    ),
    "m3vit-tiny": Example("the reference workload M3ViT-tiny, 782.7 M MAC, seeded random weights", _seeded(TINY)),
    "m3vit-segmentation": Example(
        "m3vit-tiny with the convolutional head of its public code, 19 classes a pixel, 7.2 G MAC", _seeded(SEGMENTATION)
    ),
    "m3vit-depth": Example("the same backbone with gates and head of a second task, depth a pixel", _seeded(DEPTH)),
    "m3vit-micro": Example("the smallest MoE ViT, seeded random weights, for tests", _seeded(MICRO)),
}


def write(name: str, path: Path) -> list[Path]:
    """Write an example's ONNX file to `path` and its images beside it; returns what was written.

    Raises UserError for an unknown name or a folder that cannot be written.
    """
    if name not in EXAMPLES:
        raise UserError(f"unknown example {name!r}; known are {', '.join(EXAMPLES)}")
    return EXAMPLES[name].write(Path(path))
