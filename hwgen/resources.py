"""First-order resource estimate: multipliers and memories counted from the Config, logic from measured per-lane sums."""

from __future__ import annotations

from .boards import Board
from .config import Config
from .isa import WORD_BYTES
from .numerics import ACC_BITS, GELU_ENTRIES, GELU_FORMS

# (depth, width) shapes that one block offers; a memory takes as many as its cheapest tiling.
BRAM_SHAPES = {36: ((512, 72), (1024, 36), (2048, 18), (4096, 9)), 18: ((512, 36), (1024, 18), (2048, 9), (4096, 4))}
URAM_DEPTH, URAM_WIDTH = 4096, 72
PROGRAM_WORDS = 16  # instructions fetched ahead
SMALL_BITS = 2048  # below this a memory is made of LUTs
# Logic per lane, read off the Cost lines of hwgen/rtl and rounded up.
LUT_PER_OUTPUT, LUT_PER_INPUT, LUT_BASE = 900, 660, 12000  # an input has two 16x8 multipliers
FF_PER_OUTPUT, FF_PER_INPUT, FF_BASE = 1400, 1000, 18000


def memories(config: Config) -> list[tuple[str, int, int, int]]:
    """(name, how many, depth, width in bits) of every memory of the design but the small queues between units."""
    c = config
    expert_bits = max(1, (c.max_experts - 1).bit_length())
    norm_chunks = -(-c.norm_columns // c.chunk)
    norm_rows = max(512, 1 << (2 * norm_chunks - 1).bit_length())
    norm_factors = max(64, 1 << (3 * norm_chunks - 1).bit_length())
    return [
        ("scratchpad", c.banks * c.word_chunks, c.bank_words, 16 * c.chunk),
        ("weight buffer", 1, c.weight_words, 8 * c.array_inputs),
        ("accumulators", 1, c.acc_rows, ACC_BITS * c.array_outputs),
        ("row scales", 2, c.scale_entries, 16),
        ("row maxima", 1, 2 * c.acc_rows, 16),
        ("softmax sums", 1, c.acc_rows, 20),
        ("expert queues", 1, c.queue_entries, 28),
        ("expert list", 1, c.queue_entries, 28 + expert_bits),
        ("norm rows", 1, norm_rows, 16 * c.chunk),
        ("norm parameters", 2, norm_factors, 16 * c.chunk),
        ("read bursts", c.weight_ports + 1, c.outstanding * c.burst_beats, 8 * c.axi_bytes),
        ("program", 1, PROGRAM_WORDS * WORD_BYTES // c.axi_bytes, 8 * c.axi_bytes),
        ("GELU tables", c.array_outputs // 2, len(GELU_FORMS) * GELU_ENTRIES, 14),
    ]


def blocks(depth: int, width: int, bram_kbit: int) -> int:
    """Block RAMs that hold a memory of depth x width bits."""
    return min(-(-depth // d) * -(-width // w) for d, w in BRAM_SHAPES[bram_kbit])


def estimate(config: Config, board: Board) -> dict[str, int]:
    """lut, ff, dsp, bram, uram that the design of `config` takes on `board`; first order, not synthesis."""
    c = config
    used = dict.fromkeys(board.resources, 0)
    # Array; two multiplies per output lane; LayerNorm's square, three per element and its row.
    used["dsp"] = -(-c.macs_per_cycle // board.macs_per_dsp) + 2 * c.array_outputs + 4 * c.chunk + 16
    used["lut"] = LUT_BASE + LUT_PER_OUTPUT * c.array_outputs + LUT_PER_INPUT * c.array_inputs
    used["ff"] = FF_BASE + FF_PER_OUTPUT * c.array_outputs + FF_PER_INPUT * c.array_inputs
    uram_left = board.resources["uram"]
    for _, count, depth, width in sorted(memories(c), key=lambda m: -m[1] * m[2] * m[3]):
        uram = count * -(-depth // URAM_DEPTH) * -(-width // URAM_WIDTH)
        if depth * width <= SMALL_BITS:
            used["lut"] += count * -(-depth * width // 64)
        # A shallow or narrow memory would waste UltraRAM.
        elif depth >= URAM_DEPTH // 2 and width >= URAM_WIDTH // 2 and uram <= uram_left:
            used["uram"] += uram
            uram_left -= uram
        else:
            used["bram"] += count * blocks(depth, width, board.bram_kbit)
    return used


def table(config: Config, board: Board) -> dict[str, dict]:
    """Resource -> used, available and their ratio."""
    used = estimate(config, board)
    result = {}
    for kind, available in board.resources.items():
        fraction = used[kind] / available if available else float(used[kind] > 0)
        result[kind] = {"used": used[kind], "available": available, "fraction": round(fraction, 4)}
    return result
