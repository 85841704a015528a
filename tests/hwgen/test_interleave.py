"""Tiles in turns: every dependency kept, no more room than given, and the units side by side."""

import numpy as np
import pytest

from hwgen.intgraph import Buffer, Constant, IntGraph, MatMul, Norm, Output, View
from hwgen.intgraph_checks import verify
from hwgen.mapping.depth_first import Limits
from hwgen.mapping.interleave import interleaved
from hwgen.mapping.order import Timing, dependencies

ROWS, COLS, TILES = 32, 16, 4
CHUNKS = ROWS * COLS // 16  # of a buffer


def _tiles() -> IntGraph:
    """In each of some tiles a product, a LayerNorm of it and a product of that, one tile after another."""
    buffers = {"x": Buffer("x", ROWS, COLS), "out": Buffer("out", ROWS * TILES, COLS)}
    whole = View("x", 0, ROWS, 0, COLS)
    ops = [Constant("x", whole, np.zeros((ROWS, COLS), np.int16))]
    weights = np.ones((COLS, COLS), np.int8)
    for k in range(TILES):
        first, normed = f"first.{k}", f"norm.{k}"
        buffers |= {name: Buffer(name, ROWS, COLS) for name in (first, normed)}
        a, b = (View(name, 0, ROWS, 0, COLS) for name in (first, normed))
        ones = np.ones(COLS, np.int16)
        mult = np.ones(COLS, np.uint16)
        ops += [
            MatMul(first, a, whole, weights, col_mult=mult),
            Norm(normed, b, a, ones, ones, 1),
            MatMul(f"out.{k}", View("out", k * ROWS, ROWS, 0, COLS), b, weights, col_mult=mult),
        ]
    graph = IntGraph(buffers, ops, [Output("out", View("out", 0, ROWS * TILES, 0, COLS), 1.0, (ROWS * TILES, COLS))])
    verify(graph)
    return graph


def _ordered(graph: IntGraph, buffers: int) -> IntGraph:
    """In the room of so many buffers beside `x` and `out`; `x` counts twice, as it is loaded."""
    limits = Limits(1, (2 + TILES + buffers) * CHUNKS, 16, 1 << 16, 1 << 16)
    return interleaved(graph, Timing(lambda op, tokens: 100.0, 50), lambda op, buffers: 10.0, limits)


def _peak(graph: IntGraph) -> int:
    """Most chunks that live at one time."""
    used: dict[str, list[int]] = {}
    for i, op in enumerate(graph.ops):
        for view in op.views().values():
            used.setdefault(view.buffer, []).append(i)
    used["out"].append(len(graph.ops))
    rows = {name: graph.buffers[name].rows for name in used}
    return max(sum(rows[name] for name, u in used.items() if u[0] <= i <= u[-1]) for i in range(len(graph.ops)))


@pytest.mark.parametrize("room", [1, 2, 4, 8])
def test_order_keeps_dependencies_and_room(room):
    graph = _tiles()
    done = _ordered(graph, room)
    assert sorted(op.name for op in done.ops) == sorted(op.name for op in graph.ops)
    place = {op.name: i for i, op in enumerate(done.ops)}
    for op, node in zip(graph.ops, dependencies(graph), strict=True):
        assert all(place[graph.ops[j].name] < place[op.name] for j in node.before)
    assert _peak(done) <= (2 + TILES + room) * CHUNKS


def test_next_tile_goes_on_while_the_vector_unit_works():
    names = [op.name for op in _ordered(_tiles(), 4).ops]
    assert names.index("first.1") < names.index("norm.0") < names.index("out.0")


def test_no_room_keeps_the_old_order():
    assert [op.name for op in _ordered(_tiles(), -TILES).ops] == [op.name for op in _tiles().ops]


def test_buffers_are_held_while_their_last_reader_works():
    done = _ordered(_tiles(), 4)
    names = [op.name for op in done.ops]
    assert done.held and all(names.index(op) > names.index(name) for name, op in done.held.items())
