"""Widths of the instruction set and its modes."""

from __future__ import annotations

from enum import IntEnum

WORD_BITS = 512
WORD_BYTES = WORD_BITS // 8
QUEUE_DEPTH = 16  # instructions waiting in front of a unit; the dispatcher stops at a full queue
COUNT_BITS = 16  # of the finished-instruction counters; a program has fewer instructions per unit
ADDRESS_BITS = 24  # of a chunk of the scratchpad
SCALE_BITS = 16  # of an entry of the scale memory
QUEUE_BITS = 16  # of an entry of the expert queues
ROW_BITS = 12  # of an accumulator row, and of a token in an expert queue
GATE_SCORE_BITS = 16  # of a gate score there
WALK_LOOPS = 4  # nested loops over the rows of an instruction
INDEX_BITS = 16  # of a row in a walk: rows are counted modulo 2^16
COORDINATE_BITS = 13  # of a row's place in a map, two's complement
TAP_BITS = 6  # of a kernel's height or width
WINDOW_TAPS = 64  # most taps of a ReduceWindow with weights
NARROW_GRANULES = 8  # of a beat of narrow weights, which its units are counted in: as many bits as a beat has bytes
NARROW_NUMBER_BITS = 4  # of the number of a unit's factor
SCAN_ENTRIES = 32  # states of an element, or of several chunks, that a lane of a Scan holds


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
    MATMUL_WALK = 9
    WINDOW_WALK = 10
    REDUCE_WINDOW = 11
    SELECT = 12
    SCAN = 13


class WeightSource(IntEnum):
    """Where a Matmul's stationary operand comes from."""

    STREAM = 0
    SCRATCHPAD = 1


class Gelu(IntEnum):
    """Form of the activation behind a Matmul, in the order of numerics.GELU_FORMS."""

    OFF = 0
    GELU = 1
    SOFTPLUS = 2
    SILU = 3
    HARDSWISH = 4
    TANH = 5
    EXP = 6
    RELU = 7


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
    CONVERTED = (
        1  # ROW: the row scale; PROBABILITY: numerics.reciprocal of the row's sum, whose exponent adds to `shift`
    )
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


class Border(IntEnum):
    """What a walk does with rows whose coordinates (u, v) lie beyond a map of `height` x `width` rows."""

    NONE = 0  # there are none
    ZERO = 1  # such an input row is zero, and no element of a largest one
    WRAP_X = 2  # the input row comes from the other side: one turn at most, downwards and to the right
    WRAP_Y = 3  # the same of the output row


class Reduce(IntEnum):
    """How a ReduceWindow joins the taps of a window."""

    SUM = 0
    WEIGHTED = 1  # sum of the taps times int8 weights, one a tap and column: depthwise convolution
    MAX = 2  # largest of the taps within the border


NO_EXPERT = 0xFF
