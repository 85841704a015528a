"""Registers that Yosys leaves outside multipliers and memories, and that the vendor's tool takes in; ends of shift registers.

Yosys' `xcup` leaves every register of a DSP48E2, RAMB36E2 or URAM288 in flip-flops. Vivado uses those of the block where every
bit of a port has one register and nothing else reads what lies between. The same is done here, on the flattened netlist.
Of a shift register in LUTs Vivado makes the last stage a flip-flop (UG901, SRL_STYLE), which then lies where its loads are, or
goes into their block; Yosys leaves it in the LUT.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..synth.families import Cell
from ..synth.netlist import Flat
from .data import Delays

_REGISTERS = ("AREG", "BREG", "CREG", "DREG", "ADREG", "MREG", "PREG")
_CONTROL = ("C", "CE", "R", "S", "CLR", "PRE")

_PORT = re.compile(r"DO(?:UT)?P?_?([AB])")


class _Absorber:
    def __init__(self, delays: Delays, flat: Flat):
        self.delays, self.flat = delays, flat
        self.names, self.units = [name for name, _ in flat.cells], [*flat.modules]
        self.cells: list[Cell | None] = [flat.resolved(cell) for _, cell in flat.cells]
        self.kinds = [delays.kind(cell.type) for cell in self.cells if cell is not None]
        self.sinks: dict[int, list[tuple[int, str]]] = {}
        self.driver: dict[int, int] = {}
        for index, cell in enumerate(self.cells):
            if cell is not None:
                for pin, nets in cell.inputs.items():
                    for net in nets:
                        if isinstance(net, int):
                            self.sinks.setdefault(net, []).append((index, pin))
                for nets in cell.outputs.values():
                    for net in nets:
                        if isinstance(net, int):
                            self.driver[net] = index
        self.notes: Counter[str] = Counter()

    def cell(self, index: int) -> Cell:
        found = self.cells[index]
        assert found is not None
        return found

    def after(self, nets: list[Any]) -> dict[int, int] | None:
        """Net -> the flip-flop behind it, if all used nets have just that one and all of these share their controls."""
        used = [net for net in nets if isinstance(net, int) and net in self.sinks]
        found = {}
        for net in used:
            if len(self.sinks[net]) != 1:
                return None
            index, pin = self.sinks[net][0]
            if pin != "D" or self.kinds[index] != "ff" or self.cells[index] is None:
                return None
            found[net] = index
        controls = {tuple(tuple(self.cell(i).inputs.get(pin, ())) for pin in _CONTROL) for i in found.values()}
        return found if found and len(controls) == 1 else None

    def move(self, index: int, pins: list[str]) -> bool:
        """Take the flip-flops behind the outputs `pins` of a cell into it."""
        cell = self.cell(index)
        behind = self.after([net for pin in pins for net in cell.outputs[pin]])
        if behind is None:
            return False
        outputs = dict(cell.outputs)
        for pin in pins:
            outputs[pin] = [
                self.cell(behind[net]).outputs["Q"][0] if net in behind else net for net in cell.outputs[pin]
            ]
        for gone in behind.values():
            for net in self.cell(gone).outputs["Q"]:
                self.driver[net] = index
            self.cells[gone] = None
        self.cells[index] = replace(cell, outputs=outputs)
        return True

    def shifted(self, index: int) -> bool:
        """Whether everything behind a multiplier is a shift register, which begins with the register that the multiplier has."""
        used = [net for net in self.cell(index).outputs["P"] if isinstance(net, int) and net in self.sinks]
        sinks = [sink for net in used for sink in self.sinks[net]]
        return bool(sinks) and all(self.kinds[cell] == "shift" and pin == "D" for cell, pin in sinks)

    def set(self, index: int, name: str, value: str) -> None:
        cell = self.cell(index)
        self.cells[index] = replace(cell, parameters={**cell.parameters, name: value})

    def shift(self, index: int) -> None:
        """Make the last stage of a shift register of fixed length a flip-flop."""
        cell = self.cell(index)
        address = [net for pin, nets in cell.inputs.items() if pin.startswith("A") for net in nets]
        (q,) = cell.outputs["Q"]
        if any(isinstance(net, int) for net in address) or q not in self.sinks:
            return
        before = self.flat.net()
        self.cells[index] = replace(cell, outputs={**cell.outputs, "Q": [before]})
        ff = Cell("FDRE", {}, {"C": cell.inputs["CLK"], "CE": cell.inputs["CE"], "D": [before], "R": ["0"]}, {"Q": [q]})
        last = len(self.cells)
        self.cells.append(ff)
        self.kinds.append("ff")
        self.names.append(f"{self.names[index]}_last")
        self.units.append(self.units[index])
        self.driver |= {before: index, q: last}
        self.sinks[before] = [(last, "D")]
        self.notes[f"{cell.type}: the last stage a flip-flop"] += 1

    def memory(self, index: int) -> None:
        cell, table = self.cell(index), self.delays[self.kinds[index]]
        ports: dict[str, list[str]] = {}
        for pin in cell.outputs:
            if pin.startswith("DO"):
                ports.setdefault(port_of(pin), []).append(pin)
        for port, pins in ports.items():
            used = any(net in self.sinks for pin in pins for net in cell.outputs[pin] if isinstance(net, int))
            if not used or registered(table, cell, port):
                continue
            if self.move(index, pins):
                self.set(index, table["registers"][port], "TRUE" if self.kinds[index] == "uram" else "1")
                self.notes[f"{cell.type}: output registers taken in"] += 1
            else:
                self.notes[f"{cell.type}: outputs without their register, something reads them before it"] += 1

    def multiplier(self, index: int) -> None:
        """Input registers, then those behind the product: one makes PREG, a second MREG. A cell that has registers in use was
        instantiated with them, and stays as it is."""
        cell = self.cell(index)
        if any("1" in str(value) for name, value in cell.parameters.items() if name in _REGISTERS):
            return
        for letter in "AB":
            nets = [net for net in cell.inputs[letter] if isinstance(net, int)]
            before = {net: self.driver.get(net) for net in nets}
            whole = all(
                i is not None
                and self.kinds[i] == "ff"
                and self.cells[i] is not None
                and all(self.kinds[sink] == "dsp" and pin in "AB" for sink, pin in self.sinks[net])
                for net, i in before.items()
            )
            if nets and whole:
                # The flip-flop stays for the other multipliers that it feeds; this one has a copy of its own.
                inputs = dict(self.cell(index).inputs)
                ff = {net: self.cell(i).inputs["D"][0] for net, i in before.items() if i is not None}
                inputs[letter] = [ff.get(net, net) if isinstance(net, int) else net for net in inputs[letter]]
                for net, i in before.items():
                    self.sinks[net] = [sink for sink in self.sinks[net] if sink != (index, letter)]
                    if not self.sinks[net] and i is not None:
                        self.cells[i] = None
                self.cells[index] = replace(self.cell(index), inputs=inputs)
                self.set(index, f"{letter}REG", "1")
                self.notes[f"{cell.type}: registers of input {letter} taken in"] += 1
        for name in ("PREG", "MREG"):
            if self.shifted(index):
                self.set(index, name, "1")
                self.notes[f"{cell.type}: {name} taken in"] += 1
                break
            if not self.move(index, ["P"]):
                break
            self.set(index, name, "1")
            self.notes[f"{cell.type}: {name} taken in"] += 1


def port_of(pin: str) -> str:
    """The port, A or B, of a memory's data output; "" where it has one only."""
    found = _PORT.match(pin)
    return found[1] if found else ""


def registered(table: Mapping[str, Any], cell: Cell, port: str) -> bool:
    """Whether a memory's port has its output register."""
    value = cell.parameters.get(table["registers"].get(port, ""), "0").strip()
    return value in ("TRUE", "OUTREG") or (set(value) <= set("01") and "1" in value)


def absorb(delays: Delays, flat: Flat) -> tuple[list[str], list[str], list[str], list[Cell], dict[str, int]]:
    """(names, types, units, cells, notes) of the design with these registers where the vendor's tool puts them."""
    work = _Absorber(delays, flat)
    for index, kind in enumerate([*work.kinds]):
        if kind == "shift":
            work.shift(index)
    for index, kind in enumerate(work.kinds):
        if kind in ("bram", "uram") and delays[kind]["absorbs"]:
            work.memory(index)
        elif kind == "dsp" and delays[kind]["absorbs"]:
            work.multiplier(index)
    kept = [(i, cell) for i, cell in enumerate(work.cells) if cell is not None]
    names = [work.names[i] for i, _ in kept]
    units = [work.units[i] for i, _ in kept]
    return names, [cell.type for _, cell in kept], units, [cell for _, cell in kept], dict(work.notes)
