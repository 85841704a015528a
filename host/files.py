"""The .npz files of the command line."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from .errors import InputError


def read_npz(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The named arrays; others in the file are not looked at. Raises InputError naming file and array."""
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = list(file.files)
            found = {name: file[name] for name in names if name in held}
    except (OSError, ValueError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npz file ({error})") from None
    for name in names:
        if name not in found:
            raise InputError(f"{path}: has no array {name!r}; it holds {', '.join(sorted(held)) or 'none'}")
    return found


def check_writable(path: Path) -> None:
    """Raise InputError where `path` cannot be written, before the work whose result is to go there."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: folder {path.parent} does not exist or cannot be written")


def write(path: Path, content) -> None:
    """Write a file whole or not at all. content: text, or a function that writes to the open binary file."""
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz with these arrays."""

    def fill(file) -> None:  # not by np.savez, whose own arguments are names too
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asanyarray(array))

    write(path, fill)
