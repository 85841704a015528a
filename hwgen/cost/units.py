"""Cycles of single instructions, from the latencies that the hardware's units state."""

from __future__ import annotations

from .. import isa
from ..config import Config
from ..counts import data_beats, windows
from ..latency import multiply_cycles, norm_cycles, route_cycles, scan_cycles, select_cycles, window_cycles

VECTOR_STEPS = 1  # of the vector unit, around its norm or router
LOAD_STEPS = 5  # of a load, from its start to its first command
LOAD_END_STEPS = 8  # from its last beat to its end: queues, results visible
STORE_STEPS = 13  # of a store likewise


def least_data_cycles(insn: isa.Insn, config: Config) -> int:
    """Cycles that the unit itself needs for what the beats carry: a scale takes one."""
    return insn.count if isinstance(insn, isa.LoadScales) else data_beats(insn, config)


def vector_cycles(insn: isa.Insn, config: Config, walk: isa.WalkFields | None = None) -> int:
    """Cycles of a Norm, Multiply, ReduceWindow (behind its walk), Select, Scan or Route, from its acceptance to its end."""
    if isinstance(insn, isa.Norm):
        return VECTOR_STEPS + norm_cycles(config, insn.rows, insn.columns)
    if isinstance(insn, isa.Multiply):
        return VECTOR_STEPS + multiply_cycles(config, insn.rows, insn.columns, insn.period)
    if isinstance(insn, isa.ReduceWindow):
        weighted = insn.reduce == isa.Reduce.WEIGHTED
        return VECTOR_STEPS + window_cycles(config, insn.rows, insn.columns, *windows(walk), weighted)
    if isinstance(insn, isa.Select):
        cycles = select_cycles(config, insn.rows, insn.columns, insn.score_rows, insn.score_columns)
        return VECTOR_STEPS + cycles
    if isinstance(insn, isa.Scan):
        return VECTOR_STEPS + scan_cycles(config, insn.rows, insn.columns, insn.states)
    return VECTOR_STEPS + route_cycles(config, insn.rows, insn.experts, insn.top_k, bool(insn.dense))
