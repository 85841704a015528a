"""A timing graph for OpenSTA: Verilog, Liberty and SDF of the same cells, wires and delays, and what `sta` makes of them.

Every cell becomes an instance of a Liberty cell with the same pins and arcs, whose delays are zero; the SDF holds all numbers. So
`sta` repeats the arithmetic of paths from nothing but the delays of single wires and cells.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from hwgen.timing.arrival import Arrivals, Wire
from hwgen.timing.graph import Graph, Way

PERIOD = 1_000_000.0  # ps, longer than any path: slack tells the path


def available() -> bool:
    return shutil.which("sta") is not None


def _delay(graph: Graph, found: Arrivals, wire: Wire, net: int) -> list[tuple[Way, float]]:
    """The ways into a net with their cell's delay; a LUT's inputs take its delays in the order they come."""
    ways = graph.ways[net]
    if not graph.kinds[ways[0].cell].startswith("LUT"):
        return [(way, way.ps) for way in ways]
    ranks = graph.delays["lut"]["delays"]
    late = sorted(ways, key=lambda w: -(found.at.get(w.net, float("-inf")) + wire(w)))
    return [(way, ranks[min(i, len(ranks) - 1)]) for i, way in enumerate(late)]


class Export:
    """Files of a graph in one scenario, and the worst path that `sta` finds on them."""

    def __init__(self, graph: Graph, found: Arrivals, wire: Wire):
        self.graph, self.found, self.wire = graph, found, wire
        self.inputs: dict[int, dict[tuple[int, float], str]] = {}  # cell -> (net, wire delay) -> pin
        self.outputs: dict[int, dict[int, str]] = {}
        self.arcs: dict[int, list[tuple[str, str, float]]] = {}
        self.launch: dict[int, list[tuple[str, float]]] = {}
        self.setup: dict[int, list[tuple[str, float]]] = {}
        self.extra: dict[int, list[int]] = {}  # cell -> nets of its own
        for net, ps in graph.starts.items():
            cell = graph.driver[net]
            self.launch.setdefault(cell, []).append((self._output(cell, net), ps))
        for net in graph.ways:
            for way, ps in _delay(graph, found, wire, net):
                if self._timed(way.net):
                    cell = graph.driver.get(net, way.cell)  # of two that make a slice's carry, the one that drives the net
                    self.arcs.setdefault(cell, []).append((self._input(cell, way), self._output(cell, net), ps))
        for end in graph.ends:
            if self._timed(end.net):
                self.setup.setdefault(end.cell, []).append((self._input(end.cell, end), end.ps))

        for held in (self.arcs, self.setup):  # of two pins of a cell on one net the later counts; `sta` keeps the last
            for cell, found in held.items():
                held[cell] = list({entry[:-1]: entry for entry in sorted(found, key=lambda entry: entry[-1])}.values())

    def _timed(self, net: int) -> bool:
        return net in self.graph.starts or net in self.graph.ways

    def _input(self, cell: int, way: Way) -> str:
        """The pin of a cell for a net, which may come with several wire delays (inside the slice or not): a pin for each."""
        pins = self.inputs.setdefault(cell, {})
        return pins.setdefault((way.net, self.wire(way)), f"i{len(pins)}")

    def _output(self, cell: int, net: int) -> str:
        pins = self.outputs.setdefault(cell, {})
        return pins.setdefault(net, f"o{len(pins)}")

    def write(self, folder: Path) -> None:
        cells = sorted(set(self.inputs) | set(self.outputs))
        liberty = [
            'library(l) { delay_model : table_lookup; time_unit : "1ps"; capacitive_load_unit(1,pf); voltage_unit : "1V";'
        ]
        liberty.append(' current_unit : "1mA"; pulling_resistance_unit : "1ohm"; leakage_power_unit : "1nW";')
        verilog, sdf, wires, drivers = [], [], set(), {}
        for cell in cells:
            for net, pin in self.outputs.get(cell, {}).items():
                drivers[net] = f"c{cell}/{pin}"
        for cell in cells:
            ins, outs = self.inputs.get(cell, {}), self.outputs.get(cell, {})
            liberty.append(self._cell(cell))
            pins = [f".{pin}(n{net})" for (net, _), pin in ins.items()]
            pins += [f".{pin}(n{net})" for net, pin in outs.items()]
            wires |= {net for net, _ in ins} | set(outs)
            verilog.append(f"  k{cell} c{cell} (.ck(ck), {', '.join(pins)});")
            sdf.append(self._annotation(cell))
        joined = []
        for cell in cells:
            for (net, ps), pin in self.inputs.get(cell, {}).items():
                if net in drivers:
                    joined.append(f"(INTERCONNECT {drivers[net]} c{cell}/{pin} ({ps:.3f}))")
        head = '(DELAYFILE (SDFVERSION "3.0") (DESIGN "top") (DIVIDER /) (TIMESCALE 1ps)\n'
        whole = f'(CELL (CELLTYPE "top") (INSTANCE) (DELAY (ABSOLUTE\n{chr(10).join(joined)})))\n'
        (folder / "d.lib").write_text("\n".join([*liberty, "}"]))
        declared = "".join(f"  wire n{net};\n" for net in sorted(wires))
        (folder / "d.v").write_text("module top(ck);\n  input ck;\n" + declared + "\n".join(verilog) + "\nendmodule\n")
        (folder / "d.sdf").write_text(head + whole + "\n".join(sdf) + ")\n")

    def _cell(self, cell: int) -> str:
        zero = 'cell_rise(scalar) { values("0"); } cell_fall(scalar) { values("0"); }'
        zero += ' rise_transition(scalar) { values("0"); } fall_transition(scalar) { values("0"); }'
        lines = [f" cell(k{cell}) {{ area : 1; pin(ck) {{ direction : input; capacitance : 0; clock : true; }}"]
        setups = {pin for pin, _ in self.setup.get(cell, [])}
        if cell in self.launch or setups:
            lines.append('  ff(IQ,IQN) { clocked_on : "ck"; next_state : "ck"; }')
        for pin in self.inputs.get(cell, {}).values():
            check = ""
            if pin in setups:
                rise = 'rise_constraint(scalar) { values("0"); } fall_constraint(scalar) { values("0"); }'
                check = f'timing() {{ related_pin : "ck"; timing_type : setup_rising; {rise} }}'
            lines.append(f"  pin({pin}) {{ direction : input; capacitance : 0; {check} }}")
        for pin in self.outputs.get(cell, {}).values():
            arcs = [
                f'timing() {{ related_pin : "{a}"; timing_sense : positive_unate; {zero} }}'
                for a, b, _ in self.arcs.get(cell, [])
                if b == pin
            ]
            arcs += [
                f'timing() {{ related_pin : "ck"; timing_type : rising_edge; {zero} }}'
                for b, _ in self.launch.get(cell, [])
                if b == pin
            ]
            lines.append(f"  pin({pin}) {{ direction : output; {' '.join(arcs)} }}")
        return "\n".join(lines) + " }"

    def _annotation(self, cell: int) -> str:
        delays = [f"(IOPATH {a} {b} ({ps:.3f}))" for a, b, ps in self.arcs.get(cell, [])]
        delays += [f"(IOPATH (posedge ck) {b} ({ps:.3f}))" for b, ps in self.launch.get(cell, [])]
        checks = [f"(SETUP {pin} (posedge ck) ({ps:.3f}))" for pin, ps in self.setup.get(cell, [])]
        text = f'(CELL (CELLTYPE "k{cell}") (INSTANCE c{cell})'
        text += f" (DELAY (ABSOLUTE {' '.join(delays)}))" if delays else ""
        return text + (f" (TIMINGCHECK {' '.join(checks)})" if checks else "") + ")"

    def worst(self, folder: Path) -> float:
        """ps of the longest path by `sta`."""
        self.write(folder)
        script = "read_liberty d.lib\nread_verilog d.v\nlink_design top\n"
        script += f"create_clock -name ck -period {PERIOD} ck\nread_sdf d.sdf\n"
        script += "report_checks -path_delay max -digits 4\nexit\n"
        (folder / "d.tcl").write_text(script)
        done = subprocess.run(["sta", "-exit", "d.tcl"], cwd=folder, capture_output=True, text=True)
        slack = re.search(r"(-?[\d.]+) +slack", done.stdout)
        assert slack, done.stdout[-2000:] + done.stderr[-2000:]
        return PERIOD - float(slack[1])
