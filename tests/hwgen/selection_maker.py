"""Small networks that keep tokens by scores of their own, written node by node as exporters write them."""


import numpy as np

import moe_maker as maker

IMAGE, PATCH = (3, 16, 16), 4
PATCHES, D, H, HIDDEN, CLASSES = 16, 32, 2, 64, 10
KEPT = 9


class Writer(maker.Writer):
    """Values are [1, tokens, D]."""

    def linear(self, x, inputs=D, outputs=D, scale=1.0):
        y = self.op("MatMul", x, self.normal(inputs, outputs, scale=scale * inputs**-0.5))
        return self.op("Add", y, self.normal(outputs, scale=0.1))

    def tokens(self, lead=0):
        """Patches with positions, behind `lead` tokens of the network's own."""
        y = self.op("Conv", "image", self.normal(D, IMAGE[0], PATCH, PATCH, scale=0.15), self.normal(D, scale=0.1),
                    kernel_shape=[PATCH] * 2, strides=[PATCH] * 2)  # fmt: skip
        y = self.op("Transpose", self.op("Reshape", y, [1, D, -1]), perm=[0, 2, 1])
        y = self.op("Concat", self.normal(1, lead, D), y, axis=1) if lead else y
        return self.op("Add", y, self.normal(1, PATCHES + lead, D, scale=0.5))

    def norm(self, x):
        return self.op("LayerNormalization", x, 1 + self.normal(D, scale=0.2), self.normal(D, scale=0.2), axis=-1)

    def heads(self, x, count):
        return self.op("Transpose", self.op("Reshape", x, [1, count, H, D // H]), perm=[0, 2, 1, 3])

    def attention(self, x, count, sharp=1.0):
        """(x and what its attention adds, probabilities [1, H, count, count])."""
        y = self.norm(x)
        q, k, v = (self.heads(self.linear(y, scale=scale), count) for scale in (sharp, sharp, 1.0))
        scores = self.op("Mul", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), float((D // H) ** -0.5))
        p = self.op("Softmax", scores, axis=-1)
        y = self.op("Reshape", self.op("Transpose", self.op("MatMul", p, v), perm=[0, 2, 1, 3]), [1, count, D])
        return self.op("Add", x, self.linear(y)), p

    def mlp(self, x):
        y = self.op("Gelu", self.linear(self.norm(x), D, HIDDEN))
        return self.op("Add", x, self.linear(y, HIDDEN, D))

    def head(self, x):
        return self.linear(self.norm(x), D, CLASSES)

    def best(self, scores, count, **attributes):
        """Indices of a top-k of scores [1, n]."""
        return self.op("TopK", scores, np.array([count], np.int64), outputs=2, axis=1, **attributes)[1]

    def rows(self, x, index, count):
        """torch.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, D))."""
        index = self.op("Expand", self.op("Unsqueeze", index, np.array([2], np.int64)), np.array([1, count, D], np.int64))
        return self.op("GatherElements", x, index, axis=1)

    def cut(self, x, axis, start, stop):
        starts, ends, axes = (np.array([n], np.int64) for n in (start, stop, axis))
        return self.op("Slice", x, starts, ends, axes)

    def score(self, x):
        """A linear layer to one number of each token: [1, n]."""
        return self.op("Squeeze", self.linear(x, D, 1), np.array([2], np.int64))


def scored(w):
    """Tokens kept by a linear score; classes of their mean."""
    x = w.mlp(w.attention(w.tokens(), PATCHES)[0])
    x = w.rows(x, w.best(w.score(x), KEPT), KEPT)
    x = w.mlp(w.attention(x, KEPT)[0])
    return w.head(w.op("ReduceMean", x, np.array([1], np.int64), keepdims=0))


def evit(w):
    """EViT (Liang et al. 2022): tokens kept by the class token's attention to them, the mean over heads; the others, weighted
    by it, are summed to one token."""
    x, p = w.attention(w.tokens(lead=1), PATCHES + 1, sharp=2.0)
    of_class = w.op("Squeeze", w.cut(w.cut(p, 2, 0, 1), 3, 1, PATCHES + 1), np.array([2], np.int64))  # [1, H, patches]
    scores = w.op("ReduceMean", of_class, np.array([1], np.int64), keepdims=0)
    order = w.best(scores, PATCHES)
    first, patches = w.cut(x, 1, 0, 1), w.cut(x, 1, 1, PATCHES + 1)
    kept = w.rows(patches, w.cut(order, 1, 0, KEPT), KEPT)
    rest = w.cut(order, 1, KEPT, PATCHES)
    others, weights = w.rows(patches, rest, PATCHES - KEPT), w.op("GatherElements", scores, rest, axis=1)
    weights = w.op("Unsqueeze", weights, np.array([2], np.int64))
    fused = w.op("ReduceSum", w.op("Mul", others, weights), np.array([1], np.int64), keepdims=1)
    x = w.op("Concat", first, kept, fused, axis=1)
    x = w.mlp(w.mlp(w.attention(w.mlp(x), KEPT + 2)[0]))
    return w.head(w.op("Reshape", w.cut(x, 1, 0, 1), [1, D]))


def of_all(w, kept):
    """Tokens that `kept` chooses of all of them, [1, KEPT, D], to classes of their mean."""
    return w.head(w.op("ReduceMean", kept(w, w.tokens()), np.array([1], np.int64), keepdims=0))


def write(path, form):
    """The network `form`, a function of a Writer, as a file."""
    w = Writer()
    return w.write(path, IMAGE, form(w), [1, CLASSES])
