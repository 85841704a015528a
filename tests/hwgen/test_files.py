"""The user's files: written whole or not at all."""

import os

import numpy as np
import pytest

from hwgen import files
from hwgen.errors import UserError
from hwgen.host import files as host_files

IMAGES = np.arange(24, dtype=np.float32).reshape(3, 1, 2, 4)


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
