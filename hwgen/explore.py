"""Which Config runs a network fastest on a board: the resource model prunes, a price ranks, the cycle model decides.

For every array shape that the multipliers allow, the memories are as deep as the board holds them: depth never costs
cycles. A shape's price, the sum of what its operations cost where each has its unit for itself, ranks the shapes; the best
are scheduled and followed by the cycle model, and what no other beats in cycles and multipliers at once is the front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace

from . import cost, planner, resources
from .boards import Board
from .config import Config
from .dram import of_board
from .errors import UserError
from .intgraph import IntGraph, MatMul, Multiply, Norm, RouteTokens

WIDTHS = (8, 16, 24, 32, 48, 64, 72, 96, 128)
BANK_WORDS = (32768, 16384, 8192, 4096, 2048, 1024, 512)
WEIGHT_TILES = (128, 32, 4)  # depth of the weight buffer in tiles, where there is room
FINALISTS = 8  # shapes that the cycle model follows
LUT_SHARE = MEMORY_SHARE = 0.9  # beyond which placement fails: of LUT and flip-flops, of block RAM
Graphs = dict[str, IntGraph]


@dataclass(frozen=True)
class Point:
    """A Config with its estimates. cycles: an image, on average over the tasks. binds: what keeps it from being faster."""

    config: Config
    cycles: float
    images_per_second: float
    used: dict[str, int]
    binds: str

    def to_dict(self) -> dict:
        """As JSON has it."""
        return asdict(self)


def explore(
    graphs: Graphs,
    board: Board,
    *,
    batch: int = 1,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Point]:
    """The Pareto front of cycles against DSP, fastest first; every point schedules and fits the board.

    Raises UserError where no Config fits, with the reason of the one that came nearest.
    """
    configs = sorted(
        {*candidates(graphs, board, batch)}, key=lambda c: (_price(graphs, c, board), c.macs_per_cycle, str(c))
    )
    if not configs:
        raise UserError(f"no array fits {board.name}: {_shortest(board)}")
    found: list[Point] = []
    failures: list[UserError] = []
    own = board.make_config()
    chosen = configs[:FINALISTS] + [c for c in configs[FINALISTS:] if c == own]
    tasks = [(graphs, config, board, batch) for config in chosen]
    for done, point in enumerate(_map(tasks, workers), 1):
        (failures if isinstance(point, UserError) else found).append(point)
        progress(done, len(tasks))
    if not found:
        raise UserError(f"the network fits no Config of {board.name}: {failures[0]}")
    found.sort(key=lambda p: (p.cycles, p.used["dsp"], str(p.config)))
    front: list[Point] = []
    for point in found:
        if not front or point.used["dsp"] < front[-1].used["dsp"]:
            front.append(point)
    return front


def candidates(graphs: Graphs, board: Board, batch: int = 1) -> Iterator[Config]:
    """The board's own Config, and for every array shape the one with the deepest memories that fit the resources."""
    ops = [op for graph in graphs.values() for op in graph.ops]
    tokens = max([b.rows for graph in graphs.values() for b in graph.buffers.values()], default=1) * batch
    entries = max([op.logits.rows * op.top_k for op in ops if isinstance(op, RouteTokens)], default=2) * batch
    columns = max([op.x.cols for op in ops if isinstance(op, (Norm, Multiply))], default=2)
    start = board.make_config()
    if fits(start, board):
        yield start
    base = {
        "banks": 2,
        "acc_rows": min(4096, max(start.acc_rows, _power(tokens))),
        "queue_entries": min(65536, max(start.queue_entries, _power(entries))),
        "norm_columns": max(64, _power(columns)),
    }
    for outputs in WIDTHS:
        for inputs in WIDTHS:
            if outputs * inputs <= board.resources["dsp"] * board.macs_per_dsp:
                shape = base | {"array_outputs": outputs, "array_inputs": inputs}
                if (config := _deepest(start, shape, board)) is not None:
                    yield config


def _deepest(start: Config, shape: dict, board: Board) -> Config | None:
    for bank_words in BANK_WORDS:
        for tiles in WEIGHT_TILES:
            words = _power(tiles * shape["array_outputs"] + 2 * start.burst_beats)
            try:
                config = replace(start, **shape, bank_words=bank_words, weight_words=words)
            except UserError:
                continue
            if fits(config, board):
                return config
    return None


def fits(config: Config, board: Board) -> bool:
    """Whether the estimated resources leave placement some room."""
    used = resources.estimate(config, board)
    share = {"dsp": 1.0, "bram": MEMORY_SHARE, "uram": MEMORY_SHARE, "lut": LUT_SHARE, "ff": LUT_SHARE}
    return all(used[kind] <= share[kind] * available for kind, available in board.resources.items())


def _shortest(board: Board) -> str:
    try:
        config = replace(board.make_config(), array_outputs=8, array_inputs=8, bank_words=BANK_WORDS[-1], banks=2)
    except UserError as error:
        return str(error)
    table = resources.table(config, board)
    kind = max(table, key=lambda k: table[k]["fraction"])
    return f"8 x 8 needs {table[kind]['used']} {kind.upper()}, it has {table[kind]['available']}"


def _price(graphs: Graphs, config: Config, board: Board) -> float:
    """Cycles if every operation had its unit for itself, or those of the weights through DRAM where these take longer."""
    memory = of_board(board, config)
    array = weights = 0.0
    for graph in graphs.values():
        share = 1.0
        for op in graph.ops:
            if isinstance(op, RouteTokens):
                share = op.top_k / op.logits.cols
            elif isinstance(op, MatMul):
                rows = op.x.rows if op.expert is None else -(-op.x.rows * share // 1)
                array += planner.price(op, int(rows), config)
                weights += getattr(op.w, "size", 0)
    return max(array, weights / memory.bytes_per_cycle)


def _map(tasks: list[tuple], workers: int) -> Iterator[Point | UserError]:
    if workers <= 1:
        yield from map(_follow, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(_follow, task) for task in tasks]):
            yield future.result()


def _follow(task: tuple[Graphs, Config, Board, int]) -> Point | UserError:
    """One Config scheduled and followed by the cycle model."""
    graphs, config, board, batch = task
    memory = of_board(board, config)
    try:
        program, _ = planner.plan(graphs, config, memory, batch)
    except UserError as error:
        return error
    runs = [cost.estimate(t.instructions, config, memory) for t in program.tasks.values()]
    cycles = sum(run.cycles for run in runs) / len(runs) / batch
    active = sum(run.array_active for run in runs) / len(runs) / batch
    moved = sum(r.weight_bytes + r.read_bytes + r.write_bytes for r in runs) / len(runs) / batch
    used = resources.estimate(config, board)
    return Point(
        config, cycles, config.clock_mhz * 1e6 / cycles, used, _binding(cycles, active, moved, memory, used, board)
    )


def _binding(cycles: float, active: float, moved: float, memory, used: dict[str, int], board: Board) -> str:
    """What stands nearest to its limit: DRAM, else the array, and with it the scarcest resource of a larger one."""
    if moved / memory.bytes_per_cycle / memory.open > active:
        return f"DRAM bandwidth ({moved / memory.bytes_per_cycle / memory.open / cycles:.0%} of the time)"
    kind = max((k for k, n in board.resources.items() if n), key=lambda k: used[k] / board.resources[k])
    return f"array ({active / cycles:.0%} busy), whose size {kind.upper()} limits"


def text(front: list[Point], target: float | None = None) -> str:
    """The front as a table, the choice marked."""
    best = choose(front, target)
    lines = ["   array      banks     cycles    images/s    DSP   BRAM   URAM      LUT  limited by"]
    for p in front:
        c, u = p.config, p.used
        shape, scratch = f"{c.array_outputs} x {c.array_inputs}", f"{c.banks} x {c.bank_words}"
        lines.append(
            f"{'*' if p is best else ' '}  {shape:9} {scratch:>9} {p.cycles:>10,.0f} {p.images_per_second:>9,.1f} "
            f"{u['dsp']:>6} {u['bram']:>6} {u['uram']:>6} {u['lut']:>8,}  {p.binds}"
        )
    return "\n".join(lines)


def choose(front: list[Point], target: float | None = None) -> Point:
    """The fastest point, or with a target in images a second the one with the fewest DSP that reaches it."""
    if target is None:
        return front[0]
    reached = [p for p in front if p.images_per_second >= target]
    if not reached:
        raise UserError(f"--target-fps {target:g}: the fastest Config gives {front[0].images_per_second:.1f}")
    return reached[-1]


def _power(value: int) -> int:
    """The next power of two, at least 2."""
    return max(2, 1 << (int(value) - 1).bit_length())
