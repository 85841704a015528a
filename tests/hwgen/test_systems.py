"""Parts of published systems: proven against their files, in integers as in floating point, on the machine."""


import numpy as np
import pytest

import author_maker
import systems_maker as maker
import test_chosen
import test_machine as machine
from hwgen import graph as fg
from hwgen.levels import check, import_model
from hwgen.rows.maps import MOST_ALONG, sliding
from hwgen.schedule import schedule
from hwgen.select import integers
from hwgen.sim import golden


@pytest.mark.parametrize("form", (*maker.NETWORKS, *author_maker.NETWORKS), ids=lambda f: f.__name__)
def test_networks(form, tmp_path):
    """The import compares with the file on random images; outputs keep 20 dB where the same is chosen; the machine is golden bit
    for bit."""
    graph = import_model(maker.write(tmp_path / "m.onnx", form))
    integer = integers({"": graph}, {"image": test_chosen.images(8)})[""]
    program = schedule({"": integer}, test_chosen.CONFIG)
    found = []
    for i, image in enumerate(test_chosen.images(6, 5)):
        values = fg.evaluate(graph, {"image": image}, np.float64)
        run = golden.run(integer, {"image": image}, trace=True)
        ((name, wanted),) = fg.outputs(graph, values).items()
        if test_chosen.same_choices(graph, values, run):
            found.append(test_chosen.db(wanted, run.outputs[name].reshape(wanted.shape)))
        if i == 0:
            machine.assert_equal(machine.run(program, {"image": image}), run.outputs)
    assert len(found) >= 2 and np.mean(found) >= 20, found


def test_a_convolution_along_channels_is_a_layer(tmp_path):
    graph = import_model(maker.write(tmp_path / "m.onnx", maker.efficient_attention))
    assert not any(isinstance(n, fg.Window | fg.Conv | fg.Transpose) for n in graph.nodes)


def test_shifted_patches_are_larger_patches(tmp_path):
    """Of the image itself: one layer reads it."""
    graph = import_model(maker.write(tmp_path / "m.onnx", author_maker.shifts))
    (patches,) = (n for n in graph.nodes if isinstance(n, fg.PatchEmbed))
    assert patches.weight.shape == (240, 3, 8, 8) and len(graph.nodes) < 8


def test_random_features_lose_no_row(tmp_path):
    """Rows of exponentials that a division takes the size of are a softmax."""
    graph = import_model(maker.write(tmp_path / "m.onnx", author_maker.features))
    assert sum(isinstance(n, fg.Softmax) for n in graph.nodes) == 1
    assert sum(isinstance(n, fg.Activation) and n.form == "exp" for n in graph.nodes) == 1


def test_a_resized_image_is_a_map(tmp_path):
    """Of which windows that overlap are a convolution, as of any map."""
    graph = import_model(maker.write(tmp_path / "m.onnx", maker.resized_image))
    assert sum(isinstance(n, fg.Conv) for n in graph.nodes) == 2 and len(graph.nodes) < 24


def test_taps_of_a_long_value_lie_in_two_directions():
    """Frequencies below each other, which a layer behind a Fourier transform reads (Hyena): a map of which no side is longer than
    the numbers of a walk."""
    first, fields = sliding(np.arange(9 * 512).reshape(512, 9), 9 * 512)
    assert first == 0 and max(fields["size"]) < MOST_ALONG and np.prod(fields["kernel"]) == 9


def test_an_infinite_scale_is_refused(tmp_path):
    """onnxruntime's static quantisation gives one to scores that are masked by minus infinity."""
    w = maker.maker.Writer()
    x = w.op("QuantizeLinear", w.norm(w.tokens()), np.float32(np.inf), np.array(0, np.int8))
    y = w.classes(w.op("DequantizeLinear", x, np.float32(np.inf), np.array(0, np.int8)))
    (finding, *_) = check(w.write(tmp_path / "m.onnx", maker.IMAGE, y, [1, maker.CLASSES]))
    assert finding.op == "QuantizeLinear" and finding.reason == "its scale is infinite"
