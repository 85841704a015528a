"""Blocks of windows change no bit, and a map's attention finds room where all windows together do not."""

from dataclasses import replace

import numpy as np
import pytest

import map_maker as maker
import test_machine as machine
from hwgen import cost, mapping
from hwgen import graph as fg
from hwgen.config import Config
from hwgen.dram import Dram
from hwgen.errors import Shortage
from hwgen.intgraph import Constant, MatMul, ReduceWindow
from hwgen.intgraph_checks import verify
from hwgen.mapping import Mapping
from hwgen.mapping.bounds import vector
from hwgen.mapping.depth_first import Limits
from hwgen.mapping.search import no_room
from hwgen.mapping.window_runs import has_windows
from hwgen.mapping.windows import window_tiling
from hwgen.quantise import quantise
from hwgen.schedule import attempt, schedule
from hwgen.select import select
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph

SIZES = {"window_chunks": 1, "norm_columns": 128, "scale_entries": 2048, "queue_entries": 256, "max_experts": 4}
CONFIG = Config(array_outputs=16, array_inputs=16, banks=2, bank_words=512, **SIZES)
MEMORY = Dram(latency=64, bytes_per_cycle=16.0)


def swin(size, columns=16, seed=0, shifts=((0, 0), (1, 2))):
    """Blocks of Swin, shifted and masked where the shift is not zero, and merged patches; an image for it."""
    m = maker.Maker(size, columns, seed)
    x = "patches"
    for shift in shifts:
        x = m.add(x, m.attention(m.norm(x), shift=shift, masks=any(shift)))
        x = m.add(x, m.linear(m.act(m.linear(m.norm(x), outputs=4 * columns)), 4 * columns))
    graph = m.graph(m.merge(x))
    images = maker.images(graph, 3, seed)
    return select(quantise({"": graph}, images)[""]), {name: values[0] for name, values in images.items()}


def inverted(size, stride=(1, 1), columns=16, seed=0):
    """Hidden columns that a depthwise convolution reads, then a dense one's, each added to what it comes from where it can be."""
    m = maker.Maker(size, columns, seed)
    x, hidden = m.norm("patches"), 4 * columns
    y = m.act(m.window(m.linear(x, outputs=hidden), "weighted", (3, 3), columns=hidden, stride=stride))
    y = m.linear(y, hidden)
    x = m.add("patches", y) if stride == (1, 1) else y
    half = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    z = m.conv(m.act(m.linear(m.norm(x), outputs=24)), (3, 3), inputs=24, size=half)
    graph = m.graph(m.linear(m.norm(m.add(x, z))))
    images = maker.images(graph, 3, seed)
    return select(quantise({"": graph}, images)[""]), {name: values[0] for name, values in images.items()}


def limits(chunks):
    return Limits(2, chunks, 16, 4096, 4096)


@pytest.mark.parametrize("size", [(6, 8), (12, 16), (12, 4)])
def test_no_bit_changes(size):
    for seed, shifts in enumerate((((0, 0),), ((1, 2),), ((0, 0), (2, 1)))):
        graph, image = swin(size, seed=seed, shifts=shifts)
        wanted = golden.run(graph, image, trace=True)
        counts = []
        for chunks in (1 << 20, 120, 16):
            tiled = window_tiling(graph, limits(chunks))
            verify(tiled)
            assert len({op.name for op in tiled.ops}) == len(tiled.ops)
            found = golden.run(tiled, image, trace=True)
            for name, rows in wanted.outputs.items():
                np.testing.assert_array_equal(found.outputs[name], rows, name)
            for name, rows in found.values.items():
                np.testing.assert_array_equal(rows, wanted.values[name], name)
            counts.append(sum(isinstance(op, ReduceWindow) for op in tiled.ops))
        assert counts == sorted(counts) and counts[0] < counts[-1]


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1)])
def test_bands_change_no_bit(stride):
    for seed in range(3):
        graph, image = inverted((12, 9), stride, seed=seed)
        wanted = golden.run(graph, image, trace=True)
        hidden = {op.reads()["x"].buffer for op in graph.ops if op.walk is not None and op.walk.count > 1}
        rows = []
        for chunks in (1 << 20, 700, 400, 16):
            tiled = window_tiling(graph, limits(chunks))
            verify(tiled)
            assert len({op.name for op in tiled.ops}) == len(tiled.ops)
            found = golden.run(tiled, image, trace=True)
            for name, values in wanted.outputs.items():
                np.testing.assert_array_equal(found.outputs[name], values, name)
            for name, values in found.values.items():
                np.testing.assert_array_equal(values, wanted.values[name], name)
            rows.append(sum(op.x.rows for op in tiled.ops if isinstance(op, MatMul)))
            kept = hidden & tiled.buffers.keys()
        assert rows == sorted(rows) and rows[0] < rows[-1] and not kept


def residual(size, columns=16, seed=0, normed=False):
    """Inverted residuals, whose sums are of the rows that the hidden columns of a depthwise convolution are made of."""
    m = maker.Maker(size, columns, seed)
    x, hidden = m.linear("patches"), 4 * columns
    for _ in range(3):
        y = m.linear(m.norm(x) if normed else x, outputs=hidden)
        x = m.add(x, m.linear(m.act(m.window(y, "weighted", (3, 3), columns=hidden)), hidden))
    images = maker.images(graph := m.graph(m.linear(x)), 3, seed)
    return select(quantise({"": graph}, images)[""]), {name: values[0] for name, values in images.items()}


@pytest.mark.parametrize("normed, spill", [(False, None), (False, 0.2), (True, 0.2)])
def test_blocks_whose_sums_stand_in_the_place_of_what_the_next_block_reads(normed, spill):
    """Each sum has a place of its own, so that hidden maps are made a block at a time; no bit changes."""
    graph, image = residual((16, 12), normed=normed)
    sums = [op for op in graph.ops if isinstance(op, MatMul) and op.residual is not None]
    assert len(sums) == 3 and all(op.residual == op.out for op in sums[1:])
    config = replace(CONFIG, bank_words=512)
    mapped = Mapping(ordered=False, windows=True, room=None if spill else 0.5, spill=spill, copies=1).apply(graph, config, 1)
    verify(mapped)
    hidden = [mapped.buffers[op.out.buffer].rows for op in mapped.ops if isinstance(op, ReduceWindow)]
    assert max(hidden) < graph.buffers[sums[0].x.buffer].rows
    wanted, found = (golden.run(g, image, trace=True) for g in (graph, mapped))
    for name, values in wanted.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], values, name)
    for name, values in found.values.items():
        np.testing.assert_array_equal(values, wanted.values[name], name)
    machine.assert_equal(machine.run(schedule({"": mapped}, config), image), wanted.outputs)


def test_blocks_for_more_room_are_tried_where_those_for_less_find_none():
    """Blocks for half of the scratchpad leave whole what those for nearly all of it cut."""
    graph, _ = inverted((12, 9))
    config = replace(CONFIG, bank_words=256)
    rooms = 0.5, 0.95
    tiled = [Mapping(shared_hidden=True, ordered=False, windows=True, room=room).apply(graph, config, 1) for room in rooms]
    assert [no_room(g, config) for g in tiled] == [True, False]
    found = mapping.choose({"": graph}, config, MEMORY).mapping
    assert found.windows and found.spill is None


def test_bands_find_room_where_a_hidden_map_does_not():
    graph, image = inverted((16, 12))
    config = replace(CONFIG, bank_words=512)
    assert isinstance(attempt({"": Mapping(ordered=False).apply(graph, config, 1)}, config), Shortage)
    choice = mapping.search({"": graph}, config, MEMORY)
    assert choice.mapping.windows and choice.mapping.spill is None
    mapped = choice.mapping.apply(graph, config, 1)
    assert len({op.name for op in mapped.ops}) == len(mapped.ops)
    program = schedule({"": mapped}, config)
    machine.assert_equal(machine.run(program, image), golden.run(graph, image).outputs)


def test_what_has_room_stays_as_it_is():
    graph, _ = swin((12, 16))
    assert window_tiling(graph, limits(1 << 20)).ops == graph.ops


@pytest.mark.parametrize("kept", [False, True])
def test_what_streams_past_a_bank_is_no_part_of_a_block_of_windows(kept):
    """A map larger than a bank: where it outlives the windows what reads it goes through once, else it is made block by block."""
    m = maker.Maker((12, 16), 16)
    wide = m.act(m.linear("patches", outputs=128))
    x = m.add("patches", m.linear(wide, 128))
    x = m.add(x, m.attention(m.norm(x)))
    images = maker.images(graph := m.graph(*((x, wide) if kept else (x,))), 3)
    graph = select(quantise({"": graph}, images)[""])
    image = {name: values[0] for name, values in images.items()}
    tiled = window_tiling(graph, limits(192 * 128 // 16 - 1))
    machine.assert_equal(golden.run(tiled, image).outputs, golden.run(graph, image).outputs)
    read = sum(op.name.startswith("3.linear") for op in tiled.ops)
    gathered = sum(isinstance(op, ReduceWindow) for op in tiled.ops)
    assert gathered > 1 and (read == 1 if kept else read == gathered)


def test_weights_that_stream_in_pieces():
    graph, image = swin((6, 8), columns=32)
    tiled = window_tiling(graph, limits(40))
    verify(tiled)
    whole = {op.out.buffer: op.out.rows for op in graph.ops if isinstance(op, Constant) and op.out.rows == 32}
    assert whole and not whole.keys() & tiled.buffers.keys()
    assert {
        name: sum(op.out.buffer.startswith(f"{name}.") for op in tiled.ops if isinstance(op, Constant))
        for name in whole
    }
    for name, rows in golden.run(graph, image).outputs.items():
        np.testing.assert_array_equal(golden.run(tiled, image).outputs[name], rows, name)


def test_networks_without_windows_have_none():
    assert not any(has_windows(random_graph(seed, Shape())) for seed in range(4))


def test_finds_room_where_all_windows_do_not():
    graph, image = swin((12, 16))
    assert has_windows(graph)
    plain = attempt({"": Mapping(ordered=False).apply(graph, CONFIG, 1)}, CONFIG)
    assert isinstance(plain, Shortage)
    without = Mapping(shared_hidden=True, ordered=False, room=0.5)
    assert isinstance(attempt({"": without.apply(graph, CONFIG, 1)}, CONFIG), Shortage)
    choice = mapping.choose({"": graph}, CONFIG, MEMORY)
    assert choice.mapping.windows and choice.mapping.spill is None and "windows" in choice.mapping.text(1)
    program = schedule({"": choice.mapping.apply(graph, CONFIG, 1)}, CONFIG)
    machine.assert_equal(machine.run(program, image), golden.run(graph, image).outputs)


@pytest.mark.parametrize(("network", "words", "room"), [(swin, 512, 0.65), (inverted, 1024, 0.35)])
def test_tiles_in_turns_change_no_bit_and_run_faster(network, words, room):
    graph, image = network((12, 16))
    config = replace(CONFIG, bank_words=words)
    one_by_one = Mapping(shared_hidden=True, ordered=False, windows=True, room=room)
    cycles = []
    for turns in (None, 0.8):
        program = mapping.mapped({"": graph}, config, replace(one_by_one, interleave=turns))
        machine.assert_equal(machine.run(program, image), golden.run(graph, image).outputs)
        cycles.append(cost.estimate(program.tasks[""].instructions, config, MEMORY).cycles)
    assert cycles[1] < cycles[0]


def test_rows_in_blocks_for_columns_that_chunks_do_not_divide():
    graph, image = swin((12, 16), columns=24)
    config = replace(CONFIG, array_outputs=12, array_inputs=20, bank_words=1024)
    tiled = window_tiling(graph, limits(60))
    assert len(tiled.ops) > len(graph.ops)
    program = schedule({"": tiled}, config)
    machine.assert_equal(machine.run(program, image), golden.run(graph, image).outputs)


def test_cycles_of_a_band_that_is_less_than_its_run():
    """The passes weigh bands of every height, also of less than a row of the map, and a higher one is never cheaper."""
    config = replace(CONFIG, window_rows=3)
    graph, _ = inverted((6, 8))
    ops = [op for op in graph.ops if isinstance(op, ReduceWindow)]
    assert any(op.walk.run > 1 for op in ops)
    for op in ops:
        found = [vector(op, rows, config) for rows in range(1, op.walk.rows + 1)]
        assert found == sorted(found) and found[0] > 0


@pytest.mark.parametrize(("size", "spill", "room"), [((6, 8), 0.3, 0.4), ((12, 9), 0.5, 0.8), ((12, 9), 0.3, 0.8)])
def test_constants_cut_by_several_passes(size, spill, room):
    """Columns made rows by a matrix that streams: pieces of its pieces have names of their own."""
    m = maker.Maker(size, 16)
    graph = m.graph(m.put(fg.Transpose, m.put(fg.Transpose, m.conv("patches"))))
    images = maker.images(graph, 2, 0)
    graph = select(quantise({"": graph}, images)[""])
    image = {name: values[0] for name, values in images.items()}
    config = replace(CONFIG, bank_words=256)
    mapped = Mapping(spill=spill, room=room, interleave=0.9, windows=True).apply(graph, config, 1)
    assert sum(isinstance(op, MatMul) for op in mapped.ops) > 2 * sum(isinstance(op, MatMul) for op in graph.ops)
    assert len({op.name for op in mapped.ops}) == len(mapped.ops)
    machine.assert_equal(machine.run(schedule({"": mapped}, config), image), golden.run(graph, image).outputs)
