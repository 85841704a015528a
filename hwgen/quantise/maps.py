"""Maps: rows gathered, joined and stacked, and windows that slide over each column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby, product

import numpy as np

from .. import graph as fg
from .. import qgraph as q
from ..errors import UserError
from ..isa import WINDOW_TAPS, Reduce
from ..numerics import INT8_MAX, INT16_MAX, WINDOW_VALUE_BITS
from ..walks import Plane, Walk
from ..walks import window as sliding
from .builder import Builder, Held, chosen, fitting, fraction, linear, linear_need, own_scale, piece, plain, read_static
from .hidden import Form, activation_form
from .plan import describe
from .scales import OutOfRange
from .static import best_steps

Array = np.ndarray
VALUE_MAX = (1 << (WINDOW_VALUE_BITS - 1)) - 1
BEFORE_MAX = 15
WHOLE = 16  # columns that lie side by side without a gap in the machines of boards/*.toml; others are brought together
BY_COLUMN = fg.Linear | fg.Conv | fg.Window | fg.Mean | fg.Experts  # what takes columns as they lie
REACH = 4.0  # times what was seen: how far sums may go before they saturate


def gather(b: Builder, node: fg.Gather) -> None:
    """Emit the rows in the steps of their source."""
    x = b.held[node.x] if (node.rows >= 0).all() else _without_offset(b, node.x)
    made = q.Stack(b.name(node.name), (piece(b, x, x.scale, x.offset, node.rows),), source=node.source)
    ref = b.emit(made, len(node.rows), b.cols(x), x.scale, x.offset, b.groups_of(x), node.name)
    b.held[node.name] = Held(ref, x.scale, x.offset)


def select(b: Builder, node: fg.Select) -> None:
    """Emit the rows in the steps of their source, by scores of which all have one step."""
    x, scores = b.held[node.x], plain(b, node.scores)
    made = q.Select(b.name(node.name), x.ref, scores.ref, node.first, node.count, source=node.source)
    ref = b.emit(made, node.count, b.cols(x), x.scale, x.offset, b.groups_of(x), node.name)
    b.held[node.name] = Held(ref, x.scale, x.offset)


def _without_offset(b: Builder, name: str) -> Held:
    return b.held[name] if b.held[name].offset is None else plain(b, name)


def _sources(b: Builder, node: fg.Join | fg.Stack) -> list[tuple[Held, Array | None]]:
    """Where each operand is, and which rows of it: gathered ones are read in place."""
    found: list[tuple[Held, Array | None]] = []
    widths = [b.shapes[name][1] for name in node.xs]
    common = int(np.gcd.reduce(widths))
    for name, width in zip(node.xs, widths, strict=True):
        at, rows = b.plan.nodes[name], None
        if isinstance(at, fg.Gather) and name not in b.plan.alone:
            name, rows = at.x, at.rows
        held = b.held[name] if rows is None or (rows >= 0).all() else _without_offset(b, name)
        groups = width // common if isinstance(node, fg.Join) else 1
        found.append((held if _alike(width, b.groups_of(held), groups) else _grouped(b, name, held, groups), rows))
    return found


def _alike(width: int, a: int, b: int) -> bool:
    """Whether so many columns lie alike in a and in b groups."""
    return a == b or all(groups == 1 or width // groups % WHOLE == 0 for groups in (a, b))


def _grouped(b: Builder, name: str, held: Held, groups: int) -> Held:
    """A copy of a value whose columns are so many groups, by the array."""
    node = b.plan.nodes[name]
    unit = fg.Linear(f"{name}.grouped", name, np.eye(b.cols(held)), None, source=node.source)
    b.exact.add(unit.name)
    return linear(b, unit, max(own_scale(b, node, 0.0), linear_need(b, unit)), unit.name, groups=groups)


def join(b: Builder, node: fg.Join) -> None:
    """Emit values side by side: each in its own steps where all that read them take steps by column."""
    sources = _sources(b, node)
    each = [(0.0 if h.offset is None else h.offset, h.scale, b.cols(h)) for h, _ in sources]
    widths = [cols for _, _, cols in each]
    offset: Array | None = np.concatenate([np.broadcast_to(np.float64(o), cols) for o, _, cols in each])
    offset = offset if np.any(offset) else None
    scale: float | Array
    resampled = any(isinstance(b.plan.nodes.get(name), fg.Resample) for name in node.xs)  # made in those steps already
    if resampled and (wanted := _wanted_steps(b, node.name)) is not None:
        scale, offset = wanted, None
    elif _kept(b, node, offset):
        scale = np.concatenate([np.broadcast_to(np.float64(s), cols) for _, s, cols in each])
        if (scale == scale[0]).all():
            scale = float(scale[0])
    else:
        scale, offset = own_scale(b, node, 0.0), None
    ends = np.cumsum(widths)[:-1]
    scales = np.split(np.broadcast_to(scale, sum(widths)), ends)
    targets = [None] * len(sources) if offset is None else np.split(offset, ends)
    pieces = tuple(piece(b, h, s, o, rows) for (h, rows), s, o in zip(sources, scales, targets, strict=True))
    groups = sum(widths) // int(np.gcd.reduce(widths))
    rows, cols = b.shapes[node.name]
    ref = b.emit(q.Join(b.name(node.name), pieces, source=node.source), rows, cols, scale, offset, groups, node.name)
    b.held[node.name] = Held(ref, scale, offset)
    if cols // groups % WHOLE and not all(isinstance(r, BY_COLUMN) for r in b.plan.readers(node.name)):
        b.held[node.name] = _grouped(b, node.name, b.held[node.name], 1)


def _kept(b: Builder, node: fg.Join, offset: Array | None) -> bool:
    """Whether every operand of a Join may stay in its own steps."""
    root = b.plan.roots[node.name]
    if node.name in b.plan.scales or root in b.plan.outputs or root in b.plan.logits:
        return False
    if b.plan.only_multiplied(node.name):
        return True
    readers = b.plan.readers(node.name)
    return offset is None and all(
        isinstance(r, fg.Linear | fg.Experts | fg.Mean | fg.Conv | fg.Window) for r in readers
    )


def stack(b: Builder, node: fg.Stack) -> None:
    """Emit values one below the other, in one step."""
    sources = _sources(b, node)
    first = sources[0][0]
    alike = all(h.common and h.scale == first.scale for h, _ in sources) and node.name not in b.plan.scales
    scale = float(first.scale) if alike and b.plan.roots[node.name] not in b.plan.logits else own_scale(b, node, 0.0)
    pieces = tuple(piece(b, held, scale, None, rows) for held, rows in sources)
    rows, cols = b.shapes[node.name]
    made = q.Stack(b.name(node.name), pieces, source=node.source)
    b.held[node.name] = Held(b.emit(made, rows, cols, scale, value=node.name), scale)


# --- windows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reduction:
    """What a `Window` does to integers.

    factor  [cols]: real value of a sum of 1, of all walks but for their `counts`
    reach   [cols]: how far sums go
    weight  [taps, cols], real per int16 step of x; None for other sums
    counts  taps that each walk's mean is over
    """

    node: fg.Window
    x: Held
    walks: tuple[Walk, ...]
    counts: tuple[int, ...]
    weight: Array | None
    bias: Array

    def need(self, offset: float = 0.0, factor: float = 1.0) -> float:
        """Smallest step of `factor` times the result, less `offset`."""
        return float(np.abs(self.bias * factor - offset).max()) / INT16_MAX

    def emit(self, b: Builder, value: str, scale: float | Array, offset: float = 0.0, form: Form | None = None) -> Held:
        """Emit it in steps of `scale`, or with the activation `form`, as the float value `value`."""
        gain, step = (1.0, scale) if form is None else (form.factor, form.step)
        seen = b.stats.values[self.node.x].magnitude(0.0 if self.x.offset is None else self.x.offset)
        largest = np.minimum(np.ceil(seen / self.x.scale * 1.5) + 1, INT16_MAX)  # int16 number of x, with room
        if self.weight is None:
            unit = np.broadcast_to(np.float64(self.x.scale), self.bias.shape)
            reach = largest * (1 if self.node.form == "max" else self.walks[0].count)
        else:
            unit = np.abs(self.weight).max(axis=0) / INT8_MAX
            safe = np.where(unit > 0, unit, np.inf)
            results = b.stats.values[self.node.name].magnitude(self.bias) * REACH / safe
            reach = np.minimum(largest * (np.abs(self.weight).sum(axis=0) / safe), np.maximum(results, VALUE_MAX))
        before = int(np.clip(np.ceil(np.log2(max(float(reach.max()), 1.0) / VALUE_MAX)), 0, BEFORE_MAX))
        factors = [unit * (gain * 2.0**before / count) / step for count in self.counts]
        shift = fraction(max(float(f.max()) for f in factors))
        weights = None
        if self.weight is not None:
            mults = [np.ceil(factors[0] * 2.0**shift).astype(np.int64)]
            exact = mults[0] * step / (gain * 2.0 ** (before + shift))  # what the multiplier means
            rounded = np.rint(self.weight / np.where(exact > 0, exact, np.inf))
            weights = np.clip(rounded, -INT8_MAX, INT8_MAX).astype(np.int8)
        else:
            mults = [np.rint(f * 2.0**shift).astype(np.int64) for f in factors]
        bias = np.rint((self.bias * gain - offset) / step)
        if np.abs(bias).max() > INT16_MAX:
            raise OutOfRange(f"a bias of {np.abs(bias).max():g} steps, beyond int16")
        kind = {"weighted": Reduce.WEIGHTED, "mean": Reduce.SUM, "max": Reduce.MAX}[self.node.form]
        act = None if form is None else (form.table, form.shift)
        made = q.Window(
            b.name(value),
            self.x.ref,
            self.walks,
            tuple(mults),
            bias.astype(np.int16),
            kind,
            weights,
            before,
            shift,
            act,
            layer=self.node.name,
            source=self.node.source,
        )
        held: float | Array | None = offset or None
        if form is not None:
            scale, held = form.scale, form.offset
        if self.weight is None and self.x.offset is not None:
            held = self.x.offset
        ref = b.emit(made, *b.shapes[self.node.name], scale, held, b.groups_of(self.x), value)
        return Held(ref, scale, held)


def reduction(b: Builder, node: fg.Window) -> Reduction:
    """What the node does to the integers of its operand."""
    walk = fitting(node, sliding(node.size, node.kernel, node.stride, node.pads, node.dilation))
    cols = b.shapes[node.name][1]
    full = (walk.x_rows() >= 0).all()
    zeros = not full and (node.form == "weighted" or (node.form == "mean" and node.count_pads))
    fused = any(isinstance(user, fg.Activation) for user in b.plan.users.get(node.name, []))
    x = b.held[node.x]
    if x.offset is not None and (zeros or fused or node.form == "weighted" or not b.plan.only_multiplied(node.name)):
        x = plain(b, node.x)
    if (cols // b.groups_of(x)) % WHOLE and b.groups_of(x) > 1 and not all(isinstance(r, BY_COLUMN) for r in _behind(b, node)):
        x = _grouped(b, node.x, x, 1)
    if node.form == "weighted":
        assert node.weight is not None
        if walk.count > WINDOW_TAPS:
            raise UserError(f"{describe(node)}: {walk.count} taps, the machine weights up to {WINDOW_TAPS}")
        weight = node.weight.astype(np.float64).reshape(-1, cols) * x.scale
        bias = np.zeros(cols) if node.bias is None else node.bias.astype(np.float64)
        return Reduction(node, x, (walk,), (1,), weight, bias)
    if node.form == "max":
        return Reduction(node, x, (walk,), (1,), None, np.zeros(cols))
    walks = ((walk, walk.count),) if full or node.count_pads else by_count(walk)
    return Reduction(node, x, tuple(w for w, _ in walks), tuple(n for _, n in walks), None, np.zeros(cols))


def _behind(b: Builder, node: fg.Window) -> list[fg.Node]:
    """What reads a window, or the activation that it is computed with."""
    readers = b.plan.readers(node.name)
    return [r for reader in readers for r in (b.plan.readers(reader.name) if isinstance(reader, fg.Activation) else [reader])]


def by_count(walk: Walk) -> tuple[tuple[Walk, int], ...]:
    """A sliding window in parts, each with as many taps within the map: (walk, taps)."""
    plane = walk.plane
    assert isinstance(plane, Plane)
    sides = []
    for axis, (size, start, steps) in enumerate(
        ((plane.height, plane.u, plane.u_strides), (plane.width, plane.v, plane.v_strides))
    ):
        at = (
            start
            + np.arange(walk.loops[axis])[:, None] * steps[axis]
            + np.arange(walk.kernel[axis]) * walk.dilation[axis]
        )
        taps = ((at >= 0) & (at < size)).sum(axis=1)
        runs = [list(group) for _, group in groupby(range(len(taps)), key=lambda i, taps=taps: int(taps[i]))]
        sides.append([(run[0], len(run), int(taps[run[0]])) for run in runs])
    found = []
    for (i, down, a), (j, across, c) in product(*sides):
        moved = replace(plane, u=plane.u + i * plane.u_strides[0], v=plane.v + j * plane.v_strides[1])
        x, y = (start + i * s[0] + j * s[1] for start, s in ((walk.x_start, walk.x), (walk.y_start, walk.y)))
        found.append((replace(walk, loops=(down, across), x_start=x, y_start=y, plane=moved), a * c))
    return tuple(found)


def window(b: Builder, node: fg.Window) -> None:
    """Emit the window as a value of its own. The largest keeps the steps of its operand."""
    made = reduction(b, node)
    common = np.ndim(made.x.scale) == 0
    if node.form == "max" and node.name not in b.plan.scales and (common or b.plan.only_multiplied(node.name)):
        b.held[node.name] = made.emit(b, node.name, made.x.scale)
    elif made.x.offset is not None:
        b.held[node.name] = made.emit(b, node.name, own_scale(b, node, 0.0))
    else:
        scale, offset = chosen(b, node, made.need)
        b.held[node.name] = made.emit(b, node.name, scale, offset)


def activated(b: Builder, node: fg.Activation, source: fg.Window) -> None:
    """Emit the window together with the activation behind it."""
    made = reduction(b, source)
    form = activation_form(b, node, float(b.stats.values[source.name].magnitude().max()), made.need())
    b.held[node.name] = made.emit(b, node.name, 0.0, form=form)


def _wanted_steps(b: Builder, name: str) -> Array | None:
    """Steps of columns that suit the convolution that alone reads a value, as it is or side by side with others."""
    match b.plan.readers(name):
        case [fg.Conv(x=read) as conv] if read == name and read_static(b.plan, read) and read not in b.plan.scales:
            return best_steps(b, conv)[1]
        case [fg.Join(xs=xs) as join] if xs.count(name) == 1 and b.plan.roots[name] not in b.plan.outputs:
            widths = [b.shapes[x][1] for x in xs]
            whole, first = _wanted_steps(b, join.name), sum(widths[: xs.index(name)])
            return None if whole is None else whole[first : first + b.shapes[name][1]]
    return None


def resample(b: Builder, node: fg.Resample) -> None:
    """Emit a map made larger: in the steps that suit the convolution that alone reads it, else in steps of its own."""
    larger, x = node.resampling, b.held[node.x]
    if larger.taps > WINDOW_TAPS:
        raise UserError(f"{describe(node)}: {larger.taps} taps, the machine weights up to {WINDOW_TAPS}")
    if x.offset is not None and not larger.keeps_sums:
        x = plain(b, node.x)
    offset = 0.0 if x.offset is None else np.asarray(x.offset, np.float64)
    rows, cols = b.shapes[node.name]
    scale: float | Array = own_scale(b, node, float(np.abs(offset).max()) / INT16_MAX)
    if (wanted := _wanted_steps(b, node.name)) is not None:
        scale = np.maximum(wanted, np.abs(offset) / INT16_MAX)
    seen = b.stats.values[node.x].magnitude(offset)
    largest = np.minimum(np.ceil(seen / x.scale * 1.5) + 1, INT16_MAX)  # int16 number of x, with room
    before = int(np.clip(np.ceil(np.log2(max(float(largest.max()) * larger.gain, 1.0) / VALUE_MAX)), 0, BEFORE_MAX))
    factor = np.broadcast_to(np.asarray(x.scale, np.float64) * 2.0**before / (larger.steps * scale), cols)
    shift = fraction(float(factor.max()))
    mult = np.rint(factor * 2.0**shift).astype(np.int64)
    bias = np.broadcast_to(np.rint(offset / scale), cols).astype(np.int16)
    fields = {"before": before, "shift": shift, "layer": node.name, "source": node.source}
    made = q.Window(b.name(node.name), x.ref, (larger.walk(),), (mult,), bias, Reduce.WEIGHTED, **fields)
    ref = b.emit(made, rows, cols, scale, None, b.groups_of(x), node.name)
    b.held[node.name] = Held(ref, scale)
