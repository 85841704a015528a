"""Instructions as words and as text, and back."""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, fields
from enum import IntEnum

from ..numerics import REVISION
from .instructions import INSNS, OP_BITS, Insn, layout
from .modes import WORD_BITS, WORD_BYTES, Op


def fingerprint() -> str:
    """Differs where two instruction sets or their arithmetic differ: a bundle carries that of its program."""
    words = {op.name: layout(insn) for op, insn in INSNS.items()}
    return hashlib.sha256(repr((WORD_BITS, REVISION, words)).encode()).hexdigest()[:16]


def encode(insn: Insn) -> int:
    """The instruction word. A value that does not fit its field raises ValueError with its name."""
    word, position = int(insn.op), OP_BITS
    for f in fields(insn):
        number, width = int(getattr(insn, f.name)), f.metadata["bits"]
        if not 0 <= number < 1 << width:
            raise ValueError(f"{type(insn).__name__}.{f.name}={number} does not fit {width} bits")
        word |= number << position
        position += width
    return word


def decode(word: int) -> Insn:
    """The instruction of a word. An unknown operation, a bad field value or set padding bits raise ValueError."""
    try:
        insn = INSNS[Op(word & ((1 << OP_BITS) - 1))]
    except ValueError:
        raise ValueError(f"unknown operation {word & ((1 << OP_BITS) - 1)}") from None
    values, position = {}, OP_BITS
    for f in fields(insn):
        width = f.metadata["bits"]
        values[f.name] = f.metadata["kind"]((word >> position) & ((1 << width) - 1))
        position += width
    if word >> position:
        raise ValueError(f"{insn.__name__}: bits beyond {position} are set")
    return insn(**values)


def assemble(program: list[Insn]) -> bytes:
    """The instruction words one after another, little endian."""
    return b"".join(encode(insn).to_bytes(WORD_BYTES, "little") for insn in program)


def disassemble(binary: bytes) -> list[Insn]:
    """Instructions of a program up to its end. Raises ValueError naming the instruction's index."""
    program = []
    for i in range(0, len(binary), WORD_BYTES):
        try:
            program.append(decode(int.from_bytes(binary[i : i + WORD_BYTES], "little")))
        except ValueError as error:
            raise ValueError(f"instruction {i // WORD_BYTES}: {error}") from None
    return program


def text(insn: Insn) -> str:
    """One readable line: operation, then the fields that are not at their default."""
    shown = []
    for f in fields(insn):
        number = getattr(insn, f.name)
        if number != f.default:
            shown.append(f"{f.name}={number.name if isinstance(number, IntEnum) else number}")
    return " ".join([type(insn).__name__.upper().ljust(11), *shown])


def parse(line: str) -> Insn:
    """The inverse of `text`. Raises ValueError naming what is unknown, missing or does not fit."""
    name, *given = line.split()
    kind = next((insn for insn in INSNS.values() if insn.__name__.upper() == name), None)
    if kind is None:
        raise ValueError(f"no instruction {name}")
    kinds = {f.name: f.metadata["kind"] for f in fields(kind)}
    values: dict[str, int] = {}
    for field_name, _, value in (word.partition("=") for word in given):
        if field_name not in kinds:
            raise ValueError(f"{name} has no field {field_name!r}")
        of = kinds[field_name]
        if not value.isdigit() and value not in getattr(of, "__members__", ()):
            raise ValueError(f"{name} {field_name}={value}")
        values[field_name] = of(int(value)) if value.isdigit() else of[value]
    if missing := [f.name for f in fields(kind) if f.name not in values and f.default is MISSING]:
        raise ValueError(f"{name} without {', '.join(missing)}")
    insn = kind(**values)
    encode(insn)
    return insn
