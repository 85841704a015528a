"""Pin constraints in Lattice's LPF format, as nextpnr reads it."""

from __future__ import annotations

from ..boards import Pins


def lpf(pins: Pins) -> str:
    """LOCATE and IOBUF of every pin of the board, and the oscillator's frequency."""
    lines = [f'FREQUENCY PORT "{pins.oscillator}" {pins.oscillator_mhz:g} MHZ;']
    for port, sites in pins.sites.items():
        pull = pins.pulls.get(port, "NONE")
        for i, site in enumerate(sites):
            name = f"{port}[{i}]" if len(sites) > 1 else port
            lines.append(f'LOCATE COMP "{name}" SITE "{site}";')
            lines.append(f'IOBUF PORT "{name}" IO_TYPE=LVCMOS33 PULLMODE={pull};')
    return "\n".join(lines) + "\n"
