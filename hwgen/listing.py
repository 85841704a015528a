"""Level P as text, and back: where everything lies in DRAM, then the instructions, one a line.

    region constants 4096 +8192
    input 'image' image 0 at 12288: 16 rows of 1 x 192
        0  LOAD        wait_matmul=1 dst=64 rows=16 chunks=12 pitch=12 dram=768  ; patches

A line of instructions names fields that are not at their default, and behind `;` the operation it belongs to.
"""

from __future__ import annotations

import re

from . import isa
from .program import InputSlot, OutputSlot, Program

LINE = re.compile(r"\s*(?:\d+ +)?([A-Z_]+)((?: +\w+=\w+)*)\s*(?:;\s*(.*))?")
MAP = ("region ", "input ", "output ")


def text(program: Program, task: str) -> str:
    """The memory map and one task's program."""
    found = program.tasks[task]
    lines = [f"region {name} {region.offset} +{region.size}" for name, region in program.regions.items()]
    lines += [_slot("input", slot) for slot in found.inputs] + [_slot("output", slot) for slot in found.outputs]
    return "\n".join(lines) + "\n" + instructions(found.instructions, found.origins) + "\n"


def _slot(kind: str, slot: InputSlot | OutputSlot) -> str:
    layout = slot.layout
    return f"{kind} {slot.name!r} image {slot.index} at {slot.dram}: {layout.rows} rows of {layout.groups} x {layout.width}"


def instructions(program: list[isa.Insn], origins: list[str] | None = None) -> str:
    """Instructions with their index and, where known, the operation they belong to."""
    names = origins or [""] * len(program)
    return "\n".join(
        f"{index:5}  {isa.text(insn)}" + (f"  ; {name}" if name else "")
        for index, (insn, name) in enumerate(zip(program, names, strict=True))
    )


def parse(written: str) -> tuple[list[isa.Insn], list[str]]:
    """(instructions, operation of each) of a text; the memory map is passed over. Raises ValueError naming the line."""
    program, origins = [], []
    for number, line in enumerate(written.splitlines(), 1):
        if not line.strip() or line.startswith(MAP):
            continue
        try:
            found = LINE.fullmatch(line)
            if found is None:
                raise ValueError("is no instruction")
            program.append(isa.parse(f"{found[1]}{found[2]}"))
        except ValueError as error:
            raise ValueError(f"line {number}: {line.strip()!r}: {error}") from None
        origins.append(found[3] or "")
    return program, origins
