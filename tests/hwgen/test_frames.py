"""Convolutions of computed tokens along three axes, as of videos: each is proven against its ONNX file by `import_model`."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hwgen import graph as fg
from hwgen.levels import import_model
from hwgen.quantise.calibrate import noise
from hwgen.select import integers
from hwgen.sim import golden

D, FRAMES, H, W = 8, 4, 3, 4
FORMS = {  # kernel, groups, strides, pads, dilations -> Windows, Convs
    "local mixing over time": (((3, 1, 1), D, (1, 1, 1), (1, 0, 0, 1, 0, 0), (1, 1, 1)), (1, 0)),
    "frames joined": (((2, 1, 1), 1, (2, 1, 1), (0,) * 6, (1, 1, 1)), (0, 1)),
    "time dilated": (((2, 1, 1), D, (1, 1, 1), (2, 0, 0, 0, 0, 0), (2, 1, 1)), (1, 0)),
    "positions": (((3, 3, 3), D, (1, 1, 1), (1,) * 6, (1, 1, 1)), (10, 0)),
    "dense": (((3, 3, 3), 1, (1, 1, 1), (1,) * 6, (1, 1, 1)), (0, 10)),
    "dense, every second": (((3, 3, 3), 1, (2, 2, 2), (1,) * 6, (1, 1, 1)), (0, 5)),
    "frames by themselves": (((1, 3, 3), 1, (1, 1, 1), (0, 1, 1, 0, 1, 1), (1, 1, 1)), (0, 4)),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_convolutions_along_three_axes(tmp_path, form, bias):
    (kernel, groups, strides, pads, dilations), (windows, convs) = FORMS[form]
    rng, node = np.random.default_rng(0), helper.make_node
    held = {"p": (D, 3, 1, 4, 4), "w": (D, D // groups, *kernel), "b": (D,), "o": (D, D)}
    held = {n: (rng.standard_normal(s) * np.prod(s[1:]) ** -0.5).astype(np.float32) for n, s in held.items()}
    axes = zip((FRAMES, H, W), pads[:3], pads[3:], kernel, strides, dilations, strict=True)
    out = [(n + a + b - d * (k - 1) - 1) // s + 1 for n, a, b, k, s, d in axes]
    held["flat"] = np.array([1, D, int(np.prod(out))])
    held = {n: numpy_helper.from_array(a, n) for n, a in held.items()}
    nodes = [
        node("Conv", ["image", "p"], ["x"], strides=[1, 4, 4], kernel_shape=[1, 4, 4]),
        node("Relu", ["x"], ["r"]),
        node(
            "Conv", ["r", "w", *(["b"] if bias else [])], ["y"], group=groups, strides=strides, pads=pads, dilations=dilations,
            kernel_shape=kernel,
        ),
        node("Reshape", ["y", "flat"], ["channels"]),
        node("Transpose", ["channels"], ["tokens"], perm=[0, 2, 1]),
        node("MatMul", ["tokens", "o"], ["out"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, 1, [1, *s])
        for n, s in (("image", (3, FRAMES, 4 * H, 4 * W)), ("out", (int(np.prod(out)), D)))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(held.values()))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    made = import_model(tmp_path / "m.onnx")
    assert sum(isinstance(n, fg.Window) for n in made.nodes) == windows
    assert sum(isinstance(n, fg.Conv) for n in made.nodes) <= convs
    integer = integers({"": made}, {n: noise(s) for n, s in made.inputs.items()})[""]
    image = {n: noise(s, seed=1)[0] for n, s in made.inputs.items()}
    (wanted,), (found,) = fg.outputs(made, fg.evaluate(made, image)).values(), golden.run(integer, image).outputs.values()
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()) > 30
