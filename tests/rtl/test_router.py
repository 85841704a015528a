# amaranth: UnusedElaboratable=no
import numpy as np
import pytest

from hwgen.config import Config
from hwgen.isa import Route
from hwgen.latency import route_cycles
from hwgen.numerics import INT16_MAX, route
from hwgen.rtl.ports import READ_LATENCY
from hwgen.rtl.router import Router

SQUARE = Config(array_outputs=8, array_inputs=8, max_experts=16, queue_entries=256)
UNEVEN = Config(array_outputs=12, array_inputs=20, max_experts=64, queue_entries=256)
WIDE = Config(array_outputs=16, array_inputs=16, max_experts=11, queue_entries=128)
NAMES = ("rows", "experts", "top_k", "renormalise", "dense", "x", "x_pitch", "y", "y_pitch")


def logits_of(kind: str, rows: int, experts: int, rng):
    if kind == "ties":
        return rng.integers(-2, 3, (rows, experts)) * 300
    if kind == "equal":
        return np.full((rows, experts), int(rng.integers(-32767, 32768)))
    if kind == "one":
        x = rng.integers(-32767, 0, (rows, experts))
        x[:, experts // 2] = 32767
        return x
    if kind == "extreme":
        return rng.choice([-32767, 32767], (rows, experts))
    return np.clip(np.round(rng.normal(0, 1500, (rows, experts))), -32767, 32767).astype(np.int64)


def expected_queues(experts: int, chosen, gates) -> list[list[tuple[int, int]]]:
    queues = [[] for _ in range(experts)]
    for token, (names, scores) in enumerate(zip(chosen, gates, strict=True)):
        for name, score in zip(names, scores, strict=True):
            queues[name].append((token, int(score)))
    return queues


async def read_queues(ctx, dut, experts: int) -> list[list[tuple[int, int]]]:
    """The queues as the matrix unit sees them: count and start at once, an entry READ_LATENCY cycles after its address."""
    found, end = [], 0
    for expert in range(experts):
        ctx.set(dut.lookup.expert, expert)
        count, start = ctx.get(dut.lookup.count), ctx.get(dut.lookup.start)
        assert start == end or count == 0
        assert (ctx.get(dut.nonempty) >> expert & 1) == (count > 0)
        end += count
        queue = []
        for i in range(count + READ_LATENCY):
            ctx.set(dut.queue.addr, start + i if i < count else 0)
            if i >= READ_LATENCY:
                queue.append((ctx.get(dut.queue.entry.token), ctx.get(dut.queue.entry.gate)))
            await ctx.tick()
        found.append(queue)
    return found


def run_route(vector_memory, config, cases, stall, seed):
    """Instructions (rows, experts, top_k, renormalise, dense, kind) one after another; cycles of each."""
    rng = np.random.default_rng(seed)
    memory = vector_memory(Router, config, 4096, stall, seed)
    dut = memory.dut
    cycles = []

    async def bench(ctx):
        for rows, experts, top_k, renormalise, dense, kind in cases:
            n = -(-experts // config.chunk)
            x_pitch, y_pitch = (n + int(rng.integers(3)) for _ in range(2))
            insn = Route(rows=rows, experts=experts, top_k=top_k, renormalise=renormalise, dense=dense,
                         x=5, x_pitch=x_pitch, y=2000, y_pitch=y_pitch)  # fmt: skip
            logits = logits_of(kind, rows, experts, rng)
            memory.put_rows(insn.x, x_pitch, logits)
            expected = memory.data.copy()
            for name in NAMES:
                ctx.set(getattr(dut.insn, name), getattr(insn, name))
            cycles.append(await memory.execute(ctx))
            if rows:
                chosen, gates = route(logits, top_k, bool(renormalise))
            else:
                chosen = gates = np.zeros((0, top_k), int)
            if dense:
                for r in range(rows):
                    flat = expected[2000 + r * y_pitch :][:n].reshape(-1)
                    flat[:] = 0
                    flat[chosen[r]] = np.minimum(gates[r], INT16_MAX)
            np.testing.assert_array_equal(memory.data, expected)
            queues = expected_queues(experts, chosen, gates)
            assert await read_queues(ctx, dut, config.max_experts) == queues + [[]] * (config.max_experts - experts)

    memory.run(bench)
    return cycles


def test_kinds_of_logits(vector_memory):
    cases = [
        (13, 16, 2, 0, 0, "normal"),
        (6, 16, 4, 1, 1, "ties"),
        (5, 9, 3, 0, 1, "equal"),
        (8, 16, 1, 1, 0, "one"),  # all tokens to one expert, score 1
        (7, 5, 2, 1, 0, "extreme"),
        (1, 1, 1, 0, 1, "normal"),
        (0, 4, 2, 0, 0, "normal"),
        (4, 4, 4, 0, 1, "ties"),
    ]
    run_route(vector_memory, SQUARE, cases, 0.0, 1)


@pytest.mark.parametrize("stall", [0.3, 0.8])
def test_stalls(vector_memory, stall):
    cases = [(9, 16, 2, 0, 1, "ties"), (6, 10, 2, 1, 0, "normal"), (11, 3, 3, 0, 1, "normal"), (40, 16, 1, 0, 1, "normal")]
    run_route(vector_memory, SQUARE, cases, stall, 2)


def test_many_experts(vector_memory):
    run_route(vector_memory, UNEVEN, [(10, 64, 4, 0, 1, "normal"), (5, 61, 2, 1, 0, "ties")], 0.1, 3)


def test_chunk_wider_than_experts(vector_memory):
    run_route(vector_memory, WIDE, [(10, 11, 2, 0, 1, "normal"), (64, 2, 2, 1, 0, "normal")], 0.1, 4)


@pytest.mark.parametrize("config", [Config(max_experts=16, queue_entries=256), SQUARE, UNEVEN])
def test_cycles(vector_memory, config):
    shapes = [(5, 16, 2, 0), (32, 16, 2, 0), (33, 12, 4, 0), (7, 16, 1, 0), (1, 4, 2, 0), (9, 14, 2, 1), (40, 16, 1, 1)]
    shapes += [(23, 3, 2, 1)]
    cases = [(rows, experts, top_k, 0, dense, "normal") for rows, experts, top_k, dense in shapes]
    expected = [route_cycles(config, *shape) for shape in shapes]
    np.testing.assert_allclose(run_route(vector_memory, config, cases, 0.0, 5), expected, rtol=0.01, atol=1)
