"""What int8 loses too much of: layers in 16 bits where outputs hear it, room where few numbers were seen, large scores."""

from dataclasses import replace

import numpy as np
import pytest

import graph_maker as vits
import hwgen.quantise
import map_maker as maker
import test_machine as machine
from hwgen import graph as fg
from hwgen import qgraph
from hwgen.leveltext import parse, text
from hwgen.quantise import Quantisation, quantise
from hwgen.quantise.calibrate import ENOUGH, Range
from hwgen.quantise.plan import map_height
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden, quantised


def differences(build, seed=0):
    """A network of layers whose outputs are small differences of large numbers, of which int8 keeps little."""
    m = maker.Maker(seed=seed)
    m.nodes[0] = replace(m.nodes[0], bias=m.nodes[0].bias + 12)
    build(m)
    for i, node in enumerate(m.nodes[1:], 1):
        if isinstance(node, fg.Conv | fg.Linear):
            weight = node.weight - node.weight.mean(axis=tuple(range(1, node.weight.ndim)), keepdims=True)
            m.nodes[i] = replace(node, weight=weight * np.float32(8), bias=node.bias + np.float32(12))
    graph = fg.Graph(m.inputs, m.nodes, [])
    graph.outputs = [fg.Output("y", m.nodes[-1].name, fg.shapes(graph)[m.nodes[-1].name])]
    fg.verify(graph)
    return graph


def convolutions(m):
    x = m.conv(m.act(m.conv("patches", pads=(0, 0, 0, 0)), "relu"), size=(4, 6), pads=(0, 0, 0, 0))
    m.linear(m.act(m.linear(x, outputs=24), "gelu"), 24)


def residual(m):
    x = m.add("patches", m.conv("patches", (1, 1), pads=(0, 0, 0, 0)))
    m.linear(m.act(m.conv(x, (1, 1), pads=(0, 0, 0, 0)), "hardswish"))


def attention(m):
    """Windows with a bias each; scores of several nats, so that what int8 leaves of queries and keys is heard."""
    m.attention(m.norm("patches"), masks=True)


NETWORKS = {"convolutions": convolutions, "residual": residual, "attention": attention}


def decibels(graph, level_q, count=3):
    """Of golden, which must be what level Q means, on unseen images."""
    level_m, images, errors = select(level_q), maker_images(graph, count), []
    for i in range(count):
        image = {name: data[i] for name, data in images.items()}
        found = golden.run(level_m, image).outputs
        for name, rows in quantised.outputs(level_q, quantised.evaluate(level_q, image)).items():
            np.testing.assert_array_equal(found[name], rows)
        wanted = fg.outputs(graph, fg.evaluate(graph, image))["y"]
        errors.append((np.square(wanted - wanted.mean()).sum(), np.square(wanted - found["y"]).sum()))
    signal, noise = np.sum(errors, axis=0)
    return 10 * np.log10(signal / noise)


def maker_images(graph, count, seed=5):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-1, 1, (count, *shape)).astype(np.float32) for name, shape in graph.inputs.items()}


def test_an_image_that_outputs_hear_too_much_of_has_sixteen_bits():
    """Small differences of large pixels: where these are bytes, nothing is left of them. In DRAM, elements of 2 bytes."""
    m = maker.Maker(seed=3)
    weight = m.nodes[0].weight.reshape(len(m.nodes[0].weight), -1)
    weight = (weight - weight.mean(axis=1, keepdims=True)).reshape(m.nodes[0].weight.shape) * np.float32(20)
    m.nodes[0] = replace(m.nodes[0], weight=weight)
    m.linear(m.act("patches", "relu"))
    graph = fg.Graph(m.inputs, m.nodes, [])
    graph.outputs = [fg.Output("y", m.nodes[-1].name, fg.shapes(graph)[m.nodes[-1].name])]
    calibration = {name: 40 + data for name, data in maker_images(graph, 8, 1).items()}
    wide, narrow = (quantise({"": graph}, calibration, Quantisation(min_snr=db))[""] for db in (55.0, 0.0))
    images, found = {name: 40 + data for name, data in maker_images(graph, 1).items()}, []
    image = {name: data[0] for name, data in images.items()}
    wanted = fg.outputs(graph, fg.evaluate(graph, image))["y"]
    for made in (wide, narrow):
        rows = quantised.outputs(made, quantised.evaluate(made, image))["y"]
        found.append(10 * np.log10(np.square(wanted - wanted.mean()).sum() / np.square(wanted - rows).sum()))
    assert found[0] > found[1] + 12 and found[0] > 45
    config = replace(machine.CONFIGS["12x20"], bank_words=8192, scale_entries=4096, window_chunks=1)
    program = schedule({"": select(wide)}, config)
    (slot,) = program.tasks[""].inputs
    assert slot.fine and slot.layout.element_bytes == 2
    machine.assert_equal(machine.run(program, image), golden.run(select(wide), image).outputs)


def test_neighbours_are_tried_together_where_layers_are_many(monkeypatch):
    """As many trials as there is time for, and no network whose layers all stay in int8 for the number of them."""
    graph = differences(convolutions)
    calibration, limit = maker_images(graph, 8, 1), 2 * len(graph.nodes)
    monkeypatch.setattr(hwgen.quantise.sensitive, "TRIED", limit)
    wide, narrow = (quantise({"": graph}, calibration, Quantisation(min_snr=db))[""] for db in (60.0, 0.0))
    assert decibels(graph, wide) > decibels(graph, narrow) + 6


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_whose_rounding_outputs_hear_have_sixteen_bits(network, monkeypatch):
    graph = differences(NETWORKS[network])
    calibration = maker_images(graph, 8, 1)
    monkeypatch.setattr(hwgen.quantise.sensitive, "MORE", 30.0)
    wide = quantise({"": graph}, calibration, Quantisation(min_snr=60.0))[""]
    narrow = quantise({"": graph}, calibration, Quantisation(min_snr=0.0))[""]
    assert len(wide.nodes) > len(narrow.nodes) + 4
    assert any(isinstance(n, qgraph.Attention) and n.low for n in wide.nodes) == (network == "attention")
    assert decibels(graph, wide) > decibels(graph, narrow) + 6
    arrays = []
    again = parse(text(wide, arrays), qgraph.QGraph, arrays)
    assert text(again, []) == text(wide, [])
    image = {name: data[0] for name, data in maker_images(graph, 1).items()}
    level_m = select(wide)
    config = replace(machine.CONFIGS["12x20"], bank_words=8192, scale_entries=4096, acc_rows=64, window_chunks=1)
    machine.assert_equal(machine.run(schedule({"": level_m}, config), image), golden.run(level_m, image).outputs)


def test_a_network_that_keeps_enough_is_left_as_it_is(monkeypatch):
    graph = vits.vit()
    made = [len(quantise({"": graph}, None)[""].nodes)]
    monkeypatch.setattr(hwgen.quantise, "wide_layers", lambda *_: set())
    assert made == [len(quantise({"": graph}, None)[""].nodes)]


def test_room_where_few_numbers_were_seen():
    assert Range(np.zeros(1), np.ones(1)).room == 1  # known
    rooms = [Range(np.zeros(1), np.ones(1), seen).room for seen in (1, 8, 64, 1000, ENOUGH, 10 * ENOUGH)]
    assert rooms == sorted(rooms, reverse=True) and rooms[0] < 4 and rooms[-2:] == [1, 1]
    rng = np.random.default_rng(0)
    for count in (16, 64, 400):
        peaks = np.abs(rng.standard_normal((1000, count))).max(axis=1)
        room = Range(np.zeros(1), np.ones(1), count).room
        assert 3 < np.median(peaks) * room < 5  # deviations: little of a normal value lies beyond


@pytest.mark.parametrize("bias", (False, True))
def test_scores_beyond_int16_make_softmax_softer_not_flat(bias):
    """All that saturates would count alike. A bias keeps its share of the scores, and the warning says how much is left."""
    graph = vits.vit(depth=1, classes=0)
    if bias:
        shape = (2, 7, 7)
        table = -np.abs(np.random.default_rng(3).standard_normal(shape)).astype(np.float32) * 9000
        graph = vits.change(graph, "0.attn", bias=table - table.max(axis=-1, keepdims=True))
    graph = vits.change(graph, "0.attn", scale=3000.0)
    made = quantise({"": graph}, vits.images(graph, 12))[""]
    (warning,) = made.warnings
    times = float(warning.split("softmax is ")[1].split(" times")[0])
    assert times > 1.2 and "Attention '0.attn'" in warning
    node, level_m = graph.node("0.attn"), select(made)
    softer = vits.change(graph, "0.attn", scale=node.scale / times, bias=None if node.bias is None else node.bias / times)
    errors = []
    for i in range(6):
        image = {name: data[i] for name, data in vits.images(graph, 6, seed=2).items()}
        wanted = fg.evaluate(softer, image)["0.attn"]
        found = golden.run(level_m, image, trace=True).values["0.attn"]
        real = found * level_m.buffers[level_m.trace["0.attn"][0].buffer].scale + level_m.offsets.get("0.attn", 0.0)
        wanted, real = (x.reshape(len(x), 2, -1) for x in (wanted, real))
        errors.append(np.square(wanted - real).sum(axis=2) / np.square(wanted).sum(axis=2))
    assert np.mean(np.array(errors) < 0.01) > 0.9  # of tokens and heads; int8 queries tell equal scores apart otherwise


def test_maps_that_a_window_can_walk():
    assert map_height(4095) == 4095 and map_height(4096) == 2048 and map_height(4099) is None
