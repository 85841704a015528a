"""Selective scans: steps of a power of two each, so that the machine only shifts."""

from __future__ import annotations

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..numerics import (
    DECAY_SHIFTS,
    INT16_MAX,
    SCAN_DECAY_BITS,
    SCAN_EXPONENT_BITS,
    SCAN_FED_BITS,
    SCAN_SHIFT_MAX,
    SCAN_SKIP_BITS,
    SCAN_STATE_MAX,
    SOFTPLUS_BITS,
    STEP_SHIFT_MAX,
    STEPS_SHIFT_MAX,
    U16_MAX,
    ScanShifts,
)
from .builder import TINY, WIDE_MARGIN, Builder, Held, linear, linear_need, own_scale, plain
from .plan import describe
from .scales import OutOfRange

SHIFT_MAX = 31


def scan(b: Builder, node: fg.Scan) -> None:
    """Emit the linear layer that makes the steps in units that the softplus takes, then the scan.

    The step of a state follows from what is fed to it; that has room for the largest state, too.
    """
    source = b.plan.linear(node.steps)
    seen = b.stats.values[node.steps]
    largest = float(seen.high.max()) + np.log(WIDE_MARGIN)
    most = float(np.logaddexp(largest, 0.0))
    steps_shift = _steps_shift(float(seen.magnitude().max()) * WIDE_MARGIN, linear_need(b, source))
    x, mix = plain(b, node.x), plain(b, node.mix)
    steps = linear(b, source, 2.0 ** -(7 + steps_shift), f"{node.name}.steps")
    if len({(h.first_row, h.ref.rows) for h in (x, mix, steps)}) > 1:
        raise UserError(f"{describe(node)}: its operands hold different tokens")
    step_shift = int(np.clip(np.ceil(np.log2(most * 2.0**SOFTPLUS_BITS / U16_MAX)), 0, STEP_SHIFT_MAX))
    fraction = SOFTPLUS_BITS - step_shift
    decay, rates = _rates(-node.rates.T, fraction)

    unit = float(x.scale) * 2.0**-fraction  # of step * x
    fed = float((np.logaddexp(seen.high + np.log(WIDE_MARGIN), 0.0) * b.stats.values[node.x].magnitude()).max())
    state = b.stats.hidden[node.name] * WIDE_MARGIN
    wanted = max(fed / INT16_MAX, state / SCAN_STATE_MAX / 2.0**SCAN_FED_BITS / float(mix.scale), TINY)
    fed_shift = _shift(wanted / unit, SHIFT_MAX, "what is fed to its states")
    total = unit * 2.0 ** (fed_shift + 2 * SCAN_FED_BITS) * float(mix.scale) ** 2  # unit of sums over states
    shift = _shift(own_scale(b, node, 0.0) / total, SCAN_SHIFT_MAX, "its result")

    # skip * x in units of sums: the finer the numbers of `skip`, the further they are shifted.
    peak, one = float(np.abs(node.skip).max()), total * 2.0**SCAN_SKIP_BITS / float(x.scale)
    skip_shift = int(np.clip(np.floor(np.log2(INT16_MAX * one / max(peak, TINY))), 0, SHIFT_MAX))
    skip = np.rint(node.skip.astype(np.float64) * 2.0**skip_shift / one)
    if np.abs(skip).max() > INT16_MAX:
        raise OutOfRange(f"a skip of {peak:g}, beside which its states are next to nothing")

    numbers = np.concatenate([skip[None], rates.astype(np.uint16).view(np.int16)])
    params = b.table(f"{node.name}.params", numbers, source=node.source)
    shifts = ScanShifts(steps_shift, step_shift, fed_shift, decay, skip_shift, shift)
    scale, fields = total * 2.0**shift, {"layer": node.name, "source": node.source}
    made = q.Scan(b.name(node.name), x.ref, steps.ref, mix.ref, params, shifts, node.backwards, **fields)
    b.held[node.name] = Held(b.emit(made, x.ref.rows, b.cols(x), scale, value=node.name), scale, None, x.first_row)


def _steps_shift(peak: float, need: float) -> int:
    """The finest unit that holds the peak and that the layer in front can give."""
    for shift in range(STEPS_SHIFT_MAX, -1, -1):
        step = 2.0 ** -(7 + shift)
        if INT16_MAX * step >= peak and step >= need:
            return shift
    raise OutOfRange(f"steps up to {peak:g}, the machine takes them up to {INT16_MAX / 2**7:.0f}")


def _rates(rates: np.ndarray, fraction: int) -> tuple[int, np.ndarray]:
    """(index of the shift, u16 rates in powers of two) of rates at least zero, for steps of so many fraction bits."""
    powers = rates.astype(np.float64) * np.log2(np.e)
    for index in reversed(range(len(DECAY_SHIFTS))):
        found = np.rint(powers * 2.0 ** (SCAN_EXPONENT_BITS + DECAY_SHIFTS[index] - fraction))
        if found.max() <= U16_MAX:
            return index, found
    raise OutOfRange(f"states that decay with a rate of {rates.max():g}")


def _shift(ratio: float, most: int, what: str) -> int:
    """The least shift of at least this ratio of units."""
    shift = max(0, int(np.ceil(np.log2(ratio))))
    if shift > most:
        raise OutOfRange(f"{what} needs a shift of {shift}, the machine shifts by {most}")
    return shift


assert SCAN_DECAY_BITS == 2 * SCAN_FED_BITS  # a state and what is fed to it differ by SCAN_FED_BITS, either way
