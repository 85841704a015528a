"""What an instruction moves: the counts that cost model, machine and tests share."""

from __future__ import annotations

import itertools

from . import isa
from .config import Config


def data_beats(insn: isa.Insn, config: Config) -> int:
    """Beats that a Load, LoadScales or Store moves."""
    if isinstance(insn, isa.LoadScales):
        return -(-2 * insn.count // config.axi_bytes)
    narrow = isinstance(insn, isa.Load) and insn.narrow
    return insn.rows * insn.chunks * (config.narrow_chunk_beats if narrow else config.chunk_beats)


def stream_beats(insn: isa.Stream, config: Config) -> int:
    """Beats that each weight port reads for a Stream that is not skipped."""
    return insn.beats if insn.narrow else insn.words * config.slice_beats


def expansion(insn: isa.Stream, config: Config) -> float:
    """Cycles of a word of a Stream in the expander of a port: one for each unit, and of narrow ones for each block's numbers."""
    return config.slice_beats * (1 + 1 / config.narrow_block if insn.narrow else 1.0)


def expected(route: isa.Route, loads: tuple[int, ...] = ()) -> list[int]:
    """Queue lengths of a Route whose tokens choose the experts in the proportion of `loads`; evenly where that is empty.

    Whole numbers whose sum is the tokens times top_k.
    """
    loads = loads if any(loads) else (1,) * route.experts
    entries = route.rows * route.top_k
    ends = [entries * sum(loads[:e]) // sum(loads) for e in range(route.experts + 1)]
    return [end - begin for begin, end in itertools.pairwise(ends)]


def walks(program: list[isa.Insn]) -> dict[int, isa.WalkFields]:
    """The walk that each instruction follows which has one, by its index."""
    found: dict[int, isa.WalkFields] = {}
    held: dict[isa.Unit, isa.WalkFields] = {}
    for index, insn in enumerate(program):
        if isinstance(insn, isa.WalkFields):
            held[insn.unit] = insn
        elif insn.unit in held:
            found[index] = held.pop(insn.unit)
    return found


def taps(walk: isa.WalkFields | None) -> int:
    """Taps of a row of an instruction behind this walk, if any."""
    return 1 if walk is None else walk.kernel_u * walk.kernel_v


def windows(walk: isa.WalkFields | None) -> tuple[tuple[int, int], int]:
    """Kernel of an instruction behind this walk, if any, and how many rows share what they read: `walks.Walk.run`."""
    if walk is None:
        return (1, 1), 1
    together = walk.kernel_v > 1 and (walk.x0, walk.u0, walk.v0) == (walk.tap_v, 0, walk.dilation_v)
    return (walk.kernel_u, walk.kernel_v), walk.n0 if together else 1


def array_rows(insn: isa.Matmul, config: Config, rows: int, walk: isa.WalkFields | None = None) -> int:
    """Rows that a Matmul of `rows` tokens feeds to the array, a cycle each."""
    return taps(walk) * rows * -(-insn.outputs // config.array_outputs) * -(-insn.inputs // config.array_inputs)
