"""Selective scans: the ways to write them, and their states in integers as in floating point."""


import numpy as np
import pytest

import scan_maker as maker
from hwgen import graph as fg
from hwgen import numerics as num
from hwgen.errors import UserError
from hwgen.intgraph import ScanRows
from hwgen.levels import check, import_model
from hwgen.select import integers
from hwgen.sim import golden


def imported(tmp_path, *scans):
    """The network's graph, which the import has compared with the file on random images."""
    return import_model(maker.write(tmp_path / "m.onnx", maker.network(*scans)))


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *maker.IMAGE)).astype(np.float32)


FORMS = {
    "all states at once": (maker.at_once, 1),
    "backwards": (lambda w, x: maker.at_once(w, x, backwards=True), 1),
    "without a skip": (lambda w, x: maker.at_once(w, x, skip=False), 1),
    "step by step": (maker.by_steps, 1),
    "backwards step by step": (lambda w, x: maker.by_steps(w, x, backwards=True), 1),
    "tokens turned round": (maker.flipped, 1),
    "two directions": (maker.both, 2),
    "four directions": (maker.four, 4),
    "four directions at once": (lambda w, x: maker.four(w, x, together=True), 4),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    scan, count = FORMS[form]
    graph = imported(tmp_path, scan)
    found = [n for n in graph.nodes if isinstance(n, fg.Scan)]
    assert len(found) == count
    assert all(n.rates.shape == (maker.INNER, maker.STATES) and n.skip.any() == (form != "without a skip") for n in found)
    kinds = [type(n) for n in graph.nodes]
    if count < 4:  # tokens stay where they are: the machine goes from the last to the first
        turned = form.startswith(("backwards", "two")) or "turned" in form
        assert any(n.backwards for n in found) == turned and fg.Gather not in kinds
    assert fg.Transpose not in kinds and kinds.count(fg.Multiply) == 1  # of the block's gate


def test_definition():
    """The node against the recurrence, a number at a time."""
    rng = np.random.default_rng(0)
    x, steps, mix = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)), rng.normal(size=(7, 4))
    node = fg.Scan("y", "x", "steps", "mix", -np.exp(rng.normal(size=(3, 2))), rng.normal(size=3))
    y = fg.evaluate_node(node, {"x": x, "steps": steps, "mix": mix})
    for c in range(3):
        state = np.zeros(2)
        for t in range(7):
            d = np.log1p(np.exp(steps[t, c]))
            state = np.exp(d * node.rates[c]) * state + d * mix[t, :2] * x[t, c]
            np.testing.assert_allclose(y[t, c], state @ mix[t, 2:] + node.skip[c] * x[t, c])


def test_what_is_refused_is_named(tmp_path):
    """A scan that decays by something else, and one with more states than the machine holds."""

    def other(w, x):
        d, b, g = w.operands(x)
        states = w.states_of(w.op("Sin", d), w.fed(d, x, b), w.rates())
        every = w.op("Concat", *(w.wide(s, 1) for s in states), axis=1)
        return w.op("Squeeze", w.op("MatMul", every, w.wide(g, 3)), np.array([3], np.int64))

    def many(w, x):
        return maker.at_once(w, x, states=num.SCAN_STATES_MAX + 1)

    for scan, reason in ((other, "sin"), (many, "a scan of 17 states a channel, of which the machine holds 16")):
        path = maker.write(tmp_path / "m.onnx", maker.network(scan))
        findings = check(path)
        assert any(reason in f.reason for f in findings)
        with pytest.raises(UserError, match=findings[0].node):
            import_model(path)


# --- integers --------------------------------------------------------------------------------------------------------


def db(wanted, found):
    return 10 * np.log10(np.square(wanted).mean() / np.square(wanted - found).mean())


@pytest.mark.parametrize("scans", [(maker.at_once, maker.flipped), (maker.both,), (maker.by_steps,), (maker.four,)])
def test_golden_against_float(tmp_path, scans):
    graph = imported(tmp_path, *scans)
    integer = integers({"": graph}, {"image": images(16)})[""]
    assert sum(isinstance(op, ScanRows) for op in integer.ops) == sum(isinstance(n, fg.Scan) for n in graph.nodes)
    found = []
    for image in images(8, 5):
        ((name, wanted),) = fg.outputs(graph, fg.evaluate(graph, {"image": image}, np.float64)).items()
        found.append(db(wanted, golden.run(integer, {"image": image}).outputs[name]))
    assert np.mean(found) >= 27 and min(found) >= 20


def test_what_is_fed_has_room_where_little_of_it_is_mixed_in():
    """Of some tokens a tenth of the weight meets ten times as much, so that states stay small; channels differ by as much."""
    rng = np.random.default_rng(3)
    channels, states = 8, 4

    def linear(name, rows):
        return fg.Linear(name, "p", np.array(rows, np.float32), np.zeros(len(rows), np.float32))

    nodes = [
        fg.PatchEmbed("p", "image", np.eye(3, dtype=np.float32)[:, :, None, None], None),
        linear("x", [[0.1 ** (k / 7), 0.0, 0.0] for k in range(channels)]),
        linear("steps", [[0.0, 0.0, 1.0]] * channels),
        linear("mix", [[0.0, 1.0, 0.0]] * states + [[1.0, 1.0, 0.0]] * states),
        fg.Scan("y", "x", "steps", "mix", -np.full((channels, states), 4.0, np.float32), np.zeros(channels, np.float32)),
    ]
    graph = fg.Graph({"image": (3, 4, 8)}, nodes, [fg.Output("out", "y", (32, channels))])
    fg.verify(graph)
    first = rng.integers(0, 2, (9, 4, 8)) * 0.9 + 0.1
    data = np.stack([first, 0.1 / first, np.ones_like(first)], 1) * rng.uniform(0.7, 1.0, (9, 3, 4, 8))
    integer = integers({"": graph}, {"image": data[1:].astype(np.float32)})[""]
    image = {"image": data[0].astype(np.float32)}
    ((name, wanted),) = fg.outputs(graph, fg.evaluate(graph, image, np.float64)).items()
    found = golden.run(integer, image).outputs[name]
    assert db(wanted[:, 0], found[:, 0]) > 27


def test_softplus():
    s = np.arange(-num.INT16_MAX, num.INT16_MAX + 1)
    for steps, step in ((0, 8), (3, 4), (6, 0), (6, 2)):
        shifts = num.ScanShifts(steps, step, 0, 0, 0, 0)
        real = np.logaddexp(s / 2.0 ** (7 + steps), 0)
        got = num.softplus_step(s, shifts) / 2.0 ** (num.SOFTPLUS_BITS - step)
        most = num.U16_MAX / 2.0 ** (num.SOFTPLUS_BITS - step)
        error = np.abs(got - np.minimum(real, most))
        unit = 2.0 ** (step - num.SOFTPLUS_BITS)
        assert (error <= 0.005 * real + unit + (real < np.exp(-7.9)) * np.exp(-7.9)).all()


def test_decay():
    rng = np.random.default_rng(0)
    step, rate = rng.integers(0, 1 << 16, (2, 100_000))
    step, rate = np.append(step, [0, 65535]), np.append(rate, [65535, 65535])
    for shift in num.DECAY_SHIFTS:
        real = 2.0 ** (-(step * rate) / 2.0 ** (num.SCAN_EXPONENT_BITS + shift))
        got = num.scan_decay(step, rate, shift) / 2.0**num.SCAN_DECAY_BITS
        assert np.abs(got - real).max() < 2.0**-13
        assert got.min() >= 0 and got.max() <= 1


def test_states_keep_their_bits():
    """A slow decay over many tokens: 16-bit operands, a state of 24 bits, next to nothing lost against floating point."""
    rng = np.random.default_rng(1)
    tokens, channels, states = 400, 6, 8
    x, mix = rng.integers(-12000, 12000, (tokens, channels)), rng.integers(-12000, 12000, (tokens, 2 * states))
    steps = rng.integers(-30000, -20000, (tokens, channels))  # about 0.007
    shifts = num.ScanShifts(steps=5, step=0, fed=11, decay=2, skip=20, out=12)
    rates = rng.integers(2000, 20000, (states, channels))
    params = np.concatenate([rng.integers(-30000, 30000, (1, channels)), rates])
    got = num.scan(x, steps, mix, params, shifts)
    step = num.softplus_step(steps, shifts).astype(float)
    state, wanted = np.zeros((states, channels)), np.zeros((tokens, channels))
    for t in range(tokens):
        state = state * 2.0 ** (-step[t] * rates / 2.0 ** (14 + num.DECAY_SHIFTS[2]))
        state += np.outer(mix[t, :states], step[t] * x[t]) / 2.0 ** (shifts.fed + 8)
        wanted[t] = (mix[t, states:] @ (state / 256) + params[0] * x[t] * 2.0 ** (16 - shifts.skip)) / 2.0**shifts.out
    assert 1000 < np.abs(wanted).max() < num.INT16_MAX
    assert db(wanted, got) > 55


def test_scan_saturates():
    """The largest operands of either sign leave nothing that wraps."""
    for x, b, g in np.ndindex(2, 2, 2):
        signs = [(-1) ** k for k in (x, b, g)]
        xs, mix = np.full((9, 2), signs[0] * num.INT16_MAX), np.repeat([[signs[1], signs[2]]], 9, axis=0) * num.INT16_MAX
        shifts = num.ScanShifts(6, 0, 0, 0, 31, 0)
        y = num.scan(xs, np.full((9, 2), num.INT16_MAX), mix, np.zeros((2, 2), np.int16), shifts)
        assert (y == signs[0] * signs[1] * signs[2] * num.INT16_MAX).all()
