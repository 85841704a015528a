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


def pyramid(w):
    """(map of 8 x 8 fused of two scales, tokens of the map of 4 x 4) of an image of 16 x 16."""
    large = w.relu(w.conv(w.patched("image", (2, 2))))
    small = w.relu(w.conv(large, stride=2))
    fused = w.op("Add", w.conv(large, size=1), w.larger(w.conv(small, size=1), 2))
    return w.relu(w.conv(fused)), w.norm(w.tokens_of(small, 16), C)


def masks_of(w, queries, pixels, side):
    """Of every query over a map's pixels."""
    embedded = w.linear(w.relu(w.linear(w.norm(queries, C), C, C)), C, C)
    masks = w.op("MatMul", embedded, w.op("Reshape", pixels, [1, C, side * side]))
    return w.op("Reshape", masks, [1, -1, side, side])


def mask2former(w):
    """Learned queries that look where their last masks are, made smaller, or anywhere where these are empty; classes and masks of
    each (Cheng et al. 2022)."""
    count, side = 5, 8
    pixels, keys = pyramid(w)
    queries = w.op("Add", w.normal(1, count, C), np.zeros((1, count, C), np.float32))
    for _ in range(2):
        masks = w.larger(masks_of(w, queries, pixels, side), 0.5)
        hidden = w.op("Less", w.op("Sigmoid", w.op("Reshape", masks, [1, count, 16])), 0.5)
        seen = w.op("ReduceSum", w.op("Cast", w.op("Not", hidden), to=TensorProto.INT64), np.array([2]), keepdims=1)
        hidden = w.op("And", hidden, w.op("Greater", seen, np.array(0)))
        q, k, v = (w.linear(t, C, C) for t in (queries, keys, keys))
        scores = w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 2, 1])), C**-0.5)
        y = w.op("MatMul", w.op("Softmax", w.op("Where", hidden, float("-inf"), scores), axis=-1), v)
        queries = w.block(w.norm(w.op("Add", queries, w.linear(y, C, C)), C))
    classes = w.linear(w.norm(queries, C), C, 4)
    return {"image": (3, 16, 16)}, {classes: (count, 4), masks_of(w, queries, pixels, side): (count, side, side)}


def kmax(w):
    """Centres of clusters that take the pixels most like them (Yu et al. 2022)."""
    count, side = 5, 8
    pixels, _ = pyramid(w)
    tokens = w.norm(w.tokens_of(pixels, side * side), C)
    keys, values = (w.linear(tokens, C, C) for _ in range(2))
    centres = w.op("Add", w.normal(1, count, C), np.zeros((1, count, C), np.float32))
    for _ in range(2):
        scores = w.op("MatMul", w.linear(w.norm(centres, C), C, C), w.op("Transpose", keys, perm=[0, 2, 1]))
        best = w.op("ArgMax", scores, axis=1, keepdims=0)
        own = w.op("OneHot", best, np.array([count]), np.array([0, 1], np.float32), axis=1)
        centres = w.block(w.op("Add", centres, w.op("Mul", w.op("MatMul", own, values), 0.1)))
    classes = w.linear(w.norm(centres, C), C, 4)
    return {"image": (3, 16, 16)}, {classes: (count, 4), masks_of(w, centres, pixels, side): (count, side, side)}


def detr(w):
    """An encoder with places in queries and keys alone, a decoder of learned queries, classes and boxes (Carion et al. 2020)."""
    count = 5
    x = w.tokens_of(w.relu(w.conv(w.patched("image", (4, 4)))), 16)
    places, asked = w.normal(1, 16, C), w.normal(1, count, C)

    def attend(x, at, other, of):
        q, k, v = w.linear(w.op("Add", x, at), C, C), w.linear(w.op("Add", other, of), C, C), w.linear(other, C, C)
        scores = w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 2, 1])), C**-0.5)
        y = w.op("MatMul", w.op("Softmax", scores, axis=-1), v)
        return w.norm(w.op("Add", x, w.linear(y, C, C)), C)

    def mlp(x):
        return w.norm(w.op("Add", x, w.linear(w.relu(w.linear(x, C, 2 * C)), 2 * C, C)), C)

    memory = mlp(attend(x, places, x, places))
    queries = np.zeros((1, count, C), np.float32)
    for _ in range(2):
        queries = attend(queries, asked, queries, asked)
        queries = mlp(attend(queries, asked, memory, places))
    boxes = w.op("Sigmoid", w.linear(w.relu(w.linear(queries, C, C)), C, 4))
    return {"image": (3, 16, 16)}, {w.linear(queries, C, 6): (count, 6), boxes: (count, 4)}


FORMS = {
    "UperNet": upernet, "DPT": dpt, "CroCo": croco, "ViViT": vivit, "Mask2Former": mask2former, "kMaX": kmax, "DETR": detr,
}  # fmt: skip
