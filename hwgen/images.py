"""Images as users have them, as one dict of float32 arrays: from an .npz, a folder of files, arrays, or batches one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .files import npz_shapes, read_npz, read_toml
from .host.pack import unfit

Array = np.ndarray
Arrays = dict[str, Array]
Held = Path | Arrays  # a source whose images can be read more than once
ONLY = ""  # the name of an array that was given without one: the network's only input
GIVEN = "images"  # what messages call images that are no file
PREPROCESS = "preprocess.toml"
PICTURES = (".png", ".jpg", ".jpeg")
EXAMPLE = (
    "mean = [0.485, 0.456, 0.406] and std = [0.229, 0.224, 0.225] are usual for ImageNet; "
    "mean = [0, 0, 0] and std = [1, 1, 1] leave values 0..1"
)


def collect(source: Any, limit: int | None = None) -> Held:
    """A source that can be read again: a path as it is, all else as arrays by input name.

    source: a path; a mapping of input names to arrays [images, ...]; one such array; or an iterable of mappings or arrays,
    whose images follow each other (a batch at a time, no more than `limit` images are taken). Raises UserError.
    """
    if isinstance(source, (str, os.PathLike)):
        return Path(source)
    if isinstance(source, Mapping) or hasattr(source, "__array__"):
        return _named(source)
    if not isinstance(source, Iterable):
        raise UserError(f"{GIVEN}: {type(source).__name__} is neither a path, nor arrays, nor an iterable of arrays")
    batches: list[Arrays] = []
    count = 0
    for item in source:
        if not (isinstance(item, Mapping) or hasattr(item, "__array__")):
            what = f"batch {len(batches)} is a {type(item).__name__}"
            raise UserError(f"{GIVEN}: {what}; it must be an array or a dict of arrays by input name")
        batch = _named(item)
        if any(array.ndim == 0 for array in batch.values()):
            raise UserError(
                f"{GIVEN}: batch {len(batches)} holds a single number; the first axis of an array is the images"
            )
        if batches and {n: a.shape[1:] for n, a in batch.items()} != {n: a.shape[1:] for n, a in batches[0].items()}:
            raise UserError(f"{GIVEN}: batch {len(batches)} holds other arrays than the first, or other shapes")
        batches.append(batch)
        count += len(next(iter(batch.values())))
        if limit is not None and count >= limit:
            break
    if not batches:
        raise UserError(f"{GIVEN}: the iterable gives no batch")
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _named(item: Any) -> Arrays:
    arrays = {n: np.asarray(a) for n, a in item.items()} if isinstance(item, Mapping) else {ONLY: np.asarray(item)}
    if not arrays:
        raise UserError(f"{GIVEN}: an empty dict")
    return arrays


def shapes(held: Held) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays, as far as they are known without reading images."""
    if isinstance(held, dict):
        return {name: array.shape for name, array in held.items()}
    return npz_shapes(held) if held.is_file() else {}


def called(held: Held) -> str:
    """What a message calls the source."""
    return held.name if isinstance(held, Path) else "the given arrays"


def read(
    source: Any, inputs: Mapping[str, tuple[int, ...]], limit: int | None = None, types: Mapping[str, str] | None = None
) -> Arrays:
    """A network's images: float32 [images, *shape] for each input, other arrays ignored.

    source: as for `collect`. inputs: names with shapes without the batch axis. limit: use the first so many images. types: of the
    file's inputs that are no floats, as NumPy calls them. Raises UserError naming the file, the array and what was expected and
    found.
    """
    held, where = collect(source, limit), GIVEN
    if isinstance(held, Path):
        arrays, where = _folder(held, inputs, limit) if held.is_dir() else read_npz(held, inputs, limit), str(held)
    else:
        arrays = held
        if ONLY in arrays and len(inputs) == 1:
            arrays = {next(iter(inputs)): arrays[ONLY]}
        for name in inputs:
            if name not in arrays:
                raise UserError(
                    f"{GIVEN}: no array for input {name!r}: give a dict of arrays by the names {', '.join(inputs)}"
                )
    images: Arrays = {}
    count, whole = None, shapes(held) if limit is not None and len(inputs) > 1 else {}
    for name, shape in inputs.items():
        array = arrays[name]
        expected = ", ".join(str(n) for n in ("images", *shape))
        if array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape):
            raise UserError(f"{where}: array {name!r} has shape {list(array.shape)}, expected [{expected}]")
        if array.dtype.kind not in "fiub":
            raise UserError(f"{where}: array {name!r} has type {array.dtype}, expected numbers")
        if len(array) == 0:
            raise UserError(f"{where}: array {name!r} holds no image")
        there = whole.get(name, (len(array),))[0]
        if count not in (None, there):
            raise UserError(f"{where}: array {name!r} holds {there} images, another input {count}")
        count = there
        if fault := unfit(array[:limit], (types or {}).get(name, "float32")):
            raise UserError(f"{where}: array {name!r} holds {fault}")
        images[name] = array[:limit].astype(np.float32)
    return images


# --- folders -------------------------------------------------------------------------------------------------------


def _folder(path: Path, inputs: Mapping[str, tuple[int, ...]], limit: int | None) -> Arrays:
    """One image a file, in the order of their names: .npy in the input's shape, or pictures as `preprocess.toml` says."""
    if len(inputs) != 1:
        raise UserError(f"{path}: a folder holds the images of one input; the network has {', '.join(inputs)}")
    ((name, shape),) = inputs.items()
    try:
        names = sorted(p for p in path.iterdir() if not p.name.startswith(".") and p.name != PREPROCESS)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for file in names:
        if file.suffix.lower() not in (".npy", *PICTURES):
            raise UserError(
                f"{file}: is no image; a folder of images holds .npy, {', '.join(PICTURES)} and {PREPROCESS}"
            )
    if not names:
        raise UserError(f"{path}: holds no image (.npy, {', '.join(PICTURES)})")
    found, pictures = [], None
    for file in names[:limit]:
        if file.suffix.lower() == ".npy":
            found.append(_array(file, shape))
        else:
            pictures = pictures or _Pictures(path, shape)
            found.append(pictures.read(file))
    return {name: np.stack(found)}


def _array(file: Path, shape: tuple[int, ...]) -> Array:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not a readable .npy file ({error})") from None
    if array.shape != tuple(shape):
        raise UserError(f"{file}: has shape {list(array.shape)}, expected one image, {list(shape)}")
    return np.asarray(array)


class _Pictures:
    """PNG and JPEG as the network wants them: (value / 255 - mean) / std in planes, which the folder itself must say."""

    def __init__(self, folder: Path, shape: tuple[int, ...]):
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError:
            raise UserError(f"{folder}: PNG and JPEG need Pillow: pip install 'hwgen[images]'") from None
        self._library, self._faults = Image, (OSError, UnidentifiedImageError, ValueError)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(f"{folder}: pictures have 1 or 3 channels; the input is {list(shape)}: give .npy files")
        self._channels, *self._size = shape
        says = folder / PREPROCESS
        if not says.is_file():
            raise UserError(f"{says}: missing: it says how pictures become the network's input; {EXAMPLE}")
        values = read_toml(says)
        unknown = values.keys() - {"mean", "std", "resize", "interpolation"}
        if unknown:
            raise UserError(f"{says}: unknown {min(unknown)!r}; known are mean, std, resize, interpolation")
        self._mean, self._std = (self._planes(says, values, key) for key in ("mean", "std"))
        if not (self._std > 0).all():
            raise UserError(f"{says}: std must be above 0")
        self._resize = values.get("resize")
        if self._resize is not None and (type(self._resize) is not int or self._resize < max(self._size)):
            raise UserError(f"{says}: resize={self._resize!r}: pixels of the shorter side, at least {max(self._size)}")
        how = values.get("interpolation", "bilinear")
        known = {"nearest", "bilinear", "bicubic", "lanczos"}
        if how not in known:
            raise UserError(f"{says}: interpolation={how!r}: one of {', '.join(sorted(known))}")
        self._how = Image.Resampling[how.upper()]

    def _planes(self, says: Path, values: dict[str, Any], key: str) -> Array:
        given = values.get(key)
        if (
            not isinstance(given, list)
            or len(given) != self._channels
            or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in given)
        ):
            raise UserError(f"{says}: {key}={given!r}: must be {self._channels} numbers; {EXAMPLE}")
        return np.asarray(given, np.float32).reshape(-1, 1, 1)

    def read(self, file: Path) -> Array:
        try:
            with self._library.open(file) as picture:
                image = picture.convert("L" if self._channels == 1 else "RGB")
        except self._faults as error:
            raise UserError(f"{file}: not a readable picture ({error})") from None
        height, width = self._size
        if self._resize is not None:  # the shorter side, then the middle: what torchvision and timm do for evaluation
            short = min(image.size)
            image = image.resize([round(n * self._resize / short) for n in image.size], self._how)
            left, top = round((image.width - width) / 2), round((image.height - height) / 2)
            image = image.crop((left, top, left + width, top + height))
        if image.size != (width, height):
            raise UserError(
                f"{file}: is {image.width} x {image.height}, the input {width} x {height}; {PREPROCESS} may say resize"
            )
        planes = np.asarray(image, np.float32).reshape(height, width, self._channels).transpose(2, 0, 1)
        normal: Array = (planes / np.float32(255) - self._mean) / self._std
        return normal
