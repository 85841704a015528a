"""The passes in order, and what each of them is to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..config import Config
from ..intgraph import IntGraph
from .apart import sums_apart
from .batch import batched
from .bounds import aside, bound, timing
from .columns import used_columns
from .depth_first import Limits, depth_first
from .interleave import interleaved
from .order import reorder
from .pieces import norms_in_place, pieces, when_wanted
from .row_tiling import row_tiling, waiting
from .spills import loads_ahead, spilled
from .used_rows import used_rows
from .windows import window_tiling


@dataclass(frozen=True)
class Mapping:
    """How a network, or a batch of images of it, uses the machine."""

    group: int = 1  # images of a batch whose rows go through a linear layer together
    staggered: bool = False  # every group of a batch a stage ahead of the next one; else all in turns
    halved: bool = False  # each half of a batch with routers and experts of its own, half a layer apart
    row_tiles: int = 1  # of LayerNorms and the linear layers around them
    shared_hidden: bool = False  # one buffer for the hidden rows of all experts of a layer; else they take turns with several
    ordered: bool = True  # operations reordered so that the array waits less
    piece: int | None = None  # cycles of the longest piece of an operation of the vector unit, and of the products around it
    interleave: float | None = None  # tiles in turns, so that what lives at one time takes this fraction of the scratchpad
    windows: bool = False  # attention of a few windows at a time, for the same fraction of the scratchpad as `room` or `spill`
    room: float | None = None  # depth-first tiles, so that what lives at one time takes this fraction of the scratchpad; with
    # `spill` whole values, where they take no more
    spill: float | None = None  # values in DRAM instead, so that what lives at one time takes this fraction of the scratchpad
    copies: int = 2  # of a buffer that depth-first tiles load: two is a double buffer, see `depth_first.Limits`

    def apply(self, graph: IntGraph, config: Config, batch: int) -> IntGraph:
        """The mapped graph for a batch."""
        for step in PASSES.values():
            graph = step(graph, self, config, batch)
        return graph

    def text(self, batch: int) -> str:
        """In a few words, for the build's progress."""
        parts = [f"batch of {batch} in groups of {self.group}"] if batch > 1 else ["one image"]
        parts += ["a stage apart"] if self.staggered else []
        parts += ["halves in turns"] if self.halved else []
        parts += [f"{self.row_tiles} row tiles"] if self.row_tiles > 1 else []
        parts += ["blocks of windows"] if self.windows else []
        parts += [f"pieces of {self.piece} cycles"] if self.piece is not None else []
        parts += ["blocks in turns"] if self.interleave is not None else []
        if self.room is not None:
            what = "depth-first tiles for" if self.spill is None else "whole values where they take"
            parts.append(f"{what} {self.room:.0%} of the scratchpad")
        parts += [f"values spilled to DRAM, tiles for {self.spill:.0%} of the scratchpad"] if self.spill is not None else []
        return ", ".join(parts)


def _used_rows(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    """Not where images share the weights of what is left of them, nor where tiles go depth-first: few rows end the run of layers
    that a tile goes through, and more lives at one time."""
    depth_first_tiles = mapping.room is not None and mapping.spill is None and not mapping.windows
    return graph if mapping.group > 1 or depth_first_tiles else used_rows(graph)


def _batches(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    return batched(graph, batch, mapping.group, mapping.shared_hidden, mapping.staggered, mapping.halved)


def _row_tiling(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    if mapping.row_tiles == 1:
        return graph
    return row_tiling(graph, mapping.row_tiles, waiting(graph.ops), loads=True)


def _in_place(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    return graph if mapping.piece is None else norms_in_place(graph)


def _sums(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    return sums_apart(graph, mapping.spill is not None) if mapping.windows or mapping.spill is not None else graph


def _windows(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    if not mapping.windows or mapping.room is None:
        return graph
    return window_tiling(graph, _limits(mapping.room, mapping, config), mapping.spill is None)


def _depth_first(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    """Rematerialises LayerNorms where that is faster."""
    if mapping.room is None or mapping.spill is not None:
        return graph
    return depth_first(graph, _limits(mapping.room, mapping, config), partial(bound, config=config))


def _spills(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    if mapping.spill is None:
        return graph
    limits = _limits(mapping.spill, mapping, config)
    room = None if mapping.room is None else _limits(mapping.room, mapping, config)
    return spilled(graph, limits, config, mapping.interleave is not None, room)


def _columns(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    return used_columns(graph, config.chunk, config.array_inputs, config.array_outputs)


def _limits(room: float, mapping: Mapping, config: Config) -> Limits:
    """What tiles for a fraction of the scratchpad must fit."""
    bank = int(room * config.bank_chunks)
    scales = int(room * config.scale_entries)
    return Limits(config.banks, bank, config.chunk, config.acc_rows, config.queue_entries, mapping.copies, scales)


def _pieces(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    if mapping.piece is None:
        return graph
    return when_wanted(pieces(graph, timing(config), partial(aside, config=config), mapping.piece))


def _order(graph: IntGraph, mapping: Mapping, config: Config, batch: int) -> IntGraph:
    if mapping.interleave is not None:
        limits = _limits(mapping.interleave, mapping, config)
        graph = interleaved(graph, timing(config), partial(aside, config=config), limits)
        return graph if mapping.spill is None else loads_ahead(graph, config, limits)
    if mapping.spill is not None:
        return graph
    return reorder(graph, timing(config)) if mapping.ordered else graph


PASSES: dict[str, Callable[[IntGraph, Mapping, Config, int], IntGraph]] = {
    "used rows": _used_rows,
    "batches": _batches,
    "row tiling": _row_tiling,
    "norms in place": _in_place,
    "sums apart": _sums,
    "window tiling": _windows,
    "depth-first tiling": _depth_first,
    "spills": _spills,
    "columns": _columns,
    "pieces": _pieces,
    "order": _order,
}
