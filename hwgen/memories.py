"""Every memory of the design that may become block RAM: the units of `rtl` are made from here,
`resources` counts them."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Config
from .isa import GATE_SCORE_BITS, ROW_BITS, WORD_BYTES
from .numerics import ACC_BITS

FETCH_QUEUE = 16  # instructions fetched or being fetched, not yet dispatched
QUEUE_HEADS = 1  # instructions of a unit's queue in registers behind its RAM, which holds isa.QUEUE_DEPTH
LEAST_NORM_BUFFER = 512  # chunks of rows in the norm unit: the depth of a block RAM
LEAST_FACTORS = 64  # chunks of gamma, beta or factors: more than are on their way through the norm unit
SUM_BITS = 20  # of a row's probabilities: 127 * 4096 tokens fit with room


@dataclass(frozen=True)
class Memory:
    """`count` simple dual port RAMs of `depth` words of `width` bits, of which tools keep `used` bits."""

    count: int
    depth: int
    width: int
    style: str = "auto"  # hwgen.rtl.memory.STYLES
    unread: int = 0  # bits of a word that nothing reads

    @property
    def used(self) -> int:
        """Bits of a word that remain in synthesis."""
        return self.width - self.unread


def expert_bits(config: Config) -> int:
    """Bits of an expert's number."""
    return max((config.max_experts - 1).bit_length(), 1)


def norm_chunks(config: Config) -> int:
    """Chunks of the widest LayerNorm row."""
    return -(-config.norm_columns // config.chunk)


def selected_bits(config: Config) -> int:
    """Bits of a row that a selection ranks: its chunk's address in the scratchpad."""
    return (config.scratch_chunks - 1).bit_length()


def memories(config: Config) -> dict[str, Memory]:
    """The memories of the design of `config` by name."""
    c = config
    chunk_bits, beat_bits = 16 * c.chunk, 8 * c.axi_bytes
    burst_beats = 1 << max(1, (c.outstanding * c.burst_beats - 1).bit_length())
    norm_rows = max(LEAST_NORM_BUFFER, 1 << (2 * norm_chunks(c) - 1).bit_length())
    factor_rows = max(LEAST_FACTORS, 1 << (4 * norm_chunks(c) - 1).bit_length())  # two rows ahead, see Norm
    found = {
        "scratchpad": Memory(c.banks * c.word_chunks, c.bank_words, chunk_bits),
        # The even words in block RAM, the odd ones where the tool finds room: in UltraRAM where there is some.
        "weight buffer, even words": Memory(1, c.weight_words // 2, 8 * c.array_inputs, "block"),
        "weight buffer, odd words": Memory(1, c.weight_words // 2, 8 * c.array_inputs),
        "accumulators": Memory(1, c.acc_rows, ACC_BITS * c.array_outputs, "block"),
        "row scales": Memory(2, c.scale_entries, 16),
        "row maxima": Memory(1, 2 * c.acc_rows, 16),
        "softmax sums": Memory(1, c.acc_rows, SUM_BITS),
        "expert queues": Memory(1, c.queue_entries, ROW_BITS + GATE_SCORE_BITS),
        "expert list": Memory(1, c.queue_entries, ROW_BITS + GATE_SCORE_BITS + expert_bits(c)),
        "norm rows": Memory(1, norm_rows, chunk_bits),
        "norm parameters": Memory(2, factor_rows, chunk_bits),
        **({"window maxima": Memory(1, c.acc_rows, 16)} if c.window_chunks else {}),
        **({"selection": Memory(2, c.select_rows, 16 + selected_bits(c))} if c.select_rows else {}),
        "program": Memory(1, FETCH_QUEUE * WORD_BYTES // c.axi_bytes, beat_bits),
        "data beats": Memory(1, burst_beats, beat_bits),
    }
    for port in range(c.weight_ports):
        # A port's first beat of a slice has as many bytes of the weight word as any; the rest is padding.
        bytes_read = min(max(c.array_inputs - port * c.slice_bytes, 0), c.axi_bytes)
        found[f"weight beats {port}"] = Memory(1, burst_beats, beat_bits, unread=beat_bits - 8 * bytes_read)
    return found
