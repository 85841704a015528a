"""Every board builds the reference workload, in token blocks where memory is small: golden and machine give equal bits."""

import numpy as np
import pytest

from hwgen import boards


@pytest.mark.slow
@pytest.mark.parametrize("board", boards.names())
def test_every_board_builds_m3vit_tiny(board, hwgen, tmp_path):
    model, bundle = tmp_path / "tiny.onnx", tmp_path / "bundle"
    assert hwgen("example", "m3vit-tiny", "-o", model)[0] == 0
    code, _, err = hwgen("build", model, "--board", board, "--calibrate", tmp_path / "tiny_calib.npz", "-o", bundle)
    assert code == 0, err
    assert ("token blocks" in err) == (board in ("pynq-z2", "ulx3s-85f"))
    found = []
    for engine in ("golden", "machine"):
        answer = tmp_path / f"{engine}.npz"
        arguments = ("--input", tmp_path / "tiny_test.npz", "--limit", 1, "--output", answer)
        assert hwgen("run", bundle, "--engine", engine, *arguments)[0] == 0
        found.append(np.load(answer))
    assert found[0].files
    for name in found[0].files:
        assert np.ptp(found[0][name]) > 0
        np.testing.assert_array_equal(found[0][name], found[1][name])
