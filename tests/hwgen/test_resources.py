"""The resource estimate: memories, multipliers and units against Yosys, every board's Config against its part."""

from collections import Counter
from importlib.resources import files as resource_files

import pytest

from hwgen import boards, resources, synth
from hwgen.config import Config
from hwgen.memories import Memory, memories
from hwgen.resources import logic
from hwgen.resources.multipliers import MULTIPLIERS, multipliers, pieces
from hwgen.resources.rams import primitives
from hwgen.rtl import top
from hwgen.rtl.load import LoadUnit
from hwgen.rtl.scales import ScaleMemory

BOARDS = {"ultrascale+": "zcu104", "7-series": "pynq-z2", "ecp5": "ulx3s-85f"}
SMALL = Config(array_outputs=12, array_inputs=20, banks=2, bank_words=64, acc_rows=64, norm_columns=64, scale_entries=4096)


@pytest.mark.parametrize(
    "family, memory, expected",  # as Yosys 0.70 maps rtl_templates/ram_sdp.v
    [
        ("ultrascale+", Memory(1, 64, 256), {"lut": 37 * 8}),
        ("ultrascale+", Memory(1, 128, 28), {"bram": 0.5}),
        ("ultrascale+", Memory(2, 512, 512), {"bram": 15}),
        ("ultrascale+", Memory(1, 4096, 28), {"bram": 3.5}),
        ("ultrascale+", Memory(1, 4096, 34), {"uram": 1}),
        ("ultrascale+", Memory(1, 8192, 16), {"bram": 4}),
        ("ultrascale+", Memory(2, 16384, 16), {"uram": 2}),
        ("ultrascale+", Memory(1, 8192, 512, "block"), {"bram": 114}),
        ("ultrascale+", Memory(1, 256, 128, unread=128), {}),
        ("7-series", Memory(1, 64, 72), {"lut": 24 * 4}),
        ("7-series", Memory(1, 8192, 128), {"bram": 30}),
        ("ecp5", Memory(1, 64, 20), {"lut": 20 * 6}),
        ("ecp5", Memory(1, 64, 28), {"bram": 1}),
        ("ecp5", Memory(1, 4096, 192), {"bram": 44}),
    ],
)
def test_memory_primitives(family, memory, expected):
    assert primitives(memory, boards.load(BOARDS[family])) == expected


def test_no_uram_where_the_part_has_none():
    assert primitives(Memory(1, 16384, 16), boards.load("zcu102")) == {"bram": 8}


def test_products_are_cut():
    wide = {family: pieces(kind, 26, 16) for family, kind in MULTIPLIERS.items()}
    assert wide == {"ultrascale+": 1, "7-series": 2, "ecp5": 2}
    assert pieces(MULTIPLIERS["ecp5"], 19, 17) == 1  # the 19th bit takes LUTs
    assert pieces(MULTIPLIERS["ultrascale+"], 32, 2) == 2


DSPS = [("zcu104", {}, 1728), ("zcu104", {"window_chunks": "0"}, 1726), ("ulx3s-85f", {}, 151)]


@pytest.mark.parametrize("board, settings, dsp", DSPS)
def test_multipliers_as_synthesised(board, settings, dsp):
    board = boards.load(board)
    assert sum(multipliers(board.make_config(settings), board.family).values()) == dsp


def test_memories_are_those_of_the_design(monkeypatch):
    """Every RAM of the Verilog but those forced into LUTs is in the table, and nothing else is."""
    made = Counter()

    def get_memory(ram):
        if hasattr(ram, "style"):
            made[ram.depth, ram.width, ram.style] += 1
        return top.template_memory(ram)

    monkeypatch.setattr(top.VerilogPlatform, "get_memory", staticmethod(get_memory))
    top.emit(SMALL)
    table = Counter()
    for memory in memories(SMALL).values():
        table[memory.depth, memory.width, memory.style] += memory.count
    assert {shape: n for shape, n in made.items() if shape[2] != "distributed"} == table


@pytest.mark.parametrize(
    "board, component, name, memory",
    [("zcu104", ScaleMemory, "core.scales", "row scales"), ("ulx3s-85f", LoadUnit, "load", None)],
)
def test_unit_against_yosys(board, component, name, memory):
    """Memories and multipliers of a unit alone; a chunk of 12 elements makes Load multiply by three."""
    pytest.importorskip("pyosys", reason="no Yosys")
    board = boards.load(board)
    config = Config(array_outputs=12, array_inputs=24, axi_bytes=8, scale_entries=16384, norm_columns=64)
    verilog = {"top.v": top._convert(component(config), "hwgen_top", top.VerilogPlatform())}
    verilog["ram_sdp.v"] = resource_files("hwgen.rtl_templates").joinpath("ram_sdp.v").read_text()
    used = synth.synthesise(verilog, board).total
    expected = primitives(memories(config)[memory], board) if memory else {}
    assert (used["bram"], used["uram"]) == (expected.get("bram", 0), expected.get("uram", 0))
    assert used["dsp"] == multipliers(config, board.family).get(name, 0)


@pytest.mark.parametrize("name", boards.names())
def test_every_board_holds_its_config(name):
    """Memories and LUTs leave placement room, as explore asks for."""
    board = boards.load(name)
    used = resources.table(board.make_config(), board)
    assert used["bram"]["fraction"] <= 0.9 and used["lut"]["fraction"] <= 0.9 and used["dsp"]["fraction"] <= 1
    assert used["uram"]["used"] <= 0.9 * board.resources["uram"]


def test_terms_have_coefficients():
    for family, name in BOARDS.items():
        found = logic.of_units(SMALL, boards.load(name))
        assert set(found) == set(logic.terms(SMALL)), family
        assert all(luts >= 0 and flip_flops >= 0 for luts, flip_flops in found.values())


def test_smaller_arrays_take_less():
    board = boards.load("zcu104")
    small, large = (board.make_config({"array_outputs": n, "array_inputs": n}) for n in ("16", "32"))
    small, large = resources.estimate(small, board), resources.estimate(large, board)
    assert all(small[kind] <= large[kind] for kind in ("lut", "ff", "dsp"))
