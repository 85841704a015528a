"""A Config with its estimates, the front of those that no other beats, the choice among them, and how to build it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from .. import cost, energy, mapping, resources, timeline
from ..boards import Board
from ..config import Config
from ..dram import of_board
from ..errors import Shortage, UserError
from .space import WIDTHS, arrays, fits, share, shortages
from .work import Graphs, power, raised

EQUAL = 0.01  # estimates that differ by less are taken for equal
REPAIRS = 4  # fields of a Config that are raised before it is given up
RAISED = ("acc_rows", "scale_entries", "queue_entries", "norm_columns")  # fields that may be raised


@dataclass(frozen=True)
class Point:
    """A Config and a batch with their estimates, means over the tasks. cycles, millijoule: of an image; milliseconds: of a
    run, which takes `batch` images. part: share of the part, see `space.share`. binds: what keeps it from being faster.
    """

    config: Config
    batch: int
    cycles: float
    milliseconds: float
    images_per_second: float
    millijoule: float
    used: dict[str, int]
    part: float
    binds: str

    def to_dict(self) -> dict:
        """As JSON has it."""
        return asdict(self)

    def costs(self) -> tuple[float, ...]:
        """What is to be small: latency, time per image, share of the part, energy."""
        return self.milliseconds, 1 / self.images_per_second, self.part, self.millijoule


@dataclass(frozen=True)
class Job:
    """What `evaluate` is asked: a Config for a batch; `quick`: with the first mapping that fits."""

    config: Config
    batch: int = 1
    quick: bool = True


def evaluate(graphs: Graphs, board: Board, job: Job) -> Point | UserError:
    """The network scheduled for the job's Config and followed by the cycle model; memories for rows are raised as needed."""
    config = job.config
    for _ in range(REPAIRS):
        memory = of_board(board, config)
        found = mapping.search(graphs, config, memory, job.batch, job.quick)
        if isinstance(found, mapping.Choice):
            return _point(list(found.estimates.values()), config, board, job.batch)
        larger = raised(config, found) if isinstance(found, Shortage) and found.field in RAISED else None
        if larger is None or not fits(larger, board):
            return found
        config = larger
    return UserError(f"{config.array_outputs} x {config.array_inputs}: several memories are too small")


def _point(runs: list[cost.Estimate], config: Config, board: Board, batch: int) -> Point:
    images = len(runs) * batch
    cycles = sum(run.cycles for run in runs) / images
    seconds = cycles / (config.clock_mhz * 1e6)
    events = energy.activity(
        config,
        cycles=round(cycles),
        array_active=round(sum(run.array_active for run in runs) / images),
        weight_bytes=round(sum(run.weight_bytes for run in runs) / images),
        data_bytes=round(sum(run.read_bytes + run.write_bytes for run in runs) / images),
    )
    return Point(
        config,
        batch,
        round(cycles, 1),
        round(seconds * batch * 1e3, 6),
        round(1 / seconds, 3),
        round(energy.estimate(events, seconds)["total"] * 1e3, 6),
        resources.estimate(config, board),
        round(share(config, board), 6),
        _binds(runs, config, board),
    )


def _binds(runs: list[cost.Estimate], config: Config, board: Board) -> str:
    """What stands nearest to its limit: DRAM, the array and with it the scarcest resource of a larger one, or neither."""
    memory, cycles = of_board(board, config), sum(run.cycles for run in runs)
    moved = sum(r.weight_bytes + r.read_bytes + r.write_bytes for r in runs) / memory.bytes_per_cycle / memory.open
    active = sum(run.array_active for run in runs)
    causes = {name: sum(timeline.causes(run.spans)[name] for run in runs) for name in ("tile", "depend")}
    waits, most = max((n, name) for name, n in causes.items())
    if waits > max(moved, active):
        what = {"tile": "loading tiles", "depend": "waiting for results"}[most]
        return f"{what} ({waits / cycles:.0%} of the time)"
    if moved > active:
        return f"DRAM bandwidth ({moved / cycles:.0%} of the time)"
    return f"array ({active / cycles:.0%} busy){_limit(config, board)}"


def _limit(config: Config, board: Board) -> str:
    """Why the array is not larger: what the next larger ones are short of, if nothing else of the Config changes."""
    short = set()
    for field in ("array_outputs", "array_inputs"):
        for width in [w for w in WIDTHS if w > getattr(config, field)][:1]:
            shape = {"array_outputs": config.array_outputs, "array_inputs": config.array_inputs, field: width}
            larger = arrays(shape["array_outputs"], shape["array_inputs"], bool(config.window_chunks))
            over = shortages(replace(config, **larger, weight_words=max(config.weight_words, power(4 * width))), board)
            if not over:
                return ""
            short.add(next(iter(over)))
    return f", whose size {' and '.join(sorted(kind.upper() for kind in short))} limit{'s' * (len(short) == 1)}" if short else ""


def front(points: list[Point]) -> list[Point]:
    """The points that no other one beats in everything, fastest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (*p.costs(), str(p.config))):
        if not any(all(a <= b for a, b in zip(other.costs(), point.costs(), strict=True)) for other in found):
            found.append(point)
    return found


def choose(points: list[Point], target: float | None = None) -> Point:
    """The point of least latency, or with a target the least of those that give so many images a second.

    Least in share of the part, which also decides between nearly equal latencies. Raises UserError if none reaches the target.
    """
    if target is None:
        least = min(p.milliseconds for p in points)
        chosen = [p for p in points if p.milliseconds <= (1 + EQUAL) * least]
    else:
        chosen = [p for p in points if p.images_per_second >= target]
    if not chosen:
        fastest = max(points, key=lambda p: p.images_per_second)
        raise UserError(f"--target-fps {target:g}: the fastest Config gives {fastest.images_per_second:.1f}; {fastest.binds}")
    return min(chosen, key=lambda p: (p.part, p.milliseconds, str(p.config)))


def thin(points: list[Point], best: Point) -> list[Point]:
    """The points without those that differ little from another one; `best` stays."""
    kept = [best]
    for point in points:
        near = (all(abs(a - b) <= 2 * EQUAL * b for a, b in zip(p.costs(), point.costs(), strict=True)) for p in kept)
        if not any(near):
            kept.append(point)
    return sorted(kept, key=Point.costs)


def text(points: list[Point], best: Point) -> str:
    """The points as a table, the choice marked."""
    lines = [
        "   array     scratchpad  rows weights    batch     cycles        ms   images/s        mJ    DSP  BRAM  URAM      LUT"
        "  part  limited by"
    ]
    for p in thin(points, best):
        c, u = p.config, p.used
        lines.append(
            f"{'*' if p is best else ' '}  {f'{c.array_outputs} x {c.array_inputs}':9} {f'{c.banks} x {c.bank_words}':>10} "
            f"{c.acc_rows:>5} {f'{c.weight_words} / {c.weight_ports}':>10} {p.batch:>5} {p.cycles:>10,.0f} "
            f"{p.milliseconds:>9.3f} {p.images_per_second:>10,.1f} {p.millijoule:>9.3f} {u['dsp']:>6} {u['bram']:>5} "
            f"{u['uram']:>5} {u['lut']:>8,} {p.part:>5.0%}  {p.binds}"
        )
    return "\n".join(lines)


def settings(config: Config, board: Board) -> list[str]:
    """The options `--set KEY=VALUE ...` with which `hwgen build` takes this Config on the board, whatever it would choose."""
    own = board.make_config().to_dict()
    always = ("array_outputs", "array_inputs")
    values = {name: value for name, value in config.to_dict().items() if name in always or value != own[name]}
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def command(models: list[str], board: str, point: Point, of: Board, given: Sequence[str] = ()) -> str:
    """The line that builds a point. models: as the user gave them; board: name or file of the board `of`; given: options
    that say how to read the models."""
    batch = ["--batch", str(point.batch)] if point.batch > 1 else []
    return shlex.join(["hwgen", "build", *models, *given, "--board", board, *batch, *settings(point.config, of)])
