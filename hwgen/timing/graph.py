"""The timing graph of a mapped design: registers, the ways between them, and which wires stay inside a slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..synth.families import Cell
from ..synth.netlist import Flat
from .absorb import absorb, port_of, registered
from .data import Delays

CLOCKS = set("C CLK WCLK CLKARDCLK CLKBWRCLK WCK CLKA CLKB CLKR CLKW CLK0 CLK1 CLK2 CLK3".split())
_DATA_PINS = ("I0", "I1", "ALUT", "BLUT", "D0", "D1")


@dataclass
class Way:
    """From a net through a cell to the net `ways` lists it under: `ps` of the cell; `routed`: the wire to it has a delay."""

    net: int
    ps: float
    cell: int
    pin: str
    routed: bool = True


@dataclass
class Graph:
    """Nets are numbers. A net without `starts` and without `ways` is a constant, a clock, or comes from outside."""

    delays: Delays
    names: list[str] = field(default_factory=list)  # of cells
    kinds: list[str] = field(default_factory=list)  # cell types
    units: list[str] = field(default_factory=list)  # the unit that each cell is of
    cells: list[Cell] = field(default_factory=list)
    net_names: dict[int, str] = field(default_factory=dict)
    driver: dict[int, int] = field(default_factory=dict)
    fanout: dict[int, int] = field(default_factory=dict)
    starts: dict[int, float] = field(default_factory=dict)  # net -> clock to out
    ways: dict[int, list[Way]] = field(default_factory=dict)
    ends: list[Way] = field(default_factory=list)  # `ps`: the setup time
    chain_outs: set[int] = field(default_factory=set)  # carries out of a whole cell, which need another to come to a wire
    notes: dict[str, int] = field(default_factory=dict)  # what was modelled otherwise than in the netlist -> how often

    @staticmethod
    def inputs(cell: Cell) -> list[Any]:
        """The nets that a cell reads, clocks left out."""
        return [net for pin, nets in cell.inputs.items() if pin not in CLOCKS for net in nets]


def build(delays: Delays, flat: Flat) -> Graph:
    """The graph of a flattened design."""
    return assemble(delays, flat, *absorb(delays, flat))


def assemble(
    delays: Delays, flat: Flat, names: list[str], kinds: list[str], units: list[str], cells: list[Cell], notes: dict[str, int]
) -> Graph:
    """The graph of cells on the nets of `flat`, as they are."""
    graph = Graph(delays, names, kinds, units, cells, notes=notes)
    for net, name in flat.names.items():
        kept = graph.net_names.setdefault(flat.find(net), name)
        if name and (not kept or len(name) < len(kept)):
            graph.net_names[flat.find(net)] = name
    builder = _Builder(graph, flat)
    for index, cell in enumerate(cells):
        for nets in cell.outputs.values():
            for net in nets:
                if isinstance(net, int):
                    graph.driver[net] = index
        for pin, nets in cell.inputs.items():
            if pin not in CLOCKS:
                for net in nets:
                    if isinstance(net, int):
                        graph.fanout[net] = graph.fanout.get(net, 0) + 1
    for index, cell in enumerate(cells):
        kind = delays.kind(cell.type)
        if kind and kind != "carry":
            getattr(builder, f"_{kind}")(index, cell)
    builder.carries()
    return graph


class _Builder:
    """Adds cells to a graph, one method a table of the family's file."""

    def __init__(self, graph: Graph, flat: Flat):
        self.graph, self.delays, self.flat = graph, graph.delays, flat
        self.packed: dict[int, int] = {}  # net -> flip-flops placed beside its driver
        self.claimed: set[int] = set()  # LUT outputs that stand before a carry

    def way(self, start: object, end: object, ps: float, cell: int, pin: str, routed: bool = True) -> None:
        if isinstance(start, int) and isinstance(end, int):
            self.graph.ways.setdefault(end, []).append(Way(start, ps, cell, pin, routed))

    def end(self, net: object, ps: float, cell: int, pin: str, routed: bool = True) -> None:
        if isinstance(net, int):
            self.graph.ends.append(Way(net, ps, cell, pin, routed))

    def every(self, index: int, cell: Cell, pins: tuple[str, ...], ps: float) -> None:
        """From the pins that start so to every output: by a net of its own, so that ways are a sum and no product."""
        middle = self.flat.net()
        self.graph.driver[middle] = index
        for pin, nets in cell.inputs.items():
            if pin.startswith(pins):
                for net in nets:
                    self.way(net, middle, ps, index, pin)
        for pin, nets in cell.outputs.items():
            for net in nets:
                self.way(middle, net, 0.0, index, pin, routed=False)

    def start_all(self, cell: Cell, ps: float) -> None:
        for nets in cell.outputs.values():
            for net in nets:
                if isinstance(net, int):
                    self.graph.starts[net] = ps

    def ends_of(self, index: int, cell: Cell, setups: Mapping[str, float]) -> None:
        """Setup times by the longest start of a pin's name."""
        for pin, nets in cell.inputs.items():
            known = [name for name in setups if pin.startswith(name)]
            if known and pin not in CLOCKS:
                for net in nets:
                    self.end(net, setups[max(known, key=len)], index, pin)

    def _lut(self, index: int, cell: Cell) -> None:
        for nets in cell.outputs.values():
            for out in nets:
                for pin, ins in cell.inputs.items():
                    for net in ins:
                        self.way(net, out, 0.0, index, pin)  # its delay depends on which input is the last

    def _invert(self, index: int, cell: Cell) -> None:
        for pin, nets in cell.inputs.items():  # what it drives takes the inversion in
            self.way(nets[0], cell.outputs["O"][0], 0.0, index, pin, routed=False)

    def _mux(self, index: int, cell: Cell) -> None:
        table = self.delays["mux"]
        data = table.get("data_of", {}).get(cell.type, table["data"])
        (out,) = (nets[0] for nets in cell.outputs.values())
        for pin, nets in cell.inputs.items():
            inside = pin in _DATA_PINS
            self.way(nets[0], out, data if inside else table["select"], index, pin, routed=not inside)

    def _ff(self, index: int, cell: Cell) -> None:
        table = self.delays["ff"]
        self.start_all(cell, table["launch"]["Q"])
        for pin, nets in cell.inputs.items():
            if pin in CLOCKS or pin not in table["capture"] or not isinstance(nets[0], int):
                continue
            net, ps, routed = nets[0], table["capture"][pin], True
            if pin in ("D", "DI") and net in self.graph.driver:
                before = self.graph.kinds[self.graph.driver[net]]
                near = [name for name in table["packed"] if before.startswith(name)]
                if near and self.packed.get(net, 0) < table["per_driver"]:
                    self.packed[net] = self.packed.get(net, 0) + 1
                    ps, routed = table["packed"][near[0]], False
            self.end(net, ps, index, pin, routed)

    def _lutram(self, index: int, cell: Cell) -> None:
        table = self.delays["lutram"]
        self.ends_of(index, cell, table["capture"])
        ranks = self.delays["lut"]["delays"]
        self.every(index, cell, tuple(table["read"]), ranks[len(ranks) // 2])
        self.start_all(cell, table["launch"])

    def _shift(self, index: int, cell: Cell) -> None:
        table = self.delays["shift"]
        self.ends_of(index, cell, table["capture"])
        ranks = self.delays["lut"]["delays"]
        self.every(index, cell, tuple(table["read"]), ranks[len(ranks) // 2])
        self.start_all(cell, table["launch"])

    def _bram(self, index: int, cell: Cell) -> None:
        self._memory(index, cell, self.delays["bram"])

    def _uram(self, index: int, cell: Cell) -> None:
        self._memory(index, cell, self.delays["uram"])

    def _memory(self, index: int, cell: Cell, table: Mapping[str, Any]) -> None:
        self.ends_of(index, cell, table["capture"])
        for pin, nets in cell.outputs.items():
            launch = table["launch_reg" if registered(table, cell, port_of(pin)) else "launch"]
            known = [name for name in launch if pin.startswith(name)]
            for net in nets:
                if isinstance(net, int) and known:
                    self.graph.starts[net] = launch[max(known, key=len)]

    def _dsp(self, index: int, cell: Cell) -> None:
        table, regs = self.delays["dsp"], dsp_registers(cell)
        last = "reg" if regs["P"] else "m" if regs["M"] else "in" if regs["A"] or regs["B"] else ""
        for pin, nets in cell.outputs.items():
            ps = table["cascade_reg" if pin.startswith("PCOUT") and regs["P"] else f"p_{last}"] if last else 0
            for net in nets:
                if last and isinstance(net, int):
                    self.graph.starts[net] = ps
        through: list[tuple[str, float]] = []
        for pin, nets in cell.inputs.items():
            letter = pin[0]
            if pin in CLOCKS:
                continue
            if pin.startswith(("PCIN", "ACIN", "BCIN", "CARRYCASCIN", "MULTSIGNIN")):
                for net in nets:
                    self.end(net, table["cascade_p"], index, pin, routed=False)
                continue
            if len(pin) == 1 or pin[1:].isdigit() or pin.startswith(("SIGNED", "SOURCE")):
                own, adds = regs.get(letter, regs["A"]), letter == "C" and cell.type.startswith("DSP")
                ps = table["in_reg"] if own else table["in_m"] if regs["M"] and not adds else None
                if ps is None and regs["P"]:
                    ps = table["add_p" if adds else "in_p"]
                if ps is None:
                    through.append((pin, table["add_through" if adds else "through"]))
                    continue
            else:
                ps = table["control"]
            for net in nets:
                self.end(net, ps, index, pin)
        for pin, ps in through:
            self.every(index, Cell(cell.type, {}, {pin: cell.inputs[pin]}, cell.outputs), (pin,), ps)

    # --- carry chains -------------------------------------------------------------------------------------------------
    def carries(self) -> None:
        """Chains, cut into the pieces that a slice holds: Yosys writes UltraScale+'s eight bits as two of four."""
        cells = self.graph.cells
        carry = {i for i, cell in enumerate(cells) if self.delays.kind(cell.type) == "carry"}
        after: dict[int, int] = {}
        heads = []
        for index in carry:
            link = _one(cells[index], ("CI", "CIN"))
            before = self.graph.driver.get(link) if isinstance(link, int) else None
            if before in carry:
                after[before] = index
            else:
                heads.append(index)
        for head in sorted(heads):
            chain: list[int] = []
            index = head
            while True:
                chain.append(index)
                if index not in after:
                    break
                index = after[index]
            if "DI" in cells[head].inputs:
                size = self.delays["carry"]["bits"] // len(cells[head].inputs["DI"])
                for k in range(0, len(chain), size):
                    self._carry8(chain[k : k + size])
            else:
                for index in chain:
                    self._ccu2c(index)

    def _carry8(self, group: list[int]) -> None:
        """One slice's carry, of one or two cells. A chain that two cells stand for has no net of its own between them."""
        table, cells = self.delays["carry"], [self.graph.cells[i] for i in group]
        columns: list[object] = [net for c in cells for net in c.outputs["O"]]
        width = table["bits"]
        columns += [None] * (width - len(columns)) + [net for c in cells for net in c.outputs["CO"]]
        inputs: dict[str, tuple[object, int]] = {"CI": (cells[0].inputs["CI"][0], group[0])}
        inputs["CYINIT"] = (cells[0].inputs.get("CYINIT", ["0"])[0], group[0])
        for pin in ("S", "DI"):
            nets = [(net, group[k]) for k, c in enumerate(cells) for net in c.inputs[pin]]
            inputs |= {f"{pin}{i}": entry for i, entry in enumerate(nets)}
        for name, *delays in table["rows"]:
            net, cell = inputs.get(name, (None, 0))
            if not isinstance(net, int):
                continue
            extra, routed = self._entry(name, net)
            for out, ps in zip(columns, delays, strict=False):
                if ps >= 0 and out is not None:
                    self.way(net, out, ps + extra, cell, name, routed)

    def _entry(self, name: str, net: int) -> tuple[float, bool]:
        """(delay before a carry's input, whether its wire is routed)."""
        table = self.delays["carry"]
        driver = self.graph.driver.get(net)
        kind = self.delays.kind(self.graph.kinds[driver]) if driver is not None else ""
        if name == "CI":
            return (table["cascade"], False) if kind == "carry" else (0, True)
        if name == "CYINIT":
            return table["outside_di"], True
        if kind == "lut" and (name.startswith("S") or self.graph.fanout[net] == 1) and net not in self.claimed:
            self.claimed.add(net)
            return table["enter"], False
        return table["outside" if name.startswith("S") else "outside_di"], True

    def _ccu2c(self, index: int) -> None:
        cell = self.graph.cells[index]
        columns = [cell.outputs[pin][0] if cell.outputs.get(pin) else None for pin in ("S0", "S1", "COUT")]
        self.graph.chain_outs.update(net for net in columns[2:] if isinstance(net, int))
        for name, *delays in self.delays["carry"]["rows"]:
            pins = [name] if name == "CIN" else [f"{letter}{name}" for letter in "ABCD"]
            for pin in pins:
                extra = self.delays["carry"]["pins"].get(pin[0], 0) if name != "CIN" else 0
                for net in cell.inputs.get(pin, []):
                    before = self.graph.driver.get(net) if isinstance(net, int) else None
                    chained = name == "CIN" and before is not None and self.graph.kinds[before] == cell.type
                    into = self.delays["carry"]["chain_in"] if name == "CIN" and not chained else 0
                    for out, ps in zip(columns, delays, strict=True):
                        if ps >= 0:
                            self.way(net, out, ps + extra + into, index, pin, routed=not chained)


def _one(cell: Cell, pins: tuple[str, ...]) -> object:
    return next((cell.inputs[pin][0] for pin in pins if cell.inputs.get(pin)), None)


def dsp_registers(cell: Cell) -> dict[str, bool]:
    """Which registers of a multiplier are in use: A, B, C, D, M, P."""
    if cell.type.startswith("DSP"):
        found = {letter: "1" in str(cell.parameters.get(f"{letter}REG", "1"))[-2:] for letter in "ABCDMP"}
        if "1" in str(cell.parameters.get("ADREG", "0"))[-2:] and found["A"] and found["D"]:
            found["M"] = found["M"] or found["P"]
        return found
    pieces = {"A": "INPUTA", "B": "INPUTB", "S": "INPUTA", "M": "PIPELINE", "P": "OUTPUT"}
    found = {k: str(cell.parameters.get(f"REG_{name}_CLK", "NONE")).strip() != "NONE" for k, name in pieces.items()}
    return {**found, "C": False, "D": False}
