"""Places and numbers that stand in the file: bilinear sampling at computed places, images of bytes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen import graph as fg
from hwgen.levels import import_model
from hwgen.quantise.calibrate import noise
from hwgen.select import integers
from hwgen.sim import golden


def normal(rng, *shape, scale=None):
    return rng.standard_normal(shape).astype(np.float32) * np.float32(np.prod(shape[1:]) ** -0.5 if scale is None else scale)


def write(path, nodes, held, image, output, kind=TensorProto.FLOAT):
    inputs = [helper.make_tensor_value_info("image", kind, [1, *image])]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [1, *output])]
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in held.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, held), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def accuracy(path):
    """dB of golden against the float graph of a file, on noise other than that of its calibration."""
    graph = import_model(path)
    integer = integers({"": graph}, {n: noise(s, graph.ranges.get(n)) for n, s in graph.inputs.items()})[""]
    image = {n: noise(s, graph.ranges.get(n), seed=1)[0] for n, s in graph.inputs.items()}
    (wanted,) = fg.outputs(graph, fg.evaluate(graph, image)).values()
    (found,) = golden.run(integer, image).outputs.values()
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()), graph


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("corners", [0, 1])
def test_samples_of_a_map_at_computed_places(tmp_path, padding, corners):
    """Keys of deformable attention transformers: one place for each pixel of a coarser map, or beyond its border."""
    rng = np.random.default_rng(0)
    held = {
        "features": normal(rng, 8, 3, 4, 4),
        "offsets": normal(rng, 2, 3, 8, 8, scale=0.1),
        "mix": normal(rng, 5, 8, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["image", "features"], ["map"], strides=[4, 4]),
        helper.make_node("Conv", ["image", "offsets"], ["places"], strides=[8, 8]),
        helper.make_node("Transpose", ["places"], ["grid"], perm=[0, 2, 3, 1]),
        helper.make_node("GridSample", ["map", "grid"], ["sampled"], align_corners=corners, padding_mode=padding),
        helper.make_node("Conv", ["sampled", "mix"], ["out"]),
    ]
    assert accuracy(write(tmp_path / "m.onnx", nodes, held, (3, 24, 32), (5, 3, 4)))[0] > 20


@pytest.mark.parametrize("size", [64, 128])
def test_samples_of_a_larger_map_keep_their_place(tmp_path, size):
    """Noise has no pixel like its neighbour: where places are a tenth of a pixel off, its samples are others. With the image and
    the places in 8 bits, or hats in steps of how far the places reach, 7 and 3 dB remain."""
    rng = np.random.default_rng(0)
    held = {"features": normal(rng, 8, 3, 4, 4), "offsets": normal(rng, 2, 3, 8, 8, scale=0.1), "mix": normal(rng, 5, 8, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["image", "features"], ["map"], strides=[4, 4]),
        helper.make_node("Conv", ["image", "offsets"], ["places"], strides=[8, 8]),
        helper.make_node("Transpose", ["places"], ["grid"], perm=[0, 2, 3, 1]),
        helper.make_node("GridSample", ["map", "grid"], ["sampled"]),
        helper.make_node("Conv", ["sampled", "mix"], ["out"]),
    ]
    assert accuracy(write(tmp_path / "m.onnx", nodes, held, (3, size, size), (5, size // 8, size // 8)))[0] > 22


@pytest.mark.parametrize("steps", ["computed", "constant"])
def test_deformable_attention(tmp_path, steps):
    """Two heads, three points a query on two maps (Zhu et al. 2021): sums over points, weighted by a softmax."""
    rng = np.random.default_rng(1)
    shape = (2, 6, 3)  # heads, queries, points
    held = {
        "features": normal(rng, 8, 3, 4, 4),
        "fine": normal(rng, 8, 3, 2, 2),
        "shared": normal(rng, 8, 8, 1, 1),
        "tokens": normal(rng, 4, 3, 8, 8),
        "flat": np.array([1, 4, 6]),
        "w": normal(rng, 4, 12, scale=0.3),
        "u": normal(rng, 4, 12),
        "places": np.array([1, 6, 2, 3, 2]),
        "scores": np.array([1, 6, 2, 6]),
        "heads": np.array([2, 4, 6, 8]),
        "finer": np.array([2, 4, 12, 16]),
        "first": np.array([0]),
        "grid": np.array([2, 6, 3, 2]),
        "weights": np.array([2, 1, 6, 6]),
        "out_shape": np.array([1, 8, 6]),
        "given": rng.uniform(-1, 1, (*shape, 2)).astype(np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "features"], ["m"], strides=[4, 4]),
        node("Conv", ["m", "shared"], ["v"]),  # the same layer on maps of two sizes
        node("Reshape", ["v", "heads"], ["values"]),
        node("Conv", ["image", "fine"], ["f"], strides=[2, 2]),
        node("Conv", ["f", "shared"], ["fv"]),
        node("Reshape", ["fv", "finer"], ["finer_values"]),
        node("Conv", ["image", "tokens"], ["t"], strides=[8, 16]),
        node("Reshape", ["t", "flat"], ["tf"]),
        node("Transpose", ["tf"], ["queries"], perm=[0, 2, 1]),
        node("MatMul", ["queries", "w"], ["offsets"]),
        node("Reshape", ["offsets", "places"], ["offsets5"]),
        node("Transpose", ["offsets5"], ["by_head"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["by_head", "grid"], ["computed"]),
        node("MatMul", ["queries", "u"], ["logits"]),
        node("Reshape", ["logits", "scores"], ["logits4"]),
        node("Softmax", ["logits4"], ["shares"], axis=-1),
        node("Transpose", ["shares"], ["shares_by_head"], perm=[0, 2, 1, 3]),
        node("Reshape", ["shares_by_head", "weights"], ["weighting"]),
        node("GridSample", ["values", "computed" if steps == "computed" else "given"], ["one"]),
        node("GridSample", ["finer_values", "computed"], ["other"]),
        node("Concat", ["one", "other"], ["both"], axis=3),
        node("Mul", ["both", "weighting"], ["weighed"]),
        node("ReduceSum", ["weighed", "last"], ["summed"], keepdims=0),
        node("Reshape", ["summed", "out_shape"], ["out"]),
    ]
    held["last"] = np.array([-1])
    assert accuracy(write(tmp_path / "m.onnx", nodes, held, (3, 24, 32), (8, 6)))[0] > 20


@pytest.mark.parametrize(("kind", "limits"), [(TensorProto.UINT8, (0, 255)), (TensorProto.INT8, (-128, 127))])
def test_an_image_of_bytes_has_their_range(tmp_path, kind, limits):
    """Also where nothing else tells: calibration by noise must not take pixels for numbers around 1."""
    rng = np.random.default_rng(2)
    mean, std = (np.full((1, 3, 1, 1), n, np.float32) for n in (120, 60))
    held = {"mean": mean, "std": std, "w": normal(rng, 8, 3, 4, 4)}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Conv", ["normal", "w"], ["out"], strides=[4, 4]),
    ]
    found, graph = accuracy(write(tmp_path / "m.onnx", nodes, held, (3, 16, 16), (8, 4, 4), kind))
    assert tuple(float(a[0]) for a in graph.ranges["image"]) == limits
    assert found > 30


def test_an_image_of_bytes_keeps_their_range_in_a_quantised_file(tmp_path):
    """Where no limit stands on the image itself, but behind what makes numbers of its pixels."""
    rng, node = np.random.default_rng(5), helper.make_node
    held = {"mean": np.full((1, 3, 1, 1), 120, np.float32), "std": np.float32(60), "w": normal(rng, 8, 3, 4, 4)}
    held |= {"step": np.float32(0.02), "zero": np.uint8(128)}
    nodes = [
        node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        node("Sub", ["pixels", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["normal"]),
        node("QuantizeLinear", ["normal", "step", "zero"], ["integers"]),
        node("DequantizeLinear", ["integers", "step", "zero"], ["limited"]),
        node("Conv", ["limited", "w"], ["out"], strides=[4, 4]),
    ]
    found, graph = accuracy(write(tmp_path / "m.onnx", nodes, held, (3, 16, 16), (8, 4, 4), TensorProto.UINT8))
    assert tuple(float(a[0]) for a in graph.ranges["image"]) == (0, 255)
    assert found > 30


def test_few_outputs_of_a_layer_of_mixed_tokens(tmp_path):
    """Tokens mixed over the whole map (MAFormer's global tokens), and of a layer behind them only some channels."""
    rng = np.random.default_rng(3)
    held = {
        "w": normal(rng, 16, 3, 4, 4),
        "flat": np.array([1, 16, 64]),
        "over_tokens": normal(rng, 64, 16, scale=0.15),
        "again": normal(rng, 16, 16),
        "wide": normal(rng, 16, 32),
        **{name: np.array([n]) for name, n in {"first": 8, "end": 16, "axis": 2}.items()},
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["map"], strides=[4, 4]),
        helper.make_node("Reshape", ["map", "flat"], ["channels"]),
        helper.make_node("MatMul", ["channels", "over_tokens"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "again"], ["turned"]),
        helper.make_node("MatMul", ["turned", "wide"], ["both"]),
        helper.make_node("Slice", ["both", "first", "end", "axis"], ["out"]),
    ]
    assert accuracy(write(tmp_path / "m.onnx", nodes, held, (3, 32, 32), (16, 8)))[0] > 30


def test_attention_to_neighbours_by_shifts(tmp_path):
    """Scores of each pixel with the nine around it, by shifted maps (Slide-Transformer: Pan et al. 2023): pixels run along the
    columns of what is multiplied, and are rows for the softmax."""
    rng = np.random.default_rng(4)
    heads, depth, size, node = 2, 4, 10, helper.make_node
    channels = heads * depth
    held = {
        "w": normal(rng, 3 * channels, 3, 2, 2),
        "border": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "one": np.array([1, heads, depth, 1, size, size]),
        "many": np.array([1, heads, depth, 9, size, size]),
        "map": np.array([1, channels, size, size]),
        "o": normal(rng, channels, channels, 1, 1),
        "depth": np.array([2]),
        "near": np.array([3]),
        "axes": np.array([2, 3]),
        "first": np.array([1]),
    }
    nodes = [node("Conv", ["image", "w"], ["qkv"], strides=[2, 2]), node("Split", ["qkv"], ["q", "k", "v"], axis=1)]
    for x in "kv":
        nodes.append(node("Pad", [x, "border"], [f"{x}_wide"]))
        shifted = []
        for i in range(9):
            start, stop = (np.array([i // 3, i % 3]) + n for n in (0, size))
            held |= {f"start{i}": start, f"stop{i}": stop}
            nodes.append(node("Slice", [f"{x}_wide", f"start{i}", f"stop{i}", "axes"], [f"{x}{i}"]))
            nodes.append(node("Unsqueeze", [f"{x}{i}", "depth"], [f"{x}{i}_one"]))
            shifted.append(f"{x}{i}_one")
        nodes += [node("Concat", shifted, [f"{x}_all"], axis=2), node("Reshape", [f"{x}_all", "many"], [f"{x}_near"])]
    nodes += [
        node("Reshape", ["q", "one"], ["q_one"]),
        node("Mul", ["q_one", "k_near"], ["products"]),
        node("ReduceSum", ["products", "depth"], ["scores"], keepdims=0),
        node("Softmax", ["scores"], ["shares"], axis=2),
        node("Unsqueeze", ["shares", "depth"], ["shares_one"]),
        node("Mul", ["shares_one", "v_near"], ["weighed"]),
        node("ReduceSum", ["weighed", "near"], ["summed"], keepdims=0),
        node("Reshape", ["summed", "map"], ["joined"]),
        node("Conv", ["joined", "o"], ["out"]),
    ]
    assert accuracy(write(tmp_path / "m.onnx", nodes, held, (3, 20, 20), (channels, size, size)))[0] > 30
