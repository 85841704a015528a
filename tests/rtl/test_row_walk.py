# amaranth: UnusedElaboratable=no
"""The row issuer's counters against the walks themselves: random loops, taps and borders, one walk behind the other."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen import isa
from hwgen.isa import INDEX_BITS, Border
from hwgen.rtl.row_walk import IN_ORDER, WIDTHS, RowWalk
from hwgen.walks import ZERO_ROW, Plane, Walk, window

ROLLED = ((36, 3, 9, 1), (36, 12, 3, 1), (2, 3, 4, 3))  # strides in the map, of windows one by one; windows of 4 x 3 in 8 x 9


def random_walk(rng: np.random.Generator) -> Walk:
    kind = rng.integers(4)
    kernel, stride, dilation = (tuple(int(n) for n in rng.integers(1, 4, 2)) for _ in range(3))
    if kind == 0:
        return window((9, 11), kernel, stride, tuple(int(n) for n in rng.integers(0, 3, 4)), dilation)
    if kind == 1:  # no map: any steps, indices modulo 2^16
        loops = tuple(int(n) for n in rng.integers(1, 5, rng.integers(1, isa.WALK_LOOPS + 1)))
        steps = [tuple(int(n) for n in rng.integers(-900, 900, len(loops))) for _ in range(2)]
        return Walk(loops, *steps, 9000, 7000, kernel, (int(rng.integers(-50, 50)), 3))
    there, dense, loops = ROLLED
    u, v = int(rng.integers(4)), int(rng.integers(3))
    border = Border.WRAP_X if kind == 2 else Border.WRAP_Y
    plane = Plane(8, 9, border, u, v, (4, 0, 1, 0), (0, 3, 0, 1))
    if border == Border.WRAP_X:
        return Walk(loops, there, dense, 9 * u + v, 0, plane=plane)
    return Walk(loops, dense, there, 0, 9 * u + v, (1, 2), (0, 5), (1, 1), plane)


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_random_walks(seed):
    """Every walk for two blocks of columns and one or two tiles a tap, with cycles in which no row is made."""
    rng = np.random.default_rng(seed)
    walks = [random_walk(rng) for _ in range(6)]
    plain = Walk((5,), (1,), (1,))  # of a Matmul without one
    dut, wanted, found = RowWalk(), [], []
    jobs = [(walk, walk.fields()) for walk in walks] + [(plain, dict.fromkeys(WIDTHS, 0) | IN_ORDER)]
    steps = []  # (walk begins with its fields, last row, last tile, last tap) of each row
    for walk, fields in jobs:
        tiles, blocks = int(rng.integers(1, 3)), 2
        x, y = walk.x_rows(), walk.y_rows()
        for step in np.ndindex(blocks, walk.count, tiles, walk.rows):
            _, tap, tile, r = step
            begins = fields if not any(step) else None
            steps.append((begins, r == walk.rows - 1, tile == tiles - 1, tap == walk.count - 1))
            outside = walk.plane is not None and walk.plane.border == Border.ZERO and x[tap, r] == ZERO_ROW
            wanted.append((0 if outside else x[tap, r] % (1 << INDEX_BITS), y[r], outside))

    async def process(ctx):
        made = []
        for k, (begins, last_row, last_tile, last_tap) in enumerate(steps):
            if k == 0:
                await begin(ctx, begins)
            while rng.random() < 0.1:
                made.append(False)
                await row(ctx, made)
            following = steps[k + 1][0] if k + 1 < len(steps) else None
            ctx.set(dut.begin, following is not None)
            if following is not None:
                ctx.set(dut.fields, {name: following.get(name, isa_default(name)) for name in WIDTHS})
            ctx.set(dut.last_row, last_row)
            ctx.set(dut.last_tile, last_tile)
            ctx.set(dut.step, 1)
            assert ctx.get(dut.last_tap) == last_tap, k
            made.append(True)
            await row(ctx, made)
            ctx.set(dut.step, 0)
            ctx.set(dut.begin, 0)
        for _ in range(dut.LATENCY):
            made.append(False)
            await row(ctx, made)

    async def begin(ctx, fields):
        ctx.set(dut.begin, 1)
        ctx.set(dut.fields, {name: fields.get(name, isa_default(name)) for name in WIDTHS})
        await ctx.tick()
        ctx.set(dut.begin, 0)

    async def row(ctx, made):
        """A cycle; what was made LATENCY cycles ago is there behind it."""
        await ctx.tick()
        if len(made) >= dut.LATENCY and made[-dut.LATENCY]:
            found.append((ctx.get(dut.x), ctx.get(dut.y), bool(ctx.get(dut.outside))))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
    assert len(wanted) > 300
    assert found == [(int(x), int(y) % (1 << INDEX_BITS), bool(outside)) for x, y, outside in wanted]


def isa_default(name: str) -> int:
    return int(getattr(isa.MatmulWalk(), name))
