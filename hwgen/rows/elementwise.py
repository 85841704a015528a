"""Functions of single elements: activations, limits, gains, sums and products of two values."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import graph
from ..layers import Activation, Clip, Conv, Linear, Norm, Scale
from ..recognise.limits import is_limit
from ..recognise.names import label, parent
from ..tensor import Const, Map, Node, Ref
from .dense import like_input
from .lower import GONE, Rows, moves
from .moves import value
from .operands import Operand
from .reasons import reason
from .reductions import mean_of
from .standing import one_way
from .views import MOST_SOURCES, Array, Place, Unsupported, View, as_tokens
from .waves import wave

FORMS = {"relu6": (0.0, 6.0), "hardsigmoid": (0.0, 1.0)}  # what is a range of a value

MOST_LOOPS = 8  # that a row of a map runs through
STEPS = {"positive": False, "nonnegative": True}  # whether 1 at zero


def form_of(act: Activation, what: str = "is") -> dict[str, Any]:
    """Form and slope as the row graph's nodes have them."""
    slope = act.slope if act.form in ("silu", "relu") else 1.0
    unknown = act.form not in graph.FORMS or (act.form == "exp" and what != "is")  # experts move nothing in front of their tables
    if unknown or slope < 0 or (slope == 0) != (act.form == "relu"):
        named = "LeakyReLU" if act.form == "relu" else act.form
        hint = "use GELU, SiLU, ReLU, softplus, exp, tanh or sigmoid as activation"
        raise Unsupported(f"{what} {named}, which the machine has no table for", hint)
    return {"form": act.form, "slope": slope or 1.0}


class Arranged:
    """The computed operands of an elementwise node as operands of one order, and where its value stands.

    shape    of the node; of one row that is a whole map, the map's
    groups   axes of the shape that make rows, and those that make columns
    first    an element row of the node for each row of the value
    """

    def __init__(self, b: Rows, node: Node):
        views = [b.view(r) for r in node.operands if not isinstance(r.op, Const)]
        self.shape = node.shape
        self.gone = any(b.lost(v) for v in views)
        if self.gone:
            self.place = Place(node.size // max(node.shape[-1:] or (1,)), max(node.shape[-1:] or (1,)))
            self.operands = [Operand.missing((1, 1)) for _ in views]
            return
        views = [one_way(v, b.transposed) for v in views]
        lead = max(range(len(views)), key=lambda i: (_natural(views[i]), _spread(views[i]), -i))
        if len(node.shape) == 2 and node.shape[0] == 1 and (whole := _map_in_a_row(views[lead])) is not None:
            self.shape = whole
            views = [_reshaped(v, whole) for v in views]
        elif len(node.shape) == 2 and (finer := _maps_in_rows(views[lead])) is not None:
            self.shape = finer
            views = [_reshaped(v, finer) for v in views]
        self.groups = _groups(views[lead], views[:lead] + views[lead + 1 :])
        flat = [v.group(*self.groups) for v in (views[lead], *views[:lead], *views[lead + 1 :])]
        settled = b.settled(flat)
        if settled[0].order is not None and not all(self._alike(r, settled[0].order) for r in node.operands):
            settled = [b.kept(v) for v in flat]
        order_of = settled[0].order
        self.operands = [*settled[1 : lead + 1], settled[0], *settled[lead + 1 :]]
        rows, width = settled[0].rows, settled[0].width
        if self.groups == ([0], [1]) and self.shape == node.shape:
            self.place = Place(rows, width, order_of)
        else:
            axes = self.groups[0] + self.groups[1]
            count = int(np.prod([self.shape[i] for i in self.groups[0]]))
            own = np.arange(count) if order_of is None else order_of
            back = np.argsort(axes)
            where = (np.broadcast_to(a, (count, width)) for a in (own[:, None], np.arange(width)[None]))
            row, column = (a.reshape([self.shape[i] for i in axes]).transpose(back).reshape(-1) for a in where)
            self.place = Place(rows, width, at=(row, column))
        self.first = np.arange(rows) if order_of is None else np.unique(order_of, return_index=True)[1]

    def _rows_of(self, r: Ref) -> Array:
        """A constant operand for each element row of the node."""
        numbers = np.asarray(r.constant, np.float32).reshape(self.shape).transpose(self.groups[0] + self.groups[1])
        table: Array = numbers.reshape(int(np.prod([self.shape[i] for i in self.groups[0]])), -1)
        return table

    def _alike(self, r: Ref, order: Array) -> bool:
        """Whether an operand is the same in all element rows that are one row of the value, constants among them."""
        if not isinstance(r.op, Const):
            return True
        table, first = self._rows_of(r), np.unique(order, return_index=True)[1]
        return np.array_equal(table, table[first][order], equal_nan=True)

    def constant(self, r: Ref) -> Array:
        """A constant operand as it meets the value [rows, width], of length 1 along what does not change it."""
        table: Array = self._rows_of(r)[self.first]
        table = table[:1] if (table == table[:1]).all() else table
        return table[:, :1] if (table == table[:, :1]).all() else table


def _groups(lead: View, others: list[View]) -> tuple[list[int], list[int]]:
    """Axes that make rows and axes that make columns: as the first operand stands that is tokens by channels; where none is,
    such as a mask over the pixels of a map that was made larger row by row, the axes along which columns change."""
    for view in (lead, *others):
        try:
            _, order, split = as_tokens(view, *(v for v in (lead, *others) if v is not view))
        except Unsupported:
            continue
        return order[:split], order[split:]
    if len(lead.shape) == 2:
        return [0], [1]
    across = [i for i in range(len(lead.shape)) if _across(lead, i)] or [len(lead.shape) - 1]
    return [i for i in range(len(lead.shape)) if i not in across], across


def _across(view: View, axis: int) -> bool:
    """Whether columns of one value change from an element to the next along an axis, or next but few where zeros lie between."""
    which, columns = (np.broadcast_to(0 if a is None else a, view.shape).swapaxes(0, axis) for a in (view.which, view.columns))
    for step in range(1, max(2, min(len(which), MOST_SOURCES + 1))):
        same = (which[step:] == which[:-step]) & (which[step:] >= 0)
        if same.any():
            return bool(((columns[step:] != columns[:-step]) & same).any())
    return False


def _reshaped(view: View, shape: tuple[int, ...]) -> View:
    return view.map(lambda a: a.reshape(shape))


def _map_in_a_row(view: View) -> tuple[int, ...] | None:
    """The two lengths of tokens and channels, in their order, that a row [1, n] runs through; None where it is no such map."""
    count = view.shape[1]
    rows, columns = (np.broadcast_to(a, view.shape)[0] for a in (view.rows, view.columns))
    for inner in range(2, count // 2 + 1):
        if count % inner:
            continue
        r, c = (a.reshape(-1, inner) for a in (rows, columns))
        for down, across in ((r, c), (c, r)):
            if (down == down[:, :1]).all() and (across == across[:1]).all() and np.ptp(down) and np.ptp(across):
                return 1, count // inner, inner
    return _loops(view)


def _maps_in_rows(view: View) -> tuple[int, ...] | None:
    """The shape [rows, n, m] in which rows of groups of channels of all tokens are tokens by channels, as GroupNorm leaves
    them; None where they are as they stand."""
    if min(view.shape) < 2 or not all(np.ptp(np.broadcast_to(a, view.shape)[0]) for a in (view.rows, view.columns)):
        return None
    rows, count = view.shape
    for inner in range(2, count // 2 + 1):
        if count % inner == 0:
            shape = rows, count // inner, inner
            try:
                as_tokens(_reshaped(view, shape))
            except Unsupported:
                continue
            return shape
    return _loops(view)


def _loops(view: View) -> tuple[int, ...] | None:
    """The shape [rows, loop, loop, ..] of rows that all run through tokens and channels by the same loops, each of which changes
    one of the two alone, as where pixels were shuffled out of channels; None where they do not."""
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    steps = np.stack([a - a[:, :1] for a in (rows, columns)], axis=2)
    if view.which is not None or (steps != steps[:1]).any():
        return None
    walk, shape = steps[0], list[int]()
    while len(walk) > 1:
        step = walk[1] - walk[0]
        same = (walk == np.arange(len(walk))[:, None] * step).all(axis=1)
        most = len(walk) if same.all() else int(np.argmin(same))
        size = next(n for n in range(most, 0, -1) if len(walk) % n == 0)
        loops = walk.reshape(-1, size, 2)
        if size == 1 or step.all() or (loops - loops[:, :1] != loops[:1] - loops[:1, :1]).any():
            return None
        shape.append(size)
        walk = loops[:, 0]
    return (view.shape[0], *shape[::-1]) if 2 < len(shape) <= MOST_LOOPS else None


def _natural(view: View) -> bool:
    """Whether columns change along the axis that holds channels: the last one of tokens, any single one of maps."""
    rank = len(view.shape)
    try:
        _, order, split = as_tokens(view)
    except Unsupported:
        return False
    across = [i for i in order[split:] if view.shape[i] > 1]
    return len(across) == 1 and (rank > 3 or across[0] == rank - 1)


def _spread(view: View) -> int:
    return int(np.ptp(view.rows)) + (0 if view.which is None else int(np.ptp(view.which)) + 1)


def arranged(b: Rows, node: Node) -> Arranged:
    if node not in b.arranged:
        b.arranged[node] = Arranged(b, node)
    found: Arranged = b.arranged[node]
    return found


def place(b: Rows, node: Node) -> Place:
    if isinstance(node.op, Map) and not _taken(node):
        raise Unsupported(*reason(node))
    return arranged(b, node).place


def _taken(node: Node) -> bool:
    """Whether a Map is a sum, a difference or a product, of computed values or of one and a constant."""
    fixed = [isinstance(r.op, Const) for r in node.operands]
    f = node.op.function
    return node.dtype == "f" and (f in ("add", "sub", "mul") or (f == "div" and fixed == [False, True]) or f == "neg")


def activation(b: Rows, node: Node, start: int, stop: int) -> str:
    op = node.op
    (operand,) = arranged(b, node).operands
    if op.form in MADE or (op.form == "relu" and 0 < op.slope < 1):
        return MADE.get(op.form, _leaky)(b, node, operand, start, stop)
    source = operand.plain
    if source is not None and not is_limit(source[0]):
        inner, columns, first = source
        made = b.columns(inner, columns)
        x = b.value(b.identity(made), first + start, first + stop)
    else:
        x = value(b, node, operand, start, stop)
    if op.form in STEPS:
        return b.add(graph.Step, node, node.name, "step", x=x, at_zero=STEPS[op.form])
    if op.form in FORMS:
        if op.form == "hardsigmoid":
            x = b.diagonal(node, x, np.full(operand.width, 1 / 6), np.full(operand.width, 0.5))
        low, high = FORMS[op.form]
        return b.add(graph.Clip, node, node.name, op.form, x=x, low=low, high=high)
    return b.add(graph.Activation, node, node.name, op.form, x=x, **form_of(op))


def _leaky(b: Rows, node: Node, operand: Operand, start: int, stop: int) -> str:
    """LeakyReLU: slope * x + relu((1 - slope) * x), of a layer with weights by these."""
    slope = node.op.slope if node.op.form == "relu" else -1.0  # |x| = 2 relu(x) - x
    bent = b.add(graph.Activation, node, "", "relu", x=_times(b, node, operand, 1 - slope, start, stop), form="relu", slope=1.0)
    straight = _times(b, node, operand, slope, start, stop)
    return b.add(graph.Add, node, node.name, "leaky_relu", a=bent, b=straight)


def _mish(b: Rows, node: Node, operand: Operand, start: int, stop: int) -> str:
    """x tanh(softplus(x)) (Misra 2019)."""
    x = value(b, node, operand, start, stop)
    soft = b.add(graph.Activation, node, "", "softplus", x=x, form="softplus", slope=1.0)
    part = b.add(graph.Activation, node, "", "tanh", x=soft, form="tanh", slope=1.0)
    return b.add(graph.Multiply, node, node.name, "mish", a=x, b=part)


def _elu(b: Rows, node: Node, operand: Operand, start: int, stop: int) -> str:
    """relu(x) + a (exp(-relu(-x)) - 1) (Clevert et al. 2015)."""
    width, slope = np.ones(operand.width, np.float32), np.float32(node.op.slope)
    above = b.add(graph.Activation, node, "", "relu", x=_times(b, node, operand, 1.0, start, stop), form="relu", slope=1.0)
    below = b.add(graph.Activation, node, "", "relu", x=_times(b, node, operand, -1.0, start, stop), form="relu", slope=1.0)
    down = b.add(graph.Activation, node, "", "exp", x=b.diagonal(node, below, -width, 0 * width), form="exp", slope=1.0)
    return b.add(graph.Add, node, node.name, "elu", a=above, b=b.diagonal(node, down, slope * width, -slope * width))


MADE = {"abs": _leaky, "mish": _mish, "elu": _elu, "sin": wave, "cos": wave}  # of other functions


def scale(b: Rows, node: Node, start: int, stop: int) -> str:
    x, gain, offset = node.operands
    operand = b.tokens(x)
    if offset.scalar == 0 and operand.order is None and gain.shape[0] != 1:
        table = b.array(gain)
        if (table == table[:, :1]).all() and (averaged := mean_of(b, node, operand, table[:, :1])) is not None:
            return b.rows_of(node, start, stop, averaged)
    name = value(b, node, operand, start, stop)
    first = np.arange(operand.rows) if operand.order is None else np.unique(operand.order, return_index=True)[1]
    tables = [np.broadcast_to(b.array(r), node.shape)[first[start:stop]] for r in (gain, offset)]
    if operand.rows != node.shape[0] and any(r.shape[0] != 1 for r in (gain, offset)):
        raise Unsupported("multiplies by a constant that differs from token to token what is the same for several tokens")
    if all((t == t[:1]).all() for t in tables):
        weight, bias = (t[0] for t in tables)
        constants = {"weight": b.intern(np.diag(weight)), "bias": b.intern(bias) if bias.any() else None}
        return b.add(graph.Linear, node, node.name, "scale", x=name, **constants)
    return b.plus(node, b.times(node, name, tables[0]), tables[1])


def both(b: Rows, node: Node, start: int, stop: int) -> str:
    f = node.op.function
    found = arranged(b, node)
    if found.gone:
        return GONE
    if f in ("add", "sub") and (start, stop) != (0, found.place.rows):
        return b.rows_of(node, start, stop, str)
    if len(found.operands) == 1:
        return _with_constant(b, node, found, start, stop)
    first, second = found.operands
    name = label(node.source)
    if f == "mul":
        one = value(b, node, first, start, stop)
        once = _one_row(second)
        if not once and _one_row(first):
            one, once, second = value(b, node, second, start, stop), True, first
        other = value(b, node, second, *((0, 1) if once else (start, stop)))
        acted = next((parent(n.name) for n in (r.node for r in node.operands) if isinstance(n.op, Activation)), "")
        name = name or acted
        return b.add(graph.Multiply, node, f"{name}.gated" if name else "", "multiply", a=one, b=other)
    one = value(b, node, first)
    other = _times(b, node, second, -1.0) if f == "sub" else value(b, node, second)
    return b.add(graph.Add, node, f"{name}.add" if name else "", "add", a=one, b=other)


def _one_row(operand: Operand) -> bool:
    return operand.rows > 1 and all((k.picks == k.picks[0]).all() and (k.rows == k.rows[0]).all() for k in operand.blocks)


def _times(b: Rows, node: Node, operand: Operand, factor: float, start: int = 0, stop: int | None = None) -> str:
    """Rows of an operand times a number: of a layer with weights by those."""
    stop = operand.rows if stop is None else stop
    source = operand.plain
    map_norm = source is not None and isinstance(source[0].op, Norm) and b.place(source[0]).at is not None
    if source is not None and isinstance(source[0].op, Linear | Norm | Conv) and not map_norm:  # a map is not normed twice
        inner, columns, first = source
        x, *parts = inner.operands
        b.t.name, b.t.source = "", inner.source
        turned = b.t.node(inner.op, x, *(b.t.map("mul", p, factor) for p in parts)).node
        return b.part(turned, columns, first + start, first + stop)
    return b.diagonal(node, value(b, node, operand, start, stop), np.full(operand.width, factor))


def _with_constant(b: Rows, node: Node, found: Arranged, start: int, stop: int) -> str:
    """A sum, difference or product with a constant that no layer takes."""
    f = node.op.function
    (operand,) = found.operands
    fixed = next((r for r in node.operands if isinstance(r.op, Const)), None)
    table = found.constant(fixed) if fixed is not None else np.full((1, 1), -1.0, np.float32)
    if f == "mul" and (made := mean_of(b, node, operand, table)) is not None:
        return b.rows_of(node, start, stop, made)
    if not np.isfinite(table).all():
        raise Unsupported("its constant holds infinity or NaN, which only an attention mask may")
    if f == "sub" and isinstance(node.operands[0].op, Const):
        x = _times(b, node, operand, -1.0)
        f = "add"
    else:
        x = value(b, node, operand, start, stop)
    if f == "sub":
        f, table = "add", -table
    elif f == "div":
        table = 1 / table
    wide = np.broadcast_to(table, (found.place.rows, operand.width))[start:stop]
    if table.shape[0] != 1:
        return b.plus(node, x, wide) if f == "add" else b.times(node, x, wide)
    none = np.zeros(operand.width, np.float32)
    return b.diagonal(node, x, *((none + 1, wide[0]) if f == "add" else (wide[0], none)))


def limited_place(b: Rows, node: Node) -> Place:
    """That of its input, also of a norm of each head."""
    x = node.operands[0]
    return b.place(x.node) if x.whole and not moves(x) and b.place(x.node).column is not None else place(b, node)


def limited(b: Rows, node: Node, start: int, stop: int) -> str:
    """A range, of a quantised file's value for its readers too: what is known of the value itself if nothing has more."""
    at = b.place(node)
    if at.column is not None:
        name = b.value(node.operands[0].node, start, stop)
    else:
        name = value(b, node, arranged(b, node).operands[0], start, stop)
    clip = b.add(graph.Clip, node, node.name, "clip", x=name, low=node.op.low, high=node.op.high)
    if node.op.step:
        whole = next((n.x for n in b.nodes if n.name == name and isinstance(n, graph.Rows)), name)
        for held in (clip, whole):
            b.limit(held, node.op.low, node.op.high, at.width)
    return clip


def nothing(b: Rows, node: Node, start: int, stop: int) -> str:
    raise Unsupported("does not depend on the image")


KINDS = {
    Activation: (place, activation),
    Clip: (limited_place, limited),
    Map: (place, both),
    Scale: (like_input, scale),
    Const: (lambda b, node: Place(node.size // max(node.shape[-1:] or (1,)), max(node.shape[-1:] or (1,))), nothing),
}
