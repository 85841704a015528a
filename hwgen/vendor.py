"""The vendor project of a bundle: what its Tcl scripts (boards/*.tcl) must know of this hardware, as Tcl.

The scripts are the same for every network of a board; `design.tcl` is made here from the ports that the RTL declares and
the register map.
"""

from __future__ import annotations

from importlib import resources

from . import registers
from .boards import Board
from .config import Config
from .rtl.axi import axi_read, axi_write
from .rtl.control import AXI_LITE
from .rtl.top import TOP_MODULE

FOLDER = "vivado"
SCRIPTS = {"vivado_build.tcl": "build.tcl", "vivado_package_ip.tcl": "package_ip.tcl"}  # in boards/: in the bundle
ACCESS = {"ro": "read-only", "wo": "write-only", "rw": "read-write"}  # IP-XACT's words


def interfaces(config: Config) -> dict[str, list[tuple[str, str]]]:
    """Bus interfaces of the top module: (logical name, port) pairs, the slave first, then masters, the weights' first."""
    masters = {f"m_axi_w{port}": [axi_read(config)] for port in range(config.weight_ports)}
    masters["m_axi_data"] = [axi_read(config), axi_write(config)]
    found = {}
    for name, signatures in {"s_axi": [AXI_LITE], **masters}.items():
        members = [member for signature in signatures for member in signature.members]
        found[name] = [(member.upper(), f"{name}_{member}") for member in members]
    return found


def scripts(config: Config, board: Board, sources: list[str]) -> dict[str, str]:
    """File name in the bundle -> Tcl; none where there are no scripts for the board.

    sources: the Verilog files, relative to the bundle.
    """
    folder = resources.files("hwgen.board_files")
    block_design = folder.joinpath(f"{board.name}.tcl")
    if not block_design.is_file():
        return {}
    found = {f"{FOLDER}/block_design.tcl": block_design.read_text(encoding="utf-8")}
    for name, target in SCRIPTS.items():
        found[f"{FOLDER}/{target}"] = folder.joinpath(name).read_text(encoding="utf-8")
    return found | {f"{FOLDER}/design.tcl": design(config, board, sources)}


def design(config: Config, board: Board, sources: list[str]) -> str:
    """`design.tcl`: the namespace that the scripts read."""
    (slave, slave_ports), *masters = interfaces(config).items()
    listed = [
        _list(r.name, f"{r.offset:#05x}", ACCESS[r.access], r.doc) for r in registers.REGISTERS
    ]
    values = {
        "part": board.part,
        "top": TOP_MODULE,
        "clock_mhz": f"{config.clock_mhz:g}",
        "axi_bits": 8 * config.axi_bytes,
        "register_bytes": 1 << registers.ADDRESS_BITS,
        "sources": _list(*(f"../{name}" for name in sources)),
        "slave": _list(slave, _pairs(slave_ports)),
        "masters": _block(_list(name, _pairs(ports)) for name, ports in masters),
        "registers": _block(listed),
    }
    lines = [f"    variable {name} {_word(value)}" for name, value in values.items()]
    return "\n".join(["# Made by hwgen build: the hardware of this bundle.", "namespace eval hwgen {", *lines, "}"]) + "\n"


def _pairs(ports: list[tuple[str, str]]) -> str:
    return _list(*(word for pair in ports for word in pair))


def _list(*words) -> str:
    return " ".join(_word(word) for word in words)


def _block(entries) -> str:
    """A list with an element a line."""
    return "\n" + "".join(f"        {_word(entry)}\n" for entry in entries) + "    "


def _word(value) -> str:
    """A Tcl word. Braces keep everything as it is; a text with braces or a backslash of its own is refused."""
    text = str(value)
    if text and all(c.isalnum() or c in "_./:-" for c in text):
        return text
    depth = 0
    for c in text:
        depth += (c == "{") - (c == "}")
        if depth < 0 or c == "\\":
            raise ValueError(f"{text!r} cannot stand in braces")
    if depth:
        raise ValueError(f"{text!r} cannot stand in braces")
    return "{" + text + "}"
