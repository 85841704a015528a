"""Which Config runs a network best on a board: a bound ranks all Configs that fit, the cycle model decides among the best.

`space` lists the Configs that fit the board: array shapes with memories and ports. `work` ranks them by what the network's
operations cost if each unit worked alone. The best by this bound, and some smaller ones, are scheduled and followed by the
cycle model (`points`); then come the neighbours of the fastest, as long as one of them is faster. What no other beats in
latency, images a second, share of the part and energy is the front.
"""

from __future__ import annotations

from ..boards import Board
from ..config import Config
from ..dram import of_board
from ..errors import UserError
from .advice import advise, excess, no_config
from .points import Job, Point, choose, command, front, settings, text
from .space import candidates, fits, neighbours, share, shortages, smallest
from .work import Graphs, Work, bound, capacity, measure, room
from .workers import Crew, Progress, crew, default_workers

__all__ = ["Point", "advise", "choose", "command", "default_workers", "excess", "explore", "settings", "text"]

NEIGHBOURS = 10  # of a round, the fastest by their bound
FINALISTS = 10  # fastest by their bound
SMALLER = 8  # of the others, spread over what part of the board they take
FIRST = 2  # of them that are followed before the others
ROUNDS = 3  # of neighbours of the fastest
THOROUGH = 3  # that get every mapping there is
SLACK = 1.2  # of a target, as the bound may be wrong


def explore(
    graphs: Graphs,
    board: Board,
    *,
    batches: tuple[int, ...] = (1,),
    target: float | None = None,
    workers: int = 1,
    cluster: str | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Point]:
    """The front, fastest first; every point schedules and fits the board.

    batches: images that share a run, each is tried. target: images a second to reach at small cost. workers: processes;
    cluster: address of a Dask scheduler instead. progress: told of evaluations done and asked for so far. The result does
    not depend on where it is computed. Raises UserError where no Config fits, saying what is short.
    """
    found: dict[Job, Point] = {}
    failures: list[UserError] = []
    with crew(graphs, board, workers, cluster, progress) as run:
        for batch in batches:
            _search(graphs, board, batch, target, run, found, failures)
    if not found:
        raise UserError(f"{failures[-1]}; {no_config(graphs, board, min(batches))}")
    return front(list(found.values()))


def _search(
    graphs: Graphs, board: Board, batch: int, target: float | None, run: Crew, found: dict[Job, Point], failures: list[UserError]
) -> None:
    """Add what a batch finds to `found`, or to `failures`."""
    work = measure(graphs, batch)
    configs = list(dict.fromkeys(candidates(work, board)))
    if not configs:
        failures.append(UserError(f"no array fits {board.name}: {_shortest(work, board)}"))
        return
    tried: set[Job] = set()
    here: list[Point] = []

    def follow(chosen: list[Config], quick: bool = True) -> None:
        jobs = [job for job in (Job(config, batch, quick) for config in dict.fromkeys(chosen)) if job not in tried]
        tried.update(jobs)
        for job, result in zip(jobs, run(jobs), strict=True):
            if isinstance(result, Point):
                found[job] = result
                here.append(result)
            else:
                failures.append(result)

    def best() -> Point:
        try:
            return choose(here, target)
        except UserError:
            return choose(here)

    own = [board.make_config()] if board.config and fits(board.make_config(), board) else []
    chosen = own + _finalists(configs, work, board, target, len(graphs) * batch)
    follow(chosen[:FIRST])
    if not here:  # a Config that holds too little takes long to say so: if the roomiest does, too, then all will
        follow([max(configs, key=room)])
        if not here:
            return
    follow(chosen)
    for _ in range(ROUNDS):
        before = best()
        near = sorted(neighbours(before.config, work, board), key=lambda c: bound(work, c, of_board(board, c)))
        follow(near[:NEIGHBOURS])
        if best() is before:
            break
    blocked = capacity(best().config) < work.elements  # in depth-first tiles every mapping takes several times as long
    thorough = sorted(front(here), key=lambda p: (p is not best(), p.milliseconds))[: 1 if blocked else THOROUGH]
    follow([point.config for point in thorough], quick=False)


def _finalists(configs: list[Config], work: Work, board: Board, target: float | None, images: int) -> list[Config]:
    """Those that the cycle model follows: the fastest by bound, and smaller ones that no other beats in it and in share."""
    cycles = {c: bound(work, c, of_board(board, c)) for c in configs}
    parts = {c: share(c, board) for c in configs}
    order = sorted(configs, key=lambda c: (cycles[c], parts[c], str(c)))
    least, smaller = float("inf"), []
    for config in order:
        if parts[config] < least:
            least = parts[config]
            smaller.append(config)
    if target is not None:
        limit = SLACK * images * smaller[0].clock_mhz * 1e6 / target
        smaller = [c for c in smaller if cycles[c] <= limit][::-1][:SMALLER] or smaller[:1]
    step = max(1, len(smaller) / SMALLER)
    return order[:FINALISTS] + [smaller[int(n * step)] for n in range(min(SMALLER, len(smaller)))]


def _shortest(work: Work, board: Board) -> str:
    """What the smallest machine for the network is short of."""
    try:
        least = smallest(work, board)
    except UserError as error:
        return str(error)
    over = ", ".join(f"{used - usable} {kind.upper()} ({used} needed, {usable} usable)" for kind, (used, usable) in
                     shortages(least, board).items())  # fmt: skip
    return f"the smallest array, {least.array_outputs} x {least.array_inputs}, is short of {over}"
