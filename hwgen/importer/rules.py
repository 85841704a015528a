"""What an importer's rule sees: one ONNX node with decoded attributes, its operands as tensor IR, and how it says no."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import Finding
from ..tensor import Builder, Node, Ref
from ..tensor.build import wrapped

Array = np.ndarray
Rule = Callable[..., Any]  # (c: Context, op: Op, *operands) -> a value, or a list of them where the node has several outputs

RULES: dict[str, Rule] = {}
ANY_VALUE = {"Identity"}  # operators whose rules take values that are no tensors of full size (ragged.py, control.py)


class Unsupported(Exception):
    """Raised by a rule: why the node cannot be taken, and what would help."""

    def __init__(self, reason: str, hint: str = ""):
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(eq=False)
class Op:
    """An ONNX node. `type` carries the domain unless it is the standard one; an absent optional input is "" (its operand None).
    `proto`: the node as ONNX writes it."""

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    proto: Any = None
    read: set[str] = field(default_factory=set)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; every attribute that a file holds must be asked for by the rule of its node."""
        self.read.add(name)
        return self.attributes.get(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """An attribute that is 0 or 1."""
        value = self.attribute(name, int(default))
        if value not in (0, 1):
            raise Unsupported(f"{name} is {value}, must be 0 or 1")
        return bool(value)

    def axis(self, rank: int, default: int = 0) -> int:
        """Attribute `axis`, counted from the front. Raises ValueError where there is none such."""
        return wrapped(self.attribute("axis", default), rank)

    def ignore(self, *names: str) -> None:
        """Attributes that change nothing here."""
        self.read.update(names)

    @property
    def unread(self) -> list[str]:
        return sorted(set(self.attributes) - self.read)


@dataclass(eq=False)
class Body:
    """A graph inside a node (the branch of an If, the body of a Loop): what an attribute of the kind graph is decoded to."""

    inputs: tuple[str, ...]
    ops: list[Op]
    constants: dict[str, Array]
    outputs: tuple[str, ...]


@dataclass
class Context:
    """One import: the tensor IR under construction and the file's facts that rules need.

    values: ONNX tensor name -> value, of the graph and, while a branch or loop body is imported, of what is around it;
    a name that is missing has a value that nothing is known of. kinds: name -> type of its elements in the file, where it
    is known and may matter: of constants, inputs and integers that stand for others.
    unwanted: what to say of a node if an output needs it. types: what the file says of the values inside it.
    """

    t: Builder
    opsets: dict[str, int] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    operators: dict[str, str] = field(default_factory=dict)  # name of a node -> its operator
    findings: list[Finding] = field(default_factory=list)
    unwanted: dict[Node, Finding] = field(default_factory=dict)
    types: dict[str, Any] = field(default_factory=dict)

    def ints(self, x: Any, what: str) -> list[int]:
        """A constant operand as a list of integers, or Unsupported."""
        return [int(v) for v in np.asarray(self.array(x, what)).reshape(-1)]

    def array(self, x: Any, what: str) -> Array:
        """A constant operand as an array, or Unsupported naming `what` it stands for."""
        found = x.constant if isinstance(x, Ref) else None
        if found is None:
            raise Unsupported(f"{what} is computed from the image", "export with static shapes")
        return found

    def argument(self, op: Op, x: Sequence[Any], position: int, name: str, default: Any = None) -> Any:
        """What older opsets hold as attribute `name` and newer ones as constant operand `position`, as an array."""
        if name in op.attributes:
            return np.asarray(op.attribute(name))
        if position < len(x) and x[position] is not None:
            return self.array(x[position], name)
        return default


def rule(*types: str) -> Callable[[Rule], Rule]:
    """Register the rule of ONNX operators."""

    def register(function: Rule) -> Rule:
        for kind in types:
            assert kind not in RULES, kind
            RULES[kind] = function
        return function

    return register
