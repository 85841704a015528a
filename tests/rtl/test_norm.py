# amaranth: UnusedElaboratable=no
import numpy as np
import pytest

from hwgen.config import Config
from hwgen.isa import Norm as NormInsn
from hwgen.numerics import layer_norm, row_max_abs
from hwgen.rtl.norm import Norm, norm_cycles

SQUARE = Config(array_outputs=8, array_inputs=8, norm_columns=64)
UNEVEN = Config(array_outputs=12, array_inputs=20, norm_columns=1024)
THIN = Config(array_outputs=8, array_inputs=9, norm_columns=16)  # chunks of one element


def set_insn(ctx, dut, insn):
    for name in ("rows", "columns", "x", "x_pitch", "y", "y_pitch", "y_scale", "params", "epsilon"):
        ctx.set(getattr(dut.insn, name), getattr(insn, name))


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
    dut = Norm(config)
    memory = vector_memory(dut, 4096, stall, seed)
    cycles = []

    async def bench(ctx):
        for rows, columns, kind, epsilon in cases:
            n = -(-columns // config.chunk)
            x, y, params = 16, 1600, 4096 - 2 * n
            insn = NormInsn(
                rows=rows, columns=columns, x=x, x_pitch=n + int(rng.integers(3)), y=y, y_pitch=n + int(rng.integers(3)),
                y_scale=7, params=params, epsilon=epsilon,
            )  # fmt: skip
            values = rows_of(kind, rows, columns, rng).astype(np.int64)
            gamma = rng.integers(-32767, 32768, columns) if kind == "extreme" else rng.integers(-4000, 4000, columns)
            beta = rng.integers(-32767, 32768, columns) >> int(rng.integers(0, 12))
            memory.put_rows(x, insn.x_pitch, values)
            memory.put_rows(params, n, [gamma, beta])
            before, scales = memory.data.copy(), memory.scales.copy()
            set_insn(ctx, dut, insn)
            ctx.set(dut.start, 1)
            await ctx.tick()
            begin = memory.cycle
            ctx.set(dut.start, 0)
            await ctx.tick().until(dut.done)
            cycles.append(memory.cycle - begin)
            assert memory.cycle - 1 >= memory.visible_at
            expected = before
            y_rows = layer_norm(values, gamma, beta, epsilon)
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
