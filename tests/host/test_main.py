"""`python -m hwgen.host`: what it prints and writes, what it compares, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from hwgen.host.__main__ import main
from hwgen.sim.register_file import MachineEngine


@pytest.fixture
def images(digits, tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, image=digits[1], label=np.zeros(1))
    return path


@pytest.fixture
def host(command_line):
    """`python -m hwgen.host` in this process, see `command_line`."""
    return command_line(main)


def test_run(host, digits, digits_bundle, images, tmp_path):
    output = tmp_path / "out.npz"
    code, out, err = host(digits_bundle, images, "--device", "sim", "--task", "digit", "--output", output, "--check")
    assert (code, err) == (0, "")
    assert out.startswith("simulated zcu104 (machine model): runs at 300 MHz\n4 images in ")
    assert "p50 0." in out and "cycles (estimated) an image" in out and "outputs: as expected, bit for bit" in out
    with np.load(output) as found:
        assert found.files == ["digit"] and found["digit"].dtype == np.float32
        np.testing.assert_array_equal(found["digit"], digits[2]["digit"]["digit"])


def test_json_and_expected_outputs(host, digits, digits_bundle, images, tmp_path):
    expected = digits[2]["parity"]["parity"].copy()
    np.savez(tmp_path / "good.npz", parity=expected)
    expected[1, 0] = np.nextafter(expected[1, 0], np.float32(99))
    np.savez(tmp_path / "bad.npz", parity=expected)
    arguments = (digits_bundle, images, "--device", "sim", "--task", "parity", "--json", "--limit", "3")
    code, out, _ = host(*arguments, "--expect", tmp_path / "good.npz")
    found = json.loads(out)
    assert code == 0 and found["equal"] and found["images"] == 3 and found["cycles_exact"] is False
    assert found["images_per_second"] == pytest.approx(3 / found["seconds"])
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    code, out, err = host(*arguments, "--expect", tmp_path / "bad.npz")
    assert code == 1 and json.loads(out)["equal"] is False and err == "host: mismatch: parity not as expected\n"


def test_energy_files(host, digits_bundle, images, tmp_path):
    table = tmp_path / "power.csv"
    code, out, _ = host(digits_bundle, images, "--device", "sim", "--task", "digit", "--energy", table)
    assert code == 0
    assert all("(simulated sensors)" in line for line in out.splitlines() if line.startswith("rail "))
    assert "rail 12V" in out and "rail INT" in out
    assert table.read_text().startswith("seconds,phase,12V W (simulated sensors),INT W (simulated sensors)\n0.0")
    assert "simulated sensors" in table.with_suffix(".svg").read_text()


def test_both_tasks_of_an_image(host, digits_bundle, images, tmp_path):
    options = ("--device", "sim", "--task", "parity,digit", "--output", tmp_path / "o.npz", "--check", "--json")
    code, out, _ = host(digits_bundle, images, *options)
    assert code == 0 and json.loads(out)["task"] == "digit,parity" and json.loads(out)["equal"]
    with np.load(tmp_path / "o.npz") as found:
        assert sorted(found.files) == ["digit", "parity"]


def test_user_faults(host, digits_bundle, images, tmp_path):
    np.savez(tmp_path / "nan.npz", image=np.full((1, 1, 8, 8), np.nan))
    np.savez(tmp_path / "other.npz", picture=np.zeros(1))
    (tmp_path / "text.npz").write_text("no archive")
    sim = ("--device", "sim", "--task", "digit")
    for arguments, said in (
        ((digits_bundle, images, "--device", "sim"), "holds the tasks digit, parity: name one with --task"),
        ((digits_bundle, images, "--device", "sim", "--task", "x"), "unknown task 'x'; it holds 'digit', 'parity'"),
        ((digits_bundle, images, *sim, "--limit", "0"), "--limit 0: must be at least 1"),
        ((digits_bundle, images, *sim, "--bitstream", "a.bit"), "a.bit: a bitstream goes to the board"),
        ((digits_bundle, images, *sim, "--output", tmp_path), "is a folder"),
        ((digits_bundle, images, *sim, "--output", tmp_path / "no" / "out.npz"), "does not exist"),
        ((digits_bundle, tmp_path / "none.npz", *sim), "none.npz: no such file"),
        ((digits_bundle, tmp_path / "text.npz", *sim), "text.npz: not a readable .npz file"),
        ((digits_bundle, tmp_path / "other.npz", *sim), "other.npz: has no array 'image'; it holds picture"),
        ((digits_bundle, tmp_path / "nan.npz", *sim), "input 'image': holds NaN or infinity in image 0"),
        ((tmp_path, images, *sim), "manifest.json: cannot be read"),
        ((digits_bundle, images, "--device", "fpga"), "'fpga' is not one of board, sim, rtl, serial:PATH"),
        ((digits_bundle,), "required: IN.npz"),
    ):
        code, out, err = host(*arguments)
        assert code == 2 and not out, arguments
        assert err.startswith("host: error: ") and err.count("\n") == 1 and said in err, err
    assert host("--help")[0] == 0


def test_device_fault_is_one_line(host, digits_bundle, images, tmp_path, monkeypatch):
    monkeypatch.setattr(MachineEngine, "_run", lambda self: None)  # hardware that hangs
    output = tmp_path / "out.npz"
    code, out, err = host(digits_bundle, images, "--device", "sim", "--task", "digit", "--output", output)
    assert code == 1 and not out and err.startswith("host: RunTimeout: no halt within") and err.count("\n") == 1
    assert not output.exists()


def test_no_board_here(host, digits_bundle, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PYNQ, where it is installed
        code, _, err = host(digits_bundle, images, "--task", "digit")
    assert code == 2 and ("needs PYNQ" in err or "no bitstream" in err)


def test_as_a_program(digits_bundle, images):
    command = [sys.executable, "-m", "hwgen.host", str(digits_bundle), str(images), "--device", "sim", "--task", "digit"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "images/s" in done.stdout, done.stderr
