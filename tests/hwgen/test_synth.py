"""Open synthesis: units of a design, cells counted, logic depth on netlists made by hand, and a tiny unit in Yosys."""

import importlib.util

import pytest

from hwgen import boards, cli, synth
from hwgen.errors import UserError
from hwgen.synth import netlist, yosys
from hwgen.synth.families import FAMILIES, family, resources
from hwgen.synth.partition import split, units

DESIGN = """\
module ram #(
  parameter DEPTH = 2
) (input clk);
endmodule
(* generator = "Amaranth" *)
module hwgen_top(clk, \\a[0] , y);
  input clk;
  wire clk;
  input \\a[0] ;
  output y;
  \\hwgen_top.left  left (
    .clk(clk)
  );
  \\hwgen_top.right  right (
    .clk(clk)
  );
endmodule
module \\hwgen_top.left (clk);
  input clk;
  hwgen_pair one (.clk(clk));
  hwgen_pair two (.clk(clk));
  ram #(
    .DEPTH(4)
  ) memory (.clk(clk));
endmodule
module \\hwgen_top.right (clk);
  input clk;
  \\hwgen_top.right.inner  inner (.clk(clk));
endmodule
module \\hwgen_top.right.inner (clk);
  input clk;
endmodule
`ifdef FAST
module hwgen_pair(clk);
  input clk;
  wire fast;
endmodule
`else
module hwgen_pair(clk);
  input clk;
endmodule
`endif
"""


def test_units():
    found = {u.name: u for u in units({"a.v": DESIGN})}
    assert set(found) == {"hwgen_top", "left", "right", "pair"}
    assert found["left"].instances == {"pair": 2}
    assert "module ram" in found["left"].source and "(* blackbox *)\nmodule hwgen_pair" in found["left"].source
    assert "inner" in found["right"].source and "hwgen_pair" not in found["right"].source
    assert "fast" not in found["pair"].source
    assert "fast" in split(DESIGN, ("FAST",))["hwgen_pair"]
    assert "\\a<0> " in found["hwgen_top"].source


def cell(kind, inputs, outputs, **parameters):
    pins = {**inputs, **outputs}
    ways = dict.fromkeys(inputs, "input") | dict.fromkeys(outputs, "output")
    return {"type": kind, "parameters": parameters, "connections": pins, "port_directions": ways}


def register(d, q):
    return cell("FDRE", {"D": [d], "C": [1]}, {"Q": [q]})


def module(cells, names, ports=()):
    return {
        "ports": {name: {"bits": bits} for name, bits in ports},
        "netnames": {name: {"bits": bits, "hide_name": 0} for name, bits in names.items()},
        "cells": {f"c{i}": c for i, c in enumerate(cells)},
    }


def paths(top, *others):
    modules = {"top": top} | dict(others)
    nets = {name: netlist.read({"modules": modules}, name) for name in modules}
    return {(p.start, p.end): p.levels for p in netlist.paths(FAMILIES["ultrascale+"], nets, "top")}


def test_lut_levels():
    cells = [register(9, 2), cell("LUT2", {"I0": [2], "I1": [2]}, {"O": [3]}), cell("INV", {"I": [3]}, {"O": [4]})]
    cells += [cell("LUT1", {"I0": [4]}, {"O": [5]}), register(5, 6), register(6, 7)]
    found = paths(module(cells, {"a": [2], "b": [6], "c": [7]}))
    assert found["a", "b"] == 2 and found["b", "c"] == 0


@pytest.mark.parametrize("pieces, levels", [(1, 1), (7, 1), (9, 2), (17, 3)])
def test_carry_chain(pieces, levels):
    """One level to enter, one for every 32 bits passed."""
    cells, carry = [register(9, 2)], "0"
    for n in range(pieces):
        outs = {"O": [100 + 8 * n + i for i in range(4)], "CO": [104 + 8 * n + i for i in range(4)]}
        cells.append(cell("CARRY4", {"S": [2] * 4, "DI": ["0"] * 4, "CI": [carry], "CYINIT": ["0"]}, outs))
        carry = 107 + 8 * n
    cells.append(register(carry, 3))
    assert paths(module(cells, {"a": [2], "b": [3]}))["a", "b"] == levels


def test_paths_cross_units():
    inner = module([cell("LUT1", {"I0": [5]}, {"O": [6]})], {}, [("i", [5]), ("o", [6])])
    cells = [register(9, 2), register(4, 7), cell("LUT1", {"I0": [3]}, {"O": [4]})]
    cells.append(cell("inner", {"i": [2]}, {"o": [3]}))
    assert paths(module(cells, {"a": [2], "b": [7]}), ("inner", inner))["a", "b"] == 2


def test_multiplier_with_and_without_registers():
    for mreg, levels in (("1", None), ("0", 3)):
        cells = [register(9, 2), cell("DSP48E2", {"A": [2]}, {"P": [3]}, MREG=mreg, PREG="0"), register(3, 4)]
        assert paths(module(cells, {"a": [2], "b": [4]})).get(("a", "b")) == levels


def test_resources():
    used = resources(family("ultrascale+"), {"LUT6": 3, "RAM32M16": 2, "FDRE": 5, "RAMB18E2": 3, "DSP48E2": 7, "URAM288": 1})
    assert used == {"lut": 19, "ff": 5, "dsp": 7, "bram": 1.5, "uram": 1}
    with pytest.raises(UserError, match="family 'stratix'"):
        family("stratix")


def test_unknown_unit_and_missing_tool(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(yosys, "tool", lambda: "pyosys")
    with pytest.raises(UserError, match="no unit 'middle'; it has hwgen_top, left"):
        synth.synthesise({"a.v": DESIGN}, boards.load("zcu104"), only="middle")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hwgen\[synth\]"):
        synth.synthesise({"a.v": DESIGN}, boards.load("zcu104"))
    assert cli.main(["synth", str(tmp_path / "none")]) == 2
    assert "hwgen: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "board, multiplier, outside",  # flip-flops that Yosys does not put into the multiplier
    [("zcu104", "DSP48E2", 48), ("pynq-z2", "DSP48E1", 0), ("ulx3s-85f", "MULT18X18D", 48)],
)
def test_yosys(board, multiplier, outside, tmp_path):
    pytest.importorskip("pyosys", reason="no Yosys")
    design = """\
module hwgen_top(clk, a, b, y);
  input clk;
  input [11:0] a, b;
  output reg [23:0] y;
  reg [11:0] c, d;
  always @(posedge clk) begin
    c <= a; d <= b; y <= c * d;
  end
endmodule
"""
    found = synth.synthesise({"a.v": design}, boards.load(board), cache=tmp_path)
    assert found.cells["hwgen_top"][multiplier] == found.total["dsp"] == 1
    assert found.total["ff"] == outside and found.paths[0].levels <= 6
    again = synth.synthesise({"a.v": design}, boards.load(board), cache=tmp_path)
    assert again.to_dict() == found.to_dict() and "hwgen_top" in synth.text(again)


def test_registers_with_a_limit_are_kept_under_their_names():
    marked = "module hwgen_top(clk);\n  (* max_fanout = 32'd8 *) reg near;\nendmodule\n"
    kind = family("ultrascale+")
    for text, there in ((marked, True), (marked.replace("(* max_fanout = 32'd8 *) ", ""), False)):
        (unit,) = units({"a.v": text})
        assert ("\nsetattr -set keep 1 w:* a:max_fanout %i\nsynth_xilinx" in synth.script(unit, kind)) == there
