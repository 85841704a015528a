"""Latencies, rates and widths of the hardware's units: units are built to them, the cycle model and the mapping count with them.

Cycles, where nothing else is said. What depends on the machine's shape is a function of the Config.
"""

from __future__ import annotations

import math

from .config import Config
from .numerics import GATE_BITS


def tree(count: int, levels: int) -> int:
    """Of a tree over `count` values with a register after every `levels` binary levels."""
    steps = 0
    while count > 1:
        count = -(-count // (1 << levels))
        steps += 1
    return steps


RESET = 32  # that a soft reset is held: longer than any pipeline whose strobes have no reset of their own

# --- memories ----------------------------------------------------------------------------------------------------
RAM = 2  # from an address to its data
READ = 4  # a scratchpad read accepted in cycle t has its data in cycle t + 4, for one cycle
WRITE = 2  # a read accepted in cycle t + 2 or later sees a write accepted in cycle t
READ_SLOT = READ + 1  # the same through `rtl.read_slot`

# --- DRAM and program --------------------------------------------------------------------------------------------
MOST_BEATS = 64  # of a command through the arbiter: bounds how long one client makes the other wait
COMMANDS = 4  # of the data port, accepted and not yet answered
FETCH_BATCH = 4  # instructions of one read command

# --- Matmul: reader, array, accumulators, post-processor -----------------------------------------------------------
WORDS_PER_CYCLE = 2  # of the weight stream: one for each output of a pair
QUANTISER = 8  # int16 row to int8 row
READER = QUANTISER + 1
STATIONARY = QUANTISER - 1  # from a stationary row's data until it counts as loaded, a cycle before it is there
SUM_STAGES, PROBABILITY_STAGES, GATE_STAGES, RECIPROCAL_BITS = 4, 3, 3, 16  # of the row multiplier: see `rtl.reader`
ROW_MULT = PROBABILITY_STAGES + SUM_STAGES + 2 + RECIPROCAL_BITS + GATE_STAGES
ARRAY_GROUP = 8  # products in a cascade
ARRAY_LEVELS = 2  # of adders between registers
PACKED_BITS = 27  # of two weights in one operand of a multiplier
ACCUMULATOR = RAM + 1
GELU = 7
REQUANTISE = 10  # the post-processor's part before GELU
PARAMS_USED = 8  # from a row to its parameters' bank being free
Y_WRITE = REQUANTISE + GELU + 2
LARGEST_LEVELS = 2  # binary levels that one step to the largest of some values stands for
# Until a row may come again, because what is kept by row is read and written back in between.
ACCUMULATOR_GAP, READER_GAP, POST_GAP = ACCUMULATOR + 1, RAM + 2, RAM + 2
ROW_GAP = max(ACCUMULATOR_GAP, READER_GAP, POST_GAP)
ISSUE_QUEUE = 16  # rows between the generator and the issue stage: hides its latency across tiles


def array(config: Config) -> int:
    """From a row to its sums: two for the input, cascade, product, split, tree."""
    return 2 + ARRAY_GROUP + 1 + 1 + tree(-(-config.array_inputs // ARRAY_GROUP), ARRAY_LEVELS)


def row_maximum(config: Config) -> int:
    """From a row's entry into the post-processor to the write of its maximum."""
    return Y_WRITE + 1 + tree(config.array_outputs, LARGEST_LEVELS) + 1


def post(config: Config) -> int:
    """From a row's entry into the post-processor until its results are visible to every reader."""
    return row_maximum(config) + WRITE


def post_entry(config: Config) -> int:
    """From the issue of a row to its sums' entry into the post-processor."""
    return READ + max(READER + array(config) + ACCUMULATOR, ROW_MULT)


def pipeline(config: Config) -> int:
    """From the issue of a Matmul's last row until its results are visible to every reader."""
    return post_entry(config) + post(config)


def load_cycles(config: Config, outputs: int, streamed: bool) -> int:
    """Cycles that a tile of a product with so many outputs loads: from the weight stream, or row by row."""
    rows = min(outputs, config.array_outputs)
    return -(-rows // WORDS_PER_CYCLE) if streamed else rows


# --- LayerNorm and products of rows ----------------------------------------------------------------------------------
NORM_LEVELS = 2  # of adders between registers
NORM_LANES = 15  # of an element through normalisation
NORM_SETTLE = 4  # from the last write to the end: more than WRITE
NORM_FIXED = 6  # registers and FIFOs between the pipelines, control
NORM_ROWS = 32  # rows on their way from the first read to the row maximum written
RSQRT_SHIFTS = (32, 16, 8, 4, 2)  # of the radicand, a register after each
RSQRT = len(RSQRT_SHIFTS) + 7
PIECE = 26, 17  # bits of the factors that a multiplier takes, unsigned


def columns_bits(config: Config) -> int:
    """Bits of a column count; everything else in the norm unit is that much wider than an element."""
    return config.norm_columns.bit_length()


def sum_bits(config: Config) -> int:
    """Bits of a row's signed sum."""
    return columns_bits(config) + 15


def square_bits(config: Config) -> int:
    """Bits of a row's sum of squares."""
    return columns_bits(config) + 29


def product(a: int, b: int) -> int:
    """Of a product of values of a and b bits, cut into pieces."""
    return 2 + tree(-(-a // PIECE[0]) * -(-b // PIECE[1]), 1)


def row_products(config: Config) -> int:
    """From the exact sums of a row to D*Q and S^2, see `rtl.norm_pipeline`."""
    total = sum_bits(config)
    return max(product(square_bits(config), columns_bits(config)), 1 + product(total, total))


def row_statistics(config: Config) -> int:
    """From a row's last chunk to its statistics."""
    return 1 + tree(config.chunk, NORM_LEVELS) + 1 + row_products(config) + 2 + RSQRT


def norm_maximum(config: Config) -> int:
    """From a row's last chunk to its largest magnitude."""
    return NORM_LANES + 2 + tree(config.chunk, LARGEST_LEVELS)


def norm_cycles(config: Config, rows: int, columns: int) -> int:
    """A Norm from `start` to `done` when nothing stalls, rows >= 1."""
    chunks = -(-columns // config.chunk)
    one = row_statistics(config) + _norm_fixed(config) - NORM_SETTLE  # from its first read to its maximum
    waits = (rows - 1) // NORM_ROWS * max(0, one - NORM_ROWS * chunks)
    return (rows + 3) * chunks + waits + row_statistics(config) + _norm_fixed(config)


def multiply_cycles(config: Config, rows: int, columns: int, period: int) -> int:
    """The same for products whose factors have `period` chunks a row."""
    chunks = -(-columns // config.chunk)
    return rows * (chunks + period) + 2 * chunks + _norm_fixed(config)


def _norm_fixed(config: Config) -> int:
    return norm_maximum(config) + READ_SLOT + RAM + NORM_SETTLE + NORM_FIXED


# --- windows -----------------------------------------------------------------------------------------------------
WINDOW_CREDIT = 16  # reads between the loops and the scratchpad
WINDOW_RING = 32  # chunks of multipliers, and of biases, of the blocks on their way
WINDOW_ROWS = 64  # rows, and chunks of results, on their way
WINDOW_READ = 6  # from the loops' indices to an address
WINDOW_FIXED = 8  # registers and FIFOs between the pipelines, control
WINDOW_TOTAL = 7  # from a row's last tap to its sums
WINDOW_POST = 19 + GELU  # of a chunk of sums


def window_groups(config: Config, rows: int, kernel: tuple[int, int], run: int) -> list[tuple[int, int, int]]:
    """(groups, rows of each, reads of each) that a ReduceWindow makes of its rows, of which `run` follow each other by a tap."""
    sizes = [(rows // run * (run // config.window_rows), config.window_rows), (rows // run, run % config.window_rows)]
    return [(count, size, kernel[0] * (kernel[1] + size - 1)) for count, size in sizes if count and size]


def window_reads(config: Config, rows: int, kernel: tuple[int, int], run: int) -> int:
    """Reads of a ReduceWindow's rows for each block of columns, whatever their order."""
    return sum(count * of_group for count, _, of_group in window_groups(config, rows, kernel, run))


def window_cycles(config: Config, rows: int, columns: int, kernel: tuple[int, int], run: int, weighted: bool) -> int:
    """A ReduceWindow from `start` to `done` when nothing stalls, rows >= 1. run: `walks.Walk.run`."""
    chunks, taps = -(-columns // config.chunk), kernel[0] * kernel[1]
    blocks = [min(config.window_chunks, chunks - first) for first in range(0, chunks, config.window_chunks)]
    groups = window_groups(config, rows, kernel, run)
    last, reads = groups[-1][1:]
    cycles = sum(2 * block + taps * weighted + reads - max(reads, last * block + last - 1) for block in blocks)
    cycles += sum(count * max(reads, size * block + size - 1) for block in blocks for count, size, reads in groups)
    cycles += (last - 1) * blocks[-1]
    # Between blocks the loops begin anew, unseen where rows wait for those before them to be finished.
    cycles += 1 if rows > 1 and taps < config.window_chunks else len(blocks)
    cycles += blocks[-1] - 1
    fixed = 1 + WINDOW_READ + READ_SLOT + WINDOW_TOTAL + window_maximum(config) + NORM_SETTLE + WINDOW_FIXED
    return chunks + cycles + fixed


def window_maximum(config: Config) -> int:
    """From a chunk of sums to its largest magnitude."""
    return WINDOW_POST + 1 + tree(config.chunk, LARGEST_LEVELS)


# --- router ------------------------------------------------------------------------------------------------------
ROUTER_LANES = 4  # rows in lockstep
GATE_ROM = 2
GATE_LANES = RAM + 1 + GATE_ROM + 1 + 2  # from a row's last logit, beside one for each expert
GATE_QUOTIENT_BITS = GATE_BITS + 1  # 2^15 stands for 1
REFILL = READ_SLOT + 1  # and one for each lane's read, from one chunk to the next
ROUTE_FIXED = 6  # registers and control
DENSE = RAM + 1  # of a dense row of several chunks, and two for each of them
DENSE_END = 6  # behind the last dense row where each is one chunk, which is made while the next one's experts are placed
ROUTE_SETTLE = 6  # until the last write shows: queue RAM, and more than WRITE


def route_cycles(config: Config, rows: int, experts: int, top_k: int, dense: bool = False) -> int:
    """A Route from `start` to `done` when nothing stalls, for rows >= 1 (to within 1 %)."""
    *whole, rest = (min(config.chunk, experts - first) for first in range(0, experts, config.chunk))
    groups, last_rows = -(-rows // ROUTER_LANES), (rows - 1) % ROUTER_LANES + 1

    def sort(lanes: int) -> int:
        """Until the last chunk of a group is in place: the next chunk is read while one is sorted."""
        return sum(max(logits, lanes + REFILL) for logits in whole)

    def group(following: int) -> float:
        """From a group to the next: bound by reading, sorting, dividing, or by how many may be between the last two."""
        read = sort(ROUTER_LANES) + max(rest, following + REFILL)
        return max(read, experts + 1, ROUTER_LANES * top_k, (experts + 2 * top_k + GATE_LANES + 1) / 2)

    before = group(last_rows) + (groups - 2) * group(ROUTER_LANES) if groups > 1 else 0
    last = sort(last_rows) + rest + 2 * experts + last_rows * top_k
    fixed = READ_SLOT + GATE_LANES + GATE_QUOTIENT_BITS + ROUTE_SETTLE + ROUTE_FIXED + min(rows, ROUTER_LANES)
    chunks = -(-experts // config.chunk)
    gates = 0 if not dense else DENSE_END if chunks == 1 else rows * (DENSE + 2 * chunks)
    return math.ceil(before) + last + rows * top_k + gates + fixed


# --- selection -----------------------------------------------------------------------------------------------------
DIGIT = 4  # bits of a score that a pass of the sort looks at
PASSES = 16 // DIGIT
DIGIT_SWEEP = 1 << DIGIT
SELECT_PASS = DIGIT_SWEEP + RAM + 1  # of a pass, beside one for each score
SELECT_QUEUE = 16  # chunks between reads and scores, or writes
SELECT_FIXED = 6  # registers and queue, control


def select_cycles(config: Config, rows: int, columns: int, score_rows: int, score_columns: int) -> int:
    """A Select from `start` to `done` when nothing stalls, rows >= 1: the scores read, sorted digit by digit, rows copied."""
    scores = score_rows * score_columns
    chunks = -(-columns // config.chunk)
    copied = (rows - 1) * max(chunks, RAM + 1) + chunks
    return DIGIT_SWEEP + scores + PASSES * (scores + SELECT_PASS) + RAM + READ_SLOT + copied + NORM_SETTLE + SELECT_FIXED


# --- scan ------------------------------------------------------------------------------------------------------------
SCAN_STEP = 9  # from a chunk's steps and x to its step
SCAN_FED_AT = 10  # from a step to what it feeds, met by b
SCAN_STATE_AT = 14  # from a step to the new state, met by g
SCAN_LOOP = 5  # from the first chunk of a row to that of the next: until the state before can be read
SCAN_PRODUCT = SCAN_STATE_AT + 2  # from a step to a state's product with g
SCAN_SELECT = SCAN_FED_AT - 2  # from a step to the choice of its b and g
SCAN_MIX = SCAN_STEP + SCAN_SELECT - 1  # that b and g of a row wait
SCAN_LEVELS = 2  # of adders between registers
SCAN_SUM = 7  # from the products' sum to a result
SCAN_GROUP = 5  # registers and queues around a group
SCAN_QUEUE = 16  # chunks between reads and lanes
SCAN_RESULTS = 32  # chunks of results on their way


def scan_products(config: Config) -> int:
    """From a beat to the sum of its products."""
    return SCAN_STEP + SCAN_PRODUCT + tree(config.scan_states, SCAN_LEVELS)


def scan_cycles(config: Config, rows: int, columns: int, states: int) -> int:
    """A Scan from `start` to `done` when nothing stalls, rows >= 1."""
    chunks, mix = -(-columns // config.chunk), -(-2 * states // config.chunk)
    beats, group = config.scan_beats(columns, states)
    total = 0
    for first in range(0, chunks, group):
        count = min(group, chunks - first)
        of_row = max((count - 1) * max(2, beats) + max(mix + 2, beats), SCAN_LOOP)
        total += (1 + states) * count + mix + 2 + (rows - 1) * of_row + (count - 1) * max(2, beats) + beats
        total += READ_SLOT + scan_products(config) + SCAN_SUM + SCAN_GROUP
    return total + NORM_SETTLE + 1
