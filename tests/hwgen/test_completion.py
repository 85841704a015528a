"""Shell completion: commands, options, values and files, as a shell gives them."""

import shutil
import subprocess

import pytest

from hwgen import completion
from hwgen.arguments import parsers

pytest.importorskip("shtab")
ASK = """
source {script}
cd {folder}
COMP_WORDS=({words}) COMP_CWORD={at} COMP_LINE="{words}" COMP_POINT=100
COMPREPLY=()
_shtab_hwgen "" "{last}" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def complete(hwgen, tmp_path):
    """complete(words): what bash offers for the last of them."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    code, out, err = hwgen("completion", "bash")
    assert (code, err) == (0, "")
    (tmp_path / "script.sh").write_text(out)
    (tmp_path / "net.onnx").touch()

    def ask(*words: str) -> set[str]:
        given = " ".join(word or "''" for word in words)
        text = ASK.format(
            script=tmp_path / "script.sh", folder=tmp_path, words=given, at=len(words) - 1, last=words[-1]
        )
        ran = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return set(ran.stdout.split())

    return ask


def test_what_bash_offers(complete):
    assert {"build", "run", "check", "completion"} <= complete("hwgen", "")
    assert complete("hwgen", "rep") == {"report"}
    assert {"--board", "--calibrate", "--stop-after"} <= complete("hwgen", "build", "--")
    assert complete("hwgen", "run", "x.bundle", "--engine", "") >= {"golden", "machine", "rtl"}
    assert "net.onnx" in complete("hwgen", "build", "--calibrate", "ne")
    assert "net.onnx" in complete("hwgen", "check", "ne")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_and_option_is_in_the_script(shell):
    text = completion.script(shell)
    for name, parser in parsers()[1].items():
        assert name in text
        assert all(option.lstrip("-") in text for option in parser._option_string_actions)


def test_choices_are_no_new_errors(hwgen):
    """Words that are offered are not the only ones that parse: the engine is judged where it is used."""
    completion.script("bash")
    assert parsers()[0].parse_args(["run", "b", "--input", "x", "--engine", "fast"]).engine == "fast"


def test_unknown_shell(hwgen):
    code, _, err = hwgen("completion", "tcl")
    assert code == 2 and "completion tcl: known are bash, zsh, fish" in err
