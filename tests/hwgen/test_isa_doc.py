"""The ISA reference is made from `isa`, and the one in docs is that of today."""

import runpy
from dataclasses import fields
from pathlib import Path

from hwgen import isa

DOCS = Path(__file__).resolve().parents[2] / "docs"
document = runpy.run_path(str(DOCS / "isa.py"))["document"]


def test_the_document_is_that_of_the_code():
    assert (DOCS / "isa.md").read_text(encoding="utf-8") == document(), "python docs/isa.py > docs/isa.md"


def test_every_field_stands_where_the_encoder_puts_it():
    """A word with one field all ones holds ones in the bits that the document says."""
    lines = document().splitlines()
    for insn in isa.INSNS.values():
        start = lines.index(f"### {insn.__name__}")
        for f in fields(insn)[len(fields(isa.Insn)) :]:
            row = next(line for line in lines[start:] if f"| `{f.name}` |" in line)
            places = [int(n) for n in row.split("|")[1].split(" to ")]
            needed = {g.name: g.metadata["kind"](0) for g in fields(insn)}
            word = isa.encode(insn(**{**needed, f.name: f.metadata["kind"](1)}))
            assert word >> isa.OP_BITS == 1 << places[0] - isa.OP_BITS
            assert places[-1] - places[0] + 1 == f.metadata["bits"]
        assert all(f"| {mode.value} | {mode.name} |" in "\n".join(lines) for mode in isa.Convert)
