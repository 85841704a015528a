"""Blocks on tokens in many written forms: attention, mixing of tokens, experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from blocks import Blocks, Tokens


class TokenBlocks(Blocks):
    def heads_of(self, x: str, tokens: int, heads: int, size: int) -> str:
        """[1, tokens, heads * size] -> [1, heads, tokens, size]."""
        return self.op("Transpose", self.op("Reshape", x, [1, tokens, heads, size]), perm=[0, 2, 1, 3])

    def joined(self, x: str, tokens: int, width: int) -> str:
        """Back again."""
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1, 3]), [1, tokens, width])

    def scores(self, q: str, k: str, size: int) -> str:
        """softmax(Q K' / sqrt(size)) with what may be added, all [1, heads, tokens, ...]."""
        factor = np.float32(size**-0.5)
        form = self.choose("mul", "mul", "div", "query", "both")
        if form == "query":
            q = self.op("Mul", q, factor)
        elif form == "both":
            q, k = self.op("Mul", q, factor**0.5), self.op("Mul", k, factor**0.5)
        if self.chance(0.2):
            y = self.op("Einsum", q, k, equation="bhid,bhjd->bhij")
        else:
            y = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        return self.op("Mul", y, factor) if form == "mul" else self.op("Div", y, 1 / factor) if form == "div" else y

    def self_attention(self, x: Tokens) -> str:
        """Q, K, V of all tokens in one of the ways in which they are cut from products."""
        heads = self.choose(*(h for h in (1, 2, 3, 4) if x.c % h == 0 and x.c // h >= 4))
        size, t, d = x.c // heads, x.t, x.c
        form = self.choose("fused", "fused", "gathered", "sliced", "separate", "separate", "einsum", "three axes", "multi query")
        if form in ("fused", "gathered"):
            y = self.op("Reshape", self.linear(x.name, d, 3 * d, t), [1, t, 3, heads, size])
            y = self.op("Transpose", y, perm=[2, 0, 3, 1, 4])
            if form == "fused":
                parts = self.op("Split", y, [1, 1, 1], outputs=3, axis=0)
                q, k, v = (self.op("Squeeze", p, [0]) for p in parts)
            else:
                q, k, v = (self.op("Gather", y, np.int64(i), axis=0) for i in range(3))
        elif form == "sliced":
            y = self.linear(x.name, d, 3 * d, t)
            parts = [self.op("Slice", y, [i * d], [(i + 1) * d], [2]) for i in range(3)]
            q, k, v = (self.heads_of(p, t, heads, size) for p in parts)
        elif form == "multi query":
            q = self.heads_of(self.linear(x.name, d, d, t), t, heads, size)
            k, v = (self.op("Unsqueeze", self.linear(x.name, d, size, t), [1]) for _ in range(2))
        else:
            q, k, v = (self.linear(x.name, d, d, t) for _ in range(3))
            if form == "three axes":
                return self.three_axes(q, k, v, t, heads, size)
            if form == "einsum":
                return self.by_einsum(q, k, v, t, heads, size)
            q, k, v = (self.heads_of(p, t, heads, size) for p in (q, k, v))
        if self.chance(0.15) and form != "multi query":
            q, k = self.norm(q, size), self.norm(k, size)
        if self.chance(0.15) and form != "multi query" and size % 2 == 0:
            q, k = self.turned(q, t, size), self.turned(k, t, size)
        y = self.scores(q, k, size)
        if self.chance(0.15) and x.h and not x.prefix and form != "multi query":
            y = self.op("Add", y, self.relative(q, x, heads, size))
        elif self.chance(0.2):  # a learned bias for each pair of tokens
            y = self.op("Add", y, self.normal(1, heads, t, t, scale=0.5))
        elif self.chance(0.1) and t > 2:  # the past only
            y = self.op("Add", y, np.triu(np.full((t, t), -1e4, np.float32), 1)[None, None])
        y = self.op("MatMul", self.op("Softmax", y, axis=-1), v)
        return self.linear(self.joined(y, t, d), d, d, t)

    def turned(self, x: str, tokens: int, size: int) -> str:
        """Rotary positions: halves of a head, or neighbours, turned by an angle of token and pair."""
        angle = np.arange(tokens)[:, None] * 100.0 ** (-np.arange(size // 2) / (size // 2))
        if self.chance(0.5):
            first, second = self.op("Split", x, [size // 2] * 2, outputs=2, axis=-1)
            other = self.op("Concat", self.op("Neg", second), first, axis=-1)
            table = np.concatenate([angle, angle], axis=1)
        else:
            pairs = self.op("Reshape", x, [0, 0, 0, size // 2, 2])
            first, second = self.op("Split", pairs, [1, 1], outputs=2, axis=-1)
            other = self.op("Reshape", self.op("Concat", self.op("Neg", second), first, axis=-1), [0, 0, 0, size])
            table = np.repeat(angle, 2, axis=1)
        cos, sin = np.cos(table), np.sin(table)
        return self.op("Add", self.op("Mul", x, cos), self.op("Mul", other, sin))

    def relative(self, q: str, x: Tokens, heads: int, size: int) -> str:
        """Positions of keys as queries see them, rows and columns by themselves: [1, heads, tokens, tokens]."""
        places = self.op("Reshape", q, [heads, x.h, x.w, size])
        rows, columns = self.normal(x.h, x.h, size), self.normal(x.w, x.w, size)
        if self.chance(0.5):
            a = self.op("Einsum", places, rows, equation="bhwc,hkc->bhwk")
            b = self.op("Einsum", places, columns, equation="bhwc,wkc->bhwk")
        else:
            a = self.op("MatMul", places, rows.transpose(0, 2, 1).copy())
            turned = self.op("MatMul", self.op("Transpose", places, perm=[0, 2, 1, 3]), columns.transpose(0, 2, 1).copy())
            b = self.op("Transpose", turned, perm=[0, 2, 1, 3])
        both = self.op("Add", self.op("Unsqueeze", a, [4]), self.op("Unsqueeze", b, [3]))
        return self.op("Reshape", both, [1, heads, x.t, x.t])

    def scan(self, x: Tokens) -> str:
        """Mamba's selective scan of few tokens, unrolled, in one direction or turned round."""
        if x.t > 30:
            return self.gate(x)
        d, n = x.c, self.choose(2, 4)
        wide = self.op("Softplus", self.op("Add", self.linear(x.name, d, d, x.t, bias=False), self.normal(d) - 2))
        b, g = self.linear(x.name, d, n, x.t, bias=False), self.linear(x.name, d, n, x.t, bias=False)
        rates = -np.tile(np.arange(1.0, n + 1), (d, 1)) * np.exp(self.normal(d, n, scale=0.1))
        fed = self.op("Mul", self.op("Mul", self.op("Unsqueeze", wide, [3]), self.op("Unsqueeze", b, [2])),
                      self.op("Unsqueeze", x.name, [3]))  # fmt: skip
        decay = self.op("Exp", self.op("Mul", self.op("Unsqueeze", wide, [3]), rates))
        state, every = "", {}
        for i in list(range(x.t))[:: self.choose(1, -1)]:
            new = self.op("Gather", fed, np.int64(i), axis=1)
            state = self.op("Add", self.op("Mul", self.op("Gather", decay, np.int64(i), axis=1), state), new) if state else new
            every[i] = self.op("Unsqueeze", state, [1])
        states = self.op("Concat", *(every[i] for i in range(x.t)), axis=1)
        y = self.op("Squeeze", self.op("MatMul", states, self.op("Unsqueeze", g, [3])), [3])
        y = self.op("Add", y, self.op("Mul", self.gain(d), x.name)) if self.chance(0.7) else y
        return self.linear(y, d, d, x.t)

    def three_axes(self, q: str, k: str, v: str, t: int, heads: int, size: int) -> str:
        """[heads, tokens, size], as torch's MultiheadAttention is exported."""
        q, k, v = (self.op("Transpose", self.op("Reshape", p, [t, heads, size]), perm=[1, 0, 2]) for p in (q, k, v))
        q = self.op("Mul", q, np.float32(size**-0.5))
        p = self.op("Softmax", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
        y = self.op("Reshape", self.op("Transpose", self.op("MatMul", p, v), perm=[1, 0, 2]), [1, t, heads * size])
        return self.linear(y, heads * size, heads * size, t)

    def by_einsum(self, q: str, k: str, v: str, t: int, heads: int, size: int) -> str:
        q, k, v = (self.op("Reshape", p, [1, t, heads, size]) for p in (q, k, v))
        y = self.op("Mul", self.op("Einsum", q, k, equation="bihd,bjhd->bhij"), np.float32(size**-0.5))
        y = self.op("Einsum", self.op("Softmax", y, axis=-1), v, equation="bhij,bjhd->bihd")
        d = heads * size
        return self.linear(self.op("Reshape", y, [1, t, d]), d, d, t)

    def reduced_attention(self, x: Tokens) -> str:
        """Keys and values of fewer tokens: pooled, convolved, or mixed by a matrix."""
        heads = 2 if x.c % 2 == 0 and x.c >= 8 else 1
        size = x.c // heads
        kind = self.choose("conv", "pool", "matrix") if not x.prefix and x.h >= 4 and x.w >= 4 else "matrix"
        if kind == "matrix":
            n = max(2, x.t // 2)
            few = self.op("MatMul", self.normal(n, x.t, scale=x.t**-0.5), x.name)
        else:
            m = self.as_map(x)
            if kind == "conv":
                small = self.conv(m, x.c, (2, 2), (2, 2), pad=0)
            else:
                y = self.op("AveragePool", m.name, kernel_shape=[2, 2], strides=[2, 2])
                small = replace(m, name=y, h=m.h // 2, w=m.w // 2)
            few, n = self.as_tokens(small).name, small.h * small.w
        few = self.norm(few, x.c) if self.chance(0.6) else few
        q = self.heads_of(self.linear(x.name, x.c, x.c, x.t), x.t, heads, size)
        k, v = (self.heads_of(self.linear(few, x.c, x.c, n), n, heads, size) for _ in range(2))
        y = self.op("MatMul", self.op("Softmax", self.scores(q, k, size), axis=-1), v)
        return self.linear(self.joined(y, x.t, x.c), x.c, x.c, x.t)

    def window_attention(self, x: Tokens) -> str:
        """Attention within windows of a map, perhaps shifted."""
        sizes = [(a, b) for a in (2, 3, 4) for b in (2, 3, 4) if x.h % a == 0 and x.w % b == 0 and (x.h > a or x.w > b)]
        if x.prefix or not sizes:
            return self.self_attention(x)
        a, b = self.choose(*sizes)
        heads = 2 if x.c % 2 == 0 and x.c >= 8 else 1
        size, rows, columns = x.c // heads, x.h // a, x.w // b
        n, t = rows * columns, a * b
        shift = self.chance(0.3) and x.h > a and x.w > b
        spread = self.chance(0.25)  # MaxViT's grid: the tokens of a window lie `rows` and `columns` apart
        cut, perm = ([a, rows, b, columns], [0, 2, 4, 1, 3, 5]) if spread else ([rows, a, columns, b], [0, 1, 3, 2, 4, 5])
        y = self.op("Reshape", x.name, [1, x.h, x.w, x.c])
        y = self.rolled(y, x.h, x.w, 1) if shift else y
        y = self.op("Transpose", self.op("Reshape", y, [1, *cut, x.c]), perm=perm)
        y = self.op("Reshape", y, [n, t, x.c])
        w, bias = self.normal(x.c, 3 * x.c, scale=x.c**-0.5), self.normal(3 * x.c)
        y = self.op("Reshape", self.op("Add", self.op("MatMul", y, w), bias), [n, t, 3, heads, size])
        y = self.op("Transpose", y, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.op("Gather", y, np.int64(i), axis=0) for i in range(3))
        y = self.scores(q, k, size)
        y = self.op("Add", y, self.normal(1, heads, t, t, scale=0.5)) if self.chance(0.5) else y
        y = self.op("MatMul", self.op("Softmax", y, axis=-1), v)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), [n, t, x.c])
        y = self.op("MatMul", y, self.normal(x.c, x.c, scale=x.c**-0.5))
        y = self.op("Reshape", y, [1, rows, columns, a, b, x.c])
        y = self.op("Transpose", y, perm=[0, 3, 1, 4, 2, 5] if spread else [0, 1, 3, 2, 4, 5])
        y = self.op("Reshape", y, [1, x.h, x.w, x.c])
        y = self.rolled(y, x.h, x.w, -1) if shift else y
        return self.op("Reshape", y, [1, x.t, x.c])

    def rolled(self, x: str, h: int, w: int, by: int) -> str:
        """A map [1, h, w, c] moved by `by` rows and columns, what leaves comes in on the other side."""
        for axis, n in ((1, h), (2, w)):
            at = by % n
            first, rest = self.op("Slice", x, [0], [at], [axis]), self.op("Slice", x, [at], [n], [axis])
            x = self.op("Concat", rest, first, axis=axis)
        return x

    def selected(self, x: Tokens) -> Tokens:
        """The tokens of the best scores of their own, behind those that are kept anyway."""
        n = x.t - x.prefix
        k = self.whole(max(1, n // 2), n - 1) if n > 1 else n
        rest = self.op("Slice", x.name, [x.prefix], [x.t], [1]) if x.prefix else x.name
        if self.chance(0.85):
            scores = self.op("Squeeze", self.linear(rest, x.c, 1, n), [2])
        else:
            scores = self.op("ReduceSum", self.op("Mul", rest, rest), [2], keepdims=0)
        index = self.op("TopK", scores, [k], outputs=2, axis=1)[1]
        if self.chance(0.7):
            wide = self.op("Expand", self.op("Unsqueeze", index, [2]), [1, k, x.c])
            y = self.op("GatherElements", rest, wide, axis=1)
        else:
            y = self.op("Gather", self.op("Reshape", rest, [n, x.c]), self.op("Reshape", index, [k]), axis=0)
            y = self.op("Reshape", y, [1, k, x.c])
        if x.prefix:
            y = self.op("Concat", self.op("Slice", x.name, [0], [x.prefix], [1]), y, axis=1)
        return Tokens(y, k + x.prefix, x.c, prefix=x.prefix)

    def gate(self, x: Tokens) -> str:
        """A linear layer times a gate that comes from another one."""
        gate = self.op("Sigmoid", self.linear(x.name, x.c, x.c, x.t))
        value = self.linear(x.name, x.c, x.c, x.t) if self.chance(0.7) else x.name
        return self.linear(self.op("Mul", value, gate), x.c, x.c, x.t)

    def pooled_by_queries(self, x: Tokens) -> Tokens:
        """A few learned queries read all tokens: a decoder's or a perceiver's cross attention."""
        n, d = self.whole(1, 4), x.c
        heads = 2 if d % 2 == 0 and d >= 8 else 1
        queries = self.normal(1, n, d, scale=1.0)
        source = self.norm(x.name, d)
        q = self.heads_of(self.linear(self.constant(queries), d, d, n), n, heads, d // heads)
        k, v = (self.heads_of(self.linear(source, d, d, x.t), x.t, heads, d // heads) for _ in range(2))
        y = self.op("MatMul", self.op("Softmax", self.scores(q, k, d // heads), axis=-1), v)
        return Tokens(self.linear(self.joined(y, n, d), d, d, n), n, d)

    def channel_attention(self, x: Tokens) -> str:
        """XCiT's and DaViT's: channels attend to channels."""
        heads = 2 if x.c % 2 == 0 and x.c >= 8 else 1
        size = x.c // heads
        q, k, v = (self.heads_of(self.linear(x.name, x.c, x.c, x.t), x.t, heads, size) for _ in range(3))
        q, k, v = (self.op("Transpose", p, perm=[0, 1, 3, 2]) for p in (q, k, v))  # [1, heads, size, tokens]
        if self.chance(0.5):
            q, k = (self.op("Div", p, self.op("Add", self.op("ReduceL2", p, [-1]), np.float32(1e-6))) for p in (q, k))
            y = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
            y = self.op("Mul", y, np.abs(self.normal(heads, 1, 1, scale=2.0)) + 1)
        else:
            y = self.op("MatMul", self.op("Mul", q, np.float32(x.t**-0.5)), self.op("Transpose", k, perm=[0, 1, 3, 2]))
        y = self.op("MatMul", self.op("Softmax", y, axis=-1), v)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 3, 1, 2]), [1, x.t, x.c])
        return self.linear(y, x.c, x.c, x.t)

    def linear_attention(self, x: Tokens) -> str:
        """Q (K' V) with features that are not negative, over their sum and so much that a token without any is no round-off."""
        q, k, v = (self.linear(x.name, x.c, x.c, x.t) for _ in range(3))
        q, k = self.op("Relu", q), self.op("Relu", k)
        kv = self.op("MatMul", self.op("Transpose", k, perm=[0, 2, 1]), v)
        total = self.op("MatMul", q, self.op("Transpose", self.op("ReduceSum", k, [1]), perm=[0, 2, 1]))
        y = self.op("Div", self.op("MatMul", q, kv), self.op("Add", total, np.float32(0.05)))
        return self.linear(y, x.c, x.c, x.t)

    def token_mixing(self, x: Tokens) -> str:
        """MLP-Mixer's: an MLP over the tokens of each channel."""
        n = x.t + self.whole(0, 8)
        w = self.normal(x.t, n, scale=x.t**-0.5), self.normal(n, x.t, scale=n**-0.5)
        if self.chance(0.5):
            y = self.op("Transpose", x.name, perm=[0, 2, 1])
            y = self.activate(self.op("Add", self.op("MatMul", y, w[0]), self.normal(n)))
            return self.op("Transpose", self.op("Add", self.op("MatMul", y, w[1]), self.normal(x.t)), perm=[0, 2, 1])
        y = self.activate(self.op("Add", self.op("MatMul", w[0].T.copy(), x.name), self.normal(n, 1)))
        return self.op("Add", self.op("MatMul", w[1].T.copy(), y), self.normal(x.t, 1))

    def spatial_gate(self, x: Tokens) -> str:
        """gMLP's: half of the channels, mixed over the tokens, is the gate of the other half."""
        wide = x.c
        y = self.activate(self.linear(x.name, x.c, 2 * wide, x.t))
        u, v = self.op("Split", y, [wide, wide], outputs=2, axis=-1)
        v = self.op("MatMul", self.normal(x.t, x.t, scale=x.t**-0.5), self.norm(v, wide))
        v = self.op("Add", v, np.ones((x.t, 1)))
        return self.linear(self.op("Mul", u, v), wide, x.c, x.t)

    def conv_mlp(self, x: Tokens) -> str:
        """An MLP with a depthwise convolution within (PVTv2, SegFormer)."""
        if x.prefix or not x.h:
            return self.mlp(x.name, x.t, x.c)
        hidden = 2 * x.c
        y = replace(x, name=self.linear(x.name, x.c, hidden, x.t), c=hidden)
        y = self.as_tokens(self.conv(self.as_map(y), hidden, groups=hidden))
        return self.linear(self.activate(y.name), hidden, x.c, x.t)

    def experts(self, x: Tokens) -> str:
        """A mixture: the best experts of each token, or all of them weighted."""
        n, hidden, d = self.whole(2, 5), x.c + self.whole(0, 5), x.c
        logits = self.linear(x.name, d, n, x.t, bias=False)
        every = []
        w1, w2 = self.normal(n, d, hidden, scale=d**-0.5), self.normal(n, hidden, d, scale=hidden**-0.5)
        kind = self.choose("relu", "gelu")
        form = self.choose("batched", "one by one")
        if form == "batched":
            flat = self.op("Reshape", x.name, [1, x.t, d])
            all_of = self.op("MatMul", self.activate(self.op("MatMul", flat, w1), kind), w2)  # [n, tokens, d]
            stacked = self.op("Transpose", all_of, perm=[1, 0, 2])
        else:
            for e in range(n):
                y = self.op("MatMul", self.activate(self.op("MatMul", x.name, w1[e]), kind), w2[e])
                every.append(self.op("Reshape", y, [x.t, 1, d]))
            stacked = self.op("Concat", *every, axis=1)
        gates = self.op("Reshape", self.op("Softmax", logits, axis=-1), [x.t, n])
        k = self.whole(1, min(2, n))
        if self.chance(0.7):
            values, index = self.op("TopK", gates, [k], outputs=2, axis=-1)
            if self.chance(0.4):
                values = self.op("Div", values, self.op("ReduceSum", values, [-1]))
            wide = self.op("Expand", self.op("Unsqueeze", index, [2]), [x.t, k, d])
            picked = self.op("GatherElements", stacked, wide, axis=1)
            y = self.op("MatMul", self.op("Unsqueeze", values, [1]), picked)
        else:
            y = self.op("MatMul", self.op("Unsqueeze", gates, [1]), stacked)
        return self.op("Reshape", y, [1, x.t, d])
