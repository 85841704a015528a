"""The resource estimate: counts that can be done by hand, and every board's default against its part."""

import pytest

from hwgen import boards, resources


def test_memory_blocks_by_hand():
    assert resources.blocks(512, 72, 36) == 1
    assert resources.blocks(1024, 72, 36) == 2
    assert resources.blocks(1024, 36, 36) == 1
    assert resources.blocks(16384, 16, 36) == 8
    assert resources.blocks(1024, 18, 18) == 1


def test_zcu104_scratchpad_goes_to_uram():
    board = boards.load("zcu104")
    used = resources.estimate(board.make_config(), board)
    assert used["uram"] >= 64  # 4 banks x 4 sub-banks x 4
    assert used["dsp"] >= 1536


@pytest.mark.parametrize("name", boards.names())
def test_memories_of_the_default_fit(name):
    board = boards.load(name)
    table = resources.table(board.make_config(), board)
    assert table["bram"]["fraction"] <= 0.9
    assert table["uram"]["used"] <= 0.9 * board.resources["uram"]
    assert table["lut"]["fraction"] <= 0.7


def test_smaller_arrays_take_less():
    board = boards.load("zcu104")
    small, large = (board.make_config({"array_outputs": n, "array_inputs": n}) for n in ("16", "32"))
    small, large = resources.estimate(small, board), resources.estimate(large, board)
    assert all(small[kind] <= large[kind] for kind in ("lut", "ff", "dsp"))
