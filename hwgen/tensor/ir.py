"""Tensor IR (level T): a few kinds of node that compute, and operands that say how they walk through a value.

An operand is a `Ref`: a node and a `Layout` over its row-major elements. Movement is never a node, except `Copy` where a
reshape has no loops. Nodes are immutable; a `Builder` (build.py) makes them, equal ones once. Level L uses the same
graph with nodes of the kind `Layer` (layer.py), which define themselves in T.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .layout import Layout, check_size

Array = np.ndarray
FLOAT, INT, BOOL = "f", "i", "b"  # element kinds: floating point, 64-bit integer, truth value

# Elementwise functions: name -> (operands, kind of the result: of the operands where None). `div` of integers truncates
# towards zero, `mod` has the sign of the divisor, `fmod` that of the dividend; `round` goes to even.
FUNCTIONS: dict[str, tuple[int, str | None]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "max", "min", "mod", "fmod"), (2, None)),
    **dict.fromkeys(("neg", "abs", "sign", "floor", "ceil", "round"), (1, None)),
    **dict.fromkeys(("sqrt", "exp", "log", "erf", "tanh", "sigmoid", "softplus", "sin", "cos", "atan"), (1, FLOAT)),
    **dict.fromkeys(("eq", "lt", "le"), (2, BOOL)),
    **dict.fromkeys(("and", "or", "xor"), (2, BOOL)),
    "not": (1, BOOL),
    "where": (3, None),  # kind of the second operand
    "float": (1, FLOAT),
    "int": (1, INT),  # truncates
    "bool": (1, BOOL),
}
REDUCTIONS = ("sum", "max", "min", "prod")


class Op:
    """What a node computes; its subclasses are frozen dataclasses. `folds`: constants become a constant."""

    folds = True

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        """Shape and element kind of the result. Raises ValueError where the operands do not fit."""
        raise NotImplementedError

    def compute(self, operands: list[Array], dtype: Any) -> Array:
        """The value, floating point in `dtype`, of an operator that `evaluate` does not know."""
        raise TypeError(f"no evaluation of {self}")


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One value. `name`: readable, `source`: the ONNX node it came from; neither has a meaning."""

    op: Any  # an Op: who reads its fields knows its kind
    operands: tuple[Ref, ...]
    shape: tuple[int, ...]
    dtype: str
    name: str = ""
    source: str = ""

    def __repr__(self) -> str:
        """Without the operands, which would be the whole network."""
        return f"<{self.op.kind} {self.name or self.source!r} {self.dtype}{list(self.shape)}>"

    @property
    def ref(self) -> Ref:
        return Ref(self, Layout.dense(self.shape))

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Ref:
    """An operand: element i of the tensor it shows stands at `layout` of i in the node's row-major elements."""

    node: Node
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def dtype(self) -> str:
        return self.node.dtype

    @property
    def op(self) -> Any:
        return self.node.op

    @property
    def whole(self) -> bool:
        """Whether it shows all elements of the node in order, each once."""
        return self.layout.whole(self.node.shape)

    @property
    def constant(self) -> Array | None:
        """The numbers, where the node is a constant. Raises TooLarge."""
        if not isinstance(self.node.op, Const):
            return None
        check_size(self.shape)
        return self.layout.apply(self.node.op.flat)

    @property
    def numbers(self) -> Array:
        """The numbers of what is known to be a constant."""
        found = self.constant
        assert found is not None
        return found

    @property
    def scalar(self) -> float | None:
        """The one number that a constant holds everywhere, else None."""
        if not isinstance(self.node.op, Const):
            return None
        if self.layout.uniform():
            return float(self.node.op.flat[self.layout.offset])
        numbers = self.constant
        if numbers is None or not numbers.size:
            return None
        first = numbers.reshape(-1)[0]
        return float(first) if (numbers == first).all() else None

    def move(self, layout: Layout) -> Ref:
        return Ref(self.node, layout)


@dataclass(frozen=True)
class Input(Op):
    """A network input of one image, with the batch axis of 1 if the file has one."""

    name: str
    shape: tuple[int, ...]
    dtype: str = FLOAT

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        return self.shape, self.dtype


@dataclass(frozen=True, eq=False)
class Const(Op):
    """Numbers; float32 or float64, int64 or bool."""

    array: Array

    @property
    def flat(self) -> Array:
        return self.array.reshape(-1)

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        return self.array.shape, {"f": FLOAT, "i": INT, "b": BOOL}[self.array.dtype.kind]


@dataclass(frozen=True)
class Map(Op):
    """`function` of FUNCTIONS, element by element, of operands of one shape."""

    function: str

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        count, dtype = FUNCTIONS[self.function]
        shapes = {r.shape for r in operands}
        if len(operands) != count or len(shapes) != 1:
            raise ValueError(f"{self.function} of {[r.shape for r in operands]}")
        return operands[0].shape, dtype or operands[count // 2].dtype


@dataclass(frozen=True)
class Reduce(Op):
    """`function` of REDUCTIONS over `axes`, which stay with length 1."""

    function: str
    axes: tuple[int, ...]

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        (x,) = operands
        if self.function not in REDUCTIONS or not all(0 <= a < len(x.shape) for a in self.axes):
            raise ValueError(f"{self.function} over {self.axes} of {x.shape}")
        return tuple(1 if i in self.axes else n for i, n in enumerate(x.shape)), x.dtype


@dataclass(frozen=True)
class Contract(Op):
    """Sum of products by index letters, `abc,acd->abd`: an index that the result lacks is summed over."""

    spec: str

    @property
    def letters(self) -> tuple[str, str, str]:
        """Of the first operand, the second, the result."""
        operands, result = self.spec.split("->")
        first, second = operands.split(",")
        return first, second, result

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        sizes: dict[str, int] = {}
        *letters, result = self.letters
        for r, axes in zip(operands, letters, strict=True):
            if len(axes) != len(r.shape) or len(set(axes)) != len(axes):
                raise ValueError(f"{self.spec} of {[r.shape for r in operands]}")
            for letter, size in zip(axes, r.shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise ValueError(f"{self.spec} of {[r.shape for r in operands]}")
        return tuple(sizes[c] for c in result), operands[0].dtype


@dataclass(frozen=True)
class Pad(Op):
    """`value` before and behind every axis: `before` and `after` elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        (x,) = operands
        if min(*self.before, *self.after) < 0 or len(self.before) != len(x.shape):
            raise ValueError(f"pads {self.before}, {self.after} of {x.shape}")
        return tuple(a + n + b for a, n, b in zip(self.before, x.shape, self.after, strict=True)), x.dtype


@dataclass(frozen=True)
class Concat(Op):
    """Operands behind each other along `axis`."""

    axis: int

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        rest = {(*r.shape[: self.axis], *r.shape[self.axis + 1 :]) for r in operands}
        if len(rest) != 1:
            raise ValueError(f"concat along {self.axis} of {[r.shape for r in operands]}")
        shape = list(operands[0].shape)
        shape[self.axis] = sum(r.shape[self.axis] for r in operands)
        return tuple(shape), operands[0].dtype


@dataclass(frozen=True)
class Gather(Op):
    """x[.., index, ..] along `axis`: the index's axes take its place; of `elements`, x and index agree in all other axes
    and each element picks for itself. Indices are in 0 .. length - 1 and integers."""

    axis: int
    elements: bool = False

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        x, index = operands
        a = self.axis
        if index.dtype != INT:
            raise ValueError(f"gather by indices of kind {index.dtype}")
        if self.elements:
            if (*x.shape[:a], *x.shape[a + 1 :]) != (*index.shape[:a], *index.shape[a + 1 :]):
                raise ValueError(f"gather of elements along {a} of {x.shape} by {index.shape}")
            return index.shape, x.dtype
        return (*x.shape[:a], *index.shape, *x.shape[a + 1 :]), x.dtype


@dataclass(frozen=True)
class Scatter(Op):
    """A copy of x with updates at `index` along `axis`, both of one shape, as ONNX ScatterElements: `reduction` "none" (the
    last one wins), "add", "mul", "max" or "min"."""

    axis: int
    reduction: str = "none"

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        x, index, updates = operands
        if index.shape != updates.shape or len(index.shape) != len(x.shape) or index.dtype != INT:
            raise ValueError(f"scatter of {updates.shape} into {x.shape} by {index.shape}")
        return x.shape, x.dtype


@dataclass(frozen=True)
class TopK(Op):
    """Indices of the `count` largest (or smallest) elements along `axis`, best first; ties go to the lower index."""

    axis: int
    count: int
    largest: bool = True

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        (x,) = operands
        if not 0 < self.count <= x.shape[self.axis]:
            raise ValueError(f"top {self.count} of {x.shape[self.axis]}")
        return tuple(self.count if i == self.axis else n for i, n in enumerate(x.shape)), INT


@dataclass(frozen=True)
class Copy(Op):
    """The operand's elements in their order, made dense: a movement that no layout can express."""

    def infer(self, *operands: Ref) -> tuple[tuple[int, ...], str]:
        return operands[0].shape, operands[0].dtype


@dataclass
class Program:
    """Named outputs of a network; everything else is reached through them."""

    outputs: dict[str, Ref]
    notes: dict[str, Any] = field(default_factory=dict)  # what a pass leaves for a later one, for example opsets

    def nodes(self) -> list[Node]:
        """Every node that the outputs need, operands first."""
        return reached(r.node for r in self.outputs.values())

    def inputs(self) -> list[Input]:
        return [n.op for n in self.nodes() if isinstance(n.op, Input)]


def reached(roots: Iterable[Node], stop: Container[Node] = ()) -> list[Node]:
    """The nodes that `roots` need and they themselves, each once, operands first; what is in `stop` needs nothing."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(n, False) for n in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(r.node, False) for r in reversed(node.operands)] if node not in stop else []
    return order


def users(nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """node -> the nodes among `nodes` that read it, in order, each once."""
    found: dict[Node, list[Node]] = {}
    for node in nodes:
        for source in dict.fromkeys(r.node for r in node.operands):
            found.setdefault(source, []).append(node)
    return found


def verify(program: Program) -> None:
    """Raise ValueError naming the node whose operands do not fit, or whose layout leaves its value."""
    for node in program.nodes():
        where = f"{node.op.kind} {node.name or node.source!r}"
        for r in node.operands:
            _inside(r, where)
        try:
            shape, dtype = node.op.infer(*node.operands)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if (shape, dtype) != (node.shape, node.dtype):
            raise ValueError(f"{where}: is {node.dtype}{list(node.shape)}, its operands make {dtype}{list(shape)}")
    for name, r in program.outputs.items():
        _inside(r, f"output {name!r}")


def _inside(r: Ref, where: str) -> None:
    low = high = r.layout.offset
    for size, stride in (f for axis in r.layout.axes for f in axis):
        low, high = low + min(0, (size - 1) * stride), high + max(0, (size - 1) * stride)
    if r.layout.size and (low < 0 or high >= max(r.node.size, 1)):
        raise ValueError(f"{where}: layout {r.layout.text()} leaves the {r.node.size} elements of {r.node.op.kind}")
