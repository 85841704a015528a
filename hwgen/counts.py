"""What an instruction moves: the counts that cost model, machine and tests share."""

from __future__ import annotations

from . import isa
from .config import Config


def data_beats(insn: isa.Insn, config: Config) -> int:
    """Beats that a Load, LoadScales or Store moves."""
    if isinstance(insn, isa.LoadScales):
        return -(-2 * insn.count // config.axi_bytes)
    narrow = isinstance(insn, isa.Load) and insn.narrow
    return insn.rows * insn.chunks * (config.narrow_chunk_beats if narrow else config.chunk_beats)


def array_rows(insn: isa.Matmul, config: Config, rows: int) -> int:
    """Rows that a Matmul of `rows` tokens feeds to the array, a cycle each."""
    return rows * -(-insn.outputs // config.array_outputs) * -(-insn.inputs // config.array_inputs)
