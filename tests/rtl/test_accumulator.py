"""Accumulator against NumPy sums: row order, gaps, the shortest distance between tiles."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.config import Config
from hwgen.numerics import ACC_MAX
from hwgen.rtl.accumulator import Accumulator


@pytest.mark.parametrize("rows, gaps", [(Accumulator.ACC_GAP, False), (16, False), (9, True)])
def test_tiles(rows, gaps):
    rng = np.random.default_rng(rows)
    config = Config(array_outputs=12, array_inputs=20, acc_rows=16)
    lanes, dut = config.array_outputs, Accumulator(config)
    inputs, expected = [], []
    for tiles in (1, 3, 2, 1, 4):
        parts = rng.integers(-(ACC_MAX // 4), ACC_MAX // 4 + 1, (tiles, rows, lanes))
        order = rng.permutation(rows) if gaps else np.arange(rows)
        for t in range(tiles):
            for r in order:
                while gaps and rng.random() < 0.3:
                    inputs.append(None)
                inputs.append((int(t == 0), int(t == tiles - 1), int(r), parts[t, r]))
                if t == tiles - 1:
                    expected.append((len(inputs) - 1 + Accumulator.LATENCY, parts[:, r].sum(axis=0).tolist()))
            inputs += [None] * max(0, Accumulator.ACC_GAP - rows if not gaps else Accumulator.ACC_GAP)
    got = []

    async def bench(ctx):
        for cycle in range(len(inputs) + Accumulator.LATENCY + 1):
            event = inputs[cycle] if cycle < len(inputs) else None
            ctx.set(dut.i_valid, event is not None)
            if event is None:  # noise
                event = (rng.integers(2), rng.integers(2), rng.integers(16), rng.integers(-ACC_MAX, ACC_MAX, lanes))
            first, last, row, data = event
            ctx.set(dut.i_first, int(first))
            ctx.set(dut.i_last, int(last))
            ctx.set(dut.i_row, int(row))
            ctx.set(dut.i_data, data.tolist())
            if ctx.get(dut.o_valid):
                got.append((cycle, [ctx.get(dut.o_data[o]) for o in range(lanes)]))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert got == expected


def test_gap_promise():
    assert Accumulator.ACC_GAP <= 8
