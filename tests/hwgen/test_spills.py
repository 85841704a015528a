"""Values in DRAM behind the scratchpad change no bit: on golden, on the machine in any order of its units, in RTL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import map_maker as maker
import test_machine as machine
from hwgen import boards, mapping, registers
from hwgen.config import Config
from hwgen.dram import Dram
from hwgen.errors import Shortage, UserError
from hwgen.host.bundle import Bundle
from hwgen.host.manifest import check
from hwgen.intgraph import Buffer, Fetch, Input, IntGraph, MatMul, Output, ReduceWindow, RouteTokens, Spill, View
from hwgen.intgraph_checks import verify
from hwgen.isa import Reduce
from hwgen.mapping import Mapping, spills
from hwgen.mapping.apart import constants_apart, heads_apart
from hwgen.mapping.bounds import aside, timing
from hwgen.mapping.depth_first import Limits
from hwgen.mapping.interleave import interleaved
from hwgen.mapping.runs import chains
from hwgen.program import manifest, write_bundle
from hwgen.quantise import quantise
from hwgen.resampling import Resampling
from hwgen.schedule import schedule
from hwgen.schedule.areas import first_fit
from hwgen.schedule.checks import Faulty, verify_task
from hwgen.select import select
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph, random_images
from hwgen.sim.tb.windows import random_window_graph
from hwgen.walks import Walk
from resampling_maker import linear

SHAPES = {
    "plain": Shape(),
    "many tokens": Shape(patches=(5, 6), hidden=100, layers=3),
    "all to one": Shape(favour=1, shun=2, top_k=1),
    "odd": Shape(experts=5, top_k=3, heads=3, head=8, patches=(2, 5), layers=3),
}
CONFIG = Config(array_outputs=8, array_inputs=8, bank_words=1024)
TIGHT = Config(array_outputs=8, array_inputs=8, bank_words=64, weight_words=64, scale_entries=256)
WINDOWS = replace(CONFIG, window_chunks=1, norm_columns=128, scale_entries=2048)
MEMORY = Dram(latency=64, bytes_per_cycle=16.0)


def assert_equal(graph: IntGraph, other: IntGraph, seed: int) -> None:
    images = random_images(graph, seed)
    wanted, found = golden.run(graph, images).outputs, golden.run(other, images).outputs
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, name)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_bit_changes(shape):
    for seed in range(4):
        graph = random_graph(seed, SHAPES[shape])
        for room in (1.0, 0.1, 0.02):
            spilled = Mapping(spill=room).apply(graph, CONFIG, 1)
            verify(spilled)
            assert len({op.name for op in spilled.ops}) == len(spilled.ops)
            assert not any(op.name.endswith(".rows0") for op in spilled.ops)  # of so few rows none is worth it
            moved = {kind: any(isinstance(op, kind) for op in spilled.ops) for kind in (Spill, Fetch)}
            assert all(moved.values()) if room == 0.02 else room < 1.0 or not any(moved.values())
            assert not any(
                buffer.dram for view, _ in spilled.trace.values() for buffer in [spilled.buffers[view.buffer]]
            )
            assert_equal(graph, spilled, seed)


@pytest.mark.parametrize("seed", range(6))
def test_maps_go_through_in_bands(seed):
    """Windows of any kernel, stride and dilation, shifted maps, rows beside each other: a band of rows at a time."""
    graph = random_window_graph(seed, size=(8, 6), groups=1 + seed % 2)
    walks = sum(op.walk is not None for op in graph.ops)
    for room, turns in ((1.0, None), (0.1, None), (0.1, 0.5), (0.02, None)):
        spilled = Mapping(spill=room, interleave=turns).apply(graph, WINDOWS, 1)
        verify(spilled)
        assert_equal(graph, spilled, seed)
    assert sum(op.walk is not None for op in spilled.ops) > 2 * walks


@pytest.mark.parametrize("seed", range(4))
def test_what_a_convolution_takes_is_made_again_around_each_block(seed):
    """Between a linear layer and a convolution there is no map as a whole, in DRAM neither: a block's band is made for it."""
    graph = random_window_graph(seed, size=(24, 6))
    map_rows = 24 * 6
    spilled = Mapping(spill=0.08).apply(graph, WINDOWS, 1)
    verify(spilled)
    assert_equal(graph, spilled, seed)
    bands = [op for op in spilled.ops if isinstance(op, MatMul) and op.name.split(".")[0] == "stem"]
    made = sum(op.out.rows for op in bands)
    assert len(bands) > 1 and made > map_rows and max(op.out.rows for op in bands) < map_rows


def test_a_small_value_stays_between_runs():
    """What is small and used again is neither spilled nor fetched, while larger ones are."""
    graph = random_window_graph(1, size=(24, 12))
    rows = {}
    for room in (0.9, 0.2):
        spilled = Mapping(spill=room).apply(graph, replace(WINDOWS, bank_words=1024), 1)
        assert_equal(graph, spilled, 1)
        moved = {view.buffer for op in spilled.ops if isinstance(op, Spill) for view in op.writes().values()}
        rows[room] = {b.rows for name, b in spilled.buffers.items() if name in graph.buffers and name not in moved}
        assert moved
    assert len(rows[0.9]) > len(rows[0.2])


def test_a_row_by_itself_fetches_no_map():
    graph = random_window_graph(0, size=(8, 4))
    view = View("single", 0, 1, 0, 20)
    graph.buffers["single"] = Buffer("single", 1, 20)
    copy = next(op for op in graph.ops if op.name == "parts")
    graph.ops.append(replace(copy, name="one", out=view, x=View("x", 0, 32, 0, 20), walk=Walk((1,), (1,), (1,), 17)))
    graph.outputs.append(Output("single", view, 1 / 1024, (1, 20)))
    spilled = Mapping(spill=0.02).apply(graph, WINDOWS, 1)
    verify(spilled)
    assert_equal(graph, spilled, 0)
    assert next(op for op in spilled.ops if op.name == "one").x.rows == 1


def test_phases_of_a_larger_map_are_read_side_by_side():
    """Rows of four maps below each other in turns: of each map a band is fetched, and what is written is not fetched first."""
    graph = random_window_graph(0, size=(8, 4))
    parts = next(op for op in graph.ops if op.name == "larger").out
    phases = Walk((8, 4, 4), (4, 32, 1), (16, 4, 1))
    turned = graph.buffers["turned"] = Buffer("turned", parts.rows, parts.cols)
    view = View("turned", 0, parts.rows, 0, parts.cols)
    copy = next(op for op in graph.ops if op.name == "parts")
    graph.ops.append(replace(copy, name="turn", out=view, x=parts, walk=phases))
    graph.outputs.append(Output("turned", view, 1 / 1024, (turned.rows, turned.cols)))
    spilled = Mapping(spill=0.02).apply(graph, WINDOWS, 1)
    verify(spilled)
    assert_equal(graph, spilled, 0)
    turns = [op for op in spilled.ops if op.name.startswith("turn") and isinstance(op, ReduceWindow)]
    assert len(turns) > 4 and max(op.x.rows for op in turns) < 32
    assert not any(isinstance(op, Fetch) and op.x.buffer == "turned" for op in spilled.ops)


def test_an_output_in_dram(tmp_path):
    """A map that is made larger, row by row of what it is made of, and read where it has been spilled, through the driver too."""
    graph = random_window_graph(0, size=(8, 4))
    larger, view = Resampling(linear(8, 16), linear(4, 8)), View("up", 0, 128, 0, 20)
    graph.buffers["up"] = Buffer("up", 128, 20)
    copy = next(op for op in graph.ops if op.name == "parts")
    fields = {"walk": larger.walk(), "reduce": Reduce.WEIGHTED, "before": 4, "shift": 16}
    graph.ops.append(replace(copy, name="up", out=view, x=View("x", 0, 32, 0, 20), **fields))
    graph.outputs.append(Output("up", view, 1 / 1024, (128, 20)))
    spilled = Mapping(spill=0.02).apply(graph, WINDOWS, 1)
    verify(spilled)
    assert_equal(graph, spilled, 0)
    made = [op for op in spilled.ops if isinstance(op, ReduceWindow) and op.resampling is not None]
    assert len(made) > 3 and max(op.x.rows for op in made) < 32
    program = schedule({"": spilled}, WINDOWS)
    images = random_images(graph, 0)
    machine.assert_equal(machine.run(program, images), golden.run(graph, images).outputs)
    files = {boards.BOARD_FILE: boards.to_json(boards.load("zcu104"))}
    write_bundle(tmp_path / "b", program, models=[], board="zcu104", registers=registers.manifest(WINDOWS), files=files)
    bundle = Bundle(tmp_path / "b")
    (slot,) = (s for s in bundle.task("")["outputs"] if s["name"] == "up")
    regions = bundle.memory["regions"]
    assert regions["spills"]["offset"] <= slot["dram"] < regions["spills"]["offset"] + regions["spills"]["bytes"]
    slot["dram"] = regions["constants"]["offset"]
    with pytest.raises(ValueError, match="outputs.*dram"):
        check(bundle.manifest, {name: (bundle.path / name).stat().st_size for name in ("program.bin", "dram.bin")})


@pytest.mark.parametrize(("room", "copies"), [(0.8, 1), (0.4, 2)])
def test_bands_on_the_machine(room, copies):
    """A map of which no bank holds a third; the program equals golden in any order of the units."""
    graph = random_window_graph(3, size=(24, 12))
    config = replace(WINDOWS, bank_words=1024)
    largest = max(-(-b.cols // config.chunk) * b.rows for b in graph.buffers.values())
    assert largest > 3 * config.bank_chunks
    spilled = Mapping(spill=room, copies=copies).apply(graph, config, 1)
    program = schedule({"": spilled}, config)
    images = random_images(graph, 3)
    wanted = golden.run(graph, images).outputs
    for order in ("program", "lazy", 3):
        machine.assert_equal(machine.run(program, images, order), wanted)


def test_blocks_in_turns_on_the_machine():
    """Operations of several blocks in turns, with what they load; the program equals golden in any order of the units."""
    graph = random_window_graph(3, size=(24, 12))
    config = replace(WINDOWS, bank_words=2048)
    plain, turns = (Mapping(spill=0.2, interleave=share).apply(graph, config, 1) for share in (None, 0.8))
    assert [op.name for op in plain.ops] != [op.name for op in turns.ops]
    program = schedule({"": turns}, config)
    assert any(isinstance(op, Spill) for op in turns.ops)
    images = random_images(graph, 3)
    wanted = golden.run(graph, images).outputs
    for order in ("program", "lazy", 3):
        machine.assert_equal(machine.run(program, images, order), wanted)


def test_stores_take_their_time_where_blocks_go_in_turns():
    config = replace(WINDOWS, bank_words=2048)
    spilled = Mapping(spill=0.2).apply(random_window_graph(3, size=(24, 12)), config, 1)
    timed: dict[str, float] = {}

    def load(op, buffers):
        timed[op.name] = aside(op, buffers, config)
        return timed[op.name]

    room = Limits(config.banks, config.bank_chunks, config.chunk, config.acc_rows, config.queue_entries, 1, config.scale_entries)
    interleaved(spilled, timing(config), load, room)
    stores = [op for op in spilled.ops if isinstance(op, Spill)]
    assert stores and all(timed[op.name] >= op.out.rows for op in stores)


def test_blocks_without_products_are_as_small_as_they_need():
    """A few means of large parts of a map: a block is one row of them, which is less than the array would want."""
    m = maker.Maker((48, 16))
    pooled = m.window("patches", "mean", (12, 8), stride=(12, 8), pads=(0, 0, 0, 0))
    images = maker.images(graph := m.graph(m.linear(pooled), m.linear("patches")), 3)
    graph = select(quantise({"": graph}, images)[""])
    config = Config(bank_words=256, banks=2, **{k: getattr(WINDOWS, k) for k in ("window_chunks", "norm_columns")})
    spilled = Mapping(spill=0.9, copies=1).apply(graph, config, 1)
    assert sum(isinstance(op, ReduceWindow) for op in spilled.ops) == 4
    image = {name: values[0] for name, values in images.items()}
    machine.assert_equal(machine.run(schedule({"": spilled}, config), image), golden.run(graph, image).outputs)


def test_less_room_makes_more_blocks():
    graph = random_graph(0, SHAPES["many tokens"])
    counts = [
        sum(isinstance(op, MatMul) for op in Mapping(spill=r).apply(graph, CONFIG, 1).ops) for r in (1.0, 0.05, 0.02)
    ]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_queues_that_are_too_short_for_all_tokens():
    graph = random_graph(0, SHAPES["many tokens"])
    spilled = Mapping(spill=1.0).apply(graph, replace(CONFIG, queue_entries=32), 1)
    routes = [op for op in spilled.ops if isinstance(op, RouteTokens)]
    assert len(routes) > 1 and all(op.logits.rows * op.top_k <= 32 for op in routes)
    assert_equal(graph, spilled, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_and_constants_apart(shape):
    for seed in range(4):
        graph = random_graph(seed, SHAPES[shape])
        assert any(len(chain) > 2 for chain in chains(graph.ops))
        apart = heads_apart(constants_apart(graph), CONFIG.chunk)
        verify(apart)
        assert not any(isinstance(op, MatMul) and op.continue_max for op in apart.ops)
        assert_equal(graph, apart, seed)


def spilled_program(seed: int):
    """A graph that TIGHT holds only with spills, and its program."""
    graph = random_graph(seed, SHAPES["odd"])
    chosen = mapping.choose({"": graph}, TIGHT, MEMORY).mapping
    assert chosen.spill is not None and "spilled" in chosen.text(1)
    return graph, chosen.apply(graph, TIGHT, 1), mapping.mapped({"": graph}, TIGHT, chosen)


def test_spilled_values_are_no_part_of_the_image():
    graph, _, program = spilled_program(0)
    region = program.regions["spills"]
    assert region.size and program.size == region.end
    entry = manifest(program, models=[], board="none", registers=[], files={})
    assert entry["memory"]["bytes"] == program.size
    assert max(s["dram_offset"] + s["bytes"] for s in entry["memory"]["segments"]) <= region.offset
    assert "spills" not in schedule({"": graph}, CONFIG).regions


def test_what_fits_does_not_spill():
    graph = random_graph(0)
    assert mapping.choose({"": graph}, Config(bank_words=4096), MEMORY).mapping.spill is None


def test_areas_in_use_at_the_same_time_lie_apart():
    rng = np.random.default_rng(0)
    for _ in range(200):
        placed = []
        for begin in np.sort(rng.integers(0, 12, 8)).tolist():
            first_fit(placed, begin, begin + int(rng.integers(0, 6)), int(rng.integers(1, 9)))
        for i, (begin, last, start, end) in enumerate(placed):
            beside = [p for p in placed[:i] if p[0] <= last and begin <= p[1]]
            assert all(end <= p[2] or p[3] <= start for p in beside), placed
            assert start == 0 or any(p[3] == start for p in beside)


def test_a_transfer_takes_the_beats_of_its_chunks():
    """Cycles beside the array: values of int16 by the chunk, images by as many int8."""
    buffers = {"v": Buffer("v", 6, 40, 2)}
    view = View("v", 0, 6, 0, 40)
    chunks = 6 * 2 * 3  # 20 columns of a group are three chunks of 8
    assert aside(Spill("s", view, view), buffers, CONFIG) == chunks * CONFIG.chunk_beats
    assert aside(Input("i", view, "image", (240,), (40,), 1.0, 0.0), buffers, CONFIG) == chunks * CONFIG.narrow_chunk_beats


def test_checks_find_a_fetch_that_does_not_wait():
    _, spilled, program = spilled_program(1)
    task = program.tasks[""]
    verify_task(spilled, task, TIGHT, program.regions)
    fetches = {op.name for op in spilled.ops if isinstance(op, Fetch)}
    waiting = [n for n, insn in enumerate(task.instructions) if task.origins[n] in fetches and insn.wait_store]

    def faulty(number: int, **fields: int) -> bool:
        instructions = list(task.instructions)
        instructions[number] = replace(instructions[number], **fields)
        try:
            verify_task(spilled, replace(task, instructions=instructions), TIGHT, program.regions)
        except Faulty:
            return True
        return False

    # Some waits are met by what others wait for; a fetch of other rows is always wrong.
    assert any(faulty(number, wait_store=0) for number in waiting)
    assert faulty(waiting[-1], dram=task.instructions[waiting[-1]].dram + TIGHT.chunk_beats)


def test_rows_beyond_the_bits_of_a_walk_are_cut():
    """Maps of more than 2^16 rows, of which no operation sees more than its block."""
    m = maker.Maker((280, 240), columns=4)
    made = m.graph(m.conv(m.conv("patches"), outputs=2))
    integer = select(quantise({"": made}, maker.images(made, 2))[""])
    config = boards.load("zcu104").make_config({"window_chunks": "1"})
    found = mapping.choose({"": integer}, config, MEMORY)
    assert found.mapping.spill is not None
    assert max(op.out.rows for op in found.graphs[""].ops if isinstance(op, MatMul)) < 1 << 16


def test_what_no_block_makes_small_enough_is_refused():
    graph = random_graph(0, SHAPES["many tokens"])
    with pytest.raises(UserError, match="bank_words") as error:
        mapping.choose({"": graph}, replace(TIGHT, bank_words=16), MEMORY)
    assert isinstance(error.value, Shortage)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([(0, 44), (2, 44), (4, 44)], [(0, 48)]),  # windows side by side
        ([(0, 40), (10, 8)], [(0, 40)]),  # one within another
        ([(0, 40), (20, 40)], [(0, 40), (20, 40)]),  # half of each is its own
        ([(0, 40), (40, 40)], [(0, 40), (40, 40)]),  # side by side
    ],
)
def test_rows_that_several_read_are_fetched_once(rows, wanted):
    found = spills._joined([View("x", first, count, 0, 16) for first, count in rows], [])
    assert [(view.row, view.rows) for view in found] == wanted


def test_what_is_written_is_one_with_all_that_overlap():
    views = [View("x", first, 40, 0, 16) for first in (0, 20, 80)]
    assert spills._joined(views, views[:1]) == [View("x", 0, 60, 0, 16), views[2]]


def test_names_of_what_is_loaded_often():
    """Two tables, "w" and "w1", each loaded more than ten times: no two loads have one name."""
    graph = random_graph(3, Shape(patches=(8, 9)))
    tables = [op for op in graph.ops if op.name.endswith(".wv.load")]
    names = dict(zip((op.name for op in tables), ("w", "w1"), strict=True))
    graph.ops[:] = [replace(op, name=names.get(op.name, op.name)) for op in graph.ops]
    spilled = Mapping(spill=0.02).apply(graph, TIGHT, 1)
    loads = [op.name for op in spilled.ops if op.name.startswith("w")]
    assert len(loads) > 22 and len(set(loads)) == len(loads), loads
    verify(spilled)
    with pytest.raises(ValueError, match="^w: a second operation of this name"):
        verify(replace(graph, ops=[*graph.ops, next(op for op in graph.ops if op.name == "w")]))
