# amaranth: UnusedElaboratable=no
"""The core against the machine model: random products of every kind while weights and instructions come haltingly."""

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.isa import Border, ColScale, Convert, Indirect, RowMax, RowScale
from hwgen.rtl.core import Core
from hwgen.rtl.ports import READ_LATENCY
from hwgen.sim import vector
from hwgen.sim.machine import Machine
from hwgen.walks import Plane, Walk

CONFIG = Config(
    array_outputs=8, array_inputs=8, banks=2, bank_words=256, acc_rows=8, scale_entries=256, queue_entries=32,
    norm_columns=16, weight_words=64, weight_ports=1, max_experts=4,
)  # fmt: skip
ROWS, COLUMNS = 5, 20  # most rows, and most elements of a row, of every operand
X_ROWS = 8  # that a walk may read
CHUNKS = -(-COLUMNS // CONFIG.chunk)
X, W, RES, LOGITS, NORM, DENSE, PARAMS, Y = 0, 32, 96, 120, 128, 148, 150, 160  # chunks
ABS, SIGNED, TABLE, W_SCALE, NORM_SCALE, Y_SCALE = 0, 8, 16, 24, 48, 56  # entries of the scale memory
BATCH = 7  # products on their way at once: each writes to its own place
EXPERTS = (4, 2, 1)  # of the route before each batch: with 4 some queue is empty, with 1 one has all tokens


@dataclass
class Step:
    """What the core is given at once: when all `vector` instructions but the last have finished, the rest."""

    vector: list[isa.Insn] = field(default_factory=list)
    products: list[isa.Insn] = field(default_factory=list)  # Matmuls, walks before some of them
    words: list[list[int]] = field(default_factory=list)


def filled(rng) -> Machine:
    """A machine with random operands, their maxima in the scale memory."""
    machine = Machine(CONFIG)
    machine.scratch[:] = rng.integers(-32767, 32768, machine.scratch.size) >> rng.integers(0, 8, machine.scratch.size)
    machine.scale[:] = rng.integers(0, 1 << 16, machine.scale.size)
    for base, scales, rows in ((X, ABS, X_ROWS), (W, W_SCALE, COLUMNS)):
        data = machine.scratch[machine.rows(base, CHUNKS, np.arange(rows), CHUNKS * CONFIG.chunk)].astype(int)
        machine.scale[scales : scales + rows] = np.abs(data).max(axis=1)
        if base == X:
            machine.scale[SIGNED : SIGNED + rows] = data.max(axis=1) & 0xFFFF
    return machine


def product(place: int, **fields) -> isa.Matmul:
    """A Matmul from X into place number `place`."""
    common = {"x": X, "x_pitch": CHUNKS, "y": Y + place * ROWS * CHUNKS, "y_pitch": CHUNKS, "y_scale": Y_SCALE + place * ROWS}
    return isa.Matmul(**common | {"shift": 16, "row_mult": 1 << 14, "x_scale": TABLE} | fields)


def random_walk(rng, insn: isa.Matmul) -> tuple[isa.MatmulWalk, isa.Matmul]:
    """A walk within ROWS rows for a Matmul without queue, and that Matmul with as many rows as the walk."""
    loops = ((2, 2), (2, 2), (1, 4), (1, 2, 2), (5,), (1, 1, 3, 1), (2, 1, 1, 2))[rng.integers(7)]
    insn = replace(insn, expert=isa.NO_EXPERT, indirect=Indirect.NONE, discard=0)
    if rng.integers(2):  # one that may have taps
        insn = replace(insn, x_convert=Convert.STATIC, x_scale=TABLE, row_source=RowScale.IMMEDIATE)
        insn = replace(insn, w_source=isa.WeightSource.STREAM, w_convert=Convert.STATIC, col_source=ColScale.PARAMETERS)
    taps = insn.x_convert == Convert.STATIC and insn.w_source == isa.WeightSource.STREAM and rng.integers(3)
    taps = taps and insn.row_source == RowScale.IMMEDIATE
    kernel = tuple(int(n) for n in rng.integers(1, 4, 2)) if taps else (1, 1)
    count = int(np.prod(loops))
    y = rng.integers(2)  # upwards or downwards
    strides = [int(np.prod(loops[k + 1 :])) for k in range(len(loops))]
    walk = Walk(loops, (0,) * len(loops), tuple(s * (1 - 2 * int(y)) for s in strides), y_start=int(y) * (ROWS - 1))
    border = Border(rng.integers(4))
    map_rows = (2, 2)
    u, v = (tuple(int(n) for n in rng.integers(-1, 2, len(loops))) for _ in range(2))
    if border == Border.ZERO:  # any rows of a small map, most of them outside
        starts = [int(n) for n in rng.integers(-1, 2, 2)]
        dilation = tuple(int(n) for n in rng.integers(0, 3, 2))
        plane = Plane(*map_rows, border, *starts, u, v)
        x = tuple(a * map_rows[1] + b for a, b in zip(u, v, strict=True))
        taps_at = dilation[0] * map_rows[1], dilation[1]
        walk = replace(walk, x=x, x_start=starts[0] * map_rows[1] + starts[1], plane=plane, taps=taps_at, dilation=dilation)
    elif border != Border.NONE and loops == (2, 2):  # a map of two by two, rolled
        starts = [int(n) for n in rng.integers(0, 2, 2)]
        plane = Plane(*map_rows, border, *starts, (1, 0), (0, 1))
        start = starts[0] * map_rows[1] + starts[1]
        if border == Border.WRAP_X:
            walk = replace(walk, x=(2, 1), x_start=start, plane=plane)
        else:
            walk = replace(walk, x=(2, 1), y=(2, 1), y_start=start, plane=plane, taps=(1, 0))
        kernel = (1, 1) if border == Border.WRAP_X else (min(kernel[0], 2), kernel[1])
        walk = replace(walk, dilation=(1, 1))  # which leaves the output rows where they are
    else:
        walk = replace(walk, x=tuple(int(n) for n in rng.integers(0, 2, len(loops))))
        kernel = (min(kernel[0], 2), min(kernel[1], 2))
    walk = replace(walk, kernel=kernel)
    assert walk.x_rows().max() < X_ROWS and set(walk.y_rows()) <= set(range(ROWS))
    return isa.MatmulWalk(**walk.fields()), replace(insn, rows=count, max_continue=0)


def random_product(rng, place: int, previous: isa.Matmul | None, sources: list[isa.Matmul]) -> isa.Matmul:
    """A Matmul of any kind; half of them read what an earlier batch has left, with its maxima."""
    convert = Convert(rng.integers(3))
    fields = {
        "rows": int(rng.integers(1, ROWS + 1)),
        "inputs": int(rng.integers(1, COLUMNS + 1)),
        "outputs": int(rng.integers(1, COLUMNS + 1)),
        "x_convert": convert,
        "x_scale": {Convert.STATIC: TABLE, Convert.ROW: ABS, Convert.PROBABILITY: SIGNED}[convert],
        "row_source": (RowScale.IMMEDIATE, RowScale.CONVERTED if convert else RowScale.TABLE)[rng.integers(2)],
        "row_mult": int(rng.integers(1 << 16)),
        "col_mult": int(rng.integers(1 << 16)),
        "shift": int(rng.integers(10, 30)),
        "gelu": isa.Gelu(rng.integers(len(isa.Gelu))),
        "gelu_shift": int(rng.integers(7)),
        "residual": int(rng.integers(2)),
        "res": RES,
        "res_pitch": CHUNKS,
        "y_max": RowMax(rng.integers(3)),
    }
    columns = [ColScale.PARAMETERS, ColScale.IMMEDIATE]
    if rng.integers(2):
        fields |= {"w_source": isa.WeightSource.SCRATCHPAD, "w": W, "w_pitch": CHUNKS, "w_scale": W_SCALE}
        fields["w_convert"] = Convert(rng.integers(2))
        if fields["w_convert"] == Convert.ROW:
            columns.append(ColScale.ROW_SCALES)
    fields["col_source"] = columns[rng.integers(len(columns))]
    if sources and rng.integers(2):
        source = sources[rng.integers(len(sources))]
        convert = Convert.ROW if source.y_max == RowMax.ABS else Convert.PROBABILITY
        fields |= {"x": source.y, "x_convert": convert, "x_scale": source.y_scale, "row_source": RowScale.CONVERTED}
        fields |= {"rows": int(rng.integers(1, source.rows + 1)), "inputs": int(rng.integers(1, source.outputs + 1))}
    elif rng.integers(2):
        fields |= {"expert": int(rng.integers(4)), "indirect": Indirect(rng.integers(1, 3))}
        if "w_source" not in fields:
            fields["discard"] = int(rng.integers(2))
        if fields["indirect"] == Indirect.SCATTER:
            fields["y_max"] = RowMax.NONE
    elif previous and previous.expert == isa.NO_EXPERT and previous.y_max == fields["y_max"] != RowMax.NONE:
        fields |= {"max_continue": 1, "rows": previous.rows}
    return product(place, **fields)


def applied(rng, machine: Machine, insn: isa.Matmul, walk: isa.MatmulWalk | None = None) -> list[list[int]]:
    """Apply a product to the machine; the weight words that it pops."""
    words = rng.integers(0, 256, (machine.words_needed(insn, walk), CONFIG.array_inputs)).astype(np.uint8)
    words[words == 128] = 0  # no weight is -128
    write(machine.matmul(insn, words, walk))
    return words.view(np.int8).tolist()


def write(writes) -> None:
    for memory, index, values in writes:
        memory[index] = values


def simulate(axi_model, elaborated_unit, machine: Machine, scratch, scale, steps: list[Step], stalls: random.Random) -> None:
    """The core from `scratch` and `scale` through the steps; it must end with the machine's scratchpad."""
    simulation = elaborated_unit(Core, CONFIG, 1e-8)
    dut, chunk = simulation.dut, CONFIG.chunk
    finished = {"matmul": 0, "vector": 0}
    words: tuple[list, list] = [], []  # still to be offered on each of the two streams

    async def count(ctx):
        while True:
            _, _, matmul, vector = await ctx.tick().sample(dut.matmul_done, dut.vector_done)
            finished["matmul"] += matmul
            finished["vector"] += vector

    def stream(k: int):
        async def offer(ctx):
            while True:
                if words[k]:
                    await axi_model.send(ctx, dut.words[k], [words[k][0]], stalls)
                    del words[k][0]
                else:
                    await ctx.tick()

        return offer

    async def load(ctx):
        rows = scratch.reshape(-1, chunk).tolist()
        ctx.set(dut.wr_load.mask, 1)
        for port, contents in ((dut.wr_load, rows), (dut.wr_scale, scale.tolist())):
            ctx.set(port.valid, 1)
            for address, value in enumerate(contents):
                ctx.set(port.addr, address)
                ctx.set(port.data, value)
                await ctx.tick()
            ctx.set(port.valid, 0)

    async def check(ctx):
        found = b""
        ctx.set(dut.rd_store.valid, 1)
        for cycle in range(CONFIG.scratch_chunks + READ_LATENCY):
            ctx.set(dut.rd_store.addr, min(cycle, CONFIG.scratch_chunks - 1))
            if cycle >= READ_LATENCY:
                found += ctx.get(dut.rd_store.data.as_value()).to_bytes(2 * chunk, "little")
            await ctx.tick()
        np.testing.assert_array_equal(np.frombuffer(found, "<i2"), machine.scratch)

    async def process(ctx):
        await load(ctx)
        wanted, sent = {"matmul": 0, "vector": 0}, 0

        async def give(port, unit, insns):
            wanted[unit] += sum(not isinstance(insn, isa.WalkFields) for insn in insns)
            await axi_model.send(ctx, port, [isa.encode(insn) for insn in insns], stalls)

        async def wait():
            while finished != wanted or any(words):  # words of an empty queue may be dropped later than it has finished
                await ctx.tick()

        for step in steps:
            await give(dut.vector_insn, "vector", step.vector[:-1])
            await wait()
            for word in step.words:
                words[sent % 2].append(word)
                sent += 1
            await give(dut.vector_insn, "vector", step.vector[-1:])
            await give(dut.matmul_insn, "matmul", step.products)
            await wait()
        await check(ctx)

    beside = count, stream(0), stream(1), axi_model.deadline()
    simulation.run((process, False), *((bench, True) for bench in beside))


def test_products(axi_model, elaborated_unit):
    """Batches of products between routes; a norm runs beside them and contends for the scratchpad."""
    rng = np.random.default_rng(7)
    machine = filled(rng)
    scratch, scale = machine.scratch.copy(), machine.scale.copy()
    route = {"rows": ROWS, "top_k": 1, "renormalise": 0, "dense": 1, "x": LOGITS, "x_pitch": 1, "y": DENSE, "y_pitch": 0}
    norm = isa.Norm(
        rows=3, columns=13, x=RES, x_pitch=CHUNKS, y=NORM, y_pitch=2, y_scale=NORM_SCALE, params=PARAMS, epsilon=5
    )
    steps, done = [], []
    for experts in EXPERTS:
        step = Step([isa.Route(experts=experts, **route), norm])
        writes, machine.queues = vector.route(machine, step.vector[0])
        write([*writes, *vector.norm(machine, norm)])
        sources = [insn for insn in done if insn.y_max != RowMax.NONE and insn.expert == isa.NO_EXPERT]
        for place in range(len(done), len(done) + BATCH):
            insn = random_product(rng, place, step.products[-1] if step.products else None, sources)
            step.words += applied(rng, machine, insn)
            step.products.append(insn)
        steps.append(step)
        done += step.products
    kinds = {(insn.x_convert, insn.w_source, insn.col_source, insn.indirect) for insn in done}
    assert len(kinds) > BATCH and any(insn.x >= Y for insn in done)
    simulate(axi_model, elaborated_unit, machine, scratch, scale, steps, random.Random(8))


@pytest.mark.parametrize("seed", [8, 24])
def test_walks(axi_model, elaborated_unit, seed):
    """Products with walks of every kind among others without."""
    rng = np.random.default_rng(seed)
    machine = filled(rng)
    scratch, scale = machine.scratch.copy(), machine.scale.copy()
    step = Step()
    for place in range(2 * BATCH):
        walk, insn = None, random_product(rng, place, None, [])
        if rng.integers(4):
            walk, insn = random_walk(rng, insn)
            step.products.append(walk)
        step.words += applied(rng, machine, insn, walk)
        step.products.append(insn)
    walks = [insn for insn in step.products if isinstance(insn, isa.MatmulWalk)]
    assert {insn.border for insn in walks} == set(Border) and sum(insn.kernel_u * insn.kernel_v > 1 for insn in walks) > 2
    simulate(axi_model, elaborated_unit, machine, scratch, scale, [step], random.Random(seed))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiles_of_one_column(axi_model, elaborated_unit, rows):
    """They load in three cycles, faster than the accumulator takes the same row again."""
    rng = np.random.default_rng(rows)
    machine = filled(rng)
    scratch, scale = machine.scratch.copy(), machine.scale.copy()
    step = Step(products=[product(0, rows=rows, inputs=COLUMNS, outputs=1)])
    step.words = applied(rng, machine, step.products[0])
    simulate(axi_model, elaborated_unit, machine, scratch, scale, [step], random.Random(rows))
