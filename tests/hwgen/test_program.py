"""The bundle directory: byte-identical, complete or absent, and refused when a bit has flipped."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from hwgen import program as module
from hwgen.config import Config
from hwgen.errors import UserError
from hwgen.host.bundle import Bundle, BundleError
from hwgen.program import write_bundle
from hwgen.schedule import schedule
from hwgen.sim.tb.graphs import random_graph


@pytest.fixture(scope="module")
def program():
    return schedule({"a": random_graph(0), "b": random_graph(1)}, Config(array_outputs=12, array_inputs=20))


def write(path, program, **changes):
    model = {"task": "a", "file": "a.onnx", "sha256": "0" * 64, "inputs": {}, "outputs": []}
    options = {"models": [model], "board": "zcu104", "registers": {"ID": 0}}
    files = {"rtl/hwgen_top.v": "module hwgen_top; endmodule\n", "report.json": b"{}\n"}
    write_bundle(path, program, files=files, **options | changes)


def contents(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def test_written_and_read(tmp_path, program):
    write(tmp_path / "bundle", program)
    bundle = Bundle(tmp_path / "bundle")
    assert set(contents(tmp_path / "bundle")) == {
        "manifest.json",
        "manifest.sha256",
        "program.bin",
        "dram.bin",
        "report.json",
        "rtl/hwgen_top.v",
    }
    assert Config.from_dict(bundle.config) == program.config
    assert bundle.tasks == ["a", "b"]
    np.testing.assert_array_equal(bundle.dram(), program.dram())
    task, entry = program.tasks["b"], bundle.task("b")
    assert entry["program"] == {"offset_bytes": task.offset, "instructions": len(task.instructions)}
    assert [o["name"] for o in entry["outputs"]] == [o.name for o in task.outputs]
    assert entry["inputs"][0]["bytes"] == task.inputs[0].layout.bytes
    assert bundle.memory["weight_bases"] == program.weight_bases
    with pytest.raises(BundleError, match="no task 'c'; there is 'a', 'b'"):
        bundle.task("c")


def test_byte_identical(tmp_path, program):
    again = schedule({"a": random_graph(0), "b": random_graph(1)}, program.config)
    write(tmp_path / "one", program)
    write(tmp_path / "two", again)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_flipped_bit_is_refused(tmp_path, program):
    path = tmp_path / "bundle"
    write(path, program)
    rng = np.random.default_rng(0)
    for name, content in contents(path).items():
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        (path / name).write_bytes(damaged)
        blamed = "manifest.json" if name == "manifest.sha256" else name
        with pytest.raises(BundleError, match=f"{blamed}: damaged"):
            Bundle(path)
        (path / name).write_bytes(content)
    (path / "manifest.sha256").write_bytes(contents(path)["manifest.sha256"].strip())
    with pytest.raises(BundleError, match="manifest.json: damaged"):  # the line's end counts, too
        Bundle(path)
    write(path, program)
    Bundle(path)
    (path / "dram.bin").unlink()
    with pytest.raises(BundleError, match="dram.bin: cannot be read"):
        Bundle(path)


def test_what_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="no bundle directory"):
        Bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match="manifest.json: cannot be read"):
        Bundle(tmp_path)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format_version": module.FORMAT_VERSION + 1}, f"version {module.FORMAT_VERSION + 1}, this tool reads"),
        ({"format": "other"}, "format 'other'"),
        ({"tasks": {}}, "holds no tasks"),
        ({"files": [1]}, "holds no files"),
        ({"files": {"dram.bin": "0"}}, "lists no program.bin"),
    ],
)
def test_manifest_that_says_something_else(tmp_path, program, change, said):
    path = tmp_path / "bundle"
    write(path, program)
    text = json.dumps(json.loads((path / "manifest.json").read_text()) | change).encode()
    (path / "manifest.json").write_bytes(text)
    (path / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")
    with pytest.raises(BundleError, match=f"manifest.json: .*{said}"):
        Bundle(path)


def test_replaces_only_bundles(tmp_path, program):
    path = tmp_path / "bundle"
    path.mkdir()
    write(path, program)  # an empty folder
    (path / "stale").write_text("left by an older version")
    write(path, program)
    assert not (path / "stale").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="mine: exists and is no bundle"):
        write(other, program)
    assert (other / "thesis.tex").exists()
    with pytest.raises(UserError, match="does not exist"):
        write(tmp_path / "a" / "b", program)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: exists and is no bundle"):
        write(tmp_path / "file", program)
    with pytest.raises(UserError, match="cannot be written .File name too long"):
        write(tmp_path / ("x" * 300), program)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "file", "mine"]


def test_nothing_half_written(tmp_path, program, monkeypatch):
    path = tmp_path / "bundle"
    write(path, program)
    before = contents(path)
    real, calls = Path.write_bytes, []

    def fail_later(self, data):
        calls.append(self)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", fail_later)
    for target in (path, tmp_path / "new"):
        calls.clear()
        with pytest.raises(UserError, match="cannot be written .No space left"):
            write(target, program)
    monkeypatch.undo()
    assert contents(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    with pytest.raises(ValueError, match="outside the bundle"):
        write_bundle(path, program, models=[], board="", registers={}, files={"../evil": b""})
    assert contents(path) == before


def test_manifest_is_sorted_json_without_paths_or_times(tmp_path, program):
    write(tmp_path / "bundle", program)
    text = (tmp_path / "bundle" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    assert str(tmp_path) not in text
    assert manifest["format_version"] == module.FORMAT_VERSION
