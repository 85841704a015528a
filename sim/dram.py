"""The DRAM beside the simulated Verilog: a board's, in clocks of the design, or one without limits."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen import boards
from hwgen.boards import Board
from hwgen.config import Config


@dataclass(frozen=True)
class DramModel:
    """Settings of `sim/tb/dram.v`; by default a memory that answers at once.

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

    def plusargs(self) -> tuple[str, ...]:
        """Arguments of the simulation."""
        return (
            f"+latency={self.latency}",
            f"+rate={round(self.bytes_per_cycle * 16)}",
            f"+refresh_period={self.refresh_period}",
            f"+refresh_clocks={self.refresh_cycles}",
            f"+stall={self.stall}",
            f"+seed={self.seed}",
        )


def of_board(board: Board, config: Config, **test: int) -> DramModel:
    """The DRAM of a board at the Config's clock: usable bandwidth, latency, refresh. test: `stall` and `seed`."""
    mhz = config.clock_mhz
    return DramModel(
        latency=boards.DRAM_LATENCY,
        bytes_per_cycle=board.dram_bytes_per_second / (mhz * 1e6),
        refresh_period=round(boards.REFRESH_PERIOD_US * mhz),
        refresh_cycles=round(boards.REFRESH_US * mhz),
        **test,
    )
