"""Loads, and what the vector unit makes of them, ahead of their use: while the array works on what is before it.

Only the order of operations changes. An operation goes up past as much work of the array as it takes itself several times,
but not past what it reads, nor past anything that touches the place that it writes. For a load work of the vector unit counts
as well, where that takes longer: many copies one after another would let all their loads go to the first of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate

import numpy as np

from ..intgraph import Constant, Fetch, Input, Multiply, Norm, Op, View
from .order import VECTOR
from .parts import lifetimes

LOAD_LEAD = 3.0  # of a load, in times of its transfer
VECTOR_LEAD = 1.5  # of an operation of the vector unit, in times of its own cycles


def ahead(
    ops: list[Op],
    floors: list[int],
    cycles: Callable[[Op], float],
    work: Callable[[Op], float],
    size: Callable[[str], int],
    most: int,
) -> list[Op]:
    """`ops` with loads and operations of the vector unit moved up, each at most to the operation that `floors` gives it, and
    as long as what lives then stays below `most` chunks.

    cycles(op): of one of these, or of another one of the vector unit; work(op): of the array; size(buffer): its chunks.
    """
    spans = lifetimes([op] for op in ops)
    live = np.zeros(len(ops) + 1, np.int64)  # chunks, while each operation works
    for name, (first, last) in spans.items():
        live[first : last + 1] += size(name)
    array = [0.0, *accumulate(work(op) for op in ops)]
    vector = [0.0, *accumulate(cycles(op) if isinstance(op, VECTOR) else 0.0 for op in ops)]
    free: dict[str, int] = defaultdict(int)  # before which operation a buffer's place may be written
    wrote: dict[str, list[tuple[int, View]]] = defaultdict(list)  # before which one each view written may be read
    place: list[tuple[int, int, int]] = []
    for i, op in enumerate(ops):
        at, moves = i, isinstance(op, Constant | Input | Fetch | Norm | Multiply)
        if moves:
            lowest = max(floors[i], *(free[view.buffer] for view in op.writes().values()))
            for view in op.reads().values():
                lowest = max([lowest, *(there for there, other in wrote[view.buffer] if other.overlaps(view))])
            beside = isinstance(op, Norm | Multiply)
            lead = (VECTOR_LEAD if beside else LOAD_LEAD) * cycles(op)
            opens = sum(size(name) for name in {view.buffer for view in op.views().values()} if spans[name][0] == i)
            while at > lowest and live[at - 1] + opens <= most:
                if array[i] - array[at] >= lead or (not beside and vector[i] - vector[at] >= lead):
                    break
                at -= 1
            moves = at < i
            live[at:i] += opens
        place.append((at, int(not moves), i))
        behind = at if moves else i + 1
        for view in op.views().values():
            free[view.buffer] = max(free[view.buffer], behind)
        for view in op.writes().values():
            wrote[view.buffer] = [(t, v) for t, v in wrote[view.buffer] if not view.covers(v)] + [(behind, view)]
    return [ops[i] for _, _, i in sorted(place)]
