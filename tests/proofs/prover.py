"""Amaranth components to SMT (by Yosys) to proofs (by z3): in all runs of any length by induction, or in the first cycles."""

from __future__ import annotations

import re
from pathlib import Path

import z3
from amaranth.back import rtlil
from amaranth.hdl import Array, Assume, ClockDomain, Elaboratable, Module, Signal, Value

from hwgen.rtl.claims import stays
from hwgen.synth import yosys

STEPS = (
    "read_rtlil top.il; hierarchy -top top; proc; flatten; opt_clean; chformal -lower; async2sync; dffunmap; opt_clean; "
    "write_smt2 -stbv -wires top.smt2"
)
SHOWN = 40  # signals of a counterexample


class Wrong(AssertionError):
    """A claim that does not hold, with a run that shows it."""


class _Registers(Elaboratable):
    """A Ram of registers, `rows` and the two that a word goes through: `first`, then `ram.read_data`."""

    def __init__(self, ram):
        self.ram = ram
        self.rows = [Signal(ram.width, name=f"row_{i}") for i in range(ram.depth)]
        self.first, self.second = Signal(ram.width, name="first"), Signal(ram.width, name="second")

    def elaborate(self, platform):
        m, ram = Module(), self.ram
        m.d.sync += [self.first.eq(Array(self.rows)[ram.read_addr]), self.second.eq(self.first)]
        m.d.comb += ram.read_data.eq(self.second)
        for i, row in enumerate(self.rows):
            with m.If(ram.write_enable & (ram.write_addr == i)):
                m.d.sync += row.eq(ram.write_data)
        return m


class Platform:
    """Components claim what holds in them. contents: RAMs keep what is written, else every read gives anything."""

    proves = True

    def __init__(self, contents: bool = True):
        self.contents = contents
        self.inputs: list[Signal] = []
        self._rams: dict = {}
        self._shown: dict = {}

    def free(self, shape, name: str) -> Signal:
        """What the environment may set to anything in every cycle."""
        self.inputs.append(signal := Signal(shape, name=f"{name}_{len(self.inputs)}"))
        return signal

    def opened(self, ram) -> _Registers:
        """The registers that stand for a Ram."""
        if ram not in self._rams:
            self._rams[ram] = _Registers(ram)
        return self._rams[ram]

    def shown(self, component, name: str, shape) -> Signal:
        """A value inside a component, which drives it, for the claims of another."""
        if (component, name) not in self._shown:
            self._shown[component, name] = Signal(shape, name=f"shown_{name}_{len(self._shown)}")
        return self._shown[component, name]

    def get_memory(self, ram):
        if self.contents:
            return self.opened(ram)
        m = Module()
        m.d.comb += ram.read_data.eq(self.free(ram.width, "read"))
        return m


class Bench:
    """A component in an environment that may do anything but what is assumed."""

    def __init__(self, dut, contents: bool = True):
        self.platform, self.m = Platform(contents), Module()
        self.m.domains.sync = self.clock = ClockDomain(reset_less=True)
        self.m.submodules.dut = dut
        self.started = Signal(name="started")  # all cycles but the first
        self.m.d.sync += self.started.eq(1)

    def drive(self, *signals) -> None:
        """Let the environment drive these inputs of the component."""
        for signal in signals:
            value = Value.cast(signal)
            self.m.d.comb += value.eq(self.platform.free(len(value), "free"))

    def fix(self, signal) -> None:
        """Let the environment set this input once, to anything."""
        self.drive(signal)
        before = Signal(len(Value.cast(signal)))
        self.m.d.sync += before.eq(signal)
        self.assume(~self.started | (Value.cast(signal) == before))

    def give(self, stream) -> None:
        """Words on a stream into the component, which stay until they are taken."""
        self.drive(stream.valid, stream.payload)
        self.assume(stays(self.m, stream.valid, stream.ready, stream.payload))

    def assume(self, *conditions) -> None:
        self.m.d.comb += [Assume(condition) for condition in conditions]

    def prove(self, folder: Path, depth: int = 1) -> None:
        """By induction over `depth` cycles: whatever they hold, what is claimed in them holds in the next one too."""
        self.hold(folder, depth + 1)
        s, steps = z3.SolverFor("QF_BV"), self._steps(folder, depth + 1)
        s.add(steps[0].wires.get("started", True))
        for state in steps[:-1]:
            s.add(state.assumed, state.claimed, state.next)
        s.add(steps[-1].assumed, z3.Not(steps[-1].claimed))
        self._none(s, steps, "induction")

    def hold(self, folder: Path, cycles: int) -> None:
        """In the first `cycles` cycles, and there is a run of so many."""
        s = z3.SolverFor("QF_BV")
        steps = self._steps(folder, cycles)
        s.add(steps[0].initial)
        for state in steps:
            s.add(state.assumed)
            s.push()
            s.add(z3.Not(state.claimed))
            self._none(s, steps, "from the start")
            s.pop()
            s.add(state.claimed, state.next)
        assert s.check() == z3.sat, "no run keeps to what is assumed"

    def _steps(self, folder: Path, count: int) -> list[_Step]:
        path = folder / "top.smt2"
        if not path.exists():
            text = rtlil.convert(
                self.m, name="top", platform=self.platform, ports=[self.clock.clk, *self.platform.inputs]
            )
            (folder / "top.il").write_text(text)
            yosys.run(STEPS, folder)
        return _read(path.read_text(), count)

    def _none(self, s: z3.Solver, steps: list[_Step], how: str) -> None:
        found = s.check()
        if found == z3.unsat:
            return
        if found != z3.sat:
            raise Wrong(f"{how}: no answer ({s.reason_unknown()})")
        model = s.model()
        lines = []
        for name in list(steps[0].wires)[:SHOWN]:
            values = [model.eval(step.wires[name], model_completion=True) for step in steps]
            lines.append(f"{name}: {' '.join(map(str, values))}")
        last = steps[-1].claims
        broken = [where for where, claim in last.items() if z3.is_false(model.eval(claim, model_completion=True))]
        raise Wrong(f"{how}: {', '.join(broken)}: not so in the last cycle\n" + "\n".join(lines))


class _Step:
    """A cycle's state, as formulas."""

    def __init__(self, assumed, claimed, following, initial, wires, claims):
        self.assumed, self.claimed, self.next, self.initial = assumed, claimed, following, initial
        self.wires, self.claims = wires, claims


def _read(text: str, count: int) -> list[_Step]:
    """The design of the file, at `count` cycles and the one behind."""
    wires = re.findall(r"^; yosys-smt2-(?:input|register|output) (\S+) \d+$", text, re.M)
    claims = dict(re.findall(r"^; yosys-smt2-assert (\d+) \S+ (\S+)$", text, re.M))  # number -> where it is written
    asked = []
    for k in range(count):
        asked += [f"(|top_u| s{k})", f"(|top_a| s{k})", f"(|top_t| s{k} s{k + 1})", f"(|top_i| s{k})"]
        asked += [f"(|top_a {number}| s{k})" for number in claims]
    states = "".join(f"(declare-const s{k} |top_s|)\n" for k in range(count + 1))
    body = text + states + "".join(f"(assert {a})\n" for a in asked)
    body += "".join(
        f"(declare-const w{k}_{i} {_sort(text, name)})(assert (= w{k}_{i} (|top_n {name}| s{k})))\n"
        for k in range(count)
        for i, name in enumerate(wires)
    )
    formulas = list(z3.parse_smt2_string(body))
    size = 4 + len(claims)
    found = []
    for k in range(count):
        own = formulas[k * size : (k + 1) * size]
        first = count * size + k * len(wires)
        values = {name: f.arg(1) for name, f in zip(wires, formulas[first : first + len(wires)], strict=True)}
        named = {f"{where} (number {n})": f for (n, where), f in zip(claims.items(), own[4:], strict=True)}
        found.append(_Step(*own[:4], values, named))
    return found


def _sort(text: str, wire: str) -> str:
    made = re.search(rf"^\(define-fun \|top_n {re.escape(wire)}\| \(\(state \|top_s\|\)\) (\(_ BitVec \d+\)|\S+) ", text, re.M)
    return made[1]
