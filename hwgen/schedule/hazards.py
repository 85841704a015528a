"""Wait counts: which instructions of every unit must have finished before an instruction may start.

Read after write waits always, also within a unit, because a unit may start an instruction while the one before is still
on its way through the pipeline. Write after read and write after write wait between units only: within a unit rows go
through in order, so an older instruction reads and writes before a younger one writes. A walk is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..isa import COUNT_BITS, Insn, Unit, encode
from ..walks import Walk


@dataclass(frozen=True)
class Region:
    """Addresses start + r*pitch + c for r < rows, c < width."""

    start: int
    rows: int = 1
    pitch: int = 1
    width: int = 1


def strided(table: np.ndarray, region: Region) -> np.ndarray:
    """The last axis of a table of addresses as [rows, width] of a region, a view. Raises ValueError outside the table."""
    end = region.start + (region.rows - 1) * region.pitch + region.width
    if not 0 <= region.start < end <= table.shape[-1]:
        raise ValueError(f"{region} lies outside {table.shape[-1]} addresses")
    part = table[..., region.start : end]
    strides = (*part.strides[:-1], region.pitch * part.strides[-1], part.strides[-1])
    return np.lib.stride_tricks.as_strided(part, (*table.shape[:-1], region.rows, region.width), strides)


class Hazards:
    """Last instruction of every unit that wrote and that read each address.

    size: addresses of all memories together; the caller gives every memory its own range.
    """

    def __init__(self, size: int):
        self.writes = np.zeros((len(Unit), size), np.int32)
        self.reads = np.zeros((len(Unit), size), np.int32)
        self.count = dict.fromkeys(Unit, 0)

    def issue(self, unit: Unit, reads: list[Region], writes: list[Region]) -> dict[str, int]:
        """Count one more instruction of `unit` with these accesses; returns its wait fields."""
        waits = np.zeros(len(Unit), np.int64)
        for region in reads:
            waits = np.maximum(waits, self._last(self.writes, region))
        for region in writes:
            others = np.maximum(self._last(self.writes, region), self._last(self.reads, region))
            others[unit] = 0
            waits = np.maximum(waits, others)
        self.count[unit] += 1
        if self.count[unit] >= 1 << COUNT_BITS:
            raise UserError(f"the program has more than {(1 << COUNT_BITS) - 1} instructions for unit {unit.name}")
        for region in reads:
            strided(self.reads, region)[unit] = self.count[unit]
        for region in writes:
            strided(self.writes, region)[unit] = self.count[unit]
        return {f"wait_{u.name.lower()}": int(waits[u]) for u in Unit if waits[u]}

    def everything(self) -> dict[str, int]:
        """Wait fields for all instructions issued so far."""
        return {f"wait_{u.name.lower()}": n for u, n in self.count.items()}

    def _last(self, table: np.ndarray, region: Region) -> np.ndarray:
        return strided(table, region).max(axis=(1, 2))


def walk_fields(op_name: str, walk: Walk) -> dict[str, int]:
    """The fields of a walk, or a UserError naming the operation and what does not fit them."""
    try:
        return walk.fields()
    except ValueError as error:
        raise UserError(f"{op_name}: {error}; the network is too large for the machine's instructions") from None


def fields_fit(insn: type[Insn], name: str, values: dict[str, Any]) -> Insn:
    """The instruction, or a UserError naming the operation and the field whose value it cannot hold."""
    result = insn(**values)
    try:
        encode(result)
    except ValueError as error:
        raise UserError(f"{name}: {error}; the network is too large for the machine's instructions") from None
    return result
