"""LUTs and flip-flops of every unit: sums of a few terms of the Config, fitted to synthesised designs.

The terms of a unit are what its cost grows with (lanes, chunks, ports); their coefficients stand in `fitted.py`, which
`tests/bench/fit_resources.py` writes.
"""

from __future__ import annotations

from ..boards import Board
from ..config import Config
from ..memories import memories
from .fitted import FLIP_FLOPS, LUTS
from .rams import primitives


def terms(config: Config) -> dict[str, tuple[float, ...]]:
    """Unit -> its terms, each of them about as large as what it stands for."""
    c = config
    outputs, inputs, chunk, beat = c.array_outputs, c.array_inputs, c.chunk, 8 * c.axi_bytes
    rams, sub = c.banks * c.word_chunks, c.word_chunks
    wide = chunk * c.window_chunks  # elements of a read of the window engine
    read = 16 * (2 * inputs + outputs + max(wide, chunk) + chunk)  # bits of all read ports
    return {
        "hwgen_top": (1,),
        "arbiter": (1,),
        "checksum": (beat,),
        "control": (1,),
        "core": (1, outputs),
        "load": (1, 16 * chunk + beat),
        "reader": (1, beat),
        "sequencer": (1, beat),
        "store": (1, 16 * chunk),
        "weights": (1, 8 * inputs, c.weight_ports, c.narrow_weights * c.weight_ports * c.axi_bytes),
        "writer": (1,),
        "core.accumulator": (outputs,),
        "core.array": (outputs, inputs),
        "core.issuer": (1,),
        "core.loader": (1, inputs, outputs),
        "core.post": (1, outputs),
        "core.reader": (1, inputs),
        "core.scales": (1,),
        "core.scratchpad": (1, 16 * chunk * rams, read * (rams - 1) / 3, 16 * (outputs + 2 * chunk) * sub.bit_length()),
        "core.vector": (1, 16 * chunk),
        "mac_pair": (outputs // 2, outputs // 2 * inputs),
        "core.vector.norm": (1, 16 * chunk),
        "core.vector.window": (float(wide > 0), wide, wide * (c.window_rows - 1), chunk * (wide > 0)),
        "window_lane": (wide * c.window_rows,),
        "window_post": (chunk * (wide > 0),),
        "core.vector.select": (float(c.select_rows > 0), 16 * chunk * (c.select_rows > 0)),
        "core.vector.scan": (float(c.scan_states > 0), 16 * chunk * (c.scan_states > 0), c.scan_states),
        "scan_element": (chunk * (c.scan_states > 0),),
        "scan_lane": (chunk * c.scan_states,),
        "scan_sum": (chunk * (c.scan_states > 0), chunk * c.scan_states),
        "core.vector.router": (1, 16 * chunk, 1 << (c.max_experts - 1).bit_length()),
    }


# What of a unit's LUTs is memory, counted by itself.
MEMORIES_OF = {
    "sequencer": ("program",),
    "core.vector.norm": ("norm parameters", "norm rows"),
    "core.vector.window": ("window maxima",),
    "core.vector.select": ("selection",),
    "core.post": ("row maxima",),
    "core.reader": ("softmax sums",),
    "core.scales": ("row scales",),
    "core.scratchpad": ("scratchpad",),
    "reader": ("data beats",),
    "core.vector.router": ("expert queues", "expert list"),
}


def memory_luts(config: Config, board: Board, unit: str) -> float:
    """LUTs of a unit's memories that are not in block RAM."""
    found = memories(config)
    return sum(primitives(found[name], board).get("lut", 0) for name in MEMORIES_OF.get(unit, ()) if name in found)


def of_units(config: Config, board: Board) -> dict[str, tuple[float, float]]:
    """Unit -> (LUTs, flip-flops), all of its instances together."""
    result = {}
    for unit, of_unit in terms(config).items():
        luts, flip_flops = (
            sum(c * t for c, t in zip(table[board.family][unit], of_unit, strict=True)) for table in (LUTS, FLIP_FLOPS)
        )
        result[unit] = (luts + memory_luts(config, board, unit), flip_flops)
    return result
