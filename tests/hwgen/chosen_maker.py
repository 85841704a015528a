"""Small networks that decide on tokens by what they see in ways beyond a plain top-k, written as exporters write them."""


import numpy as np

import selection_maker as maker

IMAGE, PATCHES, D, H, KEPT, CLASSES = maker.IMAGE, maker.PATCHES, maker.D, maker.H, maker.KEPT, maker.CLASSES
MERGED, SIDE, QUERIES = 4, 4, 6
INT = np.int64


def ints(*numbers):
    return np.array(numbers, INT)


class Writer(maker.Writer):
    def mean(self, x, axis=1):
        return self.op("ReduceMean", x, ints(axis), keepdims=0)

    def sum(self, x, axis=1):
        return self.op("ReduceSum", x, ints(axis), keepdims=1)

    def expanded(self, index, *shape):
        return self.op("Expand", self.op("Unsqueeze", index, ints(len(shape) - 1)), ints(*shape))

    def picked(self, x, index, count, width=D):
        """x [1, n, width] at index [1, count]."""
        return self.op("GatherElements", x, self.expanded(index, 1, count, width), axis=1)

    def every(self, x, axis, start, stop, step):
        starts, ends, axes, steps = (ints(n) for n in (start, stop, axis, step))
        return self.op("Slice", x, starts, ends, axes, steps)

    def unit(self, x):
        """Rows of length 1."""
        length = self.op("Sqrt", self.op("ReduceSum", self.op("Mul", x, x), ints(-1), keepdims=1))
        return self.op("Div", x, length)

    def turned(self, x):
        return self.op("Transpose", x, perm=[0, 2, 1])

    def softmax(self, x):
        return self.op("Softmax", x, axis=-1)

    def classes(self, x):
        return self.head(self.mean(x))


def dynamic(w):
    """DynamicViT (Rao et al. 2021): a score of two classes for each token; the class token and the best patches, by indices moved
    by one behind a zero."""
    x = w.mlp(w.attention(w.tokens(lead=1), PATCHES + 1)[0])
    logits = w.linear(w.norm(w.cut(x, 1, 1, PATCHES + 1)), D, 2)
    score = w.op("Gather", w.op("LogSoftmax", logits, axis=-1), np.array(0, INT), axis=2)
    best = w.op("Add", w.best(score, KEPT), ints(1))
    kept = w.picked(x, w.op("Concat", ints(0)[None], best, axis=1), KEPT + 1)
    x = w.mlp(w.attention(kept, KEPT + 1)[0])
    return w.head(w.op("Reshape", w.cut(x, 1, 0, 1), [1, D]))


def complement(w):
    """EViT (Liang et al. 2022) with the rest as its code finds it: places with zeros for those of the kept tokens, sorted."""
    x, p = w.attention(w.tokens(lead=1), PATCHES + 1, sharp=2.0)
    score = w.mean(w.op("Squeeze", w.cut(w.cut(p, 2, 0, 1), 3, 1, PATCHES + 1), ints(2)))
    best = w.best(score, KEPT)
    zeros = np.zeros((1, KEPT), INT)
    places = w.op("ScatterElements", np.arange(PATCHES)[None].astype(INT), best, zeros, axis=1)
    ordered = w.op("TopK", places, ints(PATCHES), outputs=2, axis=1, largest=0)[0]
    rest = w.cut(ordered, 1, KEPT, PATCHES)
    patches = w.cut(x, 1, 1, PATCHES + 1)
    weights = w.op("Unsqueeze", w.op("GatherElements", score, rest, axis=1), ints(2))
    fused = w.sum(w.op("Mul", w.picked(patches, rest, PATCHES - KEPT), weights))
    x = w.op("Concat", w.cut(x, 1, 0, 1), w.picked(patches, best, KEPT), fused, axis=1)
    x = w.mlp(w.attention(x, KEPT + 2)[0])
    return w.head(w.op("Reshape", w.cut(x, 1, 0, 1), [1, D]))


def merged(w):
    """Token merging (ToMe, Bolya et al. 2023): every other token to the most similar of the rest, those of the best matches, the
    others in their order; attention by the tokens' sizes."""
    x, size, count = w.tokens(), None, PATCHES
    for _ in range(2):
        y = w.norm(x)
        q, k, v = (w.heads(w.linear(y), count) for _ in range(3))
        scores = w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2])), float((D // H) ** -0.5))
        if size is not None:
            scores = w.op("Add", scores, w.op("Unsqueeze", w.turned(w.op("Log", size)), ints(1)))
        y = w.op("Transpose", w.op("MatMul", w.softmax(scores), v), perm=[0, 2, 1, 3])
        x = w.op("Add", x, w.linear(w.op("Reshape", y, [1, count, D])))
        key = w.unit(w.mean(k))
        half = count // 2
        alike = w.op("MatMul", w.every(key, 1, 0, count, 2), w.turned(w.every(key, 1, 1, count, 2)))
        most, match = w.op("ReduceMax", alike, ints(2), keepdims=0), w.op("ArgMax", alike, axis=2, keepdims=0)
        order = w.best(most, half)
        to = w.op("GatherElements", match, w.cut(order, 1, 0, MERGED), axis=1)
        rest = w.op("TopK", w.cut(order, 1, MERGED, half), ints(half - MERGED), outputs=2, axis=1, largest=0)[0]
        size = np.ones((1, count, 1), np.float32) if size is None else size
        both = ((w.op("Mul", x, size), D), (w.op("Mul", size, 1.0), 1))
        x, size = (_merge(w, part, order, to, rest, half, width) for part, width in both)
        x, count = w.op("Div", x, size), count - MERGED
        x = w.mlp(x)
    return w.classes(x)


def _merge(w, x, order, to, rest, half, width):
    one, other = (w.every(x, 1, i, 2 * half, 2) for i in (0, 1))
    moved = w.picked(one, w.cut(order, 1, 0, MERGED), MERGED, width)
    other = w.op("ScatterElements", other, w.expanded(to, 1, MERGED, width), moved, axis=1, reduction="add")
    return w.op("Concat", w.picked(one, rest, half - MERGED, width), other, axis=1)


def regions(w):
    """Attention of a window's tokens to those of the windows that are most like it (BiFormer, Zhu et al. 2023)."""
    windows, own, best = SIDE, PATCHES // SIDE, 2
    x = w.op("Reshape", w.tokens(), [1, SIDE // 2, 2, SIDE // 2, 2, D])
    x = w.op("Reshape", w.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), [1, windows, own, D])
    y = w.norm(x)
    q, k, v = (w.linear(y) for _ in range(3))
    alike = w.op("MatMul", w.mean(q, 2), w.turned(w.mean(k, 2)))
    index = w.op("TopK", alike, ints(best), outputs=2, axis=2)[1]
    index = w.op("Expand", w.op("Unsqueeze", index, ints(3, 4)), ints(1, windows, best, own, D))
    heads = []
    for part in (k, v):
        every = w.op("Expand", w.op("Unsqueeze", part, ints(1)), ints(1, windows, windows, own, D))
        part = w.op("Reshape", w.op("GatherElements", every, index, axis=2), [windows, best * own, H, D // H])
        heads.append(w.op("Transpose", part, perm=[0, 2, 1, 3]))
    q = w.op("Transpose", w.op("Reshape", q, [windows, own, H, D // H]), perm=[0, 2, 1, 3])
    scores = w.op("Mul", w.op("MatMul", q, w.op("Transpose", heads[0], perm=[0, 1, 3, 2])), float((D // H) ** -0.5))
    y = w.op("Transpose", w.op("MatMul", w.softmax(scores), heads[1]), perm=[0, 2, 1, 3])
    x = w.op("Add", w.op("Reshape", x, [1, PATCHES, D]), w.linear(w.op("Reshape", y, [1, PATCHES, D])))
    return w.classes(w.mlp(x))


def clusters(w, how="OneHot"):
    """Tokens given to the centre that is most like them (k-means attention, kMaX: Yu et al. 2022); centres of what they get."""
    x = w.tokens()
    centres = w.op("Add", w.linear(w.op("Reshape", w.mean(x), [1, 1, D])), w.normal(1, QUERIES, D))
    keys, values = w.linear(w.norm(x)), w.linear(w.norm(x))
    for _ in range(2):
        scores = w.op("MatMul", w.linear(w.norm(centres)), w.turned(keys))  # [1, QUERIES, PATCHES]
        best = w.op("ArgMax", scores, axis=1, keepdims=int(how != "OneHot"))
        if how == "OneHot":
            own = w.op("OneHot", best, ints(QUERIES), np.array([0, 1], np.float32), axis=1)
        else:
            own = np.zeros((1, QUERIES, PATCHES), np.float32)
            own = w.op("ScatterElements", own, best, np.ones((1, 1, PATCHES), np.float32), axis=1)
        centres = w.op("Add", centres, w.op("Mul", w.op("MatMul", own, values), 0.2))
        centres = w.mlp(centres)
    return w.classes(centres)


def scattered(w):
    """The same, with ones written at the places."""
    return clusters(w, "ScatterElements")


def prototypes(w):
    """Queries that each take the pixel most like them (PEM: Cavagnero et al. 2024)."""
    x = w.norm(w.tokens())
    queries = w.op("Add", w.linear(w.op("Reshape", w.mean(x), [1, 1, D])), w.normal(1, QUERIES, D))
    keys = w.linear(x)
    alike = w.op("MatMul", w.unit(w.linear(queries)), w.turned(w.unit(keys)))
    best = w.picked(keys, w.op("ArgMax", alike, axis=2, keepdims=0), QUERIES)
    return w.classes(w.mlp(w.op("Add", queries, w.linear(w.op("Mul", best, queries)))))


def masked(w, where=False):
    """Cross attention under a mask of the network's own, which opens where it would leave nothing (Mask2Former: Cheng et al.
    2022)."""
    x = w.norm(w.tokens())
    queries = w.op("Add", w.linear(w.op("Reshape", w.mean(x), [1, 1, D])), w.normal(1, QUERIES, D))
    mask = w.op("Sigmoid", w.op("MatMul", w.linear(queries), w.turned(x)))
    hidden = w.op("Less", mask, 0.5)
    count = w.op("ReduceSum", w.op("Cast", hidden, to=7), ints(2), keepdims=1)
    every = w.op("Equal", count, np.array(PATCHES, INT))
    hidden = w.op("Where", every, np.array(False), hidden) if where else w.op("And", hidden, w.op("Not", every))
    scores = w.op("Mul", w.op("MatMul", w.linear(queries), w.turned(w.linear(x))), float(D**-0.5))
    scores = w.op("Where", hidden, float("-inf"), scores)
    y = w.op("MatMul", w.softmax(scores), w.linear(x))
    return w.classes(w.mlp(w.op("Add", queries, w.linear(y))))


def masked_where(w):
    """The same, written by a choice (OneFormer: Jain et al. 2023)."""
    return masked(w, where=True)


def pixels_masked(w):
    """A mask over the pixels of a map that was made larger and smaller again, one among known ones, of queries and patches
    attended to together; by a number so low that masked keys are alike (EoMT: Kerssies et al. 2025)."""
    x = w.norm(w.op("Concat", w.op("Add", w.normal(1, QUERIES, D), np.zeros((1, QUERIES, D), np.float32)), w.tokens(), axis=1))
    count = QUERIES + PATCHES
    parts = (w.cut(x, 1, *ends) for ends in ((0, QUERIES), (QUERIES, count)))
    logits = w.op("MatMul", w.linear(next(parts)), w.turned(next(parts)))
    logits = w.op("Reshape", logits, [1, QUERIES, SIDE, SIDE])
    for n in (2 * SIDE, SIDE):
        logits = w.op("Resize", logits, "", "", ints(1, QUERIES, n, n), mode="linear")
    seen = w.op("Greater", w.op("Reshape", logits, [1, QUERIES, PATCHES]), 0.0)
    places = np.stack(np.meshgrid(0, np.arange(QUERIES), QUERIES + np.arange(PATCHES), indexing="ij"), -1).astype(INT)
    seen = w.op("Unsqueeze", w.op("ScatterND", np.ones((1, count, count), bool), places, seen), ints(1))
    seen = w.op("Expand", seen, ints(1, H, 1, 1))
    mask = w.op("Where", w.op("Cast", w.op("Not", seen), to=9), -1e9, w.op("Cast", seen, to=1))
    q, k, v = (w.heads(w.linear(x), count) for _ in range(3))
    scores = w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2])), float((D // H) ** -0.5))
    y = w.op("MatMul", w.softmax(w.op("Add", scores, mask)), v)
    y = w.op("Reshape", w.op("Transpose", y, perm=[0, 2, 1, 3]), [1, count, D])
    return w.classes(w.mlp(w.op("Add", x, w.linear(y))))


def all_masked(w):
    """A mask that may leave a query no key: the mean of all, by a number so low that masked keys are alike."""
    x = w.norm(w.tokens())
    seen = w.op("Greater", w.op("MatMul", w.linear(x), w.turned(w.linear(x))), 4.0)
    scores = w.op("Mul", w.op("MatMul", w.linear(x), w.turned(w.linear(x))), float(D**-0.5))
    y = w.op("MatMul", w.softmax(w.op("Where", seen, scores, float(np.finfo(np.float32).min))), w.linear(x))
    return w.classes(w.mlp(w.op("Add", x, w.linear(y))))


def gated(w):
    """Tokens below a threshold, which nothing attends to (IA-RED2: Pan et al. 2021)."""
    x = w.mlp(w.tokens())
    keep = w.op("Cast", w.op("Greater", w.op("Sigmoid", w.linear(x, D, 1)), 0.5), to=1)
    hidden = w.op("Mul", w.op("Sub", 1.0, w.op("Unsqueeze", w.turned(keep), ints(1))), -1e4)
    y = w.norm(x)
    q, k, v = (w.heads(w.linear(y), PATCHES) for _ in range(3))
    scores = w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2])), float((D // H) ** -0.5))
    p = w.softmax(w.op("Add", scores, hidden))
    y = w.op("Reshape", w.op("Transpose", w.op("MatMul", p, v), perm=[0, 2, 1, 3]), [1, PATCHES, D])
    x = w.op("Add", x, w.op("Mul", w.linear(y), keep))
    return w.classes(w.op("Mul", w.mlp(x), keep))


def returned(w):
    """Tokens made of few centres and back of the two most like each, by a softmax of the two (Expedit: Liang et al. 2022)."""
    x = w.mlp(w.tokens())
    centres = w.op("MatMul", w.softmax(w.normal(1, QUERIES, PATCHES)), x)
    centres = w.mlp(centres)
    alike = w.op("Mul", w.op("MatMul", x, w.turned(centres)), 0.05)
    weights, best = w.op("TopK", alike, ints(2), outputs=2, axis=2)
    zeros = np.zeros((1, PATCHES, QUERIES), np.float32)
    back = w.op("ScatterElements", zeros, best, w.softmax(weights), axis=2)
    return w.classes(w.mlp(w.op("MatMul", back, centres)))


def heads(w):
    """Attention heads of which each token takes the best two, weighed by their gates (Mod-Squad: Chen et al. 2023)."""
    count, width = 4, D // 2
    x = w.tokens()
    y = w.norm(x)
    gate, best = w.op("TopK", w.softmax(w.linear(y, D, count)), ints(2), outputs=2, axis=2)
    gate = w.op("Div", gate, w.op("ReduceSum", gate, ints(2), keepdims=1))
    gates = w.op("ScatterElements", np.zeros((1, PATCHES, count), np.float32), best, gate, axis=2)
    keys, values = (w.linear(y, D, width) for _ in range(2))
    total = None
    for h in range(count):
        scores = w.op("Mul", w.op("MatMul", w.linear(y, D, width), w.turned(keys)), width**-0.5)
        part = w.linear(w.op("MatMul", w.softmax(scores), values), width, D)
        part = w.op("Mul", part, w.cut(gates, 2, h, h + 1))
        total = part if total is None else w.op("Add", total, part)
    return w.classes(w.mlp(w.op("Add", x, total)))


def shifted(w):
    """The one of four phases of the map that is the largest (polyphase sampling: Ding et al. 2023)."""
    x = w.op("Reshape", w.tokens(), [1, SIDE // 2, 2, SIDE // 2, 2, D])
    phases = w.op("Reshape", w.op("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), [1, 4, PATCHES // 4, D])
    size = w.op("ReduceSum", w.op("Mul", phases, phases), ints(2, 3), keepdims=0)
    best = w.op("Reshape", w.op("ArgMax", size, axis=1, keepdims=1), [1, 1, 1, 1])
    best = w.op("Expand", best, ints(1, 1, PATCHES // 4, D))
    x = w.op("Reshape", w.op("GatherElements", phases, best, axis=1), [1, PATCHES // 4, D])
    return w.classes(w.mlp(w.attention(x, PATCHES // 4)[0]))


NETWORKS = (
    *(dynamic, complement, merged, regions, clusters, scattered, prototypes, masked, masked_where, pixels_masked, all_masked),
    *(gated, returned, heads, shifted),
)


def write(path, form):
    """The network `form`, a function of a Writer, as a file."""
    w = Writer()
    return w.write(path, IMAGE, form(w), [1, CLASSES])
