"""Mappings change no bit: batches, row tiles and orders of random graphs on golden against the plain graph."""

from dataclasses import replace

import numpy as np
import pytest

from hwgen import cost, mapping
from hwgen.config import Config
from hwgen.dram import Dram
from hwgen.errors import UserError
from hwgen.intgraph import Constant, Input, IntGraph, MatMul, Norm, RouteTokens, View
from hwgen.intgraph_checks import verify
from hwgen.isa import RowMax
from hwgen.mapping import Mapping
from hwgen.mapping.batch import Batch, _Scope, batched
from hwgen.mapping.bounds import timing
from hwgen.mapping.order import dependencies, reorder
from hwgen.mapping.row_tiling import row_tiling, waiting
from hwgen.mapping.runs import chains
from hwgen.schedule import schedule
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

SHAPES = {
    "plain": Shape(),
    "all to one": Shape(favour=1, shun=2, top_k=1),
    "odd": Shape(experts=5, top_k=3, heads=3, head=8, patches=(2, 5), layers=3),
}
CONFIG = Config(bank_words=4096)
MEMORY = Dram(latency=64, bytes_per_cycle=16.0)


def images_of(graph: IntGraph, count: int) -> dict[str, np.ndarray]:
    sets = [random_images(graph, seed) for seed in range(count)]
    return {name: np.stack([images[name] for images in sets]) for name in sets[0]}


def one_by_one(graph: IntGraph, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the plain graph, stacked."""
    count = len(next(iter(images.values())))
    results = [golden.run(graph, {name: array[i] for name, array in images.items()}).outputs for i in range(count)]
    return {name: np.stack([outputs[name] for outputs in results]) for name in results[0]}


def assert_equal(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.ptp(values) > 0
        np.testing.assert_array_equal(got[name], values, name)


@pytest.mark.parametrize(
    ("one_hidden", "staggered", "halved"), [(False,) * 3, (True, False, False), (False, True, False), (True,) * 3]
)
@pytest.mark.parametrize(("batch", "group"), [(2, 1), (2, 2), (6, 3), (4, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch(shape, batch, group, one_hidden, staggered, halved):
    if halved and batch == group:
        with pytest.raises(ValueError, match="groups of 2 do not divide half a batch of 2"):
            batched(random_graph(0, SHAPES[shape]), batch, group, halved=True)
        return
    for seed in range(2):
        graph = random_graph(seed, SHAPES[shape])
        images = images_of(graph, batch)
        whole = batched(graph, batch, group, one_hidden, staggered, halved)
        verify(whole)
        assert whole.batch == batch and len({op.name for op in whole.ops}) == len(whole.ops)
        assert_equal(golden.run(whole, images).outputs, one_by_one(graph, images))


def test_images_a_stage_apart():
    """While an image is loaded the array works on those before it, of which each is a stage ahead of the next."""
    graph = random_graph(0, SHAPES["plain"])
    names = [op.name for op in batched(graph, 3, staggered=True).ops if op.name.partition("[")[0] in ("embed", "l0.q")]
    assert names == ["embed[0]", "l0.q[0]", "embed[1]", "l0.q[1]", "embed[2]", "l0.q[2]"]
    slow, large = Dram(latency=64, bytes_per_cycle=8.0), Config(bank_words=16384)
    cycles = {}
    for staggered in (False, True):
        made = Mapping(staggered=staggered).apply(random_graph(0, Shape(patches=(7, 7), patch=(8, 8), layers=1)), CONFIG, 4)
        cycles[staggered] = cost.estimate(schedule({"": made}, large).tasks[""].instructions, large, slow).cycles
    assert cycles[True] < cycles[False]


def test_positions_of_a_batch_are_loaded_once():
    """What every image's patches are added to; the row of a class token is loaded for each of them."""
    graph = random_graph(0, SHAPES["plain"])
    rows = sum(op.out.rows for op in graph.ops if isinstance(op, Constant) and op.name.startswith("position"))
    loads = [op for op in batched(graph, 4, halved=True).ops if isinstance(op, Constant) and op.name.startswith("position")]
    patches = next(op for op in graph.ops if isinstance(op, MatMul) and op.residual == op.out)
    assert [op.out.rows for op in loads if ".table" in op.name] == [patches.out.rows]
    assert sum(op.out.rows for op in loads) == patches.out.rows + 4 * (rows - patches.out.rows)


def test_halves_of_a_batch_route_by_themselves_and_wait_less():
    graph = random_graph(1, Shape(layers=4, patches=(5, 5)))
    halves = batched(graph, 4, shared_hidden=True, staggered=True, halved=True)
    routes = [op for op in halves.ops if isinstance(op, RouteTokens)]
    once = [op for op in graph.ops if isinstance(op, RouteTokens)]
    assert len(routes) == 2 * len(once) > 0 and all(op.logits.rows == 2 * once[0].logits.rows for op in routes)
    cycles, large = {}, Config(bank_words=16384)
    for halved in (False, True):
        made = Mapping(staggered=True, shared_hidden=True, halved=halved).apply(graph, CONFIG, 4)
        cycles[halved] = cost.estimate(schedule({"": made}, large).tasks[""].instructions, large, Dram()).cycles
    assert cycles[True] < cycles[False]


def test_a_batch_reads_the_weights_of_an_expert_once():
    graph = random_graph(0, SHAPES["plain"])
    whole = batched(graph, 6, 3)
    assert sum(isinstance(op, RouteTokens) for op in whole.ops) == sum(isinstance(op, RouteTokens) for op in graph.ops)

    def experts(ops) -> int:
        return sum(getattr(op, "expert", None) is not None for op in ops)

    assert experts(whole.ops) == experts(graph.ops) > 0
    # A constant that is only read is there once, what tokens are added to once for every image.
    names = [op.name for op in whole.ops if isinstance(op, Constant)]
    assert names.count("l0.wv.load") == 1 and sum(name.startswith("position") for name in names) == 6


def taking_turns(graph: IntGraph) -> IntGraph:
    """Odd experts get a second buffer for their hidden rows."""
    buffers = dict(graph.buffers)

    def moved(view: View) -> View:
        if not view.buffer.endswith("hidden"):
            return view
        name = f"{view.buffer}.odd"
        buffers[name] = replace(graph.buffers[view.buffer], name=name)
        return replace(view, buffer=name)

    odd = [isinstance(op, MatMul) and op.expert is not None and op.expert[1] % 2 for op in graph.ops]
    ops = [replace(op, x=moved(op.x), out=moved(op.out)) if o else op for op, o in zip(graph.ops, odd, strict=True)]
    return replace(graph, buffers=buffers, ops=ops)


def test_one_hidden_buffer():
    graph = taking_turns(random_graph(0, SHAPES["plain"]))
    images = images_of(graph, 2)
    two, one = batched(graph, 2), batched(graph, 2, shared_hidden=True)
    assert len(one.buffers) == len(two.buffers) - 1
    wanted = one_by_one(graph, images)
    assert_equal(golden.run(two, images).outputs, wanted)
    assert_equal(golden.run(one, images).outputs, wanted)


def test_groups_must_divide_the_batch():
    with pytest.raises(ValueError, match="groups of 2 do not divide a batch of 5"):
        batched(random_graph(0), 5, 2)


@pytest.mark.parametrize("blocks", [2, 3, 20])
def test_row_tiling(blocks):
    for seed in range(3):
        graph = random_graph(seed, SHAPES["odd"])
        images = images_of(graph, 1)
        split = row_tiling(graph, blocks)
        verify(split)
        norms = [op for op in split.ops if isinstance(op, Norm)]
        assert len(norms) > sum(isinstance(op, Norm) for op in graph.ops)
        got = golden.run(split, {name: array[0] for name, array in images.items()}).outputs
        assert_equal({name: value[None] for name, value in got.items()}, one_by_one(graph, images))


@pytest.mark.parametrize("patches", [(3, 3), (4, 5)])
def test_an_image_comes_in_the_tiles_of_the_layer_that_reads_it(patches):
    graph = random_graph(0, Shape(patches=patches))
    images = images_of(graph, 1)
    split = row_tiling(graph, 2, waiting(graph.ops), loads=True)
    verify(split)
    stem = [(op.x.row, op.rows) for op in split.ops if isinstance(op, MatMul) and op.name.startswith("embed")]
    assert len(stem) == 2 and stem == [(op.out.row, op.out.rows) for op in split.ops if isinstance(op, Input)]
    kinds = [type(op).__name__ for op in split.ops if isinstance(op, Input) or op.name.startswith(("embed", "position"))]
    assert kinds == ["Input", "Constant", "Input", "Constant", "MatMul", "MatMul"]  # the first tile's are the first
    got = golden.run(split, {name: array[0] for name, array in images.items()}).outputs
    assert_equal({name: value[None] for name, value in got.items()}, one_by_one(graph, images))


def test_an_image_that_another_operation_reads_first_comes_before_that():
    """A LayerNorm in front of the first linear layer, which the image had come behind."""
    graph = random_graph(0, Shape(patches=(4, 5)))
    at = next(i for i, op in enumerate(graph.ops) if isinstance(op, MatMul) and op.name.startswith("embed"))
    norm = next(op for op in graph.ops if isinstance(op, Norm))
    image = graph.ops[at].x
    gamma = np.resize(norm.gamma, image.cols)
    out = replace(image, buffer="normed")
    early = replace(norm, name="early", x=image, out=out, gamma=gamma, beta=gamma, row_max=RowMax.NONE)
    buffers = graph.buffers | {"normed": replace(graph.buffers[image.buffer], name="normed")}
    split = row_tiling(replace(graph, buffers=buffers, ops=[*graph.ops[:at], early, *graph.ops[at:]]), 2, {"embed"}, loads=True)
    where = {op.name: i for i, op in enumerate(split.ops)}
    assert all(where[op.name] < where["early"] for op in split.ops if isinstance(op, Input) and op.out.buffer == image.buffer)


def test_layers_that_read_the_same_rows_are_not_all_in_tiles():
    """Keys read what queries have read before: by then all rows are there, and their weights come once."""
    graph = random_graph(0, SHAPES["odd"])
    chosen = waiting(graph.ops)
    assert {"l0.norm1", "l0.q", "l0.proj", "l0.norm2"} <= chosen and "l0.k" not in chosen
    assert not waiting(graph.ops, 12)


def test_a_chain_holds_up_none_of_those_behind_it():
    """What has row maxima but continues none goes in any order, but not between the heads of a chain."""
    graph = row_tiling(random_graph(0, SHAPES["odd"]), 2)
    nodes = dependencies(graph)
    behind: list[set[int]] = []  # all that each operation must follow
    for node in nodes:
        behind.append(node.before.union(*(behind[j] for j in node.before)))
    names = {op.name: i for i, op in enumerate(graph.ops)}
    first, second = names["l0.fc1.rows0"], names["l0.fc1"]
    ops = [graph.ops[i] for i in (first, second)]
    assert all(isinstance(op, MatMul) and op.row_max == RowMax.ABS for op in ops)
    assert first not in behind[second] and second not in behind[first]
    chain = [i for i, op in enumerate(graph.ops) if isinstance(op, MatMul) and (op.continue_max or op.name == "l0.o0")]
    assert len(chain) > 3 and set(chain[:2]) <= behind[first] and set(chain[:2]) <= behind[chain[-1]]


@pytest.mark.parametrize("shape", SHAPES)
def test_reorder(shape):
    moved = 0
    for seed in range(4):
        plain = random_graph(seed, SHAPES[shape])
        images = images_of(plain, 2)
        graph = batched(plain, 2, 2)
        ordered = reorder(graph, timing(CONFIG))
        assert sorted(map(id, ordered.ops)) == sorted(map(id, graph.ops))
        moved += [op.name for op in ordered.ops] != [op.name for op in graph.ops]
        verify(ordered)
        assert_equal(golden.run(ordered, images).outputs, one_by_one(plain, images))
    assert moved


def test_chains_hold_what_lies_between():
    ops = [op for op in random_graph(0, SHAPES["odd"]).ops if isinstance(op, MatMul)]
    found = chains(ops)
    assert [op for chain in found for op in chain] == ops
    heads = [chain for chain in found if len(chain) > 1]
    assert heads and all(chain[0].row_max == RowMax.ABS and chain[-1].continue_max for chain in heads)
    with pytest.raises(ValueError, match="without an earlier MatMul"):
        chains(heads[0][1:])


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_plan_takes_the_fastest_that_fits(batch):
    graph = random_graph(1, SHAPES["odd"])
    chosen = mapping.choose({"": graph}, CONFIG, MEMORY, batch).mapping
    program = mapping.mapped({"": graph}, CONFIG, chosen, batch)
    assert program.batch == batch
    estimates = {}
    for candidate in mapping.candidates(batch):
        other = schedule({"": candidate.apply(graph, CONFIG, batch)}, CONFIG)
        estimates[candidate] = cost.estimate(other.tasks[""].instructions, CONFIG, MEMORY).cycles
    assert estimates[chosen] == min(estimates.values()) < max(estimates.values())


def test_plan_says_what_is_short():
    graph = random_graph(0)
    small = Config(bank_words=64, weight_words=64, scale_entries=128)
    chosen = mapping.choose({"": graph}, small, MEMORY).mapping
    program = mapping.mapped({"": graph}, small, chosen)
    assert program.batch == 1 and isinstance(chosen, Mapping)
    assert "raise bank_words" in str(mapping.search({"": graph}, small, MEMORY, 8))
    assert mapping.choose({"": graph}, small, MEMORY, 8).mapping.spill
    # Queues that are too short for the tokens of a batch take some of them at a time.
    assert mapping.choose({"": graph}, Config(queue_entries=64, bank_words=8192), MEMORY, 8).mapping.room
    for batch in (0, 65):
        with pytest.raises(UserError, match=f"batch={batch}"):
            mapping.choose({"": graph}, CONFIG, MEMORY, batch)


def test_rows_of_several_images_have_no_gaps():
    """Of a whole buffer those of all images follow each other; of a part they do not, and are refused."""
    graph = random_graph(0, SHAPES["plain"])
    both = Batch(graph, 2, 2)
    for name, rows in ((name, graph.buffers[name].rows) for name in sorted(both.tall)):
        whole = View(name, 0, rows, 0, 2)
        assert both._view(whole, _Scope(0, 2)).rows == 2 * rows
        assert (both._view(whole, _Scope(1, 1)).row, both._view(whole, _Scope(1, 1)).rows) == (rows, rows)
        for row, count in ((1, rows - 1), (0, rows - 1)):
            with pytest.raises(ValueError, match="2 images: their rows have gaps"):
                both._view(View(name, row, count, 0, 2), _Scope(0, 2))
    assert len(both.tall) > 1
