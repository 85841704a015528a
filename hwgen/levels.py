"""The compiler's float levels as ordered passes over one file; `proof` holds them against the file.

    file --tensor--> T (tensor IR) --layers--> L (the same IR, nodes that are layers) --rows--> row graph (`hwgen.graph`)

A pass returns its program and findings: ONNX nodes that it cannot take. With findings it still returns a program, in which
inputs named `?..` stand for what is missing, so that the next pass judges what lies behind; nothing is ever taken in part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import graph, rows
from . import tensor as ir
from .errors import Finding, UserError
from .importer.importer import import_program
from .importer.load import Model, load
from .importer.part import Cut, before
from .proof import confirm
from .recognise import recognise

Pass = Callable[[Any], tuple[Any, list[Finding]]]


PASSES: tuple[tuple[str, Pass], ...] = (("tensor", import_program), ("layers", recognise), ("rows", rows.lower))
NAMED = 5  # nodes that a refusal names for each fault; `check` lists all
MOST_TASKS = 64
DEPTH = 10_000  # calls within each other: a pass that asks for a node asks for what it reads first, through a whole network


@dataclass
class Compiled:
    """What the passes made of a model, by the pass's name, and everything that stands in the way."""

    model: Model
    levels: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, int]:
        """The integer inputs that select this task."""
        return {name: int(value.reshape(-1)[0]) for name, value in self.model.fixed.items()}

    def until(self, last: str) -> Compiled:
        """The passes up to `last` that have not run yet, each on what the one before left; itself."""
        value: Any = self.model
        for name, step in PASSES:
            if name not in self.levels:
                try:
                    with _deep():
                        value, findings = step(value)
                except ir.TooLarge as error:
                    raise UserError(f"{self.model.path}: level {name}: {error}, too many") from None
                except RecursionError:
                    raise UserError(f"{self.model.path}: level {name}: too many layers behind each other") from None
                known = {f.node for f in self.findings}
                self.findings += [f for f in findings if f.node not in known]
                if value is None:
                    break
                self.levels[name] = value
                if not findings:
                    self._verify(name)
            value = self.levels[name]
            if name == last:
                break
        return self

    def _verify(self, name: str) -> None:
        level = self.levels[name]
        try:
            ir.verify(level) if isinstance(level, ir.Program) else graph.verify(level)
        except ValueError as error:
            raise UserError(f"{self.model.path}: level {name}: {error}") from None

    def complete(self, name: str) -> Any:
        """A level without findings, or UserError with all that stands in the way, also at the levels behind."""
        if not self.until(name).findings and name in self.levels:
            return self.levels[name]
        raise UserError(refusal(self.model.path, self.until(PASSES[-1][0]).findings))


@contextmanager
def _deep() -> Iterator[None]:
    """As many calls within each other as a deep network needs."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def compiled(path: str | Path, **options: Any) -> Compiled:
    """A file before the first pass. options: of `load`."""
    return Compiled(load(path, **options))


def tensor(path: str | Path, **options: Any) -> ir.Program:
    """Level T of a file. options: of `load`. Raises UserError naming every node that has no rule."""
    program: ir.Program = compiled(path, **options).complete("tensor")
    return program


def layers(path: str | Path, **options: Any) -> ir.Program:
    """Level L of a file. options: of `load`. What no pattern takes stays a node of T."""
    program: ir.Program = compiled(path, **options).complete("layers")
    return program


def import_model(path: str | Path, confirmed: bool = True, **options: Any) -> graph.Graph:
    """The row graph of a file, proven against it on random images unless `confirmed` is False. options: of `load`.

    Raises UserError naming every node that is unsupported, or the level that computes something else than the file.
    """
    done = compiled(path, **options)
    result: graph.Graph = done.complete("rows")
    if confirmed:
        confirm(done.model, result, done.levels)
    return result


def check(path: str | Path, **options: Any) -> list[Finding]:
    """Every node that hwgen cannot build, of all tasks; empty if it can build all. Raises UserError for a bad file."""
    return standing(tasks(path, **options))


def standing(compiled: Mapping[str, Compiled]) -> list[Finding]:
    """What stands in the way of all tasks, after all passes; each finding once."""
    return list(dict.fromkeys(f for one in compiled.values() for f in one.until(PASSES[-1][0]).findings))


def proposal(path: str | Path, findings: list[Finding], **options: Any) -> Cut | None:
    """Where a file may end so that hwgen builds the rest, for `load`'s `outputs`; None where no cut helps.

    findings: of `check` with the same options, without `outputs`. The cut was checked as a file of its own.
    """
    model = load(path, **options)
    found = before(model.graph, {f.node for f in findings}, [*model.inputs])
    try:
        return found if found and not check(path, outputs=found.outputs, **options) else None
    except UserError:  # a value of a local function, which the file does not name, or one that is no image's
        return None


def refusal(path: str | Path, findings: list[Finding]) -> str:
    """One message for all findings, nodes with the same fault together, the first few of them by name."""
    groups: dict[tuple[str, str], list[str]] = {}
    for f in findings:
        groups.setdefault((f.op, f.why), []).append(f.node)
    lines = [f"{path}: {len(findings)} node{'s' if len(findings) > 1 else ''} not supported"]
    for (op, why), nodes in groups.items():
        more = f" and {len(nodes) - NAMED} more (`hwgen check` lists them)" if len(nodes) > NAMED else ""
        lines.append(f"  {op}: {why}: {', '.join(nodes[:NAMED])}{more}")
    return "\n".join(lines)


# --- tasks ---------------------------------------------------------------------------------------------------------


def tasks(path: str | Path, **options: Any) -> dict[str, Compiled]:
    """The tasks of a file by name, before the first pass; one named "" where no integer input selects them.

    The values of an input are 0, 1, ... while each computes something else than those before and is no index out of
    range. Several inputs give the product of their values, which `Compiled.numbers` tells.
    """
    whole = compiled(path, **options)
    names = whole.model.numbers
    found: dict[str, dict[str, int]] = {"": {}}
    for name in names:
        values = range(_count(Path(path), name, {other: 0 for other in names if other != name}, options))
        found = {f"{task}{name}{v}": {**numbers, name: v} for task, numbers in found.items() for v in values}
    return {task: compiled(path, fixed=numbers, **options) if names else whole for task, numbers in found.items()}


def _count(path: Path, name: str, others: dict[str, int], options: dict[str, Any]) -> int:
    """How many values of an integer input make a difference."""
    known: list[tuple[str, list[bytes]]] = []
    faults = 0
    for value in range(MOST_TASKS):
        program, findings = import_program(load(path, fixed={**others, name: value}, **options))
        constants = [n.op.array.tobytes() for n in program.nodes() if isinstance(n.op, ir.Const)]
        seen = (ir.text(program), constants)
        if seen in known or (value and len(findings) > faults):
            return value
        known.append(seen)
        faults = len(findings)
    raise UserError(f"{path}: input {name!r}: more than {MOST_TASKS} of its values make a difference")
