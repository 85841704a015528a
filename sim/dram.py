"""The settings of `tb/dram.v`, the memory beside the simulated Verilog."""

from __future__ import annotations

from hwgen.dram import CREDIT_BEATS, Dram


def plusargs(dram: Dram) -> tuple[str, ...]:
    """Arguments of the simulation."""
    return (
        f"+latency={dram.latency}",
        f"+rate={round(dram.bytes_per_cycle * 16)}",
        f"+credit={CREDIT_BEATS}",
        f"+refresh_period={dram.refresh_period}",
        f"+refresh_clocks={dram.refresh_cycles}",
        f"+stall={dram.stall}",
        f"+seed={dram.seed}",
    )
