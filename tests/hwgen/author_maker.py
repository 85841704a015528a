"""Small networks with parts of published systems as their authors' code has them, which others write in another way."""


import numpy as np

import chosen_maker as maker

IMAGE, PATCHES, D, CLASSES, SIDE = maker.IMAGE, maker.PATCHES, maker.D, maker.CLASSES, maker.SIDE
ints = maker.ints
TAPS = np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3)


def neighbours(w):
    """Super tokens (Huang et al. 2023): the nine around each by a convolution whose filters show one tap, of channels that are
    images; what pixels give to these is added up by its transpose."""
    x = w.norm(w.tokens())
    half, few = SIDE // 2, PATCHES // 4
    pixels = w.op("Reshape", x, [1, half, 2, half, 2, D])
    pixels = w.op("Reshape", w.op("Transpose", pixels, perm=[0, 1, 3, 2, 4, 5]), [1, few, 4, D])

    def around(tokens):
        """[1, D, few] -> [1, few, D, 9]"""
        y = w.op("Conv", w.op("Reshape", tokens, [D, 1, half, half]), TAPS, pads=[1] * 4)
        return w.op("Reshape", w.turned(w.op("Reshape", y, [1, 9 * D, few])), [1, few, D, 9])

    def added(value, width):
        """[1, few, width, 9] -> [1, width, few]"""
        y = w.op("Reshape", w.op("Transpose", value, perm=[0, 2, 3, 1]), [width, 9, half, half])
        return w.op("Reshape", w.op("ConvTranspose", y, TAPS, pads=[1] * 4), [1, width, few])

    share = w.op("MatMul", pixels, around(w.turned(w.mean(pixels, 2))))
    share = w.softmax(w.op("Mul", share, float(D**-0.5)))
    given = added(w.op("MatMul", w.op("Transpose", pixels, perm=[0, 1, 3, 2]), share), D)
    made = w.op("Div", given, w.op("Add", added(w.sum(share, 2), 1), 1e-12))
    made = w.turned(w.linear(w.turned(made)))
    y = w.op("MatMul", share, w.op("Transpose", around(made), perm=[0, 1, 3, 2]))
    return w.classes(w.op("Reshape", w.op("Add", pixels, y), [1, PATCHES, D]))


def features(w):
    """Random features of a softmax, divided by their sums: rows of any size, and no epsilon, which PyTorch's exporter drops
    (T2T-ViT's performer: Yuan et al. 2021)."""
    x = w.norm(w.tokens())
    q, k, v = w.linear(x, scale=2.0), w.linear(x), w.linear(x)
    random = w.normal(D, 12, scale=D**-0.5)
    q, k = (w.op("Exp", w.op("Sub", w.op("MatMul", r, random), w.op("Mul", w.sum(w.op("Mul", r, r), 2), 0.25))) for r in (q, k))
    q = w.op("Div", q, float(12**0.5))
    total = w.op("Einsum", q, w.op("ReduceSum", k, ints(1), keepdims=0), equation="bti,bi->bt")
    y = w.op("Einsum", q, w.op("Einsum", v, k, equation="bin,bim->bnm"), equation="bti,bni->btn")
    y = w.op("Div", y, w.op("Tile", w.op("Unsqueeze", total, ints(2)), ints(1, 1, D)))
    return w.classes(w.op("Add", x, w.linear(y)))


def chunks(w, quantised=lambda r: r):
    """Retention in chunks, whose states start with zeros in a tensor of all (ViR: Hatamizadeh et al. 2023)."""
    x = w.norm(w.tokens())
    count, own = 2, PATCHES // 2
    q, k, v = (w.op("Reshape", w.linear(x), [1, count, own, D]) for _ in range(3))
    mask = np.tril(0.9 ** (np.arange(own)[:, None] - np.arange(own)))
    inner = w.op("Mul", w.op("Div", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2])), float(D**0.5)), mask)
    first = (w.op("Reshape", w.cut(r, 1, 0, 1), [own, D]) for r in (k, v))
    state = w.op("MatMul", w.op("Transpose", next(first), perm=[1, 0]), next(first))
    states = quantised(w.op("ScatterND", np.zeros((1, count, D, D)), np.array([[[0, 1]]]), w.op("Reshape", state, [1, 1, D, D])))
    cross = w.op("Div", w.op("MatMul", q, states), float(D**0.5))
    y = w.op("Add", w.op("MatMul", inner, v), w.op("Mul", cross, 0.9 ** np.arange(1, own + 1)[:, None]))
    return w.classes(w.op("Add", x, w.linear(w.op("Reshape", y, [1, PATCHES, D]))))


def quantised_chunks(w):
    """The same with the states on a grid, as onnxruntime's quantiser leaves them."""
    scale = np.float32(0.05)

    def pair(r):
        return w.op("DequantizeLinear", w.op("QuantizeLinear", r, scale, np.int8(0)), scale, np.int8(0))

    return chunks(w, pair)


def rescaled(w):
    """Scores of tokens, pooled and brought to the sum that they had before (light UniFormer: Li et al. 2022)."""
    x = w.norm(w.tokens())
    score = w.op("Sigmoid", w.linear(x, D, 1))
    few = w.op("AveragePool", w.op("Reshape", score, [1, 1, SIDE, SIDE]), kernel_shape=[2, 2], strides=[2, 2])
    few = w.op("Reshape", few, [1, 4])
    before, after = w.op("Reshape", w.sum(score), [1, 1]), w.sum(few)
    few = w.op("Unsqueeze", w.op("Mul", few, w.op("Div", before, after)), ints(2))
    return w.classes(w.op("Mul", w.linear(w.op("Slice", x, ints(0), ints(4), ints(1))), few))


def shifts(w):
    """Patches of the image beside those of four copies moved by two pixels along diagonals, normalised before they are tokens
    (shifted patch tokenisation: Lee et al. 2021)."""
    moved = []
    for down in (2, -2):
        for along in (2, -2):
            moved.append(w.op("Pad", "image", ints(0, 0, down, along, 0, 0, -down, -along)))
    x = w.op("Reshape", w.op("Concat", "image", *moved, axis=1), [1, 15, SIDE, 4, SIDE, 4])
    x = w.op("Reshape", w.op("Transpose", x, perm=[0, 2, 4, 3, 5, 1]), [1, PATCHES, 240])
    x = w.op("LayerNormalization", x, 1 + w.normal(240, scale=0.2), w.normal(240, scale=0.2), axis=-1)
    return w.classes(w.linear(x, 240, D))


NETWORKS = neighbours, features, chunks, quantised_chunks, rescaled, shifts


def write(path, form):
    """The network `form`, a function of a Writer, as a file."""
    w = maker.Writer()
    return w.write(path, IMAGE, form(w), [1, CLASSES])
