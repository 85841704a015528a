"""The user's files: read with the fault named, written whole or not at all."""

import os
import zipfile

import numpy as np
import pytest

from host import files as host_files
from hwgen import files
from hwgen.errors import UserError

IMAGES = np.arange(24, dtype=np.float32).reshape(3, 1, 2, 4)


def read(path, limit=None):
    return files.read_images(path, {"image": (1, 2, 4)}, limit)["image"]


@pytest.mark.parametrize("kind", ["u1", "f2", ">f4", "f8", "i8", "?"])
def test_any_numbers_become_float32(tmp_path, kind):
    np.savez(tmp_path / "x.npz", image=IMAGES.astype(kind))
    found = read(tmp_path / "x.npz", limit=2)
    assert found.dtype == np.float32
    assert np.array_equal(found, IMAGES[:2].astype(kind))


def test_other_arrays_are_ignored_whatever_they_hold(tmp_path):
    np.savez(tmp_path / "x.npz", image=IMAGES, names=np.array([{"a": 1}], dtype=object), label=np.zeros(7))
    assert np.array_equal(read(tmp_path / "x.npz"), IMAGES)


def test_values_beyond_float32_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.stack([IMAGES[0].astype(np.float64), np.full((1, 2, 4), 1e200)]))
    with pytest.raises(UserError, match="x.npz: array 'image' holds a value beyond float32 in image 1"):
        read(tmp_path / "x.npz")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, image=IMAGES)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(good)
        for place in rng.integers(len(bad), size=3):
            bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            read(path)
        except UserError as error:
            assert "x.npz" in str(error)
    path.write_text("an ordinary text")
    with pytest.raises(UserError, match="x.npz: not an .npz file"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image", "no array")
    with pytest.raises(UserError, match="x.npz: has no array 'image'"):
        read(path)
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for check in (files.check_writable, lambda path: files.write_atomic(path, b"x")):
        with pytest.raises(UserError, match="pipe: is no regular file"):
            check(tmp_path / "pipe")
        with pytest.raises(UserError, match="is a folder"):
            check(tmp_path)
        with pytest.raises(UserError, match="folder .*gone does not exist"):
            check(tmp_path / "gone" / "x")
        with pytest.raises(UserError, match="cannot be written .File name too long"):
            check(tmp_path / ("x" * 300))
    files.write_atomic(tmp_path / "file", b"old")
    files.write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]


def test_closed_folder_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="x: folder .* cannot be written"):
        files.check_writable(tmp_path / "x")


@pytest.mark.parametrize("write_npz", [files.write_npz, host_files.write_npz], ids=["hwgen", "host"])
def test_arrays_may_have_any_name(tmp_path, write_npz):
    """np.savez takes names as keywords, beside its own `file` and `allow_pickle`."""
    arrays = {"file": IMAGES, "allow_pickle": IMAGES[0], "/head/Gemm_output_0": np.float32(3)}
    write_npz(tmp_path / "x.npz", arrays)
    with np.load(tmp_path / "x.npz") as held:
        assert sorted(held.files) == sorted(arrays)
        assert all(np.array_equal(held[name], array) for name, array in arrays.items())
