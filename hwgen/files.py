"""Reading and writing the user's files: whole or not at all, and every fault a UserError that names the file."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .errors import UserError


def write_atomic(path: Path, content: bytes | Callable) -> None:
    """Write a file through a temporary one beside it, so that no reader ever sees half of it.

    content: the bytes, or a function that writes to the open binary file. Raises UserError where the folder is missing
    or closed to us.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    except BaseException:
        _remove(temporary)
        raise


def check_writable(path: Path) -> None:
    """Raise UserError where `write_atomic` would, before the long work whose result is to go there."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise UserError(f"{path}: folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: folder {path.parent} cannot be written")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz with these arrays, atomically."""
    write_atomic(path, lambda file: np.savez(file, **arrays))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz. Raises UserError if it is missing, damaged or holds pickled objects."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: not an .npz file of named arrays")
        with file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from None


def read_images(path: Path, inputs: dict[str, tuple[int, ...]], limit: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a network's inputs from an .npz: float32 [images, *shape] each, other arrays ignored.

    inputs: input names with shapes without the batch axis. limit: use the first so many images. Raises UserError naming
    the file, the array and what was expected and found.
    """
    arrays, images, count = read_npz(path), {}, None
    for name, shape in inputs.items():
        if name not in arrays:
            held = ", ".join(sorted(arrays)) or "no array"
            raise UserError(f"{path}: has no array {name!r} for the input of that name; it holds {held}")
        array = arrays[name]
        expected = ", ".join(str(n) for n in ("images", *shape))
        if array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape):
            raise UserError(f"{path}: array {name!r} has shape {list(array.shape)}, expected [{expected}]")
        if array.dtype.kind not in "fiub":
            raise UserError(f"{path}: array {name!r} has type {array.dtype}, expected numbers")
        if len(array) == 0:
            raise UserError(f"{path}: array {name!r} holds no image")
        if count not in (None, len(array)):
            raise UserError(f"{path}: array {name!r} holds {len(array)} images, another input {count}")
        count = len(array)
        array = array[:limit].astype(np.float32)
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise UserError(f"{path}: array {name!r} holds NaN or infinity in image {int(bad.argmax())}")
        images[name] = array
    return images


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
