"""The per-layer report: its numbers, its offsets, its table."""

import json
from dataclasses import asdict

import numpy as np

import graph_maker as maker
from hwgen import compare
from hwgen import graph as fg
from hwgen.intgraph import Buffer, IntGraph, Output, View
from hwgen.select import integers
from hwgen.sim import golden


def compared(graph, count=2):
    integer = integers({"": graph}, maker.images(graph, 12))[""]
    return compare.compare(graph, integer, maker.images(graph, count, seed=2), golden.run)


def test_every_layer_of_a_network_is_close():
    found = compared(maker.vit(depth=4, experts=4))
    assert found.images == 2
    names = [layer.name for layer in found.layers]
    assert names[0] == "embed" and names[-1] == "head"
    assert {"0.q", "0.attn", "0.gelu", "1.gate", "1.add2"} <= set(names)
    assert all(layer.snr_db > 15 and layer.cosine > 0.97 for layer in found.layers + found.outputs)
    assert [router.name for router in found.routers] == ["1.route", "3.route"]
    assert all(router.agreement > 0.9 for router in found.routers)
    assert [(o.name, o.kind) for o in found.outputs] == [("logits", "output")]


def test_attention_is_compared_without_the_folded_bias():
    graph = maker.change(maker.vit(depth=1), "0.v", bias=np.full(32, 50, np.float32))
    (attention,) = (layer for layer in compared(graph).layers if layer.kind == "Attention")
    assert attention.snr_db > 15
    graph = fg.Graph(graph.inputs, graph.nodes, [*graph.outputs, fg.Output("a", "0.attn", (7, 32))])
    (attention,) = (layer for layer in compared(graph).layers if layer.kind == "Attention")
    assert attention.snr_db > 30  # here the bias is in the stored value, and most of it


def test_an_error_is_followed_through_sums_to_the_outputs():
    """What one layer adds shows in an output that another value goes into as well."""
    layers = [fg.Linear("first", "image2d", np.eye(3), None), fg.Linear("second", "image2d", np.eye(3), None)]
    graph = fg.Graph({"image2d": (2, 3)}, [*layers, fg.Add("sum", "first", "second")], [fg.Output("y", "sum", (6,))])
    totals = compare._Totals()
    values = fg.evaluate(graph, {"image2d": np.ones((2, 3), np.float32)})
    compare._spread(totals, graph, values, {"first": np.full((2, 3), 0.2), "second": np.full((2, 3), 0.02)})
    found = {name: outputs["y"].snr_db for name, outputs in totals.spread.items()}
    assert abs(found["first"] - 20) < 1e-3 and abs(found["second"] - 40) < 1e-3


def test_numbers():
    """A fake golden result with known errors: 1 % of every element is 40 dB; one of two choices differs."""
    layers = [fg.Linear(name, "image2d", np.eye(3), None) for name in ("value", "logits")]
    graph = fg.Graph({"image2d": (2, 3)}, [*layers, fg.Route("route", "logits", 1, False)], [])
    graph.outputs.append(fg.Output("y", "value", (6,)))
    view = View("b", 0, 2, 1, 3)
    integer = IntGraph({"b": Buffer("b", 2, 4, scale=np.full((1, 4), 0.01))}, [], [Output("y", view, 0.01, (6,))])
    integer.trace["value"] = integer.trace["logits"] = (view, "op")
    image = np.array([[1.0, 2.0, 3.0], [4.0, 3.0, 2.0]])
    stored = np.array([[101, 202, 303], [396, 297, 198]])
    other = np.array([[101, 202, 303], [198, 297, 396]])

    def run(data):
        return lambda graph, images, trace: golden.Result(
            {}, {"y": data.ravel() * 0.01}, values={"value": data, "logits": data}
        )

    found = compare.compare(graph, integer, {"image2d": image[None]}, run(stored))
    assert abs(found.layers[0].snr_db - 40) < 1e-6 and abs(found.outputs[0].snr_db - 40) < 1e-6
    assert found.layers[0].cosine > 0.999 and found.routers[0].agreement == 1.0
    found = compare.compare(graph, integer, {"image2d": image[None]}, run(other))
    assert found.routers[0].agreement == 0.5
    moved = compare.compare(graph, integer, {"image2d": image[None]}, run((image * 100).astype(int) + 500))
    assert moved.layers[0].snr_db < 0 and moved.layers[1].snr_db > 100  # scores do not see a constant
    exact = compare.compare(graph, integer, {"image2d": image[None]}, run((image * 100).astype(int)))
    assert exact.layers[0].snr_db == compare.LIMIT_DB


def test_table_and_json():
    found = compared(maker.vit(experts=4), 1)
    text = compare.text(found)
    assert "1 images" in text and "1.route: 100.0%" in text and "logits" in text
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["routers"][0]["agreement"] == 1.0
