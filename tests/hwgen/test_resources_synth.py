"""The resource estimate against Yosys for a whole small design of each family: minutes of synthesis, so marked slow."""

import pytest

from hwgen import boards, resources, synth
from hwgen.rtl.top import emit

pytestmark = pytest.mark.slow

# Smaller than any board's Config where that says something, and none of those the coefficients were fitted to.
DESIGNS = {
    "zcu104": {"array_outputs": "8", "array_inputs": "24", "bank_words": "4096", "scale_entries": "4096", "max_experts": "16"},
    "pynq-z2": {"bank_words": "1024", "array_inputs": "16"},
    "ulx3s-85f": {"bank_words": "1024", "array_inputs": "16", "scale_entries": "4096"},
}


@pytest.mark.parametrize("board", DESIGNS)
def test_estimate_of_a_whole_design(board):
    """DSP, BRAM and URAM equal, LUT and FF within 10 %; the multipliers and memories asked for are there as such."""
    pytest.importorskip("pyosys", reason="no Yosys")
    board = boards.load(board)
    config = board.make_config(DESIGNS[board.name])
    found = synth.synthesise(emit(config), board)
    used, estimate = found.total, resources.estimate(config, board)
    assert {kind: used[kind] for kind in ("dsp", "bram", "uram")} == {kind: estimate[kind] for kind in ("dsp", "bram", "uram")}
    for kind in ("lut", "ff"):
        assert estimate[kind] == pytest.approx(used[kind], rel=0.1), kind
    if board.family == "ultrascale+":
        # The array instantiates its cells, everything else is inferred.
        assert found.cells["mac_pair"]["DSP48E2"] == config.array_inputs
        assert found.cells["weights"]["RAMB36E2"]
        assert found.cells["core.scratchpad"]["URAM288"] == config.banks * config.word_chunks
        assert found.paths[0].levels <= 8
