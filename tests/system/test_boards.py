"""Boards: each builds the reference workload, in token blocks where memory is small, and three run a small network in RTL."""

import json

import numpy as np
import pytest

from hwgen import boards


def outputs(hwgen, bundle, engine, images, limit, folder):
    """Outputs by name of the first images, and the summary of the run."""
    answer = folder / f"{engine}.npz"
    code, out, err = hwgen(
        "run", bundle, "--engine", engine, "--input", images, "--limit", limit, "--output", answer, "--json"
    )
    assert code == 0, err
    with np.load(answer) as found:
        return dict(found), json.loads(out)


def same(one, other):
    assert one.keys() == other.keys() and one
    for name in one:
        assert np.ptp(one[name]) > 0
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
@pytest.mark.parametrize("board", boards.names())
def test_every_board_builds_m3vit_tiny(board, hwgen, tmp_path):
    model, bundle = tmp_path / "tiny.onnx", tmp_path / "bundle"
    assert hwgen("example", "m3vit-tiny", "-o", model)[0] == 0
    code, _, err = hwgen("build", model, "--board", board, "--calibrate", tmp_path / "tiny_calib.npz", "-o", bundle)
    assert code == 0, err
    assert ("token blocks" in err) == (board in ("pynq-z2", "ulx3s-85f"))
    golden, machine = (outputs(hwgen, bundle, e, tmp_path / "tiny_test.npz", 1, tmp_path)[0] for e in ("golden", "machine"))
    same(golden, machine)


@pytest.mark.slow
@pytest.mark.parametrize("board", ["zcu104", "pynq-z2", "ulx3s-85f"])
def test_m3vit_digits_in_rtl(board, hwgen, tmp_path):
    """With the Config that the board stores and its DRAM: equal to golden."""
    model, bundle = tmp_path / "digits.onnx", tmp_path / "bundle"
    assert hwgen("example", "m3vit-digits", "-o", model)[0] == 0
    code, _, err = hwgen("build", model, "--board", board, "--calibrate", tmp_path / "digits_calib.npz", "-o", bundle)
    assert code == 0 and f"the Config stored with {board}" in err, err
    golden, _ = outputs(hwgen, bundle, "golden", tmp_path / "digits_test.npz", 2, tmp_path)
    rtl, summary = outputs(hwgen, bundle, "rtl", tmp_path / "digits_test.npz", 2, tmp_path)
    same(golden, rtl)
    estimate = json.loads(hwgen("report", bundle, "--json")[1])["tasks"][""]["cycles"]
    print(f"{board}: {summary['cycles']} cycles, estimate {estimate}, array {summary['array_utilisation']}")
    assert estimate == pytest.approx(np.mean(summary["cycles"]), rel=0.03)
    assert all(0 < share < 1 for share in summary["array_utilisation"]) and min(summary["cycles"]) > 10_000
