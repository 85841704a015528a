"""The reference of commands, fields, boards and examples, made from the code: `python docs/reference.py > docs/reference.md`."""

from __future__ import annotations

import argparse

from hwgen import arguments, boards, fields
from hwgen.config import Config
from hwgen.example import EXAMPLES
from hwgen.quantise.options import Quantisation

HEAD = """\
# Reference

Commands with their options, fields that `--set` may name, boards, examples. `hwgen COMMAND --help` tells the same.

Exit codes of all commands: 0 good; 1 a check failed; 2 the input is at fault, told in one line that names file, node, shape or
value; 3 a fault of hwgen, or of a tool that it calls; 130 interrupted; 143 terminated. Nothing half-written is left.

`IN.npz` holds one array for each ONNX input, its first axis the images; other arrays in it are ignored. A folder of `.npy`, PNG
or JPEG files does too ([python.md](python.md) says how). `OUT.npz` gets one float32 array for each ONNX output, in its
shape. `--json` prints one JSON object on stdout; everything that is no result goes to stderr."""
FIELDS = "`hwgen build --set NAME=VALUE`, or `[set]` in a build file. A board may set others: `hwgen config --board NAME`."


def document() -> str:
    """The whole reference in Markdown."""
    _, commands = arguments.parsers()
    parts = [HEAD, "## Commands", *(_command(name, parser) for name, parser in commands.items())]
    parts += ["## Fields", FIELDS]
    parts += [_fields(cls) for cls in (Config, Quantisation)]
    parts += ["## Boards", _boards(), "## Examples", _examples()]
    return "\n\n".join(parts) + "\n"


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    rows = [f"| {_code(_called(a))} | {_told(a)} |" for a in actions]
    table = "\n".join(["| argument | |", "|---|---|", *rows]) if rows else ""
    examples = "\n".join(f"    {line}" for line in arguments.EXAMPLES[name])
    return "\n\n".join(filter(None, (f"### hwgen {name}", f"{_sentence(parser.description or '')}", table, examples)))


def _called(action: argparse.Action) -> str:
    """`-o, --output BUNDLE`, or the name of a positional argument; repeated ones with dots."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if not action.option_strings:
        return f"{metavar} ..." if action.nargs in ("*", "+") else metavar
    takes = f" {metavar or action.dest.upper()}" if action.nargs != 0 else ""
    return ", ".join(action.option_strings) + takes


def _told(action: argparse.Action) -> str:
    words = (action.help or "") % {"default": action.default}
    repeated = "; may be repeated" if isinstance(action, argparse._AppendAction) and "repeat" not in words else ""
    needed = "required" if action.required and action.option_strings else ""
    return _cell("; ".join(filter(None, (needed, words + repeated))))


def _fields(cls: type) -> str:
    rows = [f"| `{f.name}` | {f.type} | `{f.default!r}` | {_cell(f.meaning)} |" for f in fields.fields_of(cls)]
    return "\n".join([f"### {cls.__name__}", "", "| field | type | default | |", "|---|---|---|---|", *rows])


def _boards() -> str:
    rows = []
    for name in boards.names():
        b = boards.load(name)
        array = f"{b.config['array_outputs']} x {b.config['array_inputs']}" if b.config else "searched for"
        rows.append(f"| `{name}` | {b.description} | {b.part} | {array} | {b.make_config().clock_mhz:g} |")
    return "\n".join(["| name | board | part | array | MHz |", "|---|---|---|---|---|", *rows])


def _examples() -> str:
    rows = [f"| `{name}` | {_cell(example.description)} |" for name, example in EXAMPLES.items()]
    return "\n".join(["| name | |", "|---|---|", *rows])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(document(), end="")
