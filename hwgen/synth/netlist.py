"""Mapped netlists: cells counted by type, and the longest ways from register to register in LUT levels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .families import Cell, Family, arcs

IGNORED = ("$scopeinfo",)


@dataclass(frozen=True)
class Netlist:
    """One synthesised unit, as Yosys' JSON backend writes it."""

    ports: dict[str, list]  # port -> nets
    names: dict[object, str]  # net -> the shortest name it has
    cells: dict[str, tuple[Cell, dict[str, list]]]  # cell -> (what it is, all its pins)
    max_fanout: dict[object, int] = field(default_factory=dict)  # net -> sinks, beyond which its register is to be copied

    @property
    def counts(self) -> Counter:
        """Cells by type, child units left out."""
        return Counter(cell.type for cell, _ in self.cells.values())


@dataclass(frozen=True)
class Path:
    """The longest way between two groups of registers: `count` end points of the group have one as long."""

    levels: int
    start: str
    end: str
    count: int

    def to_dict(self) -> dict:
        return {"levels": self.levels, "from": self.start, "to": self.end, "bits": self.count}


def read(text: dict, module: str) -> Netlist:
    """The module of a JSON netlist."""
    found = text["modules"][module]
    names: dict[object, str] = {}
    limits: dict[object, int] = {}
    for name, net in found["netnames"].items():
        if (limit := net.get("attributes", {}).get("max_fanout")) is not None:
            limits |= {bit: int(limit, 2) for bit in net["bits"] if not isinstance(bit, str)}
        if net.get("hide_name"):
            continue
        for i, bit in enumerate(net["bits"]):
            shown = f"{name}[{i}]" if len(net["bits"]) > 1 else name
            if bit not in names or len(shown) < len(names[bit]):
                names[bit] = shown
    cells = {}
    for name, cell in found["cells"].items():
        if cell["type"] in IGNORED:
            continue
        pins, out = cell["connections"], {p for p, way in cell.get("port_directions", {}).items() if way == "output"}
        kind = Cell(
            cell["type"],
            cell.get("parameters", {}),
            {pin: nets for pin, nets in pins.items() if pin not in out},
            {pin: nets for pin, nets in pins.items() if pin in out},
        )
        cells[name] = (kind, pins)
    return Netlist({port: p["bits"] for port, p in found["ports"].items()}, names, cells, limits)


class Flat:
    """All cells of a hierarchy on nets of one numbering."""

    def __init__(self, units: Mapping[str, Netlist]):
        self.units = units
        self.alias: list[int] = []  # union-find
        self.names: dict[int, str] = {}
        self.max_fanout: dict[int, int] = {}
        self.cells: list[tuple[str, Cell]] = []
        self.modules: list[str] = []  # the unit that each cell is of

    def net(self) -> int:
        self.alias.append(len(self.alias))
        return len(self.alias) - 1

    def find(self, net: int) -> int:
        while self.alias[net] != net:
            self.alias[net] = self.alias[self.alias[net]]
            net = self.alias[net]
        return net

    def add(self, module: str, path: str, ports: Mapping[str, list[int | str]] | None = None) -> None:
        """An instance of `module`; `ports`: the nets that its ports are connected with."""
        unit, local = self.units[module], {}

        def numbered(bits: list) -> list:
            result = []
            for bit in bits:
                if isinstance(bit, str):  # a constant
                    result.append(bit)
                else:
                    if bit not in local:
                        local[bit] = self.net()
                        self.names[local[bit]] = f"{path}.{unit.names[bit]}".strip(".") if bit in unit.names else ""
                        if bit in unit.max_fanout:
                            self.max_fanout[local[bit]] = unit.max_fanout[bit]
                    result.append(local[bit])
            return result

        for port, outside in (ports or {}).items():
            for inner, outer in zip(numbered(unit.ports[port]), outside, strict=False):
                if isinstance(inner, int) and isinstance(outer, int):
                    self.alias[self.find(inner)] = self.find(outer)
        for name, (cell, pins) in unit.cells.items():
            below = f"{path}.{name}".strip(".")
            if cell.type in self.units:
                self.add(cell.type, below, {pin: numbered(bits) for pin, bits in pins.items()})
            else:
                inputs = {pin: numbered(bits) for pin, bits in cell.inputs.items()}
                outputs = {pin: numbered(bits) for pin, bits in cell.outputs.items()}
                self.cells.append((below, Cell(cell.type, cell.parameters, inputs, outputs)))
                self.modules.append(module)

    def resolved(self, cell: Cell) -> Cell:
        """A cell on nets of which every one has one number."""
        inputs, outputs = (
            {pin: [self.find(net) if isinstance(net, int) else net for net in nets] for pin, nets in pins.items()}
            for pins in (cell.inputs, cell.outputs)
        )
        return Cell(cell.type, cell.parameters, inputs, outputs)


def paths(kind: Family, units: Mapping[str, Netlist], top: str) -> list[Path]:
    """The longest path between every two groups of registers, longest first.

    A group is a register, memory or multiplier of the RTL, its bits together. Paths start at what holds a state and at
    the ports of `top`, and end there. Levels: see `families.arcs`; fractions of a level are dropped at the end.
    """
    flat = Flat(units)
    flat.add(top, "")
    find = flat.find
    into: dict[object, list] = {}  # net -> [(net before, levels)]
    sinks: list[tuple[str, object]] = []
    source: dict[object, str] = {}
    for name, cell in flat.cells:
        ways = [
            (find(a) if isinstance(a, int) else a, find(b) if isinstance(b, int) else b, levels)
            for a, b, levels in arcs(kind, cell)
            if not isinstance(a, str) and not isinstance(b, str)
        ]
        for a, b, levels in ways:
            into.setdefault(b, []).append((a, levels))
        through_out, through_in = {b for _, b, _ in ways}, {a for a, _, _ in ways}
        outputs = [find(n) for nets in cell.outputs.values() for n in nets if isinstance(n, int)]
        held = next((flat.names[n] for nets in cell.outputs.values() for n in nets if isinstance(n, int)), "") or name
        for net in outputs:
            if net not in through_out:
                source[net] = held
        if not ways or cell.type.startswith(("RAM", "SRL", "TRELLIS")) or cell.type in kind.dsp:
            for nets in cell.inputs.values():
                sinks += [(held, find(n)) for n in nets if isinstance(n, int) and find(n) not in through_in]

    arrival, before = _arrivals(into)
    longest: dict[tuple[str, str], list] = {}
    for end, net in sinks:
        levels = math.floor(arrival.get(net, 0.0) + 1e-6)
        start = net
        while start in before:
            start = before[start]
        key = (group(source.get(start) or flat.names.get(start) or "port"), group(end))
        worst = longest.setdefault(key, [levels, 0])
        if levels > worst[0]:
            worst[:] = [levels, 0]
        worst[1] += levels == worst[0]
    found = [Path(levels, start, end, count) for (start, end), (levels, count) in longest.items()]
    return sorted(found, key=lambda p: (-p.levels, p.start, p.end))


def _arrivals(into: Mapping[object, list]) -> tuple[dict, dict]:
    """(levels at every net that logic drives, the net before it on the longest way)."""
    arrival: dict[object, float] = {}
    before: dict[object, object] = {}
    open_nets: set = set()
    for root in into:
        stack = [root]
        while stack:
            net = stack[-1]
            if net in arrival or net not in into:
                stack.pop()
                continue
            missing = [a for a, _ in into[net] if a in into and a not in arrival and a not in open_nets]
            if missing and net not in open_nets:
                open_nets.add(net)
                stack += missing
                continue
            open_nets.discard(net)
            # A net that is still open here closes a loop of logic; the loop is cut.
            before[net], arrival[net] = max(
                ((a, arrival.get(a, 0.0) + levels) for a, levels in into[net]), key=lambda way: way[1]
            )
            stack.pop()
    return arrival, before


def group(name: str) -> str:
    """A register's name without its bit, and without the number of an array's element."""
    return re.sub(r"(\[\d+\]|<\d+>)+$", "", name)
