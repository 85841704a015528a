"""How a unit reads its instructions."""

from __future__ import annotations

from amaranth.hdl import Value
from amaranth.lib import data

from .. import isa
from .ports import insn_layout


def insn_view(insn: type[isa.Insn], word: Value) -> data.View:
    """The fields of `insn` in an instruction word (or in its low bits, if they hold them all)."""
    layout = insn_layout(insn)
    return layout(word[: layout.size])
