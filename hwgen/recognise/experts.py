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
    pick: tuple[Ref, Array, int] | None = None  # rows are this expert's only where the indices at these places name it
    label: str = ""


def at(r: Ref, index: Array) -> Array:
    """Where in its node the elements `index` (row-major) of an operand stand."""
    if r.whole:
        return index
    loops = [f for axis in r.layout.axes for f in axis]
    digits = np.unravel_index(index, [n for n, _ in loops]) if loops else ()
    return sum((d * s for d, (_, s) in zip(digits, loops, strict=True)), np.full(np.shape(index), r.layout.offset))


def rebuild(t: Builder, root: Ref, made: dict[Node, Ref]) -> Ref:
    """`root` with the values `made` in place of some nodes; what is built anew joins them."""
    for node in reached([root.node], dict(made)):
        if node in made:
            continue
        x = [r if made[r.node] == r.node.ref else t.through(r.layout, made[r.node]) for r in node.operands]
        if tuple(x) == node.operands:
            made[node] = node.ref
        elif isinstance(node.op, Gather):
            made[node] = t.gather(x[0], x[1], node.op.axis, node.op.elements)
        else:
            t.source, t.name = node.source, node.name
            made[node] = t.map(node.op.function, *x) if isinstance(node.op, Map) else t.node(node.op, *x)
    return root if made[root.node] == root.node.ref else t.through(root.layout, made[root.node])


@dataclass(eq=False)
class Product:
    """A contraction with weights: out[.., r, n] = sum over k of x[.., r, k] * w[.., n, k], by index letters."""

    node: Node
    x: Ref
    w: Ref
    letters: tuple[str, str, str]  # of x, w, the result

    def offsets(self, operand: int, letters: Sequence[str]) -> Array:
        """Row-major offsets in an operand (0: x, 1: w, 2: the result) of all values of some of its indices; 0 where it lacks one."""
        own, shape = self.letters[operand], (self.x, self.w, self.node)[operand].shape
        sizes = self.sizes
        total = np.zeros((), np.int64)
        for c in letters:
            step = prod(shape[own.index(c) + 1 :]) if c in own else 0
            total = total[..., None] + np.arange(sizes[c]) * step
        return total.reshape(-1)

    @property
    def sizes(self) -> dict[str, int]:
        return {c: n for own, r in zip(self.letters, (self.x, self.w), strict=False) for c, n in zip(own, r.shape, strict=True)}

    def groups(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Letters of experts, rows, outputs, inputs; along rows the weights don't change."""
        a, w, out = self.letters
        fixed = {c for c in w if not any(self.w.layout.strides(w.index(c)))}
        experts = [c for c in out if c in a and c in w and c not in fixed]
        rows = [c for c in out if c in a and c not in experts]
        return experts, rows, [c for c in out if c not in a], [c for c in a if c in w and c not in out]


def gathered(r: Ref) -> Node | None:
    """The Gather that picks constants by computed indices, where r shows one."""
    node = r.node
    picks = isinstance(node.op, Gather) and isinstance(node.operands[0].op, Const) and node.op.axis == 0 and not node.op.elements
    return node if picks else None


def product(node: Node) -> Product | None:
    """`node` as a product with constant weights, or weights that are gathered by expert."""
    if not isinstance(node.op, Contract):
        return None
    (a, b), (first, second, out) = node.operands, node.op.letters
    for x, w, letters in ((a, b, (first, second, out)), (b, a, (second, first, out))):
        if not isinstance(x.op, Const) and (isinstance(w.op, Const) or gathered(w)):
            own, other, _ = letters
            if all(c in out or c in other for c in own) and all(c in out or c in own for c in other):
                return Product(node, x, w, letters)
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
        if isinstance(node.op, Const):
            numbers = node.op.flat[index]
            return lambda values: numbers
        if layer := biased(node):
            found, shown, b = layer
            place = len(leaves)
            leaves[key] = Leaf(found, at(shown, index), None if b is None else b.node.op.flat[at(b, index)])
            return lambda values: values[place]
        if isinstance(node.op, Map):
            parts = [of(x, index) for x in node.operands]
            function = FUNCTION[node.op.function]
            return lambda values: function(*(p(values) for p in parts))
        if isinstance(node.op, Copy):
            return of(node.operands[0], index)
        if isinstance(node.op, Concat):
            place = list(np.unravel_index(index, node.shape))
            along = place[node.op.axis]
            for x in node.operands:
                n = x.shape[node.op.axis]
                if along.size and 0 <= along.min() and along.max() < n:
                    return of(x, np.ravel_multi_index([along if i == node.op.axis else p for i, p in enumerate(place)], x.shape))
                along = along - n
        raise NoExpert

    return of(r, index)


def activation(one: Function, every: Function, inputs: int) -> tuple[Activation, list[int]]:
    """(act, order) where hidden channels are act(u), or act of input order[0] times input order[1]: `one` of them for an
    array of values, `every` one of them for one value each."""
    for order in ([0], [0, 1], [1, 0])[inputs - 1 : 2 * inputs - 1]:
        with np.errstate(all="ignore"):
            by_one, by_three = (one([(GRID, np.full(GRID.shape, v))[i] for i in order]) for v in (1.0, 3.0))
            found = nearest(by_one, CURVED + PLAIN) if np.shape(by_one) == GRID.shape else None
            alike = all(np.ptp(every([np.float64((x, 1.0)[i]) for i in order])) < 1e-9 for x in (-2.0, -0.3, 0.6, 3.0))
        if found and alike and (inputs == 1 or np.allclose(by_three, 3 * by_one, equal_nan=True)):
            return found[0], order
    raise NoExpert


def parse(t: Builder, node: Node) -> list[Expert]:
    """The experts whose outputs `node` holds, none where it is no such value."""
    layer = biased(node)
    if layer is None:
        return []
    try:
        if pick := gathered(layer[0].w):
            return _picked(t, node, layer[0], pick)
        return _static(node, *layer)
    except NoExpert:
        return []


def _static(node: Node, last: Product, shown: Ref, bias: Ref | None) -> list[Expert]:
    experts, rows, outputs, inputs = last.groups()
    if not inputs or not outputs or not isinstance(last.w.op, Const):
        raise NoExpert
    back = np.argsort(at(shown, np.arange(node.size))) if not shown.whole else np.arange(node.size)
    e_x, r_x, h_x = (last.offsets(0, g) for g in (experts, rows, inputs))
    e_y, r_y, d_y = (last.offsets(2, g) for g in (experts, rows, outputs))
    e_w, d_w, h_w = (last.offsets(1, g) for g in (experts, outputs, inputs))
    found = []
    for e in range(len(e_x)):
        leaves: dict[Any, Leaf] = {}
        function = expression(last.x, e_x[e] + r_x[0] + h_x, leaves)
        if not 1 <= len(leaves) <= 2:
            raise NoExpert
        single = expression(last.x, e_x[e] + r_x[0] + h_x[:1], {})
        act, order = activation(single, function, len(leaves))
        column: dict[Any, Leaf] = {}
        expression(last.x, e_x[e] + r_x + h_x[0], column)
        parts, along = ([list(ls.values())[i] for i in order] for ls in (leaves, column))
        sources = [_rows(p) for p in along]
        if any(x.product.x.node is not sources[0][0] or not np.array_equal(s[1], sources[0][1]) for x, s in zip(parts, sources)):
            raise NoExpert
        out = back[e_y[e] + r_y[:, None] + d_y]
        found.append(
            Expert(
                w1=[_weights(p) for p in parts],
                b1=[p.bias for p in parts],
                w2=last.w.node.op.flat[at(last.w, e_w[e] + d_w[:, None] + h_w)],
                b2=None if bias is None else bias.node.op.flat[at(bias, out[0])],
                act=act,
                rows=sources[0][0],
                places=sources[0][1],
                out=out,
                label=parent(label(parts[0].product.node.source, parts[0].product.w)),
            )
        )
    return found


def _weights(leaf: Leaf) -> Array:
    """[H, K] of the elements of a first layer."""
    p = leaf.product
    if not isinstance(p.w.op, Const):
        raise NoExpert
    place = dict(zip(p.letters[2], np.unravel_index(leaf.index, p.node.shape), strict=True))
    own = p.letters[1]
    fixed = sum(place[c] * prod(p.w.shape[own.index(c) + 1 :]) for c in own if c in place)
    return p.w.node.op.flat[at(p.w, np.reshape(fixed, (-1, 1)) + p.offsets(1, p.groups()[3]))]


def _rows(leaf: Leaf) -> tuple[Node, Array]:
    """(what a first layer reads, where [R, K]) for elements [R] of it."""
    p = leaf.product
    place = dict(zip(p.letters[2], np.unravel_index(leaf.index, p.node.shape), strict=True))
    own = p.letters[0]
    fixed = sum(place[c] * prod(p.x.shape[own.index(c) + 1 :]) for c in own if c in place)
    return p.x.node, at(p.x, np.reshape(fixed, (-1, 1)) + p.offsets(0, p.groups()[3]))


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
    found = []
    for e in range(data.shape[0]):
        experts = parse(t, rebuild(t, node.ref, {base: t.full(base.shape, e)}).node)
        if len(experts) != 1:
            raise NoExpert
        _, rows, _, _ = Product(last.node, last.x, t.full(last.w.shape, 0.0), last.letters).groups()
        places = at(last.w, last.offsets(1, rows)) // prod(data.shape[1:])
        found.append(replace(experts[0], pick=(index, places, e)))
    return found
