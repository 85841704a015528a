# amaranth: UnusedElaboratable=no
"""The selection against the machine: ties, one row, all rows, rows and columns of scores, stalls on both ports."""

import numpy as np
import pytest

from hwgen.config import Config
from hwgen.isa import Select
from hwgen.latency import select_cycles
from hwgen.rtl.select import Select as Selection
from hwgen.sim import vector

SQUARE = Config(array_outputs=8, array_inputs=8, banks=2, bank_words=1024, select_rows=64)
PAIRS = Config(array_outputs=10, array_inputs=12, banks=2, bank_words=512, select_rows=32)  # chunks of two elements
SCORES, X, Y = 7, 200, 1100


def scores_of(kind, count, rng):
    match kind:
        case "ties":
            return rng.integers(-2, 3, count) * 300
        case "equal":
            return np.full(count, int(rng.integers(-32768, 32768)))
        case "extreme":
            return rng.choice([-32768, -32767, -1, 0, 1, 32767], count)
        case "falling":
            return np.arange(count)[::-1] - count // 2
        case "rising":
            return np.arange(count) * 256 - 4096
    return rng.integers(-32768, 32768, count)


def case(config, rng, count, rows=None, first=0, column=True, columns=None, kind="any"):
    """(instruction, scores in their rows)."""
    columns = columns or int(rng.integers(1, 5 * config.chunk))
    whole = -(-columns // config.chunk)
    shape = (count, 1) if column else (1, count)
    insn = Select(
        rows=count - first if rows is None else rows, first=first, columns=columns, x=X, x_pitch=whole + int(rng.integers(2)),
        y=Y, y_pitch=whole + int(rng.integers(2)), scores=SCORES, scores_pitch=1 + int(rng.integers(2)), score_rows=shape[0],
        score_columns=shape[1],
    )  # fmt: skip
    return insn, scores_of(kind, count, rng).reshape(shape)


def run_selections(vector_memory, config, cases, stall, seed):
    """Instructions one after another in one simulation; cycles of each."""
    rng = np.random.default_rng(seed)
    memory = vector_memory(Selection, config, config.scratch_chunks, stall, seed)
    cycles = []

    async def bench(ctx):
        for insn, scores in cases:
            memory.data[:] = rng.integers(-32768, 32768, memory.data.shape)
            memory.put_rows(insn.scores, insn.scores_pitch, scores)
            cycles.append(await memory.execute_as(ctx, vector.select, insn))

    memory.run(bench)
    return cycles


KINDS = ("any", "ties", "equal", "extreme", "falling", "rising")


@pytest.mark.parametrize("column", [True, False], ids=["column", "row"])
@pytest.mark.parametrize("config", [SQUARE, PAIRS], ids=["8", "2"])
def test_orders(vector_memory, config, column):
    """All rows in order, of as many scores as there may be, of one, and of numbers between."""
    rng = np.random.default_rng(1)
    counts = [config.select_rows, config.select_rows - 1, 1, 2, config.chunk, config.chunk + 1]
    cases = [case(config, rng, count, column=column, kind=kind) for count, kind in zip(counts, KINDS, strict=True)]
    cases += [case(config, rng, 20, column=column, kind=kind) for kind in KINDS]
    run_selections(vector_memory, config, cases, 0.0, 1)


@pytest.mark.parametrize("stall", [0.3, 0.8])
@pytest.mark.parametrize("config", [SQUARE, PAIRS], ids=["8", "2"])
def test_stalls(vector_memory, config, stall):
    rng = np.random.default_rng(2)
    few = [(19, 7, 0, True), (23, 1, 22, False), (30, 12, 5, True), (9, 9, 0, False), (1, 1, 0, True)]
    run_selections(vector_memory, config, [case(config, rng, *shape, kind="ties") for shape in few], stall, 2)


def test_runs_of_the_order(vector_memory):
    """The best, the worst, those between, one, none."""
    rng = np.random.default_rng(3)
    shapes = [(29, 10, 0), (29, 10, 19), (29, 10, 7), (29, 1, 0), (29, 1, 28), (29, 0, 0), (29, 3, 0)]
    run_selections(vector_memory, SQUARE, [case(SQUARE, rng, *shape, kind="ties") for shape in shapes], 0.1, 3)


@pytest.mark.parametrize("config", [SQUARE, PAIRS], ids=["8", "2"])
def test_cycles(vector_memory, config):
    rng = np.random.default_rng(4)
    shapes = [(30, 12, 3, True, 9), (30, 12, 3, False, 9), (32, 32, 0, True, 1), (1, 1, 0, False, 40), (25, 1, 0, True, 3)]
    cases = [case(config, rng, *shape) for shape in shapes]
    expected = [select_cycles(config, i.rows, i.columns, i.score_rows, i.score_columns) for i, _ in cases]
    assert run_selections(vector_memory, config, cases, 0.0, 4) == expected
