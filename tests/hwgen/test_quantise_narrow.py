"""Narrow weights: grids in groups, less loss with error feedback than without, tasks alike, fewer beats of DRAM."""

import sys
from dataclasses import replace

import numpy as np
import pytest

import graph_maker as maker
from hwgen import compare, isa
from hwgen.config import Config
from hwgen.counts import stream_beats
from hwgen.intgraph import MatMul
from hwgen.numerics import INT8_MAX, NARROW_BITS
from hwgen.quantise import Quantisation
from hwgen.quantise.feedback import GROUP, narrowed
from hwgen.quantise.narrow import LOSS, _safe, fewest_bits
from hwgen.schedule import schedule
from hwgen.schedule.narrow import factors
from hwgen.select import integers
from hwgen.sim import golden

CONFIG = Config(array_outputs=16, array_inputs=16, banks=2, bank_words=4096, acc_rows=64, weight_ports=1, norm_columns=256)


def built(graph, weights):
    return integers({"": graph}, maker.images(graph, 8), Quantisation(weights=weights))[""]


def snr(graph, integer):
    return compare.compare(graph, integer, maker.images(graph, 3, seed=5), golden.run, 1).outputs[0].snr_db


def products(integer):
    """Products of the graph whose weights may be narrow: name -> int8 [N, K]."""
    found = [op for op in integer.ops if isinstance(op, MatMul) and isinstance(op.w, np.ndarray)]
    return [(op.name, op.w) for op in found if op.w.shape[1] % GROUP == 0]


def fits(weight, bits):
    return bool(factors(weight.reshape(-1, GROUP), bits).all())


@pytest.mark.parametrize("bits", NARROW_BITS)
def test_feedback_loses_less_than_rounding(bits):
    rng = np.random.default_rng(bits)
    mixed = rng.standard_normal((48, 48)) * np.exp(rng.standard_normal(48))
    x = rng.standard_normal((400, 48)) @ mixed
    weights = rng.integers(-INT8_MAX, INT8_MAX + 1, (40, 48)).astype(np.int8)
    weights[3], weights[4, 16:32] = 0, 0

    def lost(made):
        return np.square(x @ (made.astype(float) - weights).T).sum()

    fed, rounded = narrowed(weights, x.T @ x / len(x), bits), narrowed(weights, np.eye(48), bits)
    assert fits(fed, bits) and fits(rounded, bits) and np.abs(fed.astype(int)).max() <= INT8_MAX
    assert not fed[3].any() and lost(fed) < 0.7 * lost(rounded)


def test_inputs_that_no_image_shows_are_rounded_alone():
    weights = np.random.default_rng(0).integers(-INT8_MAX, INT8_MAX + 1, (8, 40)).astype(np.int8)
    moments = np.zeros((40, 40))
    moments[:10, :10] = np.eye(10)
    for given in (moments, np.zeros((40, 40))):
        made = narrowed(weights, given, 6)
        assert np.abs(made.astype(int) - weights).max() <= 10  # what a factor less cuts off


def test_every_bit_costs_accuracy_and_saves_beats():
    graph = maker.vit(experts=4)
    last, beats = np.inf, []
    for weights in ("8", "6", "5", "4"):
        integer = built(graph, weights)
        experts = [op.w for op in integer.ops if isinstance(op, MatMul) and op.expert]
        assert experts and all(weights == "8" or fits(w, int(weights)) for w in experts)
        kept = snr(graph, integer)
        assert kept < last + 0.3
        last = kept
        for stored in (0, 1):
            config = replace(CONFIG, narrow_weights=stored)
            program = schedule({"": integer}, config)
            streams = [i for i in program.tasks[""].instructions if isinstance(i, isa.Stream)]
            if stored:
                beats.append(sum(stream_beats(i, config) for i in streams))
            else:
                assert not any(i.narrow for i in streams)
    assert beats == sorted(beats, reverse=True) and beats[3] < 0.75 * beats[0]


def test_single_layers_by_name_and_the_last_that_fits():
    graph = maker.vit(experts=4)
    for weights, layers in (("1.*:5", {"1"}), ("4,0.*:8,head:8", {"1"}), ("1.experts:6,1.add2:8", set())):
        found = {name.split(".")[0] for name, w in products(built(graph, weights)) if fits(w, 6)}
        assert found == layers, weights


def test_auto_loses_little():
    graph = maker.vit()
    plain, found = built(graph, "8"), built(graph, "auto")
    assert snr(graph, found) > snr(graph, plain) - 1.0
    assert any(fits(w, 6) for _, w in products(found))


def test_bits_are_taken_where_they_cost_least():
    """Of what a layer loses with 5 bits it loses 1/3.2 with 6 and 3.2 times with 4: what comes on top is what counts."""
    for times, bits in ((1 / 3.21, 4), (1 / 3.19, 5), (0.999, 5), (1.001, 6), (3.19, 6), (3.21, 8)):
        assert fewest_bits({"a": times * LOSS}, {"a": 10}) == {"a": bits}
    assert fewest_bits({"a": 9 * LOSS, "b": LOSS}, {"a": 10, "b": 10}) == {"a": 8, "b": 5}
    part = LOSS / 2.5  # a's sixth and fifth bits cost 0.31 and 0.69 of it, b's 1.88: there is no room for all
    losses = {"a": part, "b": 6 * part}
    assert fewest_bits(losses, {"a": 10, "b": 10}) == {"a": 5, "b": 8}
    assert fewest_bits(losses, {"a": 10, "b": 14}) == {"a": 6, "b": 6}  # b's are more bytes


def test_a_layer_loses_in_parts_of_what_the_network_loses_anyway(monkeypatch):
    narrow, seen = sys.modules["hwgen.quantise.narrow"], {}  # the package has a function of that name
    monkeypatch.setattr(narrow.Network, "kept", lambda *_: 30.0)  # a thousandth of the outputs is noise
    monkeypatch.setattr(narrow.Network, "noise", lambda *_: 2e-4)
    monkeypatch.setattr(narrow, "fewest_bits", lambda loss, sizes: seen.update(loss=loss, sizes=sizes) or dict.fromkeys(loss, 8))
    built(maker.vit(), "auto")
    assert seen["loss"] and seen["loss"].keys() == seen["sizes"].keys()
    assert all(lost == pytest.approx(0.2) for lost in seen["loss"].values()) and min(seen["sizes"].values()) > 100


def test_layers_that_tasks_share_stay_one():
    graph = maker.vit(experts=4)
    both = integers({"a": graph, "b": graph}, maker.images(graph, 8), Quantisation(weights="5"))
    for (_, one), (_, other) in zip(products(both["a"]), products(both["b"]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("inputs, taken", [(4100, True), (4200, False)])
def test_no_narrow_sum_leaves_the_accumulator(inputs, taken):
    """4,160 products of the largest int8 numbers are what it holds."""
    old, new = np.ones((2, inputs), np.int8), np.full((2, inputs), 127, np.int8)
    assert _safe(old, new) is (new if taken else old)
