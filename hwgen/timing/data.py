"""Delays of an FPGA family, in picoseconds: one TOML file each, whose every table names the source of its numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ..errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCENARIOS = ("optimistic", "likely", "pessimistic")
FILES = {"ultrascale+": "xcup", "7-series": "xc7", "ecp5": "ecp5"}
_TABLES = ("clock", "ff", "lut", "mux", "carry", "lutram", "dsp", "bram", "net", "global", "die")


@dataclass(frozen=True)
class Delays:
    """The tables of one family; see the comments in the file for what each number is."""

    family: str
    tables: Mapping[str, Mapping[str, Any]]

    def __getitem__(self, table: str) -> Mapping[str, Any]:
        return self.tables[table]

    def kind(self, cell: str) -> str:
        """The table of a cell type; `invert` for an inverter, "" for what has no delay (constants, buffers, pads)."""
        if cell.startswith("LUT"):
            return "lut"
        if cell == "INV":
            return "invert"
        for name, table in self.tables.items():
            if cell.startswith(tuple(table.get("types", ()))):
                return name
        return ""

    def net(self, scenario: int, distance: float, fanout: int, block: bool = False) -> float:
        """Picoseconds of a routed wire over `distance` tiles (rows and columns of the floorplan) to one of `fanout` sinks;
        `block`: from or to a multiplier or memory, whose pins lie farther from the wires than a slice's."""
        net = self.tables["net"]
        if fanout > self.tables["global"]["fanout"]:
            return float(self.tables["global"]["delay"])
        tiles = net["length"][scenario] * distance + net["local"][scenario] * (fanout + 1).bit_length()
        near = min(tiles, net["near"])
        base = net["base"][scenario] + (net["block"][scenario] if block else 0)
        return float(base + net["tile"][scenario] * near + net["far"][scenario] * (tiles - near))

    def clock(self, scenario: int) -> float:
        """Picoseconds of a period that skew and uncertainty take."""
        clock = self.tables["clock"]
        return float(clock["uncertainty"][scenario] + clock["skew"][scenario])


def delays(family: str) -> Delays:
    """The delays of a board's family. Raises UserError for one that has no file."""
    if family not in FILES:
        raise UserError(f"no delays for family {family!r}; known are {', '.join(sorted(FILES))}")
    text = files(__package__).joinpath(f"{FILES[family]}.toml").read_text(encoding="utf-8")
    return parse(family, text)


def parse(family: str, text: str) -> Delays:
    """A family's file. Raises ValueError for a table that is missing or does not name its source."""
    tables = tomllib.loads(text)
    for name in _TABLES:
        if name not in tables:
            raise ValueError(f"{family}: no table [{name}]")
    for name, table in tables.items():
        if not table.get("source"):
            raise ValueError(f"{family}: table [{name}] names no source")
    return Delays(family, tables)
