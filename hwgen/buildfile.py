"""A whole build as a TOML file: what `hwgen build --config FILE.toml` reads in place of options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_toml

KEYS = "model, board, output, calibrate, set, batch, explore, shape, outputs, verify, stop_after, print"


def read(path: Path) -> dict[str, Any]:
    """Options of `hwgen build` by their attribute in the parsed command line. Raises UserError naming the file and the key.

    Files are meant beside the TOML file. `model` is one file, or a table of tasks; `set` and `shape` are tables.
    """
    values, found = read_toml(path), {}

    def take(key: str, *kinds: type) -> Any:
        value = values.pop(key)
        if type(value) not in kinds:
            raise UserError(f"{path}: {key}={value!r}: must be {' or '.join(_KINDS[kind] for kind in kinds)}")
        return value

    def place(text: Any, key: str) -> Path:
        if not isinstance(text, str) or not text:
            raise UserError(f"{path}: {key}={text!r}: must be the path of a file")
        return path.parent / text

    if "model" in values:
        model = take("model", str, dict)
        tasks = model.items() if isinstance(model, dict) else []
        found["models"] = [f"{task}={place(file, task)}" for task, file in tasks] or [str(place(model, "model"))]
    if "board" in values:
        board = take("board", str)
        found["board"] = str(place(board, "board")) if board.endswith(".toml") else board
    for key in ("output", "calibrate"):
        if key in values:
            found[key] = place(take(key, str), key)
    if "set" in values:
        found["settings"] = [f"{name}={_setting(path, name, value)}" for name, value in take("set", dict).items()]
    if "shape" in values:
        found["shapes"] = [f"{name}={_sizes(path, name, sizes)}" for name, sizes in take("shape", dict).items()]
    if "outputs" in values:
        outputs = take("outputs", list)
        if not outputs or any(not isinstance(name, str) or not name for name in outputs):
            raise UserError(f"{path}: outputs={outputs!r}: must be a list of the names of values")
        found["outputs"] = outputs
    for key, name, kind in (
        ("batch", "batch", int),
        ("explore", "explore", bool),
        ("verify", "verify", bool),
        ("stop_after", "stop_after", str),
        ("print", "show", str),
    ):
        if key in values:
            found[name] = take(key, kind)
    if values:
        raise UserError(f"{path}: unknown key {min(values)!r}; known are {KEYS}")
    return found


_KINDS = {str: "a text", dict: "a table", int: "a whole number", bool: "true or false", list: "a list"}


def _setting(path: Path, name: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, (int, float, str)) for v in values):
        raise UserError(f"{path}: set.{name}={value!r}: must be a number, a text or a list of texts")
    return ",".join(map(str, values))


def _sizes(path: Path, name: str, sizes: Any) -> str:
    if not isinstance(sizes, list) or any(type(n) is not int for n in sizes):
        raise UserError(f"{path}: shape.{name}={sizes!r}: must be a list of whole numbers, as [1, 3, 224, 224]")
    return ",".join(map(str, sizes))
