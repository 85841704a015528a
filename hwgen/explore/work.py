"""What a network asks of any Config: its products, normalisations and memories, counted once; and what they cost about."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from ..config import MAX_NORM_COLUMNS, Config
from ..cost.traffic import port_rate
from ..dram import Dram
from ..errors import Shortage, UserError
from ..intgraph import IntGraph, MatMul, Multiply, Norm, ReduceWindow, RouteTokens, ScanRows, SelectRows, View
from ..isa import QUEUE_BITS, ROW_BITS, SCALE_BITS
from ..latency import load_cycles, multiply_cycles, norm_cycles, scan_cycles, window_cycles
from ..mapping import candidates
from ..schedule import attempt

Graphs = dict[str, IntGraph]
# Of the bound: how much of the shorter of array and weight stream does not hide behind the longer, how often the array
# waits for a LayerNorm (and loses time on bank conflicts with it), what depth-first tiles cost.
OVERLAP, WAIT, DEPTH_FIRST = 0.3, 1.5, 1.1
PROBE_CHUNKS = 1 << 22  # of the scratchpad with which memories are measured: more than any part holds


@dataclass(frozen=True)
class Product:
    """A matrix product of so many rows. `streamed`: its weights come from DRAM."""

    rows: int
    inputs: int
    outputs: int
    streamed: bool


@dataclass(frozen=True)
class Work:
    """All operations of a run of all tasks, and what of a Config's memories holds all rows of a run at once.

    `elements`: of the scratchpad.
    """

    products: tuple[tuple[Product, int], ...]  # with how often they occur
    norms: tuple[tuple[int, int, int], ...]  # rows, columns, how often
    row_products: tuple[tuple[int, int, int, int], ...]  # rows, columns, columns of the factor, how often
    windows: tuple[tuple[int, int, tuple[int, int], int, bool, int], ...]  # `latency.window_cycles`' arguments, how often
    scans: tuple[tuple[int, int, int, int], ...]  # rows, columns, states, how often
    acc_rows: int
    scale_entries: int
    queue_entries: int
    norm_columns: int
    max_experts: int
    select_rows: int
    elements: int

    def fields(self) -> dict[str, int]:
        """Fields of Config."""
        names = ("acc_rows", "scale_entries", "queue_entries", "norm_columns", "max_experts", "select_rows")
        return {name: getattr(self, name) for name in names}


def measure(graphs: Graphs, batch: int = 1) -> Work:
    """Count what `graphs` ask for. Raises UserError where no Config can run them."""
    products: Counter[Product] = Counter()
    norms: Counter[tuple[int, int]] = Counter()
    row_products: Counter[tuple[int, int, int]] = Counter()
    windows: Counter[tuple[int, int, tuple[int, int], int, bool]] = Counter()
    scans: Counter[tuple[int, int, int]] = Counter()
    rows, entries, columns, experts, selected = 1, 2, 2, 1, 0
    for graph in graphs.values():
        share = 1.0
        for op in graph.ops:
            match op:
                case RouteTokens():
                    share = op.top_k / op.logits.cols
                    entries = max(entries, op.logits.rows * op.top_k * batch)
                    experts = max(experts, op.logits.cols)
                case SelectRows():
                    selected = max(selected, power(max(op.x.rows, 2)))
                case ScanRows():
                    scans[op.x.rows, op.x.cols, op.states] += batch
                case Norm():
                    columns = max(columns, op.x.cols)
                    norms[op.x.rows, op.x.cols] += batch
                case Multiply():
                    columns = max(columns, op.x.cols)
                    row_products[op.x.rows, op.x.cols, op.factor.cols] += batch
                case ReduceWindow():
                    windows[op.walk.rows, op.x.cols, op.walk.kernel, op.walk.run, op.weights is not None] += batch
                case MatMul():
                    streamed = not isinstance(op.w, View)
                    rows = max(rows, op.rows * (batch if op.expert else 1))
                    if op.expert:
                        products[Product(int(-(-op.x.rows * batch * share // 1)), op.x.cols, op.out.cols, streamed)] += 1
                    else:
                        products[Product(op.rows, op.taps * op.x.cols, op.out.cols, streamed)] += batch
    fields = {
        "acc_rows": min(1 << ROW_BITS, max(64, power(rows))),
        "queue_entries": min(1 << QUEUE_BITS, power(entries)),
        "norm_columns": min(MAX_NORM_COLUMNS, max(64, power(columns))),
        "max_experts": experts,
        "select_rows": min(1 << ROW_BITS, selected),
    }
    scale_entries, elements = _memories(graphs, fields, batch)
    counts = [tuple((*key, n) for key, n in counted.items()) for counted in (norms, row_products, windows, scans)]
    return Work(tuple(products.items()), *counts, scale_entries=scale_entries, elements=elements, **fields)


def _memories(graphs: Graphs, fields: dict[str, int], batch: int) -> tuple[int, int]:
    """(scale_entries, elements of the scratchpad), as the first mapping has them on a roomy Config."""
    shape = {"array_outputs": 16, "array_inputs": 16, "window_chunks": 1, "scan_states": 1}
    base = Config(banks=2, bank_words=PROBE_CHUNKS // 2, **shape, **fields)
    sizes = [buffer.rows * buffer.cols for graph in graphs.values() for buffer in graph.buffers.values()]
    first, scales = next(candidates(batch)), 256
    mapped = {task: first.apply(graph, base, batch) for task, graph in graphs.items()}
    while scales <= 1 << SCALE_BITS:
        program = attempt(mapped, replace(base, scale_entries=scales))
        if isinstance(program, Shortage) and program.field == "scale_entries":
            scales *= 2
        elif isinstance(program, UserError):
            break
        else:
            ends = [p.address + p.rows * p.pitch for t in program.tasks.values() for found in t.places.values() for p in found]
            split = base.bank_chunks
            tops = max([e for e in ends if e <= split], default=0) + max([e - split for e in ends if e > split], default=0)
            return scales, tops * base.chunk
    # It runs in depth-first tiles at best: how many entries these need is seen when they are scheduled.
    return min(scales, 1 << SCALE_BITS - 2), sum(sizes)


def power(value: int) -> int:
    """The next power of two, at least 2."""
    return max(2, 1 << (int(value) - 1).bit_length())


def bound(work: Work, config: Config, dram: Dram) -> float:
    """Cycles of a run, about: 8 % of deviation from the cycle model, which is fitted by the two weights below."""
    array = words = 0.0
    for p, count in work.products:
        tiles = -(-p.outputs // config.array_outputs) * -(-p.inputs // config.array_inputs)
        blocks = -(-p.rows // config.acc_rows)
        array += count * tiles * max(p.rows, blocks * load_cycles(config, p.outputs, p.streamed))
        if p.streamed:
            words += count * blocks * (p.outputs * -(-p.inputs // config.array_inputs) + config.param_words(p.outputs))
    rate = min(port_rate(config, dram), dram.beats_per_cycle(config) / config.weight_ports) / config.slice_beats
    stream = words / rate
    norms = sum(count * norm_cycles(config, rows, columns) for rows, columns, count in work.norms)
    norms += sum(
        count * multiply_cycles(config, rows, columns, -(-period // config.chunk))
        for rows, columns, period, count in work.row_products
    )
    if config.window_chunks:
        norms += sum(count * window_cycles(config, *of_one) for *of_one, count in work.windows)
    if config.scan_states:
        norms += sum(count * scan_cycles(config, *of_one) for *of_one, count in work.scans)
    blocked = DEPTH_FIRST if capacity(config) < work.elements else 1.0
    return (max(array, stream) + OVERLAP * min(array, stream) + WAIT * norms) * blocked


def capacity(config: Config) -> int:
    """Elements of the scratchpad."""
    return config.scratch_chunks * config.chunk


def room(config: Config) -> tuple:
    """What orders Configs by how much they hold."""
    return capacity(config), config.acc_rows, str(config)


def raised(config: Config, error: Shortage) -> Config | None:
    """`config` with as much of the field as it was short of; None where that is beyond what a Config may have."""
    whole = -int(-getattr(config, error.field) * error.factor // 1)
    try:
        return replace(config, **{error.field: whole if error.field == "max_experts" else power(whole)})
    except UserError:
        return None
