"""The scheduler by its invariants: packing, space, what fits and what does not."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.errors import Shortage, UserError
from hwgen.intgraph import Buffer, Constant, Input, IntGraph, MatMul, Norm, Output, View
from hwgen.isa import Convert, RowMax, RowScale
from hwgen.mapping import Mapping
from hwgen.schedule import allocate, schedule
from hwgen.schedule.allocate import Item, place
from hwgen.schedule.emit import Emitter
from hwgen.schedule.layout import DataStore, WeightStore, fits_narrow, layout_of, pack_rows, pack_stream
from hwgen.schedule.liveness import Access, maximum_accesses, spans
from hwgen.schedule.prepare import prepare
from hwgen.sim.tb.graphs import Shape, random_graph

CONFIGS = [
    Config(),
    Config(array_outputs=12, array_inputs=20),
    Config(array_outputs=8, array_inputs=8, weight_ports=1),
    Config(array_outputs=48, array_inputs=64, weight_ports=4, axi_bytes=8),
]
ids = [f"{c.array_outputs}x{c.array_inputs}" for c in CONFIGS]


def emitter(graph, config):
    needs = prepare(graph, config, WeightStore(config), DataStore(config))
    return Emitter(graph, config, needs, dict.fromkeys(range(len(graph.ops)), 0), [0] * len(graph.outputs), 0)


# --- layout ------------------------------------------------------------------------------------------------------


def test_groups_start_at_chunks():
    layout = layout_of(Buffer("b", 5, 30, 3), Config())  # groups of 10 in chunks of 16
    assert layout.pitch == 3
    view = View("b", 2, 3, 10, 20)
    assert layout.start(view) == 2 * 3 + 1
    assert layout.chunks(view) == 2
    np.testing.assert_array_equal(layout.columns(view), [*range(10), *range(16, 26)])
    plain = layout_of(Buffer("b", 5, 40, 1), Config())
    assert (plain.pitch, plain.start(View("b", 1, 1, 16, 3))) == (3, 4)
    with pytest.raises(UserError, match=r"'b': columns 8\.\.24 of 40"):
        plain.start(View("b", 0, 1, 8, 16))
    with pytest.raises(UserError, match=r"columns 16\.\.19"):
        plain.check_written(View("b", 0, 1, 16, 3))
    plain.check_written(View("b", 0, 1, 32, 8))


def test_pack_rows_pads_chunks_to_beats():
    config = Config(array_outputs=12, array_inputs=20)  # chunk 4, 8 bytes in a beat of 16
    data = np.arange(1, 7, dtype=np.int16).reshape(1, 6)
    packed = np.frombuffer(pack_rows(data, np.array([0, 1, 2, 4, 5, 6]), config), "<i2")
    np.testing.assert_array_equal(packed, [1, 2, 3, 0, 0, 0, 0, 0, 4, 5, 6, 0, 0, 0, 0, 0])
    packed = np.frombuffer(pack_rows(data * -256, np.array([0, 1, 2, 4, 5, 6]), config, narrow=True), np.int8)
    np.testing.assert_array_equal(packed, [-1, -2, -3, *[0] * 13, -4, -5, -6, *[0] * 13])


def test_narrow_where_every_element_is_int8():
    assert fits_narrow(np.array([[0, 127 * 256, -127 * 256]], np.int16))
    assert not fits_narrow(np.array([[0, 255]], np.int16))
    assert not fits_narrow(np.array([[0, -257]], np.int16))
    assert not fits_narrow(np.array([[0, -32768]], np.int16))


@pytest.mark.parametrize("wide", [False, True])
def test_constants_and_inputs_go_narrow(wide):
    buffers = {name: Buffer(name, 4, 32) for name in ("c", "x")}
    data = np.full((4, 32), 300 if wide else -3 * 256, np.int16)
    ops = [
        Constant("constant", View("c", 0, 4, 0, 32), data),
        Input("image", View("x", 0, 4, 0, 32), "image", (2, 8, 8), (2, 4, 4), 1.0, 0.0),
    ]
    outputs = [Output(name, View(name, 0, 4, 0, 32), 1.0, (4, 32)) for name in ("c", "x")]
    task = schedule({"": IntGraph(buffers, ops, outputs)}, Config()).tasks[""]
    loads = {origin: i for i, origin in zip(task.instructions, task.origins, strict=True) if isinstance(i, isa.Load)}
    assert (loads["constant"].narrow, loads["image"].narrow) == (not wide, True)
    assert task.inputs[0].layout.element_bytes == 1 and task.outputs[0].layout.element_bytes == 2


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_weight_stream_follows_the_loop_nest(config):
    rng = np.random.default_rng(0)
    n_all, k = 53, 71
    weights = rng.integers(-127, 128, (n_all, k)).astype(np.int8)
    mult, bias = rng.integers(0, 65536, n_all).astype(np.uint16), rng.integers(-32768, 32768, n_all).astype(np.int16)
    packed, are_weights = pack_stream(config, weights, mult, bias)
    assert are_weights.sum() == n_all * -(-k // config.array_inputs)
    words = iter(packed)
    for first in range(0, n_all, config.array_outputs):
        n = min(config.array_outputs, n_all - first)
        pairs = b"".join(next(words)[: 4 * config.params_per_word].tobytes() for _ in range(config.param_words(n)))
        pairs = np.frombuffer(pairs, np.dtype([("mult", "<u2"), ("bias", "<i2")]))[:n]
        np.testing.assert_array_equal(pairs["mult"], mult[first : first + n])
        np.testing.assert_array_equal(pairs["bias"], bias[first : first + n])
        for tile in range(0, k, config.array_inputs):
            for o in range(first, first + n):
                word = next(words).view(np.int8)
                wanted = weights[o, tile : tile + config.array_inputs]
                np.testing.assert_array_equal(word[: len(wanted)], wanted)
                assert not word[len(wanted) :].any()
    assert next(words, None) is None


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_equal_segments_are_stored_once_and_start_with_a_burst(config):
    store = WeightStore(config)
    rng = np.random.default_rng(0)
    segments = [rng.integers(0, 256, (n, config.weight_ports, config.axi_bytes)).astype(np.uint8) for n in (3, 18, 7)]
    offsets = [store.add(s) for s in (*segments, segments[1])]
    assert offsets[1] == offsets[3] and len(set(offsets)) == 3
    assert all(offset % config.burst_beats == 0 for offset in offsets)
    beats = np.stack([np.frombuffer(s, np.uint8).reshape(store.size, config.axi_bytes) for s in store.stripes()], axis=1)
    for offset, segment in zip(offsets, segments, strict=False):
        np.testing.assert_array_equal(beats[offset : offset + len(segment)], segment)


# --- liveness and space ------------------------------------------------------------------------------------------


def test_spans():
    def bounds(*accesses, final=()):
        found = spans("b", [Access(i, set(r), set(k), load) for i, (r, k, load) in enumerate(accesses)], set(final))
        return [(s.first, s.use, s.last) for s in found]

    write, read, load = ((), {0}, False), ({0}, (), False), ((), {0}, True)
    assert bounds(write, read, read, write, read) == [(0, 0, 2), (3, 3, 4)]
    assert bounds(write, ({0}, {0}, False), read) == [(0, 0, 2)]  # in place
    assert bounds(((), (), False), write, read) == [(0, 0, 0), (1, 1, 2)]  # a partial write nobody reads
    assert bounds(((), {0}, False), ((), {1}, False), ({0, 1}, (), False)) == [(0, 0, 2)]
    assert bounds(load, load, read) == [(0, 0, 0), (1, 2, 2)]
    assert bounds(load, read, load, read, final={0}) == [(0, 1, 1), (2, 3, 3)]
    assert bounds(write, write, final={0}) == [(0, 0, 0), (1, 1, 1)]


def assert_apart(items, bank_size):
    for i, a in enumerate(items):
        assert a.address >= 0 and a.address // bank_size == (a.address + a.size - 1) // bank_size, "across banks"
        for b in items[:i]:
            together = a.first <= b.last and b.first <= a.last
            assert not (together and a.address < b.address + b.size and b.address < a.address + a.size), (a, b)


@pytest.mark.parametrize("seed", range(10))
def test_no_two_live_items_overlap(seed):
    rng = np.random.default_rng(seed)
    items, must = [], []
    for n in range(60):
        first = int(rng.integers(100))
        early = int(rng.integers(first + 1)) if rng.integers(2) else first
        items.append(Item(f"i{n}", int(rng.integers(1, 40)), first, first + int(rng.integers(20)), (early,)))
        must.append((early, first))
    clashes = {(i, i + 1): 1 for i in range(0, 50, 2)}
    place(items, 4, 128 if seed % 2 else 80, clashes, "chunks", "bank_words")
    assert_apart(items, 128 if seed % 2 else 80)
    assert all(early <= item.first <= first for item, (early, first) in zip(items, must, strict=True))


@pytest.mark.parametrize("seed, size", [(8, 96), (52, 104), (42, 112), (4, 120), (50, 128)])
def test_what_finds_no_place_is_placed_before_the_others(monkeypatch, seed, size):
    rng = np.random.default_rng(seed)
    items = []
    for n in range(40):
        first = int(rng.integers(60))
        items.append(Item(f"i{n}", int(rng.integers(1, 6)) * 8, first, first + int(rng.integers(1, 14))))
    place(found := deepcopy(items), 2, size, {}, "chunks", "bank_words")
    assert_apart(found, size)
    monkeypatch.setattr(allocate, "SQUEAKS", 0)
    with pytest.raises(Shortage, match="enough in sum, but not in one piece"):
        place(items, 2, size, {}, "chunks", "bank_words")


def test_a_buffer_may_be_as_large_as_a_bank():
    config = Config(bank_words=64)
    rows, columns = config.bank_chunks, config.chunk
    view = View("b", 0, rows, 0, columns)
    ops = [Constant("b", view, np.full((rows, columns), 1 << 8, np.int16))]
    graph = IntGraph({"b": Buffer("b", rows, columns)}, ops, [Output("y", view, 1.0, (rows, columns))])
    (there,) = schedule({"": graph}, config).tasks[""].places["b"]
    assert there.address % config.bank_chunks == 0


def test_items_used_together_lie_in_different_banks():
    items = [Item(f"i{n}", 10, 0, 1) for n in range(4)]
    place(items, 2, 100, {(0, 1): 4, (2, 3): 4}, "chunks", "bank_words")
    assert items[0].address // 100 != items[1].address // 100
    assert items[2].address // 100 != items[3].address // 100


def test_banks_are_left_to_what_clashes_with_several():
    """A small item that is read beside two large ones gets a bank for itself if both of these lie in the other one."""
    items = [Item("one", 12, 0, 2), Item("other", 12, 2, 4), Item("small", 4, 1, 3)]
    place(items, 2, 32, {(0, 2): 5, (1, 2): 5}, "rows", "banks")
    assert items[0].address // 32 == items[1].address // 32 != items[2].address // 32


@pytest.mark.parametrize("config", [*CONFIGS, Config(bank_words=64, scale_entries=128)], ids=[*ids, "tight"])
@pytest.mark.parametrize("seed", range(3))
def test_spaces_of_random_graphs(config, seed):
    graph = random_graph(seed, Shape(layers=3))
    spaces = emitter(graph, config).spaces
    scratch = [item for pairs in spaces.spans.values() for _, item in pairs] + list(spaces.params.values())
    assert_apart(scratch, config.bank_chunks)
    scales = [item for pairs in spaces.maxima.values() for _, item in pairs] + list(spaces.tables.values())
    assert_apart(scales, config.scale_entries)


# --- program -----------------------------------------------------------------------------------------------------


def test_tasks_share_weights():
    graph = random_graph(0)
    other = random_graph(0, task="b")
    config = Config()
    one, two = schedule({"a": graph}, config), schedule({"a": graph, "b": other}, config)
    assert one.stripes == two.stripes and one.constants == two.constants
    assert two.tasks["a"].inputs == two.tasks["b"].inputs
    assert two.tasks["a"].outputs[0].dram != two.tasks["b"].outputs[0].dram
    assert schedule({"a": graph, "b": random_graph(1)}, config).regions["weights0"].size > one.regions["weights0"].size


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_without_contents_the_instructions_are_the_same(config):
    graphs = {"a": random_graph(0), "b": random_graph(1)}
    full, bare = (schedule(graphs, config, contents=contents) for contents in (True, False))
    for task in graphs:
        assert full.tasks[task].instructions == bare.tasks[task].instructions
    assert full.regions == bare.regions and full.stripes and not bare.stripes


def test_memory_map():
    program = schedule({"a": random_graph(0), "b": random_graph(1)}, Config(weight_ports=3))
    regions = list(program.regions.values())
    assert [*program.regions] == ["programs", "constants", "inputs", "outputs", "weights0", "weights1", "weights2"]
    assert all(a.end <= b.offset and b.offset % 4096 == 0 for a, b in zip(regions, regions[1:], strict=False))
    assert program.tasks["b"].offset % 4096 == 0
    for task in program.tasks.values():
        inside = {"inputs": task.inputs, "outputs": task.outputs}
        for name, slots in inside.items():
            for slot in slots:
                assert program.regions[name].offset <= slot.dram <= program.regions[name].end - slot.layout.bytes
    memory = program.dram()
    assert isa.disassemble(memory[: 64 * len(program.tasks["a"].instructions)].tobytes()) == program.tasks["a"].instructions


def test_schedule_is_deterministic():
    a, b = (schedule({"": random_graph(3)}, CONFIGS[1]) for _ in range(2))
    assert a.dram().tobytes() == b.dram().tobytes()


@pytest.mark.parametrize("settings, message", [
    ({"bank_words": 16}, r"'x' needs 20 chunks of scratchpad in one piece, there are 16: raise bank_words"),
    ({"bank_words": 4}, r"'x' needs 20 chunks of scratchpad in one piece, there are 4: raise bank_words by a factor of 8"),
    ({"bank_words": 64, "banks": 2}, r"no room for buffer .* \(24 short\): raise bank_words or banks"),
    ({"scale_entries": 16}, r"raise scale_entries"),
    ({"queue_entries": 16}, r"l1\.route: 10 tokens times 2 experts need queue_entries=20, it is 16"),
    ({"max_experts": 2}, r"l1\.route: 4 experts need max_experts=4, it is 2"),
    ({"norm_columns": 16}, r"l0\.norm1: rows of 24 columns need norm_columns=24, it is 16"),
    ({"acc_rows": 4}, r"l1\.e0\.fc1: queues of up to 10 tokens need acc_rows=10, it is 4"),
])  # fmt: skip
def test_what_does_not_fit_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        schedule({"": random_graph(0, Shape(layers=3))}, replace(Config(), **settings))


def test_more_experts_a_token_than_the_router_chooses():
    with pytest.raises(UserError, match=r"l1\.route: chooses 5 experts a token, the machine at most 4"):
        schedule({"": random_graph(0, Shape(experts=6, top_k=5))}, Config())


def small(config=None, **options):
    """One product into a buffer of two groups."""
    buffers = {"x": Buffer("x", 4, 20, 2), "y": Buffer("y", 4, 20, 2), "w": Buffer("w", 20, 20, 1)}
    x, y, w = View("x", 0, 4, 0, 20), View("y", 0, 4, 0, 20), View("w", 0, 20, 0, 20)
    weights = np.zeros((20, 20), np.int8)
    fields = {"name": "m", "out": y, "x": x, "w": w if options.pop("view", False) else weights, "col_mult": 1, "shift": 8}
    ops = [Constant("cx", x, np.zeros((4, 20), np.int16)), Constant("cw", w, np.zeros((20, 20), np.int16))]
    graph = IntGraph(buffers, [*ops, MatMul(**fields | options)], [Output("y", y, 1.0, (4, 20))])
    return schedule({"": graph}, config or Config())


def test_padded_groups():
    program = small()
    product = next(i for i in program.tasks[""].instructions if isinstance(i, isa.Matmul))
    assert (product.inputs, product.outputs, product.x_pitch) == (26, 26, 2)
    with pytest.raises(UserError, match="m: columns of 'x' and 'w' are padded differently"):
        small(view=True)
    with pytest.raises(UserError, match="m: signed row maxima"):
        small(row_max=RowMax.SIGNED)
    small(Config(array_outputs=10, array_inputs=10), view=True)  # chunks of 10 need no padding


def test_streams_run_ahead_but_not_past_a_queue():
    """No Stream stands so far before its Matmul that the streams between fill the sequencer's queue."""
    program = schedule({"": random_graph(0, Shape(layers=4))}, Config())
    ahead = largest = 0
    for insn in program.tasks[""].instructions:
        if isinstance(insn, isa.Stream):
            ahead += 1
        elif isinstance(insn, isa.Matmul) and (insn.w_source == isa.WeightSource.STREAM or insn.col_source == 0):
            assert ahead > 0
            ahead -= 1
        largest = max(largest, ahead)
    assert ahead == 0 and 3 < largest <= isa.QUEUE_DEPTH


def test_weights_behind_the_image_wait_for_it():
    graph = Mapping(row_tiles=2).apply(random_graph(0), Config(), 1)
    task = schedule({"": graph}, Config()).tasks[""]
    pairs = list(zip(task.instructions, task.origins, strict=True))
    waits = {name: insn.wait_load for insn, name in pairs if isinstance(insn, isa.Stream)}
    stem = [insn.wait_load for insn, name in pairs if isinstance(insn, isa.Matmul) and name.startswith("embed")]
    first, second, third, *others = waits.values()
    assert list(waits)[:2] == ["embed.rows0", "embed"] and not any([first, *others])  # streams go in order
    assert stem[0] < stem[1] == second == third


def test_maxima_live_from_a_whole_write_to_their_last_reader():
    """A LayerNorm and a product of all rows begin them anew; a product of some, or one that goes on with them, does not."""
    x, y, z = Buffer("x", 6, 16), Buffer("y", 6, 16), Buffer("z", 6, 8)
    all_of = {b.name: View(b.name, 0, 6, 0, b.cols) for b in (x, y, z)}
    weight = np.ones((16, 16), np.int8)
    plain = {"col_mult": np.full(16, 9), "bias": np.zeros(16, np.int16), "shift": 4}
    by_row = {"x_convert": Convert.ROW, "row_scale": RowScale.CONVERTED}
    ops = [
        Constant("x", all_of["x"], np.ones((6, 16), np.int16)),
        Norm("norm", all_of["y"], all_of["x"], np.ones(16, np.int16), np.zeros(16, np.int16), 1),
        MatMul("a", View("z", 0, 6, 0, 4), all_of["y"], weight[:4], row_max=RowMax.ABS, **by_row,
               col_mult=np.full(4, 9), bias=np.zeros(4, np.int16), shift=4),
        MatMul("b", View("z", 0, 6, 4, 4), all_of["x"], weight[:4], row_max=RowMax.ABS, continue_max=True,
               col_mult=np.full(4, 9), bias=np.zeros(4, np.int16), shift=4),
        MatMul("c", View("y", 0, 3, 0, 16), View("x", 0, 3, 0, 16), weight, row_max=RowMax.ABS, **plain),
        MatMul("d", all_of["x"], all_of["y"], weight, **by_row, **plain),
    ]  # fmt: skip
    found = maximum_accesses(IntGraph({b.name: b for b in (x, y, z)}, ops, []))
    assert {name: [(a.index, set(a.reads), set(a.kills)) for a in one] for name, one in found.items()} == {
        "y": [(1, set(), {0}), (2, {0}, set()), (4, set(), set()), (5, {0}, set())],
        "z": [(2, set(), {0}), (3, set(), set())],
    }
