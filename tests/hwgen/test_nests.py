"""Lists of rows as walks: every row is copied once from where the list says, by as few walks as its structure allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwgen.select import nests
from hwgen.walks import ZERO_ROW


def copied(rows, sources):
    """How many walks there are, after a check of what they copy; all fit an instruction."""
    rows = np.asarray(rows)
    held, zeros = nests.walks(rows, sources)
    found = np.full(len(rows), -2)
    for walk in zeros:
        walk.fields()
        found[walk.y_rows()] = ZERO_ROW
        assert 0 <= walk.x_rows().min() <= walk.x_rows().max() < sources  # what is read is multiplied by zero
    for walk in held:
        walk.fields()
        found[walk.y_rows()] = walk.x_rows()[0]
    np.testing.assert_array_equal(found, rows)
    assert sum(walk.rows for walk in held) == (rows >= 0).sum()
    return len(held), len(zeros)


@given(st.lists(st.integers(-1, 12), min_size=1, max_size=40))
def test_any_list(rows) -> None:
    copied(rows, 13)


@given(st.lists(st.integers(-1, 0), min_size=1, max_size=12))
def test_one_row_among_zeros(rows) -> None:
    copied(rows, 1)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(-3, 9)), min_size=1, max_size=4))
def test_four_loops_are_one_walk(loops) -> None:
    rows = np.zeros(1, np.int64)
    for count, stride in loops:
        rows = (rows[:, None] + np.arange(count) * stride).reshape(-1)
    rows -= rows.min()
    assert copied(rows, int(rows.max()) + 1) == (1, 0)


def windows(plane, down, across):
    h, w = plane.shape
    return plane.reshape(h // down, down, w // across, across).transpose(0, 2, 1, 3).reshape(-1)


@given(st.tuples(*[st.integers(1, 4)] * 4), st.tuples(st.integers(0, 15), st.integers(0, 15)))
def test_shifted_windows_are_one_walk_there_and_back(case, shift) -> None:
    a, b, down, across = case
    plane = np.arange(a * b * down * across).reshape(a * down, b * across)
    rows = windows(np.roll(plane, shift, (0, 1)), down, across)
    assert copied(rows, plane.size) == (1, 0)
    assert copied(np.argsort(rows), plane.size) == (1, 0)


PLANE = np.arange(56 * 56).reshape(56, 56)
SPREAD = np.full((111, 111), ZERO_ROW)
SPREAD[::2, ::2] = PLANE


@pytest.mark.parametrize(
    "rows, most",
    [
        (PLANE.repeat(2, 0).repeat(2, 1), (1, 0)),
        (PLANE[3:50, 7:41], (1, 0)),
        (PLANE[::-1, ::-1], (1, 0)),
        (windows(np.pad(PLANE, ((0, 4), (0, 4)), constant_values=ZERO_ROW), 12, 12), (4, 1)),
        (SPREAD, (1, 1)),
        (np.append(0, windows(PLANE, 7, 7) + 1), (2, 0)),
        (np.arange(10000), (1, 0)),
    ],
)
def test_rows_of_maps(rows, most) -> None:
    held, zeros = copied(rows.reshape(-1), int(rows.max()) + 1)
    assert held <= most[0] and zeros <= most[1]
