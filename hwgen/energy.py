"""Energy as an estimate from counted activity: events times coefficients, plus static power times time.

Good to compare builds and to see where energy goes; no power analysis. Every figure made here is an estimate and is
labelled as one wherever it is shown.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from .config import Config
from .numerics import ACC_BITS


@dataclass(frozen=True)
class Coefficient:
    """Energy of one event in joules (watts for `static`), and where the number is from."""

    value: float
    unit: str
    source: str


# Horowitz: "Computing's energy problem", ISSCC 2014, figure 1.1.9, 45 nm. Kuon and Rose: "Measuring the gap between FPGAs
# and ASICs", FPGA 2006: dynamic power about 12 times, less with hard blocks.
COEFFICIENTS: dict[str, Coefficient] = {
    "mac": Coefficient(
        1.5e-12,
        "J per int8 product of the array",
        "Horowitz 2014: 8 bit multiply 0.2 pJ and 32 bit add 0.1 pJ; times 0.4 for 16 nm (assumed), times 12 for FPGA "
        "(Kuon and Rose 2006)",
    ),
    "ram": Coefficient(
        2e-12,
        "J per byte read from or written to on-chip RAM",
        "Horowitz 2014: 10 pJ for 64 bits of an 8 KB SRAM; times 0.4 for 16 nm, times 4 for block RAM and its routing "
        "(both assumed)",
    ),
    "dram": Coefficient(
        160e-12,
        "J per byte moved to or from DRAM, controller and PHY included",
        "Horowitz 2014: 1.3 to 2.6 nJ for 64 bits; the low end, for DDR4",
    ),
    "clock": Coefficient(
        0.3e-12,
        "J per multiplier of the array and clock, at work or not",
        "assumed: 30 flip-flops a multiplier, 10 fJ each",
    ),
    "static": Coefficient(
        2.0,
        "W of the fabric, programmed and idle",
        "assumed; the board's fabric rail at idle replaces it",
    ),
}
NOTE = "estimate from counted activity (coefficients and sources in hwgen/energy.py), not measured"


@dataclass(frozen=True)
class Activity:
    """Counted events: products the array made (padding included), bytes of RAM and DRAM, multipliers times cycles."""

    macs: int = 0
    ram_bytes: int = 0
    dram_bytes: int = 0
    lane_cycles: int = 0

    def __add__(self, other: Activity) -> Activity:
        return Activity(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Activity) -> Activity:
        return Activity(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


def activity(config: Config, *, cycles: int, array_active: int, weight_bytes: int, data_bytes: int) -> Activity:
    """Activity of a run from its counters. Bytes as they cross the AXI ports; data_bytes: read and written."""
    row = 2 * config.array_inputs + 2 * -(-ACC_BITS * config.array_outputs // 8)  # operand read; sums read and written
    return Activity(
        macs=array_active * config.macs_per_cycle,
        ram_bytes=array_active * row + 2 * weight_bytes + data_bytes,
        dram_bytes=weight_bytes + data_bytes,
        lane_cycles=cycles * config.macs_per_cycle,
    )


def estimate(events: Activity, seconds: float) -> dict[str, float]:
    """Joules by coefficient, and their `total`."""
    counts = {"mac": events.macs, "ram": events.ram_bytes, "dram": events.dram_bytes, "clock": events.lane_cycles}
    joules = {name: count * COEFFICIENTS[name].value for name, count in counts.items()}
    joules["static"] = COEFFICIENTS["static"].value * seconds
    return joules | {"total": sum(joules.values())}


def table() -> str:
    """The coefficients with their sources, a line each."""
    return "\n".join(f"{name:7} {c.value:8.3g} {c.unit}: {c.source}" for name, c in COEFFICIENTS.items())
