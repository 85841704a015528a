# amaranth: UnusedElaboratable=no
import numpy as np
import pytest

from hwgen.config import Config
from hwgen.isa import Multiply, encode
from hwgen.isa import Norm as NormInsn
from hwgen.latency import multiply_cycles, norm_cycles
from hwgen.memories import memories
from hwgen.numerics import GAMMA_SHIFT, PRODUCT_SHIFT_MAX, PRODUCT_SHIFT_MIN, layer_norm, multiply, row_max_abs, turn
from hwgen.rtl.norm import Norm

SQUARE = Config(array_outputs=8, array_inputs=8, norm_columns=64)
UNEVEN = Config(array_outputs=12, array_inputs=20, norm_columns=1024)
THIN = Config(array_outputs=8, array_inputs=9, norm_columns=16)  # chunks of one element


def rows_of(kind: str, rows: int, columns: int, rng):
    if kind == "constant":
        return np.full((rows, columns), -32767) + np.arange(rows)[:, None]
    if kind == "spike":
        x = np.zeros((rows, columns), np.int64)
        x[np.arange(rows), rng.integers(0, columns, rows)] = rng.choice([-32767, 32767, 1], rows)
        return x
    if kind == "extreme":
        return rng.choice([-32767, 32767], (rows, columns))
    width = rng.integers(1, 15, (rows, 1))
    return np.clip(np.round(rng.normal(0, 1, (rows, columns)) * 2.0**width + rng.integers(-9000, 9000)), -32767, 32767)


def run_norm(vector_memory, config, cases, stall, seed):
    """Instructions (rows, columns, kind, epsilon) one after another in one simulation; cycles of each."""
    rng = np.random.default_rng(seed)
    memory = vector_memory(Norm, config, 4096, stall, seed)
    cycles = []

    async def bench(ctx):
        for rows, columns, kind, epsilon in cases:
            n = -(-columns // config.chunk)
            x, y, params = 16, 1600, 4096 - 2 * n
            insn = NormInsn(
                rows=rows, columns=columns, x=x, x_pitch=n + int(rng.integers(3)), y=y, y_pitch=n + int(rng.integers(3)),
                y_scale=7, params=params, epsilon=epsilon, centred=int(rng.integers(2)),
            )  # fmt: skip
            values = rows_of(kind, rows, columns, rng).astype(np.int64)
            gamma = rng.integers(-32767, 32768, columns) if kind == "extreme" else rng.integers(-4000, 4000, columns)
            beta = rng.integers(-32767, 32768, columns) >> int(rng.integers(0, 12))
            memory.put_rows(x, insn.x_pitch, values)
            memory.put_rows(params, n, [gamma, beta])
            before, scales = memory.data.copy(), memory.scales.copy()
            cycles.append(await memory.execute(ctx, insn=encode(insn)))
            expected = before
            y_rows = layer_norm(values, gamma, beta, epsilon, bool(insn.centred))
            for r in range(rows):
                flat = expected[y + r * insn.y_pitch :][:n].reshape(-1)
                flat[:] = 0
                flat[:columns] = y_rows[r]
            np.testing.assert_array_equal(memory.data, expected)
            scales[7 : 7 + rows] = row_max_abs(y_rows)
            np.testing.assert_array_equal(memory.scales, scales)

    memory.run(bench)
    return cycles


def test_kinds_of_rows(vector_memory):
    cases = [
        (5, 64, "normal", 1),
        (3, 61, "constant", 1),
        (4, 64, "spike", 1),
        (4, 57, "extreme", (1 << 48) - 1),
        (6, 8, "normal", 12345),
        (9, 1, "normal", 7),
        (2, 17, "extreme", 1),
    ]
    run_norm(vector_memory, SQUARE, cases, 0.0, 1)


@pytest.mark.parametrize("stall", [0.3, 0.8])
def test_stalls(vector_memory, stall):
    cases = [(7, 50, "normal", 3), (40, 6, "normal", 99), (3, 64, "extreme", 1)]
    run_norm(vector_memory, SQUARE, cases, stall, 2)


def test_uneven_chunk_and_wide_rows(vector_memory):
    run_norm(vector_memory, UNEVEN, [(3, 1023, "extreme", 1), (4, 30, "normal", 5), (2, 1024, "spike", 1)], 0.1, 3)


def test_chunks_of_one_element(vector_memory):
    run_norm(vector_memory, THIN, [(6, 16, "normal", 1), (3, 5, "extreme", 1)], 0.2, 4)


def test_no_rows(vector_memory):
    run_norm(vector_memory, SQUARE, [(0, 8, "normal", 1), (2, 16, "normal", 1)], 0.0, 5)


@pytest.mark.parametrize("config,columns", [(SQUARE, 64), (SQUARE, 30), (UNEVEN, 45)])
def test_throughput(vector_memory, config, columns):
    """Without stalls a row costs its chunks; parameters and latency come once."""
    cases = [(rows, columns, "normal", 1) for rows in (1, 25)]
    assert run_norm(vector_memory, config, cases, 0.0, 6) == [norm_cycles(config, r, c) for r, c, *_ in cases]


def test_short_rows_wait_for_those_before_them(vector_memory):
    """Of rows of one chunk more would be on their way than there is room for."""
    cases = [(rows, columns, "normal", 1) for rows, columns in ((32, 8), (33, 8), (40, 7), (100, 8), (70, 16))]
    assert run_norm(vector_memory, SQUARE, cases, 0.0, 6) == [norm_cycles(SQUARE, r, c) for r, c, *_ in cases]


def run_multiply(vector_memory, config, cases, stall, seed):
    """Instructions (rows, columns, chunks of factors, kind, place of the result) one after another; cycles of each."""
    rng = np.random.default_rng(seed)
    memory = vector_memory(Norm, config, 4096, stall, seed)
    cycles = []

    async def bench(ctx):
        for rows, columns, period, kind, place in cases:
            n = -(-columns // config.chunk)
            x, factor = 16, 2400
            y = {"apart": 1200, "x": x, "factor": factor}[place]
            pairs = int(rng.integers(2)) if config.chunk % 2 == 0 else 0
            x_pitch, factor_pitch = n + int(rng.integers(3)), period + int(rng.integers(3))
            insn = Multiply(
                rows=rows, columns=columns, x=x, x_pitch=x_pitch, y=y,
                y_pitch={"apart": n + 1, "x": x_pitch, "factor": factor_pitch}[place],
                y_max=int(rng.integers(2)), y_scale=7, factor=factor, factor_pitch=factor_pitch, period=period, pairs=pairs,
                shift=GAMMA_SHIFT if pairs else int(rng.choice([PRODUCT_SHIFT_MIN, 12, 15, PRODUCT_SHIFT_MAX])),
            )  # fmt: skip
            whole = period * config.chunk
            values = rows_of(kind, rows, n * config.chunk, rng).astype(np.int64)
            by = rng.integers(-8192, 8193, (rows, whole))
            if kind == "extreme":
                by = rng.choice([-32767, 32767, 0, 1], (rows, whole))
            memory.put_rows(x, x_pitch, values)
            memory.put_rows(factor, factor_pitch, by)
            expected, scales = memory.data.copy(), memory.scales.copy()
            cycles.append(await memory.execute(ctx, insn=encode(insn)))
            values[:, columns:] = 0
            by = np.tile(by, (1, -(-n // period)))[:, : values.shape[1]]
            y_rows = turn(values, by) if pairs else multiply(values, by, insn.shift)
            y_rows[:, columns:] = 0
            for r in range(rows):
                expected[y + r * insn.y_pitch :][:n] = y_rows[r].reshape(n, -1)
            np.testing.assert_array_equal(memory.data, expected)
            if insn.y_max:
                scales[7 : 7 + rows] = row_max_abs(y_rows)
            np.testing.assert_array_equal(memory.scales, scales)

    memory.run(bench)
    return cycles


def test_products_of_rows(vector_memory):
    cases = [
        (5, 64, 8, "normal", "apart"),
        (4, 64, 2, "extreme", "x"),
        (6, 48, 3, "normal", "x"),
        (9, 30, 4, "extreme", "factor"),
        (3, 64, 1, "normal", "apart"),
        (0, 8, 1, "normal", "apart"),
        (70, 16, 2, "normal", "x"),
        (12, 5, 1, "extreme", "apart"),
        (8, 24, 3, "normal", "factor"),
    ]
    run_multiply(vector_memory, SQUARE, cases, 0.0, 7)


@pytest.mark.parametrize("config", [SQUARE, UNEVEN, THIN])
def test_products_with_stalls(vector_memory, config):
    n = config.norm_columns // config.chunk if config is not UNEVEN else 11
    columns = n * config.chunk
    cases = [(7, columns, n, "extreme", "x"), (9, columns, 1, "normal", "apart"), (5, columns - 2, n, "normal", "factor")]
    for stall in (0.3, 0.7):
        run_multiply(vector_memory, config, cases, stall, 8)


def test_products_around_the_ring(vector_memory):
    """Factors of a row lie where it begins; rows that fill the buffer several times never take each other's."""
    deep = Config(array_outputs=8, array_inputs=9, norm_columns=128)
    run_multiply(vector_memory, deep, [(9, 119, 119, "normal", "x"), (9, 128, 3, "normal", "x")], 0.2, 9)


def test_products_that_begin_where_the_ring_does(vector_memory):
    """The memories of rows and factors differ in depth: a row may begin at the first chunk of one and not of the other."""
    config = Config(array_outputs=8, array_inputs=9, norm_columns=256)
    depth = memories(config)
    assert depth["norm rows"].depth < depth["norm parameters"].depth
    cases = [(4, 256, 256, "normal", "x"), (9, 100, 99, "extreme", "apart")]
    run_multiply(vector_memory, config, cases, 0.1, 10)


@pytest.mark.parametrize("config,columns,period", [(SQUARE, 64, 8), (SQUARE, 30, 1), (UNEVEN, 45, 12), (SQUARE, 8, 1)])
def test_throughput_of_products(vector_memory, config, columns, period):
    cases = [(rows, columns, period, "normal", "apart") for rows in (1, 25)]
    assert run_multiply(vector_memory, config, cases, 0.0, 6) == [multiply_cycles(config, r, c, p) for r, c, p, *_ in cases]
