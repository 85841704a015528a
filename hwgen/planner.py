"""Which arrangement of a network runs fastest on a Config: some are scheduled, the cycle model chooses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import cost
from .arrange import Limits, Timing, batched, reorder, row_blocks, token_blocks
from .config import Config
from .cost.matmul import TILE_STEPS
from .cost.simulation import DISPATCH
from .dram import Dram
from .errors import Shortage, UserError
from .intgraph import IntGraph, MatMul, Multiply, Norm, Op, RouteTokens, View
from .latency import load_cycles, multiply_cycles, norm_cycles, pipeline, route_cycles
from .program import Program
from .schedule import schedule

ROW_BLOCKS = (2, 3)  # numbers of row blocks that are tried where one image runs alone
ROOM = ((0.98, 0.9), (0.8, 0.65), (0.5,))  # fractions of the scratchpad that token blocks are made for, until one fits
COPIES = (2, 3)  # that are tried of what token blocks load
BLIND = ("norm_columns", "max_experts")  # fields of a Config that every arrangement asks as much of
MAX_BATCH = 64


@dataclass(frozen=True)
class Arrangement:
    """How the images of a batch share the machine, see `arrange`."""

    group: int = 1  # images of a batch whose rows go through a linear layer together
    blocks: int = 1  # row blocks of linear layers and LayerNorms
    one_hidden: bool = False  # one buffer for the hidden rows of all experts of a layer
    ordered: bool = True  # operations reordered so that the array waits less
    room: float | None = None  # token blocks, so that what lives at one time takes this fraction of the scratchpad
    copies: int = 2  # of a buffer that token blocks load, see `arrange.Limits`

    def apply(self, graph: IntGraph, config: Config, batch: int) -> IntGraph:
        """The arranged graph for a batch."""
        graph = batched(graph, batch, self.group, self.one_hidden)
        if self.blocks > 1:
            graph = row_blocks(graph, self.blocks)
        if self.room is not None:
            bank = int(self.room * config.bank_chunks)
            limits = Limits(config.banks, bank, config.chunk, config.acc_rows, config.queue_entries, self.copies)
            graph = token_blocks(graph, limits, lambda op, rows: price(op, rows, config))
        return reorder(graph, timing(config)) if self.ordered else graph

    def text(self, batch: int) -> str:
        """In a few words, for the build's progress."""
        parts = [f"batch of {batch} in groups of {self.group}"] if batch > 1 else ["one image"]
        parts += [f"{self.blocks} row blocks"] if self.blocks > 1 else []
        parts += [f"token blocks for {self.room:.0%} of the scratchpad"] if self.room is not None else []
        return ", ".join(parts)


FIRST_SMALL = Arrangement(one_hidden=True, ordered=False, room=ROOM[0][0], copies=COPIES[0])


def check_batch(batch: int) -> int:
    """`batch`, or a UserError where no program can take so many images."""
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch={batch}: a program takes 1 to {MAX_BATCH} images")
    return batch


def arrangements(batch: int) -> Iterator[Arrangement]:
    """The ones that are tried, in the order of preference where they are equally fast."""
    if batch == 1:
        yield from (Arrangement(blocks=blocks) for blocks in (1, *ROW_BLOCKS))
        yield Arrangement(ordered=False)
        return
    for group in (g for g in (4, 2, 1) if batch % g == 0):
        for one_hidden in (False, True):
            yield Arrangement(group=group, one_hidden=one_hidden)
    yield Arrangement(one_hidden=True, ordered=False)


def small_arrangements() -> Iterator[list[Arrangement]]:
    """Those that need little memory, for Configs that no other fits: the less room they take the slower they are."""
    for rooms in ROOM:
        choices = itertools.product(rooms, (False, True), COPIES)
        yield [Arrangement(one_hidden=True, ordered=o, room=room, copies=copies) for room, o, copies in choices]


def plan(
    graphs: dict[str, IntGraph], config: Config, memory: Dram, batch: int = 1
) -> tuple[Program, Arrangement]:
    """The program with the fewest estimated cycles, summed over all tasks, and its arrangement.

    memory: the DRAM that the estimate counts on. Raises UserError where no arrangement fits the Config, with what the
    smallest one is short of.
    """
    _, arrangement = arrange(graphs, config, memory, batch)
    return arranged(graphs, config, arrangement, batch), arrangement


def arranged(graphs: dict[str, IntGraph], config: Config, arrangement: Arrangement, batch: int) -> Program:
    """The program of an arrangement."""
    return schedule({task: arrangement.apply(graph, config, batch) for task, graph in graphs.items()}, config)


def arrange(
    graphs: dict[str, IntGraph], config: Config, memory: Dram, batch: int = 1, quick: bool = False
) -> tuple[dict[str, cost.Estimate], Arrangement]:
    """The estimate of every task and the arrangement that `plan` takes; `quick`: the first one that fits.

    Raises UserError as `plan` does.
    """
    check_batch(batch)
    failure: UserError | None = None
    groups: Iterable[list[Arrangement]] = itertools.chain([list(arrangements(batch))], small_arrangements())
    if quick:
        groups = ([arrangement] for group in groups for arrangement in group)
    for candidates in groups:
        best: tuple[float, dict[str, cost.Estimate], Arrangement] | None = None
        for arrangement in candidates:
            try:
                shapes = {task: arrangement.apply(g, config, batch) for task, g in graphs.items()}
                program = schedule(shapes, config, contents=False)
            except UserError as error:
                failure = error
                if isinstance(error, Shortage) and (error.field in BLIND or error.short and arrangement == FIRST_SMALL):
                    raise  # token blocks that found no room are as small as they get: less room does not help
                continue
            runs = {name: cost.estimate(task.instructions, config, memory) for name, task in program.tasks.items()}
            cycles = sum(run.cycles for run in runs.values())
            if best is None or cycles < best[0]:
                best = cycles, runs, arrangement
        if best is not None:
            return best[1:]
    raise failure


def price(op: Op, rows: int, config: Config) -> float:
    """Cycles of an operation with so many rows, about, where it has its unit and DRAM for itself."""
    if not isinstance(op, MatMul):
        return 0.0
    outputs, inputs = _tiles(op, config)
    array = outputs * inputs * max(rows, _load(op, config))
    words = 0 if isinstance(op.w, View) else op.out.cols * inputs
    return max(array, words * config.slice_beats) + pipeline(config)


def _tiles(op: MatMul, config: Config) -> tuple[int, int]:
    """Tiles along the outputs and the inputs."""
    return -(-op.out.cols // config.array_outputs), -(-op.x.cols // config.array_inputs)


def _load(op: MatMul, config: Config) -> int:
    """Cycles that a tile loads."""
    return load_cycles(config, op.out.cols, not isinstance(op.w, View))


def timing(config: Config) -> Timing:
    """Cycles of operations on a Config, without DRAM: what an order of operations can change."""

    def duration(op: Op, tokens: int) -> float:
        match op:
            case MatMul():
                outputs, inputs = _tiles(op, config)
                rows = tokens if op.expert is not None else op.x.rows
                return outputs * inputs * max(rows, _load(op, config) + TILE_STEPS)
            case Norm():
                return norm_cycles(config, op.x.rows, op.x.cols)
            case Multiply():
                return multiply_cycles(config, op.x.rows, op.x.cols, -(-op.factor.cols // config.chunk))
            case RouteTokens():
                return route_cycles(config, op.logits.rows, op.logits.cols, op.top_k, op.dense is not None)
        return 0.0

    return Timing(duration, pipeline(config) + DISPATCH)
