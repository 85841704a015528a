"""Which mapping of a network runs fastest on a Config: some are scheduled, the cycle model chooses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .. import cost
from ..config import Config
from ..dram import Dram
from ..errors import Shortage, UserError
from ..intgraph import IntGraph, RouteTokens
from ..program import Program
from ..schedule import attempt, schedule, shortages
from ..schedule.layout import layout_of
from ..schedule.liveness import Access, buffer_accesses, final_reads, maximum_accesses, spans
from .passes import Mapping
from .window_runs import has_windows

ROW_TILES = (2, 3)  # numbers of row tiles that are tried where one image runs alone
ROOM = ((0.98, 0.9), (0.8, 0.65), (0.5,))  # fractions of the scratchpad that depth-first tiles are made for, until one fits
SPILLS = ((0.9, 0.8, 0.7), (0.55, 0.4), (0.25, 0.1))  # the same for blocks of what lies in DRAM
STAGGERED = 4  # images of a batch from which on they are tried a stage apart
COPIES = (2, 3)  # that are tried of what depth-first tiles load
WINDOWS = (0.95, 0.8, 0.65, 0.5)  # the same where windows are tiled, until one fits
INTERLEAVED = ((0.95, 0.92), (0.95, 0.8), (0.8, 0.92))  # such a fraction, and that for tiles in turns
PIECED = (  # blocks of windows, such a fraction, cycles of a piece
    (False, 0.75, 2500),
    (False, 0.65, 4000),
    (True, 0.8, 2500),
    (True, 0.95, 2500),
    (True, 0.95, 4000),
)
PIECES_ROOM = 0.92  # the fraction for pieces in turns
FIXED = ("norm_columns", "max_experts")  # fields of a Config that every mapping asks as much of
MAP_SPILLS = (0.5, 0.35, 0.2)  # fractions that are tried in turn where maps go through in bands
LOWER = 0.84  # of such a fraction: blocks that leave more room for others beside them
TURNS = 0.9  # and that for their blocks in turns
KEPT = Mapping(spill=MAP_SPILLS[0], interleave=TURNS, room=0.8, windows=True)  # whole values where these find room
KEPT_PIECE = 4000  # cycles of a piece there
ENDS = tuple(Mapping(shared_hidden=True, ordered=False, windows=True, room=room) for room in (WINDOWS[-1], WINDOWS[0]))
MAX_BATCH = 64
FIRST_SMALL = Mapping(shared_hidden=True, ordered=False, room=ROOM[0][0], copies=COPIES[0])


def check_batch(batch: int) -> int:
    """`batch`, or a UserError where no program can take so many images."""
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch={batch}: a program takes 1 to {MAX_BATCH} images")
    return batch


def candidates(batch: int, routed: bool = True) -> Iterator[Mapping]:
    """The ones that are tried, in the order of preference where they are equally fast. routed: the network has experts."""
    if batch == 1:
        yield from (Mapping(row_tiles=tiles) for tiles in (1, *ROW_TILES))
        yield Mapping(ordered=False)
        return
    for group in (g for g in (4, 2, 1) if batch % g == 0):
        for shared_hidden in (False, True):
            yield Mapping(group=group, shared_hidden=shared_hidden)
    if batch >= STAGGERED:
        yield from (Mapping(staggered=True, shared_hidden=shared_hidden) for shared_hidden in (False, True))
        if routed and batch % 2 == 0:
            yield Mapping(staggered=True, shared_hidden=True, halved=True)
    yield Mapping(shared_hidden=True, ordered=False)


def small_candidates() -> Iterator[list[Mapping]]:
    """Those that need little memory, for Configs that no other fits: the less room they take the slower they are."""
    for rooms in ROOM:
        choices = itertools.product(rooms, (False, True), COPIES)
        yield [Mapping(shared_hidden=True, ordered=o, room=room, copies=copies) for room, o, copies in choices]


def window_candidates() -> Iterator[list[Mapping]]:
    """Those for maps that none of these fits: few, as attention by windows has thousands of operations."""
    base = Mapping(shared_hidden=True, ordered=False, windows=True)
    turns = [replace(base, room=room, interleave=share) for room, share in INTERLEAVED]
    for room in WINDOWS:
        yield [replace(base, room=room), *turns]
        turns = []


def piece_candidates() -> Iterator[Mapping]:
    """Those that may be faster where one of these two kinds fits: convolutions and norms in pieces beside the array."""
    base = Mapping(shared_hidden=True, ordered=False, interleave=PIECES_ROOM)
    for windows, room, piece in PIECED:
        yield replace(base, windows=windows, room=room, piece=piece)


def spill_candidates(maps: bool) -> Iterator[list[Mapping]]:
    """Those that keep in DRAM what does not fit, for networks that no other fits; of maps few, as such graphs are long."""
    if maps:
        for room in MAP_SPILLS:
            kept = replace(KEPT, spill=room)
            pieced = replace(kept, piece=KEPT_PIECE)
            yield [pieced, kept, replace(pieced, spill=room * LOWER)]
            yield [Mapping(spill=room, interleave=TURNS)]
            yield [Mapping(spill=room)]
    for rooms in SPILLS:
        for copies in (2, 1):  # one leaves no room for what comes next: it takes longer
            yield [Mapping(spill=room, copies=copies) for room in rooms]


@dataclass(frozen=True)
class Choice:
    """A mapping that fits, the estimate of every task with it, and the tasks' graphs so mapped."""

    mapping: Mapping
    estimates: dict[str, cost.Estimate]
    graphs: dict[str, IntGraph]

    @property
    def cycles(self) -> float:
        """Of all tasks."""
        return sum(run.cycles for run in self.estimates.values())


def search(
    graphs: dict[str, IntGraph], config: Config, memory: Dram, batch: int = 1, quick: bool = False, spills: bool = False
) -> Choice | UserError:
    """The mapping with the fewest estimated cycles, summed over all tasks, or what the smallest one is short of.

    memory: the DRAM that the estimate counts on. quick: the first mapping that fits. spills: rather values in DRAM than
    nothing that fits.
    """
    check_batch(batch)
    for graph in graphs.values():
        for short in shortages(graph, config):
            if short.field in FIXED:
                return short
    maps = any(has_windows(graph) for graph in graphs.values())
    large = batch == 1 and _too_large(graphs, config)
    routed = any(isinstance(op, RouteTokens) for graph in graphs.values() for op in graph.ops)
    groups: list[list[Mapping]] = [] if large else [list(candidates(batch, routed))]
    if not (maps and large and _hopeless(graphs, config)):
        groups += [*small_candidates(), *(window_candidates() if maps else ())]
    found = _first(groups, graphs, config, memory, batch, quick)
    if not spills or (isinstance(found, Choice) and not (maps and large)):
        return found
    other = _first(spill_candidates(maps), graphs, config, memory, batch, quick)
    if isinstance(found, Choice) and isinstance(other, Choice):
        return min(found, other, key=lambda choice: choice.cycles)
    return found if isinstance(found, Choice) else other


def _first(
    groups: Iterable[list[Mapping]],
    graphs: dict[str, IntGraph],
    config: Config,
    memory: Dram,
    batch: int,
    quick: bool,
) -> Choice | UserError:
    """The fastest of the first group of which one fits, or what the last one is short of."""
    failure = UserError("no mapping is left to be tried")
    if quick:
        groups = ([mapping] for group in groups for mapping in group)
    hopeless = blocked = False
    for group in groups:
        best: Choice | None = None
        for mapping in group:
            if (blocked if mapping.windows else hopeless) and mapping.spill is None:
                continue
            before, found = failure, _tried(mapping, graphs, config, memory, batch)
            if isinstance(found, UserError):
                failure = found
                if isinstance(failure, Shortage) and failure.short and mapping == FIRST_SMALL:
                    hopeless = True  # tiles that found no room are as small as they get: less room does not help
                blocked = mapping.windows and str(failure) == str(before)  # smaller blocks leave the same without room
            elif best is None or found.cycles < best.cycles:
                best = found
            elif mapping.spill is not None and mapping.spill < (best.mapping.spill or 0):  # less room takes longer still
                break
        if best is None:
            continue
        if batch > 1 or quick or best.mapping.room is None or best.mapping.spill is not None:
            return best
        walked = any(op.walk is not None for graph in graphs.values() for op in graph.ops)
        pieced = [m for m in piece_candidates() if walked and not (hopeless and not m.windows)]
        tried = (_tried(mapping, graphs, config, memory, batch) for mapping in pieced)
        return min([best, *(choice for choice in tried if isinstance(choice, Choice))], key=lambda choice: choice.cycles)
    return failure


def _tried(mapping: Mapping, graphs: dict[str, IntGraph], config: Config, memory: Dram, batch: int) -> Choice | UserError:
    """A mapping with its estimates, or what it is short of."""
    made = {task: mapping.apply(g, config, batch) for task, g in graphs.items()}
    program = attempt(made, config)
    if isinstance(program, UserError):
        return program
    runs = {name: cost.estimate(task.instructions, config, memory, task.queues) for name, task in program.tasks.items()}
    return Choice(mapping, runs, made)


def no_room(graph: IntGraph, config: Config) -> bool:
    """Whether no order of placing what a mapped graph's operations work on, one at a time, finds room for it."""
    size = {b.name: layout_of(b, config).pitch * b.rows for b in graph.buffers.values() if not b.dram}
    rows = {name: graph.buffers[name].rows for name in size}

    def most(accesses: dict[str, list[Access]], sizes: dict[str, int], final: dict[str, set[int]]) -> int:
        """Of what lives while an operation works."""
        change = [0] * (len(graph.ops) + 1)
        for name in accesses.keys() & sizes.keys():
            for span in spans(name, accesses[name], final.get(name, set())):
                change[span.use] += sizes[name]
                change[span.last + 1] -= sizes[name]
        return max(itertools.accumulate(change))

    if max(size.values(), default=0) > config.bank_chunks:
        return True
    chunks, entries = most(buffer_accesses(graph), size, final_reads(graph)), most(maximum_accesses(graph), rows, {})
    return chunks > config.scratch_chunks or entries > config.scale_entries


def _hopeless(graphs: dict[str, IntGraph], config: Config) -> bool:
    """Whether neither end of what is tried with windows finds room: blocks for little room may leave whole what those for more
    room cut."""
    return all(any(no_room(end.apply(graph, config, 1), config) for graph in graphs.values()) for end in ENDS)


def _too_large(graphs: dict[str, IntGraph], config: Config) -> bool:
    """Whether a buffer is larger than a bank, so that nothing fits that leaves buffers as they are."""
    sizes = (layout_of(b, config).pitch * b.rows for graph in graphs.values() for b in graph.buffers.values())
    return max(sizes, default=0) > config.bank_chunks


def choose(graphs: dict[str, IntGraph], config: Config, memory: Dram, batch: int = 1) -> Choice:
    """What `search` finds. Raises UserError where no mapping fits."""
    found = search(graphs, config, memory, batch, spills=True)
    if isinstance(found, UserError):
        raise found
    return found


def mapped(graphs: dict[str, IntGraph], config: Config, mapping: Mapping, batch: int = 1) -> Program:
    """The program of a mapping. Raises UserError where it does not fit the Config."""
    return schedule({task: mapping.apply(graph, config, batch) for task, graph in graphs.items()}, config)
