# amaranth: UnusedElaboratable=no
"""The window engine against the machine: every reduction, walks with borders, blocks of columns, stalls on every port."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.sim import Simulator

from hwgen.config import Config
from hwgen.counts import windows
from hwgen.isa import Border, Gelu, Reduce, ReduceWindow, WindowWalk, encode
from hwgen.latency import window_cycles
from hwgen.numerics import INT16_MAX, STATIC_SHIFT, WINDOW_SHIFT_MAX
from hwgen.rtl.booth import booth
from hwgen.rtl.window import Window
from hwgen.sim import vector
from hwgen.walks import Plane, Walk, window

SQUARE = Config(array_outputs=8, array_inputs=8, window_chunks=1, acc_rows=64, scale_entries=128)
PAIRS = Config(array_outputs=10, array_inputs=12, window_chunks=4, acc_rows=64, scale_entries=128)  # chunks of two elements
GROUPS = replace(PAIRS, array_outputs=10, array_inputs=11, window_chunks=2, window_rows=3)  # of neighbouring rows
THIN = Config(array_outputs=8, array_inputs=9, window_chunks=3, acc_rows=64, scale_entries=128)  # of one
X, Y, PARAMS, SCALE = 0, 1000, 2000, 7
ROWS = Walk((1,), (1,), (1,))
WIDE = pytest.param(SQUARE, id="1", marks=pytest.mark.slow)  # lanes of eight elements: minutes in this simulator

SHAPES = pytest.mark.parametrize(
    "config", [WIDE, pytest.param(PAIRS, id="4"), pytest.param(THIN, id="3"), pytest.param(GROUPS, id="2x3")]
)


@pytest.mark.parametrize("a_bits, b_bits", [(16, 8), (17, 18), (5, 2), (7, 6)])
def test_products_in_luts(a_bits, b_bits):
    m, a, b = Module(), Signal(signed(a_bits)), Signal(signed(b_bits))
    product = Signal(signed(a_bits + b_bits))
    m.d.comb += product.eq(booth(m, a, b, "product"))
    rng = np.random.default_rng(0)
    low, high = (np.array([-(1 << n - 1), (1 << n - 1) - 1]) for n in (a_bits, b_bits))
    left = [*low, *low, *rng.integers(low[0], low[1] + 1, 200)]
    right = [*high, *high[::-1], *rng.integers(high[0], high[1] + 1, 200)]

    async def bench(ctx):
        for cycle in range(len(left) + b_bits // 2):
            at = min(cycle, len(left) - 1)
            ctx.set(a, int(left[at]))
            ctx.set(b, int(right[at]))
            if cycle >= b_bits // 2:
                assert ctx.get(product) == left[cycle - b_bits // 2] * right[cycle - b_bits // 2]
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def case(config, rng, rows=None, **fields):
    """(instruction, walk) of random modes; `walk` among the fields: that one."""
    walk = fields.pop("walk", None) or Walk((rows or int(rng.integers(1, 30)),), (1,), (1,))
    columns = fields.pop("columns", int(rng.integers(1, 3 * config.window_chunks * config.chunk)))
    whole = -(-columns // config.chunk)
    modes = {
        "reduce": Reduce(rng.integers(3)),
        "before": int(rng.integers(16)),
        "shift": int(rng.integers(WINDOW_SHIFT_MAX + 1)),
        "gelu": Gelu(rng.integers(len(Gelu))),
        "gelu_shift": int(rng.integers(7)),
        "y_max": int(rng.integers(2)),
    }
    places = {"x": X, "x_pitch": whole + int(rng.integers(2)), "y": Y, "y_pitch": whole + int(rng.integers(2))}
    insn = ReduceWindow(rows=walk.rows, columns=columns, params=PARAMS, y_scale=SCALE, **places | modes | fields)
    return insn, WindowWalk(**walk.fields())


def run_windows(vector_memory, config, cases, stalls, seed):
    """Instructions one after another in one simulation, in equal parts with each share of stalls; cycles of each."""
    rng = np.random.default_rng(seed)
    memory = vector_memory(Window, config, config.scratch_chunks, stalls[0], seed)
    cycles = []

    async def bench(ctx):
        for number, (insn, walk) in enumerate(cases):
            memory.stall = stalls[number * len(stalls) // len(cases)]
            taps, whole = walk.kernel_u * walk.kernel_v, -(-insn.columns // config.chunk)
            memory.data[:] = rng.integers(-INT16_MAX, INT16_MAX + 1, memory.data.shape)
            if rng.integers(2):
                memory.data[:] = rng.choice([-INT16_MAX, INT16_MAX, 0, 1], memory.data.shape)
            weights = rng.integers(-127, 128, (taps, whole * config.chunk)) << STATIC_SHIFT
            memory.put_rows(PARAMS + 2 * whole, whole, weights)
            cycles.append(await memory.execute_as(ctx, vector.reduce_window, insn, walk=walk))

    memory.run(bench)
    return cycles


def walks():
    """Walks of all kinds: kernels, strides, dilation, borders on every side, shifted windows, repeated and left out rows."""
    shifted = Plane(6, 4, Border.WRAP_X, 1, 1, (3, 0, 1, 0), (0, 2, 0, 1))
    loops, there, back = (2, 2, 3, 2), (12, 2, 4, 1), (12, 6, 2, 1)
    return [
        Walk((5,), (1,), (1,)),
        window((3, 4), (3, 3), pads=(1, 1, 1, 1)),
        window((6, 3), (2, 3), (2, 1), (0, 1, 1, 2), (2, 2)),
        window((3, 2), (5, 5), pads=(2, 2, 2, 2)),
        Walk(loops, there, back, 5, 0, plane=shifted),
        Walk(loops, back, there, 0, 5, plane=replace(shifted, border=Border.WRAP_Y)),
        Walk((3, 2, 4, 2), (4, 0, 1, 0), (16, 8, 2, 1)),
        Walk((9,), (-2,), (-1,), 20, 11),
        window((5, 5), (5, 5)),
        window((2, 5), (2, 7), pads=(1, 3, 0, 3)),
        window((2, 9), (1, 2)),
        Walk((1,), (1,), (1,), 3, 4),
    ]


@SHAPES
def test_walks(vector_memory, config):
    """Every walk with every reduction, in one or two blocks of columns."""
    rng = np.random.default_rng(1)
    most = 2 * config.window_chunks * config.chunk
    cases = [
        case(config, rng, walk=walk, reduce=reduce, columns=int(rng.integers(1, most))) for reduce in Reduce for walk in walks()
    ]
    run_windows(vector_memory, config, cases, (0.0,), 1)


@SHAPES
def test_stalls(vector_memory, config):
    rng = np.random.default_rng(2)
    few = [walks()[i] for i in (1, 0, 9, 4, 7, 0)]
    cases = [case(config, rng, walk=walk, columns=int(rng.integers(1, 14))) for walk in few]
    run_windows(vector_memory, config, cases, (0.3, 0.8), 2)


@pytest.mark.parametrize("config", [WIDE, pytest.param(PAIRS, id="4")])
def test_few_rows_of_many_blocks(vector_memory, config):
    """Blocks follow each other faster than a row is finished: parameters and maxima are each block's own."""
    rng = np.random.default_rng(3)
    columns = 11 * config.window_chunks * config.chunk + 1  # more blocks than a row takes to be finished
    cases = [case(config, rng, rows=rows, columns=columns, reduce=reduce, y_max=1) for rows in (1, 2) for reduce in Reduce]
    run_windows(vector_memory, config, cases + cases[3:], (0.0, 0.0, 0.5), 3)


@pytest.mark.parametrize("config", [WIDE, THIN, pytest.param(PAIRS, id="4")])
def test_maxima_of_few_rows_over_blocks(vector_memory, config):
    """A row's last block is so short that it comes again before its maximum can be read."""
    rng = np.random.default_rng(5)
    block = config.window_chunks * config.chunk
    modes = {"reduce": Reduce.SUM, "before": 0, "shift": 20, "gelu": Gelu.OFF, "y_max": 1}
    cases = [case(config, rng, rows=rows, columns=n * block + 1, **modes) for n in (1, 3, 2) for rows in range(1, 7)]
    run_windows(vector_memory, config, cases, (0.0, 0.0, 0.3), 5)


def test_no_rows(vector_memory):
    rng = np.random.default_rng(4)
    none = case(THIN, rng, rows=4)
    memory = vector_memory(Window, THIN, 64, 0.0, 0)

    async def bench(ctx):
        await memory.execute(ctx, insn=encode(replace(none[0], rows=0)))
        assert memory.accepted == {"rd": 0, "wr": 0, "scale": 0}

    memory.run(bench)


@SHAPES
def test_taps_beyond_the_border_are_read_within_the_map(vector_memory, config):
    """Behind its end, or in front of it, they would wait for what others read in the next bank."""
    rng, x, walk = np.random.default_rng(7), 400, walks()[1]
    insn, word = case(config, rng, walk=walk, x=x, columns=config.window_chunks * config.chunk, reduce=Reduce.SUM)
    memory = vector_memory(Window, config, config.scratch_chunks, 0.0, 7)

    async def bench(ctx):
        await memory.execute_as(ctx, vector.reduce_window, insn, walk=word)
        rows = {x + row * insn.x_pitch for row in walk.x_rows().reshape(-1) if row >= 0}
        assert {address for address in memory.addresses if address < PARAMS} == rows

    memory.run(bench)


@SHAPES
def test_throughput(vector_memory, config):
    """Without stalls a row costs its taps, or the chunks of its block."""
    rng = np.random.default_rng(6)
    block = config.window_chunks * config.chunk
    shapes = [(ROWS, 2 * block), (walks()[0], 2 * block + 1), (walks()[1], block + 1), (walks()[6], 1)]
    shapes.append((Walk((64,), (1,), (1,)), block))
    cases = [case(config, rng, walk=walk, columns=columns, reduce=Reduce(k % 2)) for k, (walk, columns) in enumerate(shapes)]
    expected = [
        window_cycles(config, i.rows, i.columns, *windows(w), i.reduce == Reduce.WEIGHTED) for i, w in cases
    ]
    assert run_windows(vector_memory, config, cases, (0.0,), 6) == expected
