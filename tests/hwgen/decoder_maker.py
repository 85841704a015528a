"""Small whole networks with decoders, written node by node from their publications: what tests through RTL are made of."""

import numpy as np
import onnx
from onnx import TensorProto, helper

import form_maker

C = 16  # channels of every map


class Writer(form_maker.Writer):
    """Nodes of decoders; maps are [1, C, H, W], tokens [1, T, C]."""

    def conv(self, x, inputs=C, outputs=C, size=3, stride=1):
        w = self.normal(outputs, inputs, size, size, scale=(inputs * size * size) ** -0.5)
        return self.op("Conv", x, w, self.normal(outputs, scale=0.2), kernel_shape=[size] * 2, strides=[stride] * 2,
                       pads=[size // 2] * 4)  # fmt: skip

    def patched(self, x, size, channels=3):
        """Patches of an image as a map."""
        w = self.normal(C, channels, *size, scale=(channels * np.prod(size)) ** -0.5)
        return self.op("Conv", x, w, self.normal(C, scale=0.2), kernel_shape=list(size), strides=list(size))

    def larger(self, x, factor, mode="linear", way="half_pixel"):
        scales = np.array([1, 1, factor, factor], np.float32)
        nearest = {"nearest_mode": "floor"} if mode == "nearest" else {}
        return self.op("Resize", x, "", scales, mode=mode, coordinate_transformation_mode=way, **nearest)

    def relu(self, x):
        return self.op("Relu", x)

    def tokens_of(self, x, count):
        return self.op("Transpose", self.op("Reshape", x, [1, C, count]), perm=[0, 2, 1])

    def map_of(self, x, height, width):
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1]), [1, C, height, width])

    def attention(self, x, other=None, heads=2, batch=1):
        """Queries of normalised x, keys and values of another set of tokens; x is added. Of `batch` sets each by itself."""
        y = self.norm(x, C)
        q, k, v = (self.linear(t, C, C) for t in (y, other or y, other or y))
        apart = (self.op("Reshape", t, [batch, -1, heads, C // heads]) for t in (q, k, v))
        q, k, v = (self.op("Transpose", t, perm=[0, 2, 1, 3]) for t in apart)
        scores = self.op("Mul", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), (C // heads) ** -0.5)
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), [batch, -1, C])
        return self.op("Add", x, self.linear(y, C, C))

    def block(self, x, other=None, batch=1):
        x = self.attention(x, other, batch=batch)
        y = self.op("Gelu", self.linear(self.norm(x, C), C, 2 * C))
        return self.op("Add", x, self.linear(y, 2 * C, C))

    def save(self, path, inputs, outputs):
        """inputs, outputs: name to shape without the batch axis; the outputs' are names of values."""
        def info(shapes):
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape]) for name, shape in shapes.items()]

        body = helper.make_graph(self.nodes, "g", info(inputs), info(outputs), self.constants)
        onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
        return path


def upernet(w):
    """Pooled and fused maps of a pyramid (UperNet: Xiao et al. 2018; FPN: Lin et al. 2017)."""
    large = w.relu(w.conv(w.patched("image", (2, 2))))  # 8 x 8
    small = w.relu(w.conv(large, stride=2))  # 4 x 4
    pooled = w.op("AveragePool", small, kernel_shape=[2, 2], strides=[2, 2])
    pooled = w.larger(w.relu(w.conv(pooled, size=1)), 2, way="align_corners")
    top = w.relu(w.conv(w.op("Concat", small, pooled, axis=1), inputs=2 * C))
    fused = w.op("Add", w.conv(large, size=1), w.larger(top, 2))
    both = w.op("Concat", w.relu(w.conv(fused)), w.larger(top, 2), axis=1)
    return {"image": (3, 16, 16)}, {w.larger(w.conv(w.relu(w.conv(both, inputs=2 * C)), outputs=5, size=1), 2): (5, 16, 16)}


def dpt(w):
    """Tokens of two depths reassembled to maps and fused by residual units (Ranftl et al. 2021)."""
    tokens = w.tokens_of(w.patched("image", (4, 4)), 24)
    first = w.block(tokens)
    second = w.block(first)
    kernel = w.normal(C, C, 2, 2, scale=C**-0.5)
    large = w.op("ConvTranspose", w.map_of(first, 4, 6), kernel, kernel_shape=[2, 2], strides=[2, 2])  # 8 x 12
    small = w.conv(w.map_of(second, 4, 6), size=1)

    def unit(x):
        return w.op("Add", x, w.conv(w.relu(w.conv(w.relu(x)))))

    fused = w.larger(unit(small), 2, way="align_corners")
    fused = w.larger(unit(w.op("Add", fused, unit(large))), 2, way="align_corners")
    return {"image": (3, 16, 24)}, {w.conv(fused, outputs=4, size=1): (4, 16, 24)}


def croco(w):
    """Two images, the tokens of one completed by those of the other, pixels put side by side (Weinzaepfel et al. 2022)."""
    first, second = (w.block(w.tokens_of(w.patched(name, (4, 4)), 16)) for name in ("image", "other"))
    x = w.attention(w.block(first), w.norm(second, C))
    x = w.linear(w.norm(x, C), C, C)
    pixels = w.op("DepthToSpace", w.map_of(x, 4, 4), blocksize=4)
    return {"image": (3, 16, 16), "other": (3, 16, 16)}, {pixels: (1, 16, 16)}


def vivit(w):
    """Tubelets of a video, attention within frames and then of a token of each (Arnab et al. 2021)."""
    frames, count = 3, 4
    x = w.op("Conv", "image", w.normal(C, 2, 2, 4, 4, scale=0.2), kernel_shape=[2, 4, 4], strides=[2, 4, 4])
    x = w.op("Reshape", w.op("Transpose", w.op("Reshape", x, [C, frames, count]), perm=[1, 2, 0]), [frames, count, C])
    x = w.block(w.op("Add", x, w.normal(1, count, C)), batch=frames)
    x = w.op("Reshape", w.op("ReduceMean", x, [1], keepdims=1), [1, frames, C])
    x = w.block(w.op("Add", x, w.normal(1, frames, C)))
    return {"image": (2, 2 * frames, 8, 8)}, {w.linear(w.norm(w.op("ReduceMean", x, [1], keepdims=1), C), C, 6): (1, 6)}


FORMS = {"UperNet": upernet, "DPT": dpt, "CroCo": croco, "ViViT": vivit}
