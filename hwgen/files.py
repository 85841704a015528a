"""Reading and writing the user's files: whole or not at all, and every fault a UserError that names the file."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib


def write_atomic(path: Path, content: bytes | Callable) -> None:
    """Write a file through a temporary one beside it, so that no reader ever sees half of it.

    content: the bytes, or a function that writes to the open binary file. Raises UserError where the folder is missing
    or closed to us, or where `path` is there already and no file.
    """
    path = Path(path)
    check_writable(path)
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


def readable(path: Path) -> str:
    """The name of a file as text that any file can hold: of a name that is no UTF-8, the bytes at fault as U+FFFD."""
    return os.fsencode(path.name).decode(errors="replace")


def check_writable(path: Path) -> None:
    """Raise UserError where `write_atomic` would, before the long work whose result is to go there."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder")
        if path.exists() and not path.is_file():  # a device or a pipe would be replaced, not written to
            raise UserError(f"{path}: is no regular file")
        check_folder(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def check_folder(path: Path) -> None:
    """Raise UserError unless a file or folder named `path` can be made: its folder exists and is open to us."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: folder {path.parent} cannot be written")


def check_replaceable(path: Path, ours: Callable[[Path], bool], kind: str) -> None:
    """Raise UserError where `replace_folder` would, before the long work."""
    if path.name in ("", ".."):
        raise UserError(f"{path}: is no name for a {kind} directory")
    try:
        check_folder(path)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise UserError(f"{path}: exists and is no {kind} directory")
        if path.is_dir() and any(path.iterdir()) and not ours(path):
            raise UserError(f"{path}: exists and is no {kind}; it is left as it is")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def replace_folder(path: Path, contents: dict[str, bytes], ours: Callable[[Path], bool], kind: str) -> None:
    """Write a folder of files (relative name -> bytes), complete or not at all.

    An existing one is replaced if it is empty or `ours` knows it. kind: what the messages call it. Raises UserError.
    """
    check_replaceable(path, ours, kind)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    old = fresh.with_name(fresh.name + ".old")
    try:
        for name, content in contents.items():
            file = fresh / name
            if not file.resolve().is_relative_to(fresh.resolve()):
                raise ValueError(f"{kind} file {name!r} lies outside the {kind}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        fresh.chmod(0o755)
        if path.exists():
            path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz with these arrays, atomically."""

    def write(file) -> None:  # not by np.savez, whose own arguments are names too
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asanyarray(array))

    write_atomic(path, write)


def read_npz(path: Path, wanted: Iterable[str] | None = None, limit: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz, all or the `wanted` ones; the others are not even looked at.

    limit: of each array only so many along its first axis, and of the file no more than that is read.

    Raises UserError if the file is missing or damaged, lacks a wanted array or has pickled objects in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not an .npz file of named arrays")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            held = file.files
            names = [name for name in (held if wanted is None else wanted) if name in held]
            arrays = {name: file[name] if limit is None else _leading(file, name, limit) for name in names}
    except Exception as error:  # damage shows as any of a dozen types, from zipfile.BadZipFile to MemoryError
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    for name in wanted or ():
        if not isinstance(arrays.get(name), np.ndarray):
            names = ", ".join(sorted(held)) or "no array"
            raise UserError(f"{path}: has no array {name!r} for the input of that name; it holds {names}")
    return arrays


def _leading(file: Any, name: str, limit: int) -> np.ndarray:
    """The first `limit` entries of an array of an open .npz."""
    member = name if name in file.zip.namelist() else f"{name}.npy"
    with file.zip.open(member) as entry:
        shape, fortran, dtype = _header(entry)
        if fortran or not shape or dtype.hasobject:
            return np.asarray(file[name])[:limit] if shape else np.asarray(file[name])
        count = min(limit, shape[0])
        size = count * int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        data = entry.read(size)
        if len(data) < size:
            raise ValueError(f"{name} is truncated")
        return np.frombuffer(data, dtype).reshape((count, *shape[1:]))


def _header(entry: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether columns come first, type) at the beginning of an .npy."""
    first = np.lib.format.read_magic(entry) == (1, 0)
    shape, fortran, dtype = (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(entry)
    return tuple(shape), fortran, dtype


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file. Raises UserError naming it."""
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return values
    except (OSError, ValueError) as error:  # of TOML and of UTF-8 too
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of an .npz, by their headers alone; nothing of a file that is none."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as entry:
                    shapes[name.removesuffix(".npy")] = _header(entry)[0]
    except Exception:  # whoever reads the arrays says what is wrong
        return {}
    return shapes


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
