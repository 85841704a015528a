"""What the open flow needs to know of a board: the section [bitstream] of its TOML file."""

from __future__ import annotations

from dataclasses import dataclass

from ..boards import Board
from ..errors import UserError

MOST_BAUD_ERROR = 0.02  # of a byte's ten bits, half a bit may go wrong


@dataclass(frozen=True)
class Target:
    """Package, clock, serial line and pins. `pins`: port of the module `top` -> pins from bit 0 up; `pulls`: port -> UP or
    DOWN."""

    package: str
    speed: int
    oscillator_mhz: float
    baud: int
    top: str
    pins: dict[str, tuple[str, ...]]
    pulls: dict[str, str]


def target(board: Board) -> Target:
    """The target of a board. Raises UserError, with the way to its bitstream, for one that the open tools do not serve."""
    if board.family != "ecp5":
        raise UserError(
            f"board {board.name}: no open place and route for family {board.family!r}; its bitstream comes from Vivado:"
            "  vivado -mode batch -source BUNDLE/vivado/build.tcl"
        )
    if not board.bitstream:
        raise UserError(
            f"board {board.name}: its description has no section [bitstream] with pins (see boards/ulx3s-85f.toml)"
        )
    try:
        found = board.bitstream
        pins = {port: tuple(sites.split()) for port, sites in found["pins"].items()}
        result = Target(
            package=found["package"],
            speed=found["speed"],
            oscillator_mhz=float(found["oscillator_mhz"]),
            baud=found["baud"],
            top=found["top"],
            pins=pins,
            pulls=dict(found.get("pulls", {})),
        )
    except KeyError as error:
        raise UserError(f"board {board.name}: section [bitstream] has no {error.args[0]!r}") from None
    sites = [site for bits in pins.values() for site in bits]
    twice = sorted({site for site in sites if sites.count(site) > 1})
    if twice:
        raise UserError(f"board {board.name}: section [bitstream.pins] names pin {', '.join(twice)} twice")
    for port, pull in result.pulls.items():
        if port not in pins or pull not in ("UP", "DOWN"):
            raise UserError(f"board {board.name}: section [bitstream.pulls]: {port} = {pull!r} is no port's UP or DOWN")
    return result


def bit_cycles(found: Target, clock_mhz: float) -> int:
    """Clocks of a bit of the serial line. Raises UserError where no whole number comes near enough."""
    wanted = clock_mhz * 1e6 / found.baud
    cycles = round(wanted)
    if cycles < 4 or abs(cycles - wanted) / wanted > MOST_BAUD_ERROR:
        raise UserError(f"clock_mhz={clock_mhz:g} makes no serial line of {found.baud} baud: {wanted:.2f} clocks a bit")
    return cycles


def lpf(found: Target) -> str:
    """Pin constraints in Lattice's format: place, standard and resistor of every pin, and the oscillator's frequency."""
    lines = [f'FREQUENCY PORT "oscillator" {found.oscillator_mhz:g} MHZ;']
    for port, sites in found.pins.items():
        pull = found.pulls.get(port, "NONE")
        for i, site in enumerate(sites):
            name = f"{port}[{i}]" if len(sites) > 1 else port
            lines += [f'LOCATE COMP "{name}" SITE "{site}";', f'IOBUF PORT "{name}" IO_TYPE=LVCMOS33 PULLMODE={pull};']
    return "\n".join(lines) + "\n"
