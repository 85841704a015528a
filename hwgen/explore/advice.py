"""What to do where a network does not fit: which resource is short and by how much, which Config or board would do.

Everything that is advised has been tried: scheduled, and counted against the part.
"""

from __future__ import annotations

from .. import boards, mapping, resources
from ..boards import Board
from ..config import Config
from ..dram import of_board
from ..errors import Shortage, UserError
from ..schedule import attempt
from .points import settings
from .space import candidates, fits, shortages, smallest
from .work import Graphs, bound, capacity, measure, raised, room

RAISES = 6  # fields that are raised one after another
TRIES = 2  # Configs of a board, beside the roomiest


def advise(graphs: Graphs, board: Board, config: Config, batch: int = 1) -> str:
    """For a `config` that the network does not fit, or that does not fit the board."""
    larger = enlarged(graphs, config, batch)
    if larger is not None and fits(larger, board):
        return f"this would do: {' '.join(settings(larger, board))}"
    found = first_fit(graphs, board, batch)
    if found is not None:
        return f"this would do: {' '.join(settings(found, board))}"
    return _lacking(board, larger) + elsewhere(graphs, board, config, batch)


def no_config(graphs: Graphs, board: Board, batch: int = 1) -> str:
    """For a board none of whose Configs holds the network: what the roomiest is short of, and a board that would do."""
    work = measure(graphs, batch)
    choices = list(candidates(work, board))
    if not choices:
        return elsewhere(graphs, board, smallest(work, board), batch)
    roomiest = max(choices, key=room)
    return _lacking(board, enlarged(graphs, roomiest, batch)) + elsewhere(graphs, board, roomiest, batch)


def _lacking(board: Board, larger: Config | None) -> str:
    """The resources that the least Config which holds the network takes too much of."""
    over = shortages(larger, board) if larger is not None else {}
    if not over:
        return ""
    text = ", ".join(f"{kind.upper()}: {used:,} needed, {usable:,} usable, {used - usable:,} short"
                     for kind, (used, usable) in over.items())  # fmt: skip
    shape = f"{larger.array_outputs} x {larger.array_inputs} array with scratchpad {larger.banks} x {larger.bank_words}"
    return f"{board.name} is too small, even a {shape} has too little of it ({text}); "


def elsewhere(graphs: Graphs, board: Board, failed: Config, batch: int = 1) -> str:
    """The smallest known board that takes the network: of those with more scratchpad than the Config that failed."""
    others = [boards.load(name) for name in boards.names() if name != board.name]
    for other in sorted(others, key=lambda b: (b.resources["dsp"] * b.macs_per_dsp, b.name)):
        own = other.make_config()
        if other.config and capacity(own) > capacity(failed) and _holds(graphs, other, own, batch):
            return f"this would do: --board {other.name}"
    return "none of the known boards takes it with the Config that it stores"


def first_fit(graphs: Graphs, board: Board, batch: int = 1) -> Config | None:
    """A Config of the board that holds the network: the fastest by its bound, or the roomiest; None if neither does."""
    work = measure(graphs, batch)
    order = sorted(dict.fromkeys(candidates(work, board)), key=lambda c: (bound(work, c, of_board(board, c)), str(c)))
    for config in [*order[:TRIES], *sorted(order, key=room)[-1:]]:
        if _holds(graphs, board, config, batch):
            return config
    return None


def enlarged(graphs: Graphs, config: Config, batch: int = 1) -> Config | None:
    """`config` with the fields raised that are too small for all rows of a run at once; None if that is not enough."""
    first = next(mapping.candidates(batch))
    for _ in range(RAISES):
        found = attempt({task: first.apply(graph, config, batch) for task, graph in graphs.items()}, config)
        if not isinstance(found, UserError):
            return config
        larger = raised(config, found) if isinstance(found, Shortage) else None
        if larger is None:
            return None
        config = larger
    return None


def _holds(graphs: Graphs, board: Board, config: Config, batch: int) -> bool:
    return isinstance(mapping.search(graphs, config, of_board(board, config), batch, quick=True), mapping.Choice)


def excess(config: Config, board: Board) -> str:
    """What a Config takes beyond the whole part, "" if nothing."""
    used = resources.estimate(config, board)
    over = {kind: used[kind] - available for kind, available in board.resources.items() if used[kind] > available}
    return ", ".join(f"{kind.upper()}: {used[kind]:,} of {board.resources[kind]:,}, {n:,} too many" for kind, n in over.items())
