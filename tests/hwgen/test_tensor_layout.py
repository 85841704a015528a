"""Layouts against NumPy: random chains of movements show the same numbers, and never leave the value they walk through."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.tensor import Builder, Layout, Program, evaluate, verify


def _reshape(t, r, a, rng):
    left, shape = a.size, []
    for _ in range(rng.integers(0, 4)):
        shape.append(int(rng.choice([d for d in range(1, left + 1) if left % d == 0])))
        left //= shape[-1]
    shape = rng.permutation([*shape, left]).tolist()
    return t.reshape(r, shape), a.reshape(shape)


def _transpose(t, r, a, rng):
    order = rng.permutation(a.ndim).tolist()
    return t.transpose(r, order), a.transpose(order)


def _slice(t, r, a, rng):
    axis = int(rng.integers(a.ndim))
    start, step = int(rng.integers(a.shape[axis])), int(rng.choice([1, 1, 2, 3, -1, -2]))
    most = len(range(start, a.shape[axis] if step > 0 else -1, step))
    count = int(rng.integers(1, most + 1))
    return t.slice(r, axis, start, count, step), np.take(a, start + step * np.arange(count), axis)


def _gather(t, r, a, rng):
    axis = int(rng.integers(a.ndim))
    n = a.shape[axis]
    width = int(rng.integers(1, n + 1))
    forms = [rng.integers(-n, n, 5), np.repeat(np.arange(n), 3), np.tile(np.arange(n)[::-1], 2)]
    forms.append(np.arange(n - width + 1)[:, None] + np.arange(width))
    index = forms[rng.integers(len(forms))]
    return t.gather(r, t.const(index), axis), np.take(a, index, axis)


def _expand(t, r, a, rng):
    shape = [2] * int(rng.integers(2)) + [int(rng.integers(1, 4)) if n == 1 else n for n in a.shape]
    return t.expand(r, shape), np.broadcast_to(a, shape)


def _tile(t, r, a, rng):
    times = rng.integers(1, 3, a.ndim).tolist()
    return t.tile(r, times), np.tile(a, times)


def _window(t, r, a, rng):
    axis, stride = int(rng.integers(a.ndim)), int(rng.integers(1, 3))
    kernel = int(rng.integers(1, a.shape[axis] + 1))
    dilation = 2 if 2 * (kernel - 1) < a.shape[axis] else 1
    starts = np.arange((a.shape[axis] - dilation * (kernel - 1) - 1) // stride + 1) * stride
    return t.window(r, axis, kernel, stride, dilation), np.take(a, starts[:, None] + dilation * np.arange(kernel), axis)


def _diagonal(t, r, a, rng):
    first, second = rng.permutation(a.ndim)[:2].tolist() if a.ndim > 1 else (0, 0)
    if first == second or a.shape[first] != a.shape[second]:
        return r, a
    return t.diagonal(r, first, second), np.moveaxis(np.diagonal(a, 0, first, second), -1, first - (second < first))


def _compute(t, r, a, rng):
    return t.map("add", r, 1.0), a + np.float32(1)


MOVES = (_reshape, _transpose, _slice, _gather, _expand, _tile, _window, _diagonal, _compute)


@pytest.mark.parametrize("seed", range(8))
def test_chains_of_movements(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        t = Builder()
        shape = tuple(rng.choice([1, 2, 3, 4, 6, 8], rng.integers(1, 5)).tolist())
        x = rng.standard_normal(shape, np.float32)
        r, a, done = t.input("x", shape), x, [str(shape)]
        while len(done) < 8 and a.size < 5000:
            move = MOVES[rng.integers(len(MOVES))]
            r, a = move(t, r, a, rng)
            done.append(f"{move.__name__}{a.shape}")
        assert r.shape == a.shape, done
        program = Program({"y": r})
        verify(program)
        np.testing.assert_array_equal(evaluate(program, {"x": x})[0]["y"], a, err_msg=" ".join(done))
        walk = Layout.of(np.arange(len(done)) * 3)
        assert walk is not None and walk.positions().tolist() == (np.arange(len(done)) * 3).tolist()


@pytest.mark.parametrize(
    "positions", [[0, 1, 2, 3], [0, 0, 3, 3], [5, 4, 3], [0, 1, 2, 1, 2, 3], [7], [0, 1, 4, 5, 2, 3, 6, 7]], ids=str
)
def test_loops_of_positions(positions):
    walk = Layout.of(np.array(positions))
    assert walk is not None and walk.positions().tolist() == positions


@pytest.mark.parametrize("positions", [[0, 1, 3], [0, 2, 3, 1], [1, 0, 0, 1]], ids=str)
def test_positions_without_loops(positions):
    assert Layout.of(np.array(positions)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t, r: t.slice(r, 0, 2, 3),
        lambda t, r: t.slice(r, 1, 0, 3, -1),
        lambda t, r: t.window(r, 0, 5),
        lambda t, r: t.diagonal(r, 0, 1),
        lambda t, r: t.reshape(r, (5, 5)),
        lambda t, r: t.reshape(r, (-4, -6)),
        lambda t, r: t.gather(r, t.const([0, 6]), 1),
        lambda t, r: t.expand(r, (4, 5)),
    ],
    ids=["slice", "backwards", "window", "diagonal", "reshape", "negative", "gather", "expand"],
)
def test_what_leaves_an_axis_is_refused(wrong):
    t = Builder()
    with pytest.raises(ValueError):
        wrong(t, t.input("x", (4, 6)))
