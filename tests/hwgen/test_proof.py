"""The proof against the file: right levels pass also where float32 decides the output, subtly wrong ones never."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import moe_maker as maker
from hwgen import graph, proof
from hwgen.errors import UserError
from hwgen.levels import Compiled, compiled
from hwgen.proof import confirm, difference

pytest.importorskip("onnxruntime")

T, D, H = 6, 8, 12


class Net(maker.Writer):
    """Tokens `x` [1, T, D] of an image, and what a test makes of them."""

    def __init__(self, seed=1):
        super().__init__(seed)
        conv = self.op("Conv", "image", self.normal(D, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
        self.x = self.op("Transpose", self.op("Reshape", conv, [1, D, T]), perm=[0, 2, 1])

    def linear(self, x, outputs, inputs=D):
        return self.op("Add", self.op("MatMul", x, self.normal(inputs, outputs, scale=inputs**-0.5)), self.normal(outputs))

    def norm(self, x):
        return self.op("LayerNormalization", x, 1 + self.normal(D, scale=0.2), self.normal(D, scale=0.2), axis=-1)

    def pair(self, x, step, zero=0):
        """A value on a grid of int8."""
        q = self.op("QuantizeLinear", x, np.float32(step), np.int8(zero))
        return self.op("DequantizeLinear", q, np.float32(step), np.int8(zero))

    def levels(self, folder, y, name="m.onnx") -> Compiled:
        done = compiled(self.write(folder / name, (1, 4, 6), y, [1, T, D])).until("rows")
        assert not done.findings, done.findings
        return done


def mlp(net, bound=None):
    h = net.linear(net.norm(net.x), H)
    h = h if bound is None else net.op("Clip", h, np.float32(-bound), np.float32(bound))
    return net.op("Add", net.x, net.linear(net.op("Gelu", h), D, H))


def quantised(net, step=0.04, low=True):
    """All values on grids; the ReLU is the zero point of its grid, as quantisers write it. No step is a simple multiple of
    another, so that sums do not lie half way between two."""
    x = net.pair(net.x, 0.0471)
    h = net.pair(net.linear(net.pair(net.norm(x), 0.03), H), step, -128 if low else 0)
    return net.pair(net.op("Add", x, net.pair(net.linear(h, D, H), 0.0513)), 0.0597)


def wrong(done: Compiled, node: graph.Node, **changes) -> graph.Graph:
    """The row graph with a node changed."""
    rows = done.levels["rows"]
    return replace(rows, nodes=[replace(n, **changes) if n is node else n for n in rows.nodes])


@pytest.mark.parametrize("form", [mlp, quantised])
def test_every_constant_is_held_to_one_per_cent(tmp_path, form):
    net = Net()
    done = net.levels(tmp_path, form(net))
    rows, tensor = done.levels["rows"], done.levels["tensor"]
    assert not difference(done.model, rows, tensor).wrong
    seen = 0
    for node in rows.nodes:
        for field in ("weight", "bias", "gamma", "beta"):
            if (array := getattr(node, field, None)) is not None:
                changed = wrong(done, node, **{field: array * np.float32(1.01)})
                assert difference(done.model, changed, tensor).wrong, (node.name, field)
                seen += 1
    assert seen >= 6
    with pytest.raises(UserError, match="from level 'rows' on"):
        confirm(done.model, changed, {**done.levels, "rows": changed})


@pytest.mark.parametrize("bound", [6.0, 0.5])
def test_a_dropped_clip_is_seen(tmp_path, bound):
    """Also bounds that normal images never reach, and only large ones do."""
    one, other = Net(), Net()
    right = one.levels(tmp_path, one.linear(one.op("Clip", one.x, np.float32(-bound), np.float32(bound)), D), "right.onnx")
    dropped = other.levels(tmp_path, other.linear(other.x, D), "dropped.onnx")
    confirm(right.model, right.levels["rows"], right.levels)
    with pytest.raises(UserError, match="not understood"):
        confirm(right.model, dropped.levels["rows"])


@pytest.mark.parametrize("step, low", [(0.0404, True), (0.04, False)], ids=["step", "bound"])
def test_a_wrong_grid_is_seen(tmp_path, step, low):
    """A step that is 1 % larger; a bound at zero, which stands for a ReLU, that is none."""
    one, other = Net(), Net()
    right = one.levels(tmp_path, quantised(one), "right.onnx")
    false = other.levels(tmp_path, quantised(other, step, low), "false.onnx")
    confirm(right.model, right.levels["rows"], right.levels)
    with pytest.raises(UserError, match="not understood"):
        confirm(right.model, false.levels["tensor"])
    if not low:
        with pytest.raises(UserError, match="not understood"):
            confirm(right.model, false.levels["rows"], {"tensor": right.levels["tensor"]})


def test_where_round_off_decides_other_images_tell(tmp_path):
    """The sine of so large numbers that float32 says nothing of images of amplitude 1 and 10: those of a tenth judge."""

    def tensor(name, factor):
        net = Net()
        cube = net.op("Mul", net.op("Mul", net.x, net.x), net.x)
        y = net.op("Mul", net.op("Sin", net.op("Mul", cube, np.float32(1e6))), np.float32(factor))
        return compiled(net.write(tmp_path / name, (1, 4, 6), y, [1, T, D])).until("tensor")

    right, false = tensor("right.onnx", 1.0), tensor("false.onnx", 1.01)
    images = [proof._images(right.model, 0, amplitude) for amplitude in (1.0, 0.1)]
    single, exact = ([proof.evaluate(right.levels["tensor"], i, d) for i in images] for d in (np.float32, np.float64))
    noise = [max(np.abs(a[n] - b[n]).max() for n in a) for a, b in zip(single, exact, strict=True)]
    assert noise[0] > 0.01 > noise[1]
    assert not difference(right.model, right.levels["tensor"]).wrong
    assert difference(right.model, false.levels["tensor"]).wrong
