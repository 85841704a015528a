"""The documents say what is so: their command lines parse, their test passes, their build file is read."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import hwgen
from hwgen import arguments, buildfile, fields, steps
from hwgen.config import Config
from hwgen.example import write
from hwgen.quantise.options import Quantisation

TOP = Path(__file__).resolve().parents[2]
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))}
reference = runpy.run_path(str(TOP / "docs" / "reference.py"))["document"]


def command_lines() -> list[str]:
    lines = "\n".join(DOCS.values()).replace("\\\n", " ").splitlines()
    return [found[1] for line in lines if (found := re.fullmatch(r"\s+(?:- run: |\.venv/bin/)?hwgen ([a-z].*)", line))]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(line):
    arguments.parsers()[0].parse_args(shlex.split(line, comments=True))


def test_there_are_command_lines():
    assert len(command_lines()) > 10


def test_the_reference_is_that_of_the_code():
    assert DOCS["reference.md"] == reference(), "python docs/reference.py > docs/reference.md"


def test_the_reference_holds_every_option_and_field():
    for name, parser in arguments.parsers()[1].items():
        section = DOCS["reference.md"].split(f"### hwgen {name}\n")[1].split("\n### ")[0]
        assert all(option in section for option in parser._option_string_actions if option not in ("-h", "--help")), name
        assert arguments.EXAMPLES[name][0] in section
    names = {f.name for owner in (Config, Quantisation) for f in fields.fields_of(owner)}
    assert names and all(f"`{name}`" in DOCS["reference.md"] for name in names)


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_somewhere(name):
    folder = TOP if name == "README.md" else TOP / "docs"
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", DOCS[name]):
        assert target.startswith("https:") or (folder / target).exists(), target


def test_what_the_readme_says_it_reaches_was_measured():
    section = DOCS["README.md"].split("## What it reaches\n")[1].split("\n## ")[0]
    found = re.findall(r"\d[\d,.]*\d(?= (?:cycles|ms|MHz))", section)
    assert len(found) > 6 and all(re.search(rf"(?<![\d.,]){re.escape(n)}(?![\d])", DOCS["measurements.md"]) for n in found)


def test_readme_is_short():
    assert len(DOCS["README.md"].splitlines()) < 100


def block(name: str, first: str) -> str:
    """The indented block of a document that begins with a line."""
    found = re.search(rf"((?:^    .*\n|^\n)*?^    {re.escape(first)}.*\n(?:^    .*\n|^\n)*)", DOCS[name], re.M)
    return textwrap.dedent(found[1])


def test_the_five_line_test_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "verilog", lambda config: {"hwgen_top.v": "module hwgen_top; endmodule"})
    model, calibration, _ = write("m3vit-digits", tmp_path / "digits.onnx")
    with np.load(calibration) as data:
        images = data["image"][:32]
    hwgen.build(model, "digits.bundle", calibrate=images, settings={"array_outputs": 8, "array_inputs": 8})
    code = block("ci.md", "import hwgen")
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) <= 5
    names: dict = {}
    exec(compile(code, "ci.md", "exec"), names)
    names["test_digits"]()
    monkeypatch.setattr("hwgen.verify.accuracy", lambda *given: hwgen.verify.Check("digit accuracy", False, "none right"))
    with pytest.raises(AssertionError, match="none right"):
        names["test_digits"]()


def test_the_build_file_is_read(tmp_path):
    (tmp_path / "build.toml").write_text(block("python.md", 'model = "digits.onnx"'))
    found = buildfile.read(tmp_path / "build.toml")
    assert found["settings"] == ["array_outputs=16", "equalise=0.5"] and found["shapes"] == ["image=1,1,8,8"]


def test_the_script_with_timm_runs_as_it_stands(tmp_path):
    for name in ("timm", "torch"):
        pytest.importorskip(name, reason="a gigabyte that only this script wants: pip install timm")
    environment = os.environ | {"PYTHONPATH": str(TOP)}
    command = [sys.executable, str(TOP / "docs" / "timm_vit.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "logits as golden  equal bit for bit" in done.stdout and "ok      logits SNR" in done.stdout
    assert "most of the error enters at" in done.stdout and "<svg" in (tmp_path / "vit.html").read_text()


def test_the_table_of_systems_is_that_of_the_bench():
    """Its outcomes are of a run of the bench; what shows a system is there."""
    table = runpy.run_path(str(TOP / "tests" / "bench" / "exports" / "table.py"))
    rows = re.findall(r"\| ([^|]+) \| (?:`([^`]+)`)? \| ([^|]+) \|", DOCS["systems.md"])
    assert [(system, shown) for system, shown, _ in rows] == [row[1:] for row in table["rows"]()]
    for system, shown, outcome in rows:
        path, _, name = shown.partition("::")
        assert not name or re.search(rf"^(def|class) {name}\b", (TOP / path).read_text(encoding="utf-8"), re.M), system
        assert (outcome == "not run") == (not shown), system
