import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen import numerics
from hwgen.config import Config
from hwgen.isa import Convert, RowScale
from hwgen.rtl.reader import RowQuantiser, RowReader, constant_table


def simulate(dut, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def interesting_rows(count: int, lanes: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """int16 rows of all magnitudes and their maxima; some maxima are wrong, so that rows saturate."""
    magnitude = 2.0 ** rng.uniform(0, 15, (count, 1))
    rows = np.clip(np.round(rng.uniform(-1, 1, (count, lanes)) * magnitude), -32767, 32767).astype(np.int64)
    rows[0], rows[1], rows[2] = 0, 32767, -32767
    rows[3, ::2], rows[3, 1::2] = 128 * 5, -128 * 5  # halves of a static step
    rows[4], rows[5] = 128, -128  # halves of a row step with an odd factor
    maxima = numerics.row_max_abs(rows)
    maxima[4:6] = 135  # factor 239
    maxima[-5:] = rng.integers(0, 1 << 15, 5)
    return rows, maxima


def keep_lanes(rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.where(np.arange(rows.shape[1]) < valid[:, None], rows, 0)


@pytest.mark.parametrize("inputs", [8, 20])
def test_quantiser(inputs):
    rng = np.random.default_rng(inputs)
    rows, maxima = interesting_rows(500, inputs, rng)
    maxima[10:30] = (1 << np.arange(20) // 2 + 5) - np.arange(20) % 2  # around the powers of two
    valid = rng.integers(1, inputs + 1, len(rows))
    convert = rng.integers(0, 2, len(rows))
    by_row, scale = numerics.quantise_rows(rows, maxima)
    expected = keep_lanes(np.where(convert[:, None] == 1, by_row, numerics.quantise_static(rows)), valid)
    dut = RowQuantiser(Config(array_inputs=inputs))

    async def bench(ctx):
        due, row, checked, cycle = {}, 0, 0, 0
        while checked < len(rows):
            send = row < len(rows) and rng.random() < 0.8
            ctx.set(dut.i_valid, send)
            if send:
                ctx.set(dut.i_data, rows[row].tolist())
                ctx.set(dut.i_scale, int(maxima[row]))
                ctx.set(dut.i_convert, int(convert[row]))
                ctx.set(dut.i_lanes, int(valid[row]))
                due[cycle + dut.LATENCY] = row
                row += 1
            assert ctx.get(dut.o_valid) == (cycle in due)
            if cycle in due:
                i = due[cycle]
                assert list(ctx.get(dut.o_data)) == expected[i].tolist(), (rows[i], maxima[i], convert[i])
                assert ctx.get(dut.o_scale) == scale[i]
                checked += 1
            await ctx.tick()
            cycle += 1

    simulate(dut, bench)


def product_of(config: Config, rows: int, inputs: int, convert: Convert, source: RowScale, scatter: bool, rng) -> list:
    """The stream of (issue, expected int8 row, expected multiplier or None) of one Matmul's x operand."""
    lanes = config.array_inputs
    tiles = -(-inputs // lanes)
    if convert == Convert.PROBABILITY:
        x = rng.integers(-200, 100, (rows, inputs))
        x[0] = 5  # all equal: every probability 127
        if rows > 1:
            x[1] = np.linspace(-32767, 32767, inputs).astype(int)
        table = x.max(axis=1)
        table[2::3] += rng.integers(-150, 150, len(table[2::3]))  # wrong maxima: sums below 127, negative distances
        x[-1] = 0  # a long row of equal scores
        table[-1] = 0
        operand = numerics.probabilities(x, table)
        converted, exponents = numerics.reciprocal(operand.sum(axis=1))
    else:
        x, table = interesting_rows(max(rows, 8), inputs, rng)
        x, table = x[-rows:], table[-rows:]
        operand, converted = numerics.quantise_rows(x, table)
        if convert == Convert.STATIC:
            operand = numerics.quantise_static(x)
    if convert != Convert.PROBABILITY or source != RowScale.CONVERTED:
        exponents = np.zeros(rows, np.int64)
    immediate, gates = int(rng.integers(1 << 16)), rng.integers(0, (1 << numerics.GATE_BITS) + 1, rows)
    mult = {RowScale.IMMEDIATE: np.full(rows, immediate), RowScale.CONVERTED: converted, RowScale.TABLE: table}[source]
    mult = mult & 0xFFFF
    if scatter:
        mult = numerics.gated_scale(mult, gates)
    stream = []
    for tile in range(tiles):
        begin, end = tile * lanes, min((tile + 1) * lanes, inputs)
        for r in range(rows):
            word = rng.integers(-(1 << 15), 1 << 15, lanes)  # what lies beyond the row is garbage
            word[: end - begin] = x[r, begin:end]
            answer = np.zeros(lanes, np.int64)
            answer[: end - begin] = operand[r, begin:end]
            meta = {
                "convert": int(convert),
                "lanes": end - begin,
                "first": int(tile == 0),
                "last": int(tile == tiles - 1),
                "row": r,
                "row_source": int(source),
                "row_mult": immediate,
                "scatter": int(scatter),
                "gate": int(gates[r]),
            }
            counts = convert != Convert.PROBABILITY or source != RowScale.CONVERTED or tile == tiles - 1
            stream.append(
                (word.tolist(), int(table[r]) & 0xFFFF, meta, answer.tolist(), (int(mult[r]), exponents[r]) if counts else None)
            )
        # The row issuer never lets a row come back too early.
        stream += [None] * max(0, RowReader.ACC_GAP - rows)
    return stream


@pytest.mark.parametrize("inputs,outputs", [(8, 8), (20, 12)])
def test_reader(inputs, outputs):
    config = Config(array_inputs=inputs, array_outputs=outputs, acc_rows=16)
    rng = np.random.default_rng(inputs)
    stream = []
    for rows, columns in ((1, 3 * inputs), (4, 3 * inputs + 1), (16, 2 * inputs), (12, inputs - 1), (2, 1)):
        for convert in Convert:
            source = RowScale.CONVERTED if convert else RowScale.IMMEDIATE
            stream += product_of(config, rows, columns, convert, source, bool(rng.integers(2)), rng)
    stream += product_of(config, 5, inputs, Convert.PROBABILITY, RowScale.CONVERTED, False, rng)
    stream += product_of(config, 5, inputs, Convert.ROW, RowScale.TABLE, True, rng)
    stream += product_of(config, 5, inputs, Convert.STATIC, RowScale.TABLE, False, rng)
    stream += product_of(config, 4, 2 * inputs, Convert.PROBABILITY, RowScale.IMMEDIATE, True, rng)
    dut = RowReader(config)

    async def bench(ctx):
        data_due, mult_due, position, cycle = {}, {}, 0, 0
        while position < len(stream) or mult_due:
            item = None
            if position < len(stream) and rng.random() < 0.9:
                item = stream[position]
                position += 1
            ctx.set(dut.i_valid, item is not None)
            if item is not None:
                word, scale, meta, answer, mult = item
                ctx.set(dut.i_data, word)
                ctx.set(dut.i_scale, scale)
                ctx.set(dut.i_meta, meta)
                data_due[cycle + dut.LATENCY] = answer, meta
                mult_due[cycle + dut.ROW_MULT_LATENCY] = mult, meta
            if cycle in data_due:
                answer, meta = data_due.pop(cycle)
                assert list(ctx.get(dut.o_data)) == answer, meta
            if cycle in mult_due:
                mult, meta = mult_due.pop(cycle)
                assert mult is None or (ctx.get(dut.o_row_mult), ctx.get(dut.o_row_shift)) == mult, meta
            await ctx.tick()
            cycle += 1

    simulate(dut, bench)


@pytest.mark.parametrize("bits", [3, 6, 7])
def test_constant_table(bits):
    from amaranth.hdl import Module, Signal

    values = np.random.default_rng(bits).integers(0, 1 << 9, 1 << bits).tolist()
    m, index, result = Module(), Signal(bits), Signal(9)
    m.d.comb += result.eq(constant_table(values, index, 9))

    async def bench(ctx):
        for i, value in enumerate(values):
            ctx.set(index, i)
            assert ctx.get(result) == value

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
