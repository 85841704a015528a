"""The fields that `--set` may name, with default and meaning, read off the classes that define them."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass, fields
from typing import Any

_FIELD = re.compile(r"    (\w+): [^=]+=[^#]+?(?:  # (.*))?")
_COMMENT = re.compile(r"    # (.*)")
WIDTH = 120


@dataclass(frozen=True)
class Field:
    """One field: the class that holds it, its type by name, its default, its meaning in words."""

    owner: str
    name: str
    type: str
    default: Any
    meaning: str


def fields_of(cls: type) -> list[Field]:
    """The fields of a dataclass. A field's meaning is the comment behind it, after those in the lines right above it."""
    meanings: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if comment := _COMMENT.fullmatch(line):
            above.append(comment[1])
            continue
        if found := _FIELD.fullmatch(line):
            meanings[found[1]] = " ".join([*above, *([found[2]] if found[2] else [])])
        above = []
    return [Field(cls.__name__, f.name, str(f.type), f.default, meanings.get(f.name, "")) for f in fields(cls)]


def table(listed: list[Field], current: dict[str, Any], board: str) -> str:
    """All fields for people. current: values of the fields that a board sets in place of the default."""
    width = max(len(f.name) for f in listed)
    columns = max(len(repr(f.default)) for f in listed)
    lines, owner = [], ""
    for f in listed:
        if f.owner != owner:
            lines += ["", f"{f.owner}:"] if lines else [f"{f.owner}:"]
            owner = f.owner
        there = f" ({board}: {current[f.name]})" if current.get(f.name, f.default) != f.default else ""
        start = f"  {f.name:{width}}  {f.default!r:{columns}}  "
        lines += textwrap.wrap(f.meaning + there, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
    return "\n".join(lines)
