"""Layers of constants times what is computed: linear, convolution, embedding, gain and offset of each channel."""

from __future__ import annotations

from dataclasses import dataclass

from ..tensor import Builder, Layer, Ref


@dataclass(frozen=True)
class Linear(Layer):
    """y[r, n] = sum over k of x[r, k] * w[n, k] (+ b[n]): x [R, K], w [N, K], b [N] -> [R, N].

    The rows of x may be any walk: the windows of a convolution without groups are one.
    """

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, w, *b = operands
        y = t.contract("ab,cb->ac", x, w)
        return t.map("add", y, b[0]) if b else y


@dataclass(frozen=True)
class Conv(Layer):
    """Convolution of d spatial axes: x [C, L1 .. Ld], w [N, C / groups, k1 .. kd], b [N] -> [positions, N].

    y[p, n] = sum over c, k of x[c of n's group, p * stride + k * dilation - before] * w[n, c, k] (+ b[n]), zeros beyond
    the border. `pads`: elements before each axis, then behind each. Positions are row-major.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, w, *b = operands
        rank = len(self.strides)
        x = t.pad(x, [0, *self.pads[:rank]], [0, *self.pads[rank:]])
        for i in range(rank):
            x = t.window(x, 1 + 2 * i, w.shape[2 + i], self.strides[i], self.dilations[i])
        places = x.shape[1::2]
        x = t.reshape(x, (self.groups, x.shape[0] // self.groups, *x.shape[1:]))
        w = t.reshape(w, (self.groups, w.shape[0] // self.groups, *w.shape[1:]))
        p, k = "uvw"[:rank], "xyz"[:rank]
        y = t.contract(f"gc{''.join(a + b for a, b in zip(p, k, strict=True))},gnc{k}->{p}gn", x, w)
        size = 1
        for n in places:
            size *= n
        y = t.reshape(y, (size, -1))
        return t.map("add", y, b[0]) if b else y


@dataclass(frozen=True)
class Embed(Layer):
    """y = concatenate(prefix, x, zeros) + position, along rows: x [R, C], prefix [P, C], position [T, C] -> [T, C].

    Rows of `position` behind those of prefix and x are tokens of their own.
    """

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, prefix, position = operands
        rest = position.shape[0] - prefix.shape[0] - x.shape[0]
        parts = [prefix, x, t.full((rest, x.shape[1]), 0.0)]
        return t.map("add", t.concat([p for p in parts if p.shape[0]], 0), position)


@dataclass(frozen=True)
class Scale(Layer):
    """y = x * gain + offset: x [R, C], gain and offset [1 or R, 1 or C] -> [R, C]. BatchNorm that no neighbour takes."""

    def define(self, t: Builder, *operands: Ref) -> Ref:
        x, gain, offset = operands
        return t.map("add", t.map("mul", x, gain), offset)
