"""Networks that choose by what they see: proven against their files, in integers as in floating point, on the machine."""


import numpy as np
import pytest

import chosen_maker as maker
import test_machine as machine
from hwgen import graph as fg
from hwgen.config import Config
from hwgen.errors import UserError
from hwgen.levels import check, import_model
from hwgen.quantise.hard import ONE, TOP
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden

CONFIG = Config(array_outputs=16, array_inputs=16, bank_words=4096, window_chunks=1, select_rows=64)


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *maker.IMAGE)).astype(np.float32)


def db(wanted, found):
    return 10 * np.log10(np.square(wanted).mean() / np.square(wanted - found).mean())


def same_choices(graph, values, run):
    """Whether integers chose what floating point chooses, everywhere."""
    for n in graph.nodes:
        if isinstance(n, fg.Select) and n.scores in run.values:
            chosen = (np.argsort(-np.asarray(v[n.scores], float).reshape(-1), kind="stable") for v in (values, run.values))
            one, other = (order[n.first : n.first + n.count] for order in chosen)
            if set(one) != set(other):
                return False
        if isinstance(n, fg.Step | fg.Hard) and not np.array_equal(values[n.name] > 0, run.values[n.name] > 0):
            return False
    return True


@pytest.mark.parametrize("form", maker.NETWORKS, ids=lambda f: f.__name__)
def test_networks(form, tmp_path):
    """The import compares with the file on random images; on images of which both choose alike the outputs agree; the machine is
    golden bit for bit on all."""
    graph = import_model(maker.write(tmp_path / "m.onnx", form))
    assert any(isinstance(n, fg.Select | fg.Step | fg.Hard) for n in graph.nodes)
    integer = integers({"": graph}, {"image": images(16)})[""]
    program = schedule({"": integer}, CONFIG)
    found, every = [], images(12, 5)
    for i, image in enumerate(every):
        values = fg.evaluate(graph, {"image": image}, np.float64)
        run = golden.run(integer, {"image": image}, trace=True)
        ((name, wanted),) = fg.outputs(graph, values).items()
        if same_choices(graph, values, run):
            found.append(db(wanted, run.outputs[name]))
        if i < 2:
            machine.assert_equal(machine.run(program, {"image": image}), run.outputs)
    assert len(found) >= 3 and np.mean(found) >= 20, found


# --- choices as numbers --------------------------------------------------------------------------------------------


def choice(node, rows=24, columns=40, **fields):
    """A graph of one choice of [rows, columns], of which image pixels are the numbers."""
    patch = (1, 1, columns)
    weight = np.eye(columns, dtype=np.float32).reshape(columns, *patch)
    nodes = [fg.PatchEmbed("x", "image", weight, None), node("y", "x", **fields)]
    outputs = [fg.Output(name, name, (rows, columns)) for name in "xy"]
    return fg.Graph({"image": (1, rows, columns)}, nodes, outputs)


def cases(rows, columns):
    rng = np.random.default_rng(0)
    return {
        "random": rng.standard_normal((rows, columns)),
        "ties": rng.integers(-2, 3, (rows, columns)),
        "all the same": np.full((rows, columns), -3.0),
        "zero": np.zeros((rows, columns)),
        "the least there is": np.full((rows, columns), -1e6),
        "far apart": np.where(rng.random((rows, columns)) < 0.5, -1e6, 1e6),
        "one": np.where(np.arange(rows)[:, None] == rows - 1, 3.0, -3.0) + np.zeros(columns),
    }


def run_choice(graph, rows, columns, what):
    """(int16 of x, of y) of each case, equal on the machine."""
    seen = np.random.default_rng(1).standard_normal((8, 1, rows, columns)).astype(np.float32)
    integer = integers({"": graph}, {"image": seen})[""]
    program = schedule({"": integer}, CONFIG)
    for name, numbers in cases(rows, columns).items():
        run = golden.run(integer, {"image": numbers[None].astype(np.float32)}, trace=True)
        machine.assert_equal(machine.run(program, {"image": numbers[None].astype(np.float32)}), run.outputs)
        what(name, *(np.asarray(run.values[v], np.int64) for v in "xy"))


@pytest.mark.parametrize("rows, place", [(2, 0), (2, 1), (24, 0), (24, 3), (63, 1), (66, 0), (66, 2)])
def test_the_best_of_each(rows, place):
    """The first of the largest elements, without those that are better: of integers, whatever they are."""

    def right(name, x, y):
        best = np.argsort(-x, axis=0, kind="stable")[place]
        assert np.array_equal(y, TOP * (np.arange(rows)[:, None] == best)), name

    run_choice(choice(fg.Hard, rows, place=place), rows, 40, right)


@pytest.mark.parametrize("at_zero", [False, True])
def test_steps(at_zero):
    def right(name, x, y):
        assert np.array_equal(y, TOP * (x >= 0 if at_zero else x > 0)), name

    run_choice(choice(fg.Step, at_zero=at_zero), 24, 40, right)
    assert ONE * TOP == 1


# --- what is refused -----------------------------------------------------------------------------------------------


def refused(tmp_path, form, operator):
    path = maker.write(tmp_path / "m.onnx", form)
    findings = check(path)
    assert findings and {f.op for f in findings} <= {operator, "TopK"}, findings
    with pytest.raises(UserError, match=findings[0].node):
        import_model(path)
    return findings


def test_many_lists_are_refused(tmp_path):
    """Channels that each choose tokens of their own, more than selections one behind the other are made for."""

    def form(w):
        x = w.linear(w.tokens(), maker.D, 96)
        index = w.op("TopK", x, maker.ints(5), outputs=2, axis=1)[1]
        return w.linear(w.mean(w.op("GatherElements", x, index, axis=1)), 96, maker.CLASSES)

    refused(tmp_path, form, "GatherElements")


def test_written_over_by_several_is_refused(tmp_path):
    """Rows of which several may go to one place, where the last one stays."""

    def form(w):
        x = w.tokens()
        index = w.op("ArgMax", w.op("MatMul", x, w.turned(x)), axis=2, keepdims=0)
        at = w.expanded(index, 1, maker.PATCHES, maker.D)
        return w.classes(w.op("ScatterElements", x, at, w.linear(x), axis=1))

    refused(tmp_path, form, "ScatterElements")
