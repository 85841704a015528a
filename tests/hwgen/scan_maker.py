"""Selective scans written node by node as exporters write them, and small networks with them."""

import importlib.util
from pathlib import Path

import numpy as np

_spec = importlib.util.spec_from_file_location("selection_maker", Path(__file__).with_name("selection_maker.py"))
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)

IMAGE, TOKENS, D, INNER, STATES, RANK, CLASSES = maker.IMAGE, maker.PATCHES, maker.D, 32, 4, 3, maker.CLASSES


class Writer(maker.Writer):
    """Values are [1, tokens, D]."""

    def times(self, x, inputs, outputs, scale=1.0):
        return self.op("MatMul", x, self.normal(inputs, outputs, scale=scale * inputs**-0.5))

    def wide(self, x, axis):
        return self.op("Unsqueeze", x, np.array([axis], np.int64))

    def at(self, x, i, axis=1):
        return self.op("Gather", x, np.array(i, np.int64), axis=axis)

    def flipped(self, x):
        starts, ends, axes, steps = (np.array([n], np.int64) for n in (-1, np.iinfo(np.int64).min, 1, -1))
        return self.op("Slice", x, starts, ends, axes, steps)

    def rates(self, states=STATES):
        """As Mamba begins: -1, -2, ... of every channel, and some more."""
        return -(np.arange(1, states + 1) * np.exp(self.rng.normal(0, 0.1, (INNER, states)))).astype(np.float32)

    def operands(self, x, states=STATES):
        """(softplus of the steps [1, T, INNER], b [1, T, states], g) of x, as a linear layer's columns."""
        y = self.times(x, INNER, RANK + 2 * states)
        parts = [self.cut(y, 2, *part) for part in ((0, RANK), (RANK, RANK + states), (RANK + states, RANK + 2 * states))]
        steps = self.op("Add", self.times(parts[0], RANK, INNER, 0.5), self.normal(INNER, scale=0.5) - 2)
        return self.op("Softplus", steps), *parts[1:]

    def fed(self, d, x, b):
        """[1, T, INNER, states]"""
        return self.op("Mul", self.op("Mul", self.wide(d, 3), self.wide(b, 2)), self.wide(x, 3))

    def states_of(self, d, fed, rates, backwards=False):
        """The state of every token, [1, INNER, states] each."""
        decay = self.op("Exp", self.op("Mul", self.wide(d, 3), rates))
        order = list(range(TOKENS))[:: -1 if backwards else 1]
        state, found = None, {}
        for i in order:
            new = self.at(fed, i)
            state = new if state is None else self.op("Add", self.op("Mul", self.at(decay, i), state), new)
            found[i] = state
        return [found[i] for i in range(TOKENS)]

    def skip(self, y, x):
        return self.op("Add", y, self.op("Mul", 1 + self.normal(INNER, scale=0.3), x))


def at_once(w, x, backwards=False, skip=True, states=STATES):
    """All states side by side times g: as mambapy writes it."""
    d, b, g = w.operands(x, states)
    found = w.states_of(d, w.fed(d, x, b), w.rates(states), backwards)
    every = w.op("Concat", *(w.wide(s, 1) for s in found), axis=1)
    y = w.op("Squeeze", w.op("MatMul", every, w.wide(g, 3)), np.array([3], np.int64))
    return w.skip(y, x) if skip else y


def by_steps(w, x, backwards=False):
    """Every state times its g, the products joined: as the reference code of Mamba does, channels before tokens."""
    d, b, g = w.operands(x)
    fed = w.op("Mul", w.op("Mul", w.wide(d, 3), w.wide(x, 3)), w.wide(b, 2))
    found = w.states_of(d, fed, w.rates(), backwards)
    parts = [w.wide(w.op("Einsum", s, w.at(g, i), equation="bdn,bn->bd"), 2) for i, s in enumerate(found)]
    return w.skip(w.op("Transpose", w.op("Concat", *parts, axis=2), perm=[0, 2, 1]), x)


def flipped(w, x):
    """Backwards as Vision Mamba does it: tokens turned round, scanned, turned back."""
    return w.flipped(at_once(w, w.flipped(x)))


def block(w, x, scan):
    """Gated, behind a causal depthwise convolution of four tokens."""
    y = w.norm(x)
    u, z = w.times(y, D, INNER), w.times(y, D, INNER)
    u = w.op("Conv", w.op("Transpose", u, perm=[0, 2, 1]), w.normal(INNER, 1, 4, scale=0.4), w.normal(INNER, scale=0.1),
             group=INNER, kernel_shape=[4], pads=[3, 3])  # fmt: skip
    u = w.op("Transpose", w.cut(u, 2, 0, TOKENS), perm=[0, 2, 1])
    u = w.op("Mul", u, w.op("Sigmoid", u))
    y = w.op("Mul", scan(w, u), w.op("Mul", z, w.op("Sigmoid", z)))
    return w.op("Add", x, w.times(y, INNER, D))


def network(*scans):
    """A block for each, then classes of the mean."""

    def form(w):
        x = w.tokens()
        for scan in scans:
            x = block(w, x, scan)
        return w.head(w.op("ReduceMean", x, np.array([1], np.int64), keepdims=0))

    return form


def both(w, x):
    """Two directions, added, as Vision Mamba's blocks do."""
    return w.op("Add", at_once(w, x), flipped(w, x))


def write(path, form):
    """The network `form`, a function of a Writer, as a file."""
    w = Writer()
    return w.write(path, IMAGE, form(w), [1, CLASSES])
