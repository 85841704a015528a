"""A global filter (GFNet: Rao et al. 2021): two-dimensional Fourier transforms around a product with constants."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwgen import graph as fg
from hwgen.config import Config
from hwgen.levels import import_model
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden

UNEVEN = Config(  # whose chunks no group of channels fills
    array_outputs=24, array_inputs=24, bank_words=32768, scale_entries=16384, weight_ports=1, window_chunks=1
)


def write(path, channels=32, size=8):
    """Real and imaginary parts stand side by side there, in groups of channels that fill no chunk of the machine."""
    rng, half = np.random.default_rng(0), size // 2 + 1
    held = {
        "w": (rng.standard_normal((channels, 3, 4, 4)) / 7).astype(np.float32),
        "real": rng.standard_normal((channels, size, half, 1)).astype(np.float32),
        "imaginary": rng.standard_normal((channels, size, half, 1)).astype(np.float32),
        "last": np.array([-1]),
        "n": np.array(size),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["map"], strides=[4, 4]),
        node("Unsqueeze", ["map", "last"], ["x"]),
        node("DFT", ["x"], ["columns"], axis=3, onesided=1),
        node("DFT", ["columns"], ["spectrum"], axis=2),
        node("Split", ["spectrum"], ["r", "i"], axis=4),
        node("Mul", ["r", "real"], ["rr"]),
        node("Mul", ["i", "imaginary"], ["ii"]),
        node("Sub", ["rr", "ii"], ["filtered_r"]),
        node("Mul", ["r", "imaginary"], ["ri"]),
        node("Mul", ["i", "real"], ["ir"]),
        node("Add", ["ri", "ir"], ["filtered_i"]),
        node("Concat", ["filtered_r", "filtered_i"], ["filtered"], axis=4),
        node("DFT", ["filtered"], ["rows"], axis=2, inverse=1),
        node("DFT", ["rows", "n"], ["y"], axis=3, inverse=1, onesided=1),
        node("Squeeze", ["y", "last"], ["out"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4 * size, 4 * size])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, channels, size, size])
    held = [numpy_helper.from_array(a, n) for n, a in held.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "filter", [image], [out], held), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, path)
    return path


def test_global_filter(tmp_path, on_machine):
    graph = import_model(write(tmp_path / "m.onnx"))
    images = np.random.default_rng(1).standard_normal((5, *graph.inputs["image"])).astype(np.float32)
    integer = integers({"": graph}, {"image": images[1:]})[""]
    (wanted,) = fg.outputs(graph, fg.evaluate(graph, {"image": images[0]})).values()
    found = golden.run(integer, {"image": images[0]}).outputs
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - found["out"]).sum()) > 27
    np.testing.assert_array_equal(on_machine(schedule({"": integer}, UNEVEN), "", {"image": images[0]})["out"], found["out"])


def test_transposed_groups(on_machine):
    """Channels of several values side by side have gaps between them in the scratchpad; so have the weights that turn them."""
    rng = np.random.default_rng(2)

    def weight(rows, columns):
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    nodes = [
        fg.PatchEmbed("p", "image", weight(16, 48).reshape(16, 3, 4, 4), None),
        fg.Linear("a", "p", weight(16, 16), None),
        fg.Linear("b", "p", weight(16, 16), None),
        fg.LayerNorm("n", "a", np.ones(16, np.float32), np.zeros(16, np.float32), 1e-5),
        fg.Join("both", ("n", "b")),
        fg.Transpose("turned", "both"),
    ]
    graph = fg.Graph({"image": (3, 16, 20)}, nodes, [fg.Output("out", "turned", (32, 20))])
    images = rng.standard_normal((4, 3, 16, 20)).astype(np.float32)
    integer = integers({"": graph}, {"image": images})[""]
    wanted = golden.run(integer, {"image": images[0]}).outputs["out"]
    found = on_machine(schedule({"": integer}, UNEVEN), "", {"image": images[0]})["out"]
    np.testing.assert_array_equal(found, wanted)
