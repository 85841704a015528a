"""nextpnr's JSON report: clock, utilisation, critical path by cell."""

from __future__ import annotations

from dataclasses import dataclass, field

RESOURCES = {
    "TRELLIS_COMB": "LUT4",
    "TRELLIS_FF": "FF",
    "MULT18X18D": "MULT18X18D",
    "DP16KD": "EBR",
    "TRELLIS_RAMW": "RAMW",
}

LEAST_NS = 0.1  # what is shown of a path: a carry chain's links are many and short


@dataclass(frozen=True)
class Step:
    """A piece of a path: `kind` is clk-to-q, source, logic, routing or setup; of routing, `cell` is where it ends."""

    kind: str
    ns: float
    cell: str
    pin: str


@dataclass
class Timing:
    """What place and route reached. `used`: resource -> (used, available)."""

    wanted_mhz: float
    reached_mhz: float
    path: list[Step] = field(default_factory=list)
    used: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the design runs at the clock it is made for."""
        return self.reached_mhz >= self.wanted_mhz

    def to_dict(self) -> dict:
        return {
            "clock_mhz": self.wanted_mhz,
            "fmax_mhz": round(self.reached_mhz, 2),
            "met": self.met,
            "used": {kind: {"used": used, "available": of} for kind, (used, of) in self.used.items()},
            "critical_path": [{"kind": s.kind, "ns": round(s.ns, 3), "cell": s.cell, "pin": s.pin} for s in self.path],
        }


def read(found: dict, wanted_mhz: float) -> Timing:
    """The timing in a report of a design of one clock. Raises ValueError for a report without a clock."""
    if not found.get("fmax"):
        raise ValueError("nextpnr's report has no clock")
    clock, worst = min(found["fmax"].items(), key=lambda item: item[1]["achieved"])
    timing = Timing(wanted_mhz, worst["achieved"])
    for path in found.get("critical_paths", []):
        if path["from"].split()[-1] == path["to"].split()[-1] == clock:
            for step in path["path"]:
                end = step["to"] if step["type"] in ("routing", "setup") else step["from"]
                timing.path.append(Step(step["type"], step["delay"], end.get("cell", ""), end.get("port", "")))
    for kind, name in RESOURCES.items():
        if kind in found.get("utilization", {}):
            timing.used[name] = (found["utilization"][kind]["used"], found["utilization"][kind]["available"])
    return timing


def text(timing: Timing) -> str:
    """The lines that `hwgen bitstream` prints."""
    verdict = "met" if timing.met else "NOT met"
    lines = [f"clock {timing.wanted_mhz:g} MHz, reached {timing.reached_mhz:.2f} MHz: {verdict}", ""]
    lines += [f"{'':14}{'used':>10}{'available':>10}"]
    lines += [f"{name:14}{used:>10,}{of:>10,}{used / of:>6.0%}" for name, (used, of) in timing.used.items()]
    lines += ["", f"critical path, {sum(step.ns for step in timing.path):.2f} ns:"]
    lines += [f"{step.ns:>7.2f}  {step.kind:9} {step.cell}.{step.pin}" for step in timing.path if step.ns >= LEAST_NS]
    return "\n".join(lines)
