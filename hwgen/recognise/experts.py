"""The networks of experts: linear, activation, linear, whichever way an exporter stacks, batches or gathers their weights.

Nothing is matched by form here but the two products. An element of the output is followed back through layouts and
elementwise nodes to the elements of the first product that it comes from, and from there to those of the input; what lies
between is evaluated on numbers and compared with the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ..layers import Activation
from ..tensor import Builder, Concat, Const, Contract, Copy, Gather, Map, Node, Ref, reached
from ..tensor.evaluate import FUNCTION
from .activations import CURVED, GRID, PLAIN, nearest
from .names import label, parent

Array = np.ndarray
Function = Callable[[list[Array]], Array]  # of the values of some leaves


class NoExpert(Exception):
    """A value that no expert makes."""


@dataclass(eq=False)
class Expert:
    """act(x @ w1.T + b1) @ w2.T + b2 on R rows of x; with two w1, gated: act(x @ w1[0].T + ..) * (x @ w1[1].T + ..) @ ..."""

    w1: list[Array]  # [H, K] each
    b1: list[Array | None]  # [H] each
    w2: Array  # [D, H]
    b2: Array | None  # [D]
    act: Activation
    rows: Node  # what the expert reads ...
    places: Array  # [R, K] ... and where in it
    out: Array  # [R, D] where in the expert's value
    label: str
    pick: tuple[Ref, Array, int] | None = None  # rows are this expert's only where the indices at these places name it


def at(r: Ref, index: Array) -> Array:
    """Where in its node the elements `index` (row-major) of an operand stand."""
    if r.whole:
        return index
    loops = [f for axis in r.layout.axes for f in axis]
    place = np.full(np.shape(index), r.layout.offset)
    for digit, (_, stride) in zip(np.unravel_index(index, [n for n, _ in loops]) if loops else (), loops, strict=True):
        place += digit * stride
    return place


def numbers(r: Ref, index: Array) -> Array:
    """Elements of a constant. Raises NoExpert where it is none."""
    if not isinstance(r.node.op, Const):
        raise NoExpert
    return np.asarray(r.node.op.flat[at(r, index)])


def rebuild(t: Builder, root: Ref, made: dict[Node, Ref]) -> Ref:
    """`root` with the values `made` in place of some nodes; what is built anew joins them."""
    for node in reached([root.node], dict(made)):
        if node in made:
            continue
        x = [r if made[r.node] == r.node.ref else t.through(r.layout, made[r.node]) for r in node.operands]
        if tuple(x) == node.operands:
            made[node] = node.ref
            continue
        t.source, t.name = node.source, node.name
        if isinstance(node.op, Gather):
            made[node] = t.gather(x[0], x[1], node.op.axis, node.op.elements)
        else:
            made[node] = t.map(node.op.function, *x) if isinstance(node.op, Map) else t.node(node.op, *x)
    return root if made[root.node] == root.node.ref else t.through(root.layout, made[root.node])


# --- products with weights -----------------------------------------------------------------------------------------


class Product:
    """A contraction with weights: out[.., r, n] = sum over k of x[.., r, k] * w[.., n, k], by index letters."""

    def __init__(self, node: Node, x: Ref, w: Ref, letters: tuple[str, str, str]):
        self.node, self.x, self.w, self.letters = node, x, w, letters
        own, other, out = letters
        fixed = {c for c in other if not any(w.layout.strides(other.index(c)))}  # along which the weights don't change
        self.experts = [c for c in out if c in own and c in other and c not in fixed]
        self.rows = [c for c in out if c in own and c not in self.experts]
        self.outputs = [c for c in out if c not in own]
        self.inputs = [c for c in own if c not in out]

    def offsets(self, operand: int, letters: Sequence[str]) -> Array:
        """Row-major offsets in an operand (0: x, 1: w, 2: the result) of all values of some indices; 0 for one it lacks."""
        shapes = self.x.shape, self.w.shape, self.node.shape
        total = np.zeros((), np.int64)
        for c in letters:
            size = next(s[own.index(c)] for own, s in zip(self.letters, shapes, strict=True) if c in own)
            total = total[..., None] + np.arange(size) * self._step(operand, c)
        return total.reshape(-1)

    def _step(self, operand: int, c: str) -> int:
        own = self.letters[operand]
        return prod((self.x.shape, self.w.shape, self.node.shape)[operand][own.index(c) + 1 :]) if c in own else 0

    def behind(self, operand: int, index: Array) -> Array:
        """[n, K]: the elements of x (0) or w (1) whose products make the elements `index` of the result."""
        place = zip(self.letters[2], np.unravel_index(index, self.node.shape) if self.node.shape else (), strict=True)
        fixed = sum((p * self._step(operand, c) for c, p in place), np.zeros(len(index), np.int64))
        return np.asarray(fixed[:, None] + self.offsets(operand, self.inputs))


def gathered(r: Ref) -> Node | None:
    """The Gather that picks constants by computed indices, where r shows one."""
    node = r.node
    picks = isinstance(node.op, Gather) and node.op.axis == 0 and not node.op.elements
    return node if picks and isinstance(node.operands[0].op, Const) else None


def product(node: Node) -> Product | None:
    """`node` as a product with constant weights, or weights that are gathered by expert."""
    if not isinstance(node.op, Contract):
        return None
    (a, b), (first, second, out) = node.operands, node.op.letters
    for x, w, own, other in ((a, b, first, second), (b, a, second, first)):
        if not isinstance(x.op, Const) and (isinstance(w.op, Const) or gathered(w)):
            if set(own) <= set(out + other) and set(other) <= set(out + own):
                return Product(node, x, w, (own, other, out))
    return None


def biased(node: Node) -> tuple[Product, Ref, Ref | None] | None:
    """(product, how it is read, bias) where `node` is a product with weights, or that plus a constant."""
    if found := product(node):
        return found, node.ref, None
    if isinstance(node.op, Map) and node.op.function == "add":
        for x, b in (node.operands, node.operands[::-1]):
            if (isinstance(b.op, Const) or gathered(b)) and (found := product(x.node)) and x.layout.size == x.node.size:
                return found, x, b
    return None


# --- what lies between two products --------------------------------------------------------------------------------


@dataclass(eq=False)
class Leaf:
    """Elements of a first layer's output: where in the product, and their biases."""

    product: Product
    index: Array
    bias: Array | None


def expression(r: Ref, index: Array, leaves: dict[Any, Leaf]) -> Function:
    """Elements of a value as a function of those of the products with weights that they come from element by element."""
    memo: dict[Any, Function] = {}

    def of(r: Ref, index: Array) -> Function:
        node, index = r.node, at(r, index)
        key = node, index.tobytes()
        if key not in memo:
            memo[key] = made(node, index, key)
        return memo[key]

    def made(node: Node, index: Array, key: Any) -> Function:
        op = node.op
        if isinstance(op, Const):
            constants = numbers(node.ref, index)
            return lambda values: constants
        if layer := biased(node):
            found, shown, b = layer
            place = len(leaves)
            leaves[key] = Leaf(found, at(shown, index), None if b is None else numbers(b, index))
            return lambda values: values[place]
        if isinstance(op, Map):
            parts, function = [of(x, index) for x in node.operands], FUNCTION[op.function]
            return lambda values: function(*(p(values) for p in parts))
        if isinstance(op, Copy):
            return of(node.operands[0], index)
        if isinstance(op, Concat):
            places = list(np.unravel_index(index, node.shape))
            for x in node.operands:
                along, size = places[op.axis], x.shape[op.axis]
                if 0 <= along.min() and along.max() < size:
                    return of(x, np.asarray(np.ravel_multi_index(places, x.shape)))
                places[op.axis] = along - size
        raise NoExpert

    return of(r, index)


def activation(one: Function, every: Function, inputs: int) -> tuple[Activation, list[int]]:
    """(act, order) where hidden channels are act(u), or act of input order[0] times input order[1]: `one` of them for an
    array of values, `every` one of them for one value each."""
    for order in ([0], [0, 1], [1, 0])[inputs - 1 : 2 * inputs - 1]:
        with np.errstate(all="ignore"):
            by_one, by_three = (one([(GRID, np.full(GRID.shape, v))[i] for i in order]) for v in (1.0, 3.0))
            found = nearest(by_one, CURVED + PLAIN) if np.shape(by_one) == GRID.shape else None
            alike = all(np.ptp(every([np.array((x, 1.0)[i]) for i in order])) < 1e-9 for x in (-2.0, -0.3, 0.6, 3.0))
        if found and alike and (inputs == 1 or np.allclose(by_three, 3 * by_one, equal_nan=True)):
            return found[0], order
    raise NoExpert


# --- experts -------------------------------------------------------------------------------------------------------


def parse(t: Builder, node: Node) -> list[Expert]:
    """The experts whose outputs `node` holds, none where it is no such value."""
    layer = biased(node)
    if layer is None:
        return []
    try:
        pick = gathered(layer[0].w)
        return _picked(t, node, layer[0], pick) if pick else _static(node, *layer)
    except NoExpert:
        return []


def _static(node: Node, last: Product, shown: Ref, bias: Ref | None) -> list[Expert]:
    if not last.inputs or not last.outputs:
        raise NoExpert
    back = np.arange(node.size) if shown.whole else np.argsort(at(shown, np.arange(node.size)))
    e_x, r_x, h_x = (last.offsets(0, g) for g in (last.experts, last.rows, last.inputs))
    e_y, r_y, d_y = (last.offsets(2, g) for g in (last.experts, last.rows, last.outputs))
    e_w, d_w, h_w = (last.offsets(1, g) for g in (last.experts, last.outputs, last.inputs))
    found = []
    for e in range(len(e_x)):
        across: dict[Any, Leaf] = {}  # all hidden channels of one row
        every = expression(last.x, e_x[e] + r_x[0] + h_x, across)
        if not 1 <= len(across) <= 2:
            raise NoExpert
        act, order = activation(expression(last.x, e_x[e] + r_x[0] + h_x[:1], {}), every, len(across))
        down: dict[Any, Leaf] = {}  # one hidden channel of all rows
        expression(last.x, e_x[e] + r_x + h_x[0], down)
        parts = [list(across.values())[i] for i in order]
        reads = [(p.product.x.node, at(p.product.x, p.product.behind(0, p.index))) for p in down.values()]
        if any(n is not reads[0][0] or not np.array_equal(places, reads[0][1]) for n, places in reads):
            raise NoExpert
        out = back[e_y[e] + r_y[:, None] + d_y]
        first = parts[0].product
        found.append(
            Expert(
                w1=[numbers(p.product.w, p.product.behind(1, p.index)) for p in parts],
                b1=[p.bias for p in parts],
                w2=numbers(last.w, e_w[e] + d_w[:, None] + h_w),
                b2=None if bias is None else numbers(bias, out[0]),
                act=act,
                rows=reads[0][0],
                places=reads[0][1],
                out=out,
                label=parent(label(first.node.source, first.w)),
            )
        )
    return found


def _picked(t: Builder, node: Node, last: Product, pick: Node) -> list[Expert]:
    """Weights gathered by expert index: each expert is what the value would be if all indices named it."""
    data, index = pick.operands
    named, stack = set(), [index.node]  # what the indices are computed from
    while stack:
        n = stack.pop()
        if isinstance(n.op, Map | Copy):
            stack += [r.node for r in n.operands]
        elif not isinstance(n.op, Const):
            named.add(n)
    if len(named) != 1:
        raise NoExpert
    (base,) = named
    rows = Product(last.node, last.x, t.full(last.w.shape, 0.0), last.letters).rows
    places = at(last.w, last.offsets(1, rows)) // prod(data.shape[1:])
    found = []
    for e in range(data.shape[0]):
        experts = parse(t, rebuild(t, node.ref, {base: t.full(base.shape, e)}).node)
        if len(experts) != 1:
            raise NoExpert
        found.append(replace(experts[0], pick=(index, places, e)))
    return found
