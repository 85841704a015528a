"""Rows that a network chooses by its own scores: the ways to write it, and the same rows in integers as in floating point."""


import numpy as np
import pytest

import selection_maker as maker
import test_machine as machine
from hwgen import graph as fg
from hwgen.config import Config
from hwgen.intgraph import SelectRows
from hwgen.levels import import_model
from hwgen.numerics import SCORE_STEPS, probabilities
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden

KEPT, PATCHES, D = maker.KEPT, maker.PATCHES, maker.D
CONFIG = Config(array_outputs=16, array_inputs=16, bank_words=2048, window_chunks=1, select_rows=64)


def imported(tmp_path, form):
    """The form's graph, which the import has compared with the file on random images."""
    return import_model(maker.write(tmp_path / "m.onnx", form))


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *maker.IMAGE)).astype(np.float32)


FORMS = {
    "gathered by elements": lambda w, x: w.rows(x, w.best(w.score(x), KEPT), KEPT),
    "gathered": lambda w, x: w.op("Reshape", w.op("Gather", x, w.best(w.score(x), KEPT), axis=1), [1, KEPT, D]),
    "a run of a sort": lambda w, x: w.rows(x, w.cut(w.best(w.score(x), PATCHES), 1, 3, 3 + KEPT), KEPT),
    "the least": lambda w, x: w.rows(x, w.best(w.score(x), KEPT, largest=0), KEPT),
    "by a scaled score": lambda w, x: w.rows(x, w.best(w.op("Mul", w.score(x), -0.3), KEPT), KEPT),
    "some of the tokens": lambda w, x: w.rows(w.cut(x, 1, 3, PATCHES), w.best(w.cut(w.score(x), 1, 3, PATCHES), KEPT), KEPT),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    graph = imported(tmp_path, lambda w: maker.of_all(w, FORMS[form]))
    (chosen,) = (n for n in graph.nodes if isinstance(n, fg.Select))
    assert (chosen.first, chosen.count) == (3 if form == "a run of a sort" else 0, KEPT)
    assert not any(isinstance(n, fg.Gather | fg.Transpose) for n in graph.nodes)


def test_the_best_one(tmp_path):
    """ArgMax is a top-k of one."""

    def form(w):
        x = w.tokens()
        index = w.op("ArgMax", w.score(x), axis=1, keepdims=0)
        return w.head(w.op("Reshape", w.op("Gather", x, index, axis=1), [1, D]))

    (chosen,) = (n for n in imported(tmp_path, form).nodes if isinstance(n, fg.Select))
    assert (chosen.first, chosen.count) == (0, 1)


def test_class_attention(tmp_path):
    """Of one query's scores alone, over all heads; kept, dropped and their weights in one order."""
    graph = imported(tmp_path, maker.evit)
    shapes = fg.shapes(graph)
    products = [n for n in graph.nodes if isinstance(n, fg.Product)]
    assert [shapes[n.name] for n in products] == [(maker.H, PATCHES + 1)]
    runs = sorted((n.first, n.count) for n in graph.nodes if isinstance(n, fg.Select))
    assert runs == [(0, KEPT), (KEPT, PATCHES - KEPT), (KEPT, PATCHES - KEPT)]
    assert sum(isinstance(n, fg.Received) for n in graph.nodes) == 1


def db(wanted, found):
    return 10 * np.log10(np.square(wanted).mean() / np.square(wanted - found).mean())


def rows_of(scores, node):
    return np.argsort(-np.asarray(scores, np.int64 if scores.dtype.kind == "i" else float).reshape(-1), kind="stable")[
        node.first : node.first + node.count
    ]


@pytest.mark.parametrize("seed", range(3))
def test_same_rows_as_in_floating_point(tmp_path, seed):
    """Wherever scores differ by more than what the int16 score is off; and the score is off by next to nothing where the tokens
    are the same: it has 16 bits, not 8."""
    graph = imported(tmp_path, maker.scored)
    integer = integers({"": graph}, {"image": images(16, seed)})[""]
    (node,) = (n for n in graph.nodes if isinstance(n, fg.Select))
    score = graph.node(node.scores)
    view, _ = integer.trace[node.scores]
    step = integer.buffers[view.buffer].scale
    kept = 0
    for image in images(24, 100 + seed):
        values = fg.evaluate(graph, {"image": image}, np.float64)
        run = golden.run(integer, {"image": image}, trace=True)
        wanted, found = values[node.scores].reshape(-1), run.values[node.scores].reshape(-1)
        x = run.values[node.x] * integer.buffers[integer.trace[node.x][0].buffer].scale
        exact = (x @ score.weight.T.astype(np.float64) + score.bias).reshape(-1)
        off = np.abs(exact - found * step).max()
        assert off < 6 * step < np.ptp(wanted) / 500  # of which steps are fewer where few scores were seen
        chosen = rows_of(found, node)
        lost, taken = set(rows_of(exact, node)) - set(chosen), set(chosen) - set(rows_of(exact, node))
        assert all(exact[i] - exact[j] <= 2 * off for i in lost for j in taken)
        error = np.abs(wanted - found * step).max()  # of the tokens that 8-bit layers have made
        lost, taken = set(rows_of(wanted, node)) - set(chosen), set(chosen) - set(rows_of(wanted, node))
        assert all(wanted[i] - wanted[j] <= 2 * error for i in lost for j in taken)
        kept += set(chosen) == set(rows_of(wanted, node))
    assert kept >= 20


@pytest.mark.parametrize("form, least", [(maker.scored, 25), (maker.evit, 20)])
def test_golden_against_float_and_machine(tmp_path, form, least):
    """On images of which both keep the same tokens the outputs agree; the machine is golden bit for bit on all."""
    graph = imported(tmp_path, form)
    integer = integers({"": graph}, {"image": images(16)})[""]
    program = schedule({"": integer}, CONFIG)
    assert any(isinstance(op, SelectRows) for op in integer.ops)
    chosen = [n for n in graph.nodes if isinstance(n, fg.Select)]
    found = []
    for i, image in enumerate(images(12, 5)):
        values = fg.evaluate(graph, {"image": image}, np.float64)
        run = golden.run(integer, {"image": image}, trace=True)
        ((name, wanted),) = fg.outputs(graph, values).items()
        if all(set(rows_of(values[n.scores], n)) == set(rows_of(run.values[n.scores], n)) for n in chosen):
            found.append(db(wanted, run.outputs[name]))
        if i < 2:
            machine.assert_equal(machine.run(program, {"image": image}), run.outputs)
    assert len(found) >= 4 and np.mean(found) >= least


def test_received_rises_with_every_score():
    """Attention received of one query alone keeps the order of its scores, and tells apart what one softmax does not."""
    rng = np.random.default_rng(0)
    nodes = [
        fg.PatchEmbed("rows", "image", rng.normal(0, 0.2, (40, 3, 4, 4)).astype(np.float32), None),
        fg.Rows("row", "rows", 0, 1),
        fg.Received("y", "row"),
    ]
    graph = fg.Graph({"image": maker.IMAGE}, nodes, [fg.Output("y", "y", (40,)), fg.Output("x", "row", (40,))])
    integer = integers({"": graph}, {"image": images(16)})[""]
    more = 0
    for image in images(8, 3):
        found = golden.run(integer, {"image": image}).outputs
        order = np.argsort(found["x"].reshape(-1))
        y = found["y"].reshape(-1)[order]
        assert (np.diff(y) >= 0).all()
        steps = np.rint(np.log2(np.e) * SCORE_STEPS * (found["x"] - found["x"].max())).astype(int)
        more += len(np.unique(y)) - len(np.unique(probabilities(steps[None], np.zeros(1))))
        p = np.exp(found["x"] - found["x"].max())
        np.testing.assert_allclose(found["y"], p / p.sum(), atol=0.006)
    assert more >= 8
