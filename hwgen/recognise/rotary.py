"""Rotary positions, however written: x * cos + turned(x) * sin, by halves of a head or by neighbours.

The steps are run on numbers: ones at the first channel of every pair give cosines and sines, random numbers the proof.
"""

from __future__ import annotations

import numpy as np

from ..layers import Rotate
from ..tensor import Builder, Concat, Copy, Layout, Node, Program, Ref, evaluate
from .match import constant, is_map
from .rewrite import relabel

CLOSE = 2e-3  # models of 16 bits have rounded their cosines and sines
MOST = 60  # steps


def rotated(t: Builder, r: Ref) -> Ref:
    """Queries or keys [W, H, I, D] as a `Rotate` of what they are made of, the same where they are no rotation."""
    if not (is_map(r, "add", "sub") or isinstance(r.op, Concat)) or r.shape[0] != 1 or r.shape[3] % 2:
        return r
    base = _base(r.node)
    own = base and _own(t, r, base)
    if not own:
        return r
    _, heads, tokens, depth = r.shape
    half = depth // 2
    run = _runner(r, base)
    for step, pairs in (((half, 2, 1), lambda a: a.reshape(heads, tokens, 2, half).swapaxes(2, 3)),
                        ((1, 1, 2), lambda a: a.reshape(heads, tokens, half, 2))):
        first = np.zeros((heads, tokens, depth))
        first[..., : half if step[0] == half else depth : step[2]] = 1
        y = pairs(run(_placed(own, base, first)))
        cos, sin = y[0, ..., 0], y[0, ..., 1]
        x = np.random.default_rng(0).standard_normal((heads, tokens, depth))
        a, b = np.moveaxis(pairs(x), -1, 0)
        wanted = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        gain = float(np.median(np.hypot(cos, sin)))
        near = gain > 0 and np.allclose(np.hypot(cos, sin), gain, rtol=CLOSE)
        if not near or not np.allclose(pairs(run(_placed(own, base, x))), wanted, rtol=0, atol=8 * CLOSE * gain):
            continue
        (_, h, i, d), n = own.layout.axes, own.layout.offset
        halves = Layout((d,)).reshape((2, half) if step[0] == half else (half, 2))
        if halves is None:
            return r
        axes = halves.axes if step[0] != half else halves.axes[::-1]
        x4 = own.move(Layout((i, h, *axes), n))
        tables = [t.const((table / gain).astype(np.float32)) for table in (cos, sin)]
        y = relabel(t.node(Rotate(), x4, *tables), base.name, base.source)
        y = t.reshape(y, (tokens, heads, half, 2))
        y = t.transpose(y, (1, 0, 3, 2) if step[0] == half else (1, 0, 2, 3))
        y = t.reshape(y, (1, heads, tokens, depth))
        return y if gain == 1 else t.map("mul", y, gain) if abs(gain - 1) > CLOSE else y
    return r


def _base(node: Node) -> Node | None:
    """The one value that sums, products with constants and joins make `node` of."""
    found: set[Node] = set()
    stack, seen = [node], set[Node]()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        step = isinstance(n.op, Concat | Copy) or (is_map(n, "add", "sub", "neg") or is_map(n, "mul", "div"))
        inner = [r.node for r in n.operands if not constant(r)]
        if step and len(seen) < MOST and (len(inner) == 1 or not is_map(n, "mul", "div")):
            stack += inner
        else:
            found.add(n)
    return found.pop() if len(found) == 1 and node not in found else None


def _own(t: Builder, r: Ref, base: Node) -> Ref | None:
    """Where in `base` the elements of r stand that are multiplied by cosines: of the last token, and so of all before it."""
    tokens = r.shape[2]
    one = t.slice(r, 2, tokens - 1, 1)
    paths = [one]
    for _ in range(MOST):
        x = paths.pop(0) if paths else None
        if x is None:
            return None
        if x.node is base:
            stride, axes = base.shape[-1], list(x.layout.axes)
            axes[2] = ((tokens, stride),) if tokens > 1 else ()
            return x.move(Layout(tuple(axes), x.layout.offset - (tokens - 1) * stride)) if len(base.shape) == 2 else None
        if isinstance(x.op, Concat):
            at, start = x.op.axis, 0
            for part in x.node.operands:
                whole = Layout.dense(x.node.shape).slice(at, start, part.shape[at])
                start += part.shape[at]
                inside = x.layout.positions()
                place = np.full(x.node.size, -1)
                place[whole.positions().reshape(-1)] = np.arange(part.layout.size)
                if (place[inside] >= 0).all():
                    moved = _strided(place[inside], x.layout)
                    if moved is not None:
                        paths.insert(0, t.through(moved, part))
            continue
        paths += [t.through(x.layout, o) for o in x.node.operands if not constant(o)]
    return None


def _strided(positions: np.ndarray, like: Layout) -> Layout | None:
    """Positions as a layout with loops of the sizes that `like` has."""
    sizes = [n for axis in like.axes for n, _ in axis]
    grid = positions.reshape(sizes)
    origin = int(grid.reshape(-1)[0])
    strides = [int(np.take(grid, 1, axis=i).reshape(-1)[0]) - origin for i in range(len(sizes))]
    it = iter(strides)
    layout = Layout(tuple(tuple((n, next(it)) for n, _ in axis) for axis in like.axes), origin)
    return layout if (layout.positions() == positions).all() else None


def _placed(own: Ref, base: Node, x: np.ndarray) -> np.ndarray:
    """A value of `base` that has x where `own` shows it."""
    value = np.zeros(base.size)
    value[own.layout.positions().reshape(-1)] = x.reshape(-1)
    return value.reshape(base.shape)


def _runner(r: Ref, base: Node):
    """r as a function of the value of `base`."""
    t = Builder()
    made = {base: t.input("base", base.shape)}

    def again(node: Node) -> Ref:
        if node not in made:
            made[node] = t.node(node.op, *(t.through(o.layout, again(o.node)) for o in node.operands)) if node.operands else node.ref
        return made[node]

    program = Program({"y": t.through(r.layout, again(r.node))})
    return lambda value: evaluate(program, {"base": value}, np.float64)[0]["y"]
