"""Gated MLPs, rotary positions, norms of queries and keys and RMSNorm, in all the ways that they are written."""

from __future__ import annotations

import numpy as np
import pytest

import form_maker as maker
from hwgen import graph

IMAGE, T, D, H, Writer, imported = maker.IMAGE, maker.T, maker.D, maker.H, maker.Writer, maker.imported


def gated(activation, packed=False, norm=False):
    def mlp(w):
        x = w.tokens()
        if packed:
            a, b = w.op("Split", w.linear(x, D, 2 * D), [D, D], outputs=2, axis=-1)
        else:
            a, b = w.linear(x), w.linear(x)
        y = w.op("Mul", activation(w, a), b)
        return w.linear(w.norm(y) if norm else y)

    return mlp


def silu(w, x):
    return w.op("Mul", x, w.op("Sigmoid", x))


GATED = {
    "swiglu": gated(silu),
    "swiglu of one layer": gated(silu, packed=True),
    "norm inside": gated(silu, norm=True),
    "geglu": gated(lambda w, x: w.op("Gelu", x), packed=True),
    "reglu": gated(lambda w, x: w.op("Relu", x)),
    "scaled": gated(lambda w, x: w.op("Mul", silu(w, x), 0.5)),
    "bilinear": gated(lambda w, x: x),
}


@pytest.mark.parametrize("form", GATED)
def test_gated_units(tmp_path, form):
    _, kinds = imported(tmp_path, GATED[form])
    assert kinds.count("Multiply") == 1 and kinds.count("Linear") == 3 and kinds.count("LayerNorm") == (form == "norm inside")


def rotary(style="halves", prefix=0, sin_first=False, scaled=1.0, right=True):
    """Heads of 4 channels, the first `prefix` tokens without position. Not `right`: a cosine that differs in a pair."""

    def attention(w):
        x = w.tokens()
        q, k, v = (w.heads(w.linear(x)) for _ in range(3))
        angle = np.arange(prefix, T)[:, None] * np.array([1, 0.1])
        angle = np.tile(angle, 2) if style == "halves" else np.repeat(angle, 2, axis=1)
        cos, sin = np.cos(angle), np.sin(angle)
        if not right:
            cos[-1, 0] += 0.3

        def turned(x):
            if style == "halves":
                first, second = w.op("Split", x, [2, 2], outputs=2, axis=-1)
                other = w.op("Concat", w.op("Neg", second), first, axis=-1)
            else:
                first = w.op("Slice", x, [0], [4], [3], [2])
                second = w.op("Neg", w.op("Slice", x, [1], [4], [3], [2]))
                pairs = [w.op("Unsqueeze", part, [-1]) for part in (second, first)]
                other = w.op("Reshape", w.op("Concat", *pairs, axis=-1), [1, H, T - prefix, 4])
            parts = w.op("Mul", x, cos), w.op("Mul", other, sin)
            return w.op("Add", *(parts[::-1] if sin_first else parts))

        def placed(x):
            x = w.op("Mul", x, scaled) if scaled != 1 else x
            if not prefix:
                return turned(x)
            first, rest = w.op("Split", x, [prefix, T - prefix], outputs=2, axis=2)
            return w.op("Concat", first, turned(rest), axis=2)

        return w.attend(placed(q), placed(k), v)

    return attention


ROTARY = {
    "halves": rotary(),
    "pairs": rotary("pairs"),
    "class token": rotary(prefix=1),
    "registers, pairs, sine first": rotary("pairs", prefix=2, sin_first=True),
    "sine first": rotary(sin_first=True),
    "scaled before": rotary(scaled=0.3, prefix=1),
}


def test_rotary_positions_of_queries_alone(tmp_path):
    assert imported(tmp_path, one_sided)[1].count("Rotate") == 1


def test_rotary_positions_within_windows(tmp_path):
    found, _ = imported(tmp_path, rotary_in_windows)
    (one, other) = (n for n in found.nodes if isinstance(n, graph.Rotate))
    np.testing.assert_array_equal(one.cos[: T // 2], one.cos[T // 2 :])



@pytest.mark.parametrize("form", ROTARY)
def test_rotary_positions(tmp_path, form):
    found, kinds = imported(tmp_path, ROTARY[form])
    assert kinds.count("Rotate") == 2 and kinds.count("Linear") == 3
    turned = [n for n in found.nodes if isinstance(n, graph.Rotate)]
    prefix = {"class token": 1, "scaled before": 1, "registers, pairs, sine first": 2}.get(form, 0)
    for node in turned:
        np.testing.assert_allclose(node.cos[:prefix], 1)
        np.testing.assert_allclose(np.hypot(node.cos, node.sin), 1, rtol=1e-5)


def one_sided(w):
    """Queries are turned, keys are not: their channels stand in the order of the pairs."""
    x = w.tokens()
    q, k, v = (w.heads(w.linear(x)) for _ in range(3))
    angle = np.tile(np.arange(T)[:, None] * np.array([1, 0.1]), 2)
    first, second = w.op("Split", q, [2, 2], outputs=2, axis=-1)
    other = w.op("Mul", w.op("Concat", w.op("Neg", second), first, axis=-1), np.sin(angle))
    return w.attend(w.op("Add", w.op("Mul", q, np.cos(angle)), other), k, v)


def norm_of_queries(kind, turned=False):
    def attention(w):
        x = w.tokens()
        q, k, v = (w.heads(w.linear(x)) for _ in range(3))
        if kind == "layer":
            q, k = (w.norm(part, D // H) for part in (q, k))
        elif kind == "own":  # of each head its own, behind the norm of all
            q, k = (w.op("Add", w.op("Mul", w.norm(part, D // H), w.normal(H, 1, D // H)), w.normal(H, 1, 1)) for part in (q, k))
        else:
            q, k = (w.op(kind, part, w.normal(D // H), axis=-1, epsilon=1e-5) for part in (q, k))
        if turned:
            angle = np.tile(np.arange(T)[:, None] * np.array([1, 0.1]), 2)

            def turn(x):
                first, second = w.op("Split", x, [2, 2], outputs=2, axis=-1)
                rest = w.op("Mul", w.op("Concat", w.op("Neg", second), first, axis=-1), np.sin(angle))
                return w.op("Add", w.op("Mul", x, np.cos(angle)), rest)

            q, k = turn(q), turn(k)
        return w.attend(q, k, v)

    return attention


QK_NORMS = {
    "layer": norm_of_queries("layer"),
    "rms": norm_of_queries("SimplifiedLayerNormalization"),
    "scales of each head": norm_of_queries("own"),
    "layer, then rotary": norm_of_queries("layer", turned=True),
}


@pytest.mark.parametrize("form", QK_NORMS)
def test_norms_of_queries_and_keys(tmp_path, form):
    found, kinds = imported(tmp_path, QK_NORMS[form])
    norms = [n for n in found.nodes if isinstance(n, graph.LayerNorm)]
    assert [n.heads for n in norms] == [H, H] and all(n.centred == (form != "rms") for n in norms)
    assert kinds.count("Linear") == 3 and kinds.count("Rotate") == (2 if "rotary" in form else 0)


def rms_steps(w):
    x = w.tokens()
    square = w.op("ReduceMean", w.op("Pow", x, 2.0), [-1], keepdims=1)
    return w.op("Mul", w.op("Mul", x, w.op("Reciprocal", w.op("Sqrt", w.op("Add", square, 1e-5)))), w.normal(D))


@pytest.mark.parametrize("written_out", [False, True])
def test_rms_norm(tmp_path, written_out):
    found, kinds = imported(
        tmp_path, rms_steps if written_out else lambda w: w.op("SimplifiedLayerNormalization", w.tokens(), w.normal(D), axis=-1)
    )
    assert kinds == ["PatchEmbed", "LayerNorm"] and not found.nodes[-1].centred


def rotary_in_windows(w):
    """Two windows of three tokens, which have the same angles."""
    q, k, v = (
        w.op("Transpose", w.op("Reshape", w.linear(w.tokens()), [2, T // 2, H, D // H]), perm=[0, 2, 1, 3]) for _ in range(3)
    )
    angle = np.tile(np.arange(T // 2)[:, None] * np.array([1, 0.1]), 2)

    def turned(x):
        first, second = w.op("Split", x, [2, 2], outputs=2, axis=-1)
        rest = w.op("Mul", w.op("Concat", w.op("Neg", second), first, axis=-1), np.sin(angle))
        return w.op("Add", w.op("Mul", x, np.cos(angle)), rest)

    return w.attend(turned(q), turned(k), v)


REFUSED = [
    (gated(lambda w, x: w.op("Atan", x)), "Atan", "no part of a GELU", "SiLU"),
    (gated(lambda w, x: w.op("Sin", x)), "Sin", "more than one turn", "sigmoid"),
]
NAMES = ["glu", "wave"]


@pytest.mark.parametrize("form, op, reason, hint", REFUSED, ids=NAMES)
def test_what_cannot_be_built_is_named_with_what_can(tmp_path, form, op, reason, hint):
    maker.assert_refused(tmp_path, form, op, reason, hint)
