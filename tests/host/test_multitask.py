"""Alternating tasks: the same answers and bytes as one task at a time."""

from __future__ import annotations

import json

import numpy as np

from hwgen.host.multitask import main


def test_switching_moves_no_byte(digits, digits_bundle, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", image=digits[1])
    assert main([str(digits_bundle), str(tmp_path / "in.npz"), "--device", "sim", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["switches"] == 3 and found["images"] == 4 and found["equal"]
    assert found["extra_bytes"] == 0 and found["dram_bytes"] > 0 and found["cycles"] > 0
    assert main([str(digits_bundle), str(tmp_path / "in.npz"), "--device", "sim"]) == 0
    assert "3 task switches" in (said := capsys.readouterr().out) and "(estimated, the same for every image)" in said


def test_user_faults(digits_bundle, tmp_path, capsys):
    assert main([str(digits_bundle), str(tmp_path / "no.npz"), "--device", "sim"]) == 2
    assert "no.npz: no such file" in capsys.readouterr().err
    assert main([]) == 2
    assert "the following arguments are required" in capsys.readouterr().err
