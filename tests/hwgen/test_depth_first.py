"""Token blocks change no bit and save memory: random graphs on golden, trained ones where they would not fit."""

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from hwgen import cost, mapping
from hwgen.config import Config
from hwgen.dram import Dram
from hwgen.errors import UserError
from hwgen.intgraph import Buffer, Constant, Input, IntGraph, MatMul, Output, RouteTokens, View
from hwgen.intgraph_checks import verify
from hwgen.isa import ColScale, Convert, RowMax
from hwgen.levels import import_model
from hwgen.mapping import Mapping
from hwgen.mapping.depth_first import Limits, _delayed, depth_first
from hwgen.mapping.parts import edges, read
from hwgen.mapping.rematerialise import rematerialise
from hwgen.mapping.runs import units
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

SHAPES = {
    "plain": Shape(),
    "all to one": Shape(favour=1, shun=2, top_k=1),
    "odd": Shape(experts=5, top_k=3, heads=3, head=8, patches=(2, 5), layers=3),
    "many tokens": Shape(patches=(5, 6), hidden=100),
}
ROOMY = 1 << 20
MEMORY = Dram(latency=64, bytes_per_cycle=16.0)


def bound(op, rows: int) -> float:
    return rows + 10.0 if isinstance(op, MatMul) else 0.0


def limits(chunks: int, **options) -> Limits:
    return Limits(**{"banks": 2, "bank_chunks": chunks, "chunk": 4, "tokens": 4096, "entries": 4096} | options)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_bit_changes(shape):
    cut = set()
    for seed in range(6):
        graph = random_graph(seed, SHAPES[shape])
        images = random_images(graph, seed)
        wanted = golden.run(graph, images).outputs
        for chunks in (40, 150, 400):
            blocks = depth_first(graph, limits(chunks), bound)
            verify(blocks)
            assert len({op.name for op in blocks.ops}) == len(blocks.ops)
            assert {view.buffer for view, _ in blocks.trace.values()} <= blocks.buffers.keys()
            found = golden.run(blocks, images).outputs
            for name, values in wanted.items():
                np.testing.assert_array_equal(found[name], values, name)
            whole = {op.name for op in graph.ops}
            cut |= {type(op) for op in blocks.ops if op.name not in whole}
    if shape == "many tokens":
        assert cut >= {MatMul, RouteTokens, Input, Constant}


def test_what_fits_stays_whole():
    graph = random_graph(0, SHAPES["many tokens"])
    blocks = depth_first(graph, limits(ROOMY), bound)
    assert {op.name for op in blocks.ops} == {op.name for op in graph.ops}


def test_less_room_makes_more_blocks():
    graph = random_graph(0, SHAPES["many tokens"])
    counts = [len(depth_first(graph, limits(chunks), bound).ops) for chunks in (ROOMY, 500, 300, 100)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


@pytest.mark.parametrize(("options", "rows"), [({"tokens": 12}, 12), ({"entries": 20}, 10)])
def test_queues_that_are_too_short_for_all_tokens(options, rows):
    graph = random_graph(0, SHAPES["many tokens"])
    routes = [op for op in depth_first(graph, limits(ROOMY, **options), bound).ops if isinstance(op, RouteTokens)]
    assert sum(op.logits.rows for op in routes) == 31 and max(op.logits.rows for op in routes) <= rows


def test_mlp_holds_the_hidden_rows_of_a_block():
    """32 tokens, 8 columns, 64 hidden: of 300 chunks the output takes 64, a row of hidden and input 18: three blocks."""
    buffers = {name: Buffer(name, 32, cols) for name, cols in (("x", 8), ("hidden", 64), ("y", 8))}
    x, hidden, y = (View(name, 0, 32, 0, b.cols) for name, b in buffers.items())
    data = np.ones((32, 8), np.int16)
    weights = np.ones((64, 8), np.int8)
    ops = [
        Constant("data", x, data),
        MatMul("fc1", hidden, x, weights, col_mult=1, row_max=RowMax.ABS),
        MatMul("fc2", y, hidden, weights.T, col_mult=1),
    ]
    graph = IntGraph(buffers, ops, [Output("y", y, 1.0, (32, 8))])
    blocks = depth_first(graph, limits(300, banks=1), bound)
    assert [op.name for op in blocks.ops][-3:] == ["data", "fc1", "fc2"]
    assert blocks.buffers.keys() == {"y"} | {f"{name}.{rows}rows" for name in ("x", "hidden") for rows in (10, 11)}


def test_streamed_weights_larger_than_a_bank_load_piece_by_piece_while_the_array_works():
    """As for V, whose weights [192, 64] are streamed against the tokens: two copies of a piece are faster than one."""
    rng = np.random.default_rng(0)
    config = Config(array_outputs=8, array_inputs=8, banks=2, bank_words=512, acc_rows=256, weight_words=64, axi_bytes=4)
    buffers = {b.name: b for b in (Buffer("image", 16, 64), Buffer("x", 16, 64), Buffer("w", 192, 64), Buffer("v", 192, 16))}
    image, x, w, v = (View(b.name, 0, b.rows, 0, b.cols) for b in buffers.values())
    ops = [
        Input("image", image, "image", (1, 32, 32), (1, 8, 8), 1.0, 0.0),
        MatMul("fc", x, image, rng.integers(-9, 9, (64, 64)).astype(np.int8), col_mult=1000, row_max=RowMax.ABS),
        Constant("w", w, (rng.integers(-9, 9, (192, 64)) * 256).astype(np.int16)),
        MatMul("v", v, w, x, w_convert=Convert.ROW, col_scale=ColScale.ROW_SCALES),
    ]
    graph = IntGraph(buffers, ops, [Output("v", v, 1.0, (192, 16))])
    with pytest.raises(UserError, match="'w' needs 1536 chunks of scratchpad in one piece, there are 512"):
        schedule({"": graph}, config)
    cycles = {}
    for copies in (1, 2):
        mapped = Mapping(ordered=False, room=0.98, copies=copies).apply(graph, config, 1)
        pieces = [op for op in mapped.ops if isinstance(op, Constant)]
        assert len(pieces) > copies and sum(op.out.rows for op in pieces) == 192
        program = schedule({"": mapped}, config)
        cycles[copies] = cost.estimate(program.tasks[""].instructions, config, MEMORY).cycles
    assert cycles[2] < 0.9 * cycles[1]


def test_units_keep_state_together():
    ops = random_graph(1, SHAPES["odd"]).ops
    found = units(ops)
    assert [op for unit in found for op in unit] == ops
    for unit in found:
        routes = {op.name for op in unit if isinstance(op, RouteTokens)}
        assert {op.expert[0] for op in unit if isinstance(op, MatMul) and op.expert} <= routes


def test_edges():
    assert edges(10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert edges(2, 5) == [(0, 1), (1, 2)]


def test_tiles_depth_first_where_nothing_else_fits():
    asset = resources.files("hwgen.example").joinpath("assets", "vit_digits.onnx")
    with resources.as_file(asset) as path:
        graphs = integers({"": import_model(path)}, None)
    config = Config(array_outputs=8, array_inputs=8, banks=2, bank_words=512, acc_rows=32, weight_words=64)
    with pytest.raises(UserError, match="no room|in one piece"):
        schedule(graphs, config)
    chosen = mapping.choose(graphs, config, MEMORY).mapping
    program = mapping.mapped(graphs, config, chosen)
    assert chosen.room and "depth-first" in chosen.text(1)
    assert len(program.tasks[""].inputs) == 1
    refused = mapping.search(graphs, Config(**config.to_dict() | {"bank_words": 64}), MEMORY)
    assert isinstance(refused, UserError) and "raise bank_words" in str(refused)


@pytest.mark.parametrize("shape", SHAPES)
def test_rematerialise(shape):
    """The last reader gets a LayerNorm of its own, of the same values; no bit changes."""
    graph = random_graph(3, SHAPES[shape])
    images = random_images(graph, 3)
    delayed = replace(graph, ops=_delayed(graph.ops))
    twice = rematerialise(delayed)
    verify(twice)
    added = [op for op in twice.ops if op.name.endswith(".again")]
    assert added and len(twice.ops) == len(delayed.ops) + len(added)
    for op in added:
        (reader,) = (r for r in twice.ops if isinstance(r, MatMul) and r.x.buffer == op.out.buffer)
        assert twice.ops.index(reader) == twice.ops.index(op) + 1
    found, wanted = (golden.run(g, images).outputs for g in (twice, graph))
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_rematerialise_where_blocks_get_taller():
    """Where a LayerNorm's rows leave hardly any room beside them, Q gets its own; elsewhere the array has no use of it."""
    asset = resources.files("hwgen.example").joinpath("assets", "vit_digits.onnx")
    with resources.as_file(asset) as path:
        (graph,) = integers({"": import_model(path)}, None).values()
    images = {"image": np.random.default_rng(1).random(next(o.shape for o in graph.ops if isinstance(o, Input)), np.float32)}
    wanted = golden.run(graph, images).outputs
    config = Config(array_outputs=8, array_inputs=8, banks=2, bank_words=256, acc_rows=32, weight_words=64)
    again = {}
    for room in (0.98, 0.8):
        mapped = Mapping(shared_hidden=True, ordered=False, room=room).apply(graph, config, 1)
        verify(mapped)
        again[room] = sum(".again" in op.name for op in mapped.ops)
        for name, values in golden.run(mapped, images).outputs.items():
            np.testing.assert_array_equal(values, wanted[name])
    assert again[0.98] == 0 and again[0.8] > 0


def test_rematerialise_only_where_x_is_as_it_was():
    graph = random_graph(3, SHAPES["plain"])
    delayed = replace(graph, ops=_delayed(graph.ops))
    added = [op.name for op in rematerialise(delayed).ops if op.name.endswith(".again")]
    norm = next(op for op in delayed.ops if f"{op.name}.again" in added)
    spoilt = replace(norm, name="spoilt", out=norm.x, x=norm.x)
    at = delayed.ops.index(norm) + 1
    changed = replace(delayed, ops=[*delayed.ops[:at], spoilt, *delayed.ops[at:]])
    assert f"{norm.name}.again" not in {op.name for op in rematerialise(changed).ops}


def test_rematerialise_only_for_a_reader_that_has_no_other_use_of_it():
    graph = random_graph(3, SHAPES["plain"])
    delayed = replace(graph, ops=_delayed(graph.ops))
    added = {op.name.removesuffix(".again") for op in rematerialise(delayed).ops if op.name.endswith(".again")}
    norm = next(op for op in delayed.ops if op.name in added)
    last = next(op for op in delayed.ops[::-1] if norm.out.buffer in read(op))
    twice = replace(last, residual=norm.out)
    changed = replace(delayed, ops=[twice if op is last else op for op in delayed.ops])
    assert f"{norm.name}.again" not in {op.name for op in rematerialise(changed).ops}
