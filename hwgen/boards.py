"""Boards are data: `boards/NAME.toml` says what the part has and, if one is known, which Config suits it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from .config import MAX_WEIGHT_PORTS, Config
from .errors import UserError
from .files import readable

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

REFRESH_PERIOD_US, REFRESH_US = 7.8, 0.35  # every so often DRAM is shut for so long; of DDR4
DRAM_LATENCY = 64  # clocks from a read burst's address to its first beat, through a processing system
BOARD_FILE = "board.json"  # in a bundle, so that it runs where the board's TOML file is not
RESOURCES = ("lut", "ff", "dsp", "bram", "uram")
MOST = 1 << 30  # of anything that a board has
PORT_BITS = (32, 64, 128, 256, 512)
# Field of a Board -> its key in the file, the least and the most that it may be; whole numbers where the least is one.
NUMBERS: dict[str, tuple[str, float, float]] = {
    "bram_kbit": ("fabric.bram_kbit", 1, MOST),
    "macs_per_dsp": ("fabric.macs_per_dsp", 1, 64),
    "clock_mhz": ("fabric.clock_mhz", 1.0, 1e5),
    "dram_peak": ("dram.peak_gb_per_s, times 1e9,", 1e6, 1e15),
    "dram_usable": ("dram.usable", 0.01, 1.0),
    "dram_latency": ("dram.latency", 0, 1 << 16),
    "dram_refresh_us": ("dram.refresh_us", 0.0, 1e3),
    "port_count": ("ports.count", 1, 64),
    "port_outstanding": ("ports.outstanding", 1, 256),
    "idle_w": ("power.idle_w", 0.0, 1e6),
}
SECTIONS: dict[str, tuple[str, ...]] = {
    "resources": RESOURCES,
    "fabric": ("bram_kbit", "macs_per_dsp", "clock_mhz"),
    "dram": ("kind", "peak_gb_per_s", "usable", "latency", "refresh_us"),
    "ports": ("count", "bits", "outstanding"),
    "power": ("rails", "idle_w"),
}
OTHERS = ("description", "part", "family", "config", "bitstream")


@dataclass(frozen=True)
class Board:
    """One board. `resources` maps lut, ff, dsp, bram, uram to counts; `config` holds the Config fields that suit it, or
    none: then `explore` finds a Config for every network."""

    name: str
    description: str
    part: str
    family: str
    resources: dict[str, int]
    bram_kbit: int  # capacity of one block RAM
    macs_per_dsp: int  # int8 products that one multiplier gives a cycle
    clock_mhz: float
    dram_kind: str
    dram_peak: float  # bytes per second
    dram_usable: float  # fraction of the peak that long bursts reach between two refreshes
    port_count: int  # memory ports of the processing system
    port_bits: int
    port_outstanding: int
    rails: tuple[str, ...] = ()  # power rails that the host can record
    idle_w: float | None = None  # of the whole board, where it is known
    config: dict = field(default_factory=dict)
    bitstream: dict = field(default_factory=dict)  # see hwgen.bitstream.target
    dram_latency: int = DRAM_LATENCY
    dram_refresh_us: float = REFRESH_US

    def __post_init__(self) -> None:
        """Raises ValueError naming the key of a board's file whose value cannot be."""
        for name, (key, least, most) in NUMBERS.items():
            value, whole = getattr(self, name), isinstance(least, int)
            if name == "idle_w" and value is None:
                continue
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not least <= value <= most:
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"{key} = {value!r}: must be {kind} from {least:g} to {most:g}")
        if self.port_bits not in PORT_BITS:
            raise ValueError(f"ports.bits = {self.port_bits!r}: must be {', '.join(map(str, PORT_BITS))}")
        for kind in RESOURCES:
            count = self.resources.get(kind)
            if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST:
                raise ValueError(f"resources.{kind} = {count!r}: must be a whole number, at least 0")
        texts = {"description": self.description, "part": self.part, "family": self.family, "dram.kind": self.dram_kind}
        if not isinstance(self.rails, tuple):
            raise ValueError(f"power.rails = {self.rails!r}: must be a list of texts")
        for key, value in [*texts.items(), *(("power.rails", rail) for rail in self.rails)]:
            if not isinstance(value, str):
                raise ValueError(f"{key}: {value!r} is no text")

    @property
    def dram_bytes_per_second(self) -> float:
        """Bandwidth that the design may count on."""
        return self.dram_peak * self.dram_usable

    def make_config(self, settings: dict[str, str] | None = None) -> Config:
        """The board's Config with `--set` texts applied, or where it stores none a small machine at all of its ports.

        Its window engine, where no text sets that, is at most as wide as the array's rows. Raises UserError for an unknown
        field or a bad value.
        """
        ports = {
            "clock_mhz": self.clock_mhz,
            "axi_bytes": self.port_bits // 8,
            "outstanding": self.port_outstanding,
            "weight_ports": max(1, min(MAX_WEIGHT_PORTS, self.port_count - 1)),
        }
        stored = Config.from_dict(ports | self.config)
        config = stored.replace({"window_chunks": "0"} | (settings or {}))
        if "window_chunks" not in (settings or {}):
            config = replace(config, window_chunks=min(stored.window_chunks, config.input_chunks))
        if config.axi_bytes * 8 > self.port_bits:
            raise UserError(f"Config axi_bytes={config.axi_bytes}: the ports of {self.name} are {self.port_bits} bits wide")
        if config.weight_ports + 1 > self.port_count:
            raise UserError(
                f"Config weight_ports={config.weight_ports}: with the data port more than the {self.port_count} of {self.name}"
            )
        return config


def names() -> list[str]:
    """Names of all known boards, sorted."""
    return sorted(f.name[: -len(".toml")] for f in files("hwgen.board_files").iterdir() if f.name.endswith(".toml"))


def load(name: str) -> Board:
    """The board of that name, or of the TOML file that `name` is the path of. Raises UserError listing the known ones."""
    if name.endswith(".toml"):
        try:
            return parse(readable(Path(name).with_suffix("")), Path(name).read_text(encoding="utf-8"), f"board file {name}")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"board file {name}: {getattr(error, 'strerror', None) or error}") from None
    if name not in names():
        raise UserError(f"unknown board {name!r}; known are {', '.join(names())}")
    return parse(name, files("hwgen.board_files").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def parse(name: str, text: str, where: str = "") -> Board:
    """A board from the text of its TOML file. Raises UserError naming the board, or `where` it comes from, and what is wrong."""
    where = where or f"board {name}"
    try:
        values = tomllib.loads(text)
        fabric, dram, ports, power, resources = (_section(values, n) for n in ("fabric", "dram", "ports", "power", "resources"))
        if unknown := [name for name in values if name not in (*SECTIONS, *OTHERS)]:
            raise ValueError(f"unknown key {unknown[0]!r}")
        return Board(
            name=name,
            description=values["description"],
            part=values["part"],
            family=values["family"],
            resources={kind: resources[kind] for kind in RESOURCES},
            bram_kbit=fabric["bram_kbit"],
            macs_per_dsp=fabric["macs_per_dsp"],
            clock_mhz=_scaled(fabric["clock_mhz"], 1.0),
            dram_kind=dram["kind"],
            dram_peak=_scaled(dram["peak_gb_per_s"], 1e9),
            dram_usable=dram["usable"],
            port_count=ports["count"],
            port_bits=ports["bits"],
            port_outstanding=ports["outstanding"],
            rails=tuple(rails) if isinstance(rails := power["rails"], list) else rails,
            idle_w=power.get("idle_w"),
            config=_section({"config": {}} | values, "config"),
            bitstream=_section({"bitstream": {}} | values, "bitstream"),
            dram_latency=dram.get("latency", DRAM_LATENCY),
            dram_refresh_us=dram.get("refresh_us", REFRESH_US),
        )
    except KeyError as error:
        raise UserError(f"{where}: its description has no {error.args[0]!r}") from None
    except ValueError as error:  # of TOML's grammar too
        raise UserError(f"{where}: {error}") from None


def _section(values: dict, name: str) -> dict:
    held = values[name]
    if not isinstance(held, dict):
        raise ValueError(f"{name} = {held!r}: must be a section, [{name}]")
    if unknown := [key for key in held if key not in SECTIONS.get(name, held)]:
        raise ValueError(f"[{name}]: unknown key {unknown[0]!r}; known are {', '.join(SECTIONS[name])}")
    return dict(held)


def _scaled(number: Any, by: float) -> Any:
    """A number as `Board` holds it; of anything else that will complain."""
    return float(number * by) if isinstance(number, (int, float)) and not isinstance(number, bool) else number


def to_json(board: Board) -> str:
    """A board as a bundle carries it."""
    return json.dumps(asdict(board), indent=1, sort_keys=True) + "\n"


def of_bundle(files: dict[str, bytes], where: Path) -> Board:
    """The board in the files of a bundle. Raises UserError naming the bundle `where` if it holds none that is sound."""
    if BOARD_FILE not in files:
        raise UserError(f"{where}: holds no {BOARD_FILE}: it is of an earlier hwgen, build it again")
    try:
        return from_json(files[BOARD_FILE])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{where / BOARD_FILE}: describes no board") from None


def from_json(text: bytes | str) -> Board:
    """The board that `to_json` wrote."""
    values = json.loads(text)
    return Board(**values | {"rails": tuple(values["rails"])})


def to_dict() -> dict[str, dict]:
    """All boards by name, for `hwgen boards --json`."""
    return {name: asdict(load(name)) for name in names()}


def table() -> str:
    """All boards, one a line, for `hwgen boards`."""
    rows = [("board", "part", "LUT", "BRAM", "URAM", "DSP", "DRAM GB/s", "MHz", "array")]
    for name in names():
        board = load(name)
        config, r = board.make_config(), board.resources
        rows.append(
            (
                name,
                board.part,
                f"{r['lut']:,}",
                f"{r['bram']} x {board.bram_kbit}k",
                f"{r['uram']}",
                f"{r['dsp']:,}",
                f"{board.dram_peak / 1e9:.2f}",
                f"{config.clock_mhz:g}",
                f"{config.array_outputs} x {config.array_inputs}" if board.config else "explored",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
