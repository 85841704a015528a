"""Which primitives of a family hold a memory: the choice that Yosys' memory_libmap makes by price, for simple dual port RAMs.

A price list for each family stands below as Yosys 0.70 has it in `share/xilinx/*rams*.txt` and in ECP5's; what a kind of
RAM costs is its price times how many of it the memory takes, and a little for the multiplexer between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ..boards import Board
from ..config import Config
from ..latency import ROUTER_LANES
from ..memories import Memory


@dataclass(frozen=True)
class Kind:
    """A primitive: what it is counted as (`bram` in halves of Xilinx' 36 kbit), its shapes (depth, width), Yosys' price.

    native: depth at which its words have their own width; more and narrower words cost `folded` more.
    """

    counted: str
    amount: float
    price: float
    shapes: tuple[tuple[int, int], ...]
    native: int = 1 << 30
    folded: float = 0
    by_bit: float = 0  # price of a bit's multiplexer between two of it


def _narrower(depth: int, *widths: int) -> tuple[tuple[int, int], ...]:
    return tuple((depth << i, width) for i, width in enumerate(widths))


_BRAM18 = Kind("bram", 0.5, 129, _narrower(512, 36, 18, 9, 4, 2, 1))
_BRAM36 = Kind("bram", 1, 257, _narrower(512, 72, 36, 18, 9, 4, 2, 1))
_URAM = Kind("uram", 1, 1024, _narrower(4096, 72, 36, 18, 9), native=4096, folded=64)
_EBR = Kind("bram", 1, 128, _narrower(512, 36, 18, 9, 4, 2, 1))

# Family -> (block RAMs, LUT RAM, LUTs of one LUT RAM).
KINDS: dict[str, tuple[tuple[Kind, ...], Kind]] = {
    "ultrascale+": ((_BRAM18, _BRAM36, _URAM), Kind("lut", 8, 16, ((32, 14), (64, 7)), by_bit=0.5)),
    "7-series": ((_BRAM18, _BRAM36), Kind("lut", 4, 8, ((32, 6), (64, 3)), by_bit=0.5)),
    "ecp5": ((_EBR,), Kind("lut", 6, 4, ((16, 4),), by_bit=0.5)),
}


def rom_blocks(config: Config, board: Board) -> float:
    """Block RAMs of the tables: each fills a part of the smallest one, GELU's of two, which serve two outputs."""
    tables = 2 * (config.array_outputs // 2) + ROUTER_LANES + 1  # GELU, powers of two for each lane of the router, 1/sqrt
    tables += 2 * -(-config.chunk // 2) * bool(config.window_chunks)  # GELU behind windows
    tables += config.chunk * bool(config.scan_states)  # softplus of each element of a scan
    return tables * KINDS[board.family][0][0].amount


def _best(kind: Kind, depth: int, width: int) -> tuple[float, int]:
    """(price, how many) of the cheapest shape."""
    found = (inf, 0)
    for d, w in kind.shapes:
        rows = -(-depth // d)
        count = rows * -(-width // w)
        price = count * kind.price + (rows - 1) * width * kind.by_bit + (kind.folded if d > kind.native else 0)
        found = min(found, (price, count))
    return found


def primitives(memory: Memory, board: Board) -> dict[str, float]:
    """lut, bram, uram (bram perhaps in halves) of all RAMs of `memory` on a board; UltraRAM where the part has some."""
    blocks, in_luts = KINDS[board.family]
    blocks = [k for k in blocks if board.resources[k.counted]]
    if not memory.used:
        return {}
    kinds = {
        "block": [k for k in blocks if k.counted == "bram"],
        "ultra": [k for k in blocks if k.counted == "uram"],
        "distributed": [in_luts],
        "auto": [*blocks, in_luts],
    }[memory.style]
    (_, each), kind = min(((_best(k, memory.depth, memory.used), k) for k in kinds), key=lambda choice: choice[0])
    return {kind.counted: memory.count * each * kind.amount}
