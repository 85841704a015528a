"""Selective scans written node by node as exporters write them, and small networks with them."""


import numpy as np

import selection_maker as maker

ROWS = 2  # of the map that tokens are
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


def four(w, x, together=False):
    """Rows, columns, and both from their ends, as VMamba's blocks scan maps (Liu et al. 2024): the matrices of all directions in
    one array; each direction a scan, or `together` one scan over the channels of all."""
    flat, turned = np.array([1, INNER, TOKENS]), np.array([1, INNER, ROWS, TOKENS // ROWS])
    back = np.array([1, INNER, TOKENS // ROWS, ROWS])

    def columns(y, shape):
        return w.op("Reshape", w.op("Transpose", w.op("Reshape", y, shape), perm=[0, 1, 3, 2]), flat)

    def ends(y):
        axis = 3 if y == pair else 2
        return w.op("Slice", y, *(np.array([n], np.int64) for n in (-1, np.iinfo(np.int64).min, axis, -1)))

    pair, t = None, w.op("Transpose", x, perm=[0, 2, 1])
    pair = w.op("Concat", w.wide(t, 1), w.wide(columns(t, turned), 1), axis=1)
    xs = w.op("Concat", pair, ends(pair), axis=1)
    both = w.op("Einsum", xs, w.normal(4, RANK + 2 * STATES, INNER, scale=INNER**-0.5), equation="bkdl,kcd->bkcl")
    dt, b, g = (w.cut(both, 2, *p) for p in ((0, RANK), (RANK, RANK + STATES), (RANK + STATES, RANK + 2 * STATES)))
    dt = w.op("Einsum", dt, w.normal(4, INNER, RANK, scale=0.3), equation="bkrl,kdr->bkdl")
    if together:
        wide = np.array([1, 4 * INNER, TOKENS])
        u, rates = w.op("Reshape", xs, wide), np.concatenate([w.rates() for _ in range(4)])
        d = w.op("Softplus", w.op("Add", w.op("Reshape", dt, wide), w.normal(4 * INNER, 1, scale=0.5) - 2))
        each, all_of = (np.array([1, *n, STATES, TOKENS]) for n in ((4, INNER), (4 * INNER,)))
        b, g = (w.op("Reshape", w.op("Expand", w.wide(r, 2), each), all_of) for r in (b, g))
        decay = w.op("Exp", w.op("Einsum", d, rates, equation="bdl,dn->bdln"))
        fed = w.op("Einsum", d, b, u, equation="bdl,bdnl,bdl->bdln")
        state, made = None, []
        for i in range(TOKENS):
            new = w.at(fed, i, 2)
            state = new if state is None else w.op("Add", w.op("Mul", w.at(decay, i, 2), state), new)
            made.append(w.wide(w.op("Einsum", state, w.at(g, i, 3), equation="bdn,bdn->bd"), 2))
        y = w.op("Add", w.op("Concat", *made, axis=2), w.op("Mul", 1 + w.normal(4 * INNER, 1, scale=0.3), u))
        ys = [w.at(w.op("Reshape", y, np.array([1, 4, INNER, TOKENS])), k) for k in range(4)]
    else:
        ys = []
        for k in range(4):
            u, steps, fed, read = (w.op("Transpose", w.at(r, k), perm=[0, 2, 1]) for r in (xs, dt, b, g))
            d = w.op("Softplus", w.op("Add", steps, w.normal(INNER, scale=0.5) - 2))
            every = w.op("Concat", *(w.wide(s, 1) for s in w.states_of(d, w.fed(d, u, fed), w.rates())), axis=1)
            y = w.skip(w.op("Squeeze", w.op("MatMul", every, w.wide(read, 3)), np.array([3], np.int64)), u)
            ys.append(w.op("Transpose", y, perm=[0, 2, 1]))
    ys = [ys[0], columns(ys[1], back), ends(ys[2]), columns(ends(ys[3]), back)]
    total = w.op("Add", w.op("Add", ys[0], ys[1]), w.op("Add", ys[2], ys[3]))
    return w.op("Transpose", total, perm=[0, 2, 1])


def write(path, form):
    """The network `form`, a function of a Writer, as a file."""
    w = Writer()
    return w.write(path, IMAGE, form(w), [1, CLASSES])
