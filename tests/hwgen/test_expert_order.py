"""Experts run in the order in which the calibration images use them; what they are called and what comes out stays."""


import numpy as np
import pytest

import graph_maker
from hwgen import graph as fg
from hwgen import isa
from hwgen import qgraph as q
from hwgen.config import Config
from hwgen.counts import expected
from hwgen.intgraph import MatMul, RouteTokens
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden, quantised


@pytest.fixture(scope="module")
def network():
    graph = graph_maker.vit(experts=5, top_k=2)
    return graph, graph_maker.images(graph, count=3)


def _popularity(graph, images):
    """Experts by images that use them, then by their tokens, then by number, as the float graph routes."""
    (route,) = (n for n in graph.nodes if isinstance(n, fg.Route))
    used, tokens = np.zeros(5, int), np.zeros(5, int)
    for i in range(len(next(iter(images.values())))):
        values = fg.evaluate(graph, {name: data[i] for name, data in images.items()}, np.float64)
        for e in range(5):
            count = int((values[route.name][0] == e).sum())
            used[e], tokens[e] = used[e] + (count > 0), tokens[e] + count
    return sorted(range(5), key=lambda e: (-used[e], -tokens[e], e))


def test_machine_takes_the_most_used_experts_first(network):
    graph, images = network
    made = select(quantise({"": graph}, images)[""])
    order = [op.expert[1] for op in made.ops if isinstance(op, MatMul) and op.expert is not None][::2]
    assert order == _popularity(graph, images)
    assert order != sorted(order)  # else the test shows nothing


def test_queues_and_outputs_keep_the_numbers_of_the_file(network):
    graph, images = network
    level = quantise({"": graph}, images)[""]
    made = select(level)
    one = {name: data[0] for name, data in images.items()}
    found = golden.run(made, one)
    for name, output in quantised.outputs(level, quantised.evaluate(level, one)).items():
        np.testing.assert_array_equal(found.outputs[name], output)
    (route,) = (op for op in made.ops if isinstance(op, RouteTokens))
    (float_route,) = (n for n in graph.nodes if isinstance(n, fg.Route))
    chosen = fg.evaluate(graph, one, np.float64)[float_route.name][0]
    counts = [len(found.queues[route.name, e][0]) for e in range(5)]
    expected = np.bincount(chosen.reshape(-1), minlength=5)
    assert np.abs(counts - expected).sum() <= 2  # a token on the border between two experts may fall to the other


def test_noise_leaves_experts_in_the_order_of_the_file(network):
    graph, _ = network
    (node,) = (n for n in quantise({"": graph}, None)[""].nodes if isinstance(n, q.Experts))
    assert node.turns == (0, 1, 2, 3, 4)


def test_estimates_expect_what_calibration_images_ask_of_experts(network):
    graph, images = network
    made = select(quantise({"": graph}, images)[""])
    (route,) = (op for op in made.ops if isinstance(op, RouteTokens))
    order = _popularity(graph, images)
    assert [route.loads[e] for e in order] == sorted(route.loads, reverse=True)
    (float_route,) = (n for n in graph.nodes if isinstance(n, fg.Route))
    ranked = np.zeros(5, int)
    for i in range(len(next(iter(images.values())))):
        values = fg.evaluate(graph, {name: data[i] for name, data in images.items()}, np.float64)
        ranked += np.sort(np.bincount(values[float_route.name][0].reshape(-1), minlength=5))[::-1]
    assert [route.loads[e] for e in order] == list(ranked)
    program = schedule({"": made}, Config(array_outputs=8, array_inputs=8))
    (queues,) = program.tasks[""].queues
    tokens = made.buffers[route.logits.buffer].rows * route.top_k
    assert sum(queues) == tokens and np.abs(np.array(queues) - tokens * np.array(route.loads) / ranked.sum()).max() < 1


def test_expected_queues_without_images_are_even():
    route = isa.Route(rows=7, experts=3, top_k=2, renormalise=0, dense=0, x=0, x_pitch=1)
    assert expected(route) == expected(route, (0, 0, 0)) == [4, 5, 5]
    assert expected(route, (3, 0, 1)) == [10, 0, 4]
