"""The instruction set as a document, made from `isa` itself: `python docs/isa.py > docs/isa.md`."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from enum import IntEnum

from hwgen import isa

NOTE = re.compile(r"^ {4}(\w+)(?:: \w+)? = .*?  # (.*)$", re.MULTILINE)  # behind a field or a member, in the source


def document() -> str:
    """The whole reference in Markdown."""
    parts = ["# Instruction set", _prose(inspect.getdoc(isa) or ""), _head(), "## Instructions"]
    kinds: dict[type, None] = {}
    for insn in isa.INSNS.values():
        parts.append(_instruction(insn))
        kinds |= dict.fromkeys(f.metadata["kind"] for f in fields(insn) if issubclass(f.metadata["kind"], IntEnum))
    parts += ["## Modes", *(_mode(kind) for kind in (isa.Unit, *kinds))]
    return "\n\n".join(parts) + "\n"


def _head() -> str:
    """What all words begin with."""
    rows = ["| bits | field | |", "|---|---|---|"]
    rows.append(f"| 0 to {isa.OP_BITS - 1} | `op` | {', '.join(f'{op.value} {op.name}' for op in isa.Op)} |")
    position = isa.OP_BITS
    for f in fields(isa.Insn):
        width = f.metadata["bits"]
        rows.append(f"| {position} to {position + width - 1} | `{f.name}` | instructions that this unit must have finished |")
        position += width
    return f"A word has {isa.WORD_BITS} bits; every one begins with\n\n" + "\n".join(rows)


def _instruction(insn: type[isa.Insn]) -> str:
    notes = dict(note for base in reversed(insn.__mro__[:-1]) for note in NOTE.findall(inspect.getsource(base)))
    shared = {f.name for f in fields(isa.Insn)}
    position, rows = isa.OP_BITS, []
    for f in fields(insn):
        width, kind = f.metadata["bits"], f.metadata["kind"]
        if f.name not in shared:
            default = "" if f.default is MISSING else getattr(f.default, "name", f.default)
            what = f"[{kind.__name__}](#{kind.__name__.lower()})" if issubclass(kind, IntEnum) else ""
            place = f"{position} to {position + width - 1}" if width > 1 else str(position)
            rows.append(f"| {place} | `{f.name}` | {default} | {'; '.join(filter(None, (what, notes.get(f.name, ''))))} |")
        position += width
    unit = "every unit" if insn.unit is None else f"unit {insn.unit.name}"
    table = "\n".join(["| bits | field | default | |", "|---|---|---|---|", *rows]) if rows else ""
    inherited = [inspect.getdoc(b) for b in insn.__mro__[1:] if b not in (isa.Insn, object) and "__doc__" in vars(b)]
    title = f"### {insn.__name__}\n\nOperation {insn.op.value}, {unit}."
    words = [title, *map(_code, (inspect.getdoc(insn), *inherited)), table]
    return "\n\n".join(filter(None, words))


def _mode(kind: type[IntEnum]) -> str:
    notes = dict(NOTE.findall(inspect.getsource(kind)))
    rows = [f"| {m.value} | {m.name} | {notes.get(m.name, '')} |" for m in kind]
    return f"### {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n" + "\n".join(["| value | name | |", "|---|---|---|", *rows])


def _prose(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def _code(text: str | None) -> str:
    return f"```\n{text}\n```"


if __name__ == "__main__":
    print(document(), end="")
