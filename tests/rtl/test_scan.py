# amaranth: UnusedElaboratable=no
"""The scan against the machine: any rows, columns and states, backwards, extremes, groups of chunks, stalls on both ports."""

import numpy as np
import pytest

from hwgen import numerics as num
from hwgen.config import Config
from hwgen.isa import Norm, Scan, encode
from hwgen.latency import scan_cycles
from hwgen.rtl.scan import Scan as Scanner
from hwgen.rtl.vector import VectorUnit
from hwgen.sim import vector
from hwgen.sim.machine import Machine

SQUARE = Config(array_outputs=8, array_inputs=8, banks=2, bank_words=1024, scan_states=3)
ONE = Config(array_outputs=8, array_inputs=8, banks=2, bank_words=1024, scan_states=1)
PAIRS = Config(array_outputs=10, array_inputs=12, banks=2, bank_words=512, scan_states=4)  # chunks of two elements
CONFIGS = pytest.mark.parametrize("config", [SQUARE, ONE, PAIRS], ids=["8x3", "8x1", "2x4"])


def case(config, rng, rows, columns, states, backwards=False, kind="any", group=None):
    """(instruction, memory's elements)."""
    chunk = config.chunk
    whole, mixed = -(-columns // chunk), -(-2 * states // chunk)
    at, places = 5, {}
    for name, count, width in (
        ("x", rows, whole), ("steps", rows, whole), ("mix", rows, mixed), ("params", 1 + states, whole), ("y", rows, whole),
    ):  # fmt: skip
        pitch = width + int(rng.integers(2))
        start = at + (rows - 1) * pitch if backwards and name != "params" else at
        places |= {name: start, f"{name}_pitch": pitch}
        at += count * pitch + 3
    assert at < config.scratch_chunks
    beats, most = config.scan_beats(columns, states)
    insn = Scan(
        rows=rows, columns=columns, states=states, beats=beats, group=group or most, backwards=int(backwards),
        steps_shift=int(rng.integers(num.STEPS_SHIFT_MAX + 1)), step_shift=int(rng.integers(num.STEP_SHIFT_MAX + 1)),
        fed_shift=int(rng.integers(4, 16)), decay_shift=int(rng.integers(4)), skip_shift=int(rng.integers(8, 32)),
        shift=int(rng.integers(8, 28)), **places,
    )  # fmt: skip
    data = rng.integers(-32768, 32768, (config.scratch_chunks, chunk))
    if kind == "small":
        data >>= rng.integers(0, 12, data.shape)
    if kind == "extreme":
        data = rng.choice([-32768, -32767, -1, 0, 1, 32767], data.shape)
    return insn, data


def run_scans(vector_memory, config, cases, stall, seed):
    """Instructions one after another in one simulation; cycles of each."""
    memory = vector_memory(Scanner, config, config.scratch_chunks, stall, seed)
    cycles = []

    async def bench(ctx):
        for insn, data in cases:
            memory.data[:] = data
            cycles.append(await memory.execute_as(ctx, vector.scan, insn))

    memory.run(bench)
    return cycles


@CONFIGS
def test_kinds(vector_memory, config):
    rng = np.random.default_rng(1)
    shapes = [(7, 20, 4), (1, 1, 1), (2, 9, 16), (12, 8, 5), (3, 40, 7), (5, 16, 3)]
    cases = [case(config, rng, *shape, i % 2 == 1, k) for i, shape in enumerate(shapes) for k in ("small", "any", "extreme")]
    run_scans(vector_memory, config, cases, 0.0, 1)


@pytest.mark.parametrize("stall", [0.3, 0.8])
@CONFIGS
def test_stalls(vector_memory, config, stall):
    rng = np.random.default_rng(2)
    cases = [case(config, rng, *shape, i % 2 == 0, "small") for i, shape in enumerate([(9, 19, 4), (6, 7, 16), (4, 33, 2)])]
    run_scans(vector_memory, config, cases, stall, 2)


def test_groups(vector_memory):
    """Chunks in groups of one, of some, of all."""
    rng = np.random.default_rng(3)
    cases = [case(SQUARE, rng, 4, 37, 6, group == 2, "small", group) for group in (1, 2, 3, 4, 5)]
    run_scans(vector_memory, SQUARE, cases, 0.1, 3)


@CONFIGS
def test_cycles(vector_memory, config):
    rng = np.random.default_rng(4)
    shapes = [(9, 19, 4), (6, 7, 16), (1, 1, 1), (30, 8, 4), (12, 30, 16), (20, 60, 1)]
    cases = [case(config, rng, *shape) for shape in shapes]
    expected = [scan_cycles(config, i.rows, i.columns, i.states) for i, _ in cases]
    assert run_scans(vector_memory, config, cases, 0.0, 4) == expected


def test_beside_a_norm(vector_memory):
    """Scans and a LayerNorm take turns on the vector unit's ports."""
    rng = np.random.default_rng(5)
    memory = vector_memory(VectorUnit, ONE, ONE.scratch_chunks, 0.2, 5)
    dut = memory.dut
    insn, memory.data[:] = case(ONE, rng, 4, 19, 3, True, "small")
    norm = Norm(rows=4, columns=19, x=insn.x - 3 * insn.x_pitch, x_pitch=insn.x_pitch, y=900, y_pitch=4, params=800, epsilon=9)
    machine = Machine(ONE)
    machine.scratch[:], machine.scale[: len(memory.scales)] = memory.data.reshape(-1), memory.scales

    async def bench(ctx):
        for step, execute in ((insn, vector.scan), (norm, vector.norm), (insn, vector.scan)):
            ctx.set(dut.insn.payload, encode(step))
            ctx.set(dut.insn.valid, 1)
            await ctx.tick().until(dut.insn.ready)
            ctx.set(dut.insn.valid, 0)
            await ctx.tick().until(dut.done)
            for target, index, values in execute(machine, step):
                target[index] = values
            np.testing.assert_array_equal(memory.data.reshape(-1), machine.scratch)

    memory.run(bench)
