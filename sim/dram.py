"""The DRAM that the RTL is measured against: the one place where its limits stand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DramModel:
    """Settings of `sim/tb/dram.v`.

    latency: clocks from a read burst's address to its first beat. bytes_per_cycle: what all ports move together (0: no
    limit), in steps of 1/16. refresh: every `refresh_period` clocks (0: never) nothing moves for `refresh_cycles`.
    stall: probability, in 1/256, that a handshake is withheld in a clock, for tests; `seed` draws it.
    """

    latency: int = 64
    bytes_per_cycle: float = 43.0
    refresh_period: int = 2340
    refresh_cycles: int = 105
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


# The ZCU104's PS DDR4 at 300 MHz: 17.07 GB/s peak, 75 % usable; a refresh of 350 ns every 7.8 us.
ZCU104 = DramModel()
UNLIMITED = DramModel(latency=1, bytes_per_cycle=0, refresh_period=0, refresh_cycles=0)
