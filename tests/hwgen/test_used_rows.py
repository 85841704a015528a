"""What no output hangs on is not computed: tokens behind a class token's last attention."""

from dataclasses import replace

import pytest

from hwgen.intgraph import IntGraph, MatMul, Multiply, Norm
from hwgen.intgraph_checks import verify
from hwgen.mapping import Mapping
from hwgen.mapping.used_rows import used_rows
from hwgen.sim import golden
from hwgen.sim.tb.graphs import Shape, random_graph, random_images
from test_machine import CONFIGS, assert_equal, assert_keeps

DENSE = Shape(layers=1)
EXPERTS_BEFORE = Shape(layers=3, heads=3, head=8)


def of_output(graph: IntGraph, name: str, first: int, end: int) -> IntGraph:
    """The graph with some rows of one output alone."""
    output = next(output for output in graph.outputs if output.name == name)
    view = replace(output.view, row=first, rows=end - first)
    ops = [op for op in graph.ops if name == "logits" or op.name not in ("final", "head")]
    return replace(graph, ops=ops, outputs=[replace(output, view=view, shape=(view.rows, view.cols))])


def rows(graph: IntGraph) -> dict[str, int]:
    return {op.name: op.out.rows for op in graph.ops if isinstance(op, MatMul | Norm | Multiply)}


@pytest.mark.parametrize(("name", "first", "end"), [("logits", 0, 1), ("tokens", 0, 1), ("tokens", 3, 7)])
@pytest.mark.parametrize("shape", [DENSE, EXPERTS_BEFORE], ids=["dense", "experts"])
def test_rows_of_an_output(shape, name, first, end):
    for seed in range(4):  # of which some have gated layers, and values that are stored turned
        whole = of_output(random_graph(seed, shape), name, first, end)
        cut = used_rows(whole)
        verify(cut)
        last = f"l{shape.layers - 1}"
        behind = {n: count for n, count in rows(cut).items() if n.startswith((f"{last}.fc", f"{last}.norm2", f"{last}.proj"))}
        assert len(behind) >= 4 and set(behind.values()) == {end - first}
        heads = [count for n, count in rows(cut).items() if n.startswith((f"{last}.s", f"{last}.o")) and n != f"{last}.o"]
        assert heads and set(heads) == {end - first}  # queries; keys and values are those of all tokens
        before = {n: count for n, count in rows(whole).items() if not n.startswith((last, "final", "head"))}
        assert before.items() <= rows(cut).items()
        images = random_images(whole, seed)
        assert_equal(golden.run(cut, images).outputs, golden.run(whole, images).outputs)


def test_an_output_of_all_rows_takes_them_all():
    graph = random_graph(0, EXPERTS_BEFORE)
    assert [a is b for a, b in zip(used_rows(graph).ops, graph.ops, strict=True)] == [True] * len(graph.ops)


@pytest.mark.parametrize(("mapping", "batch"), [
    (Mapping(), 1), (Mapping(row_tiles=2), 1), (Mapping(shared_hidden=True, room=0.3), 1), (Mapping(), 2), (Mapping(group=2), 2),
])
def test_mapped_on_the_machine(mapping, batch):
    graph = of_output(random_graph(1, EXPERTS_BEFORE), "logits", 0, 1)
    mapped = mapping.apply(graph, CONFIGS["12x20"], batch)
    alone = [op for op in mapped.ops if isinstance(op, MatMul) and op.name.startswith("l2.fc") and op.rows == 1]
    # Images of a group share weights, and depth-first tiles go on with all rows.
    whole = mapping.group > 1 or mapping.room is not None
    assert bool(alone) != whole
    assert_keeps(graph, mapped, CONFIGS["12x20"], batch)


def test_chains_are_cut_as_one():
    """Maxima are kept by row number from one product of a chain to the next."""
    graph = random_graph(0, DENSE)
    names = [op.name for op in graph.ops if isinstance(op, MatMul) and op.continue_max]
    assert names
    buffer = next(op.out.buffer for op in graph.ops if op.name == names[0])
    view = replace(next(op.out for op in graph.ops if op.name == names[0]), row=0, rows=3)
    # Some rows of the last head's columns are an output of their own: all heads are made for them.
    whole = of_output(graph, "logits", 0, 1)
    more = replace(whole.outputs[0], name="part", view=view, shape=(view.rows, view.cols))
    both = replace(whole, outputs=[*whole.outputs, more])
    cut = used_rows(both)
    verify(cut)
    assert {op.rows for op in cut.ops if isinstance(op, MatMul) and op.out.buffer == buffer} == {3}
    images = random_images(both, 0)
    assert_equal(golden.run(cut, images).outputs, golden.run(both, images).outputs)
