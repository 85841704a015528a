"""Files of strangers: ONNX files and bundles that were changed by a string of bytes, which a fuzzer makes.

    python tests/fuzz/strangers.py importer|bundle [libFuzzer's options, such as -max_total_time=600]

An import, or a bundle read and run, must end well or in a UserError. What else comes out ends the fuzzer (atheris), which keeps
the bytes in a file `crash-...`; that file as an argument runs it again.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 40, -(1 << 40), (1 << 63) - 1)
TEXTS = ("", "x", "../x", "image", "\u00e9", "a" * 300, "0", "Relu")
OTHERS = (None, "x", [], {}, True, 1.5, float("nan"))
MODELS = 6  # random networks whose files are changed
LARGEST = 2_000_000  # bytes: what is larger takes long and shows nothing new


class Bytes:
    """Draws from a string of bytes; zeros behind its end."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def whole(self, limit: int) -> int:
        """0 to `limit` - 1."""
        self.at += 2
        return int.from_bytes(self.data[self.at - 2 : self.at], "little") % limit

    def of(self, values):
        return values[self.whole(len(values))]

    def __bool__(self) -> bool:
        return self.at < len(self.data)


# --- ONNX ------------------------------------------------------------------------------------------------------------


@functools.lru_cache
def _models() -> list:
    from networks import network

    return [model for seed in range(40) if len((model := network(seed).model).SerializeToString()) < LARGEST // 20][:MODELS]


def model(data: bytes) -> bytes:
    """A random network's file with some fields changed, dropped or doubled."""
    draws = Bytes(data)
    made = copy.deepcopy(draws.of(_models()))
    while draws:
        at = made
        for _ in range(8):
            set_ = at.ListFields()
            if not set_:
                break
            field, value = draws.of(set_)
            inner = value
            repeated = not hasattr(value, "ListFields") and not isinstance(value, int | float | str | bytes)
            if repeated:
                inner = value[draws.whole(len(value))]
            if hasattr(inner, "ListFields") and draws.whole(4):
                at = inner
                continue
            _change(at, field.name, value, repeated, draws)
            break
    return made.SerializeToString()


def _change(message, name: str, value, repeated: bool, draws: Bytes) -> None:
    if repeated:
        kind, place = draws.whole(3), draws.whole(len(value))
        if kind == 0:
            del value[place]
        elif kind == 1:
            value.append(value[place])
        elif isinstance(value[place], int):
            with contextlib.suppress(ValueError):  # beyond the field's width
                value[place] = draws.of(NUMBERS)
        elif isinstance(value[place], str):
            value[place] = draws.of(TEXTS)
        return
    if isinstance(value, bytes):
        n = draws.whole(len(value) + 1)
        setattr(message, name, value[:n] + bytes([draws.whole(256)]) + value[n + draws.whole(3) :])
    elif isinstance(value, str):
        setattr(message, name, draws.of(TEXTS))
    elif isinstance(value, int | float):
        with contextlib.suppress(ValueError):
            setattr(message, name, draws.of(NUMBERS))
    else:
        message.ClearField(name)


def importer(data: bytes, folder: Path) -> None:
    """Import what the bytes make of a model."""
    from hwgen import levels

    file = folder / "m.onnx"
    file.write_bytes(model(data))
    levels.check(file)


# --- bundles ---------------------------------------------------------------------------------------------------------


@functools.lru_cache
def _bundle() -> Path:
    import hwgen
    from hwgen.example import write

    folder = Path(tempfile.mkdtemp(prefix="hwgen-bundle-"))
    small = {"array_outputs": 8, "array_inputs": 8, "bank_words": 4096, "weight_words": 256, "window_chunks": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not calibrated
        hwgen.build(write("m3vit-micro", folder / "m.onnx")[0], folder / "b", settings=small)
    return folder / "b"


def _places(value, where=()):
    yield where
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in entries:
        yield from _places(inner, (*where, name))


def changed(data: bytes, folder: Path) -> None:
    """A bundle in `folder` with some entries of its manifest and bytes of its files changed, its hashes made anew."""
    shutil.copytree(_bundle(), folder, dirs_exist_ok=True)
    draws = Bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [name for name in manifest["files"] if name.endswith(".bin") or name == "board.json"]
    while draws:
        if draws.whole(2):
            name = draws.of(names)
            content = bytearray((folder / name).read_bytes())
            content[draws.whole(1 << 16) * len(content) >> 16] = draws.whole(256)
            if not draws.whole(8):
                del content[draws.whole(1 << 16) * len(content) >> 16 :]
            (folder / name).write_bytes(content)
            continue
        where = draws.of([p for p in _places(manifest) if p])
        at = manifest
        for name in where[:-1]:
            at = at[name]
        if draws.whole(4):
            at[where[-1]] = draws.of((*NUMBERS, *TEXTS, *OTHERS))
        else:
            del at[where[-1]]
    if isinstance(files := manifest.get("files"), dict):
        for name in names:
            if name in files:
                files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")


def bundle(data: bytes, folder: Path) -> None:
    """Read what the bytes make of a bundle, and run it."""
    import numpy as np

    import hwgen
    from hwgen.errors import UserError

    changed(data, folder / "b")
    held = hwgen.Bundle(folder / "b")
    images = {name: np.zeros((1, *shape), np.float32) for name, shape in hwgen.Bundle(_bundle()).inputs().items()}
    for act in (held.report, lambda: held.run(images), lambda: held.run(images, engine="machine")):
        with contextlib.suppress(UserError):
            act()


TARGETS = {"importer": importer, "bundle": bundle}


def one(kind: str, data: bytes) -> None:
    """What one string of bytes does; only a UserError is a good end besides success."""
    from hwgen.errors import UserError

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.suppress(UserError):
        warnings.simplefilter("ignore")
        TARGETS[kind](data, Path(folder))


def main(arguments: list[str]) -> None:
    import atheris

    kind = arguments[1]
    with atheris.instrument_imports(include=["hwgen"]):
        import hwgen.api
        import hwgen.levels
        import hwgen.run  # noqa: F401
    atheris.Setup([arguments[0], *arguments[2:]], lambda data: one(kind, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
