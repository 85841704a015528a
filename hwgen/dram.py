"""The DRAM that everything is measured against: the simulated Verilog's memory and the cycle model's, from one description.

Two settings have a name: `board`, what the board's memory gives a design (boards/NAME.toml, `hwgen.boards`), and
`unlimited`, which shows what DRAM costs. Bursts and outstanding requests are the design's own: `config.Config`.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import boards
from .boards import Board
from .config import Config
from .errors import UserError

CREDIT_BEATS = 4  # for each port and once more: what a pause saves up, to be moved at the ports' full rate behind it


@dataclass(frozen=True)
class Dram:
    """Memory behind all ports, in clocks of the design; by default one that answers at once.

    latency: clocks from a read burst's address to its first beat. bytes_per_cycle: what all ports move together (0: no
    limit), in steps of 1/16. refresh: every `refresh_period` clocks (0: never) nothing moves for `refresh_cycles`.
    stall: probability, in 1/256, that a handshake is withheld in a clock, for tests; `seed` draws it.
    """

    latency: int = 1
    bytes_per_cycle: float = 0.0
    refresh_period: int = 0
    refresh_cycles: int = 0
    stall: int = 0
    seed: int = 1

    @property
    def open(self) -> float:
        """Fraction of the time in which no refresh shuts it."""
        return 1.0 - self.refresh_cycles / self.refresh_period if self.refresh_period else 1.0

    def beats_per_cycle(self, config: Config) -> float:
        """Beats of all ports together in a cycle, refresh counted in; infinite without a limit."""
        return self.bytes_per_cycle / config.axi_bytes * self.open if self.bytes_per_cycle else float("inf")


UNLIMITED = Dram()
SETTINGS = ("board", "unlimited")


def of_board(board: Board, config: Config, **test: int) -> Dram:
    """The DRAM of a board at the Config's clock: usable bandwidth, latency, refresh. test: `stall` and `seed`."""
    mhz = config.clock_mhz
    return Dram(
        latency=board.dram_latency,
        bytes_per_cycle=round(16 * board.dram_bytes_per_second / (mhz * 1e6)) / 16,
        refresh_period=round(boards.REFRESH_PERIOD_US * mhz),
        refresh_cycles=round(board.dram_refresh_us * mhz),
        **test,
    )


def setting(name: str, board: Board, config: Config) -> Dram:
    """The DRAM of a named setting. Raises UserError listing the names unless it is one."""
    if name not in SETTINGS:
        raise UserError(f"unknown DRAM setting {name!r}; there are {', '.join(SETTINGS)}")
    return of_board(board, config) if name == "board" else UNLIMITED
