"""The instruction set: one frozen dataclass per instruction, field widths fixed whatever the Config.

Encoder, decoder, disassembler, the RTL's view (`layout`) and the ISA document derive from these classes; `sim.machine`
is their executable definition. An instruction is one word of 512 bits, little endian, its first field in the low bits.

Units run decoupled, each through its own instructions in program order. An instruction starts when every unit u has
finished at least `wait_u` instructions (counted from the start of the run): these counts are the dependency tokens.

Addresses: scratchpad in chunks (`Config.chunk` int16 elements), DRAM in AXI beats from the base register of its region,
row scales in entries of the scale memory. `pitch` is the distance in chunks from a row to the next.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import MISSING, dataclass, field, fields
from enum import IntEnum
from typing import Any, ClassVar

from .numerics import REVISION

WORD_BITS = 512
WORD_BYTES = WORD_BITS // 8
QUEUE_DEPTH = 16  # instructions waiting in front of a unit; the dispatcher stops at a full queue
COUNT_BITS = 16  # of the finished-instruction counters; a program has fewer instructions per unit
ADDRESS_BITS = 24  # of a chunk of the scratchpad
SCALE_BITS = 16  # of an entry of the scale memory
QUEUE_BITS = 16  # of an entry of the expert queues
ROW_BITS = 12  # of an accumulator row, and of a token in an expert queue
GATE_SCORE_BITS = 16  # of a gate score there


class Unit(IntEnum):
    """The units that run decoupled."""

    LOAD = 0  # DRAM -> scratchpad, scale memory
    WEIGHTS = 1  # DRAM -> weight buffer
    MATMUL = 2
    VECTOR = 3  # LayerNorm, products of rows, router
    STORE = 4  # scratchpad -> DRAM


class Op(IntEnum):
    """Operation codes: the low bits of every word."""

    END = 0
    LOAD = 1
    LOAD_SCALES = 2
    STREAM = 3
    MATMUL = 4
    NORM = 5
    ROUTE = 6
    STORE = 7
    MULTIPLY = 8


class WeightSource(IntEnum):
    """Where a Matmul's stationary operand comes from."""

    STREAM = 0
    SCRATCHPAD = 1


class Gelu(IntEnum):
    """Form of the activation behind a Matmul, in the order of numerics.GELU_FORMS."""

    OFF = 0
    GELU = 1
    GELU_TANH = 2
    SILU = 3
    HARDSWISH = 4


class Convert(IntEnum):
    """How an int16 row becomes the int8 operand of the array."""

    STATIC = 0  # numerics.quantise_static
    ROW = 1  # numerics.quantise_rows with the row's stored maximum
    PROBABILITY = 2  # numerics.probabilities with the row's stored signed maximum


class ColScale(IntEnum):
    """Where the column multiplier and bias of the post-processor come from."""

    PARAMETERS = 0  # one multiplier and one bias a column
    IMMEDIATE = 1  # one multiplier for all columns, no bias
    ROW_SCALES = 2  # the row scales of the stationary rows (columns are tokens), no bias


class RowScale(IntEnum):
    """Where the row multiplier of the post-processor comes from."""

    IMMEDIATE = 0  # one number for all rows
    CONVERTED = 1  # ROW: the row scale; PROBABILITY: numerics.reciprocal of the row's sum, whose exponent adds to `shift`
    TABLE = 2  # one constant u16 a row


class RowMax(IntEnum):
    """What is kept of each output row for the conversion that will read it."""

    NONE = 0
    ABS = 1  # largest magnitude
    SIGNED = 2  # largest value (scores)


class Indirect(IntEnum):
    """Token addressing of an expert's rows."""

    NONE = 0
    GATHER = 1  # streamed row i is the token of queue entry i
    SCATTER = 2  # output and residual row of streamed row i is that token; row multiplier times its gate score


NO_EXPERT = 0xFF


def bits(width: int, kind: type = int, default: int | None = None) -> Any:
    """A field of `width` bits, unsigned, shown as `kind`."""
    if default is None:
        return field(metadata={"bits": width, "kind": kind})
    return field(metadata={"bits": width, "kind": kind}, default=default)


@dataclass(frozen=True, kw_only=True)
class Insn:
    """What every instruction starts with."""

    op: ClassVar[Op]
    unit: ClassVar[Unit | None]

    wait_load: int = bits(COUNT_BITS, default=0)
    wait_weights: int = bits(COUNT_BITS, default=0)
    wait_matmul: int = bits(COUNT_BITS, default=0)
    wait_vector: int = bits(COUNT_BITS, default=0)
    wait_store: int = bits(COUNT_BITS, default=0)


@dataclass(frozen=True, kw_only=True)
class End(Insn):
    """Wait as the header says, then stop and raise the interrupt."""

    op = Op.END
    unit = None


@dataclass(frozen=True, kw_only=True)
class Load(Insn):
    """for r < rows: for c < chunks: scratch[dst + r*pitch + c] = next chunk of data[dram...]

    DRAM holds the chunks one after another, each padded to `Config.chunk_beats` whole beats. With `narrow` it holds
    int8 elements, each chunk padded to `Config.narrow_chunk_beats`, and an element becomes 2^8 times its byte.
    """

    op = Op.LOAD
    unit = Unit.LOAD

    dram: int = bits(32)  # beats from the data base
    dst: int = bits(ADDRESS_BITS)
    rows: int = bits(16)
    chunks: int = bits(16)
    pitch: int = bits(16)
    narrow: int = bits(1, default=0)


@dataclass(frozen=True, kw_only=True)
class LoadScales(Insn):
    """for i < count: scale[dst + i] = next u16 of data[dram...], packed in beats."""

    op = Op.LOAD_SCALES
    unit = Unit.LOAD

    dram: int = bits(32)
    dst: int = bits(SCALE_BITS)
    count: int = bits(16)


@dataclass(frozen=True, kw_only=True)
class Stream(Insn):
    """for i < words: push weight word i into the weight buffer; nothing if `expert` has an empty queue.

    A word is `array_inputs` bytes, striped: port p delivers bytes [p*s, (p+1)*s) of it from its own region, s =
    Config.slice_bytes (padding beyond array_inputs), so `dram` counts words * slice_beats in every region alike.
    """

    op = Op.STREAM
    unit = Unit.WEIGHTS

    dram: int = bits(32)  # beats from each port's weight base
    words: int = bits(32)
    expert: int = bits(8, default=NO_EXPERT)


@dataclass(frozen=True, kw_only=True)
class Matmul(Insn):
    """One matrix product through the array; O = array_outputs, I = array_inputs, all operands int8 after conversion.

    R = rows, or the length of expert's queue; token(i), gate(i): its entry i. Where the queue is empty nothing is done,
    but with `discard` (and w_source STREAM) the weight words are popped and dropped: they were streamed before the
    queue's length was known.
    for ob < ceil(outputs / O):                          n(ob) = min(O, outputs - ob*O) valid columns
      if col_source == PARAMETERS: pop ceil(n / params_per_word) words: (u16 multiplier, i16 bias) of each column
      for ib < ceil(inputs / I):
        stationary[o] for o < n: STREAM: pop a word; SCRATCHPAD: row (ob*O + o) of w from chunk ib*I, converted,
          lanes beyond `inputs` zero
        for r < R:  acc[r] (+)= convert(x[r'] from chunk ib*I, lanes beyond `inputs` zero) @ stationary.T
                    r' = token(r) if indirect == GATHER else r
                    in the last ib: y = post(acc[r]); y[o] = 0 for o >= n;  r'' = token(r) if SCATTER else r
                    scratch[y + r''*y_pitch + ob*O/chunk ...] = y, only the chunks that hold a valid column
    convert: numerics.quantise_static / quantise_rows with scale[x_scale + r'] / probabilities with the same
    post: numerics.requantise(acc, column multiplier, row multiplier, shift + e, bias), numerics.gelu, add_residual from
          scratch[res + r''*res_pitch + ob*O/chunk]; the maximum over all columns of y goes to scale[y_scale + r],
          with max_continue together with that of row r of the previous Matmul with this y_max
    column multiplier: parameters / col_mult / row scale of the stationary row (from scale[w_scale + row])
    row multiplier: row_mult / row scale (ROW) or reciprocal of the row's sum (PROBABILITY) / scale[x_scale + r'];
          with SCATTER numerics.gated_scale(that, gate(r)); e: the exponent that comes with the reciprocal, else 0
    """

    op = Op.MATMUL
    unit = Unit.MATMUL

    rows: int = bits(16)
    inputs: int = bits(16)
    outputs: int = bits(16)
    x: int = bits(ADDRESS_BITS)
    x_pitch: int = bits(16)
    x_scale: int = bits(SCALE_BITS, default=0)
    x_convert: Convert = bits(2, Convert, Convert.STATIC)
    w_source: WeightSource = bits(1, WeightSource, WeightSource.STREAM)
    w_convert: Convert = bits(1, Convert, Convert.STATIC)
    col_source: ColScale = bits(2, ColScale, ColScale.PARAMETERS)
    row_source: RowScale = bits(2, RowScale, RowScale.IMMEDIATE)
    indirect: Indirect = bits(2, Indirect, Indirect.NONE)
    y_max: RowMax = bits(2, RowMax, RowMax.NONE)
    max_continue: int = bits(1, default=0)
    gelu: Gelu = bits(3, Gelu, Gelu.OFF)
    gelu_shift: int = bits(3, default=0)
    residual: int = bits(1, default=0)
    shift: int = bits(6)
    expert: int = bits(8, default=NO_EXPERT)
    discard: int = bits(1, default=0)
    w: int = bits(ADDRESS_BITS, default=0)
    w_pitch: int = bits(16, default=0)
    w_scale: int = bits(SCALE_BITS, default=0)
    col_mult: int = bits(16, default=0)
    row_mult: int = bits(16, default=0)
    res: int = bits(ADDRESS_BITS, default=0)
    res_pitch: int = bits(16, default=0)
    y: int = bits(ADDRESS_BITS)
    y_pitch: int = bits(16)
    y_scale: int = bits(SCALE_BITS, default=0)


@dataclass(frozen=True, kw_only=True)
class RowInsn(Insn):
    """What the instructions have in common that make rows of y from rows of x in the vector unit.

    Elements of the last chunk beyond `columns` are written zero. With `y_max`, scale[y_scale + r] = largest magnitude of
    the row.
    """

    unit = Unit.VECTOR

    rows: int = bits(16)
    columns: int = bits(16)
    x: int = bits(ADDRESS_BITS)
    x_pitch: int = bits(16)
    y: int = bits(ADDRESS_BITS)
    y_pitch: int = bits(16)
    y_max: int = bits(1, default=1)
    y_scale: int = bits(SCALE_BITS, default=0)


@dataclass(frozen=True, kw_only=True)
class Norm(RowInsn):
    """for r < rows: scratch[y + r*y_pitch ...] = numerics.layer_norm(scratch[x + r*x_pitch ...][:columns], ...)

    gamma is the row of `columns` elements at `params`, beta the one behind it (at the next whole chunk). `centred` 0 makes
    it RMSNorm.
    """

    op = Op.NORM

    params: int = bits(ADDRESS_BITS)
    epsilon: int = bits(48)
    centred: int = bits(1, default=1)


@dataclass(frozen=True, kw_only=True)
class Multiply(RowInsn):
    """for r < rows: scratch[y + r*y_pitch ...] = scratch[x + r*x_pitch ...][:columns] times the row at factor + r*factor_pitch

    numerics.multiply with `shift`, or with `pairs` numerics.turn, for which `shift` is GAMMA_SHIFT and the chunk even. A row
    of factors has `period` chunks, at most those of x, and starts anew behind them. y may be x, or the factor.
    """

    op = Op.MULTIPLY

    factor: int = bits(ADDRESS_BITS)
    factor_pitch: int = bits(16)
    period: int = bits(12)
    pairs: int = bits(1, default=0)
    shift: int = bits(5)


@dataclass(frozen=True, kw_only=True)
class Route(Insn):
    """numerics.route on rows of `experts` logits; replaces all expert queues, tokens in rising order in each.

    With `dense`, row r of the gate scores (saturated to int16; 0 where not chosen) goes to scratch[y + r*y_pitch ...],
    whole chunks, elements beyond `experts` zero.
    """

    op = Op.ROUTE
    unit = Unit.VECTOR

    rows: int = bits(16)
    experts: int = bits(8)
    top_k: int = bits(4)
    renormalise: int = bits(1)
    dense: int = bits(1)
    x: int = bits(ADDRESS_BITS)
    x_pitch: int = bits(16)
    y: int = bits(ADDRESS_BITS, default=0)
    y_pitch: int = bits(16, default=0)


@dataclass(frozen=True, kw_only=True)
class Store(Insn):
    """for r < rows: for c < chunks: next chunk of data[dram...] = scratch[src + r*pitch + c]; chunks padded to beats."""

    op = Op.STORE
    unit = Unit.STORE

    dram: int = bits(32)
    src: int = bits(ADDRESS_BITS)
    rows: int = bits(16)
    chunks: int = bits(16)
    pitch: int = bits(16)


INSNS: dict[Op, type[Insn]] = {c.op: c for c in (End, Load, LoadScales, Stream, Matmul, Norm, Route, Store, Multiply)}
OP_BITS = 8


def layout(insn: type[Insn]) -> list[tuple[str, int]]:
    """(field, width) of an instruction word from bit 0 up, without the padding: the RTL's view."""
    return [("op", OP_BITS), *((f.name, f.metadata["bits"]) for f in fields(insn))]


for _insn in INSNS.values():
    if sum(width for _, width in layout(_insn)) > WORD_BITS:
        raise AssertionError(f"{_insn.__name__} does not fit an instruction word")


def fingerprint() -> str:
    """Differs where two instruction sets or their arithmetic differ: a bundle carries that of its program."""
    words = {op.name: layout(insn) for op, insn in INSNS.items()}
    return hashlib.sha256(repr((WORD_BITS, REVISION, words)).encode()).hexdigest()[:16]


def encode(insn: Insn) -> int:
    """The instruction word. A value that does not fit its field raises ValueError with its name."""
    word, position = int(insn.op), OP_BITS
    for f in fields(insn):
        number, width = int(getattr(insn, f.name)), f.metadata["bits"]
        if not 0 <= number < 1 << width:
            raise ValueError(f"{type(insn).__name__}.{f.name}={number} does not fit {width} bits")
        word |= number << position
        position += width
    return word


def decode(word: int) -> Insn:
    """The instruction of a word. An unknown operation, a bad field value or set padding bits raise ValueError."""
    try:
        insn = INSNS[Op(word & ((1 << OP_BITS) - 1))]
    except ValueError:
        raise ValueError(f"unknown operation {word & ((1 << OP_BITS) - 1)}") from None
    values, position = {}, OP_BITS
    for f in fields(insn):
        width = f.metadata["bits"]
        values[f.name] = f.metadata["kind"]((word >> position) & ((1 << width) - 1))
        position += width
    if word >> position:
        raise ValueError(f"{insn.__name__}: bits beyond {position} are set")
    return insn(**values)


def assemble(program: list[Insn]) -> bytes:
    """The instruction words one after another, little endian."""
    return b"".join(encode(insn).to_bytes(WORD_BYTES, "little") for insn in program)


def disassemble(binary: bytes) -> list[Insn]:
    """Instructions of a program up to its end. Raises ValueError naming the instruction's index."""
    program = []
    for i in range(0, len(binary), WORD_BYTES):
        try:
            program.append(decode(int.from_bytes(binary[i : i + WORD_BYTES], "little")))
        except ValueError as error:
            raise ValueError(f"instruction {i // WORD_BYTES}: {error}") from None
    return program


def text(insn: Insn) -> str:
    """One readable line: operation, then the fields that are not at their default."""
    shown = []
    for f in fields(insn):
        number = getattr(insn, f.name)
        if number != f.default:
            shown.append(f"{f.name}={number.name if isinstance(number, IntEnum) else number}")
    return " ".join([type(insn).__name__.upper().ljust(11), *shown])


def parse(line: str) -> Insn:
    """The inverse of `text`. Raises ValueError naming what is unknown, missing or does not fit."""
    name, *given = line.split()
    kind = next((insn for insn in INSNS.values() if insn.__name__.upper() == name), None)
    if kind is None:
        raise ValueError(f"no instruction {name}")
    kinds = {f.name: f.metadata["kind"] for f in fields(kind)}
    values: dict[str, int] = {}
    for field_name, _, value in (word.partition("=") for word in given):
        if field_name not in kinds:
            raise ValueError(f"{name} has no field {field_name!r}")
        of = kinds[field_name]
        if not value.isdigit() and value not in getattr(of, "__members__", ()):
            raise ValueError(f"{name} {field_name}={value}")
        values[field_name] = of(int(value)) if value.isdigit() else of[value]
    if missing := [f.name for f in fields(kind) if f.name not in values and f.default is MISSING]:
        raise ValueError(f"{name} without {', '.join(missing)}")
    insn = kind(**values)
    encode(insn)
    return insn


def reference() -> str:
    """The instruction set as Markdown: every instruction's effect and the bits of its fields; made of the classes above."""
    lines = [f"An instruction is a word of {WORD_BITS} bits, its first field in the low bits.\n"]
    for op, insn in INSNS.items():
        unit = insn.unit.name if insn.unit is not None else "sequencer"
        lines += [f"## {insn.__name__.upper()}\n", f"Operation {op.value}, unit {unit}.\n"]
        lines += ["```text", inspect.cleandoc(insn.__doc__ or ""), "```\n", "| field | bits | values |", "|---|---|---|"]
        position = 0
        kinds = {f.name: f.metadata["kind"] for f in fields(insn)}
        for name, width in layout(insn):
            values = ", ".join(f"{v.value} {v.name}" for v in kinds[name]) if kinds.get(name, int) is not int else ""
            lines.append(f"| {name} | {position + width - 1}:{position} | {values} |")
            position += width
        lines.append("")
    for mode in (Convert, ColScale, RowScale, RowMax, Indirect, WeightSource, Gelu):
        lines += [f"## {mode.__name__}\n", f"{inspect.cleandoc(mode.__doc__ or '')}\n"]
    return "\n".join(lines)
