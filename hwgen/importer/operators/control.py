"""Control flow: If, Loop and Scan with their bodies unrolled, and sequences of tensors.

What depends on the image is computed in full and chosen from: both branches of an If, all rounds of a Loop. A Loop of as
many rounds as a mask has true elements (experts that were hit) runs once for each element, and counts where it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tensor import BOOL, Const, Map, Node, Reduce, Ref, reached
from ...tensor.evaluate import apply
from ..ragged import Place, Ragged, Sizes, plain, run
from ..rules import ANY_VALUE, Array, Body, Context, Op, Unsupported, rule
from ..walk import walk

ROUNDS = 1024  # that a Loop or Scan is unrolled to
FIXED = "export without data-dependent control flow"
ANY_VALUE |= set(
    "If Loop SequenceEmpty SequenceConstruct SequenceInsert SequenceErase SequenceAt SequenceLength".split()
)
ANY_VALUE |= {"ConcatFromSequence"}


@dataclass(frozen=True)
class Sequence:
    """A value of ONNX's kind sequence."""

    items: tuple[Any, ...] = ()


def inside(c: Context, body: Body, operands: list[Any]) -> list[Any]:
    """The outputs of a graph inside a node."""
    inner = Context(c.t, c.opsets, dict(c.values), c.kinds, c.operators, c.findings, c.unwanted)
    inner.values.update((name, c.t.const(value, name)) for name, value in body.constants.items())
    c.kinds.update((name, value.dtype.name) for name, value in body.constants.items())
    inner.values.update(zip(body.inputs, operands, strict=False))
    before, source = len(c.findings), c.t.source
    walk(inner, body.ops)
    c.t.source = source
    missing = [name for name in body.outputs if name not in inner.values]
    if missing:
        first = c.findings[before].op if len(c.findings) > before else "a node"
        raise Unsupported(f"inside it {first} is not taken, so {missing[0]!r} is not known")
    return [inner.values[name] for name in body.outputs]


# --- If -------------------------------------------------------------------------------------------------------------


@rule("If")
def branch(c: Context, op: Op, condition: Any) -> list[Any]:
    """The branch that a constant names; else both, and where()."""
    bodies = op.attribute("then_branch"), op.attribute("else_branch")
    held = truth(c, condition)
    if held.scalar is not None:
        return inside(c, bodies[0 if held.scalar else 1], [])
    then, other = (inside(c, body, []) for body in bodies)
    return [choose(c, held, a, b) for a, b in zip(then, other, strict=True)]


def truth(c: Context, v: Any) -> Ref:
    """A single truth value."""
    v = plain(c, v)
    if not isinstance(v, Ref) or v.layout.size != 1:
        raise Unsupported("its condition is no single truth value")
    return c.t.reshape(c.t.map("bool", v), ())


def choose(c: Context, held: Ref, a: Any, b: Any) -> Any:
    """`a` where the single truth value holds, else `b`; the one alone that equals the other where the other is taken."""
    if a == b:
        return a
    if isinstance(a, Sequence) and isinstance(b, Sequence) and len(a.items) == len(b.items):
        return Sequence(tuple(choose(c, held, *pair) for pair in zip(a.items, b.items, strict=True)))
    if isinstance(a, Ragged) and isinstance(b, Ragged) and (a.mask, a.axis) == (b.mask, b.axis):
        return Ragged(choose(c, held, a.x, b.x), a.mask, a.axis)
    if not isinstance(a, Ref) or not isinstance(b, Ref) or (a.shape, a.dtype) != (b.shape, b.dtype):
        raise Unsupported("what it gives has another shape or kind where its condition does not hold", FIXED)
    return _skipped(c, held, a, b) or c.t.map("where", held, a, b)


def _skipped(c: Context, held: Ref, a: Ref, b: Ref) -> Ref | None:
    """The result of an If that skips an expert without tokens: what is computed for none equals what is there without."""
    total = _total(held)
    if total is None or (mask := _counted(total)) is None:
        return None
    truth = _truth(held, total, np.arange(mask.layout.size + 1)).astype(bool)
    if (truth[1:] == truth[0]).any():
        return None
    used, skipped = (b, a) if truth[0] else (a, b)
    return used if replaced(c, used, mask.node) == replaced(c, skipped, mask.node) else None


def _total(held: Ref) -> Node | None:
    """The one node that a computation with single numbers and constants starts from."""
    seen: dict[Node, None] = {held.node: None}
    for node in (todo := [held.node]):
        new = [r.node for r in node.operands if isinstance(node.op, Map) and r.node not in seen]
        seen.update(dict.fromkeys(new))
        todo += new
        if len(seen) > 16:
            return None
    found = [n for n in seen if not isinstance(n.op, Map | Const)]
    return found[0] if len(found) == 1 else None


def _counted(total: Node) -> Ref | None:
    """The mask whose true elements a node counts, or says that there are some."""
    if not isinstance(total.op, Reduce) or total.op.function not in ("sum", "max") or total.size != 1:
        return None
    inner = total.operands[0].node
    if not isinstance(inner.op, Map) or inner.op.function not in ("where", "int", "float") or not total.operands[0].whole:
        return None
    mask, *choices = inner.operands
    return mask if mask.dtype == BOOL and mask.whole and [r.scalar for r in choices] in ([1, 0], []) else None


def _truth(r: Ref, total: Node, numbers: Array) -> Array:
    """What a computation with single numbers makes of all `numbers` in the place of `total`."""
    if r.node is total or isinstance(r.op, Const):
        return numbers if r.node is total else r.numbers.reshape(-1)[:1]
    return apply(r.op, [_truth(x, total, numbers) for x in r.node.operands])


def replaced(c: Context, r: Ref, mask: Node) -> Ref:
    """`r` where `mask` is false everywhere."""
    made: dict[Node, Ref] = {mask: c.t.full(mask.shape, np.bool_(False))}
    for node in reached([r.node]):
        if node not in made:
            operands = [_shown(c, made[x.node], x) for x in node.operands]
            if operands == list(node.operands):
                made[node] = node.ref
            else:
                op = node.op
                made[node] = c.t.map(op.function, *operands) if isinstance(op, Map) else c.t.node(op, *operands)
    return _shown(c, made[r.node], r)


def _shown(c: Context, value: Ref, r: Ref) -> Ref:
    """`value`, in the place of a node, under the layout of `r`."""
    if value.node is r.node and value.whole:
        return r
    if value.layout.uniform() and value.constant is not None:
        return c.t.full(r.shape, value.numbers.reshape(-1)[0])
    return c.t.copy(value).move(r.layout)


# --- Loop and Scan --------------------------------------------------------------------------------------------------


@rule("Loop")
def loop(c: Context, op: Op, trips: Any, running: Any, *state: Any) -> list[Any]:
    """Rounds in turn; where it depends on the image whether one counts, the state is chosen after each."""
    body, t, values = op.attribute("body"), c.t, list(state)
    hit, rounds = None, None
    if isinstance(trips, Sizes):
        hit = trips.items.reshape(-1)[0]
        if hit.times != 1:
            raise Unsupported("runs as many rounds as some number of tokens", FIXED)
    elif trips is not None:
        rounds = c.ints(trips, "the number of rounds of a Loop")[0]
    live = None if running is None else truth(c, running)
    collected: list[list[Any]] = []
    lives: list[Ref | None] = []
    for i in range(hit.full if hit else min(rounds, ROUNDS + 1) if rounds is not None else ROUNDS + 1):
        counts = live
        if hit is not None:
            mine = t.reshape(t.slice(hit.mask, 0, i, 1), ())
            counts = mine if live is None else t.map("and", live, mine)
        if counts is not None and counts.scalar is not None:
            if not counts.scalar:
                break
            counts = None
        if i == ROUNDS:
            raise Unsupported(f"runs more than {ROUNDS} rounds, or as many as the image says", FIXED)
        number = t.const(np.int64(i))
        made = inside(c, body, [Place(number, hit.mask) if hit else number, t.const(np.bool_(True)), *values])
        again, new, rest = made[0], made[1 : len(values) + 1], made[len(values) + 1 :]
        values = new if counts is None else [choose(c, counts, a, b) for a, b in zip(new, values, strict=True)]
        again = truth(c, again)
        both = again if live is None else t.map("and", live, again)
        live = both if counts is None else choose(c, counts, both, t.const(np.bool_(True)) if live is None else live)
        collected.append(rest)
        lives.append(counts)
    return [*values, *_stacked(c, collected, lives, len(body.outputs) - 1 - len(values))]


def _stacked(c: Context, rounds: list[list[Any]], lives: list[Ref | None], width: int) -> list[Any]:
    """What each round gives, along a new first axis: ragged where rounds may not count."""
    if not width:
        return []
    if not rounds or not all(isinstance(v, Ref) for each in rounds for v in each):
        raise Unsupported("collects nothing, or what is no tensor of a known size", FIXED)
    stacks = [c.t.concat([c.t.reshape(v, (1, *v.shape)) for v in column], 0) for column in zip(*rounds, strict=True)]
    if all(live is None for live in lives):
        return stacks
    held = [c.t.full((1,), np.bool_(True)) if live is None else c.t.reshape(live, (1,)) for live in lives]
    return [Ragged(stack, c.t.concat(held, 0), 0) for stack in stacks]


@rule("Scan")
def scan(c: Context, op: Op, *x: Any) -> list[Any]:
    """Rounds over the slices of its inputs."""
    if op.opset < 9:
        raise Unsupported("is the Scan of opset 8, with a batch axis of its own")
    body, scanned = op.attribute("body"), op.attribute("num_scan_inputs")
    held = len(x) - scanned
    values, inputs, gives = list(x[:held]), x[held:], len(body.outputs) - held
    axes = [a % len(r.shape) for a, r in zip(op.attribute("scan_input_axes") or [0] * scanned, inputs, strict=True)]
    back = op.attribute("scan_input_directions") or [0] * scanned
    rounds = inputs[0].shape[axes[0]]
    if rounds > ROUNDS:
        raise Unsupported(f"runs {rounds} rounds, of which at most {ROUNDS} are unrolled")
    collected = []
    for i in range(rounds):
        slices = []
        for r, axis, backward in zip(inputs, axes, back, strict=True):
            one = c.t.slice(r, axis, rounds - 1 - i if backward else i, 1)
            slices.append(c.t.reshape(one, [n for k, n in enumerate(r.shape) if k != axis]))
        made = inside(c, body, values + slices)
        values = made[:held]
        collected.append(made[held:])
    stacks = _stacked(c, collected, [None] * rounds, gives)
    given = op.attribute("scan_output_directions") or [0] * gives
    places = op.attribute("scan_output_axes") or [0] * gives
    for i, stack in enumerate(stacks):
        stack = c.t.slice(stack, 0, rounds - 1, rounds, -1) if given[i] else stack
        place = places[i] % len(stack.shape)
        stacks[i] = c.t.transpose(stack, [*range(1, place + 1), 0, *range(place + 1, len(stack.shape))])
    return [*values, *stacks]


# --- sequences ------------------------------------------------------------------------------------------------------


@rule("SequenceEmpty", "SequenceConstruct")
def construct(c: Context, op: Op, *x: Any) -> Sequence:
    op.ignore("dtype")
    return Sequence(x)


@rule("SequenceInsert", "SequenceErase", "SequenceAt")
def at(c: Context, op: Op, x: Sequence, *rest: Any) -> Any:
    items, insert = list(x.items), op.type == "SequenceInsert"
    given = rest[1] if insert and len(rest) > 1 else None if insert or not rest else rest[0]
    place = (len(items) if insert else -1) if given is None else c.ints(given, "the place in a sequence")[0]
    if not -len(items) <= place < len(items) + insert:
        raise ValueError(f"element {place} of a sequence of {len(items)}")
    if op.type == "SequenceAt":
        return items[place]
    items[place : place if insert else place + 1 or None] = [rest[0]] if insert else []
    return Sequence(tuple(items))


@rule("SequenceLength")
def length(c: Context, op: Op, x: Sequence) -> Ref:
    return c.t.const(np.int64(len(x.items)))


@rule("ConcatFromSequence")
def joined(c: Context, op: Op, x: Sequence) -> Any:
    """Along an axis, which is a new one with new_axis."""
    axis, new = op.attribute("axis"), op.attribute("new_axis", 0)
    parts = x.items
    if new:
        axis %= len(parts[0].shape) + 1
        parts = tuple(c.t.reshape(r, (*r.shape[:axis], 1, *r.shape[axis:])) for r in parts)
    if all(isinstance(r, Ref) for r in parts):
        return c.t.concat(list(parts), axis)
    return run(c, op, list(parts), lambda c, op, x: c.t.concat(x, axis))


@rule("SplitToSequence")
def split(c: Context, op: Op, x: Ref, sizes: Ref | None = None) -> Sequence:
    axis, n = op.attribute("axis", 0) % len(x.shape), x.shape[op.attribute("axis", 0)]
    keep = op.flag("keepdims", True) or sizes is not None
    given = [1] if sizes is None else c.ints(sizes, "split")
    each = given if sizes is not None and sizes.shape else [min(given[0], n - i) for i in range(0, n, given[0])]
    starts = np.cumsum([0, *each])
    parts = [c.t.slice(x, axis, start, size) for start, size in zip(starts, each, strict=False)]
    return Sequence(
        tuple(p if keep else c.t.reshape(p, [m for i, m in enumerate(x.shape) if i != axis]) for p in parts)
    )
