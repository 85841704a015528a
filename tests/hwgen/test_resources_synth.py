"""The resource estimate against Yosys for whole small designs and many memories: minutes of synthesis, so marked slow."""

import json
import random
from collections import Counter
from importlib.resources import files as resource_files

import pytest

from hwgen import boards, resources, synth
from hwgen.memories import Memory
from hwgen.resources.rams import primitives
from hwgen.rtl.top import emit
from hwgen.synth import families, yosys

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
        wide = -(-16 * config.chunk // 72)  # of them side by side
        assert found.cells["core.scratchpad"]["URAM288"] == config.banks * config.word_chunks * wide
        assert found.paths[0].levels <= synth.MAX_LEVELS


# The Yosys steps up to its choice of memories.
MEMORY_STEPS = {
    "zcu104": "synth_xilinx -family xcup -uram -noiopad -noclkbuf -run begin:fine",
    "pynq-z2": "synth_xilinx -family xc7 -noiopad -noclkbuf -run begin:fine",
    "ulx3s-85f": "synth_ecp5 -noflatten -run begin:map_gates",
}


@pytest.mark.parametrize("board", MEMORY_STEPS)
def test_memories_against_yosys(board, tmp_path):
    """Memories of random shapes in all styles but ultra take the primitives that the model says."""
    pytest.importorskip("pyosys", reason="no Yosys")
    rng, kind = random.Random(5), families.family(boards.load(board).family)
    shapes = []
    while len(shapes) < 60:
        memory = Memory(1, 1 << rng.randint(4, 14), rng.randint(8, 512), rng.choice(("auto", "auto", "block", "distributed")))
        limits = {"auto": 1 << 21, "block": 1 << 20, "distributed": 1 << 13}
        if 1 << 11 <= memory.depth * memory.width <= limits[memory.style]:
            shapes.append(memory)
    design = resource_files("hwgen.rtl_templates").joinpath("ram_sdp.v").read_text()
    for i, memory in enumerate(shapes):
        address = (memory.depth - 1).bit_length() - 1
        design += f"""module ram_{i}(input clk, input [{address}:0] wa, ra, input [{memory.width - 1}:0] wd, input we,
                       output [{memory.width - 1}:0] rd);
  ram_sdp #(.DEPTH({memory.depth}), .WIDTH({memory.width}), .STYLE("{memory.style}")) ram (.clk(clk), .write_addr(wa),
    .write_data(wd), .write_enable(we), .read_addr(ra), .read_data(rd));
endmodule
"""
    instances = "".join(f"(* keep *) ram_{i} i{i}(.clk(clk));\n" for i in range(len(shapes)))
    (tmp_path / "design.v").write_text(f"{design}module top(input clk);\n{instances}endmodule\n")
    script = f"read_verilog design.v\nhierarchy -top top\n{MEMORY_STEPS[board]} -top top\ntee -o cells.json stat -json\n"
    yosys.run(script, tmp_path)
    text = (tmp_path / "cells.json").read_text()
    stat = json.loads(text[text.index("{") :])["modules"]
    modules = {name.lstrip("\\"): found["num_cells_by_type"] for name, found in stat.items()}
    for i, memory in enumerate(shapes):
        (inside,) = (name for name in modules[f"ram_{i}"] if "ram_sdp" in name)
        cells = Counter({cell: n for cell, n in modules[inside.lstrip("\\")].items() if not cell.startswith("$")})
        counted = families.resources(kind, cells)
        memories = {cell: n for cell, n in cells.items() if cell.startswith(("RAM", "TRELLIS_DPR"))}
        counted["lut"] = families.resources(kind, memories)["lut"]
        expected = primitives(memory, boards.load(board))
        assert {k: n for k, n in counted.items() if n and k in ("lut", "bram", "uram")} == expected, memory
