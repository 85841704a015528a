"""What a Config takes of a board: an estimate in a millisecond, held against Yosys by tests/hwgen/test_resources_synth.py.

Multipliers and memories are counted from the shapes that the units are built with (`multipliers`, `rams`); LUTs and
flip-flops are sums of fitted terms (`logic`).
"""

from __future__ import annotations

from math import ceil

from ..boards import Board
from ..config import Config
from ..memories import memories
from .logic import of_units
from .multipliers import multipliers
from .rams import primitives, rom_blocks

ACCURACY = "DSP, BRAM and URAM by the rules of Yosys, LUT and FF fitted to designs it has synthesised"


def estimate(config: Config, board: Board) -> dict[str, int]:
    """lut, ff, dsp, bram, uram that Yosys makes of the design of `config` for `board`; lut and ff are fitted."""
    used = dict.fromkeys(board.resources, 0.0)
    for luts, flip_flops in of_units(config, board).values():
        used["lut"] += luts
        used["ff"] += flip_flops
    used["dsp"] = sum(multipliers(config, board.family).values())
    used["bram"] = rom_blocks(config, board)
    for memory in memories(config).values():
        found = primitives(memory, board)
        used["bram"] += found.get("bram", 0)
        used["uram"] += found.get("uram", 0)
    return {kind: ceil(n) for kind, n in used.items()}


def table(config: Config, board: Board) -> dict[str, dict]:
    """Resource -> used, available and their ratio."""
    used = estimate(config, board)
    result = {}
    for kind, available in board.resources.items():
        fraction = used[kind] / available if available else float(used[kind] > 0)
        result[kind] = {"used": used[kind], "available": available, "fraction": round(fraction, 4)}
    return result
