"""What is said where a network does not fit: the resource, by how much, and a Config or board that does, by trying it."""

import shlex
from dataclasses import replace

import pytest

from hwgen import boards, explore, mapping, resources
from hwgen.dram import of_board
from hwgen.errors import Shortage, UserError
from hwgen.example import write
from hwgen.explore import advice, space
from hwgen.sim.tb.graphs import Shape, random_graph

GRAPHS = {"": random_graph(1, Shape(patches=(4, 4), heads=4, head=16, hidden=128))}
PYNQ = boards.load("pynq-z2")


def maps(config, board=PYNQ, graphs=GRAPHS):
    found = mapping.search(graphs, config, of_board(board, config), quick=True)
    if isinstance(found, UserError):
        raise found


def advised(text: str, board=PYNQ):
    """The Config of the `--set` options in an advice."""
    words = shlex.split(text[text.index("--set") :])
    assert words[::2] == ["--set"] * (len(words) // 2)
    return board.make_config(dict(word.split("=") for word in words[1::2]))


@pytest.mark.parametrize("settings", [{"bank_words": "2"}, {"norm_columns": "32"}, {"scale_entries": "2", "acc_rows": "2"}])
def test_a_set_field_that_is_too_small_is_raised(settings):
    config = PYNQ.make_config(settings)
    with pytest.raises(Shortage) as failed:
        maps(config)
    assert failed.value.field in settings or failed.value.field == "bank_words"
    better = advised(advice.advise(GRAPHS, PYNQ, config))
    maps(better)
    assert space.fits(better, PYNQ) and (better.array_outputs, better.array_inputs) == (8, 8)
    changed = {k for k, v in better.to_dict().items() if v != PYNQ.make_config().to_dict()[k]}
    assert changed <= {*settings}


def test_an_array_that_is_too_large_is_told_with_one_that_is_not():
    config = PYNQ.make_config({"array_outputs": "32", "array_inputs": "32"})
    used = resources.estimate(config, PYNQ)["dsp"]
    assert used > 1024 and f"DSP: {used:,} of 220, {used - 220:,} too many" in explore.excess(config, PYNQ)
    better = advised(advice.advise(GRAPHS, PYNQ, config))
    maps(better)
    assert space.fits(better, PYNQ) and not explore.excess(better, PYNQ)


def test_a_board_that_is_too_small_names_one_that_is_not(monkeypatch):
    """The resource, its amounts, and the smallest board whose own Config takes the network."""
    weak = replace(PYNQ, name="weak", resources=PYNQ.resources | {"bram": 30})
    large = {"": random_graph(1, Shape(patches=(16, 16), heads=4, head=16, hidden=128))}
    with pytest.raises(UserError) as failed:
        explore.explore(large, weak)
    text = str(failed.value)
    assert "scratchpad" in text and "BRAM: " in text and " short" in text
    name = text[text.index("--board ") :].split()[1]
    other = boards.load(name)
    maps(other.make_config(), other, large)
    monkeypatch.setattr(boards, "names", list)
    assert "none of the known boards" in advice.no_config(large, weak)


def test_build_tells_it(hwgen, tmp_path):
    model = write("m3vit-micro", tmp_path / "micro.onnx")[0]
    options = ["--board", "ulx3s-85f", "--stop-after", "configure"]
    code, _, err = hwgen("build", model, *options, "--set", "bank_words=2")
    assert code == 2 and err.splitlines()[-1].startswith("hwgen: error: ") and "this would do: --set array_outputs=" in err
    settings = shlex.split(err[err.index("--set") :])
    code, _, err = hwgen("build", model, *options, *settings)
    assert code == 0, err
    code, _, err = hwgen("build", model, *options, "--set", "array_outputs=64")
    assert code == 0 and "warning: the Config is too large for ulx3s-85f, " in err
    assert "DSP: " in err and "this would do: --set" in err


def test_search_does_not_try_what_cannot_help(monkeypatch):
    """Rows that are too wide for the LayerNorm are so in blocks; what is too large for the smallest, for all."""
    tried = []
    original = mapping.Mapping.apply
    monkeypatch.setattr(mapping.Mapping, "apply", lambda self, *rest: tried.append(self) or original(self, *rest))
    for settings, blocks in (({"norm_columns": "32"}, []), ({"bank_words": "2"}, [0.98])):
        tried.clear()
        with pytest.raises(UserError):
            maps(PYNQ.make_config(settings))
        assert [a.room for a in tried if a.room] == blocks
