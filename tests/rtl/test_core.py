# amaranth: UnusedElaboratable=no
"""The core against the machine model: random products of every kind while weights and instructions come haltingly."""

import random

import numpy as np

from hwgen import isa
from hwgen.config import Config
from hwgen.intgraph import ColScale, Convert, Indirect, RowMax, RowScale
from hwgen.rtl.core import Core
from hwgen.rtl.ports import READ_LATENCY
from sim.machine import Machine

CONFIG = Config(
    array_outputs=8, array_inputs=8, banks=2, bank_words=256, acc_rows=8, scale_entries=256, queue_entries=32,
    norm_columns=16, weight_words=64, weight_ports=1, max_experts=4,
)  # fmt: skip
ROWS, COLUMNS = 5, 20  # most rows, and most elements of a row, of every operand
CHUNKS = -(-COLUMNS // CONFIG.chunk)
X, W, RES, LOGITS, NORM, PARAMS, Y = 0, 32, 96, 120, 128, 150, 160  # chunks
ABS, SIGNED, TABLE, W_SCALE, NORM_SCALE, Y_SCALE = 0, 8, 16, 24, 48, 56  # entries of the scale memory
BATCH = 7  # products on their way at once: each writes to its own place
EXPERTS = (4, 2, 1)  # of the route before each batch: with 4 some queue is empty, with 1 one has all tokens


def filled(rng) -> Machine:
    """A machine with random operands, their maxima in the scale memory."""
    machine = Machine(CONFIG)
    machine.scratch[:] = rng.integers(-32767, 32768, machine.scratch.size) >> rng.integers(0, 8, machine.scratch.size)
    machine.scale[:] = rng.integers(0, 1 << 16, machine.scale.size)
    for base, scales, rows in ((X, ABS, ROWS), (W, W_SCALE, COLUMNS)):
        data = machine.scratch[machine.rows(base, CHUNKS, np.arange(rows), CHUNKS * CONFIG.chunk)].astype(int)
        machine.scale[scales : scales + rows] = np.abs(data).max(axis=1)
        if base == X:
            machine.scale[SIGNED : SIGNED + rows] = data.max(axis=1) & 0xFFFF
    return machine


def random_product(rng, place: int, previous: isa.Matmul | None, sources: list[isa.Matmul]) -> isa.Matmul:
    """A Matmul of any kind into place number `place`; half of them read what an earlier batch has left, with its maxima."""
    convert = Convert(rng.integers(3))
    rows = int(rng.integers(1, ROWS + 1))
    fields = {
        "rows": rows,
        "inputs": int(rng.integers(1, COLUMNS + 1)),
        "outputs": int(rng.integers(1, COLUMNS + 1)),
        "x": X,
        "x_pitch": CHUNKS,
        "x_convert": convert,
        "x_scale": {Convert.STATIC: TABLE, Convert.ROW: ABS, Convert.PROBABILITY: SIGNED}[convert],
        "row_source": (RowScale.IMMEDIATE, RowScale.CONVERTED if convert else RowScale.TABLE)[rng.integers(2)],
        "row_mult": int(rng.integers(1 << 16)),
        "col_mult": int(rng.integers(1 << 16)),
        "shift": int(rng.integers(10, 30)),
        "gelu": isa.Gelu(rng.integers(3)),
        "gelu_shift": int(rng.integers(7)),
        "residual": int(rng.integers(2)),
        "res": RES,
        "res_pitch": CHUNKS,
        "y": Y + place * ROWS * CHUNKS,
        "y_pitch": CHUNKS,
        "y_scale": Y_SCALE + place * ROWS,
        "y_max": RowMax(rng.integers(3)),
    }
    if rng.integers(2):
        w_convert = Convert(rng.integers(2))
        fields |= {"w_source": isa.WeightSource.SCRATCHPAD, "w": W, "w_pitch": CHUNKS, "w_scale": W_SCALE}
        fields |= {"w_convert": w_convert}
    columns = [ColScale.PARAMETERS, ColScale.IMMEDIATE]
    if fields.get("w_convert") == Convert.ROW:
        columns.append(ColScale.ROW_SCALES)
    fields["col_source"] = columns[rng.integers(len(columns))]
    if sources and rng.integers(2):
        source = sources[rng.integers(len(sources))]
        convert = Convert.ROW if source.y_max == RowMax.ABS else Convert.PROBABILITY
        fields |= {"x": source.y, "x_convert": convert, "x_scale": source.y_scale, "row_source": RowScale.CONVERTED}
        fields |= {"rows": int(rng.integers(1, source.rows + 1)), "inputs": int(rng.integers(1, source.outputs + 1))}
    elif rng.integers(2):
        fields |= {"expert": int(rng.integers(4)), "indirect": Indirect(rng.integers(1, 3)), "discard": int(rng.integers(2))}
        if fields["indirect"] == Indirect.SCATTER:
            fields["y_max"] = RowMax.NONE
    elif previous and previous.expert == isa.NO_EXPERT and previous.y_max == fields["y_max"] != RowMax.NONE:
        fields |= {"max_continue": 1, "rows": previous.rows}
    return isa.Matmul(**fields)


def batch(rng, machine: Machine, number: int, sources: list[isa.Matmul]) -> tuple[list[isa.Matmul], np.ndarray]:
    """Products, applied to the machine, and the weight words that they pop."""
    products, words = [], []
    for place in range(number * BATCH, (number + 1) * BATCH):
        insn = random_product(rng, place, products[-1] if products else None, sources)
        popped = rng.integers(0, 256, (machine.words_needed(insn), CONFIG.array_inputs)).astype(np.uint8)
        popped[popped == 128] = 0  # no weight is -128
        for memory, index, values in machine.matmul(insn, popped):
            memory[index] = values
        products.append(insn)
        words.append(popped)
    return products, np.concatenate(words)


def test_products(axi_model):
    """Batches of products between routes; a norm runs beside them and contends for the scratchpad."""
    rng, stalls = np.random.default_rng(7), random.Random(8)
    dut, machine = Core(CONFIG), filled(rng)
    chunk_bytes = 2 * CONFIG.chunk
    finished = {"matmul": 0, "vector": 0}
    words: list[list[int]] = []  # still to be offered

    async def count(ctx):
        while True:
            _, _, matmul, vector = await ctx.tick().sample(dut.matmul_done, dut.vector_done)
            finished["matmul"] += matmul
            finished["vector"] += vector

    async def stream(ctx):
        while True:
            if words:
                await axi_model.send(ctx, dut.words, [words.pop(0)], stalls)
            else:
                await ctx.tick()

    async def load(ctx):
        ctx.set(dut.wr_load.valid, 1)
        ctx.set(dut.wr_load.mask, 1)
        for address in range(CONFIG.scratch_chunks):
            ctx.set(dut.wr_load.addr, address)
            ctx.set(dut.wr_load.data, machine.scratch[address * CONFIG.chunk :][: CONFIG.chunk].tolist())
            await ctx.tick()
        ctx.set(dut.wr_load.valid, 0)
        ctx.set(dut.wr_scale.valid, 1)
        for address, value in enumerate(machine.scale.tolist()):
            ctx.set(dut.wr_scale.addr, address)
            ctx.set(dut.wr_scale.data, value)
            await ctx.tick()
        ctx.set(dut.wr_scale.valid, 0)

    async def check(ctx):
        """The whole scratchpad, one chunk a cycle."""
        ctx.set(dut.rd_store.valid, 1)
        found = b""
        for cycle in range(CONFIG.scratch_chunks + READ_LATENCY):
            ctx.set(dut.rd_store.addr, min(cycle, CONFIG.scratch_chunks - 1))
            if cycle >= READ_LATENCY:
                found += ctx.get(dut.rd_store.data.as_value()).to_bytes(chunk_bytes, "little")
            await ctx.tick()
        ctx.set(dut.rd_store.valid, 0)
        np.testing.assert_array_equal(np.frombuffer(found, "<i2"), machine.scratch)

    async def until(ctx, unit, total):
        while finished[unit] < total:
            await ctx.tick()

    async def process(ctx):
        await load(ctx)
        vectors = 0
        done: list[isa.Matmul] = []
        for number, experts in enumerate(EXPERTS):
            route = isa.Route(
                rows=ROWS, experts=experts, top_k=1, renormalise=0, dense=1, x=LOGITS, x_pitch=1, y=NORM + 20, y_pitch=0
            )
            writes, machine.queues = machine.route(route)
            norm = isa.Norm(rows=3, columns=13, x=RES, x_pitch=3, y=NORM, y_pitch=2, y_scale=NORM_SCALE, params=PARAMS, epsilon=5)
            for memory, index, values in [*writes, *machine.norm(norm)]:
                memory[index] = values
            await axi_model.send(ctx, dut.vector_insn, [isa.encode(route)], stalls)
            vectors += 1
            await until(ctx, "vector", vectors)
            sources = [insn for insn in done if insn.y_max != RowMax.NONE and insn.expert == isa.NO_EXPERT]
            products, popped = batch(rng, machine, number, sources)
            words.extend(popped.view(np.int8).tolist())
            await axi_model.send(ctx, dut.vector_insn, [isa.encode(norm)], stalls)
            await axi_model.send(ctx, dut.matmul_insn, [isa.encode(insn) for insn in products], stalls)
            done, vectors = done + products, vectors + 1
            await until(ctx, "matmul", len(done))
            await until(ctx, "vector", vectors)
            assert not words
        await check(ctx)
        kinds = {(insn.x_convert, insn.w_source, insn.col_source, insn.indirect) for insn in done}
        assert len(kinds) > BATCH and any(insn.x >= Y for insn in done)

    axi_model.simulate(dut, process, background=[count, stream])
