"""The instructions: fields, widths and what each does."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .modes import (
    ADDRESS_BITS,
    COORDINATE_BITS,
    COUNT_BITS,
    INDEX_BITS,
    NO_EXPERT,
    SCALE_BITS,
    TAP_BITS,
    WORD_BITS,
    Border,
    ColScale,
    Convert,
    Gelu,
    Indirect,
    Op,
    Reduce,
    RowMax,
    RowScale,
    Unit,
    WeightSource,
)


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
    Config.slice_bytes (padding beyond array_inputs), so a word takes slice_beats beats in every region alike.

    With `narrow` (a Config with narrow_weights) the region holds, in `beats` beats, for each beat of s a unit of axi_bytes
    weights: codes of `narrow` bits (numerics.NARROW_BITS), lane 0 lowest, times numerics.NARROW_FACTORS[its number], or with
    number 0 the bytes themselves. Units stand one behind the other, without gaps; in front of every 2 * axi_bytes of them a
    beat's worth of their numbers, 4 bits each, the first lowest. All ports have bytes in the same units.
    """

    op = Op.STREAM
    unit = Unit.WEIGHTS

    dram: int = bits(32)  # beats from each port's weight base
    words: int = bits(32)
    expert: int = bits(8, default=NO_EXPERT)
    narrow: int = bits(3, default=0)
    beats: int = bits(32, default=0)


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
class WalkFields(Insn):
    """Prefix: the rows of this unit's next instruction are those of a walk; the wait counts do not count it, its own are 0.

    Loop k has n<k> steps, 0 the innermost; the outermost, 3, goes on to the last row. From a row to the next one loop k
    advances where all inside it are at their ends, which begin anew; an index (or coordinate) advances by its step k then.
    Input row of row r, tap (a, b): x_start + (steps x) + a*tap_u + b*tap_v modulo 2^16; output row: y_start + (steps y);
    both counted from the operands' first rows. Coordinates, for `Border`: u + (steps u) + a*dilation_u, v + (steps v) +
    b*dilation_v; wrapping subtracts `area` = height * width where u >= height, and width where v >= width.
    """

    n0: int = bits(12, default=1)
    n1: int = bits(12, default=1)
    n2: int = bits(12, default=1)
    x0: int = bits(INDEX_BITS, default=0)
    x1: int = bits(INDEX_BITS, default=0)
    x2: int = bits(INDEX_BITS, default=0)
    x3: int = bits(INDEX_BITS, default=0)
    y0: int = bits(INDEX_BITS, default=0)
    y1: int = bits(INDEX_BITS, default=0)
    y2: int = bits(INDEX_BITS, default=0)
    y3: int = bits(INDEX_BITS, default=0)
    x_start: int = bits(INDEX_BITS, default=0)
    y_start: int = bits(INDEX_BITS, default=0)
    kernel_u: int = bits(TAP_BITS, default=1)
    kernel_v: int = bits(TAP_BITS, default=1)
    tap_u: int = bits(INDEX_BITS, default=0)
    tap_v: int = bits(INDEX_BITS, default=0)
    border: Border = bits(2, Border, Border.NONE)
    height: int = bits(12, default=0)
    width: int = bits(12, default=0)
    area: int = bits(INDEX_BITS, default=0)
    dilation_u: int = bits(TAP_BITS, default=0)
    dilation_v: int = bits(TAP_BITS, default=0)
    u: int = bits(COORDINATE_BITS, default=0)
    v: int = bits(COORDINATE_BITS, default=0)
    u0: int = bits(COORDINATE_BITS, default=0)
    u1: int = bits(COORDINATE_BITS, default=0)
    u2: int = bits(COORDINATE_BITS, default=0)
    u3: int = bits(COORDINATE_BITS, default=0)
    v0: int = bits(COORDINATE_BITS, default=0)
    v1: int = bits(COORDINATE_BITS, default=0)
    v2: int = bits(COORDINATE_BITS, default=0)
    v3: int = bits(COORDINATE_BITS, default=0)


@dataclass(frozen=True, kw_only=True)
class MatmulWalk(WalkFields):
    """The walk of the next Matmul: in its loop nest row r reads x row x(r, tap) and writes y row y(r), residual and row
    maxima alike. With taps the sum over `inputs` goes over every tap: for a, for b, for ib, and a tap beyond the border
    adds nothing; x_convert is STATIC then, row_source IMMEDIATE, `w` streamed. Row scales and row tables are those of x's rows.
    No expert."""

    op = Op.MATMUL_WALK
    unit = Unit.MATMUL


@dataclass(frozen=True, kw_only=True)
class WindowWalk(WalkFields):
    """The walk of the next ReduceWindow."""

    op = Op.WINDOW_WALK
    unit = Unit.VECTOR


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
class ReduceWindow(RowInsn):
    """for r < rows: y row y(r) = post(over all taps t: x row x(r, t)), the rows of the WindowWalk before it, or r and r.

    numerics.reduce_window: the taps joined by `reduce` (a column alone: depthwise), then numerics.window_post with `before`,
    `shift` and the columns' multipliers and biases, then numerics.gelu. Parameters lie in the scratchpad from `params` on, a
    row each of whole chunks: multipliers (u16), biases (i16) and, WEIGHTED, a row of weights a tap, 2^8 times an int8, of
    WINDOW_TAPS at most. Row maxima: scale[y_scale + y(r)]. x and y have no row in common. With MAX every row has a tap within
    the border.
    """

    op = Op.REDUCE_WINDOW

    params: int = bits(ADDRESS_BITS)
    reduce: Reduce = bits(2, Reduce, Reduce.SUM)
    before: int = bits(4, default=0)
    shift: int = bits(5)
    gelu: Gelu = bits(3, Gelu, Gelu.OFF)
    gelu_shift: int = bits(3, default=0)


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
class Select(Insn):
    """for r < rows: y row r = x row order[first + r]; order = numerics.ranked of the scores, best first, ties to the lower row

    The scores are int16: `score_columns` elements of each of `score_rows` rows, one after another, one for each row of x:
    a column of scores (score_columns 1) or a row of them (score_rows 1). Rows are copied in whole chunks, `columns` elements
    and what stands behind them. y has no row in common with x or the scores. first + rows is at most the number of scores.
    """

    op = Op.SELECT
    unit = Unit.VECTOR

    rows: int = bits(16)
    columns: int = bits(16)
    x: int = bits(ADDRESS_BITS)
    x_pitch: int = bits(16)
    y: int = bits(ADDRESS_BITS)
    y_pitch: int = bits(16)
    first: int = bits(16, default=0)
    scores: int = bits(ADDRESS_BITS)
    scores_pitch: int = bits(16, default=0)
    score_rows: int = bits(16)
    score_columns: int = bits(16)


@dataclass(frozen=True, kw_only=True)
class Scan(Insn):
    """y = numerics.scan(x, steps, mix, params): `columns` columns of x, steps, y, 2 * `states` of mix, 1 + `states` of params.

    Row r of y, x, steps and mix is at their address + r times their pitch, or with `backwards` - r times: the scan begins at
    the address. Shifts are those of numerics.ScanShifts. Elements of y's last chunk beyond `columns` are written zero. y has
    no row in common with what is read. The machine goes by groups of `group` chunks, each from the first row to the last, and
    in a row takes `beats` cycles a chunk, ceil(states / Config.scan_states); group * beats is at most SCAN_ENTRIES.
    """

    op = Op.SCAN
    unit = Unit.VECTOR

    rows: int = bits(16)
    columns: int = bits(16)
    states: int = bits(5)
    group: int = bits(6)
    beats: int = bits(5)
    backwards: int = bits(1, default=0)
    x: int = bits(ADDRESS_BITS)
    x_pitch: int = bits(16)
    y: int = bits(ADDRESS_BITS)
    y_pitch: int = bits(16)
    steps: int = bits(ADDRESS_BITS)
    steps_pitch: int = bits(16)
    mix: int = bits(ADDRESS_BITS)
    mix_pitch: int = bits(16)
    params: int = bits(ADDRESS_BITS)
    params_pitch: int = bits(16)
    steps_shift: int = bits(3)
    step_shift: int = bits(4)
    fed_shift: int = bits(5)
    decay_shift: int = bits(2)
    skip_shift: int = bits(5)
    shift: int = bits(6)


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


_CLASSES = (
    End, Load, LoadScales, Stream, Matmul, Norm, Route, Store, Multiply, MatmulWalk, WindowWalk, ReduceWindow, Select, Scan,
)  # fmt: skip
INSNS: dict[Op, type[Insn]] = {c.op: c for c in _CLASSES}
WALKS: dict[type[Insn], type[WalkFields]] = {Matmul: MatmulWalk, ReduceWindow: WindowWalk}  # what may stand before which
OP_BITS = 8


def layout(insn: type[Insn]) -> list[tuple[str, int]]:
    """(field, width) of an instruction word from bit 0 up, without the padding: the RTL's view."""
    return [("op", OP_BITS), *((f.name, f.metadata["bits"]) for f in fields(insn))]


for _insn in INSNS.values():
    if sum(width for _, width in layout(_insn)) > WORD_BITS:
        raise AssertionError(f"{_insn.__name__} does not fit an instruction word")
