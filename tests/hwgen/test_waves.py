"""Sines and cosines by polynomials: how far off, of what, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import form_maker as maker
from hwgen import graph as fg
from hwgen.levels import check, import_model
from hwgen.rows.waves import MOST, NEAR, bounds, coefficients
from hwgen.select import integers
from hwgen.sim import golden
from hwgen.tensor import Builder


@pytest.mark.parametrize("function", ["sin", "cos"])
@pytest.mark.parametrize(("middle", "half"), [(np.pi, np.pi), (0.0, np.pi), (0.7, 0.3), (np.pi / 2, np.pi / 2), (-2.0, MOST / 2)])
def test_polynomials(function, middle, half):
    even, odd = coefficients(function, middle, half)
    z = np.linspace(-1, 1, 1001)
    got = sum(c * z ** (2 * i) for i, c in enumerate(even)) + sum(c * z ** (2 * i + 1) for i, c in enumerate(odd))
    assert np.abs(got - getattr(np, function)(middle + half * z)).max() < 3 * NEAR
    assert max(map(abs, even + odd)) < 8  # whose steps of 16 bits are small


def test_what_is_symmetric_has_one_kind_of_powers():
    assert coefficients("sin", np.pi, np.pi)[0] == [] and coefficients("cos", np.pi, np.pi)[1] == []
    assert coefficients("sin", np.pi / 2, 1e-9) == ([1.0], []) or len(coefficients("sin", np.pi / 2, 1e-9)[0]) == 1


def test_bounds():
    t = Builder()
    x = t.input("x", (2, 3))
    one = t.map("sigmoid", x)
    assert bounds(x) == (-np.inf, np.inf) and bounds(t.map("mul", x, 0.0))[0] in (0.0, -np.inf)
    held = t.map("sub", t.map("div", 3.0, t.map("add", t.const(np.array([1.0, 2.0], np.float32)), 1.0)), 1.0)
    assert bounds(held) == pytest.approx((0.0, 0.5))
    assert bounds(t.map("div", x, one)) == (-np.inf, np.inf)


def waves(w, limited):
    x = w.linear(w.tokens())
    x = w.op("Mul", w.op("Sigmoid", x), 6.28) if limited else x
    return w.op("Concat", w.op("Sin", x), w.op("Cos", x), axis=2)


def test_waves_keep_their_digits(tmp_path):
    """Off by what the product in front of the sigmoid is, no more."""
    w = maker.Writer()
    graph = import_model(w.write(tmp_path / "m.onnx", maker.IMAGE, waves(w, True), [1, maker.T, 2 * maker.D]))
    images = np.random.default_rng(0).normal(size=(8, *maker.IMAGE)).astype(np.float32)
    integer = integers({"": graph}, {"image": images})[""]
    for image in images[:3]:
        ((name, wanted),) = fg.outputs(graph, fg.evaluate(graph, {"image": image}, np.float64)).items()
        assert np.sqrt(np.mean(np.square(wanted - golden.run(integer, {"image": image}).outputs[name]))) < 0.02


def test_what_nothing_limits_is_refused(tmp_path):
    w = maker.Writer()
    findings = check(w.write(tmp_path / "m.onnx", maker.IMAGE, waves(w, False), [1, maker.T, 2 * maker.D]))
    assert [f.op for f in findings] == ["Sin", "Cos"] and "more than one turn" in findings[0].reason
