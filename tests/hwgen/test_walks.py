"""Walks against what they stand for, and through the fields of an instruction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwgen import isa
from hwgen.walks import ZERO_ROW, Plane, Walk, window


def through_fields(walk: Walk) -> Walk:
    insn = isa.decode(isa.encode(isa.MatmulWalk(**walk.fields())))
    assert isinstance(insn, isa.MatmulWalk)
    return Walk.of(insn, walk.rows)


@st.composite
def windows(draw):
    small = st.integers(1, 4)
    size = draw(st.tuples(st.integers(4, 9), st.integers(4, 9)))
    kernel = draw(st.tuples(small, small))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(2, 3)] * 4))
    return size, kernel, draw(st.tuples(small, small)), pads, dilation


@given(windows())
def test_a_window_slides_as_a_convolution_does(case) -> None:
    (height, width), kernel, stride, pads, dilation = case
    walk = window((height, width), kernel, stride, pads, dilation)
    padded = np.pad(np.arange(height * width).reshape(height, width), (pads[::2], pads[1::2]), constant_values=ZERO_ROW)
    down, across = walk.loops
    found = walk.x_rows().reshape(*kernel, down, across)
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            part = padded[a * dilation[0] :: stride[0], b * dilation[1] :: stride[1]][:down, :across]
            np.testing.assert_array_equal(found[a, b], part)
    np.testing.assert_array_equal(walk.y_rows(), np.arange(down * across))
    again = through_fields(walk)
    np.testing.assert_array_equal(again.x_rows(), walk.x_rows())
    np.testing.assert_array_equal(again.y_rows(), walk.y_rows())


@pytest.mark.parametrize("border", [isa.Border.WRAP_X, isa.Border.WRAP_Y])
def test_shifted_windows_wrap(border) -> None:
    """Windows of 4 x 3 in a map of 8 x 9, shifted by (2, 1): rolled, then cut, as Swin does (Liu et al. 2021)."""
    rolled = np.roll(np.arange(72).reshape(8, 9), (-2, -1), (0, 1))
    wanted = rolled.reshape(2, 4, 3, 3).transpose(0, 2, 1, 3).reshape(-1)
    plane = Plane(8, 9, border, 2, 1, (4, 0, 1, 0), (0, 3, 0, 1))
    loops, map_strides, dense = (2, 3, 4, 3), (36, 3, 9, 1), (36, 12, 3, 1)
    if border == isa.Border.WRAP_X:
        walk = Walk(loops, map_strides, dense, x_start=19, plane=plane)
        rows, other = walk.x_rows()[0], walk.y_rows()
    else:
        walk = Walk(loops, dense, map_strides, y_start=19, plane=plane)
        rows, other = walk.y_rows(), walk.x_rows()[0]
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(other, np.arange(72))
    again = through_fields(walk)
    np.testing.assert_array_equal(again.y_rows(), walk.y_rows())
    np.testing.assert_array_equal(again.x_rows(), walk.x_rows())


SHIFTED = Walk(
    (2, 3, 4, 3),
    (36, 12, 3, 1),
    (36, 3, 9, 1),
    0,
    19,
    plane=Plane(8, 9, isa.Border.WRAP_Y, 2, 1, (4, 0, 1, 0), (0, 3, 0, 1)),
)


@pytest.mark.parametrize("walk", [SHIFTED, window((9, 7), (3, 2), (2, 1), (1, 1, 1, 0), (1, 2))])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 12, 40, 100])
def test_parts_make_the_rows_of_the_whole(walk, most) -> None:
    parts = walk.parts(most)
    assert max(part.rows for part in parts) <= most
    again = [through_fields(part) for part in parts]
    np.testing.assert_array_equal(np.concatenate([part.x_rows() for part in again], axis=1), walk.x_rows())
    np.testing.assert_array_equal(np.concatenate([part.y_rows() for part in again]), walk.y_rows())


def test_repeated_walks_lie_one_behind_the_other() -> None:
    walk = window((4, 5), (3, 2), pads=(1, 1, 1, 0))
    again = through_fields(walk.repeated(3, 20, walk.rows))
    for image, x in enumerate(np.split(again.x_rows(), 3, axis=1)):
        np.testing.assert_array_equal(x, np.where(walk.x_rows() == ZERO_ROW, ZERO_ROW, walk.x_rows() + 20 * image))
    np.testing.assert_array_equal(again.y_rows(), np.arange(3 * walk.rows))


def test_parts_are_whole_inner_loops() -> None:
    assert [part.loops for part in SHIFTED.parts(80)] == [(2, 3, 4, 3)]
    assert [part.loops for part in SHIFTED.parts(71)] == [(1, 3, 4, 3)] * 2
    assert [part.loops for part in SHIFTED.parts(30)] == [(2, 4, 3), (1, 4, 3)] * 2
    assert [part.loops for part in SHIFTED.parts(11)][:2] == [(2, 3)] * 2
    assert [part.loops for part in SHIFTED.parts(2)][:3] == [(2,), (1,), (2,)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="coordinates v from -1 to 4098 do not fit 13 bits"):
        window((4, 4098), (1, 3), pads=(0, 1, 0, 1)).fields()
    with pytest.raises(ValueError, match="5 loops"):
        Walk((1,) * 5, (0,) * 5, (0,) * 5).fields()
    with pytest.raises(ValueError, match="7 rows in loops of"):
        Walk.of(isa.MatmulWalk(n0=2), 7)
    with pytest.raises(ValueError, match=r"MatmulWalk\.n0=5000"):
        isa.encode(isa.MatmulWalk(**Walk((1, 5000), (1, 1), (1, 1)).fields()))


@pytest.mark.parametrize("walk", [
    Walk((3, 5, 2, 6), (-70, -30, -4, -2), (60, 12, 6, 1), 900, 0),
    Walk((4, 3, 2, 6), (50, -9, 700, -2), (-36, -12, -6, -1), 900, 143),
])  # fmt: skip
def test_strides_come_back_from_the_fields(walk) -> None:
    """Not only the rows, which are counted modulo the width of an address: the same numbers, of either sign."""
    again = through_fields(walk)
    assert (again.loops, again.x, again.y) == (walk.loops, walk.x, walk.y)
