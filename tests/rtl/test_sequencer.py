# amaranth: UnusedElaboratable=no
"""Sequencer: program order in each unit, no instruction before its counts, END, and programs that are wrong."""

import random
from types import SimpleNamespace

import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.memories import FETCH_QUEUE
from hwgen.rtl.sequencer import UNITS, Sequencer

PROGRAM_AT = 0x40  # beats


def some_program(rng: random.Random, count: int) -> list[isa.Insn]:
    """Instructions of all units whose counts ask for earlier ones only, so that program order always gets through."""
    makers = [
        lambda **w: isa.Load(dram=rng.getrandbits(32), dst=1, rows=2, chunks=3, pitch=4, **w),
        lambda **w: isa.LoadScales(dram=1, dst=2, count=3, **w),
        lambda **w: isa.Stream(dram=1, words=rng.getrandbits(32), expert=3, **w),
        lambda **w: isa.Matmul(rows=1, inputs=2, outputs=3, x=4, x_pitch=5, shift=6, y=7, y_pitch=8, y_scale=9, **w),
        lambda **w: isa.Norm(
            rows=1, columns=2, x=3, x_pitch=4, y=5, y_pitch=6, y_scale=7, params=8, epsilon=rng.getrandbits(48), **w
        ),
        lambda **w: isa.MatmulWalk(n0=3, v3=(1 << isa.COORDINATE_BITS) - 1),  # waits for nothing and is not counted
        lambda **w: isa.Route(rows=1, experts=2, top_k=2, renormalise=1, dense=0, x=3, x_pitch=4, **w),
        lambda **w: isa.Store(dram=1, src=2, rows=3, chunks=4, pitch=5, **w),
    ]
    program, before = [], dict.fromkeys(isa.Unit, 0)
    for _ in range(count):
        asked = {u: rng.randint(max(0, n - 3), n) for u, n in before.items() if rng.random() < 0.5}
        waits = {f"wait_{u.name.lower()}": n for u, n in asked.items()}
        insn = rng.choice(makers)(**waits)
        program.append(insn)
        before[insn.unit] += not isinstance(insn, isa.WalkFields)
    return program + [isa.End(**{f"wait_{u.name.lower()}": n for u, n in before.items()})]


def machine(axi_model, axi_bytes: int, program: list, length: int | None = None, stall: float = 0.3):
    """A sequencer, memory with the program, units that take random time. `log`: what happened."""
    config = Config(array_outputs=8, array_inputs=8, axi_bytes=axi_bytes)
    dut = Sequencer(config)
    words = [w if isinstance(w, int) else isa.encode(w) for w in program]
    image = b"".join(w.to_bytes(isa.WORD_BYTES, "little") for w in words)
    log = SimpleNamespace(started=[[] for _ in isa.Unit], counts=[0] * UNITS, asked=0, stalls=0)
    unit_rngs = [random.Random(20 + u) for u in isa.Unit]

    async def dram(ctx):
        rng = random.Random(3)
        while True:
            (command,) = await axi_model.receive(ctx, dut.command, 1, rng, stall)
            offset, beats = command & 0xFFFFFFFF, command >> 32
            log.asked += beats
            parts = (image[(i - PROGRAM_AT) * axi_bytes :][:axi_bytes] for i in range(offset, offset + beats))
            await axi_model.send(ctx, dut.beats, [int.from_bytes(p, "little") for p in parts], rng, stall)

    async def units(ctx):
        busy = [0] * UNITS  # cycles until done
        while True:
            ready = [not busy[u] and unit_rngs[u].random() > stall for u in isa.Unit]
            done = sum((busy[u] == 1) << u for u in isa.Unit)
            for u in isa.Unit:
                ctx.set(dut.insn[u].ready, ready[u])
            ctx.set(dut.done, done)
            ports = [p for u in isa.Unit for p in (dut.insn[u].valid, dut.insn[u].payload)]
            _, _, depend, *sampled = await ctx.tick().sample(dut.stall_depend, *ports)
            log.stalls += depend
            for u in isa.Unit:
                valid, word = sampled[2 * u : 2 * u + 2]
                if valid and ready[u]:
                    insn = isa.decode(word)
                    waits = [getattr(insn, f"wait_{v.name.lower()}") for v in isa.Unit]
                    assert all(have >= want for have, want in zip(log.counts, waits, strict=True)), insn
                    log.started[u].append(insn)
                    if not isinstance(insn, isa.WalkFields):
                        busy[u] = unit_rngs[u].randint(1, 20)
                elif busy[u]:
                    busy[u] -= 1
                    log.counts[u] += busy[u] == 0

    async def start(ctx):
        ctx.set(dut.program, PROGRAM_AT)
        ctx.set(dut.length, len(program) if length is None else length)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)

    return dut, log, start, [dram, units]


@pytest.mark.parametrize("axi_bytes", [8, 16, 64])
def test_program_runs_in_order(axi_model, axi_bytes):
    program = some_program(random.Random(axi_bytes), 60)
    dut, log, start, background = machine(axi_model, axi_bytes, program)

    async def run(ctx):
        for _ in range(2):  # counts restart with every run
            for u in isa.Unit:
                log.started[u].clear()
                log.counts[u] = 0
            await start(ctx)
            assert ctx.get(dut.running)
            (illegal,) = await ctx.tick().sample(dut.illegal).until(dut.finished)
            assert not illegal and not ctx.get(dut.running)
            assert ctx.get(dut.instruction) == len(program)
            for u in isa.Unit:
                assert log.started[u] == [i for i in program if i.unit == u]
                assert ctx.get(dut.counts[u]) == sum(not isinstance(i, isa.WalkFields) for i in log.started[u])

    axi_model.simulate(dut, run, background=background)
    assert log.stalls > 0


@pytest.mark.parametrize(
    "program, length",
    [
        ([], 0),
        ([isa.LoadScales(dram=0, dst=0, count=1), 0x7F], None),
        ([isa.LoadScales(dram=0, dst=0, count=1)], None),
        ([isa.End(), isa.LoadScales(dram=0, dst=0, count=1)], None),
        ([isa.WindowWalk(), isa.End()], None),
    ],
    ids=["empty", "unknown", "no-end", "early-end", "no-window-engine"],
)
def test_wrong_programs_end_as_illegal(axi_model, program, length):
    dut, _, start, background = machine(axi_model, 16, program, length)

    async def run(ctx):
        await start(ctx)
        if not ctx.get(dut.finished):
            await ctx.tick().until(dut.finished & dut.illegal)
        else:
            assert ctx.get(dut.illegal)
            await ctx.tick()
        await ctx.tick()
        assert not ctx.get(dut.running)

    axi_model.simulate(dut, run, background=background, cycles=2000)


def test_fault_halts(axi_model):
    program = [isa.LoadScales(dram=0, dst=0, count=1, wait_store=1), isa.End(wait_load=1)]
    dut, log, start, background = machine(axi_model, 16, program)

    async def run(ctx):
        await start(ctx)
        for _ in range(200):
            await ctx.tick()
        assert ctx.get(dut.running)
        ctx.set(dut.fault, 1)
        (illegal,) = await ctx.tick().sample(dut.illegal).until(dut.finished)
        assert not illegal and not ctx.get(dut.running)

    axi_model.simulate(dut, run, background=background)
    assert not any(log.started)


def test_fetches_only_what_it_can_hold(axi_model):
    """A unit that never takes an instruction does not make the shared reader wait."""
    program = [isa.LoadScales(dram=0, dst=0, count=1, wait_store=1)] * 60 + [isa.End()]
    dut, log, start, background = machine(axi_model, 16, program)

    async def run(ctx):
        await start(ctx)
        for _ in range(600):
            assert ctx.get(dut.beats.ready)
            await ctx.tick()

    axi_model.simulate(dut, run, background=background)
    assert FETCH_QUEUE * 4 <= log.asked < 60 * 4
