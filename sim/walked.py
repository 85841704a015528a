"""What instructions share: the machine's memories, the rows of a walk, the faults of a program that asks for what cannot be."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hwgen import isa
from hwgen.config import Config
from hwgen.isa import INDEX_BITS
from hwgen.walks import ZERO_ROW, Walk

Array = np.ndarray
Write = tuple[Array, Array, Array]  # memory, indices, values


class Memories(Protocol):
    """Scratchpad and scale memory of a machine, and where rows lie in them: see `hwgen.sim.machine.Machine`."""

    config: Config
    scratch: Array
    scale: Array

    def rows(self, address: int, pitch: int, rows: Array, columns: int) -> Array:
        """Indices into `scratch` of elements 0..columns of the given rows."""

    def scales(self, address: int, rows: Array) -> Array:
        """Indices into `scale` of these entries behind an address."""


class MachineFault(Exception):
    """The program asks for what the machine cannot do: an address outside memory, a deadlock, weight words left over."""


class DramFault(MachineFault):
    """An address outside DRAM: hardware gets an error response."""


def walk_rows(fields: isa.WalkFields, rows: int) -> tuple[Array, Array, Array]:
    """Of a walk of so many rows: input rows [taps, rows] (0 beyond the border), whether they are inside it, output rows."""
    try:
        walk = Walk.of(fields, rows)
    except ValueError as error:
        raise MachineFault(str(error)) from None
    x = walk.x_rows()
    inside = (x != ZERO_ROW) | (fields.border != isa.Border.ZERO)
    return np.where(inside, x, 0) % (1 << INDEX_BITS), inside, walk.y_rows() % (1 << INDEX_BITS)
