"""Products on the columns that have weight alone change no bit, and are made where they save steps of the array."""

from dataclasses import replace

import numpy as np
import pytest

import map_maker as maker
import test_machine as machine
from hwgen.intgraph import Buffer, Constant, Input, IntGraph, MatMul, Output, View
from hwgen.intgraph_checks import verify
from hwgen.isa import ColScale, Convert, RowMax
from hwgen.mapping import Mapping
from hwgen.mapping.columns import used_columns
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Builder, Shape, random_images

CONFIG = machine.CONFIGS["12x20"]
COLUMNS = 80


def picking(convert: Convert, used: tuple[int, int], groups: int = 1) -> IntGraph:
    """A product of tokens of COLUMNS columns of which those between `used` have weight."""
    b = Builder(0, Shape(), "")
    pixels, x, y = b.buffer("pixels", 9, 12), b.buffer("x", 9, COLUMNS, groups), b.buffer("y", 9, 7)
    b.result.ops.append(Input("input", pixels, "image", (3, 6, 6), (3, 2, 2), 0.02, 0.1))
    b.matmul("stem", x, pixels, b.weights(COLUMNS, 12), row_max=RowMax.ABS)
    weights = b.weights(7, COLUMNS)
    weights[:, : used[0]] = weights[:, used[1] :] = 0
    fields = b.row_converted() if convert == Convert.ROW else {}
    b.matmul("pick", y, x, weights, **fields)
    b.result.outputs.append(Output("y", y, 1 / 1024, (9, 7)))
    return b.result


@pytest.mark.parametrize("convert", [Convert.STATIC, Convert.ROW])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("used", [(0, 9), (23, 41), (70, COLUMNS)])
def test_no_bit_changes(convert, groups, used):
    graph = picking(convert, used, groups)
    made = used_columns(graph, CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs)
    verify(made)
    (op,) = (op for op in made.ops if op.name == "pick")
    assert isinstance(op, MatMul) and op.x.cols < COLUMNS and op.x.col <= used[0] and used[1] <= op.x.col + op.x.cols
    images = random_images(graph, 1)
    wanted = golden.run(graph, images).outputs
    machine.assert_equal(golden.run(made, images).outputs, wanted)
    for mapping in (Mapping(), Mapping(spill=0.01)):  # maxima of rows in DRAM are those of all columns
        mapped = mapping.apply(graph, CONFIG, 1)
        assert all(op.x.cols < COLUMNS for op in mapped.ops if isinstance(op, MatMul) and op.name.startswith("pick"))
        machine.assert_equal(machine.run(schedule({"": mapped}, CONFIG), images), wanted)


@pytest.mark.parametrize("convert", [Convert.STATIC, Convert.ROW])
def test_outputs_that_use_other_columns_each(convert):
    """Groups of channels: the outputs of a step of the array meet the columns of their groups alone; maxima go on from part to
    part, and what is added is added once."""
    b = Builder(0, Shape(), "")
    pixels, x, y, z = (b.buffer(n, 9, c) for n, c in (("pixels", 12), ("x", COLUMNS), ("y", COLUMNS), ("z", 7)))
    b.result.ops.append(Input("input", pixels, "image", (3, 6, 6), (3, 2, 2), 0.02, 0.1))
    b.matmul("stem", x, pixels, b.weights(COLUMNS, 12), row_max=RowMax.ABS)
    b.matmul("before", y, pixels, b.weights(COLUMNS, 12))
    group = np.arange(COLUMNS) // 8
    weights = b.weights(COLUMNS, COLUMNS) * (group[:, None] == group)
    fields = b.row_converted() if convert == Convert.ROW else {}
    b.matmul("groups", y, x, weights.astype(np.int8), residual=y, row_max=RowMax.ABS, **fields)
    b.matmul("behind", z, y, b.weights(7, COLUMNS), **b.row_converted())
    graph = b.result
    graph.outputs.append(Output("z", z, 1 / 1024, (9, 7)))
    made = used_columns(graph, CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs)
    verify(made)
    parts = [op for op in made.ops if op.name.startswith("groups")]
    assert len(parts) == -(-COLUMNS // CONFIG.array_outputs) and all(op.x.cols <= CONFIG.array_inputs for op in parts)
    images = random_images(graph, 1)
    wanted = golden.run(graph, images).outputs
    for mapping in (Mapping(), Mapping(row_tiles=2), Mapping(spill=0.01)):
        mapped = mapping.apply(graph, CONFIG, 1)
        machine.assert_equal(machine.run(schedule({"": mapped}, CONFIG), images), wanted)


def test_groups_of_a_convolution_with_taps():
    m = maker.Maker((4, 5), columns=48)
    y = m.conv(m.act(m.linear("patches")), inputs=48)
    weight = m.nodes[-1].weight
    group = np.arange(48) // 12
    weight *= (group[:, None] == group)[:, None, None]
    images = maker.images(graph := m.graph(m.linear(y)), 2)
    graph = select(quantise({"": graph}, images)[""])
    image = {name: values[0] for name, values in images.items()}
    config = replace(CONFIG, window_chunks=1)
    mapped = Mapping().apply(graph, config, 1)
    parts = [op for op in mapped.ops if isinstance(op, MatMul) and op.walk is not None]
    assert len(parts) == 4 and all(op.x.cols == 12 for op in parts)
    machine.assert_equal(machine.run(schedule({"": mapped}, config), image), golden.run(graph, image).outputs)


@pytest.mark.parametrize("used", [(0, 9), (23, 41), (70, COLUMNS)])
def test_rows_of_weights_that_stream_against_tokens(used):
    """A head turned round: rows of the identity against tokens of which all heads stand side by side."""
    graph = picking(Convert.STATIC, (0, COLUMNS))
    data = np.zeros((7, COLUMNS), np.int16)
    data[:, used[0] : used[1]] = np.random.default_rng(0).integers(-127, 128, (7, used[1] - used[0])) * 256
    table, turned = View("table", 0, 7, 0, COLUMNS), View("turned", 0, 7, 0, 9)
    graph.buffers |= {"table": Buffer("table", 7, COLUMNS), "turned": Buffer("turned", 7, 9)}
    fields = {"w_convert": Convert.ROW, "col_scale": ColScale.ROW_SCALES, "row_mult": 1 << 14}
    graph.ops += [Constant("table", table, data), MatMul("turn", turned, table, View("x", 0, 9, 0, COLUMNS), shift=20, **fields)]
    graph.outputs.append(Output("turned", turned, 1 / 1024, (7, 9)))
    made = used_columns(graph, CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs)
    verify(made)
    (op,) = (op for op in made.ops if op.name == "turn")
    assert op.x.cols == op.w.cols < COLUMNS and op.x.col == 0 and op.w.col <= used[0]
    images = random_images(graph, 1)
    wanted = golden.run(graph, images).outputs
    assert wanted["turned"].any()
    machine.assert_equal(machine.run(schedule({"": Mapping().apply(graph, CONFIG, 1)}, CONFIG), images), wanted)


def test_a_table_that_is_a_residual_too_stays():
    graph = picking(Convert.STATIC, (0, COLUMNS))
    data = np.zeros((7, COLUMNS), np.int16)
    data[:, 23:41] = 256
    table, turned = View("table", 0, 7, 0, COLUMNS), View("turned", 0, 7, 0, 9)
    graph.buffers |= {"table": Buffer("table", 7, COLUMNS), "turned": Buffer("turned", 7, 9)}
    fields = {"w_convert": Convert.ROW, "col_scale": ColScale.ROW_SCALES, "row_mult": 1 << 14, "shift": 20}
    turn = MatMul("turn", turned, table, View("x", 0, 9, 0, COLUMNS), **fields)
    graph.ops += [Constant("table", table, data), turn]
    graph.outputs.append(Output("turned", turned, 1 / 1024, (7, 9)))
    assert used_columns(graph, CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs).ops != graph.ops
    graph.ops[-1] = replace(turn, residual=View("table", 0, 7, 30, 9))
    verify(graph)
    assert used_columns(graph, CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs).ops == graph.ops


def test_what_saves_nothing_stays():
    """Weights in all steps of the array; sums of a whole row; columns that do not lie as one."""
    for graph in (picking(Convert.ROW, (0, COLUMNS)), picking(Convert.ROW, (10, 75))):
        assert used_columns(graph, CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs).ops == graph.ops
    graph = picking(Convert.ROW, (0, 9))
    sums = [replace(op, x_convert=Convert.PROBABILITY) if op.name == "pick" else op for op in graph.ops]
    assert used_columns(replace(graph, ops=sums), CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs).ops == sums
    narrow = replace(graph, buffers=graph.buffers | {"x": Buffer("x", 9, COLUMNS, 16)})  # five columns lie with a gap
    assert used_columns(narrow, CONFIG.chunk, CONFIG.array_inputs, CONFIG.array_outputs).ops == graph.ops
    assert View("x", 0, 9, 0, COLUMNS) == next(op.x for op in graph.ops if op.name == "pick")
