"""Rotary positions, however written: x * cos + turned(x) * sin, by halves of a head or by neighbours.

The steps are run on numbers: ones at the first channel of every pair give cosines and sines, random numbers the proof.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..layers import Rotate
from ..tensor import Builder, Concat, Contract, Copy, Layout, Node, Program, Ref, evaluate, reached
from .limits import beneath, is_limit, stands
from .match import constant, factor_of, is_map, part_of
from .rewrite import relabel

Array = np.ndarray
CLOSE = 2e-3  # models of 16 bits have rounded their cosines and sines
MOST = 60  # steps


def rotated(t: Builder, r: Ref) -> Ref:
    """Queries or keys [W, H, I, D] as a `Rotate` of what they are made of, the same where they are no rotation."""
    given, r = r, beneath(t, r)
    if not (is_map(r, "add", "sub") or isinstance(r.op, Concat)) or r.shape[3] % 2:
        return given
    base = _base(r.node)
    if not base:
        return given
    own = _own(t, r)
    own = own if own is not None and own.node is base else _side_by_side(r, base)
    if own is None:
        return given
    half = r.shape[3] // 2
    run = _runner(r, base)
    x = np.random.default_rng(0).standard_normal(r.shape)
    turned = run(_placed(own, base, x))
    for by_halves in (True, False):
        if (halves := Layout((own.layout.axes[3],)).reshape((2, half) if by_halves else (half, 2))) is None:
            continue

        def pairs(a: Array, by_halves: bool = by_halves) -> Array:
            """[W, H, I, D] -> [W, I, H, P, 2]."""
            a = a.swapaxes(1, 2)
            return a.reshape(*a.shape[:3], 2, half).swapaxes(3, 4) if by_halves else a.reshape(*a.shape[:3], half, 2)

        first = np.zeros(r.shape)
        first[..., slice(0, half) if by_halves else slice(0, None, 2)] = 1
        cos, sin = np.moveaxis(pairs(run(_placed(own, base, first)))[:, :, 0], -1, 0)
        a, b = np.moveaxis(pairs(x), -1, 0)
        c, s = cos[:, :, None], sin[:, :, None]
        gain = float(np.median(np.hypot(cos, sin)))
        wanted = np.stack([a * c - b * s, b * c + a * s], axis=-1)
        if gain <= 0 or not np.allclose(np.hypot(cos, sin), gain, rtol=CLOSE):
            continue
        if not np.allclose(pairs(turned), wanted, rtol=0, atol=8 * CLOSE * gain):
            continue
        windows, heads, tokens, _ = own.layout.axes
        x4 = own.move(
            Layout((windows + tokens, heads, *(halves.axes[::-1] if by_halves else halves.axes)), own.layout.offset)
        )
        tables = [t.const((table / gain).astype(np.float32).reshape(-1, half)) for table in (cos, sin)]
        y = relabel(t.node(Rotate(), x4, *tables), base.name, base.source)
        w, h, i, d = r.shape
        y = t.reshape(y, (w, i, h, half, 2))
        y = t.reshape(t.transpose(y, (0, 2, 1, 4, 3) if by_halves else (0, 2, 1, 3, 4)), (w, h, i, d))
        return t.map("mul", y, gain) if abs(gain - 1) > CLOSE else y
    return given


def turned(t: Builder, node: Node) -> Ref | None:
    """A product of queries and keys [.., tokens, channels] outside attention, with their rotary positions as layers."""
    if not isinstance(node.op, Contract) or any(constant(r) for r in node.operands):
        return None
    first, second, result = node.op.letters
    operands = []
    for r, letters in zip(node.operands, (first, second), strict=True):
        if len(r.shape) < 3 or letters[-1] in result or not (letters[-1] in first and letters[-1] in second):
            return None
        bare, factor = factor_of(t, r)
        y = rotated(t, t.reshape(bare, (1, -1, *r.shape[-2:])))
        operands.append(
            t.map("mul", t.reshape(y, r.shape), factor) if isinstance(y.op, Rotate) or is_map(y, "mul") else r
        )
    return t.node(node.op, *operands)


def _base(node: Node) -> Node | None:
    """The one value that sums, products with constants and joins make `node` of."""
    found: set[Node] = set()
    stack, seen = [node], set[Node]()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        step = (
            isinstance(n.op, Concat | Copy)
            or (is_limit(n) and not stands(n.operands[0].node))
            or (is_map(n, "add", "sub", "neg") or is_map(n, "mul", "div"))
        )
        inner = [r.node for r in n.operands if not constant(r)]
        if step and len(seen) < MOST and (len(inner) == 1 or not is_map(n, "mul", "div")):
            stack += inner
        else:
            found.add(n)
    return found.pop() if len(found) == 1 and node not in found else None


def _own(t: Builder, r: Ref) -> Ref | None:
    """Where the elements of r stand that are multiplied by cosines, found for the last tokens and so for all before them."""
    tokens = r.shape[2]
    last = min(tokens, 2)
    paths = [t.slice(r, 2, tokens - last, last)]
    for _ in range(MOST):
        if not paths:
            return None
        x = paths.pop(0)
        if isinstance(x.op, Concat):
            if (found := part_of(x)) is not None:
                paths.insert(0, t.through(*found))
        elif (
            is_map(x, "add", "sub", "mul", "div", "neg")
            or isinstance(x.op, Copy)
            or (is_limit(x) and not stands(x.node.operands[0].node))
        ):
            paths += [t.through(x.layout, o) for o in x.node.operands if not constant(o)]
        elif last < 2 or len(x.layout.axes[2]) == 1:
            axes, (step,) = list(x.layout.axes), [s for _, s in x.layout.axes[2]] or [0]
            axes[2] = ((tokens, step),)
            return x.move(Layout(tuple(axes), x.layout.offset - (tokens - last) * step))
        else:
            return None
    return None


def _side_by_side(r: Ref, base: Node) -> Ref | None:
    """As `_own`, where no step holds whole heads: heads side by side in the tokens of `base`, from the first channel read."""
    windows, heads, tokens, depth = r.shape
    if windows != 1 or base.size % tokens:
        return None
    read = [o.layout for n in reached([r.node], {base: base}) for o in n.operands if o.node is base]
    first = min(x.offset + sum((n - 1) * s for axis in x.axes for n, s in axis if s < 0) for x in read)
    pitch = base.size // tokens
    if first + heads * depth > pitch:
        return None
    return base.ref.move(Layout(((), ((heads, depth),), ((tokens, pitch),), ((depth, 1),)), first))


def _placed(own: Ref, base: Node, x: Array) -> Array:
    """A value of `base` that has x where `own` shows it."""
    value = np.zeros(base.size)
    value[own.layout.positions().reshape(-1)] = x.reshape(-1)
    return value.reshape(base.shape)


def _runner(r: Ref, base: Node) -> Callable[[Array], Array]:
    """r as a function of the value of `base`."""
    t = Builder()
    made = {base: t.input("base", base.shape)}

    def again(node: Node) -> Ref:
        if node not in made and is_limit(node):
            made[node] = t.through(node.operands[0].layout, again(node.operands[0].node))
        if node not in made:
            made[node] = (
                t.node(node.op, *(t.through(o.layout, again(o.node)) for o in node.operands))
                if node.operands
                else node.ref
            )
        return made[node]

    program = Program({"y": t.through(r.layout, again(r.node))})
    return lambda value: evaluate(program, {"base": value}, np.float64)[0]["y"]
