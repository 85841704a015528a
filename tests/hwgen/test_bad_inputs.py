"""Files that ask for too much, names that are none, bundles that were changed on purpose: one clear line, exit code 2."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwgen as library
from hwgen import isa
from hwgen.errors import Terminated, UserError
from hwgen.example import write
from hwgen.files import read_npz
from hwgen.tensor import Contract, build

SMALL = {"array_outputs": 8, "array_inputs": 8, "bank_words": 4096, "weight_words": 256, "window_chunks": 1}


def model(nodes=(), constants=(), last="t", shape=(1, 3, 8, 8)) -> onnx.ModelProto:
    """Four tokens of 16 channels, `nodes` on them, a linear layer."""
    rng = np.random.default_rng(0)
    held = {
        "w": rng.normal(0, 0.3, (16, 3, 4, 4)).astype(np.float32),
        "shape": np.array([1, 16, -1]),
        "head": rng.normal(0, 0.3, (16, 5)).astype(np.float32),
        "map": np.array([1, 16, 2, 2]),
        **dict(constants),
    }
    chain = [
        helper.make_node("Conv", ["image", "w"], ["p"], "patches", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["p", "shape"], ["q"], "flat"),
        helper.make_node("Transpose", ["q"], ["t"], "tokens", perm=[0, 2, 1]),
        *nodes,
        helper.make_node("MatMul", [last, "head"], ["y"], "classes"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        chain,
        "g",
        [info("image", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def node(kind, *inputs, **attributes):
    return helper.make_node(kind, [*inputs], ["big"], "big", **attributes)


def summed(*nodes):
    """A constant, its sum added to the tokens."""
    total = helper.make_node("ReduceSum", [nodes[-1].output[0]], ["total"], "total", keepdims=0)
    return [*nodes, total, helper.make_node("Add", ["t", "total"], ["u"], "add")]


ONES, PAIR = np.ones(1, np.float32), np.arange(2, dtype=np.float32)
FOLDED = {
    "ConstantOfShape": ([node("ConstantOfShape", "n")], {"n": np.array([1 << 20, 1 << 26])}),
    "Expand": ([node("Expand", "x", "n")], {"x": PAIR, "n": np.array([1 << 45, 2])}),
    "Expand beyond int64": ([node("Expand", "x", "n")], {"x": PAIR, "n": np.array([1 << 62, 2])}),
    "Range": ([node("Range", "a", "e", "s")], {"a": np.float32(0), "e": np.float32(2.0**40), "s": np.float32(1)}),
    "Tile": ([node("Tile", "x", "n")], {"x": np.ones((2, 2), np.float32), "n": np.array([1 << 20, 1 << 20])}),
    "Pad": ([node("Pad", "x", "n")], {"x": PAIR, "n": np.array([0, 1 << 40])}),
    "OneHot": ([node("OneHot", "i", "n", "x")], {"i": np.arange(4), "n": np.array(1 << 40), "x": PAIR}),
    "MatMul": (
        [helper.make_node("Reshape", ["x", "n"], ["r"], "r"), node("MatMul", "r", "r")],
        {"x": np.tile(PAIR, 1 << 11), "n": np.array([1 << 6, 1 << 6])},
    ),
}


@pytest.mark.parametrize("kind", FOLDED)
def test_constants_too_large_to_fold(hwgen, tmp_path, monkeypatch, kind):
    if kind == "MatMul":  # by its work
        monkeypatch.setattr("hwgen.tensor.build.FOLD_WORK", 1 << 17)
    nodes, constants = FOLDED[kind]
    onnx.save(model(summed(*nodes), constants, "u"), tmp_path / "m.onnx")
    code, _, err = hwgen("build", tmp_path / "m.onnx", "--stop-after", "schedule")
    assert code == 2 and "Traceback" not in err, err
    assert any(word in err for word in ("elements", "terms", "too large")), err


@pytest.mark.parametrize("spec", ["ab,bc->ac", "ab,cb->ca", "abc,abd->acd", "ab,ab->"])
def test_products_of_constants_in_pieces(monkeypatch, spec):
    rng, sizes = np.random.default_rng(0), dict(zip("abcd", (3, 4, 50, 7), strict=True))
    first, second = spec.split("->")[0].split(",")
    x, y = (rng.normal(size=[sizes[c] for c in part]).astype(np.float32) for part in (first, second))
    whole = np.einsum(spec, x, y)
    monkeypatch.setattr(build, "FOLD_PIECE", 1 << 7)
    b = build.Builder()
    np.testing.assert_allclose(b.node(Contract(spec), b.const(x), b.const(y)).numbers, whole, rtol=1e-4, atol=1e-5)


def test_a_signal_is_heard_between_pieces(monkeypatch):
    """NumPy would compute all of it first."""
    pieces, inner = [], build.apply

    def apply(op, numbers):
        pieces.append(numbers[0].shape)
        os.kill(os.getpid(), signal.SIGALRM)
        return inner(op, numbers)

    def over(signum, frame):
        raise Terminated(signum)

    monkeypatch.setattr(build, "apply", apply)
    monkeypatch.setattr(build, "FOLD_PIECE", 1 << 10)
    b, x = build.Builder(), np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    before = signal.signal(signal.SIGALRM, over)
    try:
        with pytest.raises(Terminated):
            b.node(Contract("ab,cb->ac"), b.const(x), b.const(x))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert pieces == [(1, 64)]


def on_map(*nodes):
    return [helper.make_node("Reshape", ["q", "map"], ["m"], "as_map"), *nodes, node("Reshape", "z", "shape")]


COMPUTED = {
    "Pad": ([node("Pad", "t", "n")], {"n": np.array([0, 0, 0, 0, 1 << 31, 0])}),
    "Tile": ([node("Tile", "t", "n")], {"n": np.array([1, 1 << 31, 1])}),
    "Resize": (
        on_map(helper.make_node("Resize", ["m", "", "n"], ["z"], "resize", mode="nearest")),
        {"n": np.array([1, 1, 1e6, 1e6], np.float32)},
    ),
    "MaxPool": (on_map(helper.make_node("MaxPool", ["m"], ["z"], "pool", kernel_shape=[1 << 31, 1 << 31])), {}),
    "Conv": (
        on_map(helper.make_node("Conv", ["m", "k"], ["z"], "conv", group=16, pads=[1 << 31] * 4)),
        {"k": np.ones((16, 1, 3, 3), np.float32)},
    ),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_values_too_large_to_hold(hwgen, tmp_path, kind):
    nodes, constants = COMPUTED[kind]
    onnx.save(model(nodes, constants, "big"), tmp_path / "m.onnx")
    code, _, err = hwgen("build", tmp_path / "m.onnx", "--stop-after", "schedule")
    assert code == 2 and "Traceback" not in err, err


@pytest.mark.parametrize("shape", [(1, 3, 1 << 31, 1 << 31), (1, 3, 8, 1 << 31), (1, 3, 1 << 62, 4)])
@pytest.mark.parametrize("command", ["build", "check"])
def test_images_of_any_size(hwgen, tmp_path, shape, command):
    onnx.save(model(shape=shape), tmp_path / "m.onnx")
    code, _, err = hwgen(command, tmp_path / "m.onnx")
    assert code == 2 and "'image'" in err and "elements, at most" in err
    onnx.save(model(shape=("n", 3, "h", "w")), tmp_path / "m.onnx")
    code, _, err = hwgen(command, tmp_path / "m.onnx", "--shape", ",".join(map(str, ("image=1", *shape[1:]))))
    assert code == 2 and "elements, at most" in err


@pytest.mark.parametrize("name", [b"image", b"patches", b"MatMul", b"head", b"y"])
def test_names_that_are_no_utf8(hwgen, tmp_path, name):
    sized = bytes([len(name)])
    bad = model().SerializeToString().replace(sized + name, sized + b"\xff" * len(name))
    (tmp_path / "m.onnx").write_bytes(bad)
    for command in ("build", "check"):
        code, _, err = hwgen(command, tmp_path / "m.onnx")
        assert code == 2 and "which is no UTF-8" in err, err


@pytest.mark.parametrize("location", ["a\0b", "a" * 5000, "a" * 300], ids=["nul", "too long", "too long for a folder"])
def test_external_data_at_no_place(tmp_path, location):
    made = model()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="initialiser 'w'"):
        library.check(tmp_path / "m.onnx")


def test_a_nul_in_any_argument(hwgen, tmp_path):
    onnx.save(model(), tmp_path / "m.onnx")
    bad = tmp_path / "a\0b"
    for arguments in (
        ("build", bad),
        ("build", tmp_path / "m.onnx", "-o", bad),
        ("build", tmp_path / "m.onnx", "--board", bad),
        ("run", bad, "--input", "x.npz"),
    ):
        code, _, err = hwgen(*arguments)
        assert code == 2 and "NUL" in err
    code, _, err = hwgen("build", tmp_path / ("a" * 5000))
    assert code == 2 and "too long" in err


def test_initialisers_of_negative_sizes(tmp_path):
    made = model()
    made.graph.initializer[0].dims[:] = [-1, 3, 4, 4]
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UserError, match="initialiser 'w' has shape"):
        library.check(tmp_path / "m.onnx")


# --- images --------------------------------------------------------------------------------------------------------


def test_a_limit_reads_no_more_than_it_names(tmp_path):
    """What lies behind the first images may even be damaged."""
    data = np.arange(5 * 64 * 64, dtype=np.float32).reshape(5, 64, 64)
    np.savez(tmp_path / "x.npz", image=data, other=np.asfortranarray(data), single=np.float32(3))
    found = read_npz(tmp_path / "x.npz", limit=2)
    assert all(np.array_equal(found[name], data[:2]) for name in ("image", "other")) and found["single"] == 3
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    at = raw.find(data[4].tobytes())
    raw[at : at + 4] = b"\0\0\0\0"
    (tmp_path / "x.npz").write_bytes(raw)
    assert np.array_equal(read_npz(tmp_path / "x.npz", ["image"], 2)["image"], data[:2])
    with pytest.raises(UserError, match="not a readable"):
        read_npz(tmp_path / "x.npz", ["image"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle, calibrated on numbers from -1 to 1."""
    folder = tmp_path_factory.mktemp("bad")
    path = write("m3vit-micro", folder / "m.onnx")[0]
    shape = next(iter(library.build(path, folder / "b", settings=SMALL, calibrate=images((1, 8, 8))).inputs().values()))
    assert shape == (1, 8, 8)
    return folder / "b"


def images(shape, count=16, reach=1.0):
    return np.random.default_rng(0).uniform(-reach, reach, (count, *shape)).astype(np.float32)


@pytest.mark.parametrize("count, said", [(1, "on 1 image: what others hold"), (3, r"on 3 images: \d+\.\d+%"), (4, "")])
def test_few_calibration_images_are_a_warning(tmp_path, count, said):
    path = write("m3vit-micro", tmp_path / "m.onnx")[0]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        library.build(path, tmp_path / "b", settings=SMALL, calibrate=images((1, 8, 8), count))
    assert len(seen) == bool(said)
    with pytest.warns(UserWarning, match=said) if said else warnings.catch_warnings():
        for one in seen:
            warnings.warn(one.message, stacklevel=1)


def test_images_far_outside_the_calibrated_range_are_a_warning(hwgen, made, tmp_path):
    bundle = library.Bundle(made)
    bundle.run(images((1, 8, 8), 2))
    with pytest.warns(UserWarning, match="'image': 9.% of the values lie outside"):
        bundle.run(images((1, 8, 8), 2, reach=255))
    np.savez(tmp_path / "x.npz", image=images((1, 8, 8), 2, reach=255))
    code, _, err = hwgen("run", made, "--engine", "golden", "--input", tmp_path / "x.npz")
    assert code == 0 and "warning: input 'image'" in err


# --- bundles that were changed on purpose --------------------------------------------------------------------------

WRONG = (None, -1, 0, "x", 1 << 40, 1.5, [], {}, True, 7, [1], [None] * 3)


def places(value, where=()):
    yield where
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, inner in entries:
        yield from places(inner, (*where, name))


def changed(good, rng):
    """The manifest with one entry missing or another one."""
    new = copy.deepcopy(good)
    where = rng.choice([p for p in places(good) if p and p[0] != "files"])
    at = new
    for name in where[:-1]:
        at = at[name]
    if rng.random() < 0.15:
        del at[where[-1]]
    else:
        at[where[-1]] = rng.choice(WRONG)
    return where, new


@pytest.mark.parametrize("seed", range(4))
def test_a_manifest_changed_and_hashed_again(hwgen, made, tmp_path, seed):
    shutil.copytree(made, tmp_path / "b")
    good, rng = json.loads((made / "manifest.json").read_text()), random.Random(seed)
    np.savez(tmp_path / "x.npz", image=images((1, 8, 8), 1))
    for _ in range(15):
        where, new = changed(good, rng)
        text = json.dumps(new).encode()
        (tmp_path / "b" / "manifest.json").write_bytes(text)
        (tmp_path / "b" / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")
        for command in (("run", "--engine", "machine", "--input", tmp_path / "x.npz"), ("report",), ("disasm",)):
            code, _, err = hwgen(command[0], tmp_path / "b", *command[1:])
            assert code in (0, 2) and "Traceback" not in err, (where, err)


@pytest.mark.parametrize("seed", range(2))
def test_a_program_changed_and_hashed_again(hwgen, made, tmp_path, seed):
    """Deadlocks, words left over, places that are not there, numbers that nobody defined: named, whatever they lead to."""
    shutil.copytree(made, tmp_path / "b")
    rng, said = random.Random(seed), set()
    manifest, good = json.loads((made / "manifest.json").read_text()), (made / "program.bin").read_bytes()
    np.savez(tmp_path / "x.npz", image=images((1, 8, 8), 1))
    for _ in range(50):
        program = bytearray(good)
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(program) // isa.WORD_BYTES) * isa.WORD_BYTES + rng.randrange(22)
            program[at] = rng.choice((0, 255, rng.randrange(256), program[at] ^ 1 << rng.randrange(8)))
        (tmp_path / "b" / "program.bin").write_bytes(program)
        manifest["files"]["program.bin"] = hashlib.sha256(program).hexdigest()
        text = json.dumps(manifest).encode()
        (tmp_path / "b" / "manifest.json").write_bytes(text)
        (tmp_path / "b" / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")
        code, _, err = hwgen("run", tmp_path / "b", "--engine", "machine", "--input", tmp_path / "x.npz")
        assert code in (0, 2) and (not code or "program.bin: " in err), err
        said |= {why for why in ("no program that hwgen made", "deadlock", "beyond the end", "bits beyond") if why in err}
    assert len(said) >= 3


@pytest.mark.parametrize("kind, said", [
    ("above", "lies outside"), ("absolute", "lies outside"), ("link", "lies outside"), ("circle", "cannot be read"),
    ("pipe", "is no file"), ("folder", "is no file"),
])  # fmt: skip
def test_a_bundle_that_names_what_is_not_in_it(hwgen, made, tmp_path, kind, said):
    """Its hashes are right: whoever made it chose them."""
    (bundle := tmp_path / "b").mkdir()
    shutil.copytree(made, bundle, dirs_exist_ok=True)
    (tmp_path / "secret").write_bytes(b"secret")
    name = {"above": "../secret", "absolute": str(tmp_path / "secret")}.get(kind, "more")
    make = {"link": lambda p: p.symlink_to(tmp_path / "secret"), "circle": lambda p: p.symlink_to(p), "pipe": os.mkfifo}
    make.get(kind, Path.mkdir if kind == "folder" else lambda p: None)(bundle / "more")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(b"secret").hexdigest()
    text = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(text)
    (bundle / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")
    for command in (("report",), ("package", "-o", tmp_path / "board")):
        code, _, err = hwgen(command[0], bundle, *command[1:])
        assert code == 2 and said in err and "Traceback" not in err, err
    assert not (tmp_path / "board").exists()


def test_files_whose_names_are_no_utf8(hwgen, tmp_path):
    """As those of an archive from another system; Python holds the bytes at fault as lone surrogates, which nothing can write."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    name = folder / os.fsdecode(b"th\xe9.onnx")
    assert hwgen("example", "m3vit-micro", "-o", name)[0] == 0
    code, out, _ = hwgen("check", name, "--html", tmp_path / "nodes.html")
    assert code == 0 and out.endswith("caf\\udce9/th\\udce9.onnx: every node is supported\n")
    bundle = folder / os.fsdecode(b"th\xe9.bundle")
    assert hwgen("build", name, "-o", bundle, "--set", "array_outputs=8", "--set", "array_inputs=8")[0] == 0
    assert json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["models"][0]["file"] == "th\ufffd.onnx"
    images = folder / os.fsdecode(b"th\xe9_test.npz")
    assert hwgen("compare", name, bundle, "--input", images, "--html", tmp_path / "errors.html")[0] == 0
    assert hwgen("package", bundle, "-o", folder / os.fsdecode(b"th\xe9.package"))[0] == 0
    assert hwgen("report", bundle, "--html", tmp_path / "report.html")[0] == 0
    for page in ("nodes", "errors", "report"):
        assert "th\ufffd" in (tmp_path / f"{page}.html").read_text(encoding="utf-8")
