"""Selective scans: a chain of states, each the decayed one before it and what a token feeds, read out by a product.

Exporters unroll the loop. The steps read slices of two values that hold every token's decay and what it feeds, and these are
products and exponentials from which the operands of the layer are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..layers import Scan
from ..tensor import Builder, Concat, Contract, Layout, Node, Ref
from .match import constant, is_map, layer, of_part
from .names import label
from .rewrite import relabel

Array = np.ndarray


@dataclass(eq=False)
class Chain:
    """States in the order of the scan: `decays` and `fed` [T, C, N] of every token, the first one's decay included."""

    decays: Ref
    fed: Ref


def scan(t: Builder, node: Node) -> Ref | None:
    """The outputs of all steps: a product of all states at once, or the products of every state joined."""
    found = _at_once(t, node) if isinstance(node.op, Contract) else _by_steps(t, node) if isinstance(node.op, Concat) else None
    if found is None:
        return None
    chain, read, backwards = found
    parts = _operands(t, chain)
    if parts is None:
        return None
    x, steps, fed, decay = parts
    groups = _groups(fed), _groups(read)
    if None in groups or (len(set(groups)) > 1 and 1 not in groups):
        return None
    count = max(g for g in groups if g is not None)
    each = x.shape[1] // count
    made = []
    for g in range(count):
        operands = [of_part(t.slice(r, 1, g * each, each)) for r in (x, steps)]
        operands += [_column(t, t.slice(r, 1, g * each, 1), 1) for r in (fed, read)]
        if backwards:
            operands = [t.slice(r, 0, r.shape[0] - 1, r.shape[0], -1) for r in operands]
        a, none = t.const(decay[g * each : (g + 1) * each]), t.const(np.zeros(each, np.float32))
        made.append(relabel(t.node(Scan(), *operands, a, none), label(t.source)))
    y = t.concat(made, 1)
    y = t.slice(y, 0, y.shape[0] - 1, y.shape[0], -1) if backwards else y
    return _as_result(t, y, node)


def skipped(t: Builder, node: Node) -> Ref | None:
    """The sum of a scan and of what it reads times a number for each channel; of several scans side by side, each by itself."""
    if not is_map(node, "add"):
        return None
    if (found := _skipped_by_group(t, node)) is not None:
        return found
    for r, other in (node.operands, node.operands[::-1]):
        if not layer(r, Scan) or not is_map(other, "mul") or r.node.operands[5].scalar != 0:
            continue
        shown = r.layout.positions()
        if len(np.unique(shown)) != r.node.size or shown.size != r.node.size:
            continue
        x, gain = (t.through(other.layout, o) for o in other.node.operands)
        x, gain = (gain, x) if constant(x) else (x, gain)
        if not constant(gain) or constant(x) or not _same(of_part(x), t.through(r.layout, r.node.operands[0])):
            continue
        flat = np.zeros(r.node.size, np.float32)
        flat[shown.reshape(-1)] = gain.numbers.reshape(-1)
        table = flat.reshape(r.node.shape)
        if (table == table[:1]).all():
            y = t.node(Scan(), *r.node.operands[:5], t.const(table[0]))
            return relabel(y, r.node.name).move(r.layout)
    return None


def _skipped_by_group(t: Builder, node: Node) -> Ref | None:
    for r, other in (node.operands, node.operands[::-1]):
        if not isinstance(r.op, Concat) or not is_map(other, "mul"):
            continue
        count = len(r.node.operands)
        for axis, length in enumerate(node.shape):
            each = length // count
            parts = [of_part(t.slice(r, axis, g * each, each)) for g in range(count)] if each * count == length else []
            if not parts or not all(layer(p, Scan) for p in parts):
                continue
            made = []
            for g, part in enumerate(parts):
                sides = [of_part(t.slice(t.through(other.layout, o), axis, g * each, each)) for o in other.node.operands]
                whole = skipped(t, t.map("add", part, t.map("mul", *sides)).node)
                if whole is None:
                    return None
                made.append(whole)
            return t.concat(made, axis)
    return None


# --- the chain -------------------------------------------------------------------------------------------------------


def _at_once(t: Builder, node: Node) -> tuple[Chain, Ref, bool] | None:
    """All states joined and multiplied with [T, N]."""
    first, second, result = node.op.letters
    for (states, own), (g, other) in (
        ((node.operands[0], first), (node.operands[1], second)),
        ((node.operands[1], second), (node.operands[0], first)),
    ):
        if not isinstance(states.op, Concat):
            continue
        sizes = dict(zip(own + other, states.shape + g.shape, strict=True))
        real = [c for c in own if sizes[c] > 1 and c in result]
        summed = [c for c in own if sizes[c] > 1 and c not in result]
        token = [c for c in real if c in other]
        channel = [c for c in real if c not in other]
        if any(len(part) != 1 for part in (summed, token, channel)):
            continue
        axes = (token[0], channel[0], summed[0])
        if any(sizes[c] > 1 and c not in axes for c in other):
            continue
        turned = _axes(states, own, axes)
        if turned is None or not turned.whole or states.node.shape[states.op.axis] != sizes[token[0]]:
            continue
        parts = states.node.operands
        if len(parts) != sizes[token[0]]:
            continue
        shape = sizes[channel[0]], sizes[summed[0]]
        found = _chain(t, [t.reshape(p, shape) for p in parts])
        read = _axes(g, other, (token[0], summed[0]))
        if found is None or read is None:
            return None
        read = t.reshape(read, (read.shape[0], 1, read.shape[1]))
        return found[0], t.expand(read, (read.shape[0], shape[0], shape[1])), found[1]
    return None


def _by_steps(t: Builder, node: Node) -> tuple[Chain, Ref, bool] | None:
    """Every state multiplied with its own [N], or with [C, N], and the results joined."""
    parts = node.operands
    if len(parts) < 3 or any(p.shape[node.op.axis] != 1 or not p.whole for p in parts) or not isinstance(parts[0].op, Contract):
        return None
    spec, states, reads = parts[0].op.spec, [], []
    for p in parts:
        if not isinstance(p.op, Contract) or p.op.spec != spec or len(p.node.operands) != 2:
            return None
        sides = list(enumerate(p.node.operands))
        of_state = [(r, i) for i, r in sides if is_map(r, "add")] or [(r, i) for i, r in sides if _factors(t, r) is not None]
        if not of_state:
            return None
        state, i = of_state[0]
        own, other = p.op.letters[i], p.op.letters[1 - i]
        sizes = dict(zip(own, state.shape, strict=True))
        summed = [c for c in own if c not in p.op.letters[2] and sizes[c] > 1]
        channel = [c for c in own if c in p.op.letters[2] and sizes[c] > 1]
        if len(summed) != 1 or len(channel) != 1 or any(sizes.get(c, 2) > 1 and c not in (summed[0], channel[0]) for c in other):
            return None
        axes = channel[0], summed[0]
        at, read = _axes(state, own, axes), _axes(p.node.operands[1 - i], other, axes, sizes)
        if at is None or read is None:
            return None
        states.append(at)
        reads.append(read)
    found = _chain(t, states)
    read = _stack(t, reads)
    return None if found is None or read is None else (found[0], read, found[1])


def _axes(r: Ref, own: str, wanted: tuple[str, ...], sizes: dict[str, int] | None = None) -> Ref | None:
    """The operand with these axes alone; the others have length 1. With `sizes` what lacks an axis is the same along it."""
    if any(n > 1 and c not in wanted for c, n in zip(own, r.shape, strict=True)):
        return None
    axes = []
    for c in wanted:
        if c in own:
            axes.append(r.layout.axes[own.index(c)])
        elif sizes is None:
            return None
        else:
            axes.append(((sizes[c], 0),) if sizes[c] > 1 else ())
    return r.move(Layout(tuple(axes), r.layout.offset))


def _chain(t: Builder, states: list[Ref]) -> tuple[Chain, bool] | None:
    """The chain of states [C, N] that stand in the order of their tokens, and whether it runs from the last one."""
    if len(states) < 3:
        return None
    for backwards in (False, True):
        order = states[::-1] if backwards else states
        decays, fed = [], [order[0]]
        for before, state in zip(order, order[1:], strict=False):
            step = _step(t, before, state)
            if step is None:
                break
            decays.append(step[0])
            fed.append(step[1])
        else:
            if backwards:
                decays, fed = decays[::-1], fed[::-1]
            a, b = _stack(t, decays, None if backwards else -1, len(fed)), _stack(t, fed)
            return None if a is None or b is None else (Chain(a, b), backwards)
    return None


def _step(t: Builder, before: Ref, state: Ref) -> tuple[Ref, Ref] | None:
    """(decay, fed) [C, N] of a state, the decay times the one before plus what is fed."""
    if not is_map(state, "add"):
        return None
    p, q = (t.through(state.layout, r) for r in state.node.operands)
    for kept, fed in ((p, q), (q, p)):
        if not is_map(kept, "mul"):
            continue
        one, other = (t.through(kept.layout, r) for r in kept.node.operands)
        for decay, last in ((one, other), (other, one)):
            if last == before or _same(last, before):
                return decay, fed
    return None


def _stack(t: Builder, parts: list[Ref], more: int | None = None, count: int = 0) -> Ref | None:
    """Slices of one value in even steps as one walk [T, ..]; with a `count` one more of them stands before (-1) or behind."""
    first = parts[0]
    made = t.concat([r.move(Layout(((), *r.layout.axes), r.layout.offset)) for r in parts], 0)
    if made.node is not first.node:
        return None
    if not count:
        return made
    (_, step), *_ = made.layout.axes[0]
    longer = Layout((((count, step),), *made.layout.axes[1:]), made.layout.offset + (step * more if more else 0))
    at = longer.positions()
    return made.move(longer) if at.min() >= 0 and at.max() < made.node.size else None


def _same(a: Ref, b: Ref) -> bool:
    return a.node is b.node and a.shape == b.shape and np.array_equal(a.layout.positions(), b.layout.positions())


# --- operands --------------------------------------------------------------------------------------------------------


def _operands(t: Builder, chain: Chain) -> tuple[Ref, Ref, Ref, Array] | None:
    """(x, steps, b [T, C, N], a [C, N]) of the decays exp(softplus(steps) * a) and of what is fed, softplus(steps) * b * x."""
    if not is_map(chain.decays, "exp"):
        return None
    inner = t.through(chain.decays.layout, chain.decays.node.operands[0])
    sides = _factors(t, inner)
    if sides is None:
        return None
    d, a = sides
    d, a = (a, d) if constant(d) else (d, a)
    if not constant(a) or constant(d) or _along(a, 0) or _along(d, 2) or not is_map(d, "softplus"):
        return None
    known = _column(t, d, 2)
    x: list[Ref] = []
    b: list[Ref] = []
    steps = 0
    todo = [chain.fed]
    while todo:
        r = todo.pop()
        of_channel, of_state = _along(r, 1), _along(r, 2)
        if not of_state and _same(_column(t, r, 2), known):
            steps += 1
        elif (sides := _factors(t, r)) and (of_state and not _grouped(r) or any(_same_column(t, o, known) for o in sides)):
            todo += sides
        elif not of_state and of_channel:
            x.append(_column(t, r, 2))
        else:
            b.append(r)
    if steps != 1 or len(x) != 1 or len(b) != 1 or constant(x[0]) or constant(b[0]):
        return None
    decay = np.asarray(t.slice(a, 0, 0, 1).numbers, np.float32)[0]
    return x[0], t.through(known.layout, known.node.operands[0]), b[0], decay


def _factors(t: Builder, r: Ref) -> list[Ref] | None:
    """Both factors of an elementwise product, also where it is written as an outer one."""
    if is_map(r, "mul"):
        return [t.through(r.layout, o) for o in r.node.operands]
    if not isinstance(r.op, Contract) or len(r.node.operands) != 2:
        return None
    first, second, result = r.op.letters
    if set(first + second) - set(result):
        return None
    found, sizes = [], dict(zip(result, r.node.shape, strict=True))
    for o, own in zip(r.node.operands, (first, second), strict=True):
        axes = dict(zip(own, o.layout.axes, strict=True))
        wide = tuple(axes.get(c, ((sizes[c], 0),) if sizes[c] > 1 else ()) for c in result)
        found.append(t.through(r.layout, o.move(Layout(wide, o.layout.offset))))
    return found


def _along(r: Ref, axis: int) -> bool:
    """Whether the elements change along an axis."""
    return any(r.layout.strides(axis))


def _grouped(r: Ref) -> bool:
    return _groups(r) is not None


def _groups(r: Ref) -> int | None:
    """Groups of channels, those of each alike; None where every channel has its own."""
    factors = r.layout.axes[1]
    if not any(s for _, s in factors):
        return 1
    return factors[0][0] if len(factors) == 2 and not factors[1][1] else None


def _same_column(t: Builder, r: Ref, known: Ref) -> bool:
    return not _along(r, 2) and _same(_column(t, r, 2), known)


def _column(t: Builder, r: Ref, axis: int) -> Ref:
    """The first index of an axis, which is gone."""
    return t.reshape(t.slice(r, axis, 0, 1), [n for i, n in enumerate(r.shape) if i != axis])


def _as_result(t: Builder, y: Ref, node: Node) -> Ref:
    """y [T, C] in the shape of the product, or of the joined results, which it replaces."""
    if isinstance(node.op, Concat):
        ahead = int(np.prod(node.shape[: node.op.axis]))
        token_first = ahead == 1
    else:
        first, second, result = node.op.letters
        shared = [c for c, n in zip(result, node.shape, strict=True) if n > 1]
        token_first = len(shared) < 2 or (shared[0] in first and shared[0] in second)
    return t.reshape(y if token_first else t.transpose(y, (1, 0)), node.shape)
