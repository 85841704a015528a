# amaranth: UnusedElaboratable=no
from dataclasses import replace

import numpy as np
import pytest

from hwgen.config import Config
from hwgen.isa import Multiply, Norm, ReduceWindow, Route, WindowWalk, encode
from hwgen.latency import multiply_cycles, norm_cycles, route_cycles, window_cycles
from hwgen.numerics import GAMMA_SHIFT, INT16_MAX, layer_norm, route, row_max_abs, turn
from hwgen.rtl.ports import READ_LATENCY
from hwgen.rtl.vector import VectorUnit
from hwgen.sim import vector
from hwgen.sim.machine import Machine

SQUARE = Config(array_outputs=8, array_inputs=8, max_experts=16, queue_entries=64, norm_columns=64)
UNEVEN = Config(array_outputs=12, array_inputs=20, max_experts=9, queue_entries=64, norm_columns=32)
SCRATCH = 4096


def random_norm(config, rng, memory):
    """(instruction, function that applies it to scratchpad and scales)."""
    rows, columns = int(rng.integers(1, 9)), int(rng.integers(1, config.norm_columns + 1))
    n = -(-columns // config.chunk)
    insn = Norm(
        rows=rows, columns=columns, x=10, x_pitch=n + int(rng.integers(2)), y=1000, y_pitch=n, y_scale=int(rng.integers(99)),
        params=3000, epsilon=int(rng.integers(1, 1 << int(rng.integers(1, 48)))), wait_matmul=3,
    )  # fmt: skip
    values = rng.integers(-32767, 32768, (rows, columns)) >> int(rng.integers(0, 14))
    gamma, beta = rng.integers(-9000, 9000, (2, columns))
    memory.put_rows(insn.x, insn.x_pitch, values)
    memory.put_rows(insn.params, n, [gamma, beta])

    def apply(data, scales):
        y = layer_norm(values, gamma, beta, insn.epsilon)
        padded = np.zeros((rows, n * config.chunk), np.int64)
        padded[:, :columns] = y
        for r in range(rows):
            data[insn.y + r * n :][:n] = padded[r].reshape(n, -1)
        scales[insn.y_scale : insn.y_scale + rows] = row_max_abs(y)

    return insn, apply


def random_multiply(config, rng, memory):
    """(instruction, function that applies it): rows turned in place by factors of one chunk."""
    rows, n = int(rng.integers(1, 9)), int(rng.integers(1, config.norm_columns // config.chunk + 1))
    insn = Multiply(
        rows=rows, columns=n * config.chunk, x=10, x_pitch=n, y=10, y_pitch=n, y_scale=5, factor=3000, factor_pitch=1,
        period=1, pairs=1, shift=GAMMA_SHIFT, wait_matmul=2,
    )  # fmt: skip
    values, factor = rng.integers(-32767, 32768, (rows, insn.columns)), rng.integers(-8192, 8193, (rows, config.chunk))
    memory.put_rows(insn.x, insn.x_pitch, values)
    memory.put_rows(insn.factor, 1, factor)

    def apply(data, scales):
        y = turn(values, factor)
        for r in range(rows):
            data[insn.y + r * n :][:n] = y[r].reshape(n, -1)
        scales[insn.y_scale : insn.y_scale + rows] = row_max_abs(y)

    return insn, apply


MAKERS = {"norm": random_norm, "multiply": random_multiply}


def random_route(config, rng, memory):
    """(instruction, function that applies it to the scratchpad and returns the queues)."""
    experts = int(rng.integers(4, config.max_experts + 1))
    n = -(-experts // config.chunk)
    insn = Route(
        rows=int(rng.integers(1, 16)), experts=experts, top_k=int(rng.integers(1, 5)), renormalise=int(rng.integers(2)),
        dense=int(rng.integers(2)), x=10, x_pitch=n, y=1000, y_pitch=n + 1, wait_vector=1,
    )  # fmt: skip
    logits = rng.integers(-4, 5, (insn.rows, experts)) * int(rng.integers(1, 8000))
    memory.put_rows(insn.x, insn.x_pitch, logits)

    def apply(data, scales):
        chosen, gates = route(logits, insn.top_k, bool(insn.renormalise))
        queues = [[] for _ in range(experts)]
        for token, k in np.ndindex(chosen.shape):
            queues[chosen[token, k]].append((token, int(gates[token, k])))
        if insn.dense:
            padded = np.zeros((insn.rows, n * config.chunk), np.int64)
            np.put_along_axis(padded, chosen, np.minimum(gates, INT16_MAX), axis=1)
            for r in range(insn.rows):
                data[insn.y + r * insn.y_pitch :][:n] = padded[r].reshape(n, -1)
        return queues

    return insn, apply


async def check_queues(ctx, dut, queues):
    for expert, queue in enumerate(queues):
        ctx.set(dut.lookup.expert, expert)
        assert ctx.get(dut.lookup.count) == len(queue)
        assert ctx.get(dut.nonempty) >> expert & 1 == bool(queue)
        start = ctx.get(dut.lookup.start)
        for i, (token, gate) in enumerate(queue):
            ctx.set(dut.queue.addr, start + i)
            await ctx.tick().repeat(READ_LATENCY)
            assert (ctx.get(dut.queue.entry.token), ctx.get(dut.queue.entry.gate)) == (token, gate)


@pytest.mark.parametrize("config,stall,seed", [(SQUARE, 0.0, 1), (SQUARE, 0.5, 2), (UNEVEN, 0.2, 3)])
def test_program(vector_memory, config, stall, seed):
    """A random program, one instruction after another; queues outlive the NORMs that follow their ROUTE."""
    rng = np.random.default_rng(seed)
    memory = vector_memory(VectorUnit, config, SCRATCH, stall, seed)
    dut = memory.dut

    async def bench(ctx):
        queues = [[] for _ in range(config.max_experts)]
        for kind in ("norm", "route", "multiply", "norm", "multiply", "route", "route", "norm", "multiply", "norm"):
            insn, apply = MAKERS.get(kind, random_route)(config, rng, memory)
            data, scales = memory.data.copy(), memory.scales.copy()
            await ctx.tick().repeat(int(rng.integers(1, 4)))
            assert not ctx.get(dut.busy)
            ctx.set(dut.insn.payload, encode(insn))
            ctx.set(dut.insn.valid, 1)
            await ctx.tick().until(dut.insn.ready)
            ctx.set(dut.insn.valid, 0)
            ctx.set(dut.insn.payload, 0)
            assert ctx.get(dut.busy)
            begin = memory.cycle
            await ctx.tick().until(dut.done)
            assert memory.cycle - 1 >= memory.visible_at
            if not stall and kind == "norm" and insn.columns > 3 * config.chunk:
                assert memory.cycle - begin == norm_cycles(config, insn.rows, insn.columns) + 1
            if not stall and kind == "multiply":
                assert memory.cycle - begin == multiply_cycles(config, insn.rows, insn.columns, insn.period) + 1
            if not stall and kind == "route":
                cycles = route_cycles(config, insn.rows, insn.experts, insn.top_k, insn.dense)
                assert abs(memory.cycle - begin - cycles - 1) <= 2
            found = apply(data, scales)
            np.testing.assert_array_equal(memory.data, data)
            np.testing.assert_array_equal(memory.scales, scales)
            if found is not None:
                queues = found + [[]] * (config.max_experts - len(found))
            await check_queues(ctx, dut, queues)

    memory.run(bench)


def test_instructions_wait_for_each_other(vector_memory):
    """An instruction offered during another is taken only after `done`, and then runs on what that one has written."""
    memory = vector_memory(VectorUnit, SQUARE, SCRATCH, 0.2, 4)
    dut = memory.dut
    rng = np.random.default_rng(4)
    values, gamma, beta = rng.integers(-999, 999, (3, 40)), rng.integers(-9000, 9000, 40), rng.integers(-99, 99, 40)
    memory.put_rows(0, 5, values)
    memory.put_rows(200, 5, [gamma, beta])
    places = [0, 500, 300, 0]  # the last writes over its own chain's input

    async def bench(ctx):
        finished = 0
        for x, y in zip(places, places[1:], strict=False):
            insn = Norm(rows=3, columns=40, x=x, x_pitch=5, y=y, y_pitch=5, y_scale=0, params=200, epsilon=9)
            ctx.set(dut.insn.payload, encode(insn))
            ctx.set(dut.insn.valid, 1)
            taken = False
            while not taken:
                *_, taken, done = await ctx.tick().sample(dut.insn.ready, dut.done)
                finished += done
            assert finished == places.index(x)
        ctx.set(dut.insn.valid, 0)
        await ctx.tick().until(dut.done)
        expected = values
        for _ in range(3):
            expected = layer_norm(expected, gamma, beta, 9)
        np.testing.assert_array_equal(memory.rows(0, 5, 3, 5), expected)

    memory.run(bench)


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_windows_among_others(vector_memory, stall):
    """A walk goes with the next ReduceWindow alone, is not counted, and the units take turns on the ports."""
    config = Config(
        array_outputs=8, array_inputs=9, window_chunks=3, max_experts=4, queue_entries=16, norm_columns=16, bank_words=64
    )  # fmt: skip
    rng = np.random.default_rng(5)
    memory = vector_memory(VectorUnit, config, config.scratch_chunks, stall, 5)
    dut = memory.dut
    place = {"rows": 4, "columns": 5, "x": 0, "x_pitch": 5}
    norm = Norm(**place, y=100, y_pitch=5, y_scale=3, params=200, epsilon=9)
    pool = ReduceWindow(**place, y=300, y_pitch=6, y_scale=20, params=200, shift=15, before=1)
    walk = WindowWalk(n0=2, x0=1, x1=-1 % (1 << 16), y0=1, y1=1, kernel_v=2, tap_v=2)
    route_insn = Route(rows=3, experts=4, top_k=2, renormalise=1, dense=1, x=0, x_pitch=5, y=400, y_pitch=4)
    program = [norm, walk, pool, replace(pool, y=340), route_insn, replace(norm, y=120), walk, replace(pool, y=360)]
    memory.data[:] = rng.integers(-3000, 3000, memory.data.shape)
    machine = Machine(config)
    machine.scratch[:], machine.scale[: len(memory.scales)] = memory.data.reshape(-1), memory.scales

    async def bench(ctx):
        held, finished = None, 0
        for insn in program:
            ctx.set(dut.insn.payload, encode(insn))
            ctx.set(dut.insn.valid, 1)
            await ctx.tick().until(dut.insn.ready)
            ctx.set(dut.insn.valid, 0)
            if isinstance(insn, WindowWalk):
                held = insn
                assert not ctx.get(dut.busy)
                continue
            begin = memory.cycle
            await ctx.tick().until(dut.done)
            finished += 1
            match insn:
                case Norm():
                    writes = vector.norm(machine, insn)
                case Route():
                    writes, _ = vector.route(machine, insn)
                case ReduceWindow():
                    writes = vector.reduce_window(machine, insn, held)
                    if not stall:
                        taps = 1 if held is None else 2
                        assert memory.cycle - begin == window_cycles(config, 4, 5, (1, taps), 1, False) + 1
                    held = None
            for target, index, values in writes:
                target[index] = values
            np.testing.assert_array_equal(memory.data.reshape(-1), machine.scratch)
            np.testing.assert_array_equal(memory.scales, machine.scale[: len(memory.scales)])
        assert finished == sum(not isinstance(insn, WindowWalk) for insn in program)

    memory.run(bench)
