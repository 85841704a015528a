"""Levels Q and M as text: the round trip, and selection as text in, text out."""


import numpy as np
import pytest

import graph_maker as maker
from hwgen import intgraph, intgraph_checks, qgraph
from hwgen.intgraph import IntGraph
from hwgen.leveltext import parse, text
from hwgen.qgraph import QGraph
from hwgen.quantise import quantise
from hwgen.select import select
from hwgen.sim import golden, quantised

SUM = """
task = ''
values['t'] = Value(4, 2, 0.5)
values['x'] = Value(4, 3)
values['y'] = Value(4, 2, 0.5)
values['z'] = Value(4, 2)
nodes += Table('t', data=i2([[1, 2], [3, 4], [5, 6], [7, 8]]))
nodes += Table('x', data=i2(4, 3, seed=1))
nodes += Product('y', x=Ref('x', 1, 2), matrix=Matrix(i1([[64, 0, 0], [0, 64, 1]]), 32768, 16, None, 32768),
    convert=Convert.STATIC, add=Ref('t', 0, 4), at=1, layer='fc')
nodes += Product('z', x=Ref('y', 0, 4), matrix=Matrix(i1([[64, 0], [0, 64]]), i2([30000, 300]), 20, i2([1, -1])))
outputs += Output('o', Ref('z', 0, 4), (8,))
"""
MORE = "outputs += Output('p', Ref('t', 0, 4), (8,))\n"


def network(**options):
    graph = maker.vit(**options)
    return quantise({"": graph}, maker.images(graph, 4))[""]


def join(written):
    return written.replace(",\n    ", ", ")


@pytest.mark.parametrize("experts", (0, 4))
def test_both_levels_survive_the_round_trip(experts):
    made = network(experts=experts)
    for graph, kind in ((made, QGraph), (select(made), IntGraph)):
        arrays = []
        written = text(graph, arrays)
        again = parse(written, kind, arrays)
        assert text(again, []) == written and len(written.splitlines()) > 40
        if kind is QGraph:
            qgraph.verify(again)
        else:
            intgraph_checks.verify(again)
    image = maker.images(maker.vit(), 1)["image"][0]
    wanted, found = (golden.run(g, {"image": image}).outputs["logits"] for g in (select(made), again))
    np.testing.assert_array_equal(wanted, found)


def test_a_sum_takes_the_place_of_its_operand():
    """One table, one product in it; then the maxima of its rows, half of which nothing has stored."""
    found = select(parse(join(SUM), QGraph))
    assert list(found.buffers) == ["y", "x", "y.rows", "z"]
    names = {op.name: op for op in found.ops}
    product = names["fc"]
    assert product.out == product.residual == intgraph.View("y", 1, 2, 0, 2)
    assert names["y.rows"].row_max == intgraph.RowMax.ABS and names["z"].x.buffer == "y.rows"


def test_an_operand_that_is_read_later_stays():
    written = join(SUM) + MORE
    found = select(parse(written, QGraph))
    names = [op.name for op in found.ops]
    assert names == ["t", "x", "y.copy", "fc", "y.rows", "z"]
    values = quantised.evaluate(parse(written, QGraph), {})
    outputs = golden.run(found, {}).outputs
    np.testing.assert_array_equal(outputs["p"], values["t"].ravel() * np.float32(0.5))
    np.testing.assert_array_equal(outputs["o"], values["z"].ravel())


@pytest.mark.parametrize(
    "change, said",
    (
        (("i2(4, 3, seed=1)", "i2(4, 3)"), "line 8.*has no contents"),
        (("Table('x'", "Tabel('x'"), "line 8.*Tabel"),
        (("Ref('x', 1, 2)", "Ref('x', 1, 2"), "line 9"),
    ),
)
def test_bad_text_is_named_by_its_line(change, said):
    with pytest.raises(ValueError, match=said):
        parse(join(SUM).replace(*change), QGraph)


@pytest.mark.parametrize(
    "change, said",
    (
        (("Ref('x', 1, 2)", "Ref('u', 1, 2)"), "y: reads 'u', which no earlier node makes"),
        (("Ref('x', 1, 2)", "Ref('x', 1, 4)"), "y: rows 1..5 of 4"),
        (("values['t'] = Value(4, 2, 0.5)", "values['t'] = Value(4, 2, 0.4)"), "y: adds steps of 0.4 to steps of 0.5"),
        (("[[64, 0], [0, 64]]", "[[-128, 0], [0, 64]]"), "z: weight -128..64"),
        (("[30000, 300]", "[30000, -3]"), "z: column multiplier -3..30000"),
        (("20, i2", "3, i2"), "z: shift 3"),
        (("at=1", "at=3"), "y: rows 3..5 of 4"),
    ),
)
def test_verify_names_the_node(change, said):
    with pytest.raises(ValueError, match=said):
        qgraph.verify(parse(join(SUM).replace(*change), QGraph))
