"""Maps made larger by whole numbers: the same as ONNX's Resize, in whole and in bands, on golden and machine."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import form_maker as maker
import map_maker
import test_machine as machine
from hwgen import graph
from hwgen import resampling as rs
from hwgen.levels import import_model
from hwgen.mapping.bands import banded, cut_walk, reach
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden
from resampling_maker import linear

IMAGE = (maker.IMAGE[0], 12, 10)
SIZES = {"bank_words": 4096, "scale_entries": 4096, "acc_rows": 64, "norm_columns": 256, "window_chunks": 1}


def resized(x, scales, **attributes):
    """onnxruntime's Resize of a map [C, H, W]."""
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    scale = helper.make_tensor("s", TensorProto.FLOAT, [4], [1, 1, *scales])
    made = helper.make_graph([node], "g", values[:1], values[1:], [scale])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x[None]})[0][0]


def network(scales, **attributes):
    """A map made larger between two convolutions."""

    def form(w):
        x = w.op("Relu", w.op("Conv", w.patches(), w.normal(16, maker.D, 3, 3), pads=[1] * 4, kernel_shape=[3, 3]))
        x = w.op("Resize", x, "", np.array([1, 1, *scales], np.float32), **attributes)
        return w.as_tokens(w.op("Conv", x, w.normal(maker.D, 16, 3, 3), w.normal(maker.D), pads=[1] * 4, kernel_shape=[3, 3]))

    return form


WAYS = {
    "twice": ((2, 2), {"mode": "linear"}),
    "four times": ((4, 4), {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    "three times down": ((3, 1), {"mode": "linear"}),
    "twice and three times": ((2, 3), {"mode": "linear"}),
    "cubic": ((2, 2), {"mode": "cubic", "cubic_coeff_a": -0.75}),
    "corners": ((2, 3), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    "one and a half times": ((1.5, 2), {"mode": "linear"}),
    "half": ((0.5, 1), {"mode": "linear", "antialias": 1}),
    "one axis after the other": ((4, 7), {"mode": "linear"}),
}


def assert_agree(made, integer, image):
    """Golden and machine give the same, near the float model's only output."""
    wanted = next(iter(graph.outputs(made, graph.evaluate(made, image)).values()))
    answer = golden.run(integer, image).outputs
    error = next(iter(answer.values())) - wanted
    assert 10 * np.log10(np.square(wanted).sum() / np.square(error).sum()) > 28
    machine.assert_equal(machine.run(schedule({"": integer}, replace(machine.CONFIGS["12x20"], **SIZES)), image), answer)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_as_onnx_in_floats_and_integers(tmp_path, way):
    scales, attributes = way
    w = maker.Writer()
    made = import_model(w.write(tmp_path / "m.onnx", IMAGE, network(scales, **attributes)(w), [1, "t", maker.D]))
    larger = [n for n in made.nodes if isinstance(n, graph.Resample)]
    kinds = {type(n).__name__ for n in made.nodes}
    apart = way in [WAYS[name] for name in ("four times", "cubic", "corners", "one axis after the other")]
    assert len(larger) == 1 + apart and not kinds & {"Gather", "Stack", "Window"}, kinds
    x = np.random.default_rng(1).normal(size=(5, *larger[0].resampling.size)).astype(np.float32)
    found = x.reshape(5, -1).T
    for node in larger:
        found = node.resampling.evaluate(found)
    found = found.T.reshape(5, *larger[-1].resampling.made)
    np.testing.assert_allclose(found, resized(x, scales, **attributes), atol=2e-6)
    images = np.random.default_rng(0).normal(size=(6, *IMAGE)).astype(np.float32)
    assert_agree(made, select(quantise({"": made}, {"image": images})[""]), {"image": images[0]})


def test_down_comes_first_where_that_makes_no_more(tmp_path):
    """A band of the made map is made of the same rows of what lies between, and of nothing around them."""

    def apart(scales):
        w = maker.Writer()
        form = network(scales, mode="linear")(w)
        made = import_model(w.write(tmp_path / "m.onnx", IMAGE, form, [1, "t", maker.D]))
        return [n.resampling.across.moves_nothing for n in made.nodes if isinstance(n, graph.Resample)]

    assert apart((4, 7)) == [True, False]
    assert apart((7, 4)) == [False, True]


def fused(w):
    """A map and a smaller one that is made as large, side by side, as SegFormer fuses them."""
    large = w.op("Relu", w.op("Conv", w.patches(), w.normal(16, maker.D, 3, 3), pads=[1] * 4, kernel_shape=[3, 3]))
    small = w.op("Relu", w.op("Conv", large, w.normal(32, 16, 2, 2), kernel_shape=[2, 2], strides=[2, 2]))
    small = w.op("Resize", small, "", np.array([1, 1, 2, 2], np.float32), mode="linear")
    both = w.op("Concat", small, large, axis=1)
    made = w.op("Relu", w.op("Conv", both, w.normal(32, 48, 1, 1), w.normal(32), kernel_shape=[1, 1]))
    return w.as_tokens(w.op("Conv", made, w.normal(maker.D, 32, 1, 1), kernel_shape=[1, 1]))


def test_a_layer_of_resampled_maps_side_by_side_takes_no_copy_for_its_steps(tmp_path):
    w = maker.Writer()
    image = (maker.IMAGE[0], 12, 8)
    made = import_model(w.write(tmp_path / "m.onnx", image, fused(w), [1, "t", maker.D]))
    (layer,) = (n for n in made.nodes if isinstance(n, graph.Conv) and n.weight.shape[1:3] == (1, 1))
    (join,) = (n for n in made.nodes if isinstance(n, graph.Join))
    assert layer.x == join.name
    images = np.random.default_rng(0).normal(size=(6, *image)).astype(np.float32)
    integer = select(quantise({"": made}, {"image": images})[""])
    place = next(op.x.buffer for op in integer.ops if op.name == layer.name)
    assert [type(op).__name__ for op in integer.ops if op.out.buffer == place] == ["ReduceWindow"] * 2
    assert_agree(made, integer, {"image": images[0]})


@pytest.mark.parametrize("tokens", [60, 200])
def test_hundreds_of_kinds_of_weights_in_place(tmp_path, tokens):
    """With its corners kept, no two columns of a map twice as wide have the same weights."""
    w = maker.Writer()
    x = w.op("Resize", w.patches(), "", np.array([1, 1, 1, 2], np.float32), mode="linear",
             coordinate_transformation_mode="align_corners")  # fmt: skip
    size = (maker.IMAGE[0], 4, 2 * tokens)
    made = import_model(w.write(tmp_path / "m.onnx", size, w.as_tokens(x), [1, "t", maker.D]))
    assert [type(n).__name__ for n in made.nodes] == ["PatchEmbed", "Resample"]
    assert made.nodes[1].resampling.kinds == 2 * tokens - 1  # the first and the last are tokens as they are


@pytest.mark.parametrize("outputs", [(10, 6), (20, 3), (5, 12), (7, 4), (3, 2)])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("size", [(5, 3), (1, 4), (2, 1)])
def test_parts_make_every_output_once(size, outputs, corners):
    made = rs.Resampling(*(linear(n, o, corners) for n, o in zip(size, outputs, strict=True)))
    x = np.random.default_rng(0).integers(-1000, 1000, (size[0] * size[1], 2)).astype(np.float64)
    y = np.full((outputs[0] * outputs[1], 2), np.nan)
    for walk, weights in rs.by_weights(made.walk(), None, 2):
        assert np.isnan(y[walk.y_rows()]).all()
        y[walk.y_rows()] = np.einsum("trc,tc->rc", x[walk.x_rows()], weights.astype(np.float64)) / made.steps
    np.testing.assert_allclose(y, made.evaluate(x), atol=16)  # weights of two taps are off by less than a step of 127 each


def test_few_instructions_for_maps_twice_and_four_times_as_large():
    assert [len(linear(50, n).spans) for n in (100, 200, 75)] == [3, 6, 4]
    assert rs.Resampling(linear(50, 100), linear(50, 100)).steps == rs.EXACT


def test_weights_keep_their_sum():
    made = rs.Resampling(linear(4, 12), linear(4, 12))
    assert made.keeps_sums and made.steps != rs.EXACT
    assert {int(w.astype(np.int64).sum()) for _, w in rs.by_weights(made.walk(), None, 1)} == {round(made.steps)}


def test_a_band_reads_the_rows_around_it():
    m = map_maker.Maker((6, 4))
    m.put(graph.Resample, "patches", rs.Resampling(linear(6, 12), linear(4, 8)))
    y = m.nodes[-1].name
    made = m.graph(y)
    images = {"image": np.random.default_rng(0).normal(size=(3, *m.inputs["image"])).astype(np.float32)}
    integer = select(quantise({"": made}, images)[""])
    op = next(op for op in integer.ops if getattr(op, "resampling", None) is not None)
    axes = banded(op)
    assert axes is not None and axes["out"] == "rows" and reach(op.walk).step == 8
    cut = [part for k in range(3) for part in cut_walk(op, axes, 32 * k, 32 * k + 32, f"{op.name}.{k}", lambda field, view: view)]
    assert [(part.x.row // 4, part.x.rows // 4) for part in cut] == [(0, 3), (1, 4), (3, 3)]
    at = integer.ops.index(op)
    pieces = replace(integer, ops=[*integer.ops[:at], *cut, *integer.ops[at + 1 :]], trace={})
    image = {"image": images["image"][1]}
    machine.assert_equal(golden.run(pieces, image).outputs, golden.run(integer, image).outputs)
