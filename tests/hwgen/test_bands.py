"""Bands of rows that blocks of an operation with a walk need, against the rows that the walk names."""

import numpy as np
import pytest

from hwgen.isa import Border
from hwgen.mapping.bands import lanes, reach, rows_of, tallest
from hwgen.walks import Plane, Walk, window

SHIFTED = Plane(8, 9, Border.WRAP_X, 2, 1, (4, 0, 1, 0), (0, 3, 0, 1))
STACKED = Walk((5, 2, 2, 3), (3, 30, 15, 1), (12, 6, 3, 1))  # rows of four maps below each other, in turns
WALKS = {
    "rows": Walk((9,), (1,), (1,)),
    "upwards": Walk((9,), (-2,), (-1,), 20, 8),
    "convolution": window((6, 5), (3, 3), pads=(1, 1, 1, 1)),
    "strides and gaps": window((9, 7), (2, 3), (2, 1), (0, 1, 1, 2), (2, 2)),
    "one line": window((1, 7), (1, 3), pads=(0, 1, 0, 1)),
    "windows": Walk((2, 3, 4, 3), (36, 3, 9, 1), (36, 12, 3, 1), 19, 0, plane=SHIFTED),
    "stacked": STACKED,
    "stacked twice": Walk((4, 3, 2), (2, 40, 1), (6, 2, 1), 7, 3),
}  # fmt: skip
each = pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)


def rows_read(walk: Walk, first: int, end: int) -> np.ndarray:
    rows = walk.x_rows()[:, first:end]
    return rows[rows >= 0]


def height(rows: np.ndarray) -> int:
    return int(rows.max() - rows.min()) + 1 if len(rows) else 1


def tallest_of(walk: Walk, side: str, steps: int) -> int:
    """Among all runs of so many steps."""
    step = reach(walk).step
    count = walk.rows // step
    runs = [(k * step, (k + min(steps, count)) * step) for k in range(count - min(steps, count) + 1)]
    return max(height(walk.y_rows()[a:b] if side == "out" else rows_read(walk, a, b)) for a, b in runs)


@each
def test_what_steps_reach(walk):
    found = reach(walk)
    assert walk.rows % found.step == 0 and found.step < walk.rows
    for k in range(walk.rows // found.step):
        read, written = rows_read(walk, k * found.step, (k + 1) * found.step), walk.y_rows()[k * found.step :][: found.step]
        if len(read):
            assert (found.low["x"][k], found.high["x"][k]) == (read.min(), read.max() + 1)
        assert (found.low["out"][k], found.high["out"][k]) == (written.min(), written.max() + 1)


@each
def test_rows_of_some_steps(walk):
    step = reach(walk).step
    for first in range(0, walk.rows, step):
        for end in range(first + step, walk.rows + 1, step):
            part = rows_of(walk, first, end)
            np.testing.assert_array_equal(part.x_rows(), walk.x_rows()[:, first:end])
            np.testing.assert_array_equal(part.y_rows(), walk.y_rows()[first:end])


@each
def test_lanes_are_the_walk(walk):
    """They make the same rows from the same, in as many steps, and are narrow where they are several."""
    found = lanes(walk)
    if len(found) == 1:
        assert found == (walk,)
        return
    pairs = [(int(x), int(y)) for lane in found for x, y in zip(lane.x_rows()[0], lane.y_rows(), strict=True)]
    assert sorted(pairs) == sorted(zip(walk.x_rows()[0].tolist(), walk.y_rows().tolist(), strict=True))
    assert {lane.rows // reach(lane).step for lane in found} == {walk.rows // reach(walk).step}
    assert 2 * sum(tallest_of(lane, "x", 1) for lane in found) <= tallest_of(walk, "x", 1)


def test_which_walks_have_lanes():
    assert [len(lanes(walk)) for walk in WALKS.values()] == [1, 1, 1, 1, 1, 1, 4, 3]


@each
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_tallest_bands(walk, blocks):
    """Of what is written the whole height; of what is read that of each lane."""
    step = reach(walk).step
    for rows in {blocks * step, blocks * step - step + 1}:
        assert tallest(walk, "out", rows) == tallest_of(walk, "out", blocks)
        assert tallest(walk, "x", rows) == sum(tallest_of(lane, "x", blocks) for lane in lanes(walk))
