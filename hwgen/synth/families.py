"""What differs between FPGA families: Yosys' command, how its cells count, and which ways through a cell have no register."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..errors import UserError

MULTIPLIER_LEVELS = 3  # of a multiplier whose registers Yosys has left outside
CHAIN_ENTRY = 1.0  # into a carry chain; passing 32 bits of it costs another level


@dataclass(frozen=True)
class Family:
    """One FPGA family. Counts per cell type: `lut`, `dsp`, `uram`; `half_bram` in halves of the family's block RAM."""

    synth: str  # Yosys command, less -top
    defines: tuple[str, ...]
    lut: Mapping[str, int]
    half_bram: Mapping[str, int]
    dsp: frozenset[str]
    flip_flops: tuple[str, ...]  # prefixes of cell types
    models: str  # Yosys' simulation models, below its share folder
    uram: frozenset[str] = frozenset()
    carry_bits: Mapping[str, int] = field(default_factory=dict)  # cell type -> bits of a chain in it


_XILINX_LUTS = {f"LUT{n}": 1 for n in range(1, 7)} | {"SRL16E": 1, "SRLC32E": 1}
_XILINX_LUT_RAMS = {
    "RAM32X1S": 1,
    "RAM32X2S": 1,
    "RAM32X1D": 2,
    "RAM64X1S": 1,
    "RAM64X1D": 2,
    "RAM128X1S": 2,
    "RAM128X1D": 4,
    "RAM256X1S": 4,
    "RAM256X1D": 8,
    "RAM512X1S": 8,
    "RAM32M": 4,
    "RAM64M": 4,
    "RAM32M16": 8,
    "RAM64M8": 8,
    "RAM64X8SW": 8,
}

FAMILIES = {
    "ultrascale+": Family(
        synth="synth_xilinx -family xcup -uram -flatten -noiopad -noclkbuf",
        defines=("HWGEN_DSP48E2",),
        lut=_XILINX_LUTS | _XILINX_LUT_RAMS,
        half_bram={"RAMB36E2": 2, "RAMB18E2": 1},
        dsp=frozenset({"DSP48E2"}),
        flip_flops=("FD", "LD"),
        models="xilinx/cells_sim.v",
        uram=frozenset({"URAM288"}),
        carry_bits={"CARRY4": 4, "CARRY8": 8},
    ),
    "7-series": Family(
        synth="synth_xilinx -family xc7 -flatten -noiopad -noclkbuf",
        defines=(),
        lut=_XILINX_LUTS | _XILINX_LUT_RAMS,
        half_bram={"RAMB36E1": 2, "RAMB18E1": 1},
        dsp=frozenset({"DSP48E1"}),
        flip_flops=("FD", "LD"),
        models="xilinx/cells_sim.v",
        carry_bits={"CARRY4": 4},
    ),
    "ecp5": Family(
        synth="synth_ecp5",
        defines=(),
        lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
        half_bram={"DP16KD": 2, "PDPW16KD": 2},
        dsp=frozenset({"MULT18X18D"}),
        flip_flops=("TRELLIS_FF",),
        models="ecp5/cells_sim.v",
        carry_bits={"CCU2C": 2},
    ),
}


def family(name: str, uram: bool = True) -> Family:
    """The family of a board, whose part may lack UltraRAM. Raises UserError for one without open synthesis."""
    if name not in FAMILIES:
        raise UserError(f"no open synthesis for family {name!r}; known are {', '.join(sorted(FAMILIES))}")
    found = FAMILIES[name]
    return found if uram else replace(found, synth=found.synth.replace(" -uram", ""))


def resources(kind: Family, cells: Mapping[str, int]) -> dict[str, float]:
    """lut, ff, dsp, bram, uram of so many cells of each type; `bram` may be a half."""
    return {
        "lut": sum(kind.lut.get(cell, 0) * n for cell, n in cells.items()),
        "ff": sum(n for cell, n in cells.items() if cell.startswith(kind.flip_flops)),
        "dsp": sum(n for cell, n in cells.items() if cell in kind.dsp),
        "bram": sum(kind.half_bram.get(cell, 0) * n for cell, n in cells.items()) / 2,
        "uram": sum(n for cell, n in cells.items() if cell in kind.uram),
    }


# --- ways through a cell -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cell:
    """A cell of a mapped netlist: its pins' nets, and which of the pins are outputs."""

    type: str
    parameters: Mapping[str, str]
    inputs: Mapping[str, list]
    outputs: Mapping[str, list]


Arc = tuple[object, object, float]  # (input net, output net, LUT levels)


def arcs(kind: Family, cell: Cell) -> list[Arc]:
    """Combinational ways through a cell; none where its inputs end and its outputs start paths.

    A LUT, and reading a LUT as RAM, is one level; inverters and the slice's wide multiplexers are none. A carry chain is
    one level for its entry and one more for every 32 bits passed, in fractions of a cell.
    """
    name = cell.type
    if name in kind.carry_bits:
        return _carry(kind.carry_bits[name], cell)
    if name.startswith("LUT"):
        return _every(cell, 1.0)
    if name in ("INV", "MUXF7", "MUXF8", "MUXF9", "PFUMX", "L6MUX21"):
        return _every(cell, 0.0)
    if kind.lut.get(name):  # what else is made of LUTs: RAM and shift registers, read without a clock
        return _every(cell, 1.0, ("RAD",) if name.startswith("TRELLIS") else ("A", "DPRA"))
    if name in kind.dsp and not _registered(cell.parameters):
        return _every(cell, float(MULTIPLIER_LEVELS))
    return []


def _registered(parameters: Mapping[str, str]) -> bool:
    """Whether a multiplier holds a register between its inputs and its product."""
    registers = [int(parameters[name], 2) for name in ("MREG", "PREG") if name in parameters]
    clocks = [parameters[name].strip() for name in ("REG_PIPELINE_CLK", "REG_OUTPUT_CLK") if name in parameters]
    return any(registers) or any(clock != "NONE" for clock in clocks)


def _every(cell: Cell, levels: float, pins: tuple[str, ...] = ("",)) -> list[Arc]:
    """From every bit of the input pins whose names start with one of `pins` to every output bit.

    A wide cell goes through a net of its own, so that its ways are a sum and no product."""
    starts = [net for pin, nets in cell.inputs.items() if pin.startswith(pins) for net in nets]
    ends = [net for nets in cell.outputs.values() for net in nets]
    if len(ends) <= 1:
        return [(start, end, levels) for start in starts for end in ends]
    middle = object()
    return [(start, middle, levels) for start in starts] + [(middle, end, 0.0) for end in ends]


def _carry(bits: int, cell: Cell) -> list[Arc]:
    """A piece of a carry chain: CARRY4, CARRY8 or CCU2C, bit by bit."""
    pins = {**cell.inputs, **cell.outputs}
    if "DI" in pins:
        outputs = [[pins["O"][i], pins["CO"][i]] for i in range(bits)]
        entries = [[pins["S"][i], pins["DI"][i]] for i in range(bits)]
        entries[0] += pins.get("CYINIT", []) + pins.get("CI_TOP", [])
        chain = pins["CI"]
    else:
        outputs = [pins["S0"], pins["S1"] + pins["COUT"]]
        entries = [[net for letter in "ABCD" for net in pins[f"{letter}{i}"]] for i in range(bits)]
        chain = pins["CIN"]
    result = [(net, out, bits / 32) for net in chain for outs in outputs for out in outs]
    for i in range(bits):
        result += [(net, out, CHAIN_ENTRY) for net in entries[i] for outs in outputs[i:] for out in outs]
    return result
