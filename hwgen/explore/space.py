"""The Configs of a board that come into question for a network: array shapes, each with memories and ports that suit it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from .. import resources
from ..boards import Board
from ..config import MAX_WEIGHT_PORTS, MAX_WINDOW_CHUNKS, MAX_WINDOW_ROWS, Config
from ..dram import of_board
from ..errors import UserError
from .work import Work, bound, capacity, power

WIDTHS = (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160, 192, 224, 256)
WEIGHT_TILES = (128, 32, 8, 2)  # depth of the weight buffer in tiles: the deepest that there is room for
BANK_WORDS = tuple(1 << n for n in range(16, 6, -1))
LEAST_ACC_ROWS = 64
SCAN_STATES = (1, 2, 4, 6, 8, 16)  # that a scan may update at a time: 16 states take as many cycles each as any other number
URAM_BITS = 4096 * 72
MARGIN = 1.1  # of the scratchpad over what an image needs: rows are padded to chunks, and buffers lie in one piece
# Beyond these shares of a part placement and routing fail, or timing does.
SHARES = {"dsp": 1.0, "bram": 0.9, "uram": 0.9, "lut": 0.7, "ff": 0.9}


def fits(config: Config, board: Board) -> bool:
    """Whether the estimated resources leave placement some room."""
    return not shortages(config, board)


def shortages(config: Config, board: Board) -> dict[str, tuple[int, int]]:
    """Resource -> (used, usable) of those of which the Config takes too much, the scarcest first."""
    used = resources.estimate(config, board)
    usable = {kind: int(SHARES[kind] * available) for kind, available in board.resources.items()}
    over = [kind for kind in used if used[kind] > usable[kind]]
    return {k: (used[k], usable[k]) for k in sorted(over, key=lambda k: (-used[k] / max(1, usable[k]), k))}


def share(config: Config, board: Board) -> float:
    """How much of the part a Config takes: the mean share of the resources that there are."""
    used = resources.estimate(config, board)
    shares = [used[kind] / available for kind, available in board.resources.items() if available]
    return sum(shares) / len(shares)


def base(board: Board, work: Work) -> Config:
    """The board's clock and bus with memories for the network; array and scratchpad are still to be chosen."""
    scans = int(bool(work.scans))
    return replace(board.make_config(), window_chunks=0, window_rows=1, scan_states=scans, **work.fields())


def candidates(work: Work, board: Board) -> Iterator[Config]:
    """For every array shape that the multipliers allow, Configs with the memories that fit beside it."""
    start = base(board, work)
    for outputs in WIDTHS:
        for inputs in WIDTHS:
            if outputs * inputs <= board.resources["dsp"] * board.macs_per_dsp:
                yield from shaped(start, work, board, outputs, inputs)


def smallest(work: Work, board: Board) -> Config:
    """The least machine that could run the network at all, whether it fits the board or not."""
    start = replace(base(board, work), array_outputs=WIDTHS[0], array_inputs=WIDTHS[0], weight_ports=1)
    start = replace(start, window_chunks=int(bool(work.windows)))
    words = power(2 * start.array_outputs + 2 * start.burst_beats)
    return replace(start, acc_rows=min(LEAST_ACC_ROWS, work.acc_rows), banks=2, bank_words=BANK_WORDS[-1], weight_words=words)


def shaped(start: Config, work: Work, board: Board, outputs: int, inputs: int) -> Iterator[Config]:
    """Configs of one array shape: memories for a whole image where they fit, else a choice of smaller ones."""
    shape = arrays(outputs, inputs, bool(work.windows))
    words = power(2 * outputs + 2 * start.burst_beats)
    least = {"acc_rows": LEAST_ACC_ROWS, "bank_words": BANK_WORDS[-1], "banks": 2, "weight_words": words, "weight_ports": 1}
    if not fits(replace(start, **shape, **least), board):
        return
    for acc_rows in (work.acc_rows >> n for n in range(4) if work.acc_rows >> n >= min(LEAST_ACC_ROWS, work.acc_rows)):
        config = _deepest(start, work, board, shape | {"acc_rows": acc_rows})
        if config is not None:
            yield _with_states(_with_rows(_with_ports(config, work, board), work, board), work, board)
            if capacity(config) >= work.elements:
                return


def arrays(outputs: int, inputs: int, windows: bool) -> dict[str, int]:
    """The fields of an array shape; a window engine is as wide as the row reader."""
    whole = inputs // math.gcd(outputs, inputs)
    return {
        "array_outputs": outputs,
        "array_inputs": inputs,
        "window_chunks": min(whole, MAX_WINDOW_CHUNKS) if windows else 0,
    }


def _deepest(start: Config, work: Work, board: Board, shape: dict[str, int]) -> Config | None:
    """Scratchpad for a whole image, or the deepest that fits; weight buffer as deep as fits beside it."""
    bits = sum(board.resources[kind] * size for kind, size in (("bram", board.bram_kbit * 1024), ("uram", URAM_BITS)))
    for bank_words in BANK_WORDS:
        for tiles in WEIGHT_TILES:
            words = power(max(tiles * shape["array_outputs"], 2 * shape["array_outputs"] + 2 * start.burst_beats))
            try:
                config = replace(start, **shape, banks=2, bank_words=bank_words, weight_words=words)
            except UserError:
                continue
            if capacity(config) >= 2 * MARGIN * work.elements or 16 * capacity(config) > bits:
                break  # half as deep is enough, or it is more than there is
            if fits(config, board):
                return config
    return None


def _with_ports(config: Config, work: Work, board: Board) -> Config:
    """The fewest weight ports with which the weights come nearly as fast as with any number that fits."""
    most = min(MAX_WEIGHT_PORTS, board.port_count - 1)
    return _fewest([replace(config, weight_ports=n) for n in range(1, most + 1)], work, board)


def _with_rows(config: Config, work: Work, board: Board) -> Config:
    """The fewest rows that share a window's reads with which it is nearly as fast as with any number that fits."""
    if not config.window_chunks:
        return config
    return _fewest([replace(config, window_rows=n) for n in range(1, MAX_WINDOW_ROWS + 1)], work, board)


def _with_states(config: Config, work: Work, board: Board) -> Config:
    """The fewest states that a scan updates at a time with which it is nearly as fast as with any number that fits."""
    return _fewest([replace(config, scan_states=n) for n in SCAN_STATES], work, board) if config.scan_states else config


def _fewest(choices: list[Config], work: Work, board: Board) -> Config:
    """Of choices that take more and more, the first that is nearly as fast as the fastest of those that fit."""
    choices = [choices[0], *(choice for choice in choices[1:] if fits(choice, board))]
    cycles = [bound(work, choice, of_board(board, choice)) for choice in choices]
    return next(choice for choice, n in zip(choices, cycles, strict=True) if n <= 1.01 * min(cycles))


def neighbours(config: Config, work: Work, board: Board) -> list[Config]:
    """Configs one step away that fit: array widths, banks, depths of the memories, ports."""
    found: list[Config] = []

    def add(**fields: int) -> None:
        try:
            near = replace(config, **fields)
        except UserError:
            return
        if near != config and near not in found and fits(near, board):
            found.append(near)

    if config.window_chunks > 1:
        add(window_chunks=config.window_chunks // 2)
    if config.window_chunks:
        add(window_rows=config.window_rows - 1)
        add(window_rows=config.window_rows + 1)
    if config.scan_states:
        for states in SCAN_STATES:
            add(scan_states=states)
    for field in ("array_outputs", "array_inputs"):
        value = getattr(config, field)
        other = "array_inputs" if field == "array_outputs" else "array_outputs"
        for width in [*[w for w in WIDTHS if w < value][-1:], *[w for w in WIDTHS if w > value][:1]]:
            for beside in {getattr(config, other), *[w for w in WIDTHS if w * width <= config.macs_per_cycle][-1:]}:
                shape = {field: width, other: beside}
                found += [c for c in shaped(base(board, work), work, board, shape["array_outputs"], shape["array_inputs"])
                          if c not in found]  # fmt: skip
    add(banks=2 * config.banks, bank_words=max(2, config.bank_words // 2))
    add(banks=2 * config.banks)
    add(bank_words=2 * config.bank_words)
    add(bank_words=max(2, config.bank_words // 2))
    add(weight_words=2 * config.weight_words)
    add(weight_words=config.weight_words // 2)
    add(weight_words=config.weight_words // 4)
    add(acc_rows=2 * config.acc_rows)
    add(acc_rows=max(2, config.acc_rows // 2))
    for ports in (config.weight_ports - 1, config.weight_ports + 1):
        if 1 <= ports <= min(MAX_WEIGHT_PORTS, board.port_count - 1):
            add(weight_ports=ports)
    return found
