"""The shape of one machine. Every derived width is a property; the RTL, the scheduler and the cost model read it here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from .errors import UserError
from .isa import ADDRESS_BITS, NARROW_NUMBER_BITS, QUEUE_BITS, ROW_BITS, SCALE_BITS, SCAN_ENTRIES
from .numerics import ACC_BITS, ACC_MAX, INT8_MAX, MAX_EXPERTS, SCAN_STATES_MAX

MAX_NORM_COLUMNS = 1 << 15  # keeps the radicand of numerics.layer_norm below 2^62
MAX_WINDOW_CHUNKS = 16
MAX_WINDOW_ROWS = 4
MAX_WEIGHT_PORTS = 4  # that the register map has room for
MAX_ARRAY_OUTPUTS = 4096
MAX_MACS = 1 << 17  # several times the largest part; beyond it a build would take hours to say so
MAX_WEIGHT_WORDS = 1 << 18
MAX_OUTSTANDING = 256
OPTIONAL = ("window_chunks", "select_rows", "scan_states", "narrow_weights")  # units that a machine may be without: zero


@dataclass(frozen=True)
class Config:
    """Parameters of the generated hardware. Bad values raise UserError naming field and value.

    The comment of a field is its meaning, which `hwgen config` prints.
    """

    array_outputs: int = 16  # sums that the array delivers a cycle; even
    array_inputs: int = 16  # int8 lanes of the streamed operand
    banks: int = 4  # scratchpad banks, one read and one write a cycle each
    bank_words: int = 1024  # words of `word_chunks` chunks in a bank
    acc_rows: int = 256  # rows that an output tile accumulates: the largest row count of a Matmul
    scale_entries: int = 4096  # row maxima and row multipliers
    queue_entries: int = 1024  # tokens times top-k of a router
    max_experts: int = 64  # experts of a router, each with a queue of tokens
    norm_columns: int = 1024  # widest row of a LayerNorm
    window_chunks: int = 0  # chunks of a row that the window engine takes in one cycle; 0: there is none
    window_rows: int = 1  # rows of a window's result that share what it reads, where they are neighbours
    select_rows: int = 0  # scores that rows are chosen by, at most; 0: there is no selection
    scan_states: int = 0  # states of each channel of a chunk that a scan updates in one cycle; 0: there is no scan
    weight_words: int = 1024  # depth of the weight buffer, words of `array_inputs` bytes
    narrow_weights: int = 0  # 1: weights of 4 to 6 bits are read, and expanded to int8 on their way into the buffer
    weight_ports: int = 2  # AXI masters that stream weights; one more carries data and program
    axi_bytes: int = 16  # data width of an AXI master, in bytes
    burst_beats: int = 16  # longest AXI burst
    outstanding: int = 16  # read bursts in flight per master
    clock_mhz: float = 300.0  # of everything

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "clock_mhz":
                if not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise UserError(f"Config clock_mhz={value!r} is not a finite number")
            elif not isinstance(value, int) or isinstance(value, bool):
                raise UserError(f"Config {f.name}={value!r} is not a whole number")
            if f.name in OPTIONAL and value < 0:
                raise UserError(f"Config {f.name}={value!r} must not be negative")
            if value <= 0 and f.name not in OPTIONAL:
                raise UserError(f"Config {f.name}={value!r} must be positive")

        def need(condition: bool, name: str, why: str) -> None:
            if not condition:
                raise UserError(f"Config {name}={getattr(self, name)}: {why}")

        need(self.array_outputs % 2 == 0, "array_outputs", "must be even (two outputs share a multiplier)")
        need(self.array_outputs >= 8, "array_outputs", "must be at least 8")
        need(self.array_inputs >= 8, "array_inputs", "must be at least 8")
        longest = ACC_MAX // INT8_MAX**2
        need(self.array_inputs <= longest, "array_inputs", f"at most {longest}: a sum would not fit {ACC_BITS} bits")
        for name in ("banks", "bank_words", "acc_rows", "scale_entries", "queue_entries", "norm_columns", "weight_words"):
            value = getattr(self, name)
            need(value & (value - 1) == 0 and value >= 2, name, "must be a power of two, at least 2")
        fits = self.select_rows & (self.select_rows - 1) == 0 and self.select_rows != 1
        need(fits, "select_rows", "must be 0 or a power of two, at least 2")
        need(self.axi_bytes in (4, 8, 16, 32, 64), "axi_bytes", "must be 4, 8, 16, 32 or 64")
        need(self.burst_beats in (1, 2, 4, 8, 16), "burst_beats", "must be 1, 2, 4, 8 or 16")
        need(self.window_chunks <= self.input_chunks, "window_chunks", f"more than the {self.input_chunks} of array_inputs")
        for name, most in (
            ("array_outputs", MAX_ARRAY_OUTPUTS),
            ("acc_rows", 1 << ROW_BITS),
            ("scale_entries", 1 << SCALE_BITS),
            ("queue_entries", 1 << QUEUE_BITS),
            ("max_experts", MAX_EXPERTS),
            ("norm_columns", MAX_NORM_COLUMNS),
            ("window_chunks", MAX_WINDOW_CHUNKS),
            ("window_rows", MAX_WINDOW_ROWS),
            ("select_rows", 1 << ROW_BITS),
            ("scan_states", SCAN_STATES_MAX),
            ("narrow_weights", 1),
            ("weight_ports", MAX_WEIGHT_PORTS),
            ("weight_words", MAX_WEIGHT_WORDS),
            ("outstanding", MAX_OUTSTANDING),
        ):
            need(getattr(self, name) <= most, name, f"at most {most}")
        if self.macs_per_cycle > MAX_MACS:
            shape = f"array_outputs={self.array_outputs}, array_inputs={self.array_inputs}"
            raise UserError(f"Config {shape}: {self.macs_per_cycle} multipliers, at most {MAX_MACS}")
        need(self.weight_words >= 2 * self.array_outputs + 2 * self.burst_beats, "weight_words", "holds no two tiles")
        if self.scratch_chunks > 1 << ADDRESS_BITS:
            raise UserError(
                f"Config banks={self.banks}, bank_words={self.bank_words}: {self.scratch_chunks} chunks of "
                f"{self.chunk} elements, an address reaches {1 << ADDRESS_BITS}"
            )

    # --- scratchpad: chunks of elements, addressed by chunk -----------------------------------------------------
    @property
    def chunk(self) -> int:
        """Elements of the smallest addressable unit: the array's two widths are whole chunks."""
        return math.gcd(self.array_outputs, self.array_inputs)

    @property
    def input_chunks(self) -> int:
        """Chunks that the row reader takes in one cycle."""
        return self.array_inputs // self.chunk

    @property
    def output_chunks(self) -> int:
        """Chunks that the post-processor writes in one cycle."""
        return self.array_outputs // self.chunk

    @cached_property
    def word_chunks(self) -> int:
        """Chunks in a scratchpad word (sub-banks): a power of two that holds the widest access."""
        return 1 << (max(self.input_chunks, self.output_chunks) - 1).bit_length()

    @cached_property
    def bank_chunks(self) -> int:
        """Chunk addresses of one bank."""
        return self.bank_words * self.word_chunks

    @property
    def scratch_chunks(self) -> int:
        """Chunk addresses of the scratchpad; a chunk address is bank | word | sub-bank from high to low bits."""
        return self.banks * self.bank_chunks

    @property
    def chunk_beats(self) -> int:
        """AXI beats that carry one chunk of int16 elements to or from DRAM (the last beat may be padded)."""
        return -(-2 * self.chunk // self.axi_bytes)

    @property
    def narrow_chunk_beats(self) -> int:
        """AXI beats that carry one chunk of int8 elements from DRAM (the last beat may be padded)."""
        return -(-self.chunk // self.axi_bytes)

    # --- weight stream ------------------------------------------------------------------------------------------
    @property
    def slice_bytes(self) -> int:
        """Bytes of a weight word that one port delivers, padding included: a word is striped over the ports."""
        share = -(-self.array_inputs // self.weight_ports)
        return -(-share // self.axi_bytes) * self.axi_bytes

    @property
    def slice_beats(self) -> int:
        """AXI beats of a slice."""
        return self.slice_bytes // self.axi_bytes

    @property
    def narrow_block(self) -> int:
        """Units of narrow weights whose numbers stand together in front of them: as many as a beat holds."""
        return 8 * self.axi_bytes // NARROW_NUMBER_BITS

    @property
    def params_per_word(self) -> int:
        """(multiplier u16, bias i16) pairs in a weight word of `array_inputs` bytes."""
        return self.array_inputs // 4

    def param_words(self, columns: int) -> int:
        """Weight words that carry the parameters of so many columns."""
        return -(-columns // self.params_per_word)

    # --- scan ---------------------------------------------------------------------------------------------------
    def scan_beats(self, columns: int, states: int) -> tuple[int, int]:
        """(beats of a chunk, chunks of a group) of a Scan of so many columns."""
        beats = -(-states // self.scan_states)
        return beats, min(-(-columns // self.chunk), SCAN_ENTRIES // beats)

    # --- presentation -------------------------------------------------------------------------------------------
    @property
    def macs_per_cycle(self) -> int:
        """int8 products of the array in a cycle."""
        return self.array_outputs * self.array_inputs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Config from field values; unknown fields raise UserError."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"Config has no field {name!r}; it has {', '.join(sorted(known))}")
        return cls(**values)

    def replace(self, settings: dict[str, str]) -> Config:
        """A copy with `--set KEY=VALUE` texts applied."""
        values = self.to_dict()
        for name, text in settings.items():
            if name not in values:
                raise UserError(f"--set {name}: Config has no such field; it has {', '.join(sorted(values))}")
            try:
                values[name] = type(values[name])(text)
            except ValueError:
                raise UserError(f"--set {name}={text}: not a {'whole ' * isinstance(values[name], int)}number") from None
        return Config(**values)
