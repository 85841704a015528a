"""Dividers of an ECP5's PLL (EHXPLLL) with its first output as feedback."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError

DIVIDERS = range(1, 129)
COMPARED_MHZ = (3.125, 400.0)  # limits of the phase detector and of the oscillator inside, Lattice FPGA-DS-02012
VCO_MHZ = (400.0, 800.0)


@dataclass(frozen=True)
class Pll:
    """clock = oscillator * feedback / input; the oscillator inside runs at clock * output."""

    input: int
    feedback: int
    output: int

    def clock_mhz(self, oscillator_mhz: float) -> float:
        """What comes out."""
        return oscillator_mhz * self.feedback / self.input

    def parameters(self) -> dict[str, int]:
        """Of module board_ecp5."""
        return {"INPUT_DIVIDER": self.input, "FEEDBACK_DIVIDER": self.feedback, "OUTPUT_DIVIDER": self.output}


def pll(oscillator_mhz: float, clock_mhz: float) -> Pll:
    """Dividers for the highest clock that is not above `clock_mhz`. Raises UserError where there is none within 1 % of it."""
    best = None
    for divide in DIVIDERS:
        compared = oscillator_mhz / divide
        if not COMPARED_MHZ[0] <= compared <= COMPARED_MHZ[1]:
            continue
        feedback = int(clock_mhz / compared + 1e-9)
        if feedback not in DIVIDERS:
            continue
        clock = compared * feedback
        # The middle of the oscillator's range.
        output = max(1, round(sum(VCO_MHZ) / 2 / clock))
        if output not in DIVIDERS or not VCO_MHZ[0] <= clock * output <= VCO_MHZ[1]:
            continue
        if best is None or clock > best[0] + 1e-9:
            best = (clock, Pll(divide, feedback, output))
    if best is None or best[0] < 0.99 * clock_mhz:
        raise UserError(f"clock_mhz={clock_mhz:g}: no PLL setting makes it from {oscillator_mhz:g} MHz")
    return best[1]
