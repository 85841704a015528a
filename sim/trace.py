"""Reads what `tb/trace.v` wrote: when each instruction ran in the simulated Verilog, and why the array stood still."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from hwgen import isa
from hwgen.isa import Unit
from hwgen.timeline import CAUSES, Span


def split(text: str) -> list[list[list[str]]]:
    """The events of each run in the text of a trace."""
    runs: list[list[list[str]]] = []
    for line in text.splitlines():
        if line == "R":
            runs.append([])
        elif runs:
            runs[-1].append(line.split())
    return runs


def spans(events: list[list[str]], program: list[isa.Insn]) -> list[Span]:
    """One span per instruction of `program`, its END and walks apart, in program order.

    A Stream ends when its last word is in the buffer, rounded up to 64 words; the others when they strobe `done`. Raises
    ValueError where the trace does not fit the program.
    """
    order = {unit: deque(i for i, insn in enumerate(program) if insn.unit == unit) for unit in Unit}
    taken: dict[Unit, deque[tuple[int, int]]] = {unit: deque() for unit in Unit}
    streamed: list[tuple[Span, int]] = []  # with the words up to its end
    words, arrivals = 0, []
    issues: deque[list[int]] = deque()
    before = [0] * len(CAUSES)
    result = []
    try:
        for kind, *values in events:
            numbers = [int(value) for value in values]
            if kind == "A":
                unit = Unit(numbers[0])
                index = order[unit].popleft()
                if not isinstance(program[index], isa.WalkFields):
                    taken[unit].append((index, numbers[1]))
            elif kind == "I":
                issues.append(numbers)
            elif kind == "W":
                arrivals.append((numbers[0], numbers[1]))
            elif kind == "F":
                unit, end = Unit(numbers[0]), numbers[1]
                index, start = taken[unit].popleft()
                insn = program[index]
                if unit == Unit.MATMUL:
                    issued, *spent = issues.popleft()
                    causes = {cause: float(now - was) for cause, now, was in zip(CAUSES, spent, before, strict=True)}
                    before = spent
                    result.append(Span(index, unit, start, end, issued, causes))
                elif unit == Unit.WEIGHTS and numbers[2]:
                    words += insn.words
                    streamed.append((Span(index, unit, start, end, end), words))
                else:
                    result.append(Span(index, unit, start, end, end))
    except (IndexError, ValueError) as error:
        raise ValueError(f"the trace does not fit the program: {error}") from None
    left = [unit.name for unit in Unit if order[unit] or taken[unit]]
    if left:
        raise ValueError(f"the trace does not fit the program: instructions of {', '.join(left)} did not finish")
    for span, last in streamed:
        at = bisect_left(arrivals, (last,))
        if at < len(arrivals):  # the last words of a program need not fill 64
            span.end = max(span.end, arrivals[at][1])
        result.append(span)
    return sorted(result, key=lambda span: span.index)
