"""Values of layers on the grid of 8 bits: steps, what is cut, and the page of it."""

import dataclasses
import re

import numpy as np
import pytest

import graph_maker as maker
from hwgen import compare, distributions
from hwgen.distributions import BINS, ROW, STATIC, WIDE, Watch
from hwgen.intgraph import Buffer, IntGraph, MatMul, View
from hwgen.isa import Convert
from hwgen.pages import compare as compare_page
from hwgen.select import integers
from hwgen.sim import golden


def product(name: str, source: str, target: str, convert=Convert.STATIC) -> MatMul:
    view = {b: View(b, 0, 4, 0, 8) for b in "abc"}
    return MatMul(name, view[target], view[source], np.zeros((8, 8), np.int8), x_convert=convert)


def graph(*ops: MatMul, scale=0.5) -> IntGraph:
    made = IntGraph({b: Buffer(b, 4, 8, scale=scale) for b in "abc"}, list(ops), [])
    made.trace["value"] = (View("b", 0, 4, 0, 8), "first")
    return made


def test_reading_is_that_of_the_products_until_it_is_overwritten():
    first = product("first", "a", "b")
    assert distributions.reading(graph(first), "value") == WIDE
    assert distributions.reading(graph(first, product("x", "b", "c")), "value") == STATIC
    assert distributions.reading(graph(first, product("x", "b", "c", Convert.ROW)), "value") == ROW
    later = product("x", "b", "c", Convert.ROW)
    assert distributions.reading(graph(first, product("y", "a", "b"), later), "value") == WIDE


def test_steps_and_what_is_cut():
    """A step of 8 bits is 256 of 16: 128.0 here. Of 32 values one lies beyond 127 steps."""
    watch = Watch(graph(product("first", "a", "b"), product("x", "b", "c")))
    stored = np.full((4, 8), 256)
    real = stored * 0.5
    real[0, 0] = 200 * 128.0
    watch.see("value", real, stored)
    (found,) = watch.found()
    assert (found.reading, found.step, found.clipped) == (STATIC, 128.0, 1 / 32)
    assert sum(found.real) == sum(found.integer) == 32 and found.real[-1] == 1 and found.integer[-1] == 0
    assert found.real[BINS // 2] == 31 and found.integer[BINS // 2] == 32
    assert found.rms == pytest.approx(np.sqrt((200**2 + 31) / 32))


def test_a_step_a_token_and_a_scale_a_column():
    watch = Watch(graph(product("first", "a", "b"), product("x", "b", "c", Convert.ROW), scale=np.full((1, 8), 0.25)))
    stored = np.array([[127 * n] + [0] * 7 for n in (1, 2, 3, 4)])
    watch.see("value", stored * 0.25, stored)
    (found,) = watch.found()
    assert found.reading == ROW and found.step == pytest.approx(2.5 * 0.25) and found.clipped == 0
    assert found.real == found.integer and sum(count > 0 for count in found.real) == 2


def test_of_a_network_and_its_page():
    network = maker.vit(depth=2, experts=4)
    integer = integers({"": network}, maker.images(network, 12))[""]
    images, watch = maker.images(network, 2, seed=2), Watch(integer)
    plain = compare.compare(network, integer, images, golden.run)
    found = compare.compare(network, integer, images, golden.run, watch=watch)
    assert dataclasses.replace(found, distributions=()) == plain
    assert [d.name for d in found.distributions] == [layer.name for layer in found.layers]
    kinds = {d.name: d.reading for d in found.distributions}
    assert STATIC in kinds.values() and ROW in kinds.values()
    for d in found.distributions:  # the two nearly coincide: what differs is within a bin or two of its share
        real, whole = np.cumsum(d.real), sum(d.real)
        assert abs(real - np.cumsum(d.integer)).max() < 0.25 * whole, d.name
    page = compare_page.page(found, "<net>.onnx", "net.bundle")
    assert not re.search(r"https?:|<link|src=|url\(", page) and "&lt;net&gt;.onnx" in page
    assert page.count("<svg") == len(found.layers) and "Most of the error enters at" in page
    assert page == compare_page.page(found, "<net>.onnx", "net.bundle")
