"""The instruction words: what is encoded comes back, what does not fit is named."""

from dataclasses import fields

import numpy as np
import pytest

from hwgen import isa


def random_insn(kind, rng):
    """An instruction with a random value in every field."""
    values = {}
    for f in fields(kind):
        width, shown = f.metadata["bits"], f.metadata["kind"]
        if shown is int:
            values[f.name] = int(rng.integers(1 << width))
        else:
            choices = [choice for choice in shown if choice < 1 << width]
            values[f.name] = choices[rng.integers(len(choices))]
    return kind(**values)


@pytest.mark.parametrize("kind", isa.INSNS.values(), ids=lambda kind: kind.__name__)
def test_round_trip(kind):
    rng = np.random.default_rng(0)
    assert sum(width for _, width in isa.layout(kind)) <= isa.WORD_BITS
    for _ in range(20):
        insn = random_insn(kind, rng)
        word = isa.encode(insn)
        assert 0 <= word < 1 << isa.WORD_BITS
        decoded = isa.decode(word)
        assert decoded == insn and type(decoded) is kind
        assert all(type(getattr(decoded, f.name)) is type(getattr(insn, f.name)) for f in fields(kind))


def test_fields_lie_as_the_layout_says():
    """The hardware reads fields by this layout: the operation first, the waits of all instructions in one place."""
    insn = isa.Store(dram=0x12345678, src=0xABCDEF, rows=3, chunks=5, pitch=7, wait_store=9)
    position, word = 0, isa.encode(insn)
    for name, width in isa.layout(isa.Store):
        value = word >> position & ((1 << width) - 1)
        assert value == (isa.Op.STORE if name == "op" else getattr(insn, name)), name
        position += width
    assert word >> position == 0
    header = isa.layout(isa.End)
    assert all(isa.layout(kind)[: len(header)] == header for kind in isa.INSNS.values())


@pytest.mark.parametrize("change", [{"rows": 1 << 16}, {"dst": 1 << 24}, {"pitch": -1}, {"wait_matmul": 1 << 16}])
def test_a_value_that_does_not_fit_is_named(change):
    (name, value), = change.items()
    values = {"dram": 0, "dst": 0, "rows": 1, "chunks": 1, "pitch": 1} | change
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        isa.encode(isa.Load(**values))


def test_bad_words():
    with pytest.raises(ValueError, match="instruction 1: .*200"):
        isa.disassemble(isa.assemble([isa.End()]) + (200).to_bytes(isa.WORD_BYTES, "little"))
    with pytest.raises(ValueError, match="End: bits beyond"):
        isa.decode(isa.encode(isa.End()) | 1 << 511)


def test_program_and_text():
    program = [isa.Stream(dram=4, words=20, expert=3), isa.End(wait_matmul=2)]
    assert isa.disassemble(isa.assemble(program)) == program
    assert isa.text(program[0]) == "STREAM      dram=4 words=20 expert=3"
    assert isa.text(program[1]) == "END         wait_matmul=2"
    line = isa.text(isa.Matmul(rows=1, inputs=2, outputs=3, x=0, x_pitch=1, shift=9, y=5, y_pitch=1, gelu=isa.Gelu.GELU))
    assert "gelu=GELU" in line and "x_convert" not in line
