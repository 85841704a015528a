"""`hwgen completion`: the command line's words for a shell, made by shtab from the options themselves."""

from __future__ import annotations

from pathlib import Path

from .arguments import parsers
from .errors import UserError

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """What the shell is to read at its start. Raises UserError for an unknown shell, or where shtab is missing."""
    if shell not in SHELLS:
        raise UserError(f"completion {shell}: known are {', '.join(SHELLS)}")
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab: pip install 'hwgen[completion]'") from None
    top, commands = parsers()
    for action in (a for parser in commands.values() for a in parser._actions):
        words = action.metavar if isinstance(action.metavar, str) else ""
        if action.type is Path or words.endswith(".onnx"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif "|" in words and words.islower():
            action.choices = words.split("|")
    return shtab.complete(top, shell=shell)
