"""Where elements lie: buffer rows in chunks of the scratchpad, constants and weights as bytes of DRAM.

A buffer row is its column groups one after another, each padded with zeros to whole chunks; the row pitch is the number
of chunks. Whoever writes a row keeps the padding zero, so it takes part in sums and maxima without a trace.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..errors import UserError
from ..intgraph import Buffer, View
from ..numerics import INT8_MAX, STATIC_SHIFT

Array = np.ndarray


@dataclass(frozen=True)
class Layout:
    """Row layout of a buffer of `groups` groups of `width` columns, in chunks of `chunk` elements."""

    name: str
    chunk: int
    groups: int
    width: int

    @property
    def group_chunks(self) -> int:
        """Chunks of one group of a row."""
        return -(-self.width // self.chunk)

    @property
    def pitch(self) -> int:
        """Chunks from a row to the next."""
        return self.groups * self.group_chunks

    def start(self, view: View) -> int:
        """Chunk offset of the view's first element from the start of the buffer."""
        if self.groups > 1:
            return view.row * self.pitch + view.col // self.width * self.group_chunks
        if view.col % self.chunk:
            raise UserError(self._split(view))
        return view.row * self.pitch + view.col // self.chunk

    def check_written(self, view: View) -> None:
        """Raise UserError if writing the view in whole chunks would overwrite its neighbours."""
        end = view.col + view.cols
        if self.groups == 1 and end % self.chunk and end != self.width:
            raise UserError(self._split(view))

    def _split(self, view: View) -> str:
        return (
            f"buffer {self.name!r}: columns {view.col}..{view.col + view.cols} of {self.width} are no whole chunks of "
            f"{self.chunk} (array_outputs and array_inputs with a smaller common divisor would fit)"
        )

    def columns(self, view: View) -> Array:
        """Physical column of each of the view's columns, counted from the view's first chunk: int64 [cols]."""
        if self.groups == 1:
            return np.arange(view.cols)
        group, column = np.divmod(np.arange(view.cols), self.width)
        return group * self.group_chunks * self.chunk + column

    def chunks(self, view: View) -> int:
        """Chunks of one row of the view."""
        return -(-(int(self.columns(view)[-1]) + 1) // self.chunk)


def layout_of(buffer: Buffer, config: Config) -> Layout:
    """The row layout of a buffer on a machine."""
    return Layout(buffer.name, config.chunk, buffer.groups, buffer.cols // buffer.groups)


def align(value: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step


# --- data region -------------------------------------------------------------------------------------------------


def chunk_bytes(config: Config, narrow: bool = False) -> int:
    """Bytes of a chunk in DRAM: whole beats."""
    return (config.narrow_chunk_beats if narrow else config.chunk_beats) * config.axi_bytes


def fits_narrow(data: Array) -> bool:
    """Whether a narrow isa.Load can bring `data` int16: every element is an int8 value times 2^8."""
    steps, rest = np.divmod(np.asarray(data, np.int64), 1 << STATIC_SHIFT)
    return not rest.any() and bool((np.abs(steps) <= INT8_MAX).all())


def pack_rows(data: Array, columns: Array, config: Config, narrow: bool = False) -> bytes:
    """int16 [R, C] as isa.Load expects it, logical column c at physical column columns[c].

    `narrow`: as bytes; the data must pass `fits_narrow`.
    """
    chunk = config.chunk
    chunks = -(-(int(columns[-1]) + 1) // chunk)
    rows = np.zeros((data.shape[0], chunks * chunk), "<i2")
    rows[:, columns] = data
    element = np.dtype(np.int8 if narrow else "<i2")
    padded = np.zeros((data.shape[0] * chunks, chunk_bytes(config, narrow) // element.itemsize), element)
    padded[:, :chunk] = (rows >> STATIC_SHIFT if narrow else rows).reshape(-1, chunk)
    return padded.tobytes()


class DataStore:
    """Constants of the data region, each once, at byte offsets from the region's start."""

    def __init__(self, config: Config):
        self.step = config.axi_bytes * config.burst_beats  # a burst never starts in the middle of another constant's
        self.blocks: list[bytes] = []
        self.size = 0
        self.known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        """Byte offset of `data`, which is stored unless it is there already."""
        data += bytes(-len(data) % self.step)
        key = hashlib.sha256(data).digest()
        if key not in self.known:
            self.known[key] = self.size
            self.blocks.append(data)
            self.size += len(data)
        return self.known[key]

    def image(self) -> bytes:
        """Contents of the region."""
        return b"".join(self.blocks)


# --- weight stream -----------------------------------------------------------------------------------------------


def pack_stream(config: Config, weights: Array | None, mult: Array | None, bias: Array | None) -> tuple[Array, Array]:
    """The words of one Matmul in the order of isa.Matmul, uint8 [words, array_inputs], and which are weights, bool [words].

    weights: int8 [N, K], physical, or None where the stationary operand lies in the scratchpad; mult u16 [N] and bias
    int16 [N], physical, or None where the Matmul takes no parameters.
    """
    o, i = config.array_outputs, config.array_inputs
    n_all = next(len(array) for array in (weights, mult) if array is not None)
    parts: list[Array] = []
    kinds: list[Array] = []
    if weights is not None:
        padded = np.zeros((n_all, align(weights.shape[1], i)), np.int8)
        padded[:, : weights.shape[1]] = weights
    for first in range(0, n_all, o):
        n = min(o, n_all - first)
        if mult is not None and bias is not None:
            words = np.zeros((config.param_words(n), i), np.uint8)
            pairs = np.zeros((len(words) * config.params_per_word, 2), "<u2")
            pairs[:n, 0] = mult[first : first + n]
            pairs[:n, 1] = np.asarray(bias[first : first + n], "<i2").view("<u2")
            words[:, : config.params_per_word * 4] = pairs.view(np.uint8).reshape(len(words), -1)
            parts.append(words)
            kinds.append(np.zeros(len(words), bool))
        if weights is not None:
            tile = padded[first : first + n].reshape(n, -1, i).transpose(1, 0, 2)
            parts.append(tile.reshape(-1, i).view(np.uint8))
            kinds.append(np.ones(len(parts[-1]), bool))
    return np.concatenate(parts), np.concatenate(kinds)


def stream_words(config: Config, outputs: int, inputs: int, params: bool) -> int:
    """Words that `pack_stream` makes of [outputs, inputs] weights (0 inputs: none), with parameters or without."""
    words = outputs * -(-inputs // config.array_inputs)
    if params:
        whole, rest = divmod(outputs, config.array_outputs)
        words += whole * config.param_words(config.array_outputs) + config.param_words(rest)
    return words


class WeightStore:
    """Weight segments, equal ones once, counted in beats of a port's region.

    contents: whether the beats themselves are kept; without them segments are told apart by their source alone.
    """

    def __init__(self, config: Config, contents: bool = True):
        self.config, self.contents = config, contents
        self.blocks: list[Array] = []
        self.size = 0
        self.known: dict[object, int] = {}

    def reserve(self, key: object, beats: int) -> int:
        """The first of so many beats, behind all others unless the key is known.

        Segments start with a burst, so that bursts of a whole power of two never cross 4 KiB.
        """
        if key not in self.known:
            self.known[key] = align(self.size, self.config.burst_beats)
            self.size = self.known[key] + beats
        return self.known[key]

    def add(self, beats: Array) -> int:
        """The first of these beats, uint8 [n, ports, axi_bytes], stored unless they are there already."""
        before = self.size
        first = self.reserve(hashlib.sha256(beats.tobytes()).digest(), len(beats))
        if self.size > before:
            self.blocks += [np.zeros((first - before, *beats.shape[1:]), np.uint8), beats]
        return first

    def stripes(self) -> list[bytes]:
        """The region of each weight port, see isa.Stream."""
        ports = range(self.config.weight_ports)
        return [b"".join(block[:, p].tobytes() for block in self.blocks) for p in ports]
