"""Norms of several tokens together: the same as the ONNX model's, in floats and in integers, on golden and machine."""

from dataclasses import replace

import numpy as np
import pytest

import form_maker as maker
import test_machine as machine
from hwgen import graph
from hwgen.compare import compare
from hwgen.levels import import_model
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden

D = maker.D


def group_norm(w, x, groups, size, epsilon=1e-5):
    """As PyTorch's exporter writes torch.nn.GroupNorm."""
    y = w.op("Reshape", x, [0, groups, -1])
    y = w.op("InstanceNormalization", y, np.ones(groups, np.float32), np.zeros(groups, np.float32), epsilon=epsilon)
    y = w.op("Reshape", y, [1, D, *size])
    return w.op("Add", w.op("Mul", y, 1 + w.normal(D, 1, 1, scale=0.2)), w.normal(D, 1, 1))


def normed(groups=1, size=(2, 3), epsilon=1e-5):
    """A map with a channel that is far larger, normed; then a linear layer."""

    def form(w):
        step = [4 // size[0], 6 // size[1]]
        weight = w.normal(D, 2, *step)
        weight[0] *= 10
        x = w.op("Conv", "image", weight, w.normal(D), kernel_shape=step, strides=step)
        return w.linear(w.as_tokens(group_norm(w, x, groups, size, epsilon)))

    return form


def part(w):
    """Half of the channels, the others as they are (SHViT)."""
    first, rest = w.op("Split", w.patches(), [D // 2, D // 2], outputs=2, axis=1)
    y = w.op("Reshape", first, [0, 1, -1])
    y = w.op("InstanceNormalization", y, np.ones(1, np.float32), np.zeros(1, np.float32), epsilon=1e-5)
    return w.linear(w.as_tokens(w.op("Concat", w.op("Reshape", y, [1, D // 2, 2, 3]), rest, axis=1)))


def many(w):
    """As many groups as in most published networks that have them."""
    x = w.op("Conv", "image", w.normal(2 * 32, 2, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    y = w.op("InstanceNormalization", w.op("Reshape", x, [0, 32, -1]), np.ones(32), np.zeros(32))
    return w.linear(w.as_tokens(w.op("Conv", w.op("Reshape", y, [1, 2 * 32, 2, 3]), w.normal(D, 2 * 32, 1, 1))))


def large(scale=1.0, epsilon=1e-5):
    """A map of more elements than a row may be pieced together of."""

    def form(w):
        x = w.op("Resize", w.patches(), "", np.array([1, 1, 10, 10], np.float32), mode="nearest")
        x = w.op("Conv", x, scale * w.normal(D, D, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = group_norm(w, x, 1, (20, 30), epsilon)
        return w.linear(w.as_tokens(w.op("MaxPool", x, kernel_shape=[10, 10], strides=[10, 10])))

    return form


FORMS = {
    "one row is left": normed(),
    "large map": large(),
    "large map of small numbers": large(1e-3, 1e-10),
    "two levels": normed(size=(4, 6)),
    "two groups": normed(2, (4, 6)),
    "many groups": many,
    "much epsilon": normed(epsilon=1.0),
    "some channels": part,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_norms_of_maps(tmp_path, form):
    w = maker.Writer()
    made = import_model(w.write(tmp_path / "m.onnx", maker.IMAGE, form(w), [1, "t", D]))  # compares with the ONNX model
    assert any(isinstance(n, graph.LayerNorm) and not n.centred for n in made.nodes)
    images = np.random.default_rng(0).normal(size=(8, *maker.IMAGE)).astype(np.float32)
    integer = select(quantise({"": made}, {"image": images})[""])
    found = compare(made, integer, {"image": images[:3]}, golden.run)
    assert min(o.snr_db for o in found.outputs) > 28
    image = {"image": images[0]}
    sizes = {"bank_words": 4096, "scale_entries": 4096, "acc_rows": 64, "norm_columns": 256, "window_chunks": 1}
    program = schedule({"": integer}, replace(machine.CONFIGS["12x20"], **sizes))
    machine.assert_equal(machine.run(program, image), golden.run(integer, image).outputs)
