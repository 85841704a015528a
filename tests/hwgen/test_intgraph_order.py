"""Graphs whose operations read before the write are told from those that do not, whatever the passes have made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwgen.config import Config
from hwgen.intgraph import Buffer, Constant, Fetch, IntGraph, MatMul, Norm, Output, Spill, Transfer, View
from hwgen.intgraph_order import written_first
from hwgen.isa import Convert, RowMax
from hwgen.mapping import Mapping
from hwgen.schedule import schedule
from hwgen.sim.tb.graphs import Shape, random_graph
from hwgen.sim.tb.windows import random_window_graph

CONFIG = Config(array_outputs=16, array_inputs=16)


def moved(graph: IntGraph, index: int, to: int) -> IntGraph:
    """The graph with an operation at another place."""
    ops = list(graph.ops)
    ops.insert(to, ops.pop(index))
    return replace(graph, ops=ops)


@pytest.mark.parametrize("mapping", [Mapping(), Mapping(row_tiles=3), Mapping(spill=0.05)], ids=["as it is", "tiles", "spills"])
@pytest.mark.parametrize("maps", [False, True], ids=["vit", "maps"])
def test_what_moves_in_front_of_all_that_it_reads(maps, mapping):
    """Every operation that computes, moved to the start: none of these graphs passes, the mapped one does."""
    graph = mapping.apply(random_window_graph(1, size=(8, 4)) if maps else random_graph(3, Shape()), CONFIG, 1)
    written_first(graph)
    seen = 0
    for i, op in enumerate(graph.ops):
        if op.reads() and not isinstance(op, Transfer):  # a block that is fetched to be written in part may hold anything
            with pytest.raises(ValueError, match="before they are written|is not written"):
                written_first(moved(graph, i, 0))
            seen += 1
    assert seen > 5


def product(name: str, x: View, out: View, **fields: object) -> MatMul:
    return MatMul(name, out, x, np.eye(out.cols, x.cols, dtype="int8"), **{"col_mult": 1, "bias": None, **fields})  # type: ignore[arg-type]


def test_rows_columns_and_maxima_each_count():
    """Half of the rows, half of the columns, rows without maxima: each is named with the operation that reads it."""
    buffers = {name: Buffer(name, 8, 8) for name in "abc"}
    data = Constant("load", View("a", 0, 8, 0, 8), np.zeros((8, 8), "int16"))
    norm = Norm("norm", View("b", 0, 8, 0, 8), View("a", 0, 8, 0, 8), np.ones(8, "int16"), np.ones(8, "int16"), 1)
    last = product("last", View("b", 0, 8, 0, 8), View("c", 0, 8, 0, 8), x_convert=Convert.ROW)
    output = Output("c", View("c", 0, 8, 0, 8), 1.0, (8, 8))
    written_first(IntGraph(buffers, [data, norm, last], [output]))
    halves = {
        "rows": replace(norm, out=View("b", 0, 4, 0, 8), x=View("a", 0, 4, 0, 8)),
        "columns": product("norm", View("a", 0, 8, 0, 4), View("b", 0, 8, 4, 4), row_max=RowMax.ABS),
        "maxima": replace(norm, row_max=RowMax.NONE),
    }
    for what, half in halves.items():
        with pytest.raises(ValueError, match="^last: reads maxima" if what == "maxima" else "^last: reads rows of"):
            written_first(IntGraph(buffers, [data, half, last], [output]))
    with pytest.raises(ValueError, match="^output c: "):
        written_first(IntGraph(buffers, [data, norm], [output]))


def test_columns_through_dram():
    """A block that is fetched whole, where half of its columns are written in the scratchpad: column by column."""
    buffers = {name: Buffer(name, 8, 16, dram=name == "d") for name in "asdt"} | {"c": Buffer("c", 8, 8)}
    left, right, all_of = ((col, cols) for col, cols in ((0, 8), (8, 8), (0, 16)))
    load = Constant("load", View("a", 0, 8, *left), np.zeros((8, 8), "int16"))
    spill = Spill("spill", View("d", 0, 8, *left), View("a", 0, 8, *left))
    fetch = Fetch("fetch", View("s", 0, 8, *all_of), View("d", 0, 8, *all_of))
    again = [Spill("back", View("d", 0, 8, *all_of), View("s", 0, 8, *all_of))]
    again.append(Fetch("again", View("t", 0, 8, *all_of), View("d", 0, 8, *all_of)))
    rest = Constant("rest", View("s", 0, 8, *right), np.zeros((8, 8), "int16"))
    output = Output("c", View("c", 0, 8, 0, 8), 1.0, (8, 8))

    def reads(name: str, columns: tuple[int, int]) -> MatMul:
        return product("last", View(name, 0, 8, *columns), View("c", 0, 8, 0, 8))

    for ops in ([fetch, rest, reads("s", all_of)], [fetch, *again, reads("t", left)], [fetch, rest, *again, reads("t", all_of)]):
        written_first(IntGraph(buffers, [load, spill, *ops], [output]))
    for ops in ([fetch, reads("s", all_of)], [fetch, *again, rest, reads("t", right)]):
        with pytest.raises(ValueError, match="^last: reads rows of"):
            written_first(IntGraph(buffers, [load, spill, *ops], [output]))


def test_a_build_says_so():
    """The scheduler asks for it wherever a program is made with its contents."""
    graph = random_graph(3, Shape())
    schedule({"": graph}, CONFIG)
    reader = next(i for i, op in enumerate(graph.ops) if isinstance(op, Norm))
    with pytest.raises(ValueError, match="before they are written"):
        schedule({"": moved(graph, reader, 0)}, CONFIG)
