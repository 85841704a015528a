"""Golden against plain loops over the definition of each operation."""

import numpy as np
import pytest

from hwgen import numerics as num
from hwgen.errors import UserError
from hwgen.intgraph import Buffer, Constant, Input, IntGraph, MatMul, Norm, Output, RouteTokens, View
from hwgen.intgraph_checks import verify
from hwgen.isa import ColScale, Convert, Indirect, RowMax, RowScale
from hwgen.sim import golden


def build(buffers, ops, outputs=(), trace=None):
    graph = IntGraph({b.name: b for b in buffers}, list(ops), list(outputs), trace=trace or {})
    verify(graph)
    return graph


def whole(buffer):
    return View(buffer.name, 0, buffer.rows, 0, buffer.cols)


def shifted(value, shift):
    """value / 2^shift, half away from zero."""
    magnitude = (abs(value) + (1 << shift >> 1)) >> shift
    return -magnitude if value < 0 else magnitude


def clip(value, limit=num.INT16_MAX):
    return max(-limit, min(limit, value))


def test_matmul_static_with_parameters_residual_and_corner_values():
    rng = np.random.default_rng(0)
    x, y, r = Buffer("x", 5, 7), Buffer("y", 6, 4), Buffer("r", 6, 4)
    data = rng.integers(-32767, 32768, (5, 7)).astype(np.int16)
    data[0], data[1] = 32767, -32767
    w = rng.integers(-127, 128, (4, 7)).astype(np.int8)
    w[0] = 127
    col, bias = np.array([65535, 0, 40000, 1]), np.array([32767, -32767, 5, -5], np.int16)
    residual = rng.integers(-32767, 32768, (6, 4)).astype(np.int16)
    op = MatMul("m", View("y", 1, 5, 0, 4), whole(x), w, col_mult=col, bias=bias, row_mult=30000, shift=14,
                residual=View("r", 1, 5, 0, 4))  # fmt: skip
    result = golden.run(build((x, y, r), [Constant("x", whole(x), data), Constant("r", whole(r), residual), op]), {})
    for i in range(5):
        for n in range(4):
            acc = sum(clip(shifted(int(data[i, k]), 8), 127) * int(w[n, k]) for k in range(7))
            v = shifted(shifted(acc * int(col[n]), 16) * 30000, 14) + int(bias[n])
            assert result.buffers["y"][i + 1, n] == clip(clip(v) + int(residual[i + 1, n]))
    assert not result.buffers["y"][0].any()


def test_row_conversion_uses_the_maxima_of_the_last_writer():
    """Norm stores its maxima; a product of two row-converted operands scales by both."""
    rng = np.random.default_rng(1)
    x, n, y = Buffer("x", 6, 16), Buffer("n", 6, 16), Buffer("y", 6, 6)
    data = rng.integers(-3000, 3000, (6, 16)).astype(np.int16)
    gamma, beta = rng.integers(500, 3000, 16).astype(np.int16), rng.integers(-90, 90, 16).astype(np.int16)
    ops = [
        Constant("x", whole(x), data),
        Norm("norm", whole(n), whole(x), gamma, beta, 1),
        MatMul("m", whole(y), whole(n), whole(n), x_convert=Convert.ROW, w_convert=Convert.ROW,
               col_scale=ColScale.ROW_SCALES, row_scale=RowScale.CONVERTED, shift=10),
    ]  # fmt: skip
    result = golden.run(build((x, n, y), ops), {})
    normed = num.layer_norm(data, gamma, beta, 1)
    assert np.array_equal(result.buffers["n"], normed)
    q, scale = num.quantise_rows(normed, np.abs(normed).max(axis=1))
    expected = num.requantise(q @ q.T, scale, scale[:, None], 10, 0)
    assert np.array_equal(result.buffers["y"], expected)


def test_attention_head_with_shared_maxima():
    """Scores with a signed maximum, probabilities, reciprocal; the maxima of two heads side by side are joined."""
    rng = np.random.default_rng(2)
    qk, v, s, o = Buffer("qk", 5, 16, 4), Buffer("v", 8, 5), Buffer("s", 5, 5), Buffer("o", 5, 8, 2)
    y = Buffer("y", 5, 8)
    a = rng.integers(-30000, 30000, (5, 16)).astype(np.int16)
    b = rng.integers(-30000, 30000, (8, 5)).astype(np.int16)
    b[4:] //= 50
    ops = [Constant("qk", whole(qk), a), Constant("v", whole(v), b)]
    for h in range(2):
        ops.append(
            MatMul(f"s{h}", whole(s), View("qk", 0, 5, 4 * h, 4), View("qk", 0, 5, 8 + 4 * h, 4),
                   col_scale=ColScale.IMMEDIATE, col_mult=40000, row_mult=20000, shift=23, row_max=RowMax.SIGNED)
        )  # fmt: skip
        ops.append(
            MatMul(f"o{h}", View("o", 0, 5, 4 * h, 4), whole(s), View("v", 4 * h, 4, 0, 5), x_convert=Convert.PROBABILITY,
                   col_mult=np.full(4, 60000), bias=np.zeros(4, np.int16), row_scale=RowScale.CONVERTED, shift=16,
                   row_max=RowMax.ABS, continue_max=h > 0)
        )  # fmt: skip
    ops.append(
        MatMul("y", whole(y), whole(o), np.eye(8, dtype=np.int8), x_convert=Convert.ROW, col_mult=np.full(8, 65535),
               bias=np.zeros(8, np.int16), row_scale=RowScale.CONVERTED, shift=8)
    )  # fmt: skip
    result = golden.run(build((qk, v, s, o, y), ops, trace={"attention": (whole(o), "o1")}), {}, trace=True)
    a8, b8 = num.quantise_static(a), num.quantise_static(b)
    heads = []
    for h in range(2):
        scores = num.requantise(a8[:, 4 * h : 4 * h + 4] @ a8[:, 8 + 4 * h : 12 + 4 * h].T, 40000, 20000, 23, 0)
        assert np.array_equal(result.snapshots[f"s{h}"], scores)
        p = np.round(127 * 2.0 ** ((scores - scores.max(axis=1, keepdims=True)) / 16)).astype(int)
        assert (p == 127).any(axis=1).all()
        row = 127 * 65535 // p.sum(axis=1)
        heads.append(num.requantise(p @ b8[4 * h : 4 * h + 4].T, 60000, row[:, None], 16, 0))
    joined = np.concatenate(heads, axis=1)
    assert np.array_equal(result.buffers["o"], joined)
    assert np.array_equal(result.values["attention"], joined)
    assert np.abs(heads[1]).max() < np.abs(heads[0]).max()  # so that only the joined maxima give the right conversion
    q, scale = num.quantise_rows(joined, np.abs(joined).max(axis=1))
    assert np.array_equal(result.buffers["y"], num.requantise(q, 65535, scale[:, None], 8, 0))


@pytest.mark.parametrize("case", ("spread", "all to one", "ties"))
def test_experts_gather_and_scatter(case):
    rng = np.random.default_rng(3)
    tokens, columns, hidden, experts, k = 7, 6, 5, 4, 2
    x, g, h, y = (
        Buffer("x", tokens, columns),
        Buffer("g", tokens, experts),
        Buffer("h", tokens, hidden),
        Buffer("y", 9, 6),
    )
    d = Buffer("d", tokens, experts)
    data = rng.integers(-20000, 20000, (tokens, columns)).astype(np.int16)
    logits = rng.integers(-900, 900, (tokens, experts)).astype(np.int16)
    if case == "all to one":
        logits[:, 2] = 32767
    if case == "ties":
        logits[:] = 7
    old = rng.integers(-100, 100, (9, columns)).astype(np.int16)
    w1 = rng.integers(-127, 128, (experts, hidden, columns)).astype(np.int8)
    w2 = rng.integers(-127, 128, (experts, columns, hidden)).astype(np.int8)
    out = View("y", 1, tokens, 0, columns)
    ops = [
        Constant("x", whole(x), data),
        Constant("g", whole(g), logits),
        Constant("y", whole(y), old),
        RouteTokens("route", whole(g), k, False, whole(d)),
    ]
    for e in range(experts):
        ops.append(
            MatMul(f"a{e}", whole(h), whole(x), w1[e], col_mult=np.full(hidden, 50000), bias=np.full(hidden, e, np.int16),
                   row_mult=30000, shift=17, gelu=("gelu", 3), row_max=RowMax.ABS, expert=("route", e),
                   indirect=Indirect.GATHER)
        )  # fmt: skip
        ops.append(
            MatMul(f"b{e}", out, whole(h), w2[e], x_convert=Convert.ROW, col_mult=np.full(columns, 50000),
                   bias=np.zeros(columns, np.int16), row_scale=RowScale.CONVERTED, shift=20, residual=out,
                   expert=("route", e), indirect=Indirect.SCATTER)
        )  # fmt: skip
    result = golden.run(build((x, g, h, y, d), ops), {})
    chosen, gates = num.route(logits, k, False)
    expected = old.astype(np.int64)
    x8 = num.quantise_static(data)
    for e in range(experts):  # experts in order: saturation makes the order matter
        for t in range(tokens):
            for slot in np.flatnonzero(chosen[t] == e):
                a = num.gelu(num.requantise(x8[t] @ w1[e].T.astype(int), 50000, 30000, 17, e), "gelu", 3)[None]
                q, scale = num.quantise_rows(a, num.row_max_abs(a))
                row = (int(scale[0]) * int(gates[t, slot]) + (1 << 14)) >> 15
                expected[t + 1] = num.add_residual(
                    expected[t + 1], num.requantise(q @ w2[e].T.astype(int), 50000, row, 20, 0)[0]
                )
    assert np.array_equal(result.buffers["y"], expected)
    dense = np.zeros((tokens, experts), int)
    np.put_along_axis(dense, chosen, np.minimum(gates, 32767), axis=1)
    assert np.array_equal(result.buffers["d"], dense)
    if case == "all to one":
        assert len(result.queues["route", 2][0]) == tokens
    if case == "ties":
        assert len(result.queues["route", 3][0]) == 0


def test_table_row_scale():
    x, y = Buffer("x", 3, 8), Buffer("y", 3, 3)
    data = np.full((3, 8), 256, np.int16)
    table = np.array([1000, 65535, 0])
    op = MatMul("m", whole(y), whole(x), np.ones((3, 8), np.int8), col_mult=np.full(3, 32768), bias=np.zeros(3, np.int16),
                row_scale=RowScale.TABLE, row_mult=table, shift=8)  # fmt: skip
    result = golden.run(build((x, y), [Constant("x", whole(x), data), op]), {})
    assert np.array_equal(result.buffers["y"][:, 0], [shifted(4 * m, 8) for m in (1000, 65535, 0)])


def image_graph():
    p = Buffer("p", 4, 12)
    op = Input("image", whole(p), "pixels", (3, 4, 4), (3, 2, 2), 0.02, 0.5)
    return build((p,), [op], [Output("y", whole(p), 0.5, (1, 4, 12))])


def test_input_is_quantised_and_cut_into_patches():
    image = np.random.default_rng(5).uniform(-4, 4, (3, 4, 4)).astype(np.float32)
    image[0, 0, 0], image[2, 3, 3] = 100, -100
    result = golden.run(image_graph(), {"pixels": image, "other": image})
    for i in range(4):
        for c in range(3):
            for j in range(4):
                pixel = float(image[c, 2 * (i // 2) + j // 2, 2 * (i % 2) + j % 2])
                q = np.clip(np.round((pixel - 0.5) / 0.02), -127, 127)
                assert result.buffers["p"][i, 4 * c + j] == 256 * q
    assert result.outputs["y"].shape == (1, 4, 12) and result.outputs["y"].dtype == np.float32
    assert np.array_equal(result.outputs["y"][0], result.buffers["p"] * 0.5)
    assert not result.snapshots


def test_wrong_images_are_named():
    with pytest.raises(UserError, match="'pixels'"):
        golden.run(image_graph(), {"image": np.zeros((3, 4, 4))})
    with pytest.raises(UserError, match=r"'pixels' has shape \[3, 4, 5\], the model needs \[3, 4, 4\]"):
        golden.run(image_graph(), {"pixels": np.zeros((3, 4, 5))})
